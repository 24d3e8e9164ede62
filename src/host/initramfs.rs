//! Between the kernel's modules and the VMM: the file system in memory that a kernel with modules starts from. What
//! happens inside it is `src/initramfs`, a program of its own that the build script has compiled.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

#[path = "../initramfs/plan.rs"]
mod plan;

use plan::{PLAN, Plan, Root};

/// The program that becomes `/init`: a megabyte, linked statically.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/initramfs-init"));

/// How an archive of cpio's new form begins, the only one that kernels unpack (buffer-format.rst of the kernel).
const MAGIC: &[u8; 6] = b"070701";

/// What the kernel goes on to from the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// A root file system on a device, with its names: `/dev/vda`, `squashfs`.
    Device(&'a str, &'a str),
    /// An image that is an initramfs itself: all of it comes along, and is the root.
    Image(&'a Path),
}

/// Why the initramfs can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {} for the initramfs: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write the initramfs {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the kernel's modules are compressed, and a machine can't load them so: unpack them, as with `unxz {}`",
        path.display()
    )]
    Compressed { path: PathBuf },
    #[error("{} is larger than 4 GiB", path.display())]
    TooLarge { path: PathBuf },
}

/// Whether `file` is an initramfs, not compressed.
///
/// # Errors
/// When it can't be read.
pub fn is_one(file: &File) -> io::Result<bool> {
    let mut found = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut found)?;
    Ok(found == MAGIC)
}

/// Writes to `path` an initramfs that loads `modules` in the order given, and goes on to what is `next`.
///
/// # Errors
/// [`Error`] where a file can't be read or written.
pub fn write(path: &Path, modules: &[PathBuf], next: Next<'_>) -> Result<(), Error> {
    let is_compressed = |module: &&PathBuf| module.extension().is_none_or(|extension| extension != "ko");
    if let Some(module) = modules.iter().find(is_compressed) {
        return Err(Error::Compressed { path: module.clone() });
    }
    let plan = Plan {
        modules: (0..modules.len()).map(module_path).collect(),
        root: match next {
            Next::Device(device, filesystem) => Root::Device {
                device: device.into(),
                filesystem: filesystem.to_owned(),
            },
            Next::Image(_) => Root::Here,
        },
    };
    let mut files = vec![
        (PathBuf::from("/init"), INIT.to_vec()),
        (PathBuf::from(PLAN), plan.to_string().into_bytes()),
    ];
    for (place, module) in plan.modules.into_iter().zip(modules) {
        files.push((place, read(module)?));
    }
    let write_error = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let mut archive = BufWriter::new(File::create(path).map_err(write_error)?);
    if let Next::Image(image) = next {
        // Archives may follow each other, from multiples of four on; of what has the same name the last one stays, which
        // is our `/init`.
        let mut image = File::open(image).map_err(|source| unreadable(image, source))?;
        let length = io::copy(&mut image, &mut archive).map_err(write_error)?;
        let gap = length.next_multiple_of(4) - length;
        archive.write_all(&[0; 4][..gap as usize]).map_err(write_error)?;
    }
    for (place, content) in &files {
        let size = u32::try_from(content.len()).map_err(|_| Error::TooLarge { path: place.clone() })?;
        // Names in the archive are relative to its root.
        let name = place.to_string_lossy();
        let builder = Builder::new(name.trim_start_matches('/'))
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Regular);
        let mut entry = builder.write(&mut archive, size);
        entry
            .write_all(content)
            .and_then(|()| entry.finish())
            .map_err(write_error)?;
    }
    trailer(&mut archive)
        .and_then(|archive| archive.flush())
        .map_err(write_error)
}

/// Numbers instead of names: modules are files of the root directory there, and two folders may have the same name.
fn module_path(number: usize) -> PathBuf {
    format!("/{number}.ko").into()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Next<'_> = Next::Device("/dev/vda", "squashfs");

    #[test]
    fn a_compressed_module_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let module = folder.path().join("virtio.ko.xz");
        let error = write(&folder.path().join("initramfs"), &[module], ROOT).unwrap_err();
        assert!(error.to_string().contains("virtio.ko.xz`"), "{error}");
    }

    #[test]
    fn holds_the_plan_and_the_modules_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let modules: Vec<_> = ["b.ko", "a.ko"].iter().map(|name| folder.path().join(name)).collect();
        for module in &modules {
            fs::write(module, module.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        let path = folder.path().join("initramfs");
        write(&path, &modules, ROOT).unwrap();
        let mut archive = File::open(&path).unwrap();
        let mut found = Vec::new();
        loop {
            let mut entry = cpio::newc::Reader::new(archive).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            let name = entry.entry().name().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((name, content));
            archive = entry.finish().unwrap();
        }
        assert_eq!(found[0].0, "init");
        assert!(found[0].1.starts_with(b"\x7fELF") && found[0].1.len() < 2 << 20);
        assert_eq!(found[1].0, "boot.plan");
        assert_eq!(found[1].1, b"module /0.ko\nmodule /1.ko\nroot /dev/vda squashfs\n");
        assert_eq!(
            found[2..],
            [("0.ko".into(), b"b.ko".to_vec()), ("1.ko".into(), b"a.ko".to_vec())]
        );
    }

    #[test]
    fn an_image_comes_first_and_what_follows_it_is_where_a_kernel_looks() {
        let folder = tempfile::tempdir().unwrap();
        let [image, path] = ["image", "initramfs"].map(|name| folder.path().join(name));
        fs::write(&image, b"070701 and more").unwrap();
        assert!(is_one(&File::open(&image).unwrap()).unwrap());
        write(&path, &[], Next::Image(&image)).unwrap();
        let written = fs::read(&path).unwrap();
        assert!(written.starts_with(b"070701 and more\x00070701"), "{written:?}");
        assert!(written.windows(5).any(|window| window == b"stay\n"));
        fs::write(&image, b"0707").unwrap();
        assert!(!is_one(&File::open(&image).unwrap()).unwrap());
    }
}
