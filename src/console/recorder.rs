//! What has happened lately, and what happens now, for those who look: each thing as one line of JSON.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::event::trace::REQUEST_ID;
use crate::event::{Body, EventId};
use crate::report::log::Entry;
use crate::report::milliseconds;

/// Requests and lines that are remembered.
const REQUESTS: usize = 200;
const LINES: usize = 500;

/// What a client may be behind by before it misses something.
const BEHIND: usize = 1024;

/// The longest line that is remembered, and the longest path, in bytes.
const LINE_LIMIT: usize = 2000;

/// What has happened lately, and who is told of what happens now.
pub struct Recorder {
    recent: Mutex<Recent>,
    told: broadcast::Sender<Arc<str>>,
}

#[derive(Default)]
struct Recent {
    requests: VecDeque<Request>,
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
    pub fn request(&self, request: Request) {
        self.tell(|| json!({ "request": request.to_json() }));
        let mut recent = self.recent.lock();
        recent.requests.push_back(request);
        if recent.requests.len() > REQUESTS {
            recent.requests.pop_front();
        }
    }

    /// A line of the log.
    pub fn log(&self, entry: &Entry<'_>) {
        let line = json!({
            "time": now(),
            "component": entry.component,
            "event": entry.event,
            "level": entry.level.as_str(),
            "message": shortened(entry.message),
        });
        self.tell(|| json!({ "log": line }));
        let mut recent = self.recent.lock();
        recent.lines.push_back(line);
        if recent.lines.len() > LINES {
            recent.lines.pop_front();
        }
    }

    /// The requests of late, the oldest first.
    pub fn requests(&self) -> Vec<Value> {
        let requests = self.recent.lock().requests.clone();
        requests.iter().map(Request::to_json).collect()
    }

    /// The lines of late, the oldest first.
    pub fn lines(&self) -> Vec<Value> {
        self.recent.lock().lines.iter().cloned().collect()
    }

    /// What happens from now on.
    pub fn follow(&self) -> Following {
        Following(self.told.subscribe())
    }

    fn tell(&self, what: impl FnOnce() -> Value) {
        // Nobody may be looking.
        if self.told.receiver_count() > 0 {
            let _ = self.told.send(what().to_string().into());
        }
    }
}

/// What is remembered of an event. It becomes text when somebody looks: most of the time nobody does.
#[derive(Clone)]
pub struct Request {
    pub id: EventId,
    pub component: Arc<str>,
    /// Milliseconds since 1970.
    pub time: f64,
    /// How many calls between components led to it.
    pub depth: u8,
    pub asked: Asked,
    /// From the beginning to the reply's head, if there was one.
    pub head: Option<Duration>,
    /// From the beginning to the end.
    pub whole: Duration,
    pub status: Option<u16>,
    /// Of the reply's body.
    pub bytes: u64,
    pub error: Option<String>,
}

/// What an event asked for.
#[derive(Clone)]
pub enum Asked {
    Http {
        method: Method,
        path: Box<str>,
        request_id: Option<Box<str>>,
    },
    /// A network message of so many bytes.
    Message { bytes: usize },
}

impl Asked {
    /// Copies what it remembers: a piece of the request would keep the whole of what its connection reads into, which then
    /// has to be allocated anew for each request.
    pub fn http(request: &http::Request<Body>) -> Self {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        Self::Http {
            method: request.method().clone(),
            path: shortened(path).into(),
            request_id: request_id.map(|id| shortened(id).into()),
        }
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(LINE_LIMIT)]
}

impl Request {
    fn to_json(&self) -> Value {
        let mut told = json!({
            "id": self.id.to_string(),
            "component": &*self.component,
            "time": self.time,
            "depth": self.depth,
            "whole_ms": milliseconds(self.whole),
            "bytes": self.bytes,
        });
        match &self.asked {
            Asked::Http {
                method,
                path,
                request_id,
            } => {
                told["method"] = method.as_str().into();
                told["path"] = (&**path).into();
                told["request_id"] = request_id.as_deref().into();
            }
            Asked::Message { bytes } => {
                told["method"] = "message".into();
                told["path"] = format!("{bytes} bytes").into();
            }
        }
        if let Some(head) = self.head {
            told["head_ms"] = milliseconds(head).into();
        }
        if let Some(status) = self.status {
            told["status"] = status.into();
        }
        if let Some(error) = &self.error {
            told["error"] = error.as_str().into();
        }
        told
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
