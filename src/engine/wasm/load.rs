//! From a file to compiled code: what is in the file, compiled, or taken from the cache, or compiled already.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use super::cache::{Cache, Key};
use super::refusal;
use super::runtime::Machinery;
use crate::engine::StartError;

/// The largest file that is tried, in bytes; compiling takes some twenty times as much memory.
const FILE_LIMIT: u64 = 512 << 20;

/// How long a compilation may take without a word.
const LONG: Duration = Duration::from_secs(1);

/// What a component for `wasi:http/service` 0.3 exports.
pub(super) const SERVICE: &str = "wasi:http/handler@0.3";
/// What one for `wasi:cli/command` 0.3 does.
pub(super) const COMMAND: &str = "wasi:cli/run@0.3";

/// Compiled code.
pub(super) enum Code {
    Module(Module),
    Component(Component),
}

/// What the first bytes of a file say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A core module: `\0asm`, version 1.
    Module,
    /// A component: `\0asm`, version 13, layer 1.
    Component,
    /// Machine code that Wasmtime made from a module or a component: an ELF file.
    Elf,
}

/// A file that a program is in, as read.
pub(super) struct Source<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    hash: OnceCell<String>,
    cache: OnceCell<Option<Cache>>,
}

impl<'a> Source<'a> {
    /// The file at `path`.
    ///
    /// # Errors
    /// If it can't be read or is beyond all reason.
    pub(super) fn read(path: &'a Path) -> Result<Self, StartError> {
        let shown = path.display();
        let unreadable = |error: io::Error| StartError::new(format!("{shown} can't be read: {error}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        if size > FILE_LIMIT {
            return Err(StartError::new(format!(
                "{shown} has {size} bytes; the limit is {FILE_LIMIT}"
            )));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        Ok(Self {
            path,
            bytes,
            hash: OnceCell::new(),
            cache: OnceCell::new(),
        })
    }

    /// What it takes to run it. Names of interfaces stand in a component as they are, compiled or not; a program that
    /// only mentions these somewhere runs all the same.
    pub(super) fn machinery(&self) -> Machinery {
        // What is run in place of code that is not whole says it; what is left of that may not.
        if matches!(form(&self.bytes), None | Some(Form::Elf))
            && Engine::detect_precompiled(&self.bytes).is_none()
            && let Some(source) = source_of(self.path)
            && let Ok(source) = Source::read(&source)
        {
            return source.machinery();
        }
        let mentions = |interface: &str| memchr::memmem::find(&self.bytes, interface.as_bytes()).is_some();
        if self.may_be_component() && (mentions(SERVICE) || mentions(COMMAND)) {
            Machinery::Concurrent
        } else {
            Machinery::Plain
        }
    }

    /// Whether it may hold a component: of machine code that is not told here.
    pub(super) fn may_be_component(&self) -> bool {
        matches!(form(&self.bytes), Some(Form::Component | Form::Elf))
    }

    /// Whether it is machine code already.
    pub(super) fn is_compiled(&self) -> bool {
        form(&self.bytes) == Some(Form::Elf)
    }

    /// Does what [`Self::load`] does and can be done before there is an engine.
    pub(super) fn prepare(&self, cache: Option<&Path>) {
        if form(&self.bytes).is_some_and(|form| form != Form::Elf)
            && let Some(cache) = self.cache(cache)
        {
            cache.check(self.hash());
        }
    }

    /// The cache in `directory`, if there is one that is safe.
    fn cache(&self, directory: Option<&Path>) -> Option<&Cache> {
        let open = |directory: &Path| {
            Cache::open(directory)
                .inspect_err(|error| tracing::warn!("compiled Wasm is not kept in {}: {error}", directory.display()))
                .ok()
        };
        self.cache.get_or_init(|| directory.and_then(open)).as_ref()
    }

    /// What compiled code of it is found by.
    fn hash(&self) -> &str {
        self.hash.get_or_init(|| HEXLOWER.encode(&Sha256::digest(&self.bytes)))
    }

    /// The code in it.
    ///
    /// # Errors
    /// A sentence that names the file and says what it is instead, or why it can't be compiled.
    pub(super) fn load(&self, engine: &Engine, cache: Option<&Path>) -> Result<Code, StartError> {
        let Self { path, bytes, .. } = self;
        let refusal = match form(bytes) {
            Some(Form::Elf) => match precompiled(engine, path, bytes) {
                Ok(code) => return Ok(code),
                Err(refusal) => refusal,
            },
            Some(form) => {
                if let Some(code) = self.compiled_ahead(engine, form) {
                    return Ok(code);
                }
                return self.compiled(engine, form, self.cache(cache));
            }
            None => StartError::new(format!("{}: {}", path.display(), no_wasm(bytes))),
        };
        let Some(source) = source_of(path) else {
            return Err(refusal);
        };
        tracing::warn!("{refusal}; compiling {}, which is there, too", source.display());
        Source::read(&source)?.load(engine, cache)
    }

    /// Where its machine code stands if it was made ahead: beside it, under a name that has its content's hash, so that
    /// no other content is ever taken for it.
    pub(super) fn place_ahead(&self) -> PathBuf {
        self.path.with_extension(format!("{}.cwasm", &self.hash()[..16]))
    }

    /// The machine code for it, to be kept in a `.cwasm` file.
    ///
    /// # Errors
    /// As [`Self::load`], and for a file that is machine code already.
    pub(super) fn compile(&self, engine: &Engine) -> Result<Vec<u8>, StartError> {
        let Self { path, bytes, .. } = self;
        let progress = Progress::begin(path, bytes.len());
        let compiled = match form(bytes) {
            Some(Form::Module) => engine.precompile_module(bytes),
            Some(Form::Component) => engine.precompile_component(bytes),
            Some(Form::Elf) => Err(wasmtime::format_err!("it is machine code already")),
            None => Err(wasmtime::format_err!("{}", no_wasm(bytes))),
        };
        let compiled = compiled.map_err(|error| refusal::not_compiled(path, &error))?;
        progress.end(path);
        Ok(compiled)
    }

    /// The code that was made ahead, if it is there and of use here.
    fn compiled_ahead(&self, engine: &Engine, form: Form) -> Option<Code> {
        let ahead = self.place_ahead();
        if !ahead.exists() {
            return None;
        }
        map(engine, &ahead, form == Form::Component)
            .inspect_err(|error| {
                tracing::warn!(
                    "{} is of no use here, so it is compiled again: {error:#}",
                    ahead.display()
                )
            })
            .ok()
    }

    /// Compiled now, or taken from the cache.
    fn compiled(&self, engine: &Engine, form: Form, cache: Option<&Cache>) -> Result<Code, StartError> {
        let Self { path, bytes, .. } = self;
        let cached = cache.map(|cache| (cache, Key::new(self.hash(), engine)));
        if let Some((cache, key)) = &cached
            && let Some(file) = cache.find(key)
        {
            match map(engine, &file, form == Form::Component) {
                Ok(code) => return Ok(code),
                Err(error) => cache.remove(&file, &format!("{error:#}")),
            }
        }

        let progress = Progress::begin(path, bytes.len());
        let invalid = |error: wasmtime::Error| refusal::not_compiled(path, &error);
        let code = if form == Form::Component {
            Component::new(engine, bytes).map(Code::Component).map_err(invalid)?
        } else {
            Module::new(engine, bytes).map(Code::Module).map_err(invalid)?
        };
        progress.end(path);

        if let Some((cache, key)) = &cached {
            let serialized = match &code {
                Code::Module(module) => module.serialize(),
                Code::Component(component) => component.serialize(),
            };
            let kept = serialized
                .map_err(io::Error::other)
                .and_then(|serialized| cache.keep(key, &serialized));
            if let Err(error) = kept {
                tracing::warn!("the compiled {} is not kept for the next run: {error}", path.display());
            }
        }
        Ok(code)
    }
}

/// The Wasm that a `.cwasm` was made from, if it stands beside it: `hello.wasm` for `hello.cwasm`, and for the name that
/// [`Source::place_ahead`] gives.
fn source_of(compiled: &Path) -> Option<PathBuf> {
    if compiled.extension()? != "cwasm" {
        return None;
    }
    let stem = compiled.file_stem().map(Path::new)?;
    let beside = |name: &Path| compiled.with_file_name(name.with_added_extension("wasm"));
    [beside(stem), beside(Path::new(stem.file_stem()?))]
        .into_iter()
        .find(|path| path.is_file())
        .filter(|path| Source::read(path).is_ok_and(|source| form(&source.bytes).is_some_and(|form| form != Form::Elf)))
}

fn form(bytes: &[u8]) -> Option<Form> {
    match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Some(Form::Module),
        // Other versions of the component encoding go to the compiler, which says what it takes.
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Some(Form::Component),
        [0x7f, b'E', b'L', b'F', ..] => Some(Form::Elf),
        _ => None,
    }
}

fn no_wasm(bytes: &[u8]) -> String {
    let first = &bytes[..bytes.len().min(8)];
    let shown = first.escape_ascii();
    match first {
        [] => "the file is empty".to_owned(),
        [0, b'a', b's', b'm', ..] => format!("this is WebAssembly of a version that nothing here knows ({shown})"),
        [b'(', ..] => {
            format!("first bytes are \"{shown}\", WebAssembly as text; turn it into bytes with `wasm-tools parse`")
        }
        _ => format!("first bytes are \"{shown}\", no WebAssembly (that begins with \"\\x00asm\")"),
    }
}

/// Tells those who wait what they wait for, once it takes long.
struct Progress {
    began: Instant,
    /// Dropped at the end.
    _running: mpsc::Sender<()>,
}

impl Progress {
    fn begin(path: &Path, length: usize) -> Self {
        let (running, ended) = mpsc::channel::<()>();
        let shown = path.display().to_string();
        let told = move || {
            if ended.recv_timeout(LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::info!("compiling {shown} ({} KiB), which takes a moment", length >> 10);
            }
        };
        // Without a thread nothing is told, and nothing else is amiss.
        let _ = std::thread::Builder::new().name("wasm-progress".into()).spawn(told);
        Self {
            began: Instant::now(),
            _running: running,
        }
    }

