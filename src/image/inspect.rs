//! What is inside an image, and whether a machine comes up with it: for people, and for scripts as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backhand::{BackhandError, FilesystemReader, InnerNode, SquashfsFileReader};
use serde::Serialize;

use super::init_binary;
use super::layers::INIT;
use super::links;
use crate::machine::superblock;
use crate::open_files;

/// dpkg's list of what is installed.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// What runs programs, by the name of its Debian package.
const RUNTIME_PACKAGES: [&str; 3] = ["python3", "nodejs", "libc6"];
/// A text that every polyinit has in it, and nobody else.
const MARK: &[u8] = crate::report::log::VARIABLE.as_bytes();
/// As much of a program or of dpkg's list as is read into memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What an image holds.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// What kind of file it is: squashfs, ext4, erofs, cpio or oci.
    pub format: &'static str,
    /// Size of the image's file, in bytes.
    pub image_bytes: u64,
    /// Whether a machine comes up with it.
    pub can_boot: bool,
    /// Why not, or what to look out for.
    pub remarks: Vec<String>,
    /// What is inside, for the kinds of images that are read here.
    #[serde(flatten)]
    pub content: Option<Content>,
    /// `/sbin/init`, if there is one.
    pub init: Option<Init>,
}

/// What is inside an image.
#[derive(Debug, Serialize)]
pub struct Content {
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
    /// What runs it, if it is a script.
    pub interpreter: Option<PathBuf>,
    /// Whether it is polyinit.
    pub is_polyinit: bool,
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
    /// It is no image.
    #[error(
        "{path} is no image: it holds none of {}, and is neither a cpio nor an OCI archive",
        superblock::known()
    )]
    NoImage {
        /// The file.
        path: PathBuf,
    },
    /// It is a broken one.
    #[error("{path} is not a squashfs image that can be read: {source}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What squashfs says.
        source: BackhandError,
    },
}

/// Reads the image at `path`.
///
/// # Errors
/// The file can't be read, or is no image.
pub fn inspect(path: &Path) -> Result<Inspection, InspectError> {
    let read_error = |source| InspectError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    let image_bytes = file.metadata().map_err(read_error)?.len();
    let no_image = || InspectError::NoImage {
        path: path.to_path_buf(),
    };
    let format = match superblock::recognise(&file).map_err(read_error)? {
        Some(file_system) => file_system.name,
        None => archive_kind(&file).map_err(read_error)?.ok_or_else(no_image)?,
    };
    let (content, init) = match format {
        "squashfs" => {
            let broken = |source| InspectError::Broken {
                path: path.to_path_buf(),
                source,
            };
            let image = FilesystemReader::from_reader(BufReader::new(file)).map_err(broken)?;
            let (content, init) = inside(&image).map_err(read_error)?;
            (Some(content), init)
        }
        "ext4" => (None, init_of_ext4(path).map_err(read_error)?),
        _ => (None, None),
    };
    let (can_boot, remarks) = verdict(format, init.as_ref());
    Ok(Inspection {
        format,
        image_bytes,
        can_boot,
        remarks,
        content,
        init,
    })
}

/// What an archive's first bytes say: cpio (newc), or tar, which is what an OCI image comes in.
fn archive_kind(file: &File) -> io::Result<Option<&'static str>> {
    let mut start = [0; 262];
    let length = file.read_at(&mut start, 0)?;
    Ok(match &start[..length] {
        start if start.starts_with(b"070701") => Some("cpio"),
        start if start.get(257..262) == Some(b"ustar") => Some("oci"),
        _ => None,
    })
}

/// Whether a machine comes up with such an image, and what its owner should know.
fn verdict(format: &str, init: Option<&Init>) -> (bool, Vec<String>) {
    let mut remarks = Vec::new();
    match format {
        "oci" => remarks.push("a container image: build a squashfs from it to boot a machine".to_owned()),
        "cpio" => {
            remarks.push("an initramfs: boots with a kernel that has virtio, vsock and overlay built in".to_owned())
        }
        "erofs" => remarks.push("the kernel needs erofs built in; what is inside is not looked at".to_owned()),
        "xfs" | "btrfs" => remarks.push(format!("{format} is for volumes: a root is squashfs, erofs or ext4")),
        _ => match init {
            None => remarks.push("the kernel will not find /sbin/init".to_owned()),
            Some(Init {
                is_static: None,
                interpreter: None,
                ..
            }) => remarks.push("/sbin/init is neither an ELF executable nor a script".to_owned()),
            Some(Init { is_polyinit: false, .. }) => {
                remarks.push("/sbin/init is not polyinit: whoever made the image knows what it does".to_owned());
            }
            Some(_) => {}
        },
    }
    let can_boot = match (format, init) {
        ("squashfs" | "ext4", Some(init)) => init.is_static.is_some() || init.interpreter.is_some(),
        ("cpio" | "erofs", _) => true,
        _ => false,
    };
    (can_boot, remarks)
}

