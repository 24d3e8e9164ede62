//! One HTTP/1.1 connection to a program, driven by the task of the event that uses it: no task of its own that would
//! have to be woken for every request and every reply. Between events nobody drives it; whoever takes it next looks
//! first whether the program has closed it.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::event::Body;

/// The kernel drops what asks for a connection while the queue of those that the program has not accepted is full, and
/// TCP asks again only after a second. Where we could not tell that it is full, we ask again this soon, then twice as
/// late.
const CONNECT_PATIENCE: Duration = Duration::from_millis(20);
const CONNECT_PATIENCE_LIMIT: Duration = Duration::from_millis(640);

/// What writes and reads.
enum Io {
    /// In a box, because it goes from event to event and is large.
    Http(Box<http1::Connection<TokioIo<Socket>, Body>>),
    /// One that may go on in another protocol.
    Upgradeable(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
}

/// An open connection.
pub struct Connection {
    sender: http1::SendRequest<Body>,
    /// Gone once the connection is over.
    io: Option<Io>,
}

impl Connection {
    /// Connects to the first of `addresses` that can be reached. Takes as long as the program does not accept.
    pub async fn open(addresses: &[SocketAddr]) -> io::Result<Self> {
        let mut patience = CONNECT_PATIENCE;
        let stream = loop {
            match tokio::time::timeout(patience, TcpStream::connect(addresses)).await {
                Ok(connected) => break connected?,
                Err(_) => patience = (2 * patience).min(CONNECT_PATIENCE_LIMIT),
            }
        };
        stream.set_nodelay(true)?;
        let (sender, io) = http1::Builder::new()
            // Field names are the same in any case (RFC 9110, section 5.1), but a program of ten lines may only know
            // the one that browsers write.
            .title_case_headers(true)
            // What was valid once and is still written by old programs is for us to put right (RFC 9112, sections 5.1 and 5.2).
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(TokioIo::new(Socket { stream, is_over: false }))
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            sender,
            io: Some(Io::Http(Box::new(io))),
        })
    }

    /// The same connection, for a request after which it may be one of another protocol.
    #[must_use]
    pub fn upgradeable(self) -> Self {
        let io = self.io.map(|io| match io {
            Io::Http(io) => Io::Upgradeable(Box::pin(io.with_upgrades())),
            upgradeable => upgradeable,
        });
        Self { io, ..self }
    }

    /// Sends `request` and waits for the head of the reply.
    ///
    /// # Errors
    /// The connection broke, or what came back is no HTTP; with the request, if nothing of it was written.
    pub async fn exchange(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        let mut reply = pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            // First the connection, which writes and reads; then what it has for us.
            poll_io(&mut self.io, cx);
            reply.as_mut().poll(cx)
        })
        .await
    }

    /// Whether the connection is good for another request, as far as can be told.
    pub fn poll_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        poll_io(&mut self.io, cx);
        self.io.is_some() && self.sender.is_ready()
    }

    /// Drives the connection until it is over as one of HTTP: what was agreed on with `101` begins then.
    pub async fn finish(mut self) {
        std::future::poll_fn(|cx| {
            poll_io(&mut self.io, cx);
            if self.io.is_none() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The next piece of a reply that came over this connection.
    pub fn poll_piece(
        &mut self,
        reply: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // Asking first tells the connection that we want a piece, which is when it reads one.
        if let Poll::Ready(piece) = Pin::new(&mut *reply).poll_frame(cx) {
            return Poll::Ready(piece);
        }
        poll_io(&mut self.io, cx);
        Pin::new(reply).poll_frame(cx)
    }
}

fn poll_io(io: &mut Option<Io>, cx: &mut Context<'_>) {
    // What ended it is told to whoever waits for a reply or a piece of one.
    let is_over = match io {
        Some(Io::Http(connection)) => Pin::new(&mut **connection).poll(cx).is_ready(),
        Some(Io::Upgradeable(connection)) => connection.as_mut().poll(cx).is_ready(),
        None => return,
    };
    if is_over {
        *io = None;
    }
}

/// The connection's bytes. A program may answer without having read the request to its end, and close: the rest can't be
/// written then, while the reply is there to be read. So what can't be written counts as written, until reading has told
/// how the connection ended.
struct Socket {
    stream: TcpStream,
    /// There is nothing more to be read.
    is_over: bool,
}

impl Socket {
    fn written(&self, result: io::Result<usize>, offered: usize) -> io::Result<usize> {
        match result {
            Err(_) if !self.is_over => Ok(offered),
            result => result,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        self.is_over |= read.is_err() || buffer.filled().len() == before;
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.written(result, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces));
        Poll::Ready(self.written(result, pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
