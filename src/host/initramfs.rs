//! Between the kernel's modules and the VMM: the file system in memory that a kernel with modules starts from. What
//! happens inside it is `machine::initramfs`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::machine::initramfs::{PLAN, Plan};

/// Why the initramfs can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {} for the initramfs: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write the initramfs {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("can't tell this program's own file: {0}")]
    Myself(#[source] io::Error),
    #[error(
        "{} needs a dynamic linker, which an initramfs has not: build polyinit statically (`make`, or RUSTFLAGS=\"-C \
         target-feature=+crt-static\" with an explicit --target)",
        path.display()
    )]
    Dynamic { path: PathBuf },
    #[error("{} is larger than 4 GiB", path.display())]
    TooLarge { path: PathBuf },
}

/// Writes to `path` an initramfs with this program as `/init`, `modules` in the order given, and the root file system
/// on `device`.
///
/// # Errors
/// [`Error`] where a file can't be read or written, or this program can't run without a dynamic linker.
pub fn write(path: &Path, modules: &[PathBuf], device: &str, filesystem: &str) -> Result<(), Error> {
    let myself = std::env::current_exe().map_err(Error::Myself)?;
    let mut init = read(&myself)?;
    match program(&init) {
        Some(program) if !program.is_dynamic => init.truncate(program.end),
        _ => return Err(Error::Dynamic { path: myself }),
    }
    let plan = Plan {
        modules: (0..modules.len()).map(module_path).collect(),
        device: device.into(),
        filesystem: filesystem.to_owned(),
    };
    let mut files = vec![
        (PathBuf::from("/init"), init),
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
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// What the program headers of an ELF64 file say of it (elf(5)).
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// It asks for an interpreter: the dynamic linker.
    is_dynamic: bool,
    /// Where the last byte is that a segment has; what follows is for debuggers and linkers.
    end: usize,
}

/// `None` if the file is no ELF64.
fn program(elf: &[u8]) -> Option<Program> {
    const PT_LOAD: usize = 1;
    const PT_INTERP: usize = 3;
    let field = |at: usize, width: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(width)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    };
    if !elf.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let mut program = Program {
        is_dynamic: false,
        end: 0,
    };
    for number in 0..count {
        let header = table.checked_add(number * size)?;
        match field(header, 4)? {
            PT_INTERP => program.is_dynamic = true,
            PT_LOAD => {
                program.end = program
                    .end
                    .max(field(header + 8, 8)?.checked_add(field(header + 32, 8)?)?)
            }
            _ => {}
        }
    }
    (program.end <= elf.len()).then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn tells_static_from_dynamic_programs() {
        let shell = fs::read("/bin/sh").unwrap();
        assert!(program(&shell).unwrap().is_dynamic);
        assert_eq!(program(&shell[..70]), None);
        assert_eq!(program(b"#!/bin/sh\n"), None);
        let myself = fs::read(std::env::current_exe().unwrap()).unwrap();
        let end = program(&myself).unwrap().end;
        assert!(end > myself.len() / 4 && end < myself.len());
    }

    #[test]
    fn holds_the_plan_and_the_modules_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let modules: Vec<_> = ["b.ko", "a.ko"].iter().map(|name| folder.path().join(name)).collect();
        for module in &modules {
            fs::write(module, module.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        let path = folder.path().join("initramfs");
        match write(&path, &modules, "/dev/vda", "squashfs") {
            // As the tests are built: the rest is only to be had from a static build.
            Err(Error::Dynamic { .. }) => return,
            other => other.unwrap(),
        }
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
        assert_eq!(found[1].0, "boot.plan");
        assert_eq!(found[1].1, b"module /0.ko\nmodule /1.ko\nroot /dev/vda squashfs\n");
        assert_eq!(
            found[2..],
            [("0.ko".into(), b"b.ko".to_vec()), ("1.ko".into(), b"a.ko".to_vec())]
        );
    }
}
