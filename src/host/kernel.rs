//! Which kernel a machine boots, and where the kernel's modules are.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::tools;

/// Names a kernel in the environment.
pub const VARIABLE: &str = "POLYINIT_KERNEL";

/// A kernel on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `vmlinux` (boots 0.3 s sooner in an emulated machine, and is what Firecracker takes) or a bzImage.
    pub image: PathBuf,
    /// The folder, searched to its depths, that holds its `.ko` files. Without one, the kernel has all built in.
    pub modules: Option<PathBuf>,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no kernel at {}, where {from} says", path.display())]
    Missing { path: PathBuf, from: &'static str },
    #[error("{} is no kernel: neither a vmlinux nor a bzImage", path.display())]
    NoKernel { path: PathBuf },
    #[error("can't read the kernel {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "no kernel found: pass --kernel FILE, or set {VARIABLE}; looked in {}. tests/host/get-vm of polyinit's repository \
         fetches one; so do, on Debian 12, for amd64:\n  \
         mkdir -p {first} && cd {first} &&\n  \
         apt-get download $(apt-cache depends linux-image-cloud-amd64 | grep -o 'linux-image-[0-9].*') &&\n  \
         dpkg-deb -x linux-image-*.deb .",
        folders(searched),
        first = searched.first().map(|folder| folder.display().to_string()).unwrap_or_default()
    )]
    NoneFound { searched: Vec<PathBuf> },
}

fn folders(searched: &[PathBuf]) -> String {
    let names: Vec<_> = searched.iter().map(|folder| folder.display().to_string()).collect();
    names.join(" and ")
}

impl Kernel {
    /// The kernel that the user names, else that of [`VARIABLE`], else one that was fetched: `vmlinux` in one of
    /// [`tools::folders`], or a distribution's package that was unpacked there.
    ///
    /// # Errors
    /// [`Error`] where a named one is not there or is none, or none is named and none was fetched.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        let from_environment = env::var_os(VARIABLE).map(PathBuf::from);
        let named = named
            .map(|path| (path.to_owned(), "--kernel"))
            .or_else(|| from_environment.map(|path| (path, VARIABLE)));
        if let Some((path, from)) = named {
            return match path.is_file() {
                true => Self::checked(path),
                false => Err(Error::Missing { path, from }),
            };
        }
        let searched = tools::folders();
        match searched.iter().find_map(|folder| fetched(folder)) {
            Some(image) => Self::checked(image),
            None => Err(Error::NoneFound { searched }),
        }
    }

    fn checked(image: PathBuf) -> Result<Self, Error> {
        match is_kernel(&image) {
            Ok(true) => Ok(Self::at(image)),
            Ok(false) => Err(Error::NoKernel { path: image }),
            Err(source) => Err(Error::Read { path: image, source }),
        }
    }

    /// The kernel in `image`, with its modules: in `modules` beside it, else, as distributions have it, in
    /// `../lib/modules/VERSION` of a `vmlinuz-VERSION`.
    fn at(image: PathBuf) -> Self {
        let beside = image.parent().unwrap_or(Path::new("")).join("modules");
        let of_distribution = || {
            let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
            let root = image.parent()?.parent()?;
            Some(root.join("lib/modules").join(version))
        };
        let modules = Some(beside).filter(|folder| folder.is_dir());
        Self {
            modules: modules.or_else(|| of_distribution().filter(|folder| folder.is_dir())),
            image,
        }
    }
}

/// The kernel that was fetched to `folder`; of several packages the last one by name.
fn fetched(folder: &Path) -> Option<PathBuf> {
    let image = folder.join("vmlinux");
    if image.is_file() {
        return Some(image);
    }
    let packages = fs::read_dir(folder.join("boot")).ok()?.flatten();
    let is_image = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("vmlinuz-");
    packages.filter(is_image).map(|entry| entry.path()).max()
}

/// How files of kernels begin: as an ELF does (elf(5)), or as the boot protocols of x86 and arm64 have it (`header` and
/// `magic` in Documentation/arch/x86/boot.rst and arm64/booting.rst of the kernel).
const ELF: (u64, [u8; 4]) = (0, *b"\x7fELF");
const BZ_IMAGE: (u64, [u8; 4]) = (0x202, *b"HdrS");
const ARM64_IMAGE: (u64, [u8; 4]) = (0x38, *b"ARM\x64");

fn is_kernel(image: &Path) -> io::Result<bool> {
    let file = File::open(image)?;
    for magic in [ELF, BZ_IMAGE, ARM64_IMAGE] {
        if has(&file, magic)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether it is one that only some VMMs unpack.
pub fn is_bz_image(image: &Path) -> bool {
    File::open(image).and_then(|file| has(&file, BZ_IMAGE)).unwrap_or(false)
}

fn has(file: &File, (offset, magic): (u64, [u8; 4])) -> io::Result<bool> {
    let mut found = [0; 4];
    match file.read_exact_at(&mut found, offset) {
        Ok(()) => Ok(found == magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn finds_the_modules_of_a_kernel() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("boot")).unwrap();
        fs::create_dir_all(at("lib/modules/6.1.0")).unwrap();
        let mut compressed = vec![0; 0x202];
        compressed.extend(b"HdrS");
        fs::write(at("boot/vmlinuz-6.1.0"), compressed).unwrap();
        let find = |path: &str| Kernel::find(Some(&at(path))).unwrap().modules;
        assert_eq!(find("boot/vmlinuz-6.1.0"), Some(at("lib/modules/6.1.0")));

        fs::write(at("boot/vmlinux"), "\x7fELF").unwrap();
        assert_eq!(find("boot/vmlinux"), None);
        fs::create_dir(at("boot/modules")).unwrap();
        assert_eq!(find("boot/vmlinux"), Some(at("boot/modules")));
    }

    #[test]
    fn an_unpacked_package_is_found_where_a_kernel_would_be() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fetched(folder.path()), None);
        fs::create_dir(folder.path().join("boot")).unwrap();
        for name in ["config-6.1.0", "vmlinuz-6.1.0", "vmlinuz-6.12.1"] {
            fs::write(folder.path().join("boot").join(name), "").unwrap();
        }
        assert_eq!(fetched(folder.path()), Some(folder.path().join("boot/vmlinuz-6.12.1")));
        fs::write(folder.path().join("vmlinux"), "").unwrap();
        assert_eq!(fetched(folder.path()), Some(folder.path().join("vmlinux")));
    }

    #[test]
    fn what_is_no_kernel_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hello").unwrap();
        let error = Kernel::find(Some(file.path())).unwrap_err().to_string();
        assert!(
            error.ends_with("is no kernel: neither a vmlinux nor a bzImage"),
            "{error}"
        );
    }

    #[test]
    fn a_named_kernel_that_is_missing_is_an_error() {
        let error = Kernel::find(Some(Path::new("/nowhere/vmlinux")))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "there is no kernel at /nowhere/vmlinux, where --kernel says");
    }
}
