//! The body of a reply over HTTP/2, where each has a window of its own: a client that opens none holds up that reply, not its
//! connection, and whoever waits for the connection alone would wait for ever.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::event::{Body, BodyError};

/// `body`, which its program need write no longer once nothing more of it was asked for within `patience` (twice as long at
/// the most), though there was something of it already.
pub(super) fn overseen(body: Body, patience: Duration) -> Body {
    match body.try_into_bytes() {
        Ok(whole) => whole.into(),
        Err(body) => Body::stream(Overseen {
            reply: Arc::new(Mutex::new(Reply {
                body: Some(body),
                pieces: 0,
                waits: false,
            })),
            patience,
            overseer: None,
        }),
    }
}

struct Overseen {
    reply: Arc<Mutex<Reply>>,
    patience: Duration,
    /// From the first piece that is not the last.
    overseer: Option<AbortOnDropHandle<()>>,
}

struct Reply {
    /// None once it was given up.
    body: Option<Body>,
    /// How many were given.
    pieces: u64,
    /// The last that was asked for was there: it's not the program that is waited for.
    waits: bool,
}

async fn oversee(reply: Weak<Mutex<Reply>>, patience: Duration) {
    let mut seen = None;
    loop {
        tokio::time::sleep(patience).await;
        let Some(reply) = reply.upgrade() else { return };
        // Held while somebody asks for more right now.
        let Some(mut reply) = reply.try_lock() else { continue };
        let now = reply.waits.then_some(reply.pieces);
        if now.is_some() && now == seen {
            let given_up = reply.body.take();
            drop(reply);
            drop(given_up);
            tracing::debug!("a reply over HTTP/2 ended: nothing more of it was taken");
            return;
        }
        seen = now;
    }
}

impl HttpBody for Overseen {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut guard = self.reply.lock();
        let reply = &mut *guard;
        let Some(body) = &mut reply.body else {
            return Poll::Ready(Some(Err("nothing more of it was taken for too long".into())));
        };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        reply.waits = matches!(frame, Poll::Ready(Some(Ok(_))));
        reply.pieces += u64::from(reply.waits);
        let goes_on = reply.waits && !body.is_end_stream();
        drop(guard);
        if goes_on && self.overseer.is_none() {
            let overseer = tokio::spawn(oversee(Arc::downgrade(&self.reply), self.patience));
            self.overseer = Some(AbortOnDropHandle::new(overseer));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.reply.lock().body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.reply
            .lock()
            .body
            .as_ref()
            .map(HttpBody::size_hint)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::oneshot;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// Pieces without end after a pause, and what is told when nobody writes them any more.
    fn endless(pause: Duration) -> (Body, oneshot::Receiver<()>) {
        let (writes, written) = oneshot::channel::<()>();
        let pieces = stream::unfold((writes, true), move |(writes, is_first)| async move {
            if !is_first {
                tokio::time::sleep(pause).await;
            }
            let frame = Frame::data(Bytes::from_static(b"piece"));
            Some((Ok::<_, BodyError>(frame), (writes, false)))
        });
        (overseen(Body::stream(StreamBody::new(Box::pin(pieces))), SOON), written)
    }

    #[tokio::test]
    async fn a_reply_that_nobody_takes_is_written_no_longer() {
        let (mut body, written) = endless(Duration::ZERO);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "piece");
        let ended = tokio::time::timeout(Duration::from_secs(60), written).await;
        assert!(ended.expect("it is written on").is_err());
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_program_may_take_its_time() {
        let (mut body, mut written) = endless(4 * SOON);
        for _ in 0..3 {
            assert!(body.frame().await.unwrap().is_ok());
        }
        assert!(
            written
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
    }

    #[tokio::test]
    async fn what_is_whole_needs_nobody() {
        let whole = overseen(Body::from("whole"), SOON).try_into_bytes();
        assert_eq!(whole.unwrap(), "whole");
    }
}
