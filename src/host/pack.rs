//! Between what the user brings and the wire: a program becomes the configuration's `code`, or a drive where it is too
//! large for that; a folder becomes a read-only volume.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backhand::compression::Compressor;
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use walkdir::WalkDir;
use zip::write::SimpleFileOptions;

use crate::program::archive::push_link;
use crate::wire::Encoding;

/// The largest code that the network's hosts send in a configuration, in bytes.
pub const CODE_LIMIT: usize = 10 << 20;

/// Programs larger than this, in bytes, are not going to fit: code is rarely compressed to less than a fifth.
const ZIP_WORTH_TRYING: u64 = 8 * CODE_LIMIT as u64;

/// What is no part of a program, though it lies in its folder.
const LEFT_OUT: [&str; 2] = [".git", "__pycache__"];

/// A program, packed.
#[derive(Debug)]
pub struct Packed {
    pub encoding: Encoding,
    /// As the configuration has it; empty with [`Encoding::Squashfs`].
    pub code: Vec<u8>,
    /// The squashfs that belongs on /opt/code, with [`Encoding::Squashfs`].
    pub drive: Option<PathBuf>,
    /// The file that the program consists of, where it is one.
    pub file_name: Option<String>,
}

/// Why something can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't read all of {}: {source}", path.display())]
    Walk { path: PathBuf, source: walkdir::Error },
    #[error("can't write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("can't pack {} into a zip: {source}", path.display())]
    Zip {
        path: PathBuf,
        source: zip::result::ZipError,
    },
    #[error("can't pack {} into a squashfs: {source}", path.display())]
    Squashfs {
        path: PathBuf,
        source: backhand::BackhandError,
    },
    #[error("{} has a name that is not UTF-8, which a zip can't hold", path.display())]
    Name { path: PathBuf },
    #[error(
        "{} is a zip of {size} bytes, and hosts send {CODE_LIMIT} at most: unpack it and pass the folder, which then \
         becomes a drive",
        path.display()
    )]
    ZipTooLarge { path: PathBuf, size: usize },
    #[error("{} is more data than hosts send ({CODE_LIMIT} bytes as a zip): pass it with --volume", path.display())]
    DataTooLarge { path: PathBuf },
}

/// Packs the program at `path`: a zip or a squashfs as it is, a file or a folder as a zip, or as a squashfs in
/// `workspace` where the zip would be larger than [`CODE_LIMIT`].
///
/// A single file is packed as well, not sent plain: so it keeps its name, which says what it is.
///
/// # Errors
/// [`Error`], which names the file.
pub fn program(path: &Path, workspace: &Path) -> Result<Packed, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let in_code = |code, file_name| Packed {
        encoding: Encoding::Zip,
        code,
        drive: None,
        file_name,
    };
    let on_drive = |drive, file_name| Packed {
        encoding: Encoding::Squashfs,
        code: Vec::new(),
        drive: Some(drive),
        file_name,
    };
    let is_folder = fs::metadata(path).map_err(read)?.is_dir();
    if !is_folder && has_magic(path, b"hsqs")? {
        return Ok(on_drive(path.to_owned(), None));
    }
    if !is_folder && has_magic(path, b"PK\x03\x04")? {
        let code = fs::read(path).map_err(read)?;
        return match code.len() {
            size if size > CODE_LIMIT => Err(Error::ZipTooLarge {
                path: path.to_owned(),
                size,
            }),
            _ => Ok(in_code(code, None)),
        };
    }
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let file_name = name.filter(|_| !is_folder);
    match zip(path)? {
        Some(code) => Ok(in_code(code, file_name)),
        None => Ok(on_drive(squashfs(path, &workspace.join("code.squashfs"))?, file_name)),
    }
}

/// The data for a program's /data: a zip as it is, a file or a folder as a zip.
///
/// # Errors
/// [`Error`], which names the file.
pub fn data(path: &Path) -> Result<Vec<u8>, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let is_zip = !fs::metadata(path).map_err(read)?.is_dir() && has_magic(path, b"PK\x03\x04")?;
    let packed = match is_zip {
        true => Some(fs::read(path).map_err(read)?),
        false => zip(path)?,
    };
    let packed = packed.filter(|packed| packed.len() <= CODE_LIMIT);
    packed.ok_or_else(|| Error::DataTooLarge { path: path.to_owned() })
}

/// The drive for a volume at `path`: a file as it is, a folder as a squashfs, made as `output`.
///
/// # Errors
/// [`Error`], which names the file.
pub fn volume(path: &Path, output: &Path) -> Result<PathBuf, Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    match metadata.is_dir() {
        true => squashfs(path, output),
        false => Ok(path.to_owned()),
    }
}

fn has_magic(path: &Path, magic: &[u8; 4]) -> Result<bool, Error> {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut start));
    let length = read.map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(length == 4 && start == *magic)
}

/// What is packed: its path here, and its name in the archive.
struct Item {
    path: PathBuf,
    name: PathBuf,
    kind: fs::FileType,
    mode: u32,
}

/// The folder or file at `path`, each folder before what is in it, sorted.
fn items(path: &Path) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    let wanted = |entry: &walkdir::DirEntry| !LEFT_OUT.iter().any(|name| entry.file_name() == *name);
    for entry in WalkDir::new(path).sort_by_file_name().into_iter().filter_entry(wanted) {
        let walk = |source| Error::Walk {
            path: path.to_owned(),
            source,
        };
        let entry = entry.map_err(walk)?;
        let metadata = match entry.depth() {
            // A link that the user names is what it leads to.
            0 => fs::metadata(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?,
            _ => entry.metadata().map_err(walk)?,
        };
        let name = match (entry.depth(), metadata.is_dir()) {
            (0, true) => continue,
            (0, false) => PathBuf::from(entry.file_name()),
            _ => entry.path().strip_prefix(path).unwrap_or(entry.path()).to_owned(),
        };
        items.push(Item {
            name,
            kind: metadata.file_type(),
            mode: metadata.permissions().mode() & 0o7777,
            path: entry.into_path(),
        });
    }
    Ok(items)
}

