//! What is mounted where, as `/proc/self/mountinfo` tells it (proc_pid_mountinfo(5)): read by the root, which takes
//! mounts along, and at halt, when what can be written to has to be let go.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u32,
    /// The mount that this one is mounted on.
    pub parent: u32,
    /// Major device number: 0 for file systems without a block device.
    pub major: u32,
    pub point: PathBuf,
    /// Type of file system, as in mount(2).
    pub file_system: String,
    pub source: OsString,
    /// Whether this mount or its whole file system refuses writes.
    pub read_only: bool,
}

/// The mounts of this process, in the order in which they were mounted.
///
/// # Errors
/// When /proc isn't mounted.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Lines that are not of the kernel's form are passed over.
fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /subtree /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`; how many fields stand before
/// the hyphen differs.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let major = number(fields.next()?.split(|&b| b == b':').next()?)?;
    let _subtree = fields.next()?;
    let point = PathBuf::from(unescape(fields.next()?));
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let file_system = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?);
    let read_only = has_option(options, b"ro") || has_option(fields.next()?, b"ro");
    Some(Mount {
        id,
        parent,
        major,
        point,
        file_system,
        source,
        read_only,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn has_option(options: &[u8], wanted: &[u8]) -> bool {
    options.split(|&b| b == b',').any(|option| option == wanted)
}

/// Space, tab, newline and backslash come as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Whether a file system of its own begins at `path`. Works without /proc; a bind mount of the same file system is
/// not seen, which no caller minds.
#[must_use]
pub fn is_mount_point(path: &Path) -> bool {
    let above = path.join("..");
    match (fs::metadata(path), fs::metadata(above)) {
        // The root is its own parent.
        (Ok(here), Ok(above)) => here.dev() != above.dev() || here.ino() == above.ino(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_understood() {
        let line =
            b"36 35 98:0 /sub /mnt/a\\040b rw,noatime shared:1 master:7 - ext4 /dev/vda\\134x rw,errors=continue";
        let mount = parse_line(line).expect("a mount");
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.source, "/dev/vda\\x");
        assert_eq!((mount.id, mount.parent, mount.major), (36, 35, 98));
        assert_eq!(mount.file_system, "ext4");
        assert!(!mount.read_only);
    }

    #[test]
    fn a_mount_is_read_only_by_its_own_flags_or_by_those_of_its_file_system() {
        for line in ["1 0 8:1 / / ro - ext4 /dev/a rw", "1 0 8:1 / / rw - squashfs /dev/a ro"] {
            assert!(parse_line(line.as_bytes()).expect("a mount").read_only, "{line}");
        }
        let rooted = parse_line(b"1 0 8:1 / / rw,relatime - ext4 /dev/a rw,errors=remount-ro").expect("a mount");
        assert!(!rooted.read_only);
    }

    #[test]
    fn what_is_no_mount_is_passed_over() {
        assert_eq!(parse(b"\nnonsense\n1 2\n9 9 9:9 / /x rw\n"), []);
    }

    #[test]
    fn the_running_system_has_a_root() {
        let mounts = read().expect("/proc is there");
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/")));
        assert!(is_mount_point(Path::new("/")));
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }
}
