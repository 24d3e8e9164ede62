//! Replies over HTTP/2 whose clients take nothing: they leave the window of a stream closed, of which the kernel knows
//! nothing, and take of the connection what else there is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use crate::event::{Body, BodyError};

/// `body`, which is given up once nothing of it has been asked for in `patience`.
pub fn given_up_after(patience: Duration, body: Body) -> Body {
    let body = match body.try_into_bytes() {
        Ok(whole) => return whole.into(),
        Err(body) => body,
    };
    let reply = Arc::new(Mutex::new(Reply {
        body: Some(body),
        taken: Instant::now(),
        is_awaited: false,
    }));
    let overseer = tokio::spawn(oversee(Arc::downgrade(&reply), patience));
    Body::stream(Overseen {
        reply,
        _overseer: AbortOnDropHandle::new(overseer),
    })
}

struct Overseen {
    reply: Arc<Mutex<Reply>>,
    _overseer: AbortOnDropHandle<()>,
}

struct Reply {
    /// None once it was given up.
    body: Option<Body>,
    /// When the client was given something of it.
    taken: Instant,
    /// The client waits for more, and the program has not made it yet.
    is_awaited: bool,
}

fn lock(reply: &Mutex<Reply>) -> MutexGuard<'_, Reply> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn oversee(reply: Weak<Mutex<Reply>>, patience: Duration) {
    let mut left = patience;
    loop {
        tokio::time::sleep(left).await;
        let Some(reply) = reply.upgrade() else { return };
        let mut held = lock(&reply);
        left = match held.is_awaited {
            true => patience,
            false => patience.saturating_sub(held.taken.elapsed()),
        };
        if left.is_zero() {
            let given_up = held.body.take();
            drop(held);
            return drop(given_up);
        }
    }
}

impl HttpBody for Overseen {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut reply = lock(&self.reply);
        let Some(body) = &mut reply.body else {
            return Poll::Ready(Some(Err("its client has taken nothing for too long".into())));
        };
        let polled = Pin::new(body).poll_frame(cx);
        reply.is_awaited = polled.is_pending();
        reply.taken = Instant::now();
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.reply).body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.reply)
            .body
            .as_ref()
            .map(HttpBody::size_hint)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn channel() -> (mpsc::Sender<Bytes>, Body) {
        let (sender, receiver) = mpsc::channel(1);
        let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
            let piece: Bytes = receiver.recv().await?;
            Some((Ok::<_, BodyError>(Frame::data(piece)), receiver))
        });
        (sender, Body::stream(StreamBody::new(Box::pin(pieces))))
    }

    #[tokio::test]
    async fn what_nobody_takes_is_given_up() {
        let (program, body) = channel();
        let mut body = given_up_after(PATIENCE, body);
        program.send("a".into()).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        // The program learns of it though nobody asks for the body.
        program.closed().await;
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_program_may_take_its_time() {
        let (program, body) = channel();
        let mut body = given_up_after(PATIENCE, body);
        let reading = tokio::spawn(async move { body.frame().await.unwrap().unwrap().into_data().unwrap() });
        tokio::time::sleep(4 * PATIENCE).await;
        program.send("late".into()).await.unwrap();
        assert_eq!(reading.await.unwrap(), "late");
    }
}
