//! Which kernel a machine boots, and where the kernel's modules are.

use std::env;
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
    #[error(
        "no kernel found: pass --kernel FILE, set {VARIABLE}, or fetch one with tests/host/get-vm; looked in {}",
        folders(searched)
    )]
    NoneFound { searched: Vec<PathBuf> },
}

fn folders(searched: &[PathBuf]) -> String {
    let names: Vec<_> = searched.iter().map(|folder| folder.display().to_string()).collect();
    names.join(" and ")
}

impl Kernel {
    /// The kernel that the user names, else that of [`VARIABLE`], else one that was fetched.
    ///
    /// # Errors
    /// [`Error`] where a named one is not there, or none is named and none was fetched.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        let from_environment = env::var_os(VARIABLE).map(PathBuf::from);
        let named = named
            .map(|path| (path.to_owned(), "--kernel"))
            .or_else(|| from_environment.map(|path| (path, VARIABLE)));
        if let Some((path, from)) = named {
            return match path.is_file() {
                true => Ok(Self::at(path)),
                false => Err(Error::Missing { path, from }),
            };
        }
        let searched = tools::folders();
        searched
            .iter()
            .map(|folder| folder.join("vmlinux"))
            .find(|image| image.is_file())
            .map(Self::at)
            .ok_or(Error::NoneFound { searched })
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
        fs::write(at("boot/vmlinuz-6.1.0"), "").unwrap();
        let find = |path: &str| Kernel::find(Some(&at(path))).unwrap().modules;
        assert_eq!(find("boot/vmlinuz-6.1.0"), Some(at("lib/modules/6.1.0")));

        fs::write(at("boot/vmlinux"), "").unwrap();
        assert_eq!(find("boot/vmlinux"), None);
        fs::create_dir(at("boot/modules")).unwrap();
        assert_eq!(find("boot/vmlinux"), Some(at("boot/modules")));
    }

    #[test]
    fn a_named_kernel_that_is_missing_is_an_error() {
        let error = Kernel::find(Some(Path::new("/nowhere/vmlinux")))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "there is no kernel at /nowhere/vmlinux, where --kernel says");
    }
}