fn inside(image: &FilesystemReader<'_>) -> io::Result<(Content, Option<Init>)> {
    let count =
        |wanted: fn(&InnerNode<SquashfsFileReader>) -> bool| image.files().filter(|node| wanted(&node.inner)).count();
    let content_bytes = image.files().map(|node| match &node.inner {
        InnerNode::File(file) => file.file_len() as u64,
        _ => 0,
    });
    let init = content(image, Path::new(INIT))?.map(|init| Init::of(&init));
    let status = content(image, Path::new(DPKG_STATUS))?.unwrap_or_default();
    let content = Content {
        content_bytes: content_bytes.sum(),
        compression: image
            .compressor
            .map_or_else(|| "none".to_owned(), |kind| format!("{kind:?}").to_lowercase()),
        files: count(|kind| matches!(kind, InnerNode::File(_))),
        folders: count(|kind| matches!(kind, InnerNode::Dir(_))),
        links: count(|kind| matches!(kind, InnerNode::Symlink(_))),
        epoch: image.mod_time,
        runtimes: runtimes(&status),
    };
    Ok((content, init))
}

/// `/sbin/init` of an ext4, by debugfs(8), which needs no rights. Where it is not installed, nothing is known of it.
fn init_of_ext4(image: &Path) -> io::Result<Option<Init>> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("init");
    let dump = format!("dump /{INIT} \"{}\"", copy.display());
    let dumped = open_files::command("debugfs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-R", &dump])
        .arg(image)
        .output();
    match dumped {
        Ok(_) if copy.is_file() => Ok(Some(Init::of(&std::fs::read(copy)?))),
        _ => Ok(None),
    }
}

impl Init {
    fn of(bytes: &[u8]) -> Self {
        let linkage = init_binary::examine(Cursor::new(bytes)).ok();
        Self {
            bytes: bytes.len() as u64,
            is_static: linkage.map(|linkage| !linkage.interpreter),
            interpreter: init_binary::interpreter_of(Cursor::new(bytes)).ok().flatten(),
            is_polyinit: bytes.windows(MARK.len()).any(|window| window == MARK),
        }
    }
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
        let Some(content) = &self.content else {
            writeln!(
                formatter,
                "image     {:.1} MB ({})",
                megabytes(self.image_bytes),
                self.format
            )?;
            return self.tell_boot(formatter);
        };
        writeln!(
            formatter,
            "image     {:.1} MB ({}, {}), {:.1} MB unpacked",
            megabytes(self.image_bytes),
            self.format,
            content.compression,
            megabytes(content.content_bytes)
        )?;
        writeln!(
            formatter,
            "content   {} files, {} folders, {} links",
            content.files, content.folders, content.links
        )?;
        for (name, version) in &content.runtimes {
            writeln!(formatter, "{name:<9} {version}")?;
        }
        self.tell_boot(formatter)
    }
}

impl Inspection {
    fn tell_boot(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(Init {
            bytes,
            is_static,
            interpreter,
            ..
        }) = &self.init
        {
            let linkage = match (is_static, interpreter) {
                (Some(true), _) => "static".to_owned(),
                (Some(false), _) => "dynamic: it needs the image's own loader and libraries".to_owned(),
                (None, Some(interpreter)) => format!("a script that {} runs", interpreter.display()),
                (None, None) => "not an ELF executable".to_owned(),
            };
            writeln!(formatter, "init      {:.1} MB, {linkage}", *bytes as f64 / 1e6)?;
        }
        writeln!(formatter, "boots     {}", if self.can_boot { "yes" } else { "no" })?;
        self.remarks
            .iter()
            .try_for_each(|remark| writeln!(formatter, "          {remark}"))
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
