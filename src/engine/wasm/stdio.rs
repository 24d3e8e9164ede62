//! A CGI guest's stdin, which is the request's body, and its stdout, which becomes the reply.
//!
//! Both ends are polled by the one task of the event, so bytes move when they are asked for: nothing is read ahead,
//! and a guest that writes faster than its client reads is held back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::event::{Body, BodyError};

/// How much of stdout is held before the guest has to wait for the client, in bytes.
pub(super) const STDOUT_LIMIT: usize = 64 << 10;

/// A guest's stdin. Clones read from the same.
#[derive(Clone)]
pub(super) struct Stdin(Arc<Mutex<Reading>>);

struct Reading {
    body: Body,
    /// The rest of the piece that was read last.
    piece: Bytes,
    broken: Option<BodyError>,
    ended: bool,
}

impl Stdin {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Reading {
            body,
            piece: Bytes::new(),
            broken: None,
            ended: false,
        })))
    }
}

impl Reading {
    /// Until there is a piece, an error or the end.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.piece.is_empty() && self.broken.is_none() && !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.ended = true,
                Some(Err(error)) => {
                    self.broken = Some(error);
                    self.ended = true;
                }
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
            }
        }
        Poll::Ready(())
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut reading = self.0.lock();
        if reading.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(Bytes::new());
        }
        if let Some(error) = reading.broken.take() {
            return Err(StreamError::LastOperationFailed(wasmtime::format_err!(
                "the request's body broke off: {error}"
            )));
        }
        if reading.piece.is_empty() {
            return Err(StreamError::Closed);
        }
        let length = size.min(reading.piece.len());
        Ok(reading.piece.split_to(length))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.0.lock().poll_ready(cx)).await;
    }
}

impl AsyncRead for Stdin {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut reading = self.0.lock();
        ready!(reading.poll_ready(cx));
        if let Some(error) = reading.broken.take() {
            return Poll::Ready(Err(io::Error::other(error)));
        }
        let length = buffer.remaining().min(reading.piece.len());
        buffer.put_slice(&reading.piece.split_to(length));
        Poll::Ready(Ok(()))
    }
}

/// A guest's stdout. Clones write to, and take from, the same; as a body it is what was written and not yet taken, and
/// pending when there is nothing: whoever runs the guest knows when it is over.
#[derive(Clone, Default)]
pub(super) struct Stdout(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    buffer: BytesMut,
    /// The guest, if it waits for room.
    waiting: Option<Waker>,
}

impl Stdout {
    /// Looks at what was written and not yet taken; `read` may cut off its beginning.
    pub(super) fn inspect<T>(&self, read: impl FnOnce(&mut BytesMut) -> T) -> T {
        let mut written = self.0.lock();
        let result = read(&mut written.buffer);
        written.wake();
        result
    }

    /// All that was written and not yet taken.
    pub(super) fn take(&self) -> Bytes {
        self.inspect(|buffer| buffer.split().freeze())
    }
}

impl Written {
    fn room(&self) -> usize {
        STDOUT_LIMIT.saturating_sub(self.buffer.len())
    }

    fn wake(&mut self) {
        if self.room() > 0
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
    }

    fn poll_room(&mut self, cx: &Context<'_>) -> Poll<usize> {
        match self.room() {
            0 => {
                self.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(room),
        }
    }
}

impl HttpBody for Stdout {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bytes = self.take();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl OutputStream for Stdout {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut written = self.0.lock();
        if bytes.len() > written.room() {
            return Err(StreamError::trap("wrote more to stdout than check-write allowed"));
        }
        written.buffer.extend_from_slice(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.lock().room())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdout {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.0.lock().poll_room(cx)).await;
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = self.0.lock();
        let room = ready!(written.poll_room(cx));
        let length = room.min(bytes.len());
        written.buffer.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
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
    use http_body_util::StreamBody;
    use tokio::io::AsyncWriteExt as _;

    fn pieces(pieces: Vec<Result<&'static str, BodyError>>) -> Stdin {
        let frames = pieces
            .into_iter()
            .map(|piece| piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))));
        Stdin::new(Body::stream(StreamBody::new(futures_util::stream::iter(frames))))
    }

    #[tokio::test]
    async fn stdin_is_the_body_in_order_and_then_its_end() {
        let mut stdin = pieces(vec![Ok("hello "), Ok(""), Ok("world")]);
        assert_eq!(stdin.read(2).unwrap(), "he");
        stdin.ready().await;
        assert_eq!(stdin.clone().read(100).unwrap(), "llo ");
        let mut rest = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stdin, &mut rest)
            .await
            .unwrap();
        assert_eq!(rest, "world");
        assert!(matches!(stdin.read(1), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error_and_no_end() {
        let mut stdin = pieces(vec![Ok("half"), Err("gone".into())]);
        assert_eq!(stdin.read(9).unwrap(), "half");
        assert!(matches!(stdin.read(9), Err(StreamError::LastOperationFailed(_))));
        assert!(matches!(stdin.read(9), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn stdout_holds_the_guest_back_until_it_is_taken_from() {
        let stdout = Stdout::default();
        let mut guest = stdout.clone();
        let written = tokio::spawn(async move {
            guest.write_all(&[b'x'; STDOUT_LIMIT + 1]).await.unwrap();
            OutputStream::check_write(&mut guest).unwrap()
        });
        let mut taken = 0;
        while taken <= STDOUT_LIMIT {
            tokio::task::yield_now().await;
            let bytes = stdout.take();
            assert!(bytes.len() <= STDOUT_LIMIT);
            taken += bytes.len();
        }
        assert_eq!(taken, STDOUT_LIMIT + 1);
        assert!(written.await.unwrap() >= STDOUT_LIMIT - 1);
    }
}
