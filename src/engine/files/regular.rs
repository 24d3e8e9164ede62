//! Where a site's files come from: the file system, of which only regular files are a site's. To open a FIFO is to wait for
//! somebody who writes to it, for ever perhaps, and on a thread that others wait for; a device may do anything.

use std::fs::{self, OpenOptions};
use std::future::{Ready, ready};
use std::io::{self, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio::task::spawn_blocking;
use tower_http::services::fs::{Backend, File};

/// The folders and regular files of the file system.
#[derive(Clone, Default)]
pub(super) struct Regular;

/// A regular file that is open.
pub(super) struct Opened {
    file: tokio::fs::File,
    metadata: fs::Metadata,
}

type Working<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Backend for Regular {
    type File = Opened;
    type Metadata = fs::Metadata;
    type OpenFuture = Working<Opened>;
    type MetadataFuture = Working<fs::Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        Box::pin(blocking(move || {
            // Neither waits, nor makes a terminal this process's own.
            let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(Opened {
                file: file.into(),
                metadata,
            })
        }))
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        Box::pin(blocking(move || {
            let metadata = fs::metadata(path)?;
            if !metadata.is_file() && !metadata.is_dir() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(metadata)
        }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

impl File for Opened {
    type Metadata = fs::Metadata;
    type MetadataFuture<'a> = Ready<io::Result<fs::Metadata>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        ready(Ok(self.metadata.clone()))
    }
}

impl AsyncRead for Opened {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_read(cx, buffer)
    }
}

impl AsyncSeek for Opened {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.file).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.file).poll_complete(cx)
    }
}
