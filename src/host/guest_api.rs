//! The guest API's place on the host: what the guest's connections to port 53 reach.
//!
//! The API itself is the network's, not ours. Where the user runs one, each connection is passed on to its Unix
//! socket; else each request is answered with what would have to be done.

use std::path::{Path, PathBuf};

use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

const ABSENT: &str = "no guest API on this host: start `polyinit vm` with --guest-api SOCKET, the Unix socket of one\n";

const UNREACHABLE: &str = "the guest API of this host does not answer on the socket given with --guest-api\n";

/// Serves until dropped. `api` is the Unix socket to pass connections on to.
pub async fn serve(listener: UnixListener, api: Option<PathBuf>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, api.clone()));
                }
                Err(error) => {
                    tracing::warn!("the guest API takes no connections any more: {error}");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut stream: UnixStream, api: Option<PathBuf>) {
    let explanation = match &api {
        None => ABSENT,
        Some(api) => match pass_on(&mut stream, api).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!("can't connect to the guest API {}: {error}", api.display());
                UNREACHABLE
            }
        },
    };
    let service = service_fn(|_| async move {
        http::Response::builder()
            .status(http::StatusCode::SERVICE_UNAVAILABLE)
            .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(Full::<&[u8]>::new(explanation.as_bytes()))
    });
    if let Err(error) = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!("guest API: {error}");
    }
}

/// Fails only if there is nobody to pass the connection on to.
async fn pass_on(stream: &mut UnixStream, api: &Path) -> std::io::Result<()> {
    let mut api = UnixStream::connect(api).await?;
    if let Err(error) = copy_bidirectional(stream, &mut api).await {
        tracing::debug!("guest API: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

    /// What the guest gets to read when it asks.
    async fn ask(api: Option<PathBuf>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v_53");
        let serving = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), api));
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn without_an_api_says_what_to_do() {
        let answer = ask(None).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("--guest-api"),
            "{answer}"
        );
        let answer = ask(Some("/nowhere/api".into())).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("does not answer"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn passes_bytes_on_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let api = folder.path().join("api");
        let listener = UnixListener::bind(&api).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; REQUEST.len()];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&request).await.unwrap();
        });
        assert_eq!(ask(Some(api)).await.as_bytes(), REQUEST);
        serving.await.unwrap();
    }
}
