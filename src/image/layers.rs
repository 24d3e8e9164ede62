//! What every image gets over its base: the recipe's files and environment, mount points, and init.

use std::collections::BTreeMap;
use std::path::Path;

use super::init_binary::InitBinary;
use super::recipe::{Base, Recipe};
use super::tree::{Content, Entry, Kind, Tree, TreeError};
use crate::init::image_environment;

/// The first program that the kernel looks for when its command line names none.
pub const INIT: &str = "sbin/init";

/// The root is read-only: what init or a host mounts something on must be there. Modes are those of the FHS.
const MOUNT_POINTS: [(&str, u16); 13] = [
    ("data", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("rom", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// For kernels that don't mount devtmpfs by themselves: init's first words need a console.
const DEVICES: [(&str, u16, u32, u32); 2] = [("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3)];

/// Puts the layers over `tree`: the recipe's `files`, the `environment` of programs, and init as the last.
///
/// # Errors
/// A file of the recipe can't be read, or has no place in the tree.
pub fn apply(
    tree: &mut Tree,
    recipe: &Recipe,
    files: Tree,
    environment: &BTreeMap<String, String>,
    init: &InitBinary,
) -> Result<(), TreeError> {
    // Debian's commands need the files before; there they are in the base already.
    if !matches!(recipe.base, Base::Debian(_)) {
        for (path, entry) in files.iter() {
            tree.insert(path, entry.clone())?;
        }
    }
    if !environment.is_empty() {
        let lines: String = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        tree.insert(
            Path::new(image_environment::FILE),
            Entry::file(0o644, Content::Bytes(lines.into_bytes())),
        )?;
    }
    for (path, mode) in MOUNT_POINTS {
        tree.require_directory(Path::new(path), mode)?;
    }
    for (path, mode, major, minor) in DEVICES {
        let kind = Kind::CharacterDevice { major, minor };
        tree.insert(
            Path::new(path),
            Entry {
                mode,
                uid: 0,
                gid: 0,
                kind,
            },
        )?;
    }
    tree.insert(Path::new(INIT), Entry::file(0o755, Content::Path(init.path.clone())))
}
