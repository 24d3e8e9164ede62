//! A failure as an HTTP client sees it: problem details (RFC 9457).

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response};

use crate::event::{Body, Failure};

/// The response for `failure`. Its message and traceback are in there only where `reveal` says so: they are the
/// developer's, not the world's.
pub fn response(failure: &Failure, reveal: bool) -> Response<Body> {
    let status = failure.kind.status();
    let mut problem = serde_json::json!({
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
    });
    if reveal {
        problem["detail"] = failure.message.as_str().into();
        if let Some(traceback) = &failure.traceback {
            problem["traceback"] = traceback.as_str().into();
        }
    }
    let mut response = Response::new(Body::from(format!("{problem:#}\n")));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    if let Some(wait) = failure.retry_after {
        // In whole seconds, and not a moment too early.
        let seconds = wait.as_secs_f64().ceil() as u64;
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The same, with the failure itself among its extensions, for the one who writes the log.
pub fn response_with(failure: Failure, reveal: bool) -> Response<Body> {
    let mut response = response(&failure, reveal);
    response.extensions_mut().insert(failure);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FailureKind;

    #[tokio::test]
    async fn shows_internals_only_where_asked() {
        let failure = Failure::new(FailureKind::Program, "ValueError: secret").with_traceback("line 7");
        for (reveal, shown) in [(true, true), (false, false)] {
            let response = response(&failure, reveal);
            assert_eq!(response.status(), 500);
            let body = response.into_body().collect(9999).await.unwrap();
            let text = String::from_utf8_lossy(&body);
            assert!(text.contains("Internal Server Error"));
            assert_eq!(text.contains("secret") && text.contains("line 7"), shown, "{text}");
        }
    }
}
