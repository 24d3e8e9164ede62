//! The body of a request under a limit: refused at once where its length is announced, broken off where it is not.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::CancellationToken;

use crate::event::{Body, BodyError};

/// A body that ends with an error beyond its limit.
pub struct Limited {
    body: Body,
    left: u64,
    passed: Passed,
}

/// Whether the limit was passed: cancelled if so.
pub type Passed = CancellationToken;

impl Limited {
    /// Puts the request's body under `limit` bytes.
    ///
    /// # Errors
    /// It is known to be larger.
    #[expect(clippy::new_ret_no_self, reason = "nobody needs the body but its request")]
    pub fn new(request: Request<Body>, limit: u64) -> Result<(Request<Body>, Passed), ()> {
        let size = request.body().size_hint();
        if size.lower() > limit {
            return Err(());
        }
        let passed = Passed::new();
        // One that is known to be small enough goes on as it is.
        if size.upper().is_some_and(|upper| upper <= limit) {
            return Ok((request, passed));
        }
        let request = request.map(|body| {
            Body::stream(Self {
                body,
                left: limit,
                passed: passed.clone(),
            })
        });
        Ok((request, passed))
    }
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.passed.cancel();
                    return Poll::Ready(Some(Err("the body is larger than its limit".into())));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
