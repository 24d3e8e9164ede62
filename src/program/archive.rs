//! Unpacks what a program comes in. Every name is checked before a byte is written, every size before it is believed.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component as PathComponent, Path, PathBuf};

/// How much an archive may hold once unpacked, in bytes.
const UNPACKED_LIMIT: u64 = 4 << 30;

/// How many files and folders an archive may hold.
const ENTRY_LIMIT: usize = 200_000;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("not a zip that can be read: {0}")]
    Zip(#[from] zip::result::ZipError),
    #[error("not a squashfs that can be read: {0}")]
    Squashfs(#[from] backhand::BackhandError),
    #[error("the archive has the entry {0:?}, which would land outside of the folder it is unpacked to; refused")]
    Outside(String),
    #[error("the archive has more than {ENTRY_LIMIT} entries")]
    TooMany,
    #[error("the archive holds more than {} GiB", UNPACKED_LIMIT >> 30)]
    TooLarge,
    #[error("can't unpack {path}: {error}", path = .path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("can't read the archive: {0}")]
    Read(#[from] io::Error),
}

/// Unpacks a zip into the folder `target`.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays.
pub fn unzip(archive: impl Read + Seek, target: &Path) -> Result<(), ArchiveError> {
    unpack(archive, target, true)
}

/// As [`unzip`], of somebody whose links could lead a reader anywhere: they are left out.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays.
pub fn unzip_without_links(archive: impl Read + Seek, target: &Path) -> Result<(), ArchiveError> {
    unpack(archive, target, false)
}

fn unpack(archive: impl Read + Seek, target: &Path, links: bool) -> Result<(), ArchiveError> {
    let mut archive = zip::ZipArchive::new(archive)?;
    if archive.len() > ENTRY_LIMIT {
        return Err(ArchiveError::TooMany);
    }
    let mut writer = Writer::new(target);
    // Names first: an archive with one bad name leaves nothing behind.
    for name in archive.file_names() {
        inside(Path::new(&*name?))?;
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = inside(Path::new(&*entry.name()?))?;
        let mode = entry.unix_mode();
        if entry.is_dir() {
            writer.folder(&name)?;
        } else if entry.is_symlink() {
            let mut link = String::new();
            entry.by_ref().take(4096).read_to_string(&mut link)?;
            if links {
                writer.link(&name, Path::new(&link))?;
            }
        } else {
            writer.file(&name, &mut entry, mode.unwrap_or(0o644))?;
        }
    }
    Ok(())
}

/// Unpacks a squashfs image into the folder `target`: what a machine would mount, where there is no machine.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays.
pub fn unsquash(image: File, target: &Path) -> Result<(), ArchiveError> {
    use backhand::InnerNode;
    let image = backhand::FilesystemReader::from_reader(BufReader::new(image))?;
    let mut writer = Writer::new(target);
    for (count, node) in image.files().enumerate() {
        if count > ENTRY_LIMIT {
            return Err(ArchiveError::TooMany);
        }
        let Ok(name) = node.fullpath.strip_prefix("/") else {
            return Err(ArchiveError::Outside(node.fullpath.display().to_string()));
        };
        let name = inside(name)?;
        match &node.inner {
            InnerNode::Dir(_) => writer.folder(&name)?,
            InnerNode::Symlink(link) => writer.link(&name, &link.link)?,
            InnerNode::File(file) => {
                writer.file(&name, &mut image.file(file).reader(), node.header.permissions.into())?;
            }
            // A program has no use for devices, pipes and sockets in its code.
            _ => {}
        }
    }
    Ok(())
}

/// The longest that a link may lead to, in bytes: the library has room for no more, and panics.
const LINK_LIMIT: usize = 255;

/// Puts a symbolic link into a squashfs.
///
/// # Errors
/// It is longer than there is room for.
pub fn push_link(
    writer: &mut backhand::FilesystemWriter<'_, '_, '_>,
    target: &Path,
    path: &Path,
    header: backhand::NodeHeader,
) -> Result<(), backhand::BackhandError> {
    match target.as_os_str().len() {
        ..=LINK_LIMIT => writer.push_symlink(target, path, header),
        length => Err(backhand::BackhandError::StdIo(io::Error::other(format!(
            "where the link {} leads is {length} bytes long, and {LINK_LIMIT} are the limit",
            path.display()
        )))),
    }
}

/// The first part of `name`, which is below `root`, that is a link: what is written there would be elsewhere.
pub fn link_on_the_way(root: &Path, name: &Path) -> Option<PathBuf> {
    let mut path = root.to_owned();
    name.components().find_map(|part| {
        path.push(part);
        path.is_symlink().then(|| path.clone())
    })
}

/// The path below the target that an entry's name means.
fn inside(name: &Path) -> Result<PathBuf, ArchiveError> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            PathComponent::Normal(part) => path.push(part),
            PathComponent::CurDir => {}
            PathComponent::RootDir | PathComponent::ParentDir | PathComponent::Prefix(_) => {
                return Err(ArchiveError::Outside(name.display().to_string()));
            }
        }
    }
    Ok(path)
}

/// Writes entries below one folder, and nowhere else.
struct Writer<'a> {
    target: &'a Path,
    left: u64,
}

impl<'a> Writer<'a> {
    fn new(target: &'a Path) -> Self {
        Self {
            target,
            left: UNPACKED_LIMIT,
        }
    }

