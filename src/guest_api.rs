//! The way from a program to its host's API: a Unix socket in the machine, and for each client connection one vsock
//! connection to the host, plain bytes both ways (the API speaks HTTP/1.1 and needs nobody to read it on the way).
//!
//! ```text
//! program --Unix socket--> Bridge --vsock (2, 53)--> the VMM's socket V_53 --> the host's API
//! ```

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_vsock::{VsockAddr, VsockStream};

/// The socket under its own name.
pub const SOCKET: &str = "/run/polyinit/api.sock";
/// The variable that tells programs where the socket is.
pub const VARIABLE: &str = "ALEPH_API_UNIX_SOCKET";
/// The socket under the name that the network's SDK looks for.
pub const SOCKET_OF_SDK: &str = "/tmp/socat-socket";

/// The host's context identifier, as every guest sees it (vsock(7), VMADDR_CID_HOST).
const HOST: u32 = 2;
const PORT: u32 = 53;

/// Connections carried at once: 200 that are at work, and some that the network's SDK keeps for its next request. More
/// wait in the socket's backlog, where connect(2) waits with them.
pub const CONNECTIONS: usize = 256;

/// For the host to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Held for each direction of a connection: 32 KiB a connection, 8 MiB at most.
const BUFFER: usize = 16 << 10;

/// A connection on which neither side has said anything for this long is closed, as HTTP servers do: a forgotten one
/// would hold one of the [`CONNECTIONS`] for ever.
const IDLE: Duration = Duration::from_secs(600);

/// How often a client that has said all it had to say, and waits, is looked at.
const GONE_PERIOD: Duration = Duration::from_millis(100);

/// For a client that is told of a failure to take it in.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes of its request that are read and passed over meanwhile.
const FAREWELL_LIMIT: u64 = 1 << 20;

/// Why there is no socket for programs.
#[derive(Debug, thiserror::Error)]
#[error("the guest API's socket {path} can't be made: {source}", path = .path.display())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// Listens on `path`, in place of a socket that an earlier run left there. Programs of every user may connect.
///
/// # Errors
/// When the socket can't be made there.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let listen = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    };
    listen().map_err(|source| BindError {
        path: path.to_owned(),
        source,
    })
}

/// A new connection to the API of this machine's host.
///
/// # Errors
/// When the host doesn't listen, or the machine has no vsock.
pub async fn connect_to_host() -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(HOST, PORT)).await
}

/// Carries what comes in at any number of sockets to one host.
#[derive(Debug)]
pub struct Bridge<C> {
    connect: C,
    free: Arc<Semaphore>,
    idle: Duration,
}

