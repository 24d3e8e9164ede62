//! The place that an image will be at: until it is whole, a temporary file beside it, so that a build that fails leaves
//! what was there before.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tempfile::NamedTempFile;

/// The temporary files that there are.
static BEGUN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what was begun, for a process that is to end now.
pub fn abandon() {
    for path in BEGUN.lock().drain(..) {
        let _ = fs::remove_file(path);
    }
}

/// A file that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {path}: {source}", path = .path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// An image's file while it is written.
pub struct Target<'o> {
    output: &'o Path,
    /// Where it really is: a link stays, and what it leads to is written.
    place: PathBuf,
    file: NamedTempFile,
}

impl<'o> Target<'o> {
    /// Makes a temporary file beside `output`.
    ///
    /// # Errors
    /// The folder isn't there or can't be written to, or `output` is there and no file.
    pub fn create(output: &'o Path) -> Result<Self, WriteError> {
        let write_error = |source| WriteError {
            path: output.to_path_buf(),
            source,
        };
        let place = output.canonicalize().unwrap_or_else(|_| output.to_path_buf());
        match place.metadata() {
            Ok(there) if there.is_dir() => return Err(write_error(io::ErrorKind::IsADirectory.into())),
            // A file in the place of /dev/null or of a disk would be in everybody's way.
            Ok(there) if !there.is_file() => {
                return Err(write_error(io::Error::other(
                    "a device, a pipe or a socket is there, which stays",
                )));
            }
            _ => {}
        }
        let folder = place
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".image-")
            .tempfile_in(folder)
            .map_err(write_error)?;
        let mut begun = BEGUN.lock();
        begun.retain(|path| path.exists());
        begun.push(file.path().to_owned());
        drop(begun);
        Ok(Self { output, place, file })
    }

    /// What the image will be called, for errors.
    pub fn output(&self) -> &'o Path {
        self.output
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// The same by its name, for tools.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Something went wrong with this file.
    pub fn error(&self, source: io::Error) -> WriteError {
        WriteError {
            path: self.output.to_path_buf(),
            source,
        }
    }

    /// The file is whole: puts it in its place. Returns its size in bytes.
    ///
    /// # Errors
    /// The disk is full, or the place was taken away meanwhile.
    pub fn finish(self) -> Result<u64, WriteError> {
        let finished = || {
            self.file.as_file().set_permissions(Permissions::from_mode(0o644))?;
            self.file.as_file().sync_all()?;
            Ok(self.file.as_file().metadata()?.len())
        };
        let bytes = finished().map_err(|source| self.error(source))?;
        let output = self.output;
        let persisted = self.file.persist(&self.place).map_err(|error| WriteError {
            path: output.to_path_buf(),
            source: error.error,
        });
        persisted.map(|_| bytes)
    }
}
