//! Finds what `polyinit vm` needs and does not bring along: programs and files that were installed, or fetched by
//! `tests/host/get-vm`.

use std::env;
use std::path::{Path, PathBuf};

/// The folders where fetched files may be, first one first: the user's cache, then the `target/vm` of the build that
/// this program comes from.
pub fn folders() -> Vec<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .map(|cache| cache.join("polyinit/vm"));
    let target = env::current_exe().ok().and_then(|program| {
        let target = program.ancestors().find(|folder| folder.ends_with("target"))?;
        Some(target.join("vm"))
    });
    cache.into_iter().chain(target).collect()
}

/// The program `name`: from the PATH, else from `bin` in one of [`folders`].
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(folders().into_iter().map(|folder| folder.join("bin")))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
