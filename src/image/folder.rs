//! A folder of this machine as part of an image's [`Tree`]: the base `folder`, and the files of a recipe.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::tree::{Content, Entry, Kind, Tree, TreeError};

/// What becomes of the permission bits.
#[derive(Clone, Copy, Debug)]
pub enum Modes {
    /// They are the image's.
    Kept,
    /// 755 for folders and what is executable, 644 for the rest: whatever umask the files were checked out with.
    Plain,
}

/// Why a folder can't be part of an image.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Something in it can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The path on this machine.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something in it is of a kind that images don't have.
    #[error("{0} is a socket, which an image can't hold: remove it")]
    Socket(PathBuf),
    /// Something in it doesn't fit what the image has there already.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Adds all that is in `folder` to the tree, owned by root.
///
/// # Errors
/// Something in the folder can't be read, can't be in an image, or has no place in the tree.
pub fn add(tree: &mut Tree, folder: &Path, modes: Modes) -> Result<(), FolderError> {
    add_into(tree, folder, Path::new(""), modes)
}

/// The same, below `place` of the image.
///
/// # Errors
/// As [`add`].
pub fn add_into(tree: &mut Tree, folder: &Path, place: &Path, modes: Modes) -> Result<(), FolderError> {
    let place = place.strip_prefix("/").unwrap_or(place);
    for item in walkdir::WalkDir::new(folder).min_depth(1).sort_by_file_name() {
        let item = item.map_err(|error| FolderError::Read {
            path: error.path().unwrap_or(folder).to_path_buf(),
            source: error.into(),
        })?;
        let inside = item.path().strip_prefix(folder).unwrap_or(item.path());
        tree.insert(&place.join(inside), entry_of(item.path(), modes)?)?;
    }
    Ok(())
}

fn entry_of(path: &Path, modes: Modes) -> Result<Entry, FolderError> {
    let read_error = |source| FolderError::Read {
        path: path.to_path_buf(),
        source,
    };
    let metadata = path.symlink_metadata().map_err(read_error)?;
    let kind = metadata.file_type();
    let (major, minor) = (major(metadata.rdev()) as u32, minor(metadata.rdev()) as u32);
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(path.read_link().map_err(read_error)?)
    } else if kind.is_file() {
        Kind::File(Content::Path(path.to_path_buf()))
    } else if kind.is_char_device() {
        Kind::CharacterDevice { major, minor }
    } else if kind.is_block_device() {
        Kind::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        return Err(FolderError::Socket(path.to_path_buf()));
    };
    Ok(Entry {
        mode: mode(&metadata, modes),
        uid: 0,
        gid: 0,
        kind,
    })
}

fn mode(metadata: &Metadata, modes: Modes) -> u16 {
    let bits = (metadata.permissions().mode() & 0o7777) as u16;
    match modes {
        // The permissions of a link mean nothing, and depend on the file system it is on.
        _ if metadata.is_symlink() => 0o777,
        Modes::Plain if metadata.is_dir() || bits & 0o100 != 0 => 0o755,
        Modes::Plain => 0o644,
        Modes::Kept => bits,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    use super::*;

    fn modes_of(modes: Modes) -> Vec<(String, u16)> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("d")).expect("a folder");
        for (name, mode) in [("d/tool", 0o4710), ("d/text", 0o600), ("d", 0o2770)] {
            let path = folder.path().join(name);
            if !path.exists() {
                fs::write(&path, "x").expect("a file");
            }
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        }
        symlink("text", folder.path().join("d/link")).expect("a link");
        let mut tree = Tree::default();
        add(&mut tree, folder.path(), modes).expect("adds");
        tree.iter()
            .map(|(path, entry)| (path.display().to_string(), entry.mode))
            .collect()
    }

    #[test]
    fn a_base_keeps_its_modes_and_a_recipes_files_have_plain_ones() {
        let of = |modes: [u16; 4]| {
            ["d", "d/link", "d/text", "d/tool"]
                .map(str::to_owned)
                .into_iter()
                .zip(modes)
                .collect::<Vec<_>>()
        };
        assert_eq!(modes_of(Modes::Kept), of([0o2770, 0o777, 0o600, 0o4710]));
        assert_eq!(modes_of(Modes::Plain), of([0o755, 0o777, 0o644, 0o755]));
    }

    #[test]
    fn a_socket_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let error = add(&mut Tree::default(), folder.path(), Modes::Kept).expect_err("a socket");
        assert_eq!(
            error.to_string(),
            format!("{} is a socket, which an image can't hold: remove it", path.display())
        );
    }
}
