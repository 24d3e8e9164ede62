//! A client for one request, that touches neither the request nor the reply.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::PATIENCE;

/// A reply, whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    pub version: http::Version,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers
            .get_all(name)
            .iter()
            .map(http::HeaderValue::as_bytes)
            .collect()
    }
}

pub async fn get(address: &str, path: &str) -> Response {
    send(address, http::Request::get(path), Bytes::new()).await
}

/// Sends a request of any kind.
pub async fn request(address: &str, request: http::request::Builder, body: impl Into<Bytes>) -> Response {
    send(address, request, body.into()).await
}

pub async fn send(address: &str, request: http::request::Builder, body: Bytes) -> Response {
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let named = request
            .headers_ref()
            .is_some_and(|headers| headers.contains_key("host"));
        let request = if named {
            request
        } else {
            request.header("host", address)
        };
        let request = request.version(http::Version::HTTP_11).body(Full::new(body)).unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        match sender.send_request(request).await {
            Ok(response) => whole(response).await,
            // One that breaks off before its head is through is broken all the more.
            Err(error) => Response {
                status: 0,
                headers: http::HeaderMap::new(),
                version: http::Version::HTTP_11,
                body: Bytes::from(format!("<broken: {error}>")),
            },
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("a reply in time")
}

/// [`get`] over HTTP/2 with prior knowledge.
pub async fn get_h2(address: &str, path: &str) -> Response {
    ask_h2(address, http::Method::GET, path, &[]).await
}

/// A request without a body, over HTTP/2.
pub async fn ask_h2(address: &str, method: http::Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = http::Request::builder().method(method).uri(path);
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    send_h2(address, request.body(Full::new(Bytes::new())).unwrap()).await
}

/// Any request, over HTTP/2.
pub async fn send_h2<B>(address: &str, mut request: http::Request<B>) -> Response
where
    B: http_body::Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
{
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        *request.uri_mut() = format!("http://{address}{}", request.uri()).parse().unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        whole(sender.send_request(request).await.unwrap()).await
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("a reply in time")
}

async fn whole(response: http::Response<hyper::body::Incoming>) -> Response {
    let (head, body) = response.into_parts();
    Response {
        status: head.status.as_u16(),
        headers: head.headers,
        version: head.version,
        body: body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_else(|error| {
                // A body that breaks off is something that a test may want to see.
                Bytes::from(format!("<broken: {error}>"))
            }),
    }
}
