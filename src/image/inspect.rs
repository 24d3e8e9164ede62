//! What is inside an image, read back from its squashfs: for people, and for scripts as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use backhand::{BackhandError, FilesystemReader, InnerNode, SquashfsFileReader};
use serde::Serialize;

use super::init_binary;
use super::layers::INIT;
use super::links;

/// dpkg's list of what is installed.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// What runs programs, by the name of its Debian package.
const RUNTIME_PACKAGES: [&str; 3] = ["python3", "nodejs", "libc6"];
/// As much of a program or of dpkg's list as is read into memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What an image holds.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Size of the image's file, in bytes.
    pub image_bytes: u64,
    /// Size of all files in it, in bytes.
    pub content_bytes: u64,
    /// Name of the compression.
    pub compression: String,
    /// Number of regular files.
    pub files: usize,
    /// Number of folders, the root among them.
    pub folders: usize,
    /// Number of symbolic links.
    pub links: usize,
    /// Time stamp of the image, seconds since 1970.
    pub epoch: u32,
    /// `/sbin/init`, if there is one.
    pub init: Option<Init>,
    /// Versions of what runs programs, by name.
    pub runtimes: BTreeMap<String, String>,
}

/// The image's `/sbin/init`.
#[derive(Debug, Serialize)]
pub struct Init {
    /// Size in bytes.
    pub bytes: u64,
    /// Whether it needs nothing else of the image. None: it is no ELF executable.
    pub is_static: Option<bool>,
}

/// Why an image can't be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no image, or a broken one.
    #[error("{path} is not a squashfs image that can be read: {source}")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What squashfs says.
        source: BackhandError,
    },
}

/// Reads the image at `path`.
///
/// # Errors
/// The file can't be read, or is no squashfs.
pub fn inspect(path: &Path) -> Result<Inspection, InspectError> {
    let read_error = |source| InspectError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    let image_bytes = file.metadata().map_err(read_error)?.len();
    let image = FilesystemReader::from_reader(BufReader::new(file)).map_err(|source| InspectError::NotAnImage {
        path: path.to_path_buf(),
        source,
    })?;

    let count =
        |wanted: fn(&InnerNode<SquashfsFileReader>) -> bool| image.files().filter(|node| wanted(&node.inner)).count();
    let content_bytes = image.files().map(|node| match &node.inner {
        InnerNode::File(file) => file.file_len() as u64,
        _ => 0,
    });
    Ok(Inspection {
        image_bytes,
        content_bytes: content_bytes.sum(),
        compression: image
            .compressor
            .map_or_else(|| "none".to_owned(), |kind| format!("{kind:?}").to_lowercase()),
        files: count(|kind| matches!(kind, InnerNode::File(_))),
        folders: count(|kind| matches!(kind, InnerNode::Dir(_))),
        links: count(|kind| matches!(kind, InnerNode::Symlink(_))),
        epoch: image.mod_time,
        init: content(&image, Path::new(INIT)).map_err(read_error)?.map(|init| Init {
            bytes: init.len() as u64,
            is_static: init_binary::examine(Cursor::new(&init))
                .ok()
                .map(|linkage| !linkage.interpreter),
        }),
        runtimes: runtimes(
            &content(&image, Path::new(DPKG_STATUS))
                .map_err(read_error)?
                .unwrap_or_default(),
        ),
    })
}

/// The bytes of a file of the image, links followed. None: there is no such file.
fn content(image: &FilesystemReader<'_>, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = find(image, path) else { return Ok(None) };
    let mut bytes = Vec::new();
    image.file(file).reader().take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn find<'i>(image: &'i FilesystemReader<'_>, path: &Path) -> Option<&'i SquashfsFileReader> {
    let node = |path: &Path| {
        let path = Path::new("/").join(path);
        image.files().find(|node| node.fullpath == path).map(|node| &node.inner)
    };
    let real = links::follow(path, |path| match node(path)? {
        InnerNode::Symlink(link) => Some(link.link.clone()),
        _ => None,
    })?;
    match node(&real)? {
        InnerNode::File(file) => Some(file),
        _ => None,
    }
}

/// Versions out of dpkg's status file: paragraphs of `Name: value` lines (deb822(5)).
fn runtimes(status: &[u8]) -> BTreeMap<String, String> {
    let status = String::from_utf8_lossy(status);
    let field = |paragraph: &str, name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let packages = status
        .split("\n\n")
        .filter_map(|paragraph| Some((field(paragraph, "Package:")?, paragraph)));
    packages
        .filter(|(name, _)| RUNTIME_PACKAGES.contains(&name.as_str()))
        .filter_map(|(name, paragraph)| Some((name, field(paragraph, "Version:")?)))
        .collect()
}

impl std::fmt::Display for Inspection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        writeln!(
            formatter,
            "image     {:.1} MB ({}), {:.1} MB unpacked",
            megabytes(self.image_bytes),
            self.compression,
            megabytes(self.content_bytes)
        )?;
        writeln!(
            formatter,
            "content   {} files, {} folders, {} links",
            self.files, self.folders, self.links
        )?;
        match &self.init {
            None => writeln!(formatter, "init      none: the kernel will not find /sbin/init")?,
            Some(Init { bytes, is_static }) => {
                let linkage = match is_static {
                    Some(true) => "static",
                    Some(false) => "dynamic: it needs the image's own loader and libraries",
                    None => "not an ELF executable",
                };
                writeln!(formatter, "init      {:.1} MB, {linkage}", megabytes(*bytes))?;
            }
        }
        for (name, version) in &self.runtimes {
            writeln!(formatter, "{name:<9} {version}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_dpkgs_list() {
        let status = b"Package: python3\nStatus: install ok installed\nVersion: 3.11.2-1+b1\n\n\
            Package: python3-minimal\nVersion: 1\n\nPackage: nodejs\nVersion: 18.20.4\n";
        let expected = [("nodejs", "18.20.4"), ("python3", "3.11.2-1+b1")];
        let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(runtimes(status), BTreeMap::from(expected));
    }
}
