//! One worker's channel: many events at once over one socketpair.
//!
//! Whoever has a frame to send writes it to the socket directly; only what the socket does not take at once is left to
//! the writing task. So an event costs one write here, one read there, and on the way out no wake-up between our tasks.
//! Bodies in pieces obey a window in both directions: one slow client neither fills memory nor holds up the others.

mod incoming;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::Request;
use http::request::Parts;
use http_body::Frame as BodyFrame;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::body::pump;
use super::frame::{self, FrameError, Kind, PIECE, WINDOW};
use super::socket::Socket;
use super::{Fault, Language, websocket};
use crate::engine::process::Process;
use crate::event::{Body, BodyError, Context, Event, Failure, FailureKind, Input, Reply};

/// How many events may be with one worker at once.
const STREAMS: usize = 4096;

/// Room that is made for each read, in bytes.
const READ: usize = 64 << 10;

/// How long the last frames of a worker that has ended may take, where its channel stays open.
const LAST_FRAMES: Duration = Duration::from_millis(100);

/// Where the worker's first word comes from: what it found, or why its program can't be started.
pub type FirstWord = oneshot::Receiver<Result<Bytes, Fault>>;

/// The host's end of the socketpair, shared by all who have events with the worker.
pub struct Channel {
    language: Arc<dyn Language>,
    socket: Socket,
    outgoing: Mutex<BytesMut>,
    /// What was read and is no whole frame yet. Locked by whoever runs the channel.
    incoming: tokio::sync::Mutex<BytesMut>,
    /// `outgoing` has something that the socket did not take.
    leftover: Notify,
    streams: Mutex<Streams>,
    began: Instant,
    /// Milliseconds after `began` at which the worker was last heard.
    heard: AtomicU64,
    /// Something was heard: wakes whoever waits for a sign of life.
    sign_of_life: Notify,
    /// An event was taken from the worker before it was through, and nothing was heard since: it may block in it still.
    doubtful: AtomicBool,
    /// The largest message of a WebSocket, if the program takes WebSockets; if not, their handshakes are ordinary requests.
    websockets: OnceLock<usize>,
}

#[derive(Default)]
struct Streams {
    open: HashMap<u32, Stream>,
    last: u32,
    /// Set once the worker is gone: why.
    closed: Option<Failure>,
    /// Where the worker's first word goes.
    start: Option<oneshot::Sender<Result<Bytes, Fault>>>,
}

/// What is known here of one event that the worker has.
struct Stream {
    began: Instant,
    state: State,
    /// Permits are bytes of the request's body that may still be sent; `None` where it went whole.
    window: Option<Arc<Semaphore>>,
    /// The task that sends the request's body.
    pump: Option<AbortHandle>,
}

enum State {
    Waiting(oneshot::Sender<Result<Reply, Failure>>),
    Streaming {
        pieces: mpsc::UnboundedSender<Result<BodyFrame<Bytes>, BodyError>>,
        /// Bytes that the reader of the reply's body has not taken yet.
        untaken: Arc<AtomicUsize>,
    },
    /// A WebSocket that the program may accept, or deny with a reply like any other.
    Connecting {
        waiting: oneshot::Sender<Result<Reply, Failure>>,
        socket: websocket::ToSocket,
    },
    Socket(websocket::ToSocket),
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.abort();
        }
    }
}

