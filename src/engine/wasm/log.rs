//! What guests write to stderr (and, where stdout is no reply, to stdout): line by line into our log, with the event
//! that it belongs to. The last lines are kept, to say what a guest said before it failed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::event::{EventId, Failure};

/// The longest line that is logged as one; a longer one is broken.
const LINE_LIMIT: usize = 4 << 10;
/// How much of the end is kept.
const TAIL_LIMIT: usize = 4 << 10;
/// How much a guest may write at a time.
const WRITE_LIMIT: usize = 64 << 10;

/// One guest's stderr. Clones write to the same.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Lines>>);

struct Lines {
    component: Arc<str>,
    event: EventId,
    stream: &'static str,
    /// A line that has no end yet.
    open: Vec<u8>,
    /// The last of what was written.
    tail: Vec<u8>,
}

impl Log {
    pub(super) fn new(component: &Arc<str>, event: EventId, stream: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            component: component.clone(),
            event,
            stream,
            open: Vec::new(),
            tail: Vec::new(),
        })))
    }

    /// For another event: what comes now is its own.
    pub(super) fn begin(&self, event: EventId) {
        let mut lines = self.0.lock();
        if !lines.open.is_empty() {
            lines.end_line();
        }
        lines.tail.clear();
        lines.event = event;
    }

    /// What comes now is of none of the events that the guest has at once: nobody can tell whose it is.
    pub(super) fn share(&self) {
        let mut lines = self.0.lock();
        if !lines.open.is_empty() {
            lines.end_line();
        }
        lines.event = EventId::NONE;
    }

    /// Logs a failure that no reply can tell of any more.
    pub(super) fn report(&self, failure: &Failure) {
        let lines = self.0.lock();
        let traceback = failure.traceback.as_deref().unwrap_or_default();
        tracing::warn!(target: "guest", component = %lines.component, event = %lines.event, "{failure}\n{traceback}");
    }

    /// Logs what the guest was refused, and remembers it with what the guest itself says: it may be why it fails.
    pub(super) fn refuse(&self, what: &str) {
        let mut lines = self.0.lock();
        tracing::warn!(target: "guest", component = %lines.component, event = %lines.event, "{what}");
        lines.remember(what.as_bytes());
        lines.remember(b"\n");
    }

    /// The last lines, without the newline at the end; empty if nothing was written.
    pub(super) fn tail(&self) -> String {
        String::from_utf8_lossy(self.0.lock().tail.trim_ascii_end()).into_owned()
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        self.remember(bytes);
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        let mut piece = pieces.next().unwrap_or_default();
        for next in pieces {
            self.append(piece);
            self.end_line();
            piece = next;
        }
        self.append(piece);
    }

    fn append(&mut self, mut piece: &[u8]) {
        while self.open.len() + piece.len() > LINE_LIMIT {
            let (now, later) = piece.split_at(LINE_LIMIT - self.open.len());
            self.open.extend_from_slice(now);
            self.end_line();
            piece = later;
        }
        self.open.extend_from_slice(piece);
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(self.open.trim_ascii_end());
        tracing::info!(target: "guest", component = %self.component, event = %self.event, stream = self.stream, "{line}");
        self.open.clear();
    }

    fn remember(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(TAIL_LIMIT)..];
        let excess = (self.tail.len() + new.len()).saturating_sub(TAIL_LIMIT);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(new);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            self.end_line();
        }
    }
}

impl StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl OutputStream for Log {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_LIMIT)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Log {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Log {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    fn log() -> Log {
        Log::new(&Arc::from("test"), event::Context::next().id, "stderr")
    }

    #[test]
    fn the_tail_is_the_end_of_what_was_written() {
        let log = log();
        assert_eq!(log.tail(), "");
        log.0.lock().write(b"first\nsecond\n");
        assert_eq!(log.tail(), "first\nsecond");
        log.0.lock().write(&[b'x'; 3 * TAIL_LIMIT]);
        log.0.lock().write(b"\nend\n");
        assert_eq!(log.tail().len(), TAIL_LIMIT - 1);
        assert!(log.tail().ends_with("x\nend"));
    }

    #[test]
    fn a_line_without_end_is_held_only_up_to_its_limit() {
        let log = log();
        for _ in 0..5 {
            log.0.lock().write(&[b'x'; LINE_LIMIT - 1]);
            assert!(log.0.lock().open.len() <= LINE_LIMIT);
        }
        log.0.lock().write(b"a\nb");
        assert_eq!(log.0.lock().open, b"b");
    }
}
