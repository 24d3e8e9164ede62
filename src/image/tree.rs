//! An image's content before it is written: what every base makes, every layer adds to, and
//! [`super::squashfs`] writes.
//!
//! Paths are relative to the image's root and sorted, so the same content is always written in the same order.
//! File contents stay where they are (in a tar, on disk) until they are written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::links;

/// One file, folder, link or device.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and where it leads.
    Symlink(PathBuf),
    /// A character device.
    CharacterDevice {
        /// Driver.
        major: u32,
        /// Device of the driver.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Driver.
        major: u32,
        /// Device of the driver.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a regular file's bytes are until the image is written.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of this machine.
    Path(PathBuf),
    /// Inside an open archive.
    Slice {
        /// The archive.
        archive: Arc<File>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// The image's content by path.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

/// Why something has no place in an image.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The name leads out of the image.
    #[error("{0:?} is not a path inside the image")]
    Outside(PathBuf),
    /// A folder is wanted where there is something else, or the other way round.
    #[error("/{path} can't be put into the image: /{other} is {what}", path = path.display(), other = other.display())]
    InTheWay {
        /// What should have been put.
        path: PathBuf,
        /// What is in its way.
        other: PathBuf,
        /// What that is.
        what: &'static str,
    },
    /// Links that lead in a circle.
    #[error("/{} can't be put into the image: too many symbolic links on the way", .0.display())]
    Circle(PathBuf),
}

impl Entry {
    /// A folder of root.
    pub fn directory(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            kind: Kind::Directory,
        }
    }

    /// A file of root.
    pub fn file(mode: u16, content: Content) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            kind: Kind::File(content),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }
}

impl Content {
    /// Number of bytes.
    ///
    /// # Errors
    /// The file on this machine can't be examined.
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::Path(path) => Ok(path.metadata()?.len()),
            Self::Slice { length, .. } => Ok(*length),
        }
    }

    /// A reader of all bytes.
    ///
    /// # Errors
    /// The file on this machine can't be opened.
    pub fn open(self) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
            Self::Path(path) => Box::new(File::open(path)?),
            Self::Slice {
                archive,
                offset,
                length,
            } => Box::new(Slice {
                archive,
                offset,
                left: length,
            }),
        })
    }
}

