//! Where the host's connections come from.
//!
//! Each carries one message and its answer, and most messages have come by the time their connection is accepted. So
//! the event loop is told of a connection only once there is something to wait for: that takes three system calls and
//! a wake-up for nothing off an event.
#![allow(
    unsafe_code,
    reason = "descriptors are registered, and room is filled that is not initialised before"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, SockFlag, accept4, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest, ReadBuf};
use tokio::net::UnixListener;
use tokio_vsock::VsockListener;

/// The longest `CONNECT` line that is waited for, in bytes.
const CONNECT_LINE: u64 = 32;

/// A socket that the host connects to.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    /// Where the client has to name one first.
    port: Option<u32>,
}

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Incoming {
    stream: Stream,
    /// The one that its `CONNECT` line, which is still to be read, has to name.
    port: Option<u32>,
}

/// A connection of the host's, ready for its message.
#[derive(Debug)]
pub enum Connection {
    Vsock(Stream),
    Unix(BufReader<Stream>),
}

impl Listener {
    /// AF_VSOCK, inside a machine (vsock(7)).
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn vsock(listener: VsockListener) -> io::Result<Self> {
        Self::new(listener.into(), None)
    }

    /// A Unix socket that speaks as Firecracker's vsock device does on the host's side: the client writes
    /// `CONNECT <port>\n`, is answered `OK <port>\n`, and then is connected.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn unix(listener: UnixListener, port: u32) -> io::Result<Self> {
        Self::new(listener.into_std()?.into(), Some(port))
    }

    fn new(socket: OwnedFd, port: Option<u32>) -> io::Result<Self> {
        // SAFETY: an OwnedFd owns its descriptor, the same one for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, port })
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<Incoming> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let accept = |socket: &OwnedFd| Ok(accept4(socket, flags)?);
        let socket = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(Incoming {
            stream: Stream { watched: None, socket },
            port: self.port,
        })
    }
}

impl Incoming {
    /// Brings the connection to where its message begins.
    ///
    /// # Errors
    /// Where the client doesn't keep to `CONNECT`, or says nothing for as long as `patience`.
    pub async fn connect(self, patience: Duration) -> io::Result<Connection> {
        match self.port {
            None => Ok(Connection::Vsock(self.stream)),
            Some(port) => tokio::time::timeout(patience, connect(self.stream, port)).await?,
        }
    }
}

async fn connect(stream: Stream, port: u32) -> io::Result<Connection> {
    let mut stream = BufReader::with_capacity(16 << 10, stream);
    let mut line = Vec::with_capacity(CONNECT_LINE as usize);
    (&mut stream).take(CONNECT_LINE).read_until(b'\n', &mut line).await?;
    if line != format!("CONNECT {port}\n").as_bytes() {
        let line = String::from_utf8_lossy(&line).into_owned();
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it sent {line:?}")));
    }
    stream.write_all(format!("OK {port}\n").as_bytes()).await?;
    Ok(Connection::Unix(stream))
}

/// A stream socket that doesn't block, of whatever family.
#[derive(Debug)]
pub struct Stream {
    /// There once something had to be waited for. Goes before the descriptor that it is of.
    watched: Option<AsyncFd<RawFd>>,
    socket: OwnedFd,
}

impl Stream {
    /// Does `act` as soon as it doesn't answer `WouldBlock`.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        direction: Direction,
        act: impl Fn(RawFd) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let socket = self.socket.as_raw_fd();
        loop {
            let done = match &self.watched {
                None => act(socket),
                Some(watched) => {
                    let mut guard = ready!(match direction {
                        Direction::Read => watched.poll_read_ready(cx),
                        Direction::Write => watched.poll_write_ready(cx),
                    })?;
                    guard
                        .try_io(|_| act(socket))
                        .unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()))
                }
            };
            match done {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.watched.is_none() {
                        // SAFETY: `socket` is open as long as `self` lives, whose fields are dropped in their order.
                        self.watched = Some(unsafe { AsyncFd::register(socket) }?);
                    }
                }
                done => return Poll::Ready(done),
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // SAFETY: nothing that is initialised is made uninitialised: bytes are only written.
        let room = unsafe { buffer.unfilled_mut() };
        let (start, length) = (room.as_mut_ptr(), room.len());
        let count = ready!(self.poll(cx, Direction::Read, |socket| {
            // SAFETY: the kernel writes at most as many bytes as there is room, which outlives the call.
            let count = unsafe { libc::recv(socket, start.cast(), length, 0) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        }))?;
        // SAFETY: so many bytes have been written just now.
        unsafe { buffer.assume_init(count) };
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, Direction::Write, |socket| {
            Ok(send(socket, bytes, MsgFlags::MSG_NOSIGNAL)?)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Write)?))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
