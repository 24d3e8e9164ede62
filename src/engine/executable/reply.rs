//! The body of a program's reply on its way to the client: read from the connection only as fast as the client takes
//! it, and at its end the connection is free for the next event.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::connection::Connection;
use super::upstream::Upstream;
use crate::event::{Body, BodyError};

/// Why the body of a reply ended before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the program broke its reply off: {0}")]
    Off(#[source] hyper::Error),
    #[error("the program sent nothing more of its reply for {0:?}")]
    Silent(Duration),
}

pub struct ReplyBody {
    upstream: Arc<Upstream>,
    /// Gone when the reply is complete or broken.
    connection: Option<Connection>,
    incoming: Incoming,
    /// What came together with the head, at most two pieces.
    first: [Option<Result<Frame<Bytes>, BodyError>>; 2],
    /// Set while a piece is waited for.
    patience: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl ReplyBody {
    pub fn new(upstream: Arc<Upstream>, connection: Connection, incoming: Incoming) -> Self {
        Self {
            upstream,
            connection: Some(connection),
            incoming,
            first: [None, None],
            patience: None,
            is_waiting: false,
        }
    }

    /// The body in one piece if all of it came together with the head, as most do; else a stream.
    pub async fn into_body(mut self) -> Body {
        std::future::poll_fn(|cx| {
            for slot in 0..self.first.len() {
                let Poll::Ready(Some(piece)) = self.poll_connection(cx) else {
                    break;
                };
                self.first[slot] = Some(piece);
            }
            Poll::Ready(())
        })
        .await;
        if self.connection.is_some() {
            return Body::stream(self);
        }
        match &mut self.first {
            [None, None] => Body::empty(),
            [Some(Ok(piece)), None] if piece.is_data() => {
                piece.data_mut().map(std::mem::take).unwrap_or_default().into()
            }
            _ => Body::stream(self),
        }
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        let piece = if self.incoming.is_end_stream() {
            None
        } else {
            ready!(connection.poll_piece(&mut self.incoming, cx))
        };
        match piece {
            Some(Err(error)) => {
                self.connection = None;
                return Poll::Ready(Some(Err(Broken::Off(error).into())));
            }
            Some(Ok(_)) if !self.incoming.is_end_stream() => {}
            _ => {
                if let Some(connection) = self.connection.take() {
                    self.upstream.release(connection, cx);
                }
            }
        }
        Poll::Ready(piece.map(|piece| piece.map_err(Into::into)))
    }

    /// Ready when the program has kept us waiting for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.upstream.timeout;
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if !self.is_waiting {
            self.is_waiting = true;
            patience.as_mut().reset(Instant::now() + timeout);
        }
        patience.as_mut().poll(cx)
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.first.iter_mut().find_map(Option::take) {
            return Poll::Ready(Some(piece));
        }
        if let Poll::Ready(piece) = self.poll_connection(cx) {
            self.is_waiting = false;
            return Poll::Ready(piece);
        }
        ready!(self.poll_patience(cx));
        self.connection = None;
        let timeout = self.upstream.timeout;
        Poll::Ready(Some(Err(Broken::Silent(timeout).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none() && self.first.iter().all(Option::is_none)
    }

    fn size_hint(&self) -> SizeHint {
        let waiting: u64 = self
            .first
            .iter()
            .flatten()
            .filter_map(|piece| Some(piece.as_ref().ok()?.data_ref()?.len() as u64))
            .sum();
        let rest = self.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + waiting);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}
