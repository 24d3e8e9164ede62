//! A tree as an erofs or an ext4, a last step of a build, by the tools of those file systems: there is no other writer
//! of them that is as well kept.
//!
//! - ext4: mke2fs(8) makes an empty one, debugfs(8) fills it by a script, which needs no rights whatever the owners are;
//! - erofs: mkfs.erofs(1) takes a folder, in which only root can have files of other owners, and devices.
//!
//! All that would be random, or of today, is given: the same tree gives the same bytes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{geteuid, mkfifo};

use super::target::Target;
use super::tree::{Entry, Kind, Tree};
use crate::open_files;

/// Identifies every file system that is made here: a random one would make each build another.
const IDENTITY: &str = "706f6c79-696e-6974-8000-000000000001";

/// Why a file system can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{tool} is not installed, and makes the image: `apt install {package}` (on Debian and Ubuntu; runtimes/setup does it too)"
    )]
    NoTool { tool: &'static str, package: &'static str },
    #[error("{tool} could not make the image: {reason}")]
    Failed { tool: &'static str, reason: String },
    #[error("can't put /{path} into the image: {source}", path = .path.display())]
    Entry { path: PathBuf, source: io::Error },
    #[error("can't use a temporary folder: {0}")]
    Folder(#[source] io::Error),
}

/// Where distributions have such tools, whatever the user's own PATH.
const TOOLS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

fn tool(name: &'static str, epoch: u32) -> Command {
    let mut command = open_files::command(name);
    command
        .env_clear()
        .env("PATH", TOOLS)
        .env("LC_ALL", "C")
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .stdin(Stdio::null());
    command
}

/// Runs it to its end. Returns what it said on both its outputs.
fn run(mut command: Command, tool: &'static str, package: &'static str) -> Result<String, DiskError> {
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DiskError::NoTool { tool, package },
        _ => DiskError::Failed {
            tool,
            reason: error.to_string(),
        },
    })?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(DiskError::Failed { tool, reason: said }),
    }
}

/// Makes an ext4 with a quarter of its space free.
///
/// # Errors
/// e2fsprogs is missing or fails, or a file can't be read.
pub fn ext4(tree: &Tree, epoch: u32, target: &Target<'_>) -> Result<(), DiskError> {
    const BLOCK: u64 = 4096;
    const LEAST_BLOCKS: u64 = 4096;
    let mut blocks = 0;
    for (path, entry) in tree.iter() {
        blocks += 1 + match &entry.kind {
            Kind::File(content) => content.len().map_err(entry_error(path))?.div_ceil(BLOCK),
            _ => 0,
        };
    }
    let inodes = tree.iter().count() as u64 * 5 / 4 + 256;
    // Inodes have 256 bytes each; then a quarter, and the journal.
    let blocks = ((blocks + inodes / 16) * 5 / 4 + 1024).max(LEAST_BLOCKS);
    let mut make = tool("mke2fs", epoch);
    make.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "0",
        "-U",
        IDENTITY,
        "-N",
        &inodes.to_string(),
    ])
    .args([
        "-E",
        &format!("hash_seed={IDENTITY},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"),
    ])
    .arg(target.path())
    .arg(blocks.to_string());
    run(make, "mke2fs", "e2fsprogs")?;

    let folder = tempfile::tempdir().map_err(DiskError::Folder)?;
    let script = folder.path().join("script");
    write_script(tree, folder.path(), &script)?;
    let mut fill = tool("debugfs", epoch);
    fill.args(["-w", "-f"]).arg(&script).arg(target.path());
    let said = run(fill, "debugfs", "e2fsprogs")?;
    // It ends with success whatever happened; what it does it repeats, what goes wrong it tells with its name.
    let complaint = said
        .lines()
        .find(|line| !line.starts_with("debugfs") && !line.starts_with("Allocated inode"));
    match complaint {
        None => Ok(()),
        Some(line) => Err(DiskError::Failed {
            tool: "debugfs",
            reason: line.to_owned(),
        }),
    }
}

fn entry_error(path: &Path) -> impl Fn(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Entry {
        path: path.clone(),
        source,
    }
}

/// debugfs's commands for every entry. Contents that are not in files of their own go to `folder`.
fn write_script(tree: &Tree, folder: &Path, script: &Path) -> Result<(), DiskError> {
    const S_IFDIR: u32 = 0o040_000;
    const S_IFREG: u32 = 0o100_000;
    let mut lines = BufWriter::new(File::create(script).map_err(DiskError::Folder)?);
    for (number, (path, entry)) in tree.iter().enumerate() {
        let name = quoted(path).map_err(entry_error(path))?;
        let mut fields = vec![("uid", entry.uid), ("gid", entry.gid)];
        let mut text = match &entry.kind {
            Kind::Directory => {
                fields.push(("mode", S_IFDIR | u32::from(entry.mode)));
                // The root is there already.
                if path.as_os_str().is_empty() {
                    String::new()
                } else {
                    format!("mkdir {name}\n")
                }
            }
            Kind::File(content) => {
                fields.push(("mode", S_IFREG | u32::from(entry.mode)));
                let file = folder.join(number.to_string());
                let copy = || io::copy(&mut content.clone().open()?, &mut File::create(&file)?);
                copy().map_err(entry_error(path))?;
                format!("write {} {name}\n", file.display())
            }
            Kind::Symlink(to) => format!("symlink {name} {}\n", quoted_text(to).map_err(entry_error(path))?),
            // debugfs makes nodes in its working directory only.
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => node(path, entry, &mut fields)?,
        };
        for (field, value) in fields {
            text.push_str(&match field {
                "mode" => format!("sif {name} mode 0{value:o}\n"),
                field => format!("sif {name} {field} {value}\n"),
            });
        }
        lines.write_all(text.as_bytes()).map_err(DiskError::Folder)?;
    }
    lines.flush().map_err(DiskError::Folder)
}

