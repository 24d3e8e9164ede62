//! How long a connection's client is waited for: to ask for something, to take what it is sent, and to leave. hyper has a
//! limit of its own for a request's head, but only from when it knows which HTTP it is, which a client can keep it from by
//! saying nothing; none for replies, whose programs would be at work for as long as their clients like; and none for HTTP/2's
//! idle connections, nor for clients that don't leave when they are asked to.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::Version;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::event::{Body, BodyError};

/// How long clients have.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// For the head of a request (the limit that keeps idle attackers from holding connections).
    pub head: Duration,
    /// For something of what waits to be sent. Whoever takes a little has as long again.
    pub reply: Duration,
    /// At the end, for what is sent already to be taken by a client that nothing is done for any more.
    pub farewell: Duration,
}

/// What a client does, as its connection sees it.
#[derive(Default)]
pub(super) struct Client {
    asked: AtomicBool,
    /// It asks over HTTP/2.
    multiplexes: AtomicBool,
    /// How many of its requests have no whole reply yet.
    under_way: AtomicUsize,
    /// The task of its connection over HTTP/2, where others may be the last to have to do with a request.
    connection: AtomicWaker,
    /// Something waits to be sent, and the socket is full.
    full: AtomicBool,
    /// How often the socket took something.
    taken: AtomicU64,
}

/// What a client is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// To ask for anything at all.
    Request,
    /// To ask for something more, after it has taken something so often.
    More(u64),
    /// To take something, after it has so often.
    Taking(u64),
    /// To leave as it was asked to, after it has taken something so often.
    Leaving(u64),
}

/// Why a client is asked to leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// It asks for nothing.
    Idle,
    /// The end.
    End,
}

/// A request whose reply is not whole yet.
pub(super) struct UnderWay(Arc<Client>);

impl Client {
    /// It has asked for something.
    pub(super) fn asks(self: &Arc<Self>, version: Version) -> UnderWay {
        self.asked.store(true, Ordering::Relaxed);
        if version == Version::HTTP_2 {
            self.multiplexes.store(true, Ordering::Relaxed);
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    fn is_served(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    fn awaited(&self, parting: Option<Parting>) -> Option<Awaited> {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.full.load(Ordering::Relaxed) {
            return Some(Awaited::Taking(taken));
        }
        if !self.asked.load(Ordering::Relaxed) {
            return Some(Awaited::Request);
        }
        if self.is_served() {
            return None;
        }
        match parting {
            Some(_) => Some(Awaited::Leaving(taken)),
            // Over HTTP/1.1, that is a request's head, which hyper waits for.
            None => self.multiplexes.load(Ordering::Relaxed).then_some(Awaited::More(taken)),
        }
    }

    /// The output of `connection`, whose client this is, and which `part` has end once what is under way is done: when it
    /// is idle, or at the `end`.
    ///
    /// # Errors
    /// What the client was waited for in vain.
    pub(super) async fn wait_for<C: Future>(
        &self,
        connection: C,
        part: impl Fn(Pin<&mut C>),
        patience: Patience,
        end: &CancellationToken,
    ) -> Result<C::Output, Awaited> {
        let (mut connection, mut end) = (pin!(connection), pin!(end.cancelled()));
        let mut parting = None;
        let mut waiting: Option<(Option<Awaited>, Pin<Box<Sleep>>)> = None;
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Ok(output));
                }
                if self.multiplexes.load(Ordering::Relaxed) {
                    self.connection.register(cx.waker());
                }
                if parting != Some(Parting::End) && end.as_mut().poll(cx).is_ready() {
                    parting = Some(Parting::End);
                    waiting = None;
                    part(connection.as_mut());
                    continue;
                }
                let Some(awaited) = self.awaited(parting) else {
                    if let Some((timed, _)) = &mut waiting {
                        *timed = None;
                    }
                    return Poll::Pending;
                };
                let limit = match (awaited, parting) {
                    (Awaited::Taking(_), _) => patience.reply,
                    (Awaited::Request, Some(_)) => return Poll::Ready(Err(awaited)),
                    (Awaited::Leaving(_), Some(Parting::End)) => patience.farewell,
                    _ => patience.head,
                };
                // Kept while nothing is waited for: to enter a timer is dearer than to put it off.
                let (timed, timer) = waiting.get_or_insert_with(|| (Some(awaited), Box::pin(sleep(limit))));
                if *timed != Some(awaited) {
                    *timed = Some(awaited);
                    timer.as_mut().reset(Instant::now() + limit);
                }
                ready!(timer.as_mut().poll(cx));
                if !matches!(awaited, Awaited::More(_)) {
                    return Poll::Ready(Err(awaited));
                }
                parting = Some(Parting::Idle);
                part(connection.as_mut());
            }
        })
        .await
    }
}

