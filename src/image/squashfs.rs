//! A tree as a squashfs, a last step of a build: the same tree gives the same bytes.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use backhand::{BackhandError, FilesystemWriter, NodeHeader};

use super::compression::Compression;
use super::target::{Target, WriteError};
use super::tree::{Content, Entry, Kind, Tree};
use crate::program::archive::push_link;

/// The kernel reads and decompresses a whole block for every byte that is wanted of it: 128 KiB is mksquashfs's choice too.
const BLOCK_BYTES: u32 = 128 << 10;
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// What should go into an image can't be read, or has no place in a squashfs.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    #[error("can't put the image {path} together: {source}", path = .path.display())]
    Compose { path: PathBuf, source: BackhandError },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes the tree, every file with the time stamp `epoch` (seconds since 1970).
///
/// # Errors
/// A file of the tree can't be read, or the image not be written.
pub fn write(tree: &Tree, compression: Compression, epoch: u32, target: &Target<'_>) -> Result<(), SquashfsError> {
    let compose_error = |source| SquashfsError::Compose {
        path: target.output().to_path_buf(),
        source,
    };
    let write_error = |source| target.error(source);
    let mut writer = compose(tree, compression, epoch).map_err(compose_error)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BUFFER_BYTES, target.file());
    let (_, bytes) = writer.write(&mut buffered).map_err(compose_error)?;
    buffered
        .into_inner()
        .map_err(|error| write_error(error.into_error()))?
        // The writer takes a file back that is like one before, so there may be something behind the end.
        .set_len(bytes)
        .map_err(write_error)?;
    Ok(())
}

fn compose(
    tree: &Tree,
    compression: Compression,
    epoch: u32,
) -> Result<FilesystemWriter<'static, 'static, 'static>, BackhandError> {
    let mut writer = FilesystemWriter::default();
    writer.set_block_size(BLOCK_BYTES);
    writer.set_time(epoch);
    writer.set_root_mode(0o755);
    writer.set_compressor(compression.compressor()?);
    // Levels matter to who compresses only; kernels need no word about them.
    writer.set_emit_compression_options(false);
    for (path, entry) in tree.iter() {
        push(&mut writer, path, entry, epoch)?;
    }
    Ok(writer)
}

fn push(
    writer: &mut FilesystemWriter<'static, 'static, 'static>,
    path: &Path,
    entry: &Entry,
    epoch: u32,
) -> Result<(), BackhandError> {
    let header = NodeHeader::new(entry.mode, entry.uid, entry.gid, epoch);
    match &entry.kind {
        Kind::Directory => writer.push_dir(path, header),
        Kind::File(Content::Path(source)) => writer.push_file_from_path(source, path, header),
        Kind::File(content) => writer.push_file(content.clone().open()?, path, header),
        Kind::Symlink(target) => push_link(writer, target, path, header),
        Kind::CharacterDevice { major, minor } => writer.push_char_device(device_number(*major, *minor), path, header),
        Kind::BlockDevice { major, minor } => writer.push_block_device(device_number(*major, *minor), path, header),
        Kind::Fifo => writer.push_fifo(path, header),
    }
}

/// Linux's `new_encode_dev`, which squashfs stores: 12 bits of the major number between the parts of the minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_linux_does() {
        assert_eq!(device_number(5, 1), 0x501);
        assert_eq!(device_number(259, 0x12345), 0x1231_0345);
    }
}
