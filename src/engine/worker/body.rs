//! Bodies in pieces, between a worker's channel and the two ends of an event: the request's on its way to the worker,
//! the reply's on its way from it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc};

use super::channel::Channel;
use super::frame::{self, Kind, PIECE, TELL};
use crate::event::{Body, BodyError, Failure, FailureKind};

/// Sends a request's body, as fast as the worker takes it.
pub async fn pump(channel: Arc<Channel>, stream: u32, mut body: Body, window: Arc<Semaphore>) {
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                // The client is gone in the middle of its request: to the program, a disconnect, which it owes no reply.
                let message = format!("the request's body broke off: {error}");
                return channel.finish_and_cancel(stream, Failure::new(FailureKind::BadEvent, message));
            }
        };
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            match window.acquire_many(piece.len() as u32).await {
                Ok(permits) => permits.forget(),
                Err(_) => return,
            }
            // Where the end is known already it goes with the last piece.
            let last = data.is_empty() && body.is_end_stream();
            channel.send(|out| {
                frame::put(out, Kind::Piece, stream, &piece);
                if last {
                    frame::put(out, Kind::End, stream, b"");
                }
            });
            if last {
                return;
            }
        }
    }
    channel.tell_of(stream, Kind::End, b"");
}

/// The body of a reply that comes in pieces.
pub struct Pieces {
    channel: Arc<Channel>,
    stream: u32,
    receiver: mpsc::UnboundedReceiver<Result<Frame<Bytes>, BodyError>>,
    untaken: Arc<AtomicUsize>,
    /// Bytes that were taken, and that the worker has not been told of yet.
    taken: usize,
    ended: bool,
}

impl Pieces {
    /// What comes from `receiver`, of which `untaken` bytes have not been taken yet, is the body of the event `stream`.
    pub fn new(
        channel: Arc<Channel>,
        stream: u32,
        receiver: mpsc::UnboundedReceiver<Result<Frame<Bytes>, BodyError>>,
        untaken: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            channel,
            stream,
            receiver,
            untaken,
            taken: 0,
            ended: false,
        }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match std::task::ready!(self.receiver.poll_recv(cx)) {
            Some(Ok(part)) => {
                if let Some(piece) = part.data_ref() {
                    let length = piece.len();
                    self.untaken.fetch_sub(length, Ordering::Relaxed);
                    self.taken += length;
                    if self.taken >= TELL {
                        let taken = (std::mem::take(&mut self.taken) as u32).to_le_bytes();
                        self.channel.tell_of(self.stream, Kind::Taken, &taken);
                    }
                }
                Poll::Ready(Some(Ok(part)))
            }
            Some(Err(error)) => {
                self.ended = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if !self.ended {
            self.channel.cancel(self.stream);
        }
    }
}
