//! WebSocket (RFC 6455) between a client's upgraded connection and a worker's channel: the handshake, frames, masks,
//! pings, limits and closing are here; the worker sees messages.
//!
//! ```text
//! client <- frames -> upgraded connection <- messages -> channel <- Piece, Text, Binary, Close -> worker
//! ```
//!
//! Both directions go at their own pace, each behind the same window as bodies have: a program that takes no messages
//! keeps its client from sending more, and a client that reads none keeps its program waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::channel::Channel;
use super::frame::{Kind, PIECE, TELL, WINDOW};
use crate::event::{Body, Context, Failure, FailureKind, Reply};

/// What each WebSocket has for reading, in bytes, also while nothing is said.
const READ: usize = 16 << 10;

/// How often a client that says nothing is pinged.
const PING: Duration = Duration::from_secs(20);

/// How long a client may say nothing, pongs included, before it is taken for gone.
const SILENCE: Duration = Duration::from_secs(45);

/// How long the client may take to answer a close.
const CLOSING: Duration = Duration::from_secs(5);

/// Codes of RFC 6455, section 7.4.1, that never travel: no code was given; the connection was lost.
const NO_CODE: u16 = 1005;
const LOST: u16 = 1006;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Where the channel puts what the worker sends to a WebSocket.
pub struct ToSocket {
    frames: mpsc::UnboundedSender<(Kind, Bytes)>,
    /// Bytes that the client's side has not taken yet.
    untaken: Arc<AtomicUsize>,
}

impl ToSocket {
    /// Passes a frame on; false where it is more than the window allows.
    pub fn put(&self, kind: Kind, payload: Bytes) -> bool {
        if self.untaken.fetch_add(payload.len(), Ordering::Relaxed) > WINDOW + PIECE {
            return false;
        }
        let _ = self.frames.send((kind, payload));
        true
    }
}

