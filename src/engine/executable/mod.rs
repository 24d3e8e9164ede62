//! Runs any executable that serves HTTP: a binary of whatever language, or a script with a `#!` line.
//!
//! ```text
//! Event -> head -> a connection to 127.0.0.1:$PORT -> the program -> head, body as it comes -> Reply
//! ```
//!
//! The program is started in its directory with `PORT` (a free port) and `HOST` (127.0.0.1) in its environment, and is
//! ready when it listens on that port, or on the port that executables use by convention. Requests reach it as they
//! came and its replies go back as they are: targets are not normalised, redirects not followed, bodies not decoded.
//! `head` has what an intermediary adds and leaves out. A component may have several processes, each on a port of its own.
//!
//! Network messages go to programs that say in their manifest that they take them: as `POST /` with the content type
//! `application/json` and the field `event-type: message`. The body of a reply with a status of 2xx is the message's
//! reply.

mod connection;
mod expect;
mod fleet;
mod head;
mod launch;
mod reply;
mod supervise;
#[cfg(test)]
mod tests;
mod upgrade;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response};

use super::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Body, CollectError, Context, Event, Failure, FailureKind, Input, Message, Reply};
use crate::program::Component;
use fleet::Fleet;
use launch::ExecutableFile;
use supervise::Ended;
use upstream::SendError;

pub use launch::{Listening, Lookout, Ports, Start, Starting, blind};

/// Starts the file that `component` names.
///
/// # Errors
/// There is no such file, it can't be executed, it ends before it listens, or it does not listen in time.
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    let start = Arc::new(ExecutableFile::new(component, settings)?);
    let first = start.start().await?;
    first.start.clone().note(&component.name);
    Ok(serve(component, settings, start, first))
}

/// The engine of a component that serves HTTP itself and has been started already; `start` starts it again. For languages
/// whose programs may do that.
pub fn serve(component: &Component, settings: &Settings, start: Arc<dyn Start>, first: Listening) -> Arc<dyn Engine> {
    let description = match first.addresses.first() {
        Some(address) => format!("serves HTTP on {address}"),
        None => "serves HTTP".to_owned(),
    };
    let own_port = first.own_port;
    Arc::new(Executable {
        shared: Arc::new(Shared {
            component: component.name.clone(),
            takes_messages: component.messages,
            body_limit: settings.body_limit,
            programs: Fleet::new(component, settings, &start, first),
        }),
        description,
        own_port,
    })
}

struct Executable {
    shared: Arc<Shared>,
    description: String,
    own_port: bool,
}

struct Shared {
    component: String,
    takes_messages: bool,
    /// For the reply to a message, in bytes.
    body_limit: usize,
    programs: Fleet,
}

impl Engine for Executable {
    fn handle(&self, event: Event) -> Handling {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            match event.input {
                Input::Http(request) => shared.request(request, &event.context).await.map(Reply::Http),
                Input::Message(message) => Box::pin(shared.message(message, &event.context)).await,
            }
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.programs.stop(grace).await })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn has_own_port(&self) -> bool {
        self.own_port
    }
}

impl Shared {
    async fn request(&self, mut request: Request<Body>, context: &Context) -> Result<Response<Body>, Failure> {
        let run = self.programs.run().await?;
        let client = upgrade::wanted(&mut request);
        let request = head::outgoing(request, context, run.upstream.address(), client.is_some())?;
        let request = expect::hold_back(request);
        let (error, ended) = match run.send(request, client).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        drop(run);
        // In a box, as all that few requests come to: what each needs is small then, and is moved less.
        Box::pin(self.again(error, ended)).await
    }

    /// Another run is given the request that one could not answer, where that may be.
    async fn again(&self, error: SendError, ended: Option<Ended>) -> Result<Response<Body>, Failure> {
        match (error, ended) {
            // It ended before it could be given this event, which the next run can take; or it may be given it twice.
            (SendError::Connect { request, .. } | SendError::NoReply(Some(request)), Some(ended)) => {
                let Ok(run) = self.programs.run().await else {
                    return Err(self.failure(&SendError::NoReply(None), Some(ended)));
                };
                let sent = run.send(*request, None).await;
                sent.map_err(|(error, ended)| self.failure(&error, ended))
            }
            (error, ended) => Err(self.failure(&error, ended)),
        }
    }

    async fn message(&self, message: Message, context: &Context) -> Result<Reply, Failure> {
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
        let (parts, body) = self.request(request, context).await?.into_parts();
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
            let mut failure = Failure::new(FailureKind::Gone, message);
            failure.traceback = Some(ended.last_words).filter(|words| !words.is_empty());
            return failure;
        }
        let kind = match error {
            SendError::RequestBody(_) => FailureKind::BadEvent,
            SendError::Timeout(_) => FailureKind::Timeout,
            SendError::NotHttp(_) | SendError::NoReply(_) | SendError::Connect { .. } => FailureKind::Gone,
        };
        Failure::new(kind, format!("{component} {error}"))
    }
}