/// Why the channel came to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("it closed its channel")]
    Closed,
    #[error("its channel failed: {0}")]
    Io(#[from] io::Error),
    #[error("it sent {0}")]
    Frame(#[from] FrameError),
    #[error("it blocked for longer than an event may take, and there was no other")]
    Stuck,
}

impl Channel {
    /// Takes the host's end, and returns with the channel the worker's first word: what was found in the program, or
    /// why it can't be started.
    ///
    /// # Errors
    /// Where the socket can't be watched: epoll_ctl(2).
    pub fn new(language: Arc<dyn Language>, socket: UnixStream) -> io::Result<(Arc<Self>, FirstWord)> {
        let socket = Socket::new(socket)?;
        let (start, started) = oneshot::channel();
        let channel = Arc::new(Self {
            language,
            socket,
            outgoing: Mutex::default(),
            incoming: tokio::sync::Mutex::default(),
            leftover: Notify::new(),
            streams: Mutex::new(Streams {
                start: Some(start),
                ..Streams::default()
            }),
            began: Instant::now(),
            heard: AtomicU64::new(0),
            sign_of_life: Notify::new(),
            doubtful: AtomicBool::new(false),
            websockets: OnceLock::new(),
        });
        Ok((channel, started))
    }

    /// Reads and writes until the channel ends, and returns why it did. May be dropped and run again; whoever sees it end
    /// calls [`Channel::close`].
    pub async fn run(self: &Arc<Self>) -> ChannelError {
        tokio::select! {
            error = self.read() => error,
            error = self.write_leftovers() => error.into(),
        }
    }

    /// As [`Channel::run`], for as long as `process` lives, whose channel it is: what that has forked may hold the other
    /// end open beyond its own end.
    pub async fn run_with(self: &Arc<Self>, process: &mut Process) -> ChannelError {
        tokio::select! {
            error = self.run() => error,
            // What it has sent before is worth a moment.
            _ = process.ended() => {
                let rest = tokio::time::timeout(LAST_FRAMES, self.run()).await;
                rest.unwrap_or(ChannelError::Closed)
            }
        }
    }

    /// Gives an event to the worker and waits for the reply's head. Dropping this cancels the event. If the event may be
    /// given to another worker should this one fail (RFC 9110, section 9.2.2), a copy is left in `spare`.
    pub async fn handle(self: Arc<Self>, event: Event, spare: &mut Option<Event>) -> Result<Reply, Failure> {
        let Event { context, input } = event;
        let (sender, receiver) = oneshot::channel();
        let waiting = State::Waiting(sender);
        let pending = match input {
            Input::Message(message) => {
                let stream = self.begin(waiting, None, Kind::Message, |out| {
                    self.language.encode_message(out, &context, &message);
                })?;
                Pending::new(&self, stream)
            }
            Input::Http(mut request) => {
                if let Some(limit) = self.websockets.get()
                    && let Some(upgrade) = websocket::upgrade_of(&mut request)
                {
                    return websocket::handle(&self, &context, request, upgrade, *limit).await;
                }
                let (head, body) = request.into_parts();
                match body.try_into_bytes() {
                    Ok(whole) if whole.len() <= PIECE => {
                        let stream = self.begin(waiting, None, Kind::Request, |out| {
                            self.language.encode_request(out, &context, &head, Some(&whole));
                        })?;
                        if head.method.is_idempotent() {
                            let input = Input::Http(Request::from_parts(head, whole.into()));
                            *spare = Some(Event { context, input });
                        }
                        Pending::new(&self, stream)
                    }
                    body => {
                        let body = body.map_or_else(|stream| stream, Body::from);
                        let window = Arc::new(Semaphore::new(WINDOW));
                        let stream = self.begin(waiting, Some(window.clone()), Kind::Request, |out| {
                            self.language.encode_request(out, &context, &head, None);
                        })?;
                        let pump = tokio::spawn(pump(self.clone(), stream, body, window)).abort_handle();
                        match self.streams.lock().open.get_mut(&stream) {
                            Some(open) => open.pump = Some(pump),
                            None => pump.abort(),
                        }
                        Pending::new(&self, stream)
                    }
                }
            }
        };
        let reply = receiver.await;
        pending.done();
        reply.unwrap_or_else(|_| Err(Failure::new(FailureKind::Gone, "the worker's channel was closed")))
    }

    /// Sends a frame that belongs to no event.
    pub fn tell(&self, kind: Kind, payload: &[u8]) {
        self.tell_of(frame::WORKER, kind, payload);
    }

    /// The program takes WebSockets, messages of `limit` bytes at most.
    pub fn take_websockets(&self, limit: usize) {
        // The second worker of a component finds the same.
        let _ = self.websockets.set(limit);
    }

    /// Opens a stream for a WebSocket and tells the worker of the request for it.
    pub(super) fn connect(
        &self,
        context: &Context,
        head: &Parts,
        waiting: oneshot::Sender<Result<Reply, Failure>>,
        socket: websocket::ToSocket,
        window: Arc<Semaphore>,
    ) -> Result<u32, Failure> {
        self.begin(
            State::Connecting { waiting, socket },
            Some(window),
            Kind::Connect,
            |out| {
                self.language.encode_request(out, context, head, None);
            },
        )
    }

    /// Sends a frame that belongs to `stream`.
    pub(super) fn tell_of(&self, stream: u32, kind: Kind, payload: &[u8]) {
        self.send(|out| frame::put(out, kind, stream, payload));
    }

    /// Forgets an event that is over, on both sides.
    pub(super) fn forget(&self, stream: u32) {
        self.streams.lock().open.remove(&stream);
    }

    /// How many events the worker has.
    pub fn load(&self) -> usize {
        self.streams.lock().open.len()
    }

    /// When the worker was last heard, in milliseconds since the channel began.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// For how long nothing has been heard from the worker.
    pub fn silence(&self) -> Duration {
        let now = self.began.elapsed().as_millis() as u64;
        Duration::from_millis(now.saturating_sub(self.heard()))
    }

    /// Whether the worker may block in an event that it doesn't have any more.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }

    /// Asks the worker for a sign of life and waits for one (any frame is) for at most `patience`.
    pub async fn answers(&self, patience: Duration) -> bool {
        let heard = self.sign_of_life.notified();
        tokio::pin!(heard);
        heard.as_mut().enable();
        self.tell(Kind::Ping, b"");
        tokio::time::timeout(patience, heard).await.is_ok()
    }

    /// Ends the events whose reply has not begun after `limit` with `failure`, for as long as this is polled. One timer
    /// for all of them: one for each would cost every event a wake-up of the event loop.
    pub async fn expire(&self, limit: Duration, failure: &Failure) -> Infallible {
        loop {
            // What comes after now is not late before that.
            let next = self.expire_now(limit, failure).unwrap_or_else(Instant::now) + limit;
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// Ends the events that are too old, and says when the oldest one of the others began.
    fn expire_now(&self, limit: Duration, failure: &Failure) -> Option<Instant> {
        let waiting = |stream: &Stream| matches!(stream.state, State::Waiting(_) | State::Connecting { .. });
        let late: Vec<u32> = {
            let streams = self.streams.lock();
            let late = |stream: &Stream| waiting(stream) && stream.began.elapsed() >= limit;
            streams
                .open
                .iter()
                .filter(|(_, stream)| late(stream))
                .map(|(id, _)| *id)
                .collect()
        };
        for stream in late {
            self.finish_and_cancel(stream, failure.clone());
        }
        let streams = self.streams.lock();
        streams
            .open
            .values()
            .filter(|stream| waiting(stream))
            .map(|stream| stream.began)
            .min()
    }

    /// Ends every event that the worker still has with `failure`, as well as all that come later.
    pub fn close(&self, failure: &Failure) {
        let (open, start) = {
            let mut streams = self.streams.lock();
            streams.closed.get_or_insert_with(|| failure.clone());
            (std::mem::take(&mut streams.open), streams.start.take())
        };
        if let Some(start) = start {
            let _ = start.send(Err(Fault {
                message: failure.message.clone(),
                traceback: failure.traceback.clone(),
            }));
        }
        for (_, stream) in open {
            incoming::fail(stream, failure.clone());
        }
        self.sign_of_life.notify_waiters();
    }

    /// Opens a stream for an event, and sends the frame with which it begins.
    fn begin(
        &self,
        state: State,
        window: Option<Arc<Semaphore>>,
        kind: Kind,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<u32, Failure> {
        let stream = self.open(state, window)?;
        self.send(|out| frame::put_with(out, kind, stream, write));
        Ok(stream)
    }

    fn open(&self, state: State, window: Option<Arc<Semaphore>>) -> Result<u32, Failure> {
        let mut streams = self.streams.lock();
        if let Some(failure) = &streams.closed {
            return Err(failure.clone());
        }
        if streams.open.len() >= STREAMS {
            return Err(Failure::new(
                FailureKind::Unavailable,
                format!("the {} worker has {STREAMS} events already", self.language.name()),
            ));
        }
        loop {
            streams.last = streams.last.wrapping_add(1);
            if streams.last != frame::WORKER && !streams.open.contains_key(&streams.last) {
                break;
            }
        }
        let id = streams.last;
        let stream = Stream {
            began: Instant::now(),
            state,
            window,
            pump: None,
        };
        streams.open.insert(id, stream);
        Ok(id)
    }

    /// Forgets an event that nobody waits for, and tells the worker if it still has it.
    pub(super) fn cancel(&self, stream: u32) {
        let removed = self.streams.lock().open.remove(&stream);
        if removed.is_some() {
            self.tell_cancel(stream);
        }
    }

    fn tell_cancel(&self, stream: u32) {
        self.doubtful.store(true, Ordering::Relaxed);
        self.tell_of(stream, Kind::Cancel, b"");
    }

    pub(super) fn send(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut outgoing = self.outgoing.lock();
        let was_empty = outgoing.is_empty();
        write(&mut outgoing);
        if !was_empty {
            return;
        }
        // An error other than "not now" is the reading side's to report: it sees the same end.
        if let Ok(written) = self.socket.try_write(&outgoing) {
            outgoing.advance(written);
        }
        if !outgoing.is_empty() {
            self.leftover.notify_one();
        }
    }

    async fn write_leftovers(&self) -> io::Error {
        loop {
            // A run that was dropped may have taken the notice, and not have written all.
            let is_left = !self.outgoing.lock().is_empty();
            if is_left && let Err(error) = self.write_leftover().await {
                return error;
            }
            self.leftover.notified().await;
        }
    }

    async fn write_leftover(&self) -> io::Result<()> {
        let room = self.socket.room()?;
        let mut empty = false;
        while !empty {
            empty = room
                .write(|| {
                    let mut outgoing = self.outgoing.lock();
                    let written = self.socket.try_write(&outgoing)?;
                    outgoing.advance(written);
                    Ok(outgoing.is_empty())
                })
                .await?;
        }
        Ok(())
    }

    async fn read(self: &Arc<Self>) -> ChannelError {
        let mut buffer = self.incoming.lock().await;
        loop {
            if buffer.capacity() - buffer.len() < READ / 4 {
                buffer.reserve(READ);
            }
            match self.socket.read(&mut buffer).await {
                Ok(0) => return ChannelError::Closed,
                Ok(_) => {}
                Err(error) => return error.into(),
            }
            self.heard
                .store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
            self.doubtful.store(false, Ordering::Relaxed);
            self.sign_of_life.notify_waiters();
            loop {
                match frame::take(&mut buffer) {
                    Ok(Some(frame)) => self.take(frame),
                    Ok(None) => break,
                    Err(error) => return error.into(),
                }
            }
        }
    }
}

/// Cancels an event unless its reply came.
struct Pending<'a> {
    channel: &'a Arc<Channel>,
    stream: u32,
}

impl<'a> Pending<'a> {
    fn new(channel: &'a Arc<Channel>, stream: u32) -> Self {
        Self { channel, stream }
    }

    fn done(self) {
        std::mem::forget(self);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.channel.cancel(self.stream);
    }
}
