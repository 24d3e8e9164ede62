//! One line for each request: for people, or for scripts.

use std::io::{self, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

use super::say;
use crate::intake::http::{REQUEST_ID, Served};
use crate::program::manifest::AccessLog;

/// Tells of a request that was served.
pub(super) fn tell(served: &Served<'_>, form: AccessLog) {
    if let Some(failure) = served.failure {
        tracing::warn!("{} {}: {failure}", served.method, served.path);
        if let Some(traceback) = &failure.traceback {
            tracing::warn!("{}", traceback.trim_end());
        }
    }
    match form {
        AccessLog::Text => say(&text(served)),
        AccessLog::Json => say(&json(served).to_string()),
        AccessLog::Off => {}
    }
}

fn text(served: &Served<'_>) -> String {
    let status = served.status.as_u16();
    let (on, off) = match status {
        _ if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() => ("", ""),
        500.. => ("\x1b[31m", "\x1b[0m"),
        400.. => ("\x1b[33m", "\x1b[0m"),
        _ => ("\x1b[32m", "\x1b[0m"),
    };
    let milliseconds = served.time.as_secs_f64() * 1e3;
    format!(
        "{on}{status}{off} {} {} {milliseconds:.1} ms",
        served.method, served.path
    )
}

/// What a script reads of a request. `time` is in seconds since 1970, of the reply's head.
pub(super) fn json(served: &Served<'_>) -> serde_json::Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut json = serde_json::json!({
        "time": (now.as_secs_f64() * 1e3).round() / 1e3,
        "id": served.context.id.to_string(),
        "client": served.context.client.map(|client| client.to_string()),
        "method": served.method.as_str(),
        "path": served.path,
        "status": served.status.as_u16(),
        "ms": (served.time.as_secs_f64() * 1e6).round() / 1e3,
    });
    if let Some(id) = served.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()) {
        json["request_id"] = id.into();
    }
    if let Some(failure) = served.failure {
        json["error"] = failure.message.as_str().into();
    }
    json
}
