//! What has happened lately, and what happens now, for those who look: each thing as one line of JSON.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::report::log::Entry;

/// Requests and lines that are remembered.
const REQUESTS: usize = 200;
const LINES: usize = 500;

/// What a client may be behind by before it misses something.
const BEHIND: usize = 1024;

/// The longest line that is remembered, in bytes.
const LINE_LIMIT: usize = 2000;

/// What has happened lately, and who is told of what happens now.
pub struct Recorder {
    recent: Mutex<Recent>,
    told: broadcast::Sender<Arc<str>>,
}

#[derive(Default)]
struct Recent {
    requests: VecDeque<Value>,
    lines: VecDeque<Value>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            told: broadcast::channel(BEHIND).0,
        }
    }
}

impl Recorder {
    /// An event that has come to its end.
    pub fn request(&self, request: Value) {
        self.tell(json!({ "request": request }));
        let mut recent = self.recent();
        recent.requests.push_back(request);
        if recent.requests.len() > REQUESTS {
            recent.requests.pop_front();
        }
    }

    /// A line of the log.
    pub fn log(&self, entry: &Entry<'_>) {
        let end = entry.message.floor_char_boundary(LINE_LIMIT);
        let line = json!({
            "time": now(),
            "component": entry.component,
            "event": entry.event,
            "level": entry.level.as_str(),
            "message": entry.message[..end],
        });
        self.tell(json!({ "log": line }));
        let mut recent = self.recent();
        recent.lines.push_back(line);
        if recent.lines.len() > LINES {
            recent.lines.pop_front();
        }
    }

    /// The requests of late, the oldest first.
    pub fn requests(&self) -> Vec<Value> {
        self.recent().requests.iter().cloned().collect()
    }

    /// The lines of late, the oldest first.
    pub fn lines(&self) -> Vec<Value> {
        self.recent().lines.iter().cloned().collect()
    }

    /// What happens from now on.
    pub fn follow(&self) -> Following {
        Following(self.told.subscribe())
    }

    fn tell(&self, what: Value) {
        // Nobody may be looking.
        if self.told.receiver_count() > 0 {
            let _ = self.told.send(what.to_string().into());
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happens, for one who looks.
pub struct Following(broadcast::Receiver<Arc<str>>);

impl Following {
    /// The next thing that happens; `None` when nothing more does.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            match self.0.recv().await {
                Ok(text) => return Some(text),
                // It was too slow for some of them; the page asks for all of it now and then.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Milliseconds since 1970.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1e6).round() / 1e3
}
