//! Native worker processes, whatever their language: started, given events over a [`channel`], watched, replaced.
//!
//! ```text
//! Engine::handle -> pool: which worker? -> channel: frames -> the worker in its language -> the program
//! ```
//!
//! A component begins with one worker, warm if the machine had time to start one, and grows to as many as there are
//! processors (two at least) once events come at the same time. A worker that is busy without giving a sign of life,
//! because its program blocks, gets no more events until it does.

mod body;
mod channel;
mod frame;
mod launch;
mod pool;
mod socket;
mod warm;
mod websocket;

use std::ffi::OsString;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Response, StatusCode};

use super::{Engine, Settings, StartError};
use crate::event::{Body, Context, Message};
use crate::program::Component;

pub use launch::{Launched, launch};
pub use warm::Warm;

/// What is particular to a language: how its worker is started and how heads look inside the frames.
pub trait Language: Send + Sync + 'static {
    /// For messages to people: "Python".
    fn name(&self) -> &'static str;

    /// The interpreter and its arguments, to which the channel's descriptor is appended.
    fn command(&self) -> Vec<OsString>;

    /// What the interpreter reads off the channel before the first frame: the worker itself.
    fn preamble(&self) -> Vec<u8>;

    /// Variables that the interpreter has from its first moment, where the component's environment has none of the name.
    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether an interpreter that was started ahead will do for this component.
    fn takes_warm(&self, _component: &Component) -> bool {
        true
    }

    /// The name of the last part of a start: from the program's import until it is ready.
    fn last_part(&self) -> &'static str;

    /// The payload of the frame that tells the worker what to import.
    ///
    /// # Errors
    /// The component's entrypoint is of a kind that this language does not have.
    fn load(&self, component: &Component, settings: &Settings) -> Result<Vec<u8>, StartError>;

    /// Appends a network message.
    fn encode_message(&self, out: &mut BytesMut, _context: &Context, message: &Message) {
        out.extend_from_slice(message.body.as_bytes());
    }

    /// Appends the head of a request, with its body where that is whole.
    fn encode_request(&self, out: &mut BytesMut, context: &Context, head: &Parts, body: Option<&Bytes>);

    /// Reads the head of a reply, with its body where that is whole.
    ///
    /// # Errors
    /// A sentence that says what the program sent instead of a reply.
    fn decode_reply(&self, payload: Bytes) -> Result<ReplyHead, String>;
}

/// A reply as it stands in one frame.
pub struct ReplyHead {
    pub response: Response<Body>,
    pub body: Bytes,
}

impl ReplyHead {
    /// The same, where it is what can be sent. Whoever reads the next reply of a connection would begin in the middle of one
    /// that is longer or shorter than it says.
    ///
    /// # Errors
    /// A sentence on what the program sent that is no reply.
    fn checked(mut self) -> Result<Self, String> {
        // These have no body (RFC 9110, sections 15.3.5 and 15.4.5), whatever length is told.
        if matches!(
            self.response.status(),
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        ) {
            self.body = Bytes::new();
        }
        if self.response.status() == StatusCode::NO_CONTENT {
            self.response.headers_mut().remove(CONTENT_LENGTH);
        }
        let Self { response, body } = &self;
        if response.status().is_informational() {
            return Err(format!(
                "the program replied with the status {}, behind which another reply would have to come",
                response.status().as_u16()
            ));
        }
        // A reply to HEAD, or a 304, has the length of a body that it doesn't have (RFC 9110, section 8.6).
        if !body.is_empty()
            && let Some(length) = response.headers().get(CONTENT_LENGTH)
            && length.to_str().ok().and_then(|length| length.parse().ok()) != Some(body.len())
        {
            return Err(format!(
                "the program sent a content-length of {}, and a body of {} bytes",
                length.to_str().unwrap_or("nonsense"),
                body.len()
            ));
        }
        Ok(self)
    }
}

/// What a worker says went wrong.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Fault {
    pub message: String,
    #[serde(default)]
    pub traceback: Option<String>,
}

impl Fault {
    fn decode(payload: &[u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_else(|error| Self {
            message: format!("the worker sent a report that can't be read: {error}"),
            traceback: None,
        })
    }
}

/// Starts the first worker of `component` and returns when its program can take events.
///
/// # Errors
/// The program can't be started; with what it said.
pub async fn start(
    language: Arc<dyn Language>,
    component: &Component,
    settings: &Settings,
) -> Result<Arc<dyn Engine>, StartError> {
    let first = launch(&language, component, settings).await?;
    Ok(with(language, component, settings, first))
}

/// The engine of `component` whose first worker has been launched already.
pub fn with(
    language: Arc<dyn Language>,
    component: &Component,
    settings: &Settings,
    first: Launched,
) -> Arc<dyn Engine> {
    first.start.clone().note(&component.name);
    Arc::new(pool::Workers::new(language, component, settings, first))
}
