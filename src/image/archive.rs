//! Trees as tar: how mmdebstrap hands over what it made, and takes the recipe's files; and the layers of OCI images.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::{EntryType, Header};

use super::tree::{Content, Entry, Kind, Tree, TreeError};

/// Why a tar can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading failed, or what was read is no tar.
    #[error("can't read the base's tar: {0}")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("can't pack the recipe's files: {0}")]
    Write(#[source] io::Error),
    /// An entry that an image has no place for.
    #[error("/{path} of the base can't be put into an image: {reason}", path = path.display())]
    Entry {
        /// The entry.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry doesn't fit the others.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Which folders a tar gets entries for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folders {
    All,
    /// Those that have content are left to whoever unpacks: an entry for `sbin/` would replace the link that Debian has
    /// there.
    Empty,
}

/// What a layer of an OCI image names a file that it takes away, and a folder of which nothing below shall be seen
/// (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Lays the tar in `archive`, a layer of an OCI image, over `tree`.
///
/// # Errors
/// The archive can't be read, or has entries that an image can't hold.
pub fn read_over(tree: &mut Tree, archive: File) -> Result<(), ArchiveError> {
    let layer = read_above(tree, archive, |_| true)?;
    let name_of = |path: &Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned()
    };
    // Of the layers below only, so before anything of this one is there.
    for (path, _) in layer.iter() {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), name_of(path));
        if name == OPAQUE {
            tree.clear(folder);
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            tree.remove(&folder.join(hidden));
        }
    }
    for (path, entry) in layer.iter().filter(|(path, _)| !name_of(path).starts_with(WHITEOUT)) {
        tree.replace(path, entry.clone())?;
    }
    Ok(())
}

/// Reads the tar in `archive`, leaving out what `keep` refuses. File contents stay in the archive until they are wanted.
///
/// # Errors
/// The archive can't be read, or has entries that an image can't hold.
pub fn read(archive: File, keep: impl Fn(&Path) -> bool) -> Result<Tree, ArchiveError> {
    read_above(&Tree::default(), archive, keep)
}

/// As [`read`], where hard links may lead to what is `below`, too.
fn read_above(below: &Tree, archive: File, keep: impl Fn(&Path) -> bool) -> Result<Tree, ArchiveError> {
    let archive = Arc::new(archive);
    let mut tree = Tree::default();
    let mut reader = tar::Archive::new(&*archive);
    for item in reader.entries_with_seek().map_err(ArchiveError::Read)? {
        let item = item.map_err(ArchiveError::Read)?;
        // What `git archive` begins with: a word about all that follow, and no file.
        if item.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        let path = item.path().map_err(ArchiveError::Read)?;
        let path = path.strip_prefix(".").unwrap_or(&path).to_path_buf();
        if keep(&path) {
            let entry = entry_of(&item, &path, &archive, &[&tree, below])?;
            tree.insert(&path, entry)?;
        }
    }
    Ok(tree)
}

fn entry_of<R: io::Read>(
    item: &tar::Entry<'_, R>,
    path: &Path,
    archive: &Arc<File>,
    trees: &[&Tree],
) -> Result<Entry, ArchiveError> {
    let header = item.header();
    let refused = |reason| ArchiveError::Entry {
        path: path.to_path_buf(),
        reason,
    };
    let id = |id: io::Result<u64>| {
        u32::try_from(id.map_err(ArchiveError::Read)?).map_err(|_| refused("its owner has a number beyond 32 bits"))
    };
    let device = || -> Result<(u32, u32), ArchiveError> {
        let major = header.device_major().map_err(ArchiveError::Read)?;
        let minor = header.device_minor().map_err(ArchiveError::Read)?;
        major.zip(minor).ok_or_else(|| refused("a device without its number"))
    };
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File(Content::Slice {
            archive: Arc::clone(archive),
            offset: item.raw_file_position(),
            length: item.size(),
        }),
        EntryType::Symlink => Kind::Symlink(link_name(item, path)?),
        EntryType::Link => {
            let target = link_name(item, path)?;
            let mut found = trees.iter().filter_map(|tree| tree.at(&target));
            return found
                .next()
                .cloned()
                .ok_or_else(|| refused("a hard link to something that is not there"));
        }
        EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice { major, minor })?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
        EntryType::Fifo => Kind::Fifo,
        _ => return Err(refused("a kind of file that is not known")),
    };
    Ok(Entry {
        mode: (header.mode().map_err(ArchiveError::Read)? & 0o7777) as u16,
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        kind,
    })
}

