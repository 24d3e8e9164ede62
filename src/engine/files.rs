//! Static files: a folder that answers GET and HEAD by itself, with no program. Ranges, `ETag`, `Last-Modified` and files
//! that were compressed ahead (`app.js.br`, `.zst`, `.gz` beside `app.js`) are [`ServeDir`]'s; what is a component's own is
//! here: routes, whose prefix is taken off, and what is not shown.

mod regular;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use nix::errno::Errno;
use percent_encoding::percent_decode_str;
use tower_http::services::fs::{DefaultServeDirFallback, ServeDir};

use self::regular::Regular;
use super::{Engine, Handling, StartError, Working};
use crate::event::{Body, Event, Failure, FailureKind, Input, Reply, shown};
use crate::program::Component;

/// The folder that `component` is.
///
/// # Errors
/// It is not a folder that can be read.
pub async fn start(component: &Component) -> Result<Arc<dyn Engine>, StartError> {
    let root = &component.root;
    std::fs::read_dir(root)
        .map_err(|error| StartError::new(format!("{}: {} can't be read: {error}", component.name, root.display())))?;
    let routes = component.routes.iter().flatten();
    let mut prefixes: Vec<&str> = routes.filter_map(|route| route.prefix()).collect();
    // What is not below any of its prefixes, an exact route or the host's whole address, is asked for as it is.
    prefixes.push("");
    prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
    prefixes.dedup();
    Ok(Arc::new(Files {
        component: component.name.clone(),
        folders: prefixes.iter().map(|prefix| Folder::new(root, prefix)).collect(),
    }))
}

struct Files {
    component: String,
    /// Longest prefix first; the last one's is empty.
    folders: Vec<Folder>,
}

/// The files as they are seen below one prefix.
struct Folder {
    prefix: String,
    serve: ServeDir<DefaultServeDirFallback, Regular>,
}

impl Folder {
    fn new(root: &Path, prefix: &str) -> Self {
        let serve = ServeDir::with_backend(root, Regular)
            .precompressed_br()
            .precompressed_zstd()
            .precompressed_gzip()
            .redirect_path_prefix(prefix);
        Self {
            prefix: prefix.to_owned(),
            serve,
        }
    }
}

impl Engine for Files {
    fn handle(&self, event: Event) -> Handling {
        let Input::Http(request) = event.input else {
            let message = format!("{} is static files, which take no messages", self.component);
            return Box::pin(std::future::ready(Err(Failure::new(FailureKind::NotFound, message))));
        };
        let path = request.uri().path();
        let below = |folder: &&Folder| path.strip_prefix(folder.prefix.as_str()).is_some_and(is_rest);
        let Some(folder) = self.folders.iter().find(below) else {
            return Box::pin(std::future::ready(Err(nothing(path))));
        };
        let rest = &path[folder.prefix.len()..];
        let query = request
            .uri()
            .query()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        if rest.is_empty() && !folder.prefix.is_empty() {
            // The links of the page there are meant from inside.
            return Box::pin(std::future::ready(Ok(Reply::Http(redirect(&format!(
                "{path}/{query}"
            ))))));
        }
        if hidden(rest) {
            return Box::pin(std::future::ready(Err(nothing(path))));
        }
        let path = path.to_owned();
        let (Ok(target), mut serve) = (format!("{rest}{query}").parse::<Uri>(), folder.serve.clone()) else {
            return Box::pin(std::future::ready(Err(nothing(&path))));
        };
        let (mut head, _) = request.into_parts();
        head.uri = target;
        let component = self.component.clone();
        Box::pin(async move {
            let failed = |error: io::Error| {
                if leads_nowhere(&error) {
                    return nothing(&path);
                }
                Failure::new(
                    FailureKind::Unavailable,
                    format!("{component}: {}: {error}", shown(&path)),
                )
            };
            // In a box, as few ask for a part.
            let part = head.headers.contains_key(RANGE).then(|| Box::new(head.clone()));
            let request = Request::from_parts(head, Body::empty());
            let mut response = serve.try_call(request).await.map_err(failed)?;
            if let Some(mut head) = part
                && is_whole_instead(&head.headers, &response)
            {
                head.headers.remove(RANGE);
                let request = Request::from_parts(*head, Body::empty());
                response = serve.try_call(request).await.map_err(failed)?;
            }
            if response.status() == StatusCode::NOT_FOUND {
                return Err(nothing(&path));
            }
            let mut response = response.map(Body::stream);
            say_utf8(response.headers_mut());
            stay_here(response.headers_mut());
            Ok(Reply::Http(response))
        })
    }

