//! What guests send goes out as it is, and what can't be sent is told as wasi:http says it: as Wasmtime's own test programs
//! expect it of a host.

use http::{Request, Response as HttpResponse};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{Served, built, folder_with};

/// Answers with the body that it gets, and says in headers what it was asked.
async fn mirror() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = async |request: Request<Incoming>| {
                HttpResponse::builder()
                    .header("x-method", request.method().as_str())
                    .header("x-path", request.uri().to_string())
                    .body(request.into_body())
            };
            // A client that goes away ends its connection.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

/// Speaks HTTP/2 to everybody (RFC 9113): empty settings, then GOAWAY.
async fn http2_alone() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream
                .write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01")
                .await;
        }
    });
    address
}

#[tokio::test]
async fn what_is_sent_arrives_and_what_can_not_be_is_told() {
    let (mirror, http2) = (mirror().await, http2_alone().await);
    let long_path = format!("/{}?a=b", "x".repeat(4000));
    let grants = [mirror.as_str(), &http2].map(|host| format!("http://{host}"));
    let flags: Vec<&str> = grants
        .iter()
        .flat_map(|grant| ["--allow-host", grant.as_str()])
        .collect();
    let app = Served::start(built("rust-outgoing.wasm"), &flags);
    let long_expected = format!("200 GET {long_path} 0");
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[("x-path", "/get?some=arg&goes=here")],
            "200 GET /get?some=arg&goes=here 0",
        ),
        (
            &[("x-method", "POST"), ("x-path", "/post"), ("x-body", "10")],
            "200 POST /post 10",
        ),
        (
            &[("x-method", "PUT"), ("x-path", "/put"), ("x-body", "0")],
            "200 PUT /put 0",
        ),
        (
            &[("x-method", "POST"), ("x-path", "/large"), ("x-body", "1048576")],
            "200 POST /large 1048576",
        ),
        (
            &[("x-method", "PROPFIND"), ("x-path", "/other")],
            "200 PROPFIND /other 0",
        ),
        (&[("x-path", &long_path)], &long_expected),
        // Exactly what is announced, less and more.
        (
            &[
                ("x-method", "POST"),
                ("x-path", "/"),
                ("x-length", "11"),
                ("x-body", "11"),
            ],
            "200 POST / 11",
        ),
        (
            &[
                ("x-method", "POST"),
                ("x-path", "/"),
                ("x-length", "11"),
                ("x-body", "3"),
            ],
            "finish: ErrorCode::HttpRequestBodySize(Some(3))",
        ),
        (
            &[
                ("x-method", "POST"),
                ("x-path", "/"),
                ("x-length", "11"),
                ("x-body", "18"),
            ],
            "write: Some(ErrorCode::HttpRequestBodySize(Some(18)))",
        ),
        (&[("x-method", "bad method"), ("x-path", "/")], "set-method failed"),
        (&[("x-path", "not a path")], "set-path-with-query failed"),
        (&[("x-scheme", "ws"), ("x-path", "/")], "HttpProtocolError"),
        (
            &[("x-authority", &http2), ("x-path", "/")],
            "reply: ErrorCode::HttpProtocolError",
        ),
        (
            &[("x-authority", "not-named.example.org"), ("x-path", "/")],
            "ErrorCode::HttpRequestDenied",
        ),
    ];
    for (asked, expected) in cases {
        let mut headers = asked.to_vec();
        if !asked.iter().any(|(name, _)| *name == "x-authority") {
            headers.push(("x-authority", &mirror));
        }
        let reply = app.ask("/send", &headers).await.text();
        assert!(reply.contains(expected), "{asked:?}: {reply}");
    }
    app.stop();
}

/// Listens, and accepts nothing: one who connects later waits as long as these connections are there.
async fn full() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let soon = std::time::Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(soon, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (listener, waiting)
}

#[tokio::test]
async fn a_request_takes_no_longer_than_its_guest_says() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (full, _waiting) = full().await;
    let [silent, full] = [&silent, &full].map(|listener| listener.local_addr().unwrap().to_string());
    let folder = folder_with(
        "polyinit.toml",
        format!(
            "[components.slow]\nsource = {:?}\nroutes = []\n[components.out]\nsource = {:?}\n\
             [components.out.wasm]\nhosts = [\"self\", \"http://{silent}\", \"http://{full}\"]\n",
            built("rust-service.wasm"),
            built("rust-outgoing.wasm"),
        ),
    );
    let app = Served::start(folder.path(), &[]);
    for (authority, path, limit, expected) in [
        (
            silent.as_str(),
            "/",
            "x-first-byte",
            "reply: ErrorCode::ConnectionReadTimeout",
        ),
        (
            "slow.internal",
            "/meet?60000",
            "x-first-byte",
            "reply: ErrorCode::ConnectionReadTimeout",
        ),
        (full.as_str(), "/", "x-connect", "reply: ErrorCode::ConnectionTimeout"),
    ] {
        let began = std::time::Instant::now();
        let asked = [("x-authority", authority), ("x-path", path), (limit, "300")];
        let reply = app.ask("/send", &asked).await.text();
        assert!(reply.contains(expected), "{authority}: {reply}");
        assert!(began.elapsed().as_secs() < 8, "{authority}: {:?}", began.elapsed());
    }
    app.stop();
}

/// Wasmtime keeps the options of each request as long as the instance that made it.
#[tokio::test]
async fn an_instance_makes_way_before_it_has_no_room_left() {
    let mirror = mirror().await;
    let app = Served::start(
        built("rust-outgoing.wasm"),
        &["--allow-host", &format!("http://{mirror}"), "--reuse", "1000000"],
    );
    // More than the 2,048 resources that an instance may hold.
    for number in 0..2100 {
        let response = app.ask("/send", &[("x-authority", &mirror), ("x-path", "/")]).await;
        assert_eq!(response.text(), "200 GET / 0", "{number}");
    }
    app.stop();
}
