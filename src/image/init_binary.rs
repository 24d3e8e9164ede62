//! The program that becomes an image's `/sbin/init`, checked before anything is built: an image may hold nothing else,
//! so it must need nothing else, no dynamic loader above all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object::elf::{EM_386, EM_AARCH64, EM_RISCV, EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};

/// The program that is running, whatever its name was and whether or not it has been replaced since.
const RUNNING: &str = "/proc/self/exe";

/// A program that can be PID 1 of an image.
#[derive(Debug)]
pub struct InitBinary {
    /// Where it is on this machine.
    pub path: PathBuf,
    /// Processor that it is for, as [`std::env::consts::ARCH`] names it.
    pub architecture: &'static str,
}

/// Why a program can't be an image's init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The file can't be read.
    #[error("can't read {path}, which should become the image's /sbin/init: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a program.
    #[error("{path} can't become the image's /sbin/init: {reason}")]
    NotAProgram {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// The program needs a dynamic loader.
    #[error(
        "{path} is linked dynamically, so it can't be the only program of an image. Build polyinit statically:\n  \
         RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target {target}\n\
         and run that, or name it with --init"
    )]
    Dynamic {
        /// The file.
        path: PathBuf,
        /// Rust's name for a target that can be linked statically.
        target: String,
    },
    /// The program is for another processor than the base.
    #[error("{path} is for {architecture}, but the image's packages are for {wanted}: name another one with --init")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its processor.
        architecture: &'static str,
        /// The base's.
        wanted: &'static str,
    },
}

impl InitBinary {
    /// The program at `path`; without one, the program that is running.
    ///
    /// # Errors
    /// It isn't there, isn't an ELF executable, or isn't linked statically.
    pub fn find(path: Option<&Path>) -> Result<Self, InitError> {
        let path = path.unwrap_or(Path::new(RUNNING)).to_path_buf();
        let file = File::open(&path).map_err(|source| InitError::Read {
            path: path.clone(),
            source,
        })?;
        // The name that the user knows, for errors; what is read is what runs.
        let named = if path == Path::new(RUNNING) {
            std::env::current_exe().unwrap_or(path.clone())
        } else {
            path.clone()
        };
        match examine(&file) {
            Ok(Linkage {
                interpreter: true,
                architecture,
            }) => Err(InitError::Dynamic {
                path: named,
                target: format!("{architecture}-unknown-linux-gnu"),
            }),
            Ok(Linkage {
                interpreter: false,
                architecture,
            }) => Ok(Self { path, architecture }),
            Err(reason) => Err(InitError::NotAProgram { path: named, reason }),
        }
    }

    /// Checks that it runs on the processor of a base.
    ///
    /// # Errors
    /// It is for another one.
    pub fn require(&self, wanted: &'static str) -> Result<(), InitError> {
        if self.architecture == wanted {
            return Ok(());
        }
        Err(InitError::Architecture {
            path: self.path.clone(),
            architecture: self.architecture,
            wanted,
        })
    }
}

/// How an ELF executable is linked.
pub(super) struct Linkage {
    /// Whether it asks the kernel for a dynamic loader (PT_INTERP, elf(5)).
    pub interpreter: bool,
    /// Its processor.
    pub architecture: &'static str,
}

/// Reads the ELF header and the program headers only: an init may be large.
pub(super) fn examine(file: impl io::Read + io::Seek) -> Result<Linkage, &'static str> {
    let cache = ReadCache::new(file);
    let header = object::elf::FileHeader64::<Endianness>::parse(&cache)
        .map_err(|_| "not a 64-bit ELF executable (a script can't be the only program of an image)")?;
    let endian = header.endian().map_err(|_| "an ELF file of unknown byte order")?;
    if !matches!(header.e_type(endian), ET_EXEC | ET_DYN) {
        return Err("an ELF file, but not an executable");
    }
    let architecture = match header.e_machine(endian) {
        EM_X86_64 => "x86_64",
        EM_AARCH64 => "aarch64",
        EM_RISCV => "riscv64",
        EM_386 => "x86",
        _ => "another processor",
    };
    let headers = header
        .program_headers(endian, &cache)
        .map_err(|_| "an ELF file without its program headers")?;
    if headers.is_empty() {
        return Err("an ELF file that has nothing to load");
    }
    let interpreter = headers.iter().any(|header| header.p_type(endian) == PT_INTERP);
    Ok(Linkage {
        interpreter,
        architecture,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused_with_the_way_to_build_a_static_one() {
        let error = InitBinary::find(Some(Path::new("/bin/true"))).expect_err("dynamic on every distribution");
        assert!(matches!(error, InitError::Dynamic { .. }), "{error}");
        assert!(error.to_string().contains("+crt-static"), "{error}");
    }

    #[test]
    fn a_text_or_a_missing_file_is_refused_by_name() {
        let error = InitBinary::find(Some(Path::new("/etc/passwd"))).expect_err("a text");
        assert!(
            error
                .to_string()
                .starts_with("/etc/passwd can't become the image's /sbin/init: not a 64-bit ELF")
        );
        let error = InitBinary::find(Some(Path::new("/no/such/file"))).expect_err("nothing");
        assert!(error.to_string().starts_with("can't read /no/such/file"), "{error}");
    }
}
