//! Which file system a block device holds: told from its first bytes, never guessed. For volumes in a machine, and for
//! images on a host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How a file system is told from its first bytes, and mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// As mount(2) has it, which is the name of its kernel module as well.
    pub name: &'static str,
    offset: u64,
    magic: &'static [u8],
    /// Options under which a file system that was not left cleanly can be mounted from a device that can't be written.
    pub(super) without_recovery: Option<&'static str>,
}

/// By the kernel's own definitions: `squashfs_fs.h`, `ext4.h`, `erofs_fs.h`, `xfs_format.h`, `btrfs_tree.h`.
const FILE_SYSTEMS: [FileSystem; 5] = [
    FileSystem {
        name: "squashfs",
        offset: 0,
        magic: b"hsqs",
        without_recovery: None,
    },
    FileSystem {
        name: "ext4",
        offset: 1024 + 0x38,
        magic: &[0x53, 0xef],
        without_recovery: Some("noload"),
    },
    FileSystem {
        name: "erofs",
        offset: 1024,
        magic: &[0xe2, 0xe1, 0xf5, 0xe0],
        without_recovery: None,
    },
    FileSystem {
        name: "xfs",
        offset: 0,
        magic: b"XFSB",
        without_recovery: Some("norecovery"),
    },
    FileSystem {
        name: "btrfs",
        offset: 0x1_0000 + 0x40,
        magic: b"_BHRfS_M",
        without_recovery: Some("rescue=nologreplay"),
    },
];

/// Tells the file system on `device`, a block device or an image of one, from its superblock. `None`: none that is known.
///
/// # Errors
/// When it can't be read.
pub fn recognise(device: &File) -> io::Result<Option<&'static FileSystem>> {
    for file_system in &FILE_SYSTEMS {
        let mut found = [0; 8];
        let found = &mut found[..file_system.magic.len()];
        match device.read_exact_at(found, file_system.offset) {
            Ok(()) if found == file_system.magic => return Ok(Some(file_system)),
            Ok(()) => {}
            // A device may be shorter than the place of somebody's superblock.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The names of all that are known, for errors.
pub fn known() -> String {
    FILE_SYSTEMS.map(|one| one.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`recognise`] makes of a file with `magic` at `offset`.
    fn recognised(offset: u64, magic: &[u8]) -> Option<&'static str> {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(magic, offset).expect("written");
        recognise(&file).expect("readable").map(|found| found.name)
    }

    #[test]
    fn file_systems_are_told_by_their_superblocks() {
        assert_eq!(recognised(0, b"hsqs"), Some("squashfs"));
        assert_eq!(recognised(0x438, &[0x53, 0xef]), Some("ext4"));
        assert_eq!(recognised(0x400, &0xe0f5_e1e2_u32.to_le_bytes()), Some("erofs"));
        assert_eq!(recognised(0, b"XFSB"), Some("xfs"));
        assert_eq!(recognised(0x1_0040, b"_BHRfS_M"), Some("btrfs"));
        assert_eq!(recognised(0, b"sqsh"), None);
        assert_eq!(recognised(0x20_0000, b"x"), None);
    }
}
