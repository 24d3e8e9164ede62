//! What the worker's frames do: they end events, begin replies, and carry bodies and WebSockets on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body::Frame as BodyFrame;
use tokio::sync::mpsc;

use super::{Channel, State, Stream};
use crate::engine::worker::body::Pieces;
use crate::engine::worker::frame::{Frame, Kind, PIECE, WINDOW};
use crate::engine::worker::{Fault, ReplyHead};
use crate::event::{Body, Failure, FailureKind, Reply};

impl Channel {
    /// Does what a frame says.
    pub(super) fn take(self: &Arc<Self>, frame: Frame) {
        let Frame { kind, stream, payload } = frame;
        match kind {
            Kind::Reply | Kind::Head => self.take_head(kind, stream, payload),
            Kind::Value => self.finish(stream, Ok(Reply::Value(payload))),
            Kind::Failed => {
                let fault = Fault::decode(&payload);
                let mut failure = Failure::new(FailureKind::Program, fault.message);
                failure.traceback = fault.traceback;
                self.finish(stream, Err(failure));
            }
            Kind::Piece => self.take_piece(stream, payload),
            Kind::End => self.end(stream, payload),
            Kind::Accept => self.accept(stream, payload),
            Kind::Text | Kind::Binary | Kind::Close => self.take_for_socket(kind, stream, payload),
            Kind::Taken => {
                let Some(bytes) = payload.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize) else {
                    return;
                };
                if let Some(Stream {
                    window: Some(window), ..
                }) = self.streams.lock().open.get(&stream)
                {
                    window.add_permits(bytes.min(WINDOW.saturating_sub(window.available_permits())));
                }
            }
            Kind::Ready | Kind::Refused => {
                if let Some(start) = self.streams.lock().start.take() {
                    let word = if kind == Kind::Ready {
                        Ok(payload)
                    } else {
                        Err(Fault::decode(&payload))
                    };
                    let _ = start.send(word);
                }
            }
            // That something was heard is all that a pong says; the rest is never sent by a worker.
            Kind::Pong
            | Kind::Load
            | Kind::Request
            | Kind::Message
            | Kind::Connect
            | Kind::Cancel
            | Kind::Stop
            | Kind::Ping => {}
        }
    }

    fn finish(&self, stream: u32, result: Result<Reply, Failure>) {
        let Some(mut stream) = self.streams.lock().open.remove(&stream) else {
            return;
        };
        match result {
            Err(failure) => fail(stream, failure),
            Ok(reply) => {
                if let State::Waiting(waiting) | State::Connecting { waiting, .. } = take_state(&mut stream) {
                    let _ = waiting.send(Ok(reply));
                }
            }
        }
    }

    fn take_head(self: &Arc<Self>, kind: Kind, id: u32, payload: Bytes) {
        let decoded = self.language.decode_reply(payload);
        let ReplyHead { mut response, body } = match decoded.and_then(ReplyHead::checked) {
            Ok(head) => head,
            Err(reason) => {
                let failure = Failure::new(FailureKind::Program, reason);
                return self.finish_and_cancel(id, failure);
            }
        };
        if kind == Kind::Reply {
            *response.body_mut() = body.into();
            return self.finish(id, Ok(Reply::Http(response)));
        }
        let mut streams = self.streams.lock();
        let Some(stream) = streams.open.get_mut(&id) else {
            return;
        };
        let (pieces, receiver) = mpsc::unbounded_channel();
        let untaken = Arc::new(AtomicUsize::new(0));
        let streaming = State::Streaming {
            pieces,
            untaken: untaken.clone(),
        };
        if let State::Waiting(waiting) | State::Connecting { waiting, .. } =
            std::mem::replace(&mut stream.state, streaming)
        {
            *response.body_mut() = Body::stream(Pieces::new(self.clone(), id, receiver, untaken));
            drop(streams);
            let _ = waiting.send(Ok(Reply::Http(response)));
        }
    }

    fn take_piece(&self, id: u32, payload: Bytes) {
        let streams = self.streams.lock();
        let (pieces, untaken) = match streams.open.get(&id).map(|stream| &stream.state) {
            Some(State::Streaming { pieces, untaken }) => (pieces, untaken),
            Some(State::Socket(_)) => {
                drop(streams);
                return self.take_for_socket(Kind::Piece, id, payload);
            }
            _ => return,
        };
        if untaken.fetch_add(payload.len(), Ordering::Relaxed) <= WINDOW + PIECE {
            let _ = pieces.send(Ok(BodyFrame::data(payload)));
            return;
        }
        drop(streams);
        let failure = Failure::new(
            FailureKind::Program,
            "the worker sent more of a body than its window allows",
        );
        self.finish_and_cancel(id, failure);
    }

    /// The end of a reply that came in pieces, with its trailers if there are any.
    fn end(&self, id: u32, payload: Bytes) {
        let Some(mut stream) = self.streams.lock().open.remove(&id) else {
            return;
        };
        if payload.is_empty() {
            return;
        }
        match (take_state(&mut stream), self.language.decode_reply(payload)) {
            (State::Streaming { pieces, .. }, Ok(ReplyHead { response, .. })) => {
                let trailers = response.into_parts().0.headers;
                let _ = pieces.send(Ok(BodyFrame::trailers(trailers)));
            }
            (State::Streaming { pieces, .. }, Err(reason)) => drop(pieces.send(Err(reason.into()))),
            _ => {}
        }
    }

    /// The program accepts a WebSocket.
    fn accept(&self, id: u32, payload: Bytes) {
        let head = match self.language.decode_reply(payload) {
            Ok(head) => head,
            Err(reason) => return self.finish_and_cancel(id, Failure::new(FailureKind::Program, reason)),
        };
        let mut streams = self.streams.lock();
        let Some(stream) = streams.open.get_mut(&id) else {
            return;
        };
        match take_state(stream) {
            State::Connecting { waiting, socket } => {
                stream.state = State::Socket(socket);
                drop(streams);
                let _ = waiting.send(Ok(Reply::Http(head.response)));
            }
            other => stream.state = other,
        }
    }

    fn take_for_socket(&self, kind: Kind, id: u32, payload: Bytes) {
        let streams = self.streams.lock();
        let Some(State::Socket(socket)) = streams.open.get(&id).map(|stream| &stream.state) else {
            return;
        };
        if !socket.put(kind, payload) {
            drop(streams);
            let failure = Failure::new(
                FailureKind::Program,
                "the worker sent more of a message than its window allows",
            );
            self.finish_and_cancel(id, failure);
        }
    }

    /// Ends an event that the worker still has.
    pub(in crate::engine::worker) fn finish_and_cancel(&self, id: u32, failure: Failure) {
        self.finish(id, Err(failure));
        self.tell_cancel(id);
    }
}

fn take_state(stream: &mut Stream) -> State {
    let (nowhere, _) = mpsc::unbounded_channel();
    let untaken = Arc::default();
    std::mem::replace(
        &mut stream.state,
        State::Streaming {
            pieces: nowhere,
            untaken,
        },
    )
}

/// Ends an event with `failure`, whatever is known of it.
pub(super) fn fail(mut stream: Stream, failure: Failure) {
    match take_state(&mut stream) {
        State::Waiting(waiting) | State::Connecting { waiting, .. } => drop(waiting.send(Err(failure))),
        State::Streaming { pieces, .. } => drop(pieces.send(Err(failure.into()))),
        // Its other end sees that nothing comes any more.
        State::Socket(_) => {}
    }
}
