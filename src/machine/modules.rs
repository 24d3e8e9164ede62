//! Kernel modules: which files a module needs, in the order in which they can be loaded, and loading them. In a machine
//! for the options' `modules` and for the file systems of volumes; on a host for the initramfs.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::utsname::uname;

/// Why modules can't be gathered, or one can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel modules {wanted} are not loaded: the image has no {}, where this kernel's would be", folder.display())]
    NoFolder { wanted: String, folder: PathBuf },
    #[error("there is no kernel module {name} in {}", folder.display())]
    NoModule { name: String, folder: PathBuf },
    #[error("the kernel refuses its module {}: {errno}", path.display())]
    Refused { path: PathBuf, errno: Errno },
    #[error("can't read the kernel module {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't search {} for kernel modules: {source}", folder.display())]
    Walk { folder: PathBuf, source: walkdir::Error },
    #[error("the kernel module {0} depends on itself, by way of others")]
    Cycle(String),
}

/// The kernel's own list of what depends on what, by depmod(8).
const DEPENDENCIES: &str = "modules.dep";
/// What is built into the kernel, one path a line.
const BUILT_IN: &str = "modules.builtin";

/// Loads the modules `wanted`, each after what it depends on, from /lib/modules of this kernel. Gives back what went
/// wrong. Where the kernel takes no modules at all (`nomodule`), does nothing.
pub fn load(wanted: &[&str]) -> Vec<Error> {
    let disabled = fs::read_to_string("/proc/sys/kernel/modules_disabled");
    if wanted.is_empty() || !disabled.is_ok_and(|disabled| disabled.trim() == "0") {
        tracing::debug!("this kernel takes no modules, {wanted:?} neither");
        return Vec::new();
    }
    let folder = match uname() {
        Ok(kernel) => Path::new("/lib/modules").join(kernel.release()),
        Err(_) => PathBuf::from("/lib/modules"),
    };
    if !folder.is_dir() {
        let wanted = wanted.join(", ");
        return vec![Error::NoFolder { wanted, folder }];
    }
    let list = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let (listed, built_in) = (list(DEPENDENCIES), list(BUILT_IN));
    let load_one = |name: &&str| -> Result<(), Error> {
        let files = match listed_files(&listed, name) {
            Some(files) => files.into_iter().map(|file| folder.join(file)).collect(),
            None => in_load_order(&folder, &[&name.replace('-', "_")])?,
        };
        if files.is_empty()
            && !built_in
                .lines()
                .any(|path| name_of(Path::new(path)) == Some(name.replace('-', "_")))
        {
            let (name, folder) = ((*name).to_owned(), folder.clone());
            return Err(Error::NoModule { name, folder });
        }
        files.iter().try_for_each(|file| insert(file))
    };
    wanted.iter().filter_map(|name| load_one(name).err()).collect()
}

/// The files that `name` needs, itself the last, out of a modules.dep: `path: dependency dependency`, the deepest one
/// last (modules.dep(5)). `None`: it isn't there.
fn listed_files<'l>(list: &'l str, name: &str) -> Option<Vec<&'l str>> {
    let name = name.replace('-', "_");
    let (path, dependencies) = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(path, _)| name_of(Path::new(path)).as_deref() == Some(&name))?;
    Some(dependencies.split_whitespace().rev().chain([path]).collect())
}

/// Has the kernel load one file (finit_module(2)); it decompresses what is compressed, from Linux 5.17 on.
fn insert(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let flags = match path.extension().is_some_and(|extension| extension == "ko") {
        true => ModuleInitFlags::empty(),
        // MODULE_INIT_COMPRESSED_FILE of linux/module.h.
        false => ModuleInitFlags::from_bits_retain(4),
    };
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::Refused {
            path: path.to_owned(),
            errno,
        }),
    }
}

