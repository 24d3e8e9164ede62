//! Why an event got no reply: one kind, and one sentence for whoever can mend it.

use std::fmt::Display;
use std::time::Duration;

use http::StatusCode;

/// Why an event got no reply from a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    /// A sentence: what failed, with which input, and what to do where that is known.
    pub message: String,
    /// The program's own account (a Python traceback, a Wasm backtrace), for its developer only.
    pub traceback: Option<String>,
    /// When it is worth another try, where that is known: `Retry-After` (RFC 9110, section 10.2.3).
    pub retry_after: Option<Duration>,
}

/// What sort of failure it is; decides the status code that HTTP clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The event itself can't be handled. 400.
    BadEvent,
    /// No component takes this event. 404.
    NotFound,
    /// A body beyond its limit. 413.
    TooLarge,
    /// More events than are allowed. 429.
    TooMany,
    /// The program raised, trapped, or broke its interface. 500.
    Program,
    /// What ran the program ended while it had this event, or answered with something that is no reply. 502.
    Gone,
    /// Nothing runs the program at the moment, or there is no room for the event. 503.
    Unavailable,
    /// No reply in time. 504.
    Timeout,
    /// Components call each other endlessly. 508.
    Loop,
}

impl FailureKind {
    /// The status code that HTTP clients get (RFC 9110; 508 is of RFC 5842).
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadEvent => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Program => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Gone => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            traceback: None,
            retry_after: None,
        }
    }

    #[must_use]
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = Some(traceback.into());
        self
    }

    /// Logs it, with all that is known, as what became of `asked`, which `component` had to do; nothing is said of one without a
    /// name.
    pub fn log(&self, component: &str, asked: impl Display) {
        tracing::warn!(component, "{asked}: {self}");
        if let Some(traceback) = &self.traceback {
            tracing::warn!(component, "{}", traceback.trim_end());
        }
    }
}

impl From<super::CollectError> for Failure {
    fn from(error: super::CollectError) -> Self {
        let kind = match &error {
            super::CollectError::TooLarge { .. } => FailureKind::TooLarge,
            super::CollectError::Broken(_) => FailureKind::BadEvent,
        };
        Self::new(kind, error.to_string())
    }
}
