//! Compiled Wasm kept on disk between runs, one file for each program and each way to compile it.
//!
//! A file is named after the hash of the Wasm, what the compiler depends on (its version, its settings, this
//! machine's processor) and the checksum of its own content, so that one `rename` puts it in place whole, and a file
//! that was cut or changed by accident is seen for what it is. Whoever can write to the directory on purpose can run
//! code in this process: it has to be ours alone. What nobody has used for longest goes when there is too much.

use std::cell::RefCell;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use wasmtime::Engine;

/// The most that a cache holds, in bytes; a large program, Python's interpreter for one, is some fifty megabytes.
const LIMIT: u64 = 1 << 30;
/// A file that was begun and is still not whole after this long is one that nobody finishes.
const ABANDONED: Duration = Duration::from_secs(3600);
/// What ours end in.
const EXTENSION: &str = ".cwasm";
/// What files begin with that are not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// A directory of compiled Wasm.
pub(super) struct Cache {
    directory: PathBuf,
    limit: u64,
    /// Files that were found whole.
    whole: RefCell<Vec<PathBuf>>,
}

/// What a compiled file is made from: its name but for the checksum.
pub(super) struct Key(String);

impl Key {
    /// For Wasm with this `hash`, compiled by this `engine`.
    pub(super) fn new(hash: &str, engine: &Engine) -> Self {
        let mut compiler = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut compiler);
        Self(format!("{hash}-{:016x}-", compiler.finish()))
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
            limit: LIMIT,
            whole: RefCell::default(),
        })
    }

    /// Looks which files are whole for Wasm with this `hash`, however it was compiled: what there is to do before it is
    /// known how that was. Those that are not are removed.
    pub(super) fn check(&self, hash: &str) {
        let whole = self.files().filter(|path| self.is_whole(path, hash)).collect();
        self.whole.replace(whole);
    }

    /// The file for `key`, if there is one that is whole. One that is not is removed.
    pub(super) fn find(&self, key: &Key) -> Option<PathBuf> {
        let found = self.files().find(|path| self.is_whole(path, &key.0))?;
        mark_used(&found);
        Some(found)
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.directory);
        entries.into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// Whether the file at `path` has a name that begins with `key` and what was written under that name.
    fn is_whole(&self, path: &Path, key: &str) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(rest) = name.strip_prefix(key).and_then(|rest| rest.strip_suffix(EXTENSION)) else {
            return false;
        };
        if self.whole.borrow().iter().any(|whole| whole == path) {
            return true;
        }
        let written = |checksum: String| {
            let before = rest.strip_suffix(&checksum);
            before.is_some_and(|before| before.is_empty() || before.ends_with('-'))
        };
        if checksum_of(path).is_ok_and(written) {
            return true;
        }
        self.remove(path, "it is not what was written there");
        false
    }

    /// Keeps `compiled` for the next run.
    pub(super) fn keep(&self, key: &Key, compiled: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.directory)?;
        file.write_all(compiled)?;
        let mut checksum = Checksum::default();
        checksum.update(compiled);
        let path = self
            .directory
            .join(format!("{}{}{EXTENSION}", key.0, checksum.finish()));
        file.persist(&path)?;
        self.trim(&path);
        Ok(())
    }

    /// Removes what was used longest ago until the rest is within the limit, and what others left unfinished. `newest`
    /// stays however large it is: it is in use.
    fn trim(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            let (Ok(metadata), name) = (entry.metadata(), entry.file_name()) else {
                continue;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) {
                if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if name.ends_with(EXTENSION) && entry.path() != newest {
                files.push((used, metadata.len(), entry.path()));
            }
        }
        files.sort();
        let newest = fs::metadata(newest).map_or(0, |metadata| metadata.len());
        let mut total = files.iter().map(|(_, length, _)| length).sum::<u64>() + newest;
        for (_, length, path) in files {
            if total <= self.limit {
                break;
            }
            // A process that has it mapped keeps it.
            if fs::remove_file(&path).is_ok() {
                tracing::debug!("removed {} from the cache, which was full", path.display());
            }
            total -= length;
        }
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

/// So that it is not taken for one that nobody needs. A cache that can be read and not changed is of use all the same.
fn mark_used(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn checksum_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; 64 << 10];
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
        let key = Key::new("one", &engine);
        assert!(cache.find(&key).is_none());
        cache.keep(&key, b"compiled").unwrap();
        assert_eq!(fs::read(cache.find(&key).unwrap()).unwrap(), b"compiled");
        assert!(cache.find(&Key::new("two", &engine)).is_none());
        let mut other = wasmtime::Config::new();
        other.consume_fuel(true);
        assert!(cache.find(&Key::new("one", &Engine::new(&other).unwrap())).is_none());
    }

    #[test]
    fn a_file_that_was_changed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let key = Key::new("wasm", &Engine::default());
        cache.keep(&key, b"compiled").unwrap();
        let path = cache.find(&key).unwrap();
        fs::write(&path, b"compiles").unwrap();
        assert!(cache.find(&key).is_none());
        assert!(!path.exists());
        cache.keep(&key, b"compiled").unwrap();
        fs::write(&path, b"compiles").unwrap();
        cache.check("wasm");
        assert!(!path.exists());
    }

    #[test]
    fn what_was_checked_before_is_found_under_its_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let mut other = wasmtime::Config::new();
        other.consume_fuel(true);
        let keys = [Engine::default(), Engine::new(&other).unwrap()].map(|engine| Key::new("wasm", &engine));
        for key in &keys {
            cache.keep(key, key.0.as_bytes()).unwrap();
        }
        cache.check("wasm");
        assert_eq!(cache.whole.borrow().len(), 2);
        for key in &keys {
            assert_eq!(fs::read(cache.find(key).unwrap()).unwrap(), key.0.as_bytes());
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_when_there_is_too_much() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(directory.path()).unwrap();
        cache.limit = 250;
        let engine = Engine::default();
        let keys = ["one", "two", "six"].map(|wasm| Key::new(wasm, &engine));
        let abandoned = directory.path().join(format!("{UNFINISHED}x"));
        let aged = |path: &Path, seconds| {
            let then = SystemTime::now() - Duration::from_secs(seconds);
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap()
                .set_modified(then)
                .unwrap();
        };
        aged(&abandoned, 2 * ABANDONED.as_secs());
        for (key, age) in keys[..2].iter().zip([20, 10]) {
            cache.keep(key, &[7; 100]).unwrap();
            aged(&cache.find(key).unwrap(), age);
        }
        // The first was the oldest, and is used.
        assert!(cache.find(&keys[0]).is_some());
        cache.keep(&keys[2], &[7; 100]).unwrap();
        assert_eq!(keys.map(|key| cache.find(&key).is_some()), [true, false, true]);
        assert!(!abandoned.exists());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(directory.path()).is_err());
    }
}