/// The connection that a request asks to make a WebSocket of, if it does, and if the intake is one that can.
pub fn upgrade_of(request: &mut Request<Body>) -> Option<OnUpgrade> {
    let protocol = request.headers().get(UPGRADE)?;
    let asked = protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
        && request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(request.headers(), "upgrade");
    if !asked {
        return None;
    }
    request.extensions_mut().remove()
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Asks the program whether it takes this WebSocket. The reply is the handshake's, or the program's denial; the
/// WebSocket goes on in a task of its own, which ends with the connection or with the worker.
pub async fn handle(
    channel: &Arc<Channel>,
    context: &Context,
    request: Request<Body>,
    upgrade: OnUpgrade,
    limit: usize,
) -> Result<Reply, Failure> {
    let (head, _) = request.into_parts();
    let accept = match accept_key(&head.headers) {
        Ok(accept) => accept,
        Err(refusal) => return Ok(Reply::Http(*refusal)),
    };
    let (frames, receiver) = mpsc::unbounded_channel();
    let untaken = Arc::new(AtomicUsize::new(0));
    let window = Arc::new(Semaphore::new(WINDOW));
    let to_socket = ToSocket {
        frames,
        untaken: untaken.clone(),
    };
    let (waiting, answer) = oneshot::channel();
    let stream = channel.connect(context, &head, waiting, to_socket, window.clone())?;
    let mut open = Open {
        channel: channel.clone(),
        stream,
        answered: false,
    };
    let reply = answer
        .await
        .unwrap_or_else(|_| Err(Failure::new(FailureKind::Gone, "the worker's channel was closed")));
    let mut response = match reply {
        Ok(Reply::Http(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => response,
        // A denial, whose body may still be on its way; or a failure.
        other => {
            open.answered = true;
            return other;
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let relay = Relay {
        open,
        incoming: window,
        untaken,
        limit,
    };
    tokio::spawn(async move {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        // An error means that the client went before it had the handshake: dropping tells the worker.
        if let Ok(upgraded) = upgrade.await {
            let io = TokioIo::new(upgraded);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            relay.run(socket, receiver).await;
        }
    });
    Ok(Reply::Http(response))
}

/// What the handshake's answer proves, from the client's key (RFC 6455, section 4.2).
///
/// # Errors
/// The response to a handshake that is none.
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Box<Response<Body>>> {
    let refuse = |status, text: &'static str| {
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        Box::new(response)
    };
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let text = "this is a WebSocket of version 13 (RFC 6455)\n";
        return Err(refuse(StatusCode::UPGRADE_REQUIRED, text));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .filter(|key| data_encoding::BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16));
    let key = key.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is no base64 of 16 bytes\n"))?;
    HeaderValue::try_from(derive_accept_key(key))
        .map_err(|_| refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key can't be answered\n"))
}

/// The worker's end of a WebSocket. Dropping it tells the worker that the client is gone.
struct Open {
    channel: Arc<Channel>,
    stream: u32,
    /// It did not become one: whoever has the reply sees to its end.
    answered: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.answered {
            self.channel.cancel(self.stream);
        }
    }
}

/// A WebSocket that the program has accepted.
struct Relay {
    open: Open,
    /// Permits are bytes that may still be sent to the worker.
    incoming: Arc<Semaphore>,
    /// Bytes that came from the worker and have not been sent to the client.
    untaken: Arc<AtomicUsize>,
    limit: usize,
}

/// Why a direction has come to its end.
enum End {
    /// The client has closed, with this code and reason, and has been answered.
    Client(u16, Utf8Bytes),
    /// What the client sent is against the protocol, or too much: it is to be told this code.
    Wrong(CloseCode, String),
    /// The connection was lost.
    Lost,
    /// The program closes.
    Program(Option<CloseFrame>),
}

impl Relay {
    async fn run(&self, socket: Socket, mut from_worker: mpsc::UnboundedReceiver<(Kind, Bytes)>) {
        let (mut sink, mut source) = socket.split();
        let end = tokio::select! {
            end = self.read(&mut source) => end,
            end = self.write(&mut sink, &mut from_worker) => end,
        };
        match end {
            End::Client(code, reason) => self.tell_end(code, &reason),
            End::Lost => self.tell_end(LOST, ""),
            End::Wrong(code, reason) => {
                self.tell_end(code.into(), &reason);
                let reason = reason.into();
                close(&mut sink, &mut source, Some(CloseFrame { code, reason })).await;
            }
            End::Program(frame) => {
                self.open.channel.forget(self.open.stream);
                close(&mut sink, &mut source, frame).await;
            }
        }
    }

    /// Tells the worker that the WebSocket is over.
    fn tell_end(&self, code: u16, reason: &str) {
        let mut payload = Vec::with_capacity(2 + reason.len());
        if code != NO_CODE {
            payload.extend_from_slice(&code.to_le_bytes());
            payload.extend_from_slice(reason.as_bytes());
        }
        let Open { channel, stream, .. } = &self.open;
        channel.tell_of(*stream, Kind::Close, &payload);
        channel.forget(*stream);
    }

    /// From the client to the worker.
    async fn read(&self, source: &mut SplitStream<Socket>) -> End {
        let mut closed = None;
        loop {
            let message = match timeout(SILENCE, source.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(None | Some(Err(Error::ConnectionClosed))) => {
                    return closed.unwrap_or(End::Lost);
                }
                Ok(Some(Err(error))) => return closed.unwrap_or_else(|| end_of(&error, self.limit)),
                Err(_) => return closed.unwrap_or(End::Lost),
            };
            match message {
                Message::Text(text) => self.pass(Kind::Text, text.into()).await,
                Message::Binary(data) => self.pass(Kind::Binary, data).await,
                // The answer is sent while the next message is read, which then is the connection's end.
                Message::Close(frame) => {
                    closed = Some(match frame {
                        Some(frame) => End::Client(frame.code.into(), frame.reason),
                        None => End::Client(NO_CODE, Utf8Bytes::default()),
                    });
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    async fn pass(&self, kind: Kind, mut data: Bytes) {
        let Open { channel, stream, .. } = &self.open;
        loop {
            let piece = data.split_to(data.len().min(PIECE));
            // The semaphore is never closed.
            if let Ok(permits) = self.incoming.acquire_many(piece.len() as u32).await {
                permits.forget();
            }
            let kind = if data.is_empty() { kind } else { Kind::Piece };
            channel.tell_of(*stream, kind, &piece);
            if data.is_empty() {
                return;
            }
        }
    }

    /// From the worker to the client, with a ping where nothing else is said.
    async fn write(
        &self,
        sink: &mut SplitSink<Socket, Message>,
        from_worker: &mut mpsc::UnboundedReceiver<(Kind, Bytes)>,
    ) -> End {
        let mut begun = BytesMut::new();
        let mut taken = 0;
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        loop {
            let next = tokio::select! {
                next = from_worker.recv() => next,
                _ = ping.tick() => {
                    if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                        return End::Lost;
                    }
                    continue;
                }
            };
            // Whatever else is there already goes with the same write.
            let mut next = next;
            loop {
                let Some((kind, payload)) = next else {
                    let reason = "the program ended".into();
                    let code = CloseCode::Error;
                    return End::Program(Some(CloseFrame { code, reason }));
                };
                let length = payload.len();
                let message = match kind {
                    Kind::Close => return End::Program(close_frame(payload)),
                    Kind::Piece => {
                        begun.extend_from_slice(&payload);
                        None
                    }
                    kind => {
                        let whole = if begun.is_empty() {
                            payload
                        } else {
                            begun.extend_from_slice(&payload);
                            begun.split().freeze()
                        };
                        match message_of(kind, whole) {
                            Some(message) => Some(message),
                            None => return End::Wrong(CloseCode::Error, String::new()),
                        }
                    }
                };
                if begun.len() > self.limit {
                    return End::Wrong(CloseCode::Error, String::new());
                }
                if let Some(message) = message
                    && sink.feed(message).await.is_err()
                {
                    return End::Lost;
                }
                self.untaken.fetch_sub(length, Ordering::Relaxed);
                taken += length;
                self.tell_taken(&mut taken);
                match from_worker.try_recv() {
                    Ok(more) => next = Some(more),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => next = None,
                }
            }
            if sink.flush().await.is_err() {
                return End::Lost;
            }
        }
    }

    /// Tells the worker that it may send more, once `taken` bytes are worth a frame.
    fn tell_taken(&self, taken: &mut usize) {
        if *taken >= TELL {
            let Open { channel, stream, .. } = &self.open;
            let taken = (std::mem::take(taken) as u32).to_le_bytes();
            channel.tell_of(*stream, Kind::Taken, &taken);
        }
    }
}

fn message_of(kind: Kind, whole: Bytes) -> Option<Message> {
    match kind {
        Kind::Text => Utf8Bytes::try_from(whole).ok().map(Message::Text),
        _ => Some(Message::Binary(whole)),
    }
}

/// What the program gave for a close: none where its code is one that must not travel.
fn close_frame(mut payload: Bytes) -> Option<CloseFrame> {
    if payload.len() < 2 {
        return None;
    }
    let code = CloseCode::from(payload.get_u16_le());
    let reason = Utf8Bytes::try_from(payload).unwrap_or_default();
    code.is_allowed().then_some(CloseFrame { code, reason })
}

fn end_of(error: &Error, limit: usize) -> End {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            End::Wrong(CloseCode::Size, format!("a message has {limit} bytes at most"))
        }
        Error::Utf8(_) => End::Wrong(CloseCode::Invalid, "text that is no UTF-8".to_owned()),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Lost,
        Error::Protocol(wrong) => {
            let mut reason = wrong.to_string();
            // A control frame has 125 bytes, two of which are the code. tungstenite's sentences are ASCII.
            reason.truncate(123);
            End::Wrong(CloseCode::Protocol, reason)
        }
        _ => End::Lost,
    }
}

/// Says goodbye, and waits for the client to say so, too.
async fn close(sink: &mut SplitSink<Socket, Message>, source: &mut SplitStream<Socket>, frame: Option<CloseFrame>) {
    let goodbye = async {
        if sink.send(Message::Close(frame)).await.is_ok() {
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = timeout(CLOSING, goodbye).await;
}
