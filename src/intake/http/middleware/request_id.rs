//! A name for each request, that the program, the log and whoever asked can tell it by: what the client named it, or one
//! of ours.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use http::{HeaderName, HeaderValue, Request};

use crate::event::{Body, EventId};

/// The header that it comes and goes in.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest that a client may choose, in bytes: it is written to logs.
const LONGEST: usize = 128;

/// The request's id, which the request has then, too.
pub fn of(request: &mut Request<Body>, event: EventId) -> HeaderValue {
    let given = request.headers().get(HEADER).filter(|id| is_id(id.as_bytes())).cloned();
    given.unwrap_or_else(|| {
        let id = new(event);
        request.headers_mut().insert(HEADER, id.clone());
        id
    })
}

fn is_id(bytes: &[u8]) -> bool {
    (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"')
}

/// Ours: which process, by chance, and which of its events.
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
    fn a_clients_own_is_kept_if_a_log_can_have_it() {
        let given = |id: &[u8]| {
            let mut request = Request::new(Body::empty());
            request
                .headers_mut()
                .insert(HEADER, HeaderValue::from_bytes(id).unwrap());
            of(&mut request, Context::next().id)
        };
        assert_eq!(given(b"abc-1"), "abc-1");
        for bad in [&b"a b"[..], b"", b"a\"b", b"\xff", &[b'a'; 129]] {
            assert_eq!(given(bad).len().cmp(&17), std::cmp::Ordering::Greater, "{bad:?}");
            assert_ne!(given(bad).as_bytes(), bad);
        }
        assert_ne!(given(b""), given(b""));
    }
}
