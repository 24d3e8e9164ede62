//! A WebSocket client.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

pub use Message::{Binary, Text};

use super::{PATIENCE, Response};

pub struct Socket {
    pub stream: WebSocketStream<TcpStream>,
    pub response: http::Response<Option<Vec<u8>>>,
}

impl Socket {
    pub async fn open(address: &str, path: &str) -> Self {
        Self::open_with(address, path, &[]).await
    }

    /// The same with more headers.
    pub async fn open_with(address: &str, path: &str, headers: &[(&'static str, &str)]) -> Self {
        Self::connect(address, path, headers)
            .await
            .unwrap_or_else(|response| panic!("{}: {response:?}", response.status()))
    }

    /// The reply of a program that takes no such WebSocket.
    pub async fn refused(address: &str, path: &str) -> Response {
        let handshake = Request::get(path)
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        super::request(address, handshake, "").await
    }

    async fn connect(
        address: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, http::Response<Option<Vec<u8>>>> {
        let mut request: Request<()> = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let connecting = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        match tokio::time::timeout(PATIENCE, connecting)
            .await
            .expect("a reply in time")
        {
            Ok((stream, response)) => Ok(Self { stream, response }),
            Err(Error::Http(response)) => Err(*response),
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.unwrap();
    }

    /// The next message that is one of text or bytes.
    pub async fn next(&mut self) -> Message {
        loop {
            match self.any().await {
                Some(Ok(message @ (Text(_) | Binary(_)))) => return message,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// Waits for the other side's close, with its code (0 where it gave none).
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.any().await {
                Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                Some(Ok(Message::Close(None))) => return (0, String::new()),
                Some(Ok(_)) => {}
                other => panic!("no close: {other:?}"),
            }
        }
    }

    /// Closes, and waits for the other side's answer.
    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.stream.close(Some(frame)).await.unwrap();
        assert_eq!(self.closed().await.0, code);
    }

    pub async fn any(&mut self) -> Option<Result<Message, Error>> {
        tokio::time::timeout(PATIENCE, self.stream.next())
            .await
            .expect("a message in time")
    }
}

/// A WebSocket over HTTP/2 (RFC 8441).
pub type SocketOverHttp2 = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Opens one, on a connection that has had a request before; or the reply of a program that takes none, its status and text.
pub async fn open_over_http2(address: &str, path: &str) -> Result<SocketOverHttp2, (u16, String)> {
    let opened = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let uri = |path: &str| format!("http://{address}{path}");
        // What the server can do is known once it has answered something.
        let first = Request::get(uri("/")).body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(first).await.unwrap().collect().await.unwrap();
        let request = Request::connect(uri(path))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(Empty::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        if response.status() != 200 {
            let status = response.status().as_u16();
            let text = response.collect().await.unwrap().to_bytes();
            return Err((status, String::from_utf8_lossy(&text).into_owned()));
        }
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(name), "{response:?}");
        }
        let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        Ok(WebSocketStream::from_raw_socket(io, Role::Client, None).await)
    };
    tokio::time::timeout(PATIENCE, opened).await.expect("an answer in time")
}

/// Says `text` and returns what is said back; then closes.
pub async fn asked_over_http2(mut socket: SocketOverHttp2, text: &str) -> String {
    let talk = async {
        socket.send(Message::text(text)).await.unwrap();
        let said = loop {
            match socket.next().await {
                Some(Ok(Message::Text(said))) => break said.to_string(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no message: {other:?}"),
            }
        };
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
        said
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("a message in time")
}
