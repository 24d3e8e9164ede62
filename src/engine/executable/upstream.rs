//! The way to one run of a program: its connections, kept open between events, and the rules for using them again.
//!
//! ```text
//! request -> a connection used before, or a new one -> head of the reply -> ReplyBody -> back to the idle ones
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;

use super::connection::Connection;
use super::head;
use super::reply::ReplyBody;
use super::upgrade;
use crate::engine::listen::{self, Listener};
use crate::event::{Body, BodyError};

/// Servers close connections that nobody uses, the common ones after 2 to 75 s. We close first, so that a request
/// never meets a connection that is being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// A server that handles one connection at a time does not get to a new one as long as we keep another one open. When a
/// new one has waited this long for its first reply, none is kept.
const NEW_PATIENCE: Duration = Duration::from_millis(50);

/// Programs that close a connection after a reply do so at once. One that left a connection open for this long keeps them.
const PROOF: Duration = Duration::from_millis(20);

/// How often a full queue is looked at.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("can't be reached on {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
        /// Untouched.
        request: Box<Request<Body>>,
    },
    #[error("sent no reply within {0:?}")]
    Timeout(Duration),
    #[error("did not get the whole request: its body broke off: {0}")]
    RequestBody(BodyError),
    /// With the request, if it may be sent to another run.
    #[error("closed the connection without a reply")]
    NoReply(Option<Box<Request<Body>>>),
    #[error("answered with something that is no HTTP/1.1 reply: {0}")]
    NotHttp(hyper::Error),
}

impl SendError {
    /// Whether the end of the program may be the reason.
    pub fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::NoReply(_))
    }
}

/// The connections to one run of a program.
pub struct Upstream {
    addresses: Vec<SocketAddr>,
    queue: Option<Queue>,
    /// Time to the head of a reply, and between two pieces of its body.
    pub(super) timeout: Duration,
    idle: Mutex<Idle>,
    /// Events on new connections that have waited for more than [`NEW_PATIENCE`].
    starving: AtomicUsize,
    /// Whether the program has been seen to keep a connection after its reply.
    persistent: AtomicBool,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct Idle {
    /// The one used last is the last one.
    connections: VecDeque<(Connection, Instant)>,
    /// Whether a task is there that closes those of which nobody has use.
    swept: bool,
}

impl Upstream {
    /// Must be called within a runtime. `addresses` all lead to the same program, and there is at least one.
    pub fn new(addresses: Vec<SocketAddr>, listener: Option<Listener>, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            addresses,
            queue: listener.and_then(Queue::of),
            timeout,
            idle: Mutex::default(),
            starving: AtomicUsize::new(0),
            persistent: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Where the program listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Gives `request`, which is one of [`head::outgoing`], to the program and waits for the head of the reply. With a
    /// `client` that wants to go on in another protocol, the two do so if the program agrees.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<Body>,
        client: Option<OnUpgrade>,
    ) -> Result<Response<Body>, SendError> {
        let sending = async {
            match client {
                None => self.send_unhurried(request).await,
                Some(client) => Box::pin(self.send_upgrade(request, client)).await,
            }
        };
        match tokio::time::timeout(self.timeout, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(SendError::Timeout(self.timeout)),
        }
    }

    /// On a connection of its own, which is never one of HTTP again if the program agrees.
    async fn send_upgrade(
        self: &Arc<Self>,
        request: Request<Body>,
        client: OnUpgrade,
    ) -> Result<Response<Body>, SendError> {
        let mut connection = match self.open().await {
            Ok(connection) => connection.upgradeable(),
            Err(error) => return Err(self.unreachable(error, request)),
        };
        let mut reply = self.exchange_first(&mut connection, request).await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(self.pass_on(connection, reply).await);
        }
        upgrade::pass_on(Arc::clone(self), connection, &mut reply, client);
        let (mut parts, _) = reply.into_parts();
        head::incoming(&mut parts);
        Ok(Response::from_parts(parts, Body::empty()))
    }

