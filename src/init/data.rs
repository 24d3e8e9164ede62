//! /data: what the host sends along with a program, and what the program leaves there for the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Cursor};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use walkdir::WalkDir;
use zip::write::SimpleFileOptions;

use super::place::PlaceError;
use crate::program::archive;

/// The most that goes back with one answer, in bytes before compression.
const LIMIT: u64 = 10_000_000;

/// The folder, and what was in it when the host last knew.
pub struct Data {
    folder: PathBuf,
    known: Arc<Mutex<Listing>>,
    /// What is on a volume stays there, and may be large.
    is_volume: AtomicBool,
}

/// For each file its size, and when it was last written to.
type Listing = BTreeMap<PathBuf, (u64, i64, i64)>;

impl Data {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            known: Arc::default(),
            is_volume: AtomicBool::new(false),
        }
    }

    /// Unpacks what the host has sent; empty means nothing. Where the folder is a volume, nothing goes back.
    ///
    /// # Errors
    /// Where it is no zip, or one that leads outside.
    pub fn fill(&self, input: &[u8], is_volume: bool) -> Result<(), PlaceError> {
        self.is_volume.store(is_volume, Ordering::Relaxed);
        if !input.is_empty() {
            std::fs::create_dir_all(&self.folder)?;
            archive::unzip(Cursor::new(input), &self.folder).map_err(|error| format!("input_data: {error}"))?;
        }
        *self.known.lock() = list(&self.folder);
        Ok(())
    }

    /// A zip of the folder, if it is no longer as it was when the host last knew; else empty.
    pub async fn changed(&self) -> Bytes {
        // The usual case costs one system call.
        if self.is_volume.load(Ordering::Relaxed) || !self.folder.exists() {
            return Bytes::new();
        }
        let (folder, known) = (self.folder.clone(), self.known.clone());
        let zip = tokio::task::spawn_blocking(move || {
            let mut known = known.lock();
            let now = list(&folder);
            if now == *known {
                return Ok(Vec::new());
            }
            let size: u64 = now.values().map(|(size, ..)| size).sum();
            if size > LIMIT {
                return Err(io::Error::other(format!(
                    "it holds {size} bytes, and {LIMIT} are the limit"
                )));
            }
            let zip = pack(&folder, now.keys())?;
            *known = now;
            Ok(zip)
        });
        match zip.await {
            Ok(Ok(zip)) => zip.into(),
            Ok(Err(error)) => {
                tracing::warn!(
                    "what the program left in {} stays there: {error}",
                    self.folder.display()
                );
                Bytes::new()
            }
            Err(_) => Bytes::new(),
        }
    }
}

fn list(folder: &Path) -> Listing {
    let files = WalkDir::new(folder)
        .same_file_system(true)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file());
    files
        .filter_map(|file| {
            let metadata = file.metadata().ok()?;
            Some((
                file.into_path(),
                (metadata.size(), metadata.mtime(), metadata.mtime_nsec()),
            ))
        })
        .collect()
}

fn pack<'a>(folder: &Path, files: impl Iterator<Item = &'a PathBuf>) -> io::Result<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        let name = file.strip_prefix(folder).unwrap_or(file).to_string_lossy().into_owned();
        let mode = fs::metadata(file)?.mode();
        zip.start_file(name, SimpleFileOptions::default().unix_permissions(mode))?;
        io::copy(&mut File::open(file)?, &mut zip)?;
    }
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use nix::mount::{MsFlags, mount};

    #[test]
    fn what_is_on_a_volume_stays_there() {
        isolated(
            "init::data::tests::what_is_on_a_volume_stays_there",
            &[Namespace::Mount],
            || {
                let changed = |data: &Data| {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(data.changed())
                };
                let root = tempfile::tempdir().unwrap();
                let data = Data::new(root.path().join("data"));
                let volume = data.folder.join("volume");
                fs::create_dir_all(&volume).unwrap();
                mount(Some("t"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
                fs::write(volume.join("state.db"), "state").unwrap();
                assert!(changed(&data).is_empty());
                fs::write(data.folder.join("out.txt"), "result").unwrap();
                let copy = root.path().join("copy");
                fs::create_dir(&copy).unwrap();
                archive::unzip(Cursor::new(&changed(&data)[..]), &copy).unwrap();
                assert!(copy.join("out.txt").exists() && !copy.join("volume").exists());

                data.fill(b"", true).unwrap();
                fs::write(data.folder.join("more.txt"), "kept").unwrap();
                assert!(changed(&data).is_empty());
            },
        );
    }

    #[tokio::test]
    async fn goes_back_only_when_it_changed() {
        let root = tempfile::tempdir().unwrap();
        let data = Data::new(root.path().join("data"));
        assert!(data.changed().await.is_empty());
        fs::create_dir(&data.folder).unwrap();
        fs::write(data.folder.join("in.txt"), "sent along").unwrap();
        data.fill(b"", false).unwrap();
        assert!(data.changed().await.is_empty());
        fs::write(data.folder.join("out.txt"), "result").unwrap();
        let zip = data.changed().await;
        fs::create_dir(root.path().join("copy")).unwrap();
        archive::unzip(Cursor::new(&zip[..]), &root.path().join("copy")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("copy/out.txt")).unwrap(), "result");
        assert!(data.changed().await.is_empty());
    }
}
