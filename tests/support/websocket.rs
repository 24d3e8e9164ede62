//! A WebSocket client.

use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
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
