//! Which files below a folder change (inotify(7)), as a person who edits a program means it: in batches, and without what
//! tools leave behind.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;

/// One save is several changes: this long after the last of them, it is over.
const QUIET: Duration = Duration::from_millis(80);

/// A batch is no longer than this, however much changes.
const LONGEST: Duration = Duration::from_secs(2);

/// Folders whose content nobody edits, beside those that are hidden.
const FOLDERS: [&str; 5] = ["node_modules", "target", "__pycache__", "venv", "site-packages"];

/// Files that programs and editors write, by how they end, beside those that are hidden.
const FILES: [&str; 13] = [
    "~", ".pyc", ".swp", ".swx", ".tmp", ".log", ".db", ".sqlite", ".sqlite3", "-wal", "-shm", "-journal", ".cwasm",
];

/// Changes that are not told yet; the thread that reads them has room for so many, and the kernel for more.
const ROOM: usize = 1024;

/// What changes below a folder.
pub struct Files {
    changes: mpsc::Receiver<PathBuf>,
    /// What has changed and was not told yet.
    pending: BTreeSet<PathBuf>,
}

impl Files {
    /// Watches `root` and all folders below it.
    ///
    /// # Errors
    /// Those of inotify_init1(2), and of inotify_add_watch(2) for `root`.
    pub fn watch(root: &Path) -> io::Result<Self> {
        let mut folders = Folders {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
            paths: HashMap::new(),
            root: root.to_owned(),
            above: None,
        };
        folders.add(root)?;
        folders.look_from_above();
        let (sender, changes) = mpsc::channel(ROOM);
        std::thread::Builder::new()
            .name("watches files".to_owned())
            .spawn(move || folders.follow(&sender))?;
        Ok(Self {
            changes,
            pending: BTreeSet::new(),
        })
    }

    /// The files that have changed, once some have and no more do. May be dropped and called again.
    ///
    /// # Errors
    /// They can't be watched any more, which has been told.
    pub async fn changed(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let gone = || io::Error::other("the thread that watches files has ended");
        if self.pending.is_empty() {
            let first = self.changes.recv().await.ok_or_else(gone)?;
            self.pending.insert(first);
        }
        let end = tokio::time::Instant::now() + LONGEST;
        while tokio::time::Instant::now() < end
            && let Ok(next) = tokio::time::timeout(QUIET, self.changes.recv()).await
        {
            self.pending.insert(next.ok_or_else(gone)?);
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Takes `product`, which was made and not edited, for unchanged.
    pub async fn forget(&mut self, product: &Path) {
        while let Ok(Some(path)) = tokio::time::timeout(QUIET, self.changes.recv()).await {
            self.pending.insert(path);
        }
        self.pending.retain(|path| !path.starts_with(product));
    }
}

/// The folders that are watched, and the thread's work on them.
struct Folders {
    inotify: Inotify,
    paths: HashMap<WatchDescriptor, PathBuf>,
    root: PathBuf,
    /// The folder that the root is in: builds take the root away, and make it again.
    above: Option<WatchDescriptor>,
}

impl Folders {
    /// Sends every path that changes, until nobody listens.
    fn follow(&mut self, changes: &mpsc::Sender<PathBuf>) {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!("changes of files can't be seen any more: {error}");
                    return;
                }
            };
            for path in events.into_iter().filter_map(|event| self.path_of(event)) {
                if changes.blocking_send(path).is_err() {
                    return;
                }
            }
        }
    }

    fn path_of(&mut self, event: InotifyEvent) -> Option<PathBuf> {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.paths.remove(&event.wd);
            return None;
        }
        let name = event.name?;
        if self.above == Some(event.wd) {
            let root = self.root.clone();
            return (root.file_name() == Some(&name) && self.add(&root).is_ok()).then_some(root);
        }
        let path = self.paths.get(&event.wd)?.join(&name);
        let wanted = if event.mask.contains(AddWatchFlags::IN_ISDIR) {
            // What is in a new folder already, or in one that is moved away, has no event of its own. A new one that is gone
            // again has nothing in it.
            !skips(&name) && (event.mask.contains(AddWatchFlags::IN_MOVED_FROM) || self.add(&path).is_ok())
        } else {
            is_edited(&name)
        };
        wanted.then_some(path)
    }

    /// Where it can't be looked from there, a root that was taken away is seen no more.
    fn look_from_above(&mut self) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        self.above = self
            .root
            .parent()
            .and_then(|above| self.inotify.add_watch(above, flags).ok());
    }

    fn add(&mut self, folder: &Path) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ONLYDIR;
        let watch = self.inotify.add_watch(folder, flags)?;
        self.paths.insert(watch, folder.to_owned());
        for entry in std::fs::read_dir(folder)?.flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !skips(&entry.file_name()) {
                self.add(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn skips(folder: &OsStr) -> bool {
    let name = folder.to_string_lossy();
    name.starts_with('.') || FOLDERS.contains(&&*name)
}

fn is_edited(file: &OsStr) -> bool {
    let name = file.to_string_lossy();
    // Vim tries with 4913 whether it may write.
    !name.starts_with('.') && name != "4913" && !FILES.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn edits_are_seen_and_leavings_are_not() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::create_dir_all(root.path().join("node_modules")).unwrap();
        let mut files = Files::watch(root.path()).unwrap();
        let write = |name: &str| std::fs::write(root.path().join(name), "x").unwrap();
        for name in ["node_modules/x.js", "a/x.pyc", "a/.x.swp", "data.db"] {
            write(name);
        }
        write("a/b/main.py");
        let changed = files.changed().await.unwrap();
        assert_eq!(
            changed.into_iter().collect::<Vec<_>>(),
            [root.path().join("a/b/main.py")]
        );
        // A folder that comes with files in it, as `git switch` and editors make them.
        std::fs::create_dir(root.path().join("new")).unwrap();
        write("new/index.mjs");
        let changed = files.changed().await.unwrap();
        assert!(changed.contains(&root.path().join("new")), "{changed:?}");
        std::fs::rename(root.path().join("a/b/main.py"), root.path().join("a/b/other.py")).unwrap();
        let changed = files.changed().await.unwrap();
        assert_eq!(changed.len(), 2, "{changed:?}");
        std::fs::rename(root.path().join("a"), root.path().join("node_modules/a")).unwrap();
        let changed = files.changed().await.unwrap();
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), [root.path().join("a")]);
    }

    #[tokio::test]
    async fn a_root_that_is_made_anew_is_watched_on() {
        let above = tempfile::tempdir().unwrap();
        let root = above.path().join("dist");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("main.py"), "x").unwrap();
        let mut files = Files::watch(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(files.changed().await.unwrap().contains(&root.join("main.py")));
        std::fs::write(above.path().join("other"), "x").unwrap();
        std::fs::create_dir(&root).unwrap();
        let changed = files.changed().await.unwrap();
        assert!(changed.len() == 1 && changed.contains(&root), "{changed:?}");
        std::fs::write(root.join("main.py"), "x").unwrap();
        let changed = files.changed().await.unwrap();
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), [root.join("main.py")]);
    }
}
