//! A tree as an initramfs, a last step of a build: the kernel unpacks it to memory and starts `/init`
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).

use std::io::{self, BufWriter, Write};
use std::path::Path;

use cpio::newc::{Builder, ModeFileType, trailer};

use super::layers::INIT;
use super::target::Target;
use super::tree::{Entry, Kind, Tree};

/// Writes the tree, every file with the time stamp `epoch`, and `/init` as a link to init.
///
/// # Errors
/// A file can't be read, or the archive not be written.
pub fn write(tree: &Tree, epoch: u32, target: &Target<'_>) -> io::Result<()> {
    let mut archive = BufWriter::new(target.file());
    let link = Entry {
        mode: 0o777,
        uid: 0,
        gid: 0,
        kind: Kind::Symlink(INIT.into()),
    };
    let entries =
        std::iter::once((Path::new("init"), &link)).chain(tree.iter().filter(|(path, _)| *path != Path::new("init")));
    for (number, (path, entry)) in (1..).zip(entries) {
        append(&mut archive, number, path, entry, epoch)
            .map_err(|error| io::Error::new(error.kind(), format!("/{}: {error}", path.display())))?;
    }
    trailer(&mut archive)?.flush()
}

fn append(archive: &mut impl Write, number: u32, path: &Path, entry: &Entry, epoch: u32) -> io::Result<()> {
    let name = path.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
    let header = Builder::new(name)
        .ino(number)
        .nlink(1)
        .mode(u32::from(entry.mode))
        .uid(entry.uid)
        .gid(entry.gid)
        .mtime(epoch);
    let header = header.set_mode_file_type(match &entry.kind {
        Kind::Directory => ModeFileType::Directory,
        Kind::File(_) => ModeFileType::Regular,
        Kind::Symlink(_) => ModeFileType::Symlink,
        Kind::CharacterDevice { .. } => ModeFileType::Char,
        Kind::BlockDevice { .. } => ModeFileType::Block,
        Kind::Fifo => ModeFileType::Fifo,
    });
    match &entry.kind {
        Kind::File(content) => {
            let length = u32::try_from(content.len()?).map_err(|_| io::Error::other("it is larger than 4 GiB"))?;
            let mut writer = header.write(archive, length);
            io::copy(&mut content.clone().open()?, &mut writer)?;
            writer.finish()?;
        }
        Kind::Symlink(to) => {
            let to = to.as_os_str().as_encoded_bytes();
            let mut writer = header.write(archive, to.len() as u32);
            writer.write_all(to)?;
            writer.finish()?;
        }
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            header
                .rdev_major(*major)
                .rdev_minor(*minor)
                .write(archive, 0)
                .finish()?;
        }
        Kind::Directory | Kind::Fifo => {
            header.write(archive, 0).finish()?;
        }
    }
    Ok(())
}
