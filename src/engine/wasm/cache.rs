//! Compiled Wasm kept on disk between runs, one file for each program and each way to compile it.
//!
//! A file is named after the hash of the Wasm, what the compiler depends on (its version, its settings, this
//! machine's processor) and the checksum of its own content, so that one `rename` puts it in place whole, and a file
//! that was cut or changed by accident is seen for what it is. Whoever can write to the directory on purpose can run
//! code in this process: it has to be ours alone.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;

/// A directory of compiled Wasm.
pub(super) struct Cache {
    directory: PathBuf,
}

/// What a compiled file is made from: its name but for the checksum.
pub(super) struct Key(String);

impl Key {
    pub(super) fn new(wasm: &[u8], engine: &Engine) -> Self {
        let mut compiler = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut compiler);
        Self(format!(
            "{}-{:016x}-",
            HEXLOWER.encode(&Sha256::digest(wasm)),
            compiler.finish()
        ))
    }
}

impl Cache {
    /// The cache in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// If it can't be made, or is not safe from other users of this machine.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let metadata = fs::metadata(directory)?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other(
                "it belongs to another user or others may write to it; `chown` it to this user and `chmod 700` it",
            ));
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The file for `key`, if there is one that is whole. One that is not is removed.
    pub(super) fn find(&self, key: &Key) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.directory).ok()?;
        entries.flatten().find_map(|entry| {
            let name = entry.file_name();
            let checksum = name.to_str()?.strip_prefix(&key.0)?.strip_suffix(".cwasm")?;
            let path = entry.path();
            if checksum_of(&path).is_ok_and(|found| found == checksum) {
                return Some(path);
            }
            self.remove(&path, "it is not what was written there");
            None
        })
    }

    /// Keeps `compiled` for the next run.
    pub(super) fn keep(&self, key: &Key, compiled: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(compiled)?;
        let mut checksum = Checksum::default();
        checksum.update(compiled);
        let name = format!("{}{}.cwasm", key.0, checksum.finish());
        file.persist(self.directory.join(name))?;
        Ok(())
    }

    /// Removes a file that is of no use, so that it is made anew.
    pub(super) fn remove(&self, path: &Path, why: &str) {
        tracing::warn!("compiling anew in place of {}: {why}", path.display());
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!("{} can't be removed: {error}", path.display());
        }
    }
}

/// Against accidents, not attacks, and fast: a large program compiles to tens of megabytes.
#[derive(Default)]
struct Checksum(crc32fast::Hasher, u64);

impl Checksum {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
    }

    fn finish(self) -> String {
        format!("{:x}-{:08x}", self.1, self.0.finalize())
    }
}

fn checksum_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(checksum.finish()),
            length => checksum.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn finds_what_was_kept_and_only_under_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("wasm")).unwrap();
        let engine = Engine::default();
        let key = Key::new(b"one", &engine);
        assert!(cache.find(&key).is_none());
        cache.keep(&key, b"compiled").unwrap();
        assert_eq!(fs::read(cache.find(&key).unwrap()).unwrap(), b"compiled");
        assert!(cache.find(&Key::new(b"two", &engine)).is_none());
        let mut other = wasmtime::Config::new();
        other.consume_fuel(true);
        assert!(cache.find(&Key::new(b"one", &Engine::new(&other).unwrap())).is_none());
    }

    #[test]
    fn a_file_that_was_changed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let key = Key::new(b"wasm", &Engine::default());
        cache.keep(&key, b"compiled").unwrap();
        let path = cache.find(&key).unwrap();
        fs::write(&path, b"compiles").unwrap();
        assert!(cache.find(&key).is_none());
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(directory.path()).is_err());
    }
}