    fn end(self, path: &Path) {
        let took = self.began.elapsed();
        if took >= LONG {
            tracing::info!("compiled {} in {:.1} s", path.display(), took.as_secs_f64());
        } else {
            tracing::debug!("compiled {} in {took:?}", path.display());
        }
    }
}

/// A file that was compiled ahead of time.
fn precompiled(engine: &Engine, path: &Path, bytes: &[u8]) -> Result<Code, StartError> {
    let shown = path.display();
    let Some(kind) = Engine::detect_precompiled(bytes) else {
        return Err(StartError::new(format!(
            "{shown} is an ELF file, and not what `polyinit compile` writes, or not all of it: compile it again; an executable has a name that doesn't end in .wasm or .cwasm"
        )));
    };
    take(engine, bytes, matches!(kind, Precompiled::Component)).map_err(|error| {
        StartError::new(format!(
            "{shown} was compiled for another version of polyinit or another machine ({error:#}); compile it again, or give the .wasm file that it was made from"
        ))
    })
}

/// Takes a copy of compiled code: a file that users name is one that they copy the next version over, while this one runs.
#[allow(unsafe_code, reason = "Wasmtime can't check machine code; see SAFETY")]
fn take(engine: &Engine, bytes: &[u8], component: bool) -> wasmtime::Result<Code> {
    // SAFETY: the bytes must be what Wasmtime's compiler wrote. Wasmtime itself refuses those of other versions, settings
    // and processors. Beyond that, they are the program that the user asked us to run, and a user who could put harmful
    // machine code into a .cwasm could as well put it into an executable, which we run with the same rights.
    unsafe {
        if component {
            Component::deserialize(engine, bytes).map(Code::Component)
        } else {
            Module::deserialize(engine, bytes).map(Code::Module)
        }
    }
}

/// Maps compiled code from a file.
#[allow(unsafe_code, reason = "Wasmtime can't check machine code; see SAFETY")]
fn map(engine: &Engine, path: &Path, component: bool) -> wasmtime::Result<Code> {
    // SAFETY: as for `take`, and the file must not change while it is mapped. It is either from our cache, whose directory
    // only this user can write to, whose files are put in place whole, never changed, and checked against their checksum
    // before this; or it stands beside the program under the name of its content's hash, where `polyinit compile` puts it,
    // whole as well.
    unsafe {
        if component {
            Component::deserialize_file(engine, path).map(Code::Component)
        } else {
            Module::deserialize_file(engine, path).map(Code::Module)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(engine: &Engine, path: &Path) -> Result<Code, StartError> {
        Source::read(path)?.load(engine, None)
    }

    fn error(bytes: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello.wasm");
        std::fs::write(&path, bytes).unwrap();
        let loaded = load(&Engine::default(), &path);
        let error = loaded.err().unwrap().message;
        error.replace(directory.path().to_str().unwrap(), "")
    }

    #[test]
    fn code_made_ahead_is_taken_for_the_same_content_alone() {
        let engine = Engine::default();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello.wasm");
        std::fs::write(&path, b"\0asm\x01\0\0\0").unwrap();
        let source = Source::read(&path).unwrap();
        let ahead = source.place_ahead();
        std::fs::write(&ahead, source.compile(&engine).unwrap()).unwrap();
        assert!(source.compiled_ahead(&engine, Form::Module).is_some());
        std::fs::write(&ahead, b"\x7fELF, but no machine code").unwrap();
        assert!(source.compiled_ahead(&engine, Form::Module).is_none());
        assert!(matches!(load(&engine, &path), Ok(Code::Module(_))));
        std::fs::write(&path, b"other").unwrap();
        assert_ne!(Source::read(&path).unwrap().place_ahead(), ahead);
    }

    #[test]
    fn what_is_no_webassembly_is_called_so() {
        assert_eq!(error(b""), "/hello.wasm: the file is empty");
        assert_eq!(
            error(b"#!/bin/sh\necho"),
            "/hello.wasm: first bytes are \"#!/bin/s\", no WebAssembly (that begins with \"\\x00asm\")"
        );
        assert!(error(b"(module)").contains("WebAssembly as text"));
        assert!(error(b"\0asm\x02\0\0\0").contains("a version that nothing here knows"));
        assert!(error(b"\x7fELF\x02\x01\x01\0").contains("is an ELF file, and not what `polyinit compile` writes"));
        assert!(error(b"\0asm\x01\0\0\0\xff").starts_with("/hello.wasm can't be compiled: "));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(&Engine::default(), Path::new("/no/such.wasm")).err().unwrap();
        assert!(error.message.starts_with("/no/such.wasm can't be read: "));
    }

    #[test]
    fn compiled_code_is_kept_and_taken_up_again() {
        let directory = tempfile::tempdir().unwrap();
        let wasm = directory.path().join("a.wasm");
        std::fs::write(&wasm, wat::parse_str("(module (func (export \"f\")))").unwrap()).unwrap();
        let cache = directory.path().join("cache");
        let engine = Engine::default();
        let files = || -> Vec<_> {
            std::fs::read_dir(&cache)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect()
        };

        assert!(Source::read(&wasm).unwrap().load(&engine, Some(&cache)).is_ok());
        let kept = files();
        assert_eq!(kept.len(), 1);
        assert!(matches!(
            Source::read(&wasm).unwrap().load(&engine, Some(&cache)),
            Ok(Code::Module(_))
        ));
        // A file compiled ahead of time is a program too.
        let ahead = directory.path().join("a.cwasm");
        std::fs::copy(&kept[0], &ahead).unwrap();
        assert!(matches!(load(&engine, &ahead), Ok(Code::Module(_))));

        std::fs::write(&kept[0], b"garbage").unwrap();
        assert!(Source::read(&wasm).unwrap().load(&engine, Some(&cache)).is_ok());
        assert_eq!(files(), kept);
        assert!(std::fs::metadata(&kept[0]).unwrap().len() > 7);
    }

    #[test]
    fn code_of_no_use_is_compiled_again_from_what_it_was_made_from() {
        let directory = tempfile::tempdir().unwrap();
        let wasm = wat::parse_str("(module)").unwrap();
        let mut other = wasmtime::Config::new();
        other.consume_fuel(true);
        let other = Engine::new(&other).unwrap().precompile_module(&wasm).unwrap();
        for name in ["hello.cwasm", "hello.0123456789abcdef.cwasm"] {
            let compiled = directory.path().join(name);
            std::fs::write(&compiled, &other).unwrap();
            let _ = std::fs::remove_file(directory.path().join("hello.wasm"));
            assert!(load(&Engine::default(), &compiled).is_err());
            std::fs::write(directory.path().join("hello.wasm"), &wasm).unwrap();
            assert!(
                matches!(load(&Engine::default(), &compiled), Ok(Code::Module(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn code_for_another_version_machine_or_configuration_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("old.cwasm");
        let compiled = |change: fn(&mut wasmtime::Config)| {
            let mut config = wasmtime::Config::new();
            change(&mut config);
            let engine = Engine::new(&config).unwrap();
            engine.precompile_module(&wat::parse_str("(module)").unwrap()).unwrap()
        };
        let older = compiled(|config| {
            let version = wasmtime::ModuleVersionStrategy::Custom("0.0.9".to_owned());
            config.module_version(version).unwrap();
        });
        let mut elsewhere = compiled(|_| ());
        // Names of the same length, so that nothing else moves.
        let (here, there) = match std::env::consts::ARCH {
            "aarch64" => ("aarch64-", "riscv64-"),
            _ => ("x86_64-", "mips64-"),
        };
        let at = memchr::memmem::find(&elsewhere, here.as_bytes()).unwrap();
        elsewhere[at..at + there.len()].copy_from_slice(there.as_bytes());
        let metered = compiled(|config| {
            config.consume_fuel(true);
        });
        for (code, reason) in [
            (older, "incompatible version '0.0.9'"),
            (elsewhere, "compiled for architecture"),
            (metered, "fuel"),
        ] {
            std::fs::write(&path, code).unwrap();
            let error = load(&Engine::default(), &path).err().unwrap();
            assert!(
                error
                    .message
                    .contains("old.cwasm was compiled for another version of polyinit"),
                "{error}"
            );
            assert!(error.message.contains(reason), "{error}");
            assert!(
                error.message.ends_with("give the .wasm file that it was made from"),
                "{error}"
            );
        }
    }
}
