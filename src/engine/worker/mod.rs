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
use http::Response;
use http::request::Parts;

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
