//! What the process says of itself: its log, and how far it has come since it began.

pub mod log;
pub mod mistake;
pub mod start;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Notes the process's beginning. Called first thing in `main`.
pub fn begin() {
    BEGAN.get_or_init(Instant::now);
}

/// The time since the process began.
pub fn age() -> Duration {
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Stages that are remembered at most; a process has a handful of them.
const STAGES: usize = 100;

static REACHED: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// Remembers that a stage of the process's life has been reached.
pub fn reached(what: &str) {
    let mut stages = REACHED.lock();
    if stages.len() < STAGES {
        stages.push((what.to_owned(), age()));
    }
}

/// The stages that were reached, and after how long.
pub fn stages() -> Vec<(String, Duration)> {
    REACHED.lock().clone()
}

/// For scripts and the console, to a microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Logs that a stage of the process's life has been reached, and when.
pub fn stage(what: &str) {
    reached(what);
    tracing::info!("{what} after {:.1} ms", age().as_secs_f64() * 1e3);
}