impl<C, F, S> Bridge<C>
where
    C: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// A bridge whose far end `connect` opens: [`connect_to_host`] in a machine.
    pub fn new(connect: C) -> Self {
        Self::with_limits(connect, CONNECTIONS, IDLE)
    }

    fn with_limits(connect: C, connections: usize, idle: Duration) -> Self {
        Self {
            connect,
            free: Arc::new(Semaphore::new(connections)),
            idle,
        }
    }

    /// Serves the clients of `listener` until dropped; connections that are being carried go on. Several listeners may
    /// be served at once, and share the limit.
    pub async fn serve(&self, listener: UnixListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else {
                return; // Nobody closes the semaphore.
            };
            match listener.accept().await {
                Ok((client, _)) => {
                    let connect = self.connect.clone();
                    let idle = self.idle;
                    tokio::spawn(async move {
                        carry(client, connect, idle).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    // Out of descriptors or memory, or a client that has gone: the next one may fare better.
                    tracing::warn!("the guest API's socket can't accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

/// Carries one connection until both ends have said all they had to say, one of them fails, the client has gone, or both
/// are silent for too long. Either end may finish first: its end-of-file is passed on, and the other way stays open.
async fn carry<C, F, S>(client: UnixStream, connect: C, idle: Duration)
where
    C: Fn() -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connected = tokio::time::timeout(CONNECT_DEADLINE, connect()).await;
    let host = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(host) => host,
        Err(e) => {
            tracing::warn!("the host's guest API (vsock port {PORT}) can't be reached: {e}");
            return turn_away(client, &e).await;
        }
    };
    let progress = AtomicU64::new(0);
    let (from_client, to_client) = client.into_split();
    let (from_host, to_host) = tokio::io::split(host);
    let both = async {
        let mut up = pin!(pass(from_client, to_host, &progress));
        let mut down = pin!(pass(from_host, to_client, &progress));
        tokio::select! {
            client = &mut up => {
                let client = client?;
                tokio::select! {
                    passed = down => passed.map(drop),
                    () = gone(client.as_ref()) => Ok(()),
                }
            }
            passed = &mut down => {
                passed?;
                up.await.map(drop)
            }
        }
    };
    tokio::select! {
        ended = both => {
            if let Err(e) = ended {
                tracing::debug!("a connection to the guest API broke: {e}");
            }
        }
        () = standstill(&progress, idle) => tracing::debug!("closed an idle connection to the guest API"),
    }
}

/// Passes on all that `from` says and its end-of-file, and counts the times that bytes pass. Gives `from` back.
async fn pass<R, W>(from: R, mut to: W, progress: &AtomicU64) -> io::Result<R>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut from = BufReader::with_capacity(BUFFER, from);
    loop {
        let bytes = from.fill_buf().await?;
        let Some(length) = Some(bytes.len()).filter(|length| *length > 0) else {
            break;
        };
        progress.fetch_add(1, Ordering::Relaxed);
        to.write_all(bytes).await?;
        progress.fetch_add(1, Ordering::Relaxed);
        from.consume(length);
    }
    to.shutdown().await?;
    Ok(from.into_inner())
}

/// Waits until nobody is at a client's end any more, which is more than that it has nothing more to say: `close` against
/// `shutdown`. VMMs don't tell the host of one end-of-file, and a host that hears of none waits for the next request for
/// ever. The kernel wakes nobody up for it who waits for bytes or for room.
async fn gone(client: &UnixStream) {
    loop {
        let mut descriptors = [PollFd::new(client.as_fd(), PollFlags::empty())];
        let looked = poll(&mut descriptors, PollTimeout::ZERO);
        let is_gone = descriptors[0]
            .revents()
            .is_some_and(|seen| seen.contains(PollFlags::POLLHUP));
        if looked.is_err() || is_gone {
            return;
        }
        tokio::time::sleep(GONE_PERIOD).await;
    }
}

/// Returns when `progress` has stood still for `idle`, or up to twice as long.
async fn standstill(progress: &AtomicU64, idle: Duration) {
    let mut before = u64::MAX;
    loop {
        let now = progress.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
        tokio::time::sleep(idle).await;
    }
}

/// Tells a client, in the API's own language, that there is nobody at the other end.
async fn turn_away(mut client: UnixStream, cause: &io::Error) {
    let body = format!("The host's guest API (vsock port {PORT}) can't be reached: {cause}\n");
    let reply = format!(
        "HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let farewell = async {
        client.write_all(reply.as_bytes()).await?;
        client.shutdown().await?;
        // Closing with the request unread would show the client an error instead of the reply.
        tokio::io::copy(&mut (&mut client).take(FAREWELL_LIMIT), &mut tokio::io::sink()).await
    };
    // A client that doesn't take it in has its own troubles.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll};
    use std::time::Instant;

    use tokio::io::ReadBuf;

    /// Fails a test that waits for ever.
    async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), work)
            .await
            .unwrap_or_else(|_| panic!("{what}: waited too long"))
    }

    struct World {
        _folder: tempfile::TempDir,
        socket: PathBuf,
        host: UnixListener,
    }

    /// A bridge from one Unix socket to another, which stands for the host.
    fn bridge(connections: usize, idle: Duration) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("deeper/api.sock");
        let listener = bind(&socket).expect("a socket");
        let far = folder.path().join("host.sock");
        let host = bind(&far).expect("a socket");
        let bridge = Bridge::with_limits(move || UnixStream::connect(far.clone()), connections, idle);
        tokio::spawn(async move { bridge.serve(listener).await });
        World {
            _folder: folder,
            socket,
            host,
        }
    }

    #[tokio::test]
    async fn each_end_may_finish_first_and_the_other_still_speaks() {
        let world = bridge(CONNECTIONS, IDLE);
        for client_first in [true, false] {
            let mut client = UnixStream::connect(&world.socket).await.expect("connected");
            let (mut host, _) = soon("the host's end", world.host.accept()).await.expect("accepted");
            let (first, second) = if client_first {
                (&mut client, &mut host)
            } else {
                (&mut host, &mut client)
            };
            first.write_all(b"question").await.expect("written");
            first.shutdown().await.expect("half closed");
            let mut heard = String::new();
            soon("end of question", second.read_to_string(&mut heard))
                .await
                .expect("read");
            assert_eq!(heard, "question");
            second.write_all(b"answer").await.expect("written");
            second.shutdown().await.expect("half closed");
            heard.clear();
            soon("end of answer", first.read_to_string(&mut heard))
                .await
                .expect("read");
            assert_eq!(heard, "answer");
        }
    }

    #[tokio::test]
    async fn megabytes_pass_unchanged_and_a_slow_reader_holds_up_the_writer() {
        const SIZE: usize = 8 << 20;
        let world = bridge(CONNECTIONS, IDLE);
        let mut client = UnixStream::connect(&world.socket).await.expect("connected");
        let (mut host, _) = soon("the host's end", world.host.accept()).await.expect("accepted");
        let sent: Vec<u8> = (0..SIZE).map(|i| (i / 7 % 251) as u8).collect();
        let expected = sent.clone();
        let written = Arc::new(AtomicUsize::new(0));
        let progress = Arc::clone(&written);
        let writer = tokio::spawn(async move {
            for piece in sent.chunks(4096) {
                client.write_all(piece).await.expect("written");
                progress.fetch_add(piece.len(), Ordering::SeqCst);
            }
            client.shutdown().await.expect("half closed");
        });
        let mut first = [0; 4096];
        soon("the first piece", host.read_exact(&mut first))
            .await
            .expect("read");
        // Nobody reads on: what fits into sockets and buffers is a small part of the whole.
        let mut before = 0;
        soon("a standstill", async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let now = written.load(Ordering::SeqCst);
                if now == before {
                    break;
                }
                before = now;
            }
        })
        .await;
        assert!(before < SIZE / 2, "{before} bytes were taken in");

        let mut rest = Vec::new();
        soon("all of it", host.read_to_end(&mut rest)).await.expect("read");
        assert!(first == expected[..4096] && rest == expected[4096..]);
        soon("the writer", writer).await.expect("no panic");
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait_for_one_to_end() {
        let world = bridge(2, IDLE);
        let mut clients = Vec::new();
        let mut hosts = Vec::new();
        for _ in 0..2 {
            clients.push(UnixStream::connect(&world.socket).await.expect("connected"));
            hosts.push(soon("the host's end", world.host.accept()).await.expect("accepted"));
        }
        let mut third = UnixStream::connect(&world.socket).await.expect("in the backlog");
        third.write_all(b"hello").await.expect("written");
        let waited = tokio::time::timeout(Duration::from_millis(50), world.host.accept()).await;
        assert!(waited.is_err(), "a third connection was carried");

        drop(clients.pop());
        drop(hosts.pop());
        let (mut host, _) = soon("the host's end", world.host.accept()).await.expect("accepted");
        let mut heard = [0; 5];
        soon("the third's words", host.read_exact(&mut heard))
            .await
            .expect("read");
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_ends_its_connection_though_the_host_hears_no_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("api.sock");
        let listener = bind(&socket).expect("a socket");
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        // A way to the host that keeps an end-of-file to itself, as VMMs do.
        let bridge = Bridge::with_limits(
            move || {
                let (near, far) = tokio::io::duplex(64);
                let _ = tell.send(far);
                std::future::ready(Ok(Deaf(near)))
            },
            1,
            IDLE,
        );
        tokio::spawn(async move { bridge.serve(listener).await });
        for _ in 0..3 {
            let mut client = UnixStream::connect(&socket).await.expect("connected");
            client.write_all(b"hello").await.expect("written");
            let mut host = soon("the host's end", told.recv()).await.expect("a connection");
            let mut heard = [0; 5];
            soon("its words", host.read_exact(&mut heard)).await.expect("read");
            // Half closed it still hears.
            client.shutdown().await.expect("half closed");
            host.write_all(b"world").await.expect("written");
            soon("an answer", client.read_exact(&mut heard)).await.expect("read");
            drop(client);
            let mut rest = Vec::new();
            soon("the end", host.read_to_end(&mut rest)).await.expect("read");
        }
    }

    struct Deaf(tokio::io::DuplexStream);

    impl AsyncRead for Deaf {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn silence_ends_a_connection_and_speech_keeps_it() {
        let idle = Duration::from_millis(200);
        let world = bridge(1, idle);
        let mut client = UnixStream::connect(&world.socket).await.expect("connected");
        let (mut host, _) = soon("the host's end", world.host.accept()).await.expect("accepted");
        let start = Instant::now();
        let mut heard = [0; 1];
        // Only one side speaks, for longer than silence would be borne.
        while start.elapsed() < idle * 4 {
            host.write_all(b"x").await.expect("written");
            soon("a byte", client.read_exact(&mut heard)).await.expect("read");
            tokio::time::sleep(idle / 10).await;
        }
        let closed = soon("the end", client.read(&mut heard)).await.expect("read");
        assert_eq!(closed, 0);
        assert_eq!(soon("the end", host.read(&mut heard)).await.expect("read"), 0);
    }

    #[tokio::test]
    async fn a_client_of_an_absent_host_gets_an_answer_and_the_next_one_too() {
        let world = bridge(1, IDLE);
        drop(world.host);
        for _ in 0..3 {
            let mut client = UnixStream::connect(&world.socket).await.expect("connected");
            client
                .write_all(b"GET /about/login HTTP/1.1\r\nhost: localhost\r\n\r\n")
                .await
                .expect("written");
            let mut reply = String::new();
            soon("a reply", client.read_to_string(&mut reply)).await.expect("whole");
            assert!(reply.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{reply}");
            assert!(reply.contains("can't be reached: Connection refused"), "{reply}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_open_to_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api.sock");
        drop(bind(&path).expect("a socket"));
        let _second = bind(&path).expect("again");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let error = bind(Path::new("/dev/null/api.sock"))
            .expect_err("no folder")
            .to_string();
        assert!(
            error.starts_with("the guest API's socket /dev/null/api.sock can't be made: "),
            "{error}"
        );
    }
}