    async fn send_unhurried(self: &Arc<Self>, mut request: Request<Body>) -> Result<Response<Body>, SendError> {
        // The program may be closing the connection just now. A request that may be sent twice is no worse for that;
        // any other one waits for a proof that this program does keep connections.
        let mut spare;
        (request, spare) = spare_of(request);
        let mut is_again = false;
        if (spare.is_some() || self.persistent.load(Ordering::Relaxed))
            && let Some(mut connection) = self.reuse().await
        {
            match connection.exchange(request).await {
                Ok(reply) => {
                    self.persistent.store(true, Ordering::Relaxed);
                    return Ok(self.pass_on(connection, reply).await);
                }
                Err(mut error) => match error.take_message().or(spare) {
                    Some(again) if is_closed(error.error()) => {
                        is_again = true;
                        // Should this be the program's end, it may be reached once more before it stops to listen.
                        (request, spare) = spare_of(again);
                    }
                    _ => return Err(SendError::from(error.into_error())),
                },
            }
        }
        // In a box: nearly all requests go over a connection that was used before, and are moved with less then.
        Box::pin(self.send_first(request, spare, is_again)).await
    }

    /// On a new connection. `is_again`: one that was used before was closed instead of an answer.
    async fn send_first(
        self: &Arc<Self>,
        request: Request<Body>,
        spare: Option<Request<Body>>,
        is_again: bool,
    ) -> Result<Response<Body>, SendError> {
        let _unanswered = self.queue.as_ref().map(Unanswered::new);
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            // It is gone, with this request maybe.
            Err(_) if is_again => {
                let may_be_repeated = request.method().is_idempotent();
                return Err(SendError::NoReply(may_be_repeated.then(|| Box::new(request))));
            }
            Err(error) => return Err(self.unreachable(error, request)),
        };
        match self.exchange_first(&mut connection, request).await {
            Ok(reply) => Ok(self.pass_on(connection, reply).await),
            Err(error) if is_closed(&error) => Err(SendError::NoReply(spare.map(Box::new))),
            Err(error) => Err(error.into()),
        }
    }

    /// A new connection, once there is room for it in the queue of those that the program has not accepted.
    async fn open(&self) -> std::io::Result<Connection> {
        let Some(queue) = self.queue.as_ref().filter(|queue| queue.may_be_full()) else {
            return Connection::open(&self.addresses).await;
        };
        let _turn = queue.turn.lock().await;
        while queue.is_full()? {
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        Connection::open(&self.addresses).await
    }

    fn unreachable(&self, source: std::io::Error, request: Request<Body>) -> SendError {
        SendError::Connect {
            address: self.address(),
            source,
            request: Box::new(request),
        }
    }

    /// The first exchange of a new connection.
    async fn exchange_first(
        &self,
        connection: &mut Connection,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut reply = std::pin::pin!(connection.exchange(request));
        let reply = match tokio::time::timeout(NEW_PATIENCE, &mut reply).await {
            Ok(reply) => reply,
            Err(_) => {
                let _starving = Starving::new(self);
                reply.await
            }
        };
        reply.map_err(|error| error.into_error())
    }

    async fn pass_on(self: &Arc<Self>, connection: Connection, reply: Response<Incoming>) -> Response<Body> {
        let (mut parts, incoming) = reply.into_parts();
        head::incoming(&mut parts);
        let body = ReplyBody::new(Arc::clone(self), connection, incoming).into_body().await;
        Response::from_parts(parts, body)
    }

    /// A connection that was used before and is still open.
    async fn reuse(&self) -> Option<Connection> {
        std::future::poll_fn(|cx| {
            while let Some(mut connection) = self.idle.lock().take_last() {
                if connection.poll_reusable(cx) {
                    return Poll::Ready(Some(connection));
                }
            }
            Poll::Ready(None)
        })
        .await
    }

    /// Takes back a connection whose reply is complete.
    pub(super) fn release(self: &Arc<Self>, mut connection: Connection, cx: &mut Context<'_>) {
        if self.starving.load(Ordering::Relaxed) > 0 || !connection.poll_reusable(cx) {
            return;
        }
        let mut idle = self.idle.lock();
        if !self.persistent.load(Ordering::Relaxed)
            && let Some((oldest, since)) = idle.connections.front_mut()
            && since.elapsed() > PROOF
            && oldest.poll_reusable(cx)
        {
            self.persistent.store(true, Ordering::Relaxed);
        }
        idle.connections.push_back((connection, Instant::now()));
        if !idle.swept {
            idle.swept = true;
            self.runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

impl Idle {
    /// The connection used last, unless nobody has used it for too long.
    fn take_last(&mut self) -> Option<Connection> {
        let (connection, since) = self.connections.pop_back()?;
        (since.elapsed() < IDLE_LIMIT).then_some(connection)
    }

    fn close_unused(&mut self) {
        let used = |(_, since): &(Connection, Instant)| since.elapsed() < IDLE_LIMIT;
        let kept = self.connections.iter().position(used).unwrap_or(self.connections.len());
        self.connections.drain(..kept);
    }
}

/// The connections that a program has not accepted yet. What comes when the kernel has no more room for them is dropped
/// without a word, and TCP tries again a second later: so we don't come then. Python's `http.server` has room for 5.
struct Queue {
    inode: u32,
    room: usize,
    /// Events on new connections that have no reply yet; more can't be in the queue.
    unanswered: AtomicUsize,
    /// Held by the one who looks for room, until it has taken it.
    turn: tokio::sync::Mutex<()>,
}

impl Queue {
    fn of(listener: Listener) -> Option<Self> {
        (listener.room > 0).then(|| Self {
            inode: listener.inode,
            room: listener.room as usize,
            unanswered: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::default(),
        })
    }

    fn may_be_full(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) > self.room
    }

    fn is_full(&self) -> std::io::Result<bool> {
        let listeners = listen::listeners()?;
        let ours = listeners.iter().find(|listener| listener.inode == self.inode);
        Ok(ours.is_some_and(|ours| ours.queued as usize >= self.room))
    }
}

/// An event on a new connection, until it has its reply.
struct Unanswered<'a>(&'a Queue);

impl<'a> Unanswered<'a> {
    fn new(queue: &'a Queue) -> Self {
        queue.unanswered.fetch_add(1, Ordering::Relaxed);
        Self(queue)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes connections that nobody uses any more, and ends when there are no others.
async fn sweep(upstream: Weak<Upstream>) {
    loop {
        tokio::time::sleep(IDLE_LIMIT).await;
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        let mut idle = upstream.idle.lock();
        idle.close_unused();
        if idle.connections.is_empty() {
            idle.swept = false;
            return;
        }
    }
}

/// While this lives no connection is kept open without use.
struct Starving<'a>(&'a Upstream);

impl<'a> Starving<'a> {
    fn new(upstream: &'a Upstream) -> Self {
        upstream.starving.fetch_add(1, Ordering::Relaxed);
        upstream.idle.lock().connections.clear();
        Self(upstream)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.starving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The request, and the same again if it may be sent twice (RFC 9110, section 9.2.2) and is here as a whole.
fn spare_of(request: Request<Body>) -> (Request<Body>, Option<Request<Body>>) {
    let (parts, body) = request.into_parts();
    match body.try_into_bytes() {
        Ok(bytes) if parts.method.is_idempotent() => {
            let spare = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            (Request::from_parts(parts, Body::from(bytes)), Some(spare))
        }
        Ok(bytes) => (Request::from_parts(parts, Body::from(bytes)), None),
        Err(body) => (Request::from_parts(parts, body), None),
    }
}

/// Whether the connection was closed before anything came back.
fn is_closed(error: &hyper::Error) -> bool {
    !error.is_parse() && !error.is_user()
}

impl From<hyper::Error> for SendError {
    fn from(error: hyper::Error) -> Self {
        if error.is_user() {
            Self::RequestBody(error.into())
        } else if error.is_parse() {
            Self::NotHttp(error)
        } else {
            Self::NoReply(None)
        }
    }
}