fn node(path: &Path, entry: &Entry, fields: &mut Vec<(&'static str, u32)>) -> Result<String, DiskError> {
    const S_IFCHR: u32 = 0o020_000;
    const S_IFBLK: u32 = 0o060_000;
    const S_IFIFO: u32 = 0o010_000;
    let parent = quoted(path.parent().unwrap_or(Path::new(""))).map_err(entry_error(path))?;
    let name = quoted_text(Path::new(path.file_name().unwrap_or_default())).map_err(entry_error(path))?;
    let (what, kind) = match entry.kind {
        Kind::CharacterDevice { major, minor } => (format!("c {major} {minor}"), S_IFCHR),
        Kind::BlockDevice { major, minor } => (format!("b {major} {minor}"), S_IFBLK),
        _ => ("p".to_owned(), S_IFIFO),
    };
    fields.push(("mode", kind | u32::from(entry.mode)));
    Ok(format!("cd {parent}\nmknod {name} {what}\ncd /\n"))
}

/// A path of the image as debugfs's commands take it: absolute.
fn quoted(path: &Path) -> io::Result<String> {
    quoted_text(&Path::new("/").join(path))
}

/// In double quotes, within which debugfs has no way to name one more.
fn quoted_text(text: &Path) -> io::Result<String> {
    let text = text.to_str().filter(|text| !text.contains(['"', '\n']));
    let text = text.ok_or_else(|| io::Error::other("debugfs has no way to name it"))?;
    Ok(format!("\"{text}\""))
}

/// Makes an erofs, not compressed.
///
/// # Errors
/// erofs-utils are missing or fail, or a file can't be read.
pub fn erofs(tree: &Tree, epoch: u32, target: &Target<'_>) -> Result<(), DiskError> {
    let folder = tempfile::tempdir().map_err(DiskError::Folder)?;
    let root = folder.path().join("root");
    DirBuilder::new().mode(0o755).create(&root).map_err(DiskError::Folder)?;
    for (path, entry) in tree.iter() {
        lay_out(&root.join(path), entry).map_err(entry_error(path))?;
    }
    // Modes of folders last, since one may forbid to write into it.
    let folders: Vec<_> = tree
        .iter()
        .filter(|(_, entry)| matches!(entry.kind, Kind::Directory))
        .collect();
    for (path, entry) in folders.into_iter().rev() {
        fs::set_permissions(root.join(path), Permissions::from_mode(entry.mode.into())).map_err(entry_error(path))?;
    }
    let mut make = tool("mkfs.erofs", epoch);
    make.args(["-T", &epoch.to_string(), "-U", IDENTITY]);
    if !geteuid().is_root() {
        make.arg("--all-root");
    }
    make.arg(target.path()).arg(&root);
    let made = run(make, "mkfs.erofs", "erofs-utils");
    // What forbids to be removed is ours all the same.
    for (path, entry) in tree.iter() {
        if matches!(entry.kind, Kind::Directory) {
            let _ = fs::set_permissions(root.join(path), Permissions::from_mode(0o700));
        }
    }
    made.map(drop)
}

fn lay_out(path: &Path, entry: &Entry) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(entry.mode.into());
    let is_root = geteuid().is_root();
    match &entry.kind {
        Kind::Directory => {
            if !path.is_dir() {
                DirBuilder::new().mode(0o755).create(path)?;
            }
        }
        Kind::File(content) => drop(io::copy(&mut content.clone().open()?, &mut File::create(path)?)?),
        Kind::Symlink(to) => symlink(to, path)?,
        Kind::Fifo => mkfifo(path, mode)?,
        // The kernel's devtmpfs has them all: an image without is one that others can build.
        _ if !is_root => return Ok(()),
        Kind::CharacterDevice { major, minor } => {
            mknod(
                path,
                SFlag::S_IFCHR,
                mode,
                makedev(u64::from(*major), u64::from(*minor)),
            )?;
        }
        Kind::BlockDevice { major, minor } => {
            mknod(
                path,
                SFlag::S_IFBLK,
                mode,
                makedev(u64::from(*major), u64::from(*minor)),
            )?;
        }
    }
    if is_root {
        std::os::unix::fs::lchown(path, Some(entry.uid), Some(entry.gid))?;
    }
    if !matches!(entry.kind, Kind::Symlink(_) | Kind::Directory) {
        // After the owner, whose change takes set-user-id away.
        fs::set_permissions(path, Permissions::from_mode(entry.mode.into()))?;
    }
    Ok(())
}
