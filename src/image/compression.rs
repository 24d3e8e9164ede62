//! How an image's blocks are compressed, a recipe's setting that [`super::squashfs`] follows.
//!
//! Whatever is chosen here, the kernel that boots the image must have built in. Kernels of microVM hosts (those that
//! the aleph.im network publishes, from 5.10 on, and Debian's) have all three.

use backhand::FilesystemCompressor;
use backhand::compression::{CompressionOptions, Compressor, Zstd};
use serde::Deserialize;

/// Smaller than gzip's best in a fifth of the time; level 15 takes ten times longer for 8 % less (debian-12, 215 MB).
const ZSTD_LEVEL: u32 = 6;

/// Compression of a squashfs, by the name that its recipe uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Smaller and several times faster to read than gzip. Linux 4.14 and later.
    #[default]
    Zstd,
    /// Read by every kernel that reads squashfs.
    Gzip,
    /// The smallest and by far the slowest to read.
    Xz,
}

impl Compression {
    pub(super) fn compressor(self) -> Result<FilesystemCompressor, backhand::BackhandError> {
        match self {
            Self::Gzip => FilesystemCompressor::new(Compressor::Gzip, None),
            Self::Xz => FilesystemCompressor::new(Compressor::Xz, None),
            Self::Zstd => {
                let options = CompressionOptions::Zstd(Zstd {
                    compression_level: ZSTD_LEVEL,
                });
                FilesystemCompressor::new(Compressor::Zstd, Some(options))
            }
        }
    }
}
