//! Where events come in. Every intake makes [`Event`]s and hands them to its [`Handler`]; what comes back it puts into
//! the form that its clients expect.

pub mod aleph;
pub mod http;
pub mod internal;

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Handling;
use crate::event::Event;

/// What an intake gives its events to.
pub type Handler = Arc<dyn Fn(Event) -> Handling + Send + Sync>;

/// The pause after accept(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
