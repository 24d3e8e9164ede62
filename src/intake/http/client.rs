//! How long a connection's client is waited for: to ask for something, and to take what it is sent. hyper has a limit of its own
//! for a request's head, but only from when it knows which HTTP it is, which a client can keep it from by saying nothing; and
//! none for replies, whose programs would be at work for as long as their clients like.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep};

/// How long clients have.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// For the head of a request (the limit that keeps idle attackers from holding connections).
    pub head: Duration,
    /// For something of what waits to be sent. Whoever takes a little has as long again.
    pub reply: Duration,
}

/// What a client does, as its connection sees it. All of it is seen by the one task that polls the connection.
#[derive(Default)]
pub(super) struct Client {
    asked: AtomicBool,
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
    /// To take something, after it has so often.
    Taking(u64),
}

impl Client {
    /// It has asked for something.
    pub(super) fn asks(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    fn awaited(&self) -> Option<Awaited> {
        if self.full.load(Ordering::Relaxed) {
            return Some(Awaited::Taking(self.taken.load(Ordering::Relaxed)));
        }
        (!self.asked.load(Ordering::Relaxed)).then_some(Awaited::Request)
    }

    /// The output of `connection`, whose client this is.
    ///
    /// # Errors
    /// What the client was waited for in vain.
    pub(super) async fn wait_for<C: Future>(&self, connection: C, patience: Patience) -> Result<C::Output, Awaited> {
        let mut connection = pin!(connection);
        let mut waiting: Option<(Awaited, Pin<Box<Sleep>>)> = None;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            let Some(awaited) = self.awaited() else {
                waiting = None;
                return Poll::Pending;
            };
            let limit = match awaited {
                Awaited::Request => patience.head,
                Awaited::Taking(_) => patience.reply,
            };
            let (timed, timer) = waiting.get_or_insert_with(|| (awaited, Box::pin(sleep(limit))));
            if *timed != awaited {
                *timed = awaited;
                timer.as_mut().reset(Instant::now() + limit);
            }
            timer.as_mut().poll(cx).map(|()| Err(awaited))
        })
        .await
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "nothing was asked for",
            Self::Taking(_) => "nothing more was taken of what was sent",
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
        if sent.is_ready() && self.client.full.load(Ordering::Relaxed) {
            self.client.taken.fetch_add(1, Ordering::Relaxed);
        }
        self.client.full.store(sent.is_pending(), Ordering::Relaxed);
        sent
    }
}

impl<S: Read + Unpin> Read for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Write + Unpin> Write for Socket<S> {
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

    use bytes::Bytes;
    use http::Response;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::connections;
    use super::*;
    use crate::event::{Body, BodyError};

    const SOON: Duration = Duration::from_millis(50);
    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_connection_has_no_end_once_something_was_asked_for() {
        let patience = Patience {
            head: SOON,
            reply: NEVER,
        };
        let client = Client::default();
        let silent = client.wait_for(pending::<()>(), patience).await;
        assert_eq!(silent, Err(Awaited::Request));
        let later = async {
            client.asks();
            sleep(3 * SOON).await;
        };
        assert_eq!(client.wait_for(later, patience).await, Ok(()));
    }

    /// A reply without end, and how its connection ends.
    async fn endless(patience: Patience) -> (TcpStream, tokio::task::JoinHandle<Result<(), Awaited>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut asking = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        asking.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let connection = tokio::spawn(async move {
            let client = Arc::new(Client::default());
            let service = service_fn(|_| {
                client.asks();
                let piece = || Ok::<_, BodyError>(Frame::data(Bytes::from_static(&[0; 64 << 10])));
                let body = Body::stream(StreamBody::new(futures_util::stream::repeat_with(piece)));
                async { Ok::<_, std::convert::Infallible>(Response::new(body)) }
            });
            let builder = connections();
            let socket = Socket::new(TokioIo::new(stream), client.clone());
            let ended = client
                .wait_for(builder.serve_connection(socket, service), patience)
                .await;
            ended.map(drop)
        });
        (asking, connection)
    }

    #[tokio::test]
    async fn whoever_takes_nothing_is_given_up() {
        let patience = Patience {
            head: NEVER,
            reply: SOON,
        };
        let (asking, connection) = endless(patience).await;
        let ended = tokio::time::timeout(Duration::from_secs(60), connection).await;
        assert!(
            matches!(ended.unwrap().unwrap(), Err(Awaited::Taking(_))),
            "it waits for its client"
        );
        drop(asking);
    }

    #[tokio::test]
    async fn whoever_takes_a_little_is_not() {
        let patience = Patience {
            head: NEVER,
            reply: 20 * SOON,
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
