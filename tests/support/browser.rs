//! A headless Chromium with one page, asked over its own protocol (Chrome DevTools Protocol) what the page holds by now.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{PATIENCE, request};

pub struct Browser {
    child: Child,
    /// Where it keeps what it knows; gone with it.
    _profile: tempfile::TempDir,
    socket: WebSocketStream<TcpStream>,
    asked: u64,
}

impl Browser {
    /// Opens `url`, a page of this machine.
    pub async fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args(["--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium, which tests/host/setup installs");
        let deadline = Instant::now() + PATIENCE;
        // Its first line is the port, once it listens there.
        let port = loop {
            let text = std::fs::read_to_string(profile.path().join("DevToolsActivePort")).unwrap_or_default();
            if let Some((port, _)) = text.split_once('\n') {
                break port.to_owned();
            }
            assert!(Instant::now() < deadline, "chromium does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        };
        let address = format!("127.0.0.1:{port}");
        let page = request(&address, Request::put(format!("/json/new?{url}")), "")
            .await
            .json();
        let endpoint = page["webSocketDebuggerUrl"].as_str().unwrap().to_owned();
        let stream = TcpStream::connect(&address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(endpoint, stream).await.unwrap();
        Self {
            child,
            _profile: profile,
            socket,
            asked: 0,
        }
    }

    /// What the expression in JavaScript is, as text.
    pub async fn ask(&mut self, expression: &str) -> String {
        self.asked += 1;
        let asked = serde_json::json!({
            "id": self.asked,
            "method": "Runtime.evaluate",
            "params": { "expression": expression, "returnByValue": true },
        });
        let exchange = async {
            self.socket.send(Message::text(asked.to_string())).await.unwrap();
            loop {
                let message = self.socket.next().await.unwrap().unwrap();
                let Message::Text(text) = message else { continue };
                let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                // Between them it tells of other things.
                if answer["id"] == self.asked {
                    return answer["result"]["result"]["value"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                }
            }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("an answer of the page in time")
    }

    /// Waits until the page holds all of these.
    pub async fn wait_for(&mut self, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.ask("document.body.outerHTML").await;
            let Some(missing) = expected.iter().find(|expected| !page.contains(**expected)) else {
                return;
            };
            assert!(Instant::now() < deadline, "{missing:?} is not shown:\n{page}");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