    /// Makes the folder, but not the target: whoever has removed that meanwhile wants nothing of it any more.
    fn folder(&self, name: &Path) -> Result<(), ArchiveError> {
        self.no_link_on_the_way(name)?;
        let mut path = self.target.to_owned();
        if path.join(name).is_dir() {
            return Ok(());
        }
        for part in name {
            path.push(part);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
                    return Err(ArchiveError::Write { path, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &Path, content: &mut impl Read, mode: u32) -> Result<(), ArchiveError> {
        if let Some(parent) = name.parent() {
            self.folder(parent)?;
        }
        self.no_link_on_the_way(name)?;
        let path = self.target.join(name);
        let written = File::create(&path).and_then(|mut file| {
            // One byte more than is left tells that there was more.
            let count = io::copy(&mut content.take(self.left + 1), &mut file)?;
            file.flush()?;
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o777 | 0o400))?;
            Ok(count)
        });
        let written = written.map_err(|error| ArchiveError::Write { path, error })?;
        self.left = self.left.checked_sub(written).ok_or(ArchiveError::TooLarge)?;
        Ok(())
    }

    /// A symbolic link, wherever it leads: that of a virtual environment leads to the interpreter. Nothing is written
    /// through it.
    fn link(&self, name: &Path, to: &Path) -> Result<(), ArchiveError> {
        if let Some(parent) = name.parent() {
            self.folder(parent)?;
        }
        let path = self.target.join(name);
        if path.is_symlink() {
            // From an earlier time: what is there of a file is replaced, too.
            let _ = fs::remove_file(&path);
        }
        std::os::unix::fs::symlink(to, &path).map_err(|error| ArchiveError::Write { path, error })
    }

    /// An entry must not be written through a link that an earlier entry made.
    fn no_link_on_the_way(&self, name: &Path) -> Result<(), ArchiveError> {
        match link_on_the_way(self.target, name) {
            Some(_) => Err(ArchiveError::Outside(name.display().to_string())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use zip::write::SimpleFileOptions;

    fn zip_of(entries: &[(&str, &str)]) -> Cursor<Vec<u8>> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in entries {
            match content.strip_prefix("-> ") {
                Some(to) => zip.add_symlink(*name, to, SimpleFileOptions::default()).unwrap(),
                None => {
                    zip.start_file(*name, SimpleFileOptions::default().unix_permissions(0o755))
                        .unwrap();
                    zip.write_all(content.as_bytes()).unwrap();
                }
            }
        }
        zip.finish().unwrap()
    }

    #[test]
    fn unzips_files_folders_links_and_modes() {
        let target = tempfile::tempdir().unwrap();
        let zip = zip_of(&[
            ("run.sh", "#!/bin/sh"),
            ("pkg/sub/a.py", "a = 1"),
            ("pkg/b.py", "-> sub/a.py"),
            ("venv/bin/python3", "-> /usr/bin/python3"),
        ]);
        unzip(zip, target.path()).unwrap();
        assert_eq!(fs::read_to_string(target.path().join("pkg/b.py")).unwrap(), "a = 1");
        let interpreter = fs::read_link(target.path().join("venv/bin/python3")).unwrap();
        assert_eq!(interpreter, Path::new("/usr/bin/python3"));
        // Once more, into the same folder, as it is where that is kept.
        unzip(zip_of(&[("pkg/b.py", "-> sub/c.py")]), target.path()).unwrap();
        let link = fs::read_link(target.path().join("pkg/b.py")).unwrap();
        assert_eq!(link, Path::new("sub/c.py"));
        let without = target.path().join("without");
        fs::create_dir(&without).unwrap();
        unzip_without_links(zip_of(&[("a", "1"), ("b", "-> /etc/passwd")]), &without).unwrap();
        assert!(without.join("a").is_file() && !without.join("b").is_symlink());
        let mode = fs::metadata(target.path().join("run.sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn refuses_names_that_lead_outside_and_leaves_nothing() {
        for name in ["../evil.py", "/etc/evil", "a/../../evil"] {
            let target = tempfile::tempdir().unwrap();
            let error = unzip(zip_of(&[("good.py", "1"), (name, "bad")]), target.path()).unwrap_err();
            assert!(matches!(error, ArchiveError::Outside(_)), "{name}: {error}");
            assert!(!target.path().join("good.py").exists());
        }
    }

    #[test]
    fn refuses_to_write_through_a_link() {
        for (link, through) in [
            ("-> ../out", "link/evil"),
            ("-> /tmp", "link/evil"),
            ("-> .", "link/evil"),
        ] {
            let target = tempfile::tempdir().unwrap();
            let error = unzip(zip_of(&[("link", link), (through, "bad")]), target.path()).unwrap_err();
            assert!(matches!(error, ArchiveError::Outside(_)), "{link}: {error}");
        }
    }

    #[test]
    fn a_folder_that_was_removed_is_not_made_again() {
        let target = tempfile::tempdir().unwrap();
        let root = target.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut writer = Writer::new(&root);
        writer.folder(Path::new("a/b")).unwrap();
        writer.folder(Path::new("a")).unwrap();
        writer.file(Path::new("c"), &mut io::empty(), 0o644).unwrap();
        assert!(writer.folder(Path::new("c")).is_err());
        fs::remove_dir_all(&root).unwrap();
        assert!(writer.folder(Path::new("a/b")).is_err());
        assert!(writer.file(Path::new("c"), &mut io::empty(), 0o644).is_err());
        assert!(!root.exists());
    }

    #[test]
    fn says_what_is_no_archive() {
        let target = tempfile::tempdir().unwrap();
        let error = unzip(Cursor::new(b"hello".to_vec()), target.path()).unwrap_err();
        assert!(error.to_string().starts_with("not a zip"), "{error}");
    }
}
