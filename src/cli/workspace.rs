//! The folder for what a program is unpacked to, and for its sockets. Most programs need none, and one that is killed with
//! SIGKILL then leaves none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;

use super::serve::Stop;
use super::{CommandError, Ended};

/// How often a folder is removed in which somebody may just have begun with a file.
const ATTEMPTS: usize = 3;

/// Removed with this, where it was made; `None` once it is not to be made any more.
#[derive(Default)]
pub(super) struct Workspace(OnceLock<Option<TempDir>>);

impl Workspace {
    /// The folder, which is made now if it is not there yet.
    ///
    /// # Errors
    /// A sentence that says that there is no place for one.
    pub fn folder(&self) -> io::Result<&Path> {
        let mut failed = io::Error::from(io::ErrorKind::Interrupted);
        let folder = self.0.get_or_init(|| make().map_err(|error| failed = error).ok());
        folder.as_ref().map(TempDir::path).ok_or(failed)
    }

    /// The folder, where somebody needed it.
    pub fn made(&self) -> Option<&Path> {
        self.0.get()?.as_ref().map(TempDir::path)
    }

    /// As [`Workspace::folder`], for whoever unpacks to it.
    pub fn place(&self) -> io::Result<PathBuf> {
        self.folder().map(Path::to_owned)
    }

    /// Removes it although somebody may still be at work in it, since this process is to end now.
    fn abandon(&self) {
        let Some(folder) = self.0.get_or_init(|| None) else {
            return;
        };
        // Under another name nothing more comes to it.
        let ended = folder.path().with_extension("ended");
        let folder = match std::fs::rename(folder.path(), &ended) {
            Ok(()) => &ended,
            Err(_) => folder.path(),
        };
        for _ in 0..ATTEMPTS {
            if std::fs::remove_dir_all(folder).is_ok() {
                break;
            }
        }
    }
}

/// Does `work`, which may take long and waits for nobody, on a thread that may. Told to `stop` meanwhile, it leaves nothing
/// in its workspace, after `abandon` has ended what else is at work, and the process is to end.
pub(super) async fn unless_stopped<T: Send + 'static>(
    stop: &mut Stop,
    abandon: impl FnOnce(),
    work: impl FnOnce(&Arc<Workspace>) -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    let workspace = Arc::new(Workspace::default());
    let theirs = workspace.clone();
    let work = tokio::task::spawn_blocking(move || work(&theirs));
    tokio::select! {
        done = work => done?,
        () = stop.asked() => {
            abandon();
            workspace.abandon();
            Err(Interrupted.into())
        }
    }
}

/// Why a command came to nothing, where it was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted before all was done")]
pub(super) struct Interrupted;

impl Interrupted {
    /// An error as it is, or the exit `code` of a command that has nothing to say of being interrupted.
    pub(super) fn ends_with(code: u8) -> impl FnOnce(CommandError) -> CommandError {
        move |error| match error.is::<Self>() {
            true => Ended(code).into(),
            false => error,
        }
    }
}

/// In a container with a read-only root, shared memory is often the one place that can be written to.
fn make() -> io::Result<TempDir> {
    let folder = |place: &Path| tempfile::Builder::new().prefix("polyinit-").tempdir_in(place);
    let usual = std::env::temp_dir();
    folder(&usual)
        .or_else(|error| folder(Path::new("/dev/shm")).map_err(|_| error))
        .map_err(|error| {
            let reason = io::Error::from(error.kind());
            io::Error::other(format!(
                "there is no place for temporary files in {}: {reason}. TMPDIR names another",
                usual.display()
            ))
        })
}
