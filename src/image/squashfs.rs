//! A tree as a squashfs file, the last step of [`super::build`]: the same tree gives the same bytes, and the file is at
//! its place only when it is whole.

use std::fs::Permissions;
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backhand::{BackhandError, FilesystemWriter, NodeHeader};
use tempfile::NamedTempFile;

use super::compression::Compression;
use super::tree::{Content, Entry, Kind, Tree};

/// The kernel reads and decompresses a whole block for every byte that is wanted of it: 128 KiB is mksquashfs's choice too.
const BLOCK_BYTES: u32 = 128 << 10;
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Why an image can't be written.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    /// The file can't be made.
    #[error("can't write {path}: {source}")]
    Write {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What should go into it can't be read, or has no place in a squashfs.
    #[error("can't put the image {path} together: {source}")]
    Compose {
        /// The image.
        path: PathBuf,
        /// What squashfs says.
        source: BackhandError,
    },
}

/// The place that an image will be at; until it is whole, a temporary file beside it.
pub struct Target<'o> {
    output: &'o Path,
    file: NamedTempFile,
}

impl<'o> Target<'o> {
    /// Makes a temporary file beside `output`.
    ///
    /// # Errors
    /// The folder isn't there or can't be written to, or `output` is a folder itself.
    pub fn create(output: &'o Path) -> Result<Self, SquashfsError> {
        let write_error = |source| SquashfsError::Write {
            path: output.to_path_buf(),
            source,
        };
        if output.is_dir() {
            return Err(write_error(io::ErrorKind::IsADirectory.into()));
        }
        let folder = output
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".image-")
            .tempfile_in(folder)
            .map_err(write_error)?;
        Ok(Self { output, file })
    }

    /// Writes the tree, every file with the time stamp `epoch` (seconds since 1970). Returns the number of bytes.
    ///
    /// # Errors
    /// A file of the tree can't be read, or the image not be written. Then what was at its place before is still there.
    pub fn write(self, tree: &Tree, compression: Compression, epoch: u32) -> Result<u64, SquashfsError> {
        let output = self.output;
        let write_error = |source| SquashfsError::Write {
            path: output.to_path_buf(),
            source,
        };
        let compose_error = |source| SquashfsError::Compose {
            path: output.to_path_buf(),
            source,
        };
        let mut writer = compose(tree, compression, epoch).map_err(compose_error)?;
        let mut buffered = BufWriter::with_capacity(WRITE_BUFFER_BYTES, self.file);
        let (_, bytes) = writer.write(&mut buffered).map_err(compose_error)?;
        let file = buffered.into_inner().map_err(|error| write_error(error.into_error()))?;
        // The writer takes a file back that is like one before, so there may be something behind the end.
        file.as_file().set_len(bytes).map_err(write_error)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(write_error)?;
        file.as_file().sync_all().map_err(write_error)?;
        file.persist(output).map_err(|error| write_error(error.error))?;
        Ok(bytes)
    }
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
        Kind::Symlink(target) => writer.push_symlink(target, path, header),
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
