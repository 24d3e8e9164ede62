//! Between a folder of kernel modules and the initramfs: which of them a machine needs, in the order in which they
//! can be loaded.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why the modules can't be gathered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read the kernel module {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't search {} for kernel modules: {source}", folder.display())]
    Walk { folder: PathBuf, source: walkdir::Error },
    #[error("the kernel module {0} depends on itself, by way of others")]
    Cycle(String),
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

/// All modules below `folder`, by name. The kernel's names have `_` where a file's may have `-`.
fn files(folder: &Path) -> Result<HashMap<String, PathBuf>, Error> {
    let mut files = HashMap::new();
    for entry in walkdir::WalkDir::new(folder) {
        let path = entry
            .map_err(|source| Error::Walk {
                folder: folder.to_owned(),
                source,
            })?
            .into_path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko"));
        if let Some(name) = name {
            files.insert(name.replace('-', "_"), path);
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
