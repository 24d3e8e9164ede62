//! `Expect: 100-continue` (RFC 9110, section 10.1.1), passed on: a client that waits for the program's word before it sends
//! its body gets that word, and not ours. So the body is not asked for, which is when the intake says "100 Continue",
//! until the program has.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::head::has_token;
use crate::event::{Body, BodyError};

/// A program that knows nothing of the expectation never says anything: then the body goes on its way after a while,
/// as a client's own would.
const PATIENCE: Duration = Duration::from_secs(1);

/// The request, its body held back if the client waits for the program's word.
pub fn hold_back(request: Request<Body>) -> Request<Body> {
    if !has_token(request.headers(), &EXPECT, "100-continue") || request.body().is_end_stream() {
        return request;
    }
    let (go_on, word) = oneshot::channel();
    let mut request = request.map(|body| {
        Body::stream(Held {
            body,
            word: Some((word, Box::pin(tokio::time::sleep(PATIENCE)))),
        })
    });
    let go_on = Arc::new(Mutex::new(Some(go_on)));
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE
            && let Some(go_on) = go_on.lock().take()
        {
            // Nobody hears it where the request is over already.
            let _ = go_on.send(());
        }
    });
    request
}

struct Held {
    body: Body,
    /// Gone when the body is on its way.
    word: Option<(oneshot::Receiver<()>, Pin<Box<Sleep>>)>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((word, patience)) = &mut self.word {
            // An error, too: the connection has no more use for the callback, so that there is nothing to wait for.
            if Pin::new(word).poll(cx).is_pending() {
                ready!(patience.as_mut().poll(cx));
            }
            self.word = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
