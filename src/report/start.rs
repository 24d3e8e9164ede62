//! What the start of each component took, part by part.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use serde_json::json;

use super::milliseconds;

/// Components that are remembered at most.
const COMPONENTS: usize = 100;

static STARTS: Mutex<BTreeMap<String, Start>> = Mutex::new(BTreeMap::new());

/// One start of a component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// Whether its interpreter was there before it was known what it will run: what that took was waited for by nobody.
    pub ahead: bool,
    /// What was done, and how long it took, in this order.
    pub parts: Vec<(&'static str, Duration)>,
}

impl Start {
    /// One of these parts.
    pub fn of(parts: impl IntoIterator<Item = (&'static str, Duration)>) -> Self {
        Self {
            ahead: false,
            parts: parts.into_iter().collect(),
        }
    }

    /// Remembers it as the last one of `component`.
    pub fn note(self, component: &str) {
        let mut starts = STARTS.lock();
        if starts.len() < COMPONENTS || starts.contains_key(component) {
            starts.insert(component.to_owned(), self);
        }
    }
}

impl fmt::Display for Start {
    /// `spawn 1.1, interpreter 12.0, … ms`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (what, took)) in self.parts.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{what} {:.1}", took.as_secs_f64() * 1e3)?;
        }
        f.write_str(if self.ahead {
            " ms, the interpreter ahead of time"
        } else {
            " ms"
        })
    }
}

/// The last start of each component.
pub fn starts() -> BTreeMap<String, Start> {
    STARTS.lock().clone()
}

/// The same for scripts, by component: `{"ahead": false, "parts": [["spawn", 1.234], …]}`, in milliseconds.
pub fn json() -> serde_json::Value {
    let of = |start: Start| {
        let parts = start
            .parts
            .iter()
            .map(|(what, took)| json!([what, milliseconds(*took)]));
        json!({ "ahead": start.ahead, "parts": parts.collect::<Vec<_>>() })
    };
    starts()
        .into_iter()
        .map(|(component, start)| (component, of(start)))
        .collect()
}

/// The time on the clock that all processes of this machine share (clock_gettime(2), CLOCK_MONOTONIC), from some point in
/// the past.
pub fn clock() -> Duration {
    // Without that clock, which no Linux is, nothing is known of times.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_in_one_line() {
        let start = Start::of([
            ("spawn", Duration::from_micros(1234)),
            ("listen", Duration::from_millis(50)),
        ]);
        assert_eq!(start.to_string(), "spawn 1.2, listen 50.0 ms");
        assert!(clock() > Duration::ZERO);
    }
}