impl UnderWay {
    /// `body`, with which the request ends.
    pub(super) fn until_the_end_of(self, body: Body) -> Body {
        match body.try_into_bytes() {
            Ok(whole) => whole.into(),
            Err(body) => Body::stream(Reply { body, _under_way: self }),
        }
    }

    /// A request that never ends, as far as can be told: its connection is never idle, and has all the time that there is at
    /// the end.
    pub(super) fn without_end(self) {
        self.0.under_way.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let client = &self.0;
        if client.under_way.fetch_sub(1, Ordering::AcqRel) == 1 && client.multiplexes.load(Ordering::Relaxed) {
            client.connection.wake();
        }
    }
}

/// A reply's body.
struct Reply {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request | Self::More(_) => "nothing was asked for",
            Self::Taking(_) => "nothing more was taken of what was sent",
            Self::Leaving(_) => "nothing is done for it any more",
        })
    }
}

/// A client's socket, which tells of what it takes.
pub(super) struct Socket<S> {
    stream: S,
    client: Arc<Client>,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, client: Arc<Client>) -> Self {
        Self { stream, client }
    }

    fn sent<T>(&self, sent: Poll<T>) -> Poll<T> {
        if sent.is_ready() {
            self.client.taken.fetch_add(1, Ordering::Relaxed);
        }
        self.client.full.store(sent.is_pending(), Ordering::Relaxed);
        sent
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, data);
        self.sent(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.sent(sent)
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::Ipv4Addr;

    use http::{Request, Response};
    use http_body_util::{Empty, StreamBody};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::connections;
    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const NEVER: Duration = Duration::from_secs(3600);
    const PATIENT: Patience = Patience {
        head: NEVER,
        reply: NEVER,
        farewell: NEVER,
    };

    #[tokio::test]
    async fn a_connection_has_no_end_once_something_was_asked_for() {
        let patience = Patience { head: SOON, ..PATIENT };
        let (client, end) = (Arc::new(Client::default()), CancellationToken::new());
        let silent = client.wait_for(pending::<()>(), |_| (), patience, &end).await;
        assert_eq!(silent, Err(Awaited::Request));
        let later = async {
            let _under_way = client.asks(Version::HTTP_2);
            sleep(3 * SOON).await;
        };
        assert_eq!(client.wait_for(later, |_| (), patience, &end).await, Ok(()));
    }

    type Ended = tokio::task::JoinHandle<Result<(), Awaited>>;

    /// The client's end of a connection to replies made of `bodies`, and how it ends.
    async fn connected(bodies: fn() -> Body, patience: Patience, end: &CancellationToken) -> (TcpStream, Ended) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (stream, connection(accepted, bodies, patience, end))
    }

    fn connection<S>(accepted: S, bodies: fn() -> Body, patience: Patience, end: &CancellationToken) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let end = end.clone();
        tokio::spawn(async move {
            let client = Arc::new(Client::default());
            let service = service_fn(|request: Request<_>| {
                let under_way = client.asks(request.version());
                let body = under_way.until_the_end_of(bodies());
                async { Ok::<_, std::convert::Infallible>(Response::new(body)) }
            });
            let builder = connections();
            let socket = TokioIo::new(Socket::new(accepted, client.clone()));
            let connection = builder.serve_connection(socket, service);
            let part = |connection: Pin<&mut auto::Connection<'_, _, _, _>>| connection.graceful_shutdown();
            client.wait_for(connection, part, patience, &end).await.map(drop)
        })
    }

    /// A reply without end.
    async fn endless(patience: Patience) -> (TcpStream, Ended) {
        let bodies = || {
            let piece = || Ok::<_, BodyError>(Frame::data(Bytes::from_static(&[0; 64 << 10])));
            Body::stream(StreamBody::new(futures_util::stream::repeat_with(piece)))
        };
        let (mut asking, connection) = connected(bodies, patience, &CancellationToken::new()).await;
        asking.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        (asking, connection)
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), future)
            .await
            .expect("it is waited for")
    }

    #[tokio::test]
    async fn idle_connections_of_http_2_end() {
        let patience = Patience { head: SOON, ..PATIENT };
        let (stream, connection) = connected(Body::empty, patience, &CancellationToken::new()).await;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, driver) = handshake.await.unwrap();
        let driver = tokio::spawn(driver);
        let request = Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(request).await.unwrap();
        assert_eq!(soon(connection).await.unwrap(), Ok(()));
        // As one that was told so.
        assert!(soon(driver).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_reply_that_somebody_else_gives_up_is_none_that_is_waited_for() {
        let patience = Patience { head: SOON, ..PATIENT };
        let client = Arc::new(Client::default());
        let under_way = client.asks(Version::HTTP_2);
        let waiting = tokio::spawn(async move {
            let end = CancellationToken::new();
            client.wait_for(pending::<()>(), |_| (), patience, &end).await
        });
        // It waits already, and nothing of its own will wake it.
        tokio::task::yield_now().await;
        drop(under_way);
        assert_eq!(soon(waiting).await.unwrap(), Err(Awaited::Leaving(0)));
    }

    #[tokio::test]
    async fn the_end_waits_for_nobody_who_asks_for_nothing() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        for said in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n", preface] {
            let end = CancellationToken::new();
            // All of it is read when the other task has had its turn.
            let (mut stream, accepted) = tokio::io::duplex(4 << 10);
            let connection = connection(accepted, Body::empty, PATIENT, &end);
            stream.write_all(said).await.unwrap();
            tokio::task::yield_now().await;
            end.cancel();
            let _ = soon(connection).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_an_upload_that_has_its_reply() {
        let end = CancellationToken::new();
        let patience = Patience {
            farewell: SOON,
            ..PATIENT
        };
        let (mut stream, connection) = connected(|| Body::from("no"), patience, &end).await;
        let half = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc";
        stream.write_all(half).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        end.cancel();
        let _ = soon(connection).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_takes_nothing_is_given_up() {
        let patience = Patience { reply: SOON, ..PATIENT };
        let (asking, connection) = endless(patience).await;
        assert!(matches!(soon(connection).await.unwrap(), Err(Awaited::Taking(_))));
        drop(asking);
    }

    #[tokio::test]
    async fn whoever_takes_a_little_is_not() {
        let patience = Patience {
            reply: 20 * SOON,
            ..PATIENT
        };
        let (mut asking, connection) = endless(patience).await;
        // Longer than may be taken nothing, a little at a time.
        let begun = Instant::now();
        let mut buffer = vec![0; 1 << 20];
        while begun.elapsed() < 2 * patience.reply {
            asking.read_exact(&mut buffer).await.unwrap();
            sleep(SOON / 2).await;
        }
        assert!(!connection.is_finished());
        drop(asking);
        assert_eq!(connection.await.unwrap(), Ok(()));
    }
}
