//! A `wasi:http/service` component (WASI 0.3): `handle` is asynchronous, and what it spawns goes on after it has returned a
//! response, to write the body among others. The host gives one instance many requests.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};

use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};

wasip3::http::service::export!(Component);

struct Component;

/// How many requests this instance has had: state that lives as long as the instance does.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

impl wasip3::exports::http::handler::Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        match target.split('?').next().unwrap_or_default() {
            "/" => text(200, "Hello from a WASI 0.3 component\n".into()),
            "/count" => text(200, format!("{count}\n")),
            "/echo" => {
                let (_never_failed, sent) = wit_future::new(|| Ok(()));
                let (body, _trailers) = Request::consume_body(request, sent);
                answer(200, |writer| copy(body, writer))
            }
            "/pass" => {
                let headers = request.get_headers().copy_all();
                let kind = headers.into_iter().filter(|(name, _)| name == "content-type").collect::<Vec<_>>();
                let headers = Fields::from_list(&kind).map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
                let (_never_failed, sent) = wit_future::new(|| Ok(()));
                let (body, trailers) = Request::consume_body(request, sent);
                Ok(Response::new(headers, Some(body), trailers).0)
            }
            "/stream" => answer(200, |mut writer| async move {
                for n in 1..=10 {
                    writer.write_all(format!("piece {n}\n").into_bytes()).await;
                }
            }),
            "/error" => Err(ErrorCode::LoopDetected),
            "/panic" => panic!("asked to panic by the request for /panic"),
            "/spin" => loop {
                std::hint::black_box(());
            },
            "/meet" => meet(&target).await,
            "/fetch" => fetch(&target).await,
            path => text(404, format!("nothing at {path}\n")),
        }
    }
}

fn text(status: u16, text: String) -> Result<Response, ErrorCode> {
    answer(status, |mut writer| async move {
        writer.write_all(text.into_bytes()).await;
    })
}

/// A response whose body `write` writes, after this has returned.
fn answer<W: Future<Output = ()> + 'static>(
    status: u16,
    write: impl FnOnce(StreamWriter<u8>) -> W,
) -> Result<Response, ErrorCode> {
    let headers = Fields::from_list(&[("content-type".into(), b"text/plain; charset=utf-8".to_vec())]);
    let headers = headers.map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    let (writer, body) = wit_stream::new();
    let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(body), trailers);
    let _ = response.set_status_code(status);
    wit_bindgen::spawn_local(write(writer));
    Ok(response)
}

async fn copy(mut from: StreamReader<u8>, mut to: StreamWriter<u8>) {
    loop {
        let (status, piece) = from.read(Vec::with_capacity(64 << 10)).await;
        if !piece.is_empty() && !to.write_all(piece).await.is_empty() {
            return; // The client is gone.
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return;
        }
    }
}

/// Waits for as many milliseconds as `/meet?MILLISECONDS` says (and says so, with what follows by `&`), and tells the most requests that this instance had
/// meanwhile, itself among them.
async fn meet(target: &str) -> Result<Response, ErrorCode> {
    static HERE: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    let milliseconds = target.split_once('?').map_or("", |(_, query)| query.split('&').next().unwrap_or_default());
    let milliseconds: u64 = milliseconds.parse().unwrap_or(100);
    let here = HERE.fetch_add(1, Ordering::Relaxed) + 1;
    MOST.fetch_max(here, Ordering::Relaxed);
    eprintln!("waiting: {target}");
    monotonic_clock::wait_for(milliseconds * 1_000_000).await;
    let most = MOST.load(Ordering::Relaxed);
    if HERE.fetch_sub(1, Ordering::Relaxed) == 1 {
        MOST.store(0, Ordering::Relaxed);
    }
    text(200, format!("{most}\n"))
}

/// Sends a request of its own, for `/fetch?SCHEME://AUTHORITY/PATH`, and passes the reply's body on.
async fn fetch(target: &str) -> Result<Response, ErrorCode> {
    let url = target.split_once('?').map_or("", |(_, url)| url);
    let Some((scheme, rest)) = url.split_once("://") else {
        return text(400, "write /fetch?http://host/path\n".into());
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
    let _ = request.set_method(&Method::Get);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let _ = request.set_scheme(Some(&scheme));
    let _ = request.set_authority(Some(authority));
    let _ = request.set_path_with_query(Some(if path.is_empty() { "/" } else { path }));
    match client::send(request).await {
        Ok(response) => {
            let status = response.get_status_code();
            let (_never_failed, sent) = wit_future::new(|| Ok(()));
            let (body, _trailers) = Response::consume_body(response, sent);
            answer(status, |writer| copy(body, writer))
        }
        Err(error) => text(502, format!("{error:?}\n")),
    }
}