fn link_name<R: io::Read>(item: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf, ArchiveError> {
    let name = item.link_name().map_err(ArchiveError::Read)?;
    let refused = ArchiveError::Entry {
        path: path.to_path_buf(),
        reason: "a link that leads nowhere",
    };
    name.map(std::borrow::Cow::into_owned).ok_or(refused)
}

/// Writes a tree as a tar.
///
/// # Errors
/// The target can't be written, or a file of the tree can't be read.
pub fn write(tree: &Tree, epoch: u32, folders: Folders, target: impl Write) -> Result<(), ArchiveError> {
    let mut builder = tar::Builder::new(target);
    for (path, entry) in tree.iter() {
        append(&mut builder, tree, folders, path, entry, epoch).map_err(|error| {
            ArchiveError::Write(io::Error::new(error.kind(), format!("/{}: {error}", path.display())))
        })?;
    }
    builder
        .into_inner()
        .and_then(|mut target| target.flush())
        .map_err(ArchiveError::Write)
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    tree: &Tree,
    folders: Folders,
    path: &Path,
    entry: &Entry,
    epoch: u32,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(u32::from(entry.mode));
    header.set_uid(u64::from(entry.uid));
    header.set_gid(u64::from(entry.gid));
    header.set_mtime(u64::from(epoch));
    header.set_size(0);
    let device = |header: &mut Header, kind, major, minor| {
        header.set_entry_type(kind);
        header.set_device_major(major)?;
        header.set_device_minor(minor)
    };
    match &entry.kind {
        Kind::Directory if folders == Folders::Empty && tree.has_children(path) => return Ok(()),
        Kind::Directory => header.set_entry_type(EntryType::Directory),
        Kind::File(content) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(content.len()?);
            return builder.append_data(&mut header, path, content.clone().open()?);
        }
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            return builder.append_link(&mut header, path, target);
        }
        Kind::CharacterDevice { major, minor } => device(&mut header, EntryType::Char, *major, *minor)?,
        Kind::BlockDevice { major, minor } => device(&mut header, EntryType::Block, *major, *minor)?,
        Kind::Fifo => header.set_entry_type(EntryType::Fifo),
    }
    builder.append_data(&mut header, path, io::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_comes_back_from_its_tar() {
        let mut tree = Tree::default();
        let long = format!("usr/{}/x", "long".repeat(60));
        let file = |text: &str| Entry::file(0o4755, Content::Bytes(text.as_bytes().to_vec()));
        let link = Entry {
            mode: 0o777,
            uid: 0,
            gid: 0,
            kind: Kind::Symlink("x".into()),
        };
        let device = Entry {
            mode: 0o600,
            uid: 0,
            gid: 5,
            kind: Kind::CharacterDevice { major: 5, minor: 1 },
        };
        for (path, entry) in [(long.as_str(), file("hello")), ("usr/l", link), ("dev/console", device)] {
            tree.insert(Path::new(path), entry).expect("inserts");
        }
        tree.insert(Path::new("empty"), Entry::directory(0o711))
            .expect("inserts");

        let mut file = tempfile::tempfile().expect("a temporary file");
        write(&tree, 1, Folders::Empty, &mut file).expect("writes");
        io::Seek::rewind(&mut file).expect("rewinds");
        let again = read(file, |path| path != Path::new("usr/l")).expect("reads");

        let names: Vec<String> = again.iter().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(
            names,
            ["dev", "dev/console", "empty", "usr", long.trim_end_matches("/x"), &long]
        );
        let entry = again.get(Path::new(&long)).expect("the file");
        assert_eq!(entry.mode, 0o4755);
        let Kind::File(content) = &entry.kind else {
            panic!("not a file")
        };
        assert_eq!(
            io::read_to_string(content.clone().open().expect("opens")).expect("reads"),
            "hello"
        );
        let console = again.get(Path::new("dev/console")).expect("the device");
        assert!(matches!(
            console,
            Entry {
                gid: 5,
                kind: Kind::CharacterDevice { major: 5, minor: 1 },
                ..
            }
        ));
        assert_eq!(again.get(Path::new("empty")).expect("the folder").mode, 0o711);
    }

    #[test]
    fn hard_links_lead_to_layers_below_from_the_root_and_through_links() {
        fn tar(entries: &[(EntryType, &str, &str)]) -> File {
            let mut builder = tar::Builder::new(tempfile::tempfile().expect("a temporary file"));
            for (kind, path, to) in entries {
                let mut header = Header::new_ustar();
                header.set_entry_type(*kind);
                header.set_mode(0o755);
                header.set_uid(0);
                header.set_gid(0);
                header.set_size(0);
                if to.is_empty() {
                    builder.append_data(&mut header, path, io::empty()).expect("appends");
                } else {
                    builder.append_link(&mut header, path, to).expect("appends");
                }
            }
            let mut file = builder.into_inner().expect("ends");
            io::Seek::rewind(&mut file).expect("rewinds");
            file
        }
        let mut tree = Tree::default();
        for layer in [
            tar(&[
                (EntryType::XGlobalHeader, "pax_global_header", ""),
                (EntryType::Regular, "usr/bin/a", ""),
                (EntryType::Symlink, "bin", "usr/bin"),
                (EntryType::Link, "b", "/usr/bin/a"),
                (EntryType::Link, "c", "./bin/a"),
            ]),
            tar(&[(EntryType::Link, "d", "bin/a")]),
        ] {
            read_over(&mut tree, layer).expect("a layer");
        }
        for path in ["b", "c", "d"] {
            assert!(tree.leads_to_file(Path::new(path)), "{path}");
        }
        assert!(tree.get(Path::new("pax_global_header")).is_none());
        let error = read_over(&mut tree, tar(&[(EntryType::Link, "e", "nowhere")])).expect_err("no target");
        assert!(
            error.to_string().contains("a hard link to something that is not there"),
            "{error}"
        );
    }

    #[test]
    fn a_layer_takes_away_what_it_whites_out_and_nothing_of_its_own() {
        let file = |text: &str| Entry::file(0o644, Content::Bytes(text.as_bytes().to_vec()));
        let tar = |paths: &[&str]| {
            let mut tree = Tree::default();
            for path in paths {
                tree.insert(Path::new(path), file(path)).expect("inserts");
            }
            let mut tar = tempfile::tempfile().expect("a temporary file");
            write(&tree, 1, Folders::All, &mut tar).expect("writes");
            io::Seek::rewind(&mut tar).expect("rewinds");
            tar
        };
        let mut tree = Tree::default();
        for layer in [
            tar(&["a/x", "a/y", "b/x", "c/x", "d"]),
            tar(&["a/.wh.x", "b/.wh..wh..opq", "b/new", ".wh.c", "d/now-a-folder"]),
        ] {
            read_over(&mut tree, layer).expect("a layer");
        }
        let names: Vec<String> = tree.iter().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(names, ["a", "a/y", "b", "b/new", "d", "d/now-a-folder"]);
    }
}
