//! Runs any executable that serves HTTP: a binary of whatever language, or a script with a `#!` line.
//!
//! ```text
//! Event -> head -> a connection to 127.0.0.1:$PORT -> the program -> head, body as it comes -> Reply
//! ```
//!
//! The program is started in its directory with `PORT` (a free port) and `HOST` (127.0.0.1) in its environment, and is
//! ready when it listens on that port, or on the port that executables use by convention. Requests reach it as they
//! came and its replies go back as they are: targets are not normalised, redirects not followed, bodies not decoded.
//!
//! Network messages go to programs that say in their manifest that they take them: as `POST /` with the content type
//! `application/json` and the field `event-type: message`. The body of a reply with a status of 2xx is the message's
//! reply.

mod connection;
mod head;
mod launch;
mod listen;
mod reply;
mod supervise;
#[cfg(test)]
mod tests;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response};

use super::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Body, CollectError, Event, Failure, FailureKind, Input, Message, Reply};
use crate::program::Component;
use launch::ExecutableFile;
use supervise::{Ended, Supervised};
use upstream::SendError;

pub use launch::{Listening, Lookout, Ports, Start, Starting, blind};

/// Starts the file that `component` names.
///
/// # Errors
/// There is no such file, it can't be executed, it ends before it listens, or it does not listen in time.
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    let start = Arc::new(ExecutableFile::new(component, settings)?);
    let first = start.start().await?;
    Ok(serve(component, settings, start, first))
}

/// The engine of a component that serves HTTP itself and has been started already; `start` starts it again. For languages
/// whose programs may do that.
pub fn serve(component: &Component, settings: &Settings, start: Arc<dyn Start>, first: Listening) -> Arc<dyn Engine> {
    let description = match first.addresses.first() {
        Some(address) => format!("serves HTTP on {address}"),
        None => "serves HTTP".to_owned(),
    };
    Arc::new(Executable {
        shared: Arc::new(Shared {
            component: component.name.clone(),
            takes_messages: component.messages,
            body_limit: settings.body_limit,
            program: Supervised::new(&component.name, start, first, settings.event_timeout),
        }),
        description,
    })
}

struct Executable {
    shared: Arc<Shared>,
    description: String,
}

struct Shared {
    component: String,
    takes_messages: bool,
    /// For the reply to a message, in bytes.
    body_limit: usize,
    program: Supervised,
}

impl Engine for Executable {
    fn handle(&self, event: Event) -> Handling {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            match event.input {
                Input::Http(request) => shared.request(request).await.map(Reply::Http),
                Input::Message(message) => shared.message(message).await,
            }
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.program.stop(grace).await })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

impl Shared {
    async fn request(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let run = self.program.run().await?;
        let request = head::outgoing(request, run.upstream.address())?;
        let error = match run.upstream.send(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let ended = if error.is_of_the_connection() {
            run.ended().await
        } else {
            None
        };
        match (error, ended) {
            // It ended before it could be given this event, which the next run can take.
            (SendError::Connect { request, .. }, Some(_)) => {
                let run = self.program.run().await?;
                run.upstream
                    .send(*request)
                    .await
                    .map_err(|error| self.failure(&error, None))
            }
            (error, ended) => Err(self.failure(&error, ended)),
        }
    }

    async fn message(&self, message: Message) -> Result<Reply, Failure> {
        let component = &self.component;
        if !self.takes_messages {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("{component} takes no messages; an executable that does says so in its manifest"),
            ));
        }
        let mut request = Request::new(Body::from(message.body));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            HeaderName::from_static("event-type"),
            HeaderValue::from_static("message"),
        );
        let (parts, body) = self.request(request).await?.into_parts();
        let reply = body.collect(self.body_limit).await.map_err(|error| match error {
            CollectError::TooLarge { .. } => Failure::from(error),
            CollectError::Broken(_) => Failure::new(FailureKind::Gone, format!("{component}: {error}")),
        })?;
        if parts.status.is_success() {
            return Ok(Reply::Value(reply));
        }
        Err(Failure::new(
            FailureKind::Program,
            format!("{component} answered the message with status {}", parts.status),
        )
        .with_traceback(String::from_utf8_lossy(&reply)))
    }

    /// Why there is no reply. `ended` tells how the program ended meanwhile, if it did.
    fn failure(&self, error: &SendError, ended: Option<Ended>) -> Failure {
        let component = &self.component;
        if let Some(ended) = ended {
            let message = format!("{component} {} while it had this event", ended.how);
            return Failure::new(FailureKind::Gone, message).with_traceback(ended.last_words);
        }
        let kind = match error {
            SendError::RequestBody(_) => FailureKind::BadEvent,
            SendError::Timeout(_) => FailureKind::Timeout,
            SendError::NotHttp(_) | SendError::NoReply | SendError::Connect { .. } => FailureKind::Gone,
        };
        Failure::new(kind, format!("{component} {error}"))
    }
}
