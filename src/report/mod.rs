//! What the process says of itself: its log, and how far it has come since it began.

pub mod log;
pub mod mistake;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Notes the process's beginning. Called first thing in `main`.
pub fn begin() {
    BEGAN.get_or_init(Instant::now);
}

/// The time since the process began.
pub fn age() -> Duration {
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Logs that a stage of the process's life has been reached, and when.
pub fn stage(what: &str) {
    tracing::info!("{what} after {:.1} ms", age().as_secs_f64() * 1e3);
}
