//! The program that becomes an image's `/sbin/init`, checked before anything is built: an image may hold nothing else,
//! so it must need nothing else, no dynamic loader above all. The exception is a script, which some other runtime may
//! have in our place: the image must have what runs it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::elf::{EM_386, EM_AARCH64, EM_RISCV, EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};

use super::tree::Tree;

/// The program that is running, whatever its name was and whether or not it has been replaced since.
const RUNNING: &str = "/proc/self/exe";

/// As much of a script as the kernel reads to find its interpreter (execve(2)).
const FIRST_LINE: u64 = 255;

/// A program that can be PID 1 of an image.
#[derive(Debug)]
pub struct InitBinary {
    /// Where it is on this machine.
    pub path: PathBuf,
    /// Processor that it is for, as [`std::env::consts::ARCH`] names it; a script is for this machine's.
    pub architecture: &'static str,
    /// What runs it, if it is a script.
    interpreter: Option<PathBuf>,
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
    /// The program is a script, and the image lacks what runs it.
    #[error("{path} is a script that {interpreter} runs, and the image has no such file")]
    NoInterpreter {
        /// The script.
        path: PathBuf,
        /// What its first line names.
        interpreter: PathBuf,
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
    /// It isn't there, is neither an ELF executable nor a script, or isn't linked statically.
    pub fn find(path: Option<&Path>) -> Result<Self, InitError> {
        let path = path.unwrap_or(Path::new(RUNNING)).to_path_buf();
        let read_error = |source| InitError::Read {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(read_error)?;
        let interpreter = interpreter_of(&mut file).map_err(read_error)?;
        if interpreter.is_some() {
            return Ok(Self {
                path,
                architecture: std::env::consts::ARCH,
                interpreter,
            });
        }
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
            }) => Ok(Self {
                path,
                architecture,
                interpreter: None,
            }),
            Err(reason) => Err(InitError::NotAProgram { path: named, reason }),
        }
    }

    /// Checks that an image has what runs it.
    ///
    /// # Errors
    /// It is a script, and its interpreter isn't there.
    pub fn check_in(&self, tree: &Tree) -> Result<(), InitError> {
        match &self.interpreter {
            Some(interpreter) if !tree.leads_to_file(interpreter) => Err(InitError::NoInterpreter {
                path: self.path.clone(),
                interpreter: interpreter.clone(),
            }),
            _ => Ok(()),
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

/// What a script's first line says that runs it (execve(2)): `#!`, and the first word after it. None: no script.
pub(super) fn interpreter_of(mut file: impl Read + Seek) -> io::Result<Option<PathBuf>> {
    let mut start = Vec::new();
    file.by_ref().take(FIRST_LINE).read_to_end(&mut start)?;
    file.rewind()?;
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(words) = line.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let word = words
        .trim_ascii()
        .split(u8::is_ascii_whitespace)
        .next()
        .unwrap_or_default();
    Ok((!word.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(word))))
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
        .map_err(|_| "neither a 64-bit ELF executable nor a script")?;
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
    fn a_script_is_run_by_what_its_first_line_says() {
        let of = |text: &str| interpreter_of(io::Cursor::new(text)).expect("reads");
        assert_eq!(of("#!/bin/sh\nexit"), Some("/bin/sh".into()));
        assert_eq!(of("#! /usr/bin/python3 -OO\n"), Some("/usr/bin/python3".into()));
        assert_eq!(of("#!\n/bin/sh"), None);
        assert_eq!(of("exit"), None);
    }

    #[test]
    fn a_text_or_a_missing_file_is_refused_by_name() {
        let error = InitBinary::find(Some(Path::new("/etc/passwd"))).expect_err("a text");
        assert!(
            error
                .to_string()
                .starts_with("/etc/passwd can't become the image's /sbin/init: neither a 64-bit ELF")
        );
        let error = InitBinary::find(Some(Path::new("/no/such/file"))).expect_err("nothing");
        assert!(error.to_string().starts_with("can't read /no/such/file"), "{error}");
    }
}
