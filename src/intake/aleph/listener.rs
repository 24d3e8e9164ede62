//! Where the host's connections come from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VsockListener, VsockStream};

/// The longest `CONNECT` line that is waited for, in bytes.
const CONNECT_LINE: u64 = 32;

/// A socket that the host connects to.
#[derive(Debug)]
pub enum Listener {
    /// AF_VSOCK, inside a machine (vsock(7)).
    Vsock(VsockListener),
    /// A Unix socket that speaks as Firecracker's vsock device does on the host's side: the client writes
    /// `CONNECT <port>\n`, is answered `OK <port>\n`, and then is connected.
    Unix { listener: UnixListener, port: u32 },
}

/// A connection as it was accepted.
#[derive(Debug)]
pub enum Incoming {
    Vsock(VsockStream),
    /// Its `CONNECT` line is still to be read.
    Unix {
        stream: UnixStream,
        port: u32,
    },
}

/// A connection of the host's, ready for its message.
#[derive(Debug)]
pub enum Connection {
    Vsock(VsockStream),
    Unix(BufReader<UnixStream>),
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<Incoming> {
        Ok(match self {
            Self::Vsock(listener) => Incoming::Vsock(listener.accept().await?.0),
            Self::Unix { listener, port } => Incoming::Unix {
                stream: listener.accept().await?.0,
                port: *port,
            },
        })
    }
}

impl Incoming {
    /// Brings the connection to where its message begins.
    ///
    /// # Errors
    /// Where the client doesn't keep to `CONNECT`, or says nothing for as long as `patience`.
    pub async fn connect(self, patience: Duration) -> io::Result<Connection> {
        match self {
            Self::Vsock(stream) => Ok(Connection::Vsock(stream)),
            Self::Unix { stream, port } => tokio::time::timeout(patience, connect(stream, port)).await?,
        }
    }
}

async fn connect(stream: UnixStream, port: u32) -> io::Result<Connection> {
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
