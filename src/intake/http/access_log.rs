//! One line for each request: for people, or for scripts; and beside it, whatever its form, what failed inside.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Served;
use crate::event::shown;
use crate::event::trace::REQUEST_ID;
use crate::program::manifest::AccessLog;

/// Logs why a request failed, if it did.
pub fn explain(served: &Served<'_>) {
    if let Some(failure) = served.failure {
        failure.log("", format_args!("{} {}", served.method, shown(served.path)));
    }
}

/// The line of a request, if there is to be one. `coloured`: for a terminal.
pub fn line(served: &Served<'_>, form: AccessLog, coloured: bool) -> Option<String> {
    match form {
        AccessLog::Text => Some(text(served, coloured)),
        AccessLog::Json => Some(json(served).to_string()),
        AccessLog::Off => None,
    }
}

fn text(served: &Served<'_>, coloured: bool) -> String {
    let status = served.status.as_u16();
    let (on, off) = match status {
        _ if !coloured => ("", ""),
        500.. => ("\x1b[31m", "\x1b[0m"),
        400.. => ("\x1b[33m", "\x1b[0m"),
        _ => ("\x1b[32m", "\x1b[0m"),
    };
    let milliseconds = served.time.as_secs_f64() * 1e3;
    format!(
        "{on}{status}{off} {} {} {milliseconds:.1} ms",
        served.method,
        shown(served.path)
    )
}

/// What a script reads of a request. `time` is in seconds since 1970, of the reply's head.
fn json(served: &Served<'_>) -> serde_json::Value {
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