    fn stop(&self, _: Duration) -> Working {
        Box::pin(std::future::ready(()))
    }

    fn describe(&self) -> String {
        "serves its files".to_owned()
    }
}

fn is_rest(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

/// Whether there can't be a file of that name, as opposed to one that can't be read just now.
fn leads_nowhere(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    // A link that leads to itself; a socket or a device that is not there, which can't be opened.
    let is_no_file = matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ELOOP | Errno::ENXIO)
    );
    is_no_file
        || matches!(
            error.kind(),
            NotFound | NotADirectory | InvalidFilename | InvalidInput | PermissionDenied
        )
}

fn nothing(path: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("there is no file for {}", shown(path)))
}

/// Whether a path leads to what is not shown: files and folders whose names begin with a dot (`.git`, `.env`), other
/// than `.well-known` (RFC 8615), and those that try to leave by `..`.
fn hidden(path: &str) -> bool {
    let path = percent_decode_str(path).decode_utf8_lossy();
    path.split(['/', '\\'])
        .any(|segment| segment.starts_with('.') && segment != ".well-known")
}

/// Whether a client that asked for a part of a file is to have all of it (RFC 9110, sections 13.1.5 and 14.2): the file is
/// not the one any more that it has the rest of, or what it asked for is no single part of this one, but not beyond its end
/// either.
fn is_whole_instead<B>(asked: &HeaderMap, response: &Response<B>) -> bool {
    let told = response.headers();
    let is_part = match response.status() {
        StatusCode::PARTIAL_CONTENT => told.get(CONTENT_LENGTH).is_none_or(|length| length != "0"),
        StatusCode::RANGE_NOT_SATISFIABLE => asked.get(RANGE).is_some_and(is_beyond),
        _ => return false,
    };
    let is_same = |held: &HeaderValue| [ETAG, LAST_MODIFIED].iter().any(|name| told.get(name) == Some(held));
    !is_part || !asked.get(IF_RANGE).is_none_or(is_same)
}

/// Whether a range that leads to nothing is one that begins behind the file's end, or has no length.
fn is_beyond(range: &HeaderValue) -> bool {
    let range = range.to_str().ok().and_then(|range| range.strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
        return false;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first <= last,
        (Ok(_), Err(_)) => last.is_empty(),
        (Err(_), Ok(last)) => first.is_empty() && last == 0,
        (Err(_), Err(_)) => false,
    }
}

/// `//docs/` would lead to the host `docs` (RFC 3986, section 4.2).
fn stay_here(headers: &mut HeaderMap) {
    let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
    let here = location
        .filter(|location| location.starts_with("//"))
        .and_then(|location| HeaderValue::try_from(format!("/{}", location.trim_start_matches('/'))).ok());
    if let Some(here) = here {
        headers.insert(LOCATION, here);
    }
}

fn redirect(path: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    // A request's path is made of what a header's value may hold.
    let location = HeaderValue::try_from(path).ok();
    response
        .headers_mut()
        .extend(location.map(|location| (LOCATION, location)));
    response
}

/// Text without a word on its encoding is taken for windows-1252 by browsers, which hardly any file is these days.
fn say_utf8(headers: &mut HeaderMap) {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let text = kind.starts_with("text/") || kind == "application/javascript";
    if text && !kind.contains(';') {
        let with = HeaderValue::try_from(format!("{kind}; charset=utf-8")).ok();
        if let Some(kind) = with {
            headers.insert(CONTENT_TYPE, kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hidden;

    #[test]
    fn dots_are_hidden_however_they_are_written() {
        for path in [
            "/.git/config",
            "/a/.env",
            "/../x",
            "/a/%2e%2e/b",
            "/a%2f.env",
            "/..%5cx",
        ] {
            assert!(hidden(path), "{path}");
        }
        for path in ["/", "/a.b/c", "/.well-known/acme", "/a../b"] {
            assert!(!hidden(path), "{path}");
        }
    }
}
