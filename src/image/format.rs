//! What kind of file an image becomes, by the name of its file or as the user says.

use std::path::Path;

/// A kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Read-only and compressed: what the network's hosts boot
    Squashfs,
    /// Read-only and not compressed: larger, and read with less work
    Erofs,
    /// A disk that can be written to
    Ext4,
    /// An initramfs, unpacked to memory by the kernel
    Cpio,
    /// An archive of an OCI image, for container tools
    Oci,
}

impl Format {
    /// The format that the name of `output` tells; squashfs where it tells none.
    pub fn of(output: &Path) -> Self {
        let extension = output
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "erofs" => Self::Erofs,
            "ext4" | "img" | "raw" => Self::Ext4,
            "cpio" => Self::Cpio,
            "oci" | "tar" => Self::Oci,
            _ => Self::Squashfs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_tells_its_format() {
        let of = |name: &str| Format::of(Path::new(name));
        assert_eq!(of("a.squashfs"), Format::Squashfs);
        assert_eq!(of("rootfs"), Format::Squashfs);
        assert_eq!(of("a.EXT4"), Format::Ext4);
        assert_eq!(of("a.oci.tar"), Format::Oci);
        assert_eq!(of("a.cpio"), Format::Cpio);
    }
}
