//! A guest's request to another component of its program: in this process, but in a task of its own. Guests compute where
//! they are polled, and one that is polled from within another's asynchronous call could not be asynchronous itself.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::engine::Loopback;
use crate::event::{Body, BodyError, Event, Failure, FailureKind, Input, Reply, call};

/// Pieces of a reply that wait for the one who asked.
const WAITING: usize = 4;

type Piece = Result<Frame<Bytes>, BodyError>;

/// Gives `event` to the program's component for it. Dropping this, or the reply's body, ends the work on it.
///
/// # Errors
/// Only where polyinit itself is to blame: a component's own failures are replies, as any client would see them.
pub(super) async fn ask(loopback: Loopback, event: Event) -> Result<Response<Body>, Failure> {
    let (sender, head) = oneshot::channel();
    let task = AbortOnDropHandle::new(tokio::spawn(answer(loopback, event, sender)));
    let reply = head.await.map_err(|_| {
        let message = "polyinit itself failed at a request between components; the log says where";
        Failure::new(FailureKind::Program, message)
    })?;
    Ok(reply.map(|body| match body {
        Answered::Whole(bytes) => bytes.into(),
        Answered::Coming(pieces) => Body::stream(Coming { pieces, _task: task }),
    }))
}

/// The body of a reply.
enum Answered {
    Whole(Bytes),
    Coming(mpsc::Receiver<Piece>),
}

async fn answer(loopback: Loopback, event: Event, head: oneshot::Sender<Response<Answered>>) {
    let asked = match &event.input {
        Input::Http(request) => Some((request.method().clone(), request.uri().clone())),
        Input::Message(_) => None,
    };
    let response = match loopback.handle(event).await {
        Ok(Reply::Http(response)) => response,
        Ok(Reply::Value(value)) => Response::new(value.into()),
        // What it says may be said within the program.
        Err(failure) => {
            if let Some((method, uri)) = asked {
                failure.log("", call(&method, &uri));
            }
            let mut response = Response::new(format!("{failure}\n").into());
            *response.status_mut() = failure.kind.status();
            response
        }
    };
    // Whoever takes neither head nor pieces has gone away, and has this task ended.
    let (parts, body) = response.into_parts();
    match body.try_into_bytes() {
        Ok(bytes) => drop(head.send(Response::from_parts(parts, Answered::Whole(bytes)))),
        Err(mut body) => {
            let (sender, pieces) = mpsc::channel(WAITING);
            let _ = head.send(Response::from_parts(parts, Answered::Coming(pieces)));
            while let Some(piece) = body.frame().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A body that the other component still writes.
struct Coming {
    pieces: mpsc::Receiver<Piece>,
    _task: AbortOnDropHandle<()>,
}

impl HttpBody for Coming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.pieces.poll_recv(cx)
    }
}
