//! What every intake makes and every engine takes: an [`Event`], and what comes back, a [`Reply`] or a [`Failure`].
//!
//! ```text
//! intake -> Event -> router -> engine -> Result<Reply, Failure> -> the same intake
//! ```
//!
//! Nothing here knows how events reach the machine or what runs them.

mod body;
mod failure;
mod target;
pub mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use body::{Body, BodyError, CollectError};
pub use failure::{Failure, FailureKind};
pub use target::{call, shown};
use trace::Trace;

/// One thing to do: an HTTP request or a network message, and what is known of where it came from.
#[derive(Debug)]
pub struct Event {
    pub context: Context,
    pub input: Input,
}

/// What a program is asked to handle.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every event is a request: a box would cost each an allocation"
)]
pub enum Input {
    Http(http::Request<Body>),
    Message(Message),
}

/// A network message: its JSON text, as the host sent it.
#[derive(Debug, Clone)]
pub struct Message {
    pub body: String,
}

/// What is known of an event beside its content. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context {
    pub id: EventId,
    /// The other end of the connection, if the intake has addresses.
    pub client: Option<SocketAddr>,
    /// Our end of that connection.
    pub server: Option<SocketAddr>,
    /// How many components have passed it on: 0 for one from outside.
    pub depth: u8,
    /// Its request id and trace, if an engine needs them for requests that its guests make.
    pub trace: Option<Arc<Trace>>,
    /// `http` or `https`, as the client saw it.
    pub scheme: &'static str,
    /// The percent-decoded path, if the intake was given it in that form: decoding the request's URI again would take off
    /// one layer too many.
    pub decoded_path: Option<String>,
}

/// Tells the events of one process apart, in logs and for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(u64);

/// What a program answered.
#[derive(Debug)]
pub enum Reply {
    Http(http::Response<Body>),
    /// The answer to a message, as the program gave it.
    Value(bytes::Bytes),
}

impl Event {
    /// An HTTP request with a context of its own and nothing known of the client.
    pub fn http(request: http::Request<Body>) -> Self {
        Self {
            context: Context::next(),
            input: Input::Http(request),
        }
    }

    /// A network message with a context of its own.
    pub fn message(body: impl Into<String>) -> Self {
        Self {
            context: Context::next(),
            input: Input::Message(Message { body: body.into() }),
        }
    }
}

impl Context {
    /// A context with the next free id.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: EventId(NEXT.fetch_add(1, Ordering::Relaxed)),
            client: None,
            server: None,
            depth: 0,
            trace: None,
            scheme: "http",
            decoded_path: None,
        }
    }
}

impl EventId {
    /// Of what is done for no event in particular.
    pub const NONE: Self = Self(0);

    /// The id as a header's value.
    pub fn value(self) -> http::HeaderValue {
        self.0.into()
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