/// `None` where the zip is larger than [`CODE_LIMIT`].
fn zip(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Zip {
        path: path.to_owned(),
        source,
    };
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut size = 0;
    for item in items(path)? {
        let name = item.name.to_str().ok_or_else(|| Error::Name {
            path: item.path.clone(),
        })?;
        let options = SimpleFileOptions::default().unix_permissions(item.mode);
        if item.kind.is_dir() {
            archive.add_directory(name, options).map_err(failed)?;
        } else if item.kind.is_symlink() {
            let target = link_target(&item.path)?;
            let target = target.to_str().ok_or_else(|| Error::Name {
                path: item.path.clone(),
            })?;
            archive.add_symlink(name, target, options).map_err(failed)?;
        } else if item.kind.is_file() {
            let mut file = open(&item.path)?;
            size += file.metadata().map_or(0, |metadata| metadata.len());
            if size > ZIP_WORTH_TRYING {
                return Ok(None);
            }
            archive.start_file(name, options).map_err(failed)?;
            io::copy(&mut file, &mut archive).map_err(|source| Error::Read {
                path: item.path.clone(),
                source,
            })?;
        }
    }
    let code = archive.finish().map_err(failed)?.into_inner();
    Ok((code.len() <= CODE_LIMIT).then_some(code))
}

/// Sockets, pipes and devices are left out: they are nothing that a program brings along.
fn squashfs(path: &Path, output: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::Squashfs {
        path: path.to_owned(),
        source,
    };
    let mut filesystem = FilesystemWriter::default();
    // Every kernel with squashfs has this one.
    filesystem.set_compressor(FilesystemCompressor::new(Compressor::Gzip, None).map_err(failed)?);
    filesystem.set_root_mode(0o755);
    for item in items(path)? {
        let header = NodeHeader {
            permissions: item.mode as u16,
            ..NodeHeader::default()
        };
        let pushed = if item.kind.is_dir() {
            filesystem.push_dir(&item.name, header)
        } else if item.kind.is_symlink() {
            push_link(&mut filesystem, &link_target(&item.path)?, &item.name, header)
        } else if item.kind.is_file() {
            filesystem.push_file_from_path(item.path, &item.name, header)
        } else {
            Ok(())
        };
        pushed.map_err(failed)?;
    }
    let write = |source| Error::Write {
        path: output.to_owned(),
        source,
    };
    let mut file = File::create(output).map_err(write)?;
    filesystem.write(&mut file).map_err(failed)?;
    file.flush().map_err(write)?;
    Ok(output.to_owned())
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn link_target(path: &Path) -> Result<PathBuf, Error> {
    fs::read_link(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::archive;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::create_dir(folder.path().join("__pycache__")).unwrap();
        fs::write(folder.path().join("__pycache__/a.pyc"), "no").unwrap();
        fs::write(folder.path().join("main.py"), "app = 1\n").unwrap();
        fs::write(folder.path().join("lib/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.path().join("lib/run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("main.py", folder.path().join("link.py")).unwrap();
        folder
    }

    fn check(unpacked: &Path) {
        assert_eq!(fs::read_to_string(unpacked.join("link.py")).unwrap(), "app = 1\n");
        assert!(fs::symlink_metadata(unpacked.join("link.py")).unwrap().is_symlink());
        let mode = fs::metadata(unpacked.join("lib/run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(!unpacked.join("__pycache__").exists());
    }

    #[test]
    fn a_folder_becomes_a_zip() {
        let (folder, workspace) = (folder(), tempfile::tempdir().unwrap());
        let packed = program(folder.path(), workspace.path()).unwrap();
        assert_eq!(
            (packed.encoding, packed.drive, packed.file_name),
            (Encoding::Zip, None, None)
        );
        archive::unzip(Cursor::new(packed.code), workspace.path()).unwrap();
        check(workspace.path());
    }

    #[test]
    fn a_large_program_becomes_a_squashfs() {
        let (folder, workspace) = (folder(), tempfile::tempdir().unwrap());
        // What no compression makes smaller.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(CODE_LIMIT + 1)
        .collect();
        fs::write(folder.path().join("noise"), &noise).unwrap();
        let packed = program(folder.path(), workspace.path()).unwrap();
        assert_eq!((packed.encoding, packed.code.len()), (Encoding::Squashfs, 0));
        let unpacked = workspace.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        archive::unsquash(File::open(packed.drive.unwrap()).unwrap(), &unpacked).unwrap();
        check(&unpacked);
        assert!(fs::read(unpacked.join("noise")).unwrap() == noise);
    }

    #[test]
    fn a_file_keeps_its_name() {
        let (folder, workspace) = (folder(), tempfile::tempdir().unwrap());
        let packed = program(&folder.path().join("link.py"), workspace.path()).unwrap();
        assert_eq!(packed.file_name.as_deref(), Some("link.py"));
        archive::unzip(Cursor::new(packed.code), workspace.path()).unwrap();
        assert_eq!(
            fs::read_to_string(workspace.path().join("link.py")).unwrap(),
            "app = 1\n"
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = program(Path::new("/nowhere/app"), Path::new("/tmp")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/app"));
    }
}
