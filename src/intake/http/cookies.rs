//! Cookies over HTTP/2, whose clients may cut them into several fields. Programs know one (RFC 9113, section 8.2.3).

use http::header::COOKIE;
use http::{HeaderValue, Request, Version};

/// Makes the cookies of a request over HTTP/2 one field.
pub(in crate::intake) fn join<B>(request: &mut Request<B>) {
    if request.version() != Version::HTTP_2 {
        return;
    }
    let headers = request.headers_mut();
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_http_2_are_one_field() {
        for (version, expected) in [
            (Version::HTTP_2, vec!["a=1; b=2"]),
            (Version::HTTP_11, vec!["a=1", "b=2"]),
        ] {
            let request = Request::get("/").version(version);
            let mut request = request.header(COOKIE, "a=1").header(COOKIE, "b=2").body(()).unwrap();
            join(&mut request);
            assert_eq!(request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), expected);
        }
    }
}
