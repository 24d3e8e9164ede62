//! A stand-in for the guest API of the network's hosts: its routes for a cache and for a remote account, on a Unix socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

type Cache = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// Serves until it is dropped.
pub struct Api {
    serving: AbortHandle,
    connections: Arc<Connections>,
}

/// How many there are, and the most that there have been at once.
#[derive(Default)]
struct Connections {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Api {
    pub fn serve(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let cache = Cache::default();
        let connections = Arc::new(Connections::default());
        let counted = connections.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (cache, counted) = (cache.clone(), counted.clone());
                let now = counted.now.fetch_add(1, Ordering::SeqCst) + 1;
                counted.most.fetch_max(now, Ordering::SeqCst);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, cache.clone()));
                    // A client that goes away ends its connection.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    counted.now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            serving: serving.abort_handle(),
            connections,
        }
    }

    /// The most connections that were open at once.
    pub fn most_at_once(&self) -> usize {
        self.connections.most.load(Ordering::SeqCst)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(request: Request<Incoming>, cache: Cache) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut cache = cache.lock().unwrap();
    let path = head.uri.path();
    let key = path.strip_prefix("/cache/").unwrap_or_default();
    Ok(match (&head.method, path) {
        (&Method::GET, "/cache/") => {
            let pattern = head
                .uri
                .query()
                .unwrap_or_default()
                .replace("pattern=", "")
                .replace('*', "");
            json_of(json!(
                cache.keys().filter(|key| key.contains(&pattern)).collect::<Vec<_>>()
            ))
        }
        (&Method::GET, _) if !key.is_empty() => match cache.get(key) {
            Some(value) => Response::new(Full::new(value.clone())),
            None => Response::builder().status(404).body(Full::default()).unwrap(),
        },
        (&Method::PUT, _) if !key.is_empty() => {
            cache.insert(key.to_owned(), body);
            json_of(json!(true))
        }
        (&Method::DELETE, _) if !key.is_empty() => json_of(json!(cache.remove(key).is_some())),
        (&Method::GET, "/properties") => json_of(json!({
            "chain": "ETH", "curve": "secp256k1", "address": "0xabc", "public_key": "0x04",
        })),
        (&Method::POST, "/sign") => {
            let mut message: Value = serde_json::from_slice(&body).unwrap();
            message["signature"] = json!("0xsigned");
            json_of(message)
        }
        _ => Response::builder().status(404).body(Full::default()).unwrap(),
    })
}

fn json_of(value: Value) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(value.to_string()));
    Response::builder()
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}
