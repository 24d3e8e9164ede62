//! The body of a request. What nobody reads any more, since the reply did not depend on it, is read and thrown away for a
//! while: a connection that is closed with something unread in it is reset, and with it goes the reply that says why (RFC
//! 9112, section 9.6). Most clients read that only once they have sent all. Over HTTP/2 it is the stream that is reset, with
//! `NO_ERROR` (RFC 9113, section 8.1), which some clients take for an error all the same.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::event::Body;

/// How long a client may take to send what nobody wants.
const LINGER: Duration = Duration::from_secs(5);

struct Upload {
    /// Gone once it has broken off.
    body: Option<Incoming>,
    /// The client sends it without being asked to, or has been asked.
    comes: bool,
}

/// The request with such a body, where it has one.
pub fn take(request: Request<Incoming>) -> Request<Body> {
    if request.body().is_end_stream() {
        return request.map(Body::stream);
    }
    let comes = !request.headers().contains_key(EXPECT);
    request.map(|body| {
        Body::stream(Upload {
            body: Some(body),
            comes,
        })
    })
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.comes = true;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if matches!(frame, Some(Err(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.comes || self.is_end_stream() {
            return;
        }
        if let (Some(mut body), Ok(runtime)) = (self.body.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(LINGER, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
        }
    }
}