/// Reads a part of a shared file without moving its position.
struct Slice {
    archive: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.archive.read_at(&mut buffer[..wanted], self.offset)?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside a file",
            ));
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Tree {
    /// Puts an entry at `path`, following the links of the image on the way there, and makes the folders that lead to it.
    ///
    /// What was there is replaced, except that a folder put over a folder keeps what is in it and its mode: a layer that
    /// has `etc/` does not decide about the base's `/etc`.
    ///
    /// # Errors
    /// The path leads out of the image, or through or onto something of another kind.
    pub fn insert(&mut self, path: &Path, entry: Entry) -> Result<(), TreeError> {
        let path = self.resolve(path)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        self.make_parents(&path)?;
        match self.entries.get(&path) {
            Some(old) if old.is_directory() && entry.is_directory() => return Ok(()),
            Some(old) if old.is_directory() && self.has_children(&path) => {
                return Err(TreeError::InTheWay {
                    other: path.clone(),
                    path,
                    what: "a folder that is not empty",
                });
            }
            _ => {}
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// Makes a folder that must be there with exactly this mode; one that is there keeps what is in it.
    ///
    /// # Errors
    /// As [`Self::insert`]; also where something else than a folder is there.
    pub fn require_directory(&mut self, path: &Path, mode: u16) -> Result<(), TreeError> {
        let path = self.follow(path)?;
        self.make_parents(&path)?;
        match self.entries.get_mut(&path) {
            Some(old) if old.is_directory() => old.mode = mode,
            Some(_) => {
                return Err(TreeError::InTheWay {
                    other: path.clone(),
                    path,
                    what: "not a folder",
                });
            }
            None => drop(self.entries.insert(path, Entry::directory(mode))),
        }
        Ok(())
    }

    /// Puts an entry at `path` as a later layer does: a folder over something else, and anything over a folder, which goes
    /// with all that is in it. A folder over a folder gives it its mode and owner.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn replace(&mut self, path: &Path, entry: Entry) -> Result<(), TreeError> {
        let place = self.resolve(path)?;
        match self.entries.get_mut(&place) {
            Some(old) if old.is_directory() && entry.is_directory() => {
                *old = entry;
                return Ok(());
            }
            Some(_) => self.remove(&place),
            None => {}
        }
        self.insert(path, entry)
    }

    /// Takes away what is at exactly this path, and all below it.
    pub fn remove(&mut self, path: &Path) {
        self.entries.remove(path);
        self.clear(path);
    }

    /// Takes away all that is below this path.
    pub fn clear(&mut self, path: &Path) {
        self.entries
            .retain(|other, _| other == path || !other.starts_with(path));
    }

    /// The entry at exactly this path.
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The entry at this path, with the links on the way there followed, but not the last part.
    pub fn at(&self, path: &Path) -> Option<&Entry> {
        self.get(&self.resolve(path).ok()?)
    }

    /// Whether a machine finds a file at `path`, links followed wherever they lead.
    pub fn leads_to_file(&self, path: &Path) -> bool {
        let link = |path: &Path| match &self.get(path)?.kind {
            Kind::Symlink(target) => Some(target.clone()),
            _ => None,
        };
        let found = links::follow(path, link).and_then(|real| self.get(&real).map(|entry| &entry.kind));
        matches!(found, Some(Kind::File(_)))
    }

    /// All entries, sorted: every folder before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    /// Whether anything is below this path.
    pub fn has_children(&self, path: &Path) -> bool {
        let after = (std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded);
        self.entries
            .range::<Path, _>(after)
            .next()
            .is_some_and(|(next, _)| next.starts_with(path))
    }

    /// Where `path` really is, its last part not followed: what open(2) calls with O_NOFOLLOW.
    fn resolve(&self, path: &Path) -> Result<PathBuf, TreeError> {
        let outside = || TreeError::Outside(path.to_path_buf());
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.follow(parent)?.join(name)),
            _ if path
                .components()
                .all(|part| matches!(part, Component::CurDir | Component::RootDir)) =>
            {
                Ok(PathBuf::new())
            }
            _ => Err(outside()),
        }
    }

    /// Where `path` really is, every link followed.
    fn follow(&self, path: &Path) -> Result<PathBuf, TreeError> {
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(TreeError::Outside(path.to_path_buf()));
        }
        let target = |path: &Path| match self.entries.get(path)?.kind {
            Kind::Symlink(ref target) => Some(target.clone()),
            _ => None,
        };
        links::follow(path, target).ok_or_else(|| TreeError::Circle(path.to_path_buf()))
    }

    /// `path` has no links on its way any more.
    fn make_parents(&mut self, path: &Path) -> Result<(), TreeError> {
        let parents: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .collect();
        for parent in parents.into_iter().rev() {
            let entry = self
                .entries
                .entry(parent.to_path_buf())
                .or_insert_with(|| Entry::directory(0o755));
            if !entry.is_directory() {
                return Err(TreeError::InTheWay {
                    path: path.to_path_buf(),
                    other: parent.to_path_buf(),
                    what: "not a folder",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Entry {
        Entry {
            mode: 0o777,
            uid: 0,
            gid: 0,
            kind: Kind::Symlink(target.into()),
        }
    }

    fn file() -> Entry {
        Entry::file(0o644, Content::Bytes(b"x".to_vec()))
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.iter().map(|(path, _)| path.display().to_string()).collect()
    }

    #[test]
    fn a_file_behind_the_images_links_lands_where_they_lead() {
        let mut tree = Tree::default();
        tree.insert(Path::new("usr/sbin"), Entry::directory(0o755))
            .expect("a folder");
        tree.insert(Path::new("sbin"), link("usr/sbin")).expect("a link");
        tree.insert(Path::new("up"), link("../../../usr/./sbin/.."))
            .expect("a link");
        tree.insert(Path::new("/sbin/init"), file()).expect("through a link");
        tree.insert(Path::new("./up/share/x"), file())
            .expect("through a link that climbs");
        assert_eq!(
            paths(&tree),
            [
                "sbin",
                "up",
                "usr",
                "usr/sbin",
                "usr/sbin/init",
                "usr/share",
                "usr/share/x"
            ]
        );
    }

    #[test]
    fn nothing_leads_out_of_the_image() {
        let mut tree = Tree::default();
        for path in ["../x", "a/../../x", "..", "a/.."] {
            let error = tree.insert(Path::new(path), file()).expect_err(path);
            assert!(matches!(error, TreeError::Outside(_)), "{path}: {error}");
        }
        tree.insert(Path::new("a"), link("b")).expect("a link");
        tree.insert(Path::new("b"), link("a")).expect("a link");
        assert!(matches!(
            tree.insert(Path::new("a/x"), file()),
            Err(TreeError::Circle(_))
        ));
    }

    #[test]
    fn a_folder_over_a_folder_keeps_what_the_base_decided() {
        let mut tree = Tree::default();
        tree.insert(Path::new("root"), Entry::directory(0o700))
            .expect("a folder");
        tree.insert(Path::new("root/x"), file()).expect("a file");
        tree.insert(Path::new("root"), Entry::directory(0o755)).expect("again");
        assert_eq!(tree.get(Path::new("root")).expect("still there").mode, 0o700);
        tree.require_directory(Path::new("root"), 0o711).expect("a folder");
        assert_eq!(tree.get(Path::new("root")).expect("still there").mode, 0o711);
        assert_eq!(paths(&tree), ["root", "root/x"]);
    }

    #[test]
    fn a_folder_with_content_is_not_replaced_by_a_file() {
        let mut tree = Tree::default();
        tree.insert(Path::new("etc/hosts"), file()).expect("a file");
        let error = tree.insert(Path::new("etc"), file()).expect_err("a folder is there");
        assert_eq!(
            error.to_string(),
            "/etc can't be put into the image: /etc is a folder that is not empty"
        );
        let error = tree
            .insert(Path::new("etc/hosts/x"), file())
            .expect_err("a file is there");
        assert_eq!(
            error.to_string(),
            "/etc/hosts/x can't be put into the image: /etc/hosts is not a folder"
        );
    }

    #[test]
    fn a_slice_of_an_archive_reads_its_bytes_and_tells_when_the_archive_is_cut() {
        let archive = Arc::new(tempfile::tempfile().expect("a temporary file"));
        archive.write_all_at(b"0123456789", 0).expect("write");
        let slice = |offset, length| Content::Slice {
            archive: Arc::clone(&archive),
            offset,
            length,
        };
        let mut text = String::new();
        slice(2, 5)
            .open()
            .expect("opens")
            .read_to_string(&mut text)
            .expect("reads");
        assert_eq!(text, "23456");
        let error = slice(8, 5)
            .open()
            .expect("opens")
            .read_to_string(&mut text)
            .expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
