//! What lets a request be followed from component to component: an id by which the program, the log and the client know it
//! (the client's own, or one of ours), and the trace that it belongs to (W3C Trace Context).

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::EventId;

/// The header of the request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The headers of the trace (W3C Trace Context, 3.2 and 3.3).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest id that a client may choose, in bytes: it is written to logs.
const LONGEST: usize = 128;

/// The request's id, which is put into its `headers` if they have none.
pub fn request_id(headers: &mut HeaderMap, event: EventId) -> HeaderValue {
    given(headers).unwrap_or_else(|| {
        let id = new(event);
        headers.insert(REQUEST_ID, id.clone());
        id
    })
}

fn given(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(REQUEST_ID).filter(|id| is_id(id.as_bytes())).cloned()
}

/// What is known of one request, for the requests that a component makes on its behalf.
#[derive(Debug)]
pub struct Trace {
    request_id: HeaderValue,
    parent: Option<HeaderValue>,
    state: Option<HeaderValue>,
}

impl Trace {
    /// The trace of the event `id`, which came with these `headers`.
    pub fn of(headers: &HeaderMap, id: EventId) -> Self {
        Self {
            request_id: given(headers).unwrap_or_else(|| new(id)),
            parent: headers.get(TRACEPARENT).cloned(),
            state: headers.get(TRACESTATE).cloned(),
        }
    }

    /// Adds it to the headers of a request, as far as they don't have their own.
    pub fn go_along(&self, headers: &mut HeaderMap) {
        headers.entry(REQUEST_ID).or_insert_with(|| self.request_id.clone());
        // The state belongs to its parent: one means nothing without the other.
        if let Some(parent) = self.parent.as_ref().filter(|_| !headers.contains_key(TRACEPARENT)) {
            headers.insert(TRACEPARENT, parent.clone());
            headers.remove(TRACESTATE);
            headers.extend(self.state.clone().map(|state| (TRACESTATE, state)));
        }
    }
}

fn is_id(bytes: &[u8]) -> bool {
    (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"')
}

/// An id of ours: a random number for the process, and the event's.
fn new(event: EventId) -> HeaderValue {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    // The standard library's hasher is seeded by the system's randomness.
    let process = PROCESS.get_or_init(|| RandomState::new().hash_one("polyinit"));
    // Hexadecimal digits and a dash are a header's value.
    HeaderValue::try_from(format!("{process:016x}-{event}")).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Context;

    #[test]
    fn a_clients_own_id_is_kept_if_it_may_be_logged() {
        let given = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&mut headers, Context::next().id)
        };
        assert_eq!(given(b"abc-1"), "abc-1");
        for bad in [&b"a b"[..], b"", b"a\"b", b"\xff", &[b'a'; 129]] {
            assert_eq!(given(bad).len().cmp(&17), std::cmp::Ordering::Greater, "{bad:?}");
            assert_ne!(given(bad).as_bytes(), bad);
        }
        assert_ne!(given(b""), given(b""));
    }

    #[test]
    fn a_components_own_headers_win() {
        let value = HeaderValue::from_static;
        let came: HeaderMap = [
            (REQUEST_ID, value("a")),
            (TRACEPARENT, value("p")),
            (TRACESTATE, value("s")),
        ]
        .into_iter()
        .collect();
        let trace = Trace::of(&came, Context::next().id);
        let mut silent = HeaderMap::new();
        trace.go_along(&mut silent);
        assert_eq!(silent, came);
        let own: HeaderMap = [(REQUEST_ID, value("b")), (TRACEPARENT, value("q"))]
            .into_iter()
            .collect();
        let mut said = own.clone();
        trace.go_along(&mut said);
        assert_eq!(said, own);
    }
}