/// The name that the kernel has for the module in `path`, compressed or not: with `_` where a file's may have `-`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, end) = file.split_once(".ko")?;
    matches!(end, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// The files of the modules `wanted` in `folder` and of all that they depend on, each after its dependencies. A module
/// that is not there is taken as built into the kernel, which nothing but the kernel knows better.
///
/// # Errors
/// [`Error`] where the folder or a module can't be read, or makes no sense.
pub fn in_load_order(folder: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let mut gathering = Gathering {
        files: files(folder)?,
        ..Gathering::default()
    };
    for name in wanted {
        gathering.add(name)?;
    }
    Ok(gathering.ordered)
}

/// All modules below `folder`, by name.
fn files(folder: &Path) -> Result<HashMap<String, PathBuf>, Error> {
    let mut files = HashMap::new();
    for entry in walkdir::WalkDir::new(folder) {
        let path = entry
            .map_err(|source| Error::Walk {
                folder: folder.to_owned(),
                source,
            })?
            .into_path();
        if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(files)
}

#[derive(Default)]
struct Gathering {
    files: HashMap<String, PathBuf>,
    begun: HashSet<String>,
    done: HashSet<String>,
    ordered: Vec<PathBuf>,
}

impl Gathering {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        let Some(path) = self.files.get(name).cloned() else {
            return Ok(());
        };
        if self.done.contains(name) {
            return Ok(());
        }
        if !self.begun.insert(name.to_owned()) {
            return Err(Error::Cycle(name.to_owned()));
        }
        let module = fs::read(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        for dependency in dependencies(&module) {
            self.add(&dependency)?;
        }
        self.done.insert(name.to_owned());
        self.ordered.push(path);
        Ok(())
    }
}

/// What the module says it depends on: `depends=a,b` among the NUL-terminated strings of its section `.modinfo`
/// (MODULE_INFO in the kernel's include/linux/module.h). The ELF around it needs no looking at: no other string of a
/// module begins so.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(folder: &Path, file: &str, depends: &str) {
        let text = format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let folder = tempfile::tempdir().unwrap();
        module(folder.path(), "kernel/net/virtio_net.ko", "virtio,net-failover");
        module(folder.path(), "kernel/net/net-failover.ko", "failover");
        module(folder.path(), "kernel/net/failover.ko", "");
        module(folder.path(), "kernel/virtio.ko", "virtio_ring");
        module(folder.path(), "kernel/virtio_ring.ko", "");
        module(folder.path(), "kernel/unrelated.ko", "");
        let order = in_load_order(folder.path(), &["virtio", "built_in", "virtio_net"]).unwrap();
        let names: Vec<_> = order
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["virtio_ring", "virtio", "failover", "net-failover", "virtio_net"]
        );
    }

    #[test]
    fn the_kernels_list_is_followed_from_its_end() {
        let list = "kernel/net/sunrpc.ko:\nkernel/fs/nfs/nfs.ko.xz: kernel/fs/lockd.ko kernel/net/sunrpc.ko\n";
        let files = ["kernel/net/sunrpc.ko", "kernel/fs/lockd.ko", "kernel/fs/nfs/nfs.ko.xz"];
        assert_eq!(listed_files(list, "nfs").unwrap(), files);
        assert_eq!(listed_files(list, "sunrpc").unwrap(), files[..1]);
        assert_eq!(listed_files(list, "nf"), None);
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(
            name_of(Path::new("/a/net-failover.ko.zst")).as_deref(),
            Some("net_failover")
        );
        assert_eq!(name_of(Path::new("/a/net-failover.ko.bak")), None);
        assert_eq!(name_of(Path::new("/a/modules.dep")), None);
    }

    #[test]
    fn a_cycle_is_told() {
        let folder = tempfile::tempdir().unwrap();
        module(folder.path(), "a.ko", "b");
        module(folder.path(), "b.ko", "a");
        assert!(
            in_load_order(folder.path(), &["a"])
                .unwrap_err()
                .to_string()
                .contains("depends on itself")
        );
    }
}
