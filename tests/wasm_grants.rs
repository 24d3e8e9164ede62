//! What WebAssembly guests are granted: nothing, then what the program or a flag names.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

#[cfg(all(feature = "host", feature = "image"))]
use polyinit::wire::ConfigurationAnswer;

#[cfg(all(feature = "host", feature = "image"))]
use crate::host::{Guest, configuration_for, http_scope};
use crate::manifest::polyinit;
#[cfg(all(feature = "host", feature = "image"))]
use crate::support::api::Api;
use crate::support::{Running, Served, built, folder_with, get};

#[tokio::test]
async fn requests_go_to_hosts_that_are_named() {
    let upstream = Served::start(built("rust-http.wasm"), &[]);
    let url = format!("http://{}", upstream.address);
    for guest in ["rust-outgoing.wasm", "rust-service.wasm"] {
        let refused = Served::start(built(guest), &["--allow-host", "https://other.example.org"]);
        let reply = refused.get(&format!("/fetch?{url}/")).await;
        assert_eq!(
            (reply.status, reply.text().contains("Denied")),
            (502, true),
            "{}",
            reply.text()
        );
        refused.wait_for(&format!("--allow-host {url}"));
        refused.wait_for(&format!("hosts = [\"{url}\"]"));
        refused.stop();

        let app = Served::start(built(guest), &["--allow-host", &url]);
        for path in ["/", "/stream", "/status/418"] {
            let (direct, through) = (upstream.get(path).await, app.get(&format!("/fetch?{url}{path}")).await);
            assert_eq!(
                (through.status, through.text()),
                (direct.status, direct.text()),
                "{guest} {path}"
            );
        }
        app.stop();
    }
    upstream.stop();
}

#[tokio::test]
async fn a_rule_for_many_names_does_not_lead_to_this_machine() {
    let upstream = Served::start(built("rust-http.wasm"), &[]);
    let port = upstream.address.rsplit(':').next().unwrap();
    let app = Served::start(built("rust-outgoing.wasm"), &["--allow-host", "*:*"]);
    let reply = app.get(&format!("/fetch?http://localhost:{port}/")).await;
    assert!(reply.text().contains("DestinationIpProhibited"), "{}", reply.text());
    app.wait_for("name the address itself in `hosts`");
    app.stop();
    upstream.stop();
}

#[tokio::test]
async fn connections_are_kept_for_the_next_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        // One connection, and no other is ever taken.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => return,
                _ => stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhey")
                    .await
                    .unwrap(),
            }
        }
    });
    let app = Served::start(
        built("rust-outgoing.wasm"),
        &["--allow-host", &format!("http://{address}")],
    );
    for _ in 0..3 {
        assert_eq!(app.get(&format!("/fetch?http://{address}/")).await.text(), "hey");
    }
    app.stop();
    server.abort();
}

#[tokio::test]
async fn a_host_that_speaks_another_protocol_is_told_from_one_that_hangs_up() {
    for (said, expected) in [
        (&b"SSH-2.0-test\r\n"[..], "HttpProtocolError"),
        (b"", "ConnectionTerminated"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(said).await;
            }
        });
        for guest in ["rust-outgoing.wasm", "rust-service.wasm"] {
            let app = Served::start(built(guest), &["--allow-host", &url]);
            let reply = app.get(&format!("/fetch?{url}/")).await;
            assert!(reply.text().contains(expected), "{guest}: {}", reply.text());
            app.stop();
        }
        server.abort();
    }
}

#[tokio::test]
async fn https_is_checked_against_the_authorities() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = folder_with("authorities.pem", made.cert.pem());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that doesn't trust us goes away.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret";
                let _ = stream.write_all(reply).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let url = format!("https://localhost:{port}");
    let file = folder.path().join("authorities.pem");
    for (authorities, expected) in [(Some(file.as_path()), "secret"), (None, "TlsCertificateError")] {
        for guest in ["rust-outgoing.wasm", "rust-service.wasm"] {
            let (app, address) = serve_trusting(authorities, guest, &url);
            let reply = get(&address, &format!("/fetch?{url}/")).await;
            assert!(reply.text().contains(expected), "{guest}: {}", reply.text());
            app.interrupt();
            app.end();
        }
    }
    server.abort();
}

fn serve_trusting(authorities: Option<&Path>, guest: &str, url: &str) -> (Running, String) {
    let set = match authorities {
        Some(file) => format!("SSL_CERT_FILE={}", file.display()),
        None => "-uSSL_CERT_FILE".to_owned(),
    };
    let program = built(guest);
    let words = [
        "serve",
        program.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--allow-host",
        url,
    ];
    let app = Running::start_under(&["env", &set], &words);
    let line = app.wait_for("serving on http://");
    let address = line.rsplit('/').next().unwrap().trim().to_owned();
    (app, address)
}

#[tokio::test]
async fn sockets_connect_to_names_and_addresses_that_are_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 64];
            let length = stream.read(&mut buffer).await.unwrap();
            stream.write_all(b"you said ").await.unwrap();
            stream.write_all(&buffer[..length]).await.unwrap();
        }
    });
    for host in ["127.0.0.1", "localhost"] {
        let app = Served::start(
            built("rust-outgoing.wasm"),
            &["--allow-host", &format!("tcp://{host}:{port}")],
        );
        let reply = app.post(&format!("/connect?{host}:{port}"), "hello").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "you said hello"));
        let other = app.post("/connect?other.example.org:80", "hello").await.text();
        assert!(other.contains("access-denied"), "{other}");
        app.wait_for("tcp://other.example.org:");
        // The name leads to this address, and to none of its other ports.
        let elsewhere = app.post(&format!("/connect?{host}:{}", port ^ 1), "hello").await.text();
        assert!(elsewhere.contains("access-denied"), "{elsewhere}");
        app.stop();
    }
    server.abort();
}

#[tokio::test]
async fn datagrams_go_to_addresses_that_are_named() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let said = [b"you said ", &buffer[..length]].concat();
            socket.send_to(&said, from).await.unwrap();
        }
    });
    let app = Served::start(
        built("rust-outgoing.wasm"),
        &["--allow-host", &format!("udp://{address}")],
    );
    let reply = app.post(&format!("/datagram?{address}"), "hello").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "you said hello"));
    let elsewhere = format!("127.0.0.1:{}", address.port() ^ 1);
    let refused = app.post(&format!("/datagram?{elsewhere}"), "hello").await.text();
    assert!(refused.contains("access-denied"), "{refused}");
    app.wait_for(&format!("--allow-host udp://{elsewhere}"));
    app.stop();

    // Sockets of one kind are not those of another.
    let app = Served::start(
        built("rust-outgoing.wasm"),
        &["--allow-host", &format!("tcp://{address}")],
    );
    let refused = app.post(&format!("/datagram?{address}"), "hello").await.text();
    assert!(refused.contains("access-denied"), "{refused}");
    app.stop();
    server.abort();
}

#[tokio::test]
async fn an_instance_has_so_many_requests_under_way() {
    // Takes connections, and answers none.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = format!("http://{}", listener.local_addr().unwrap());
    let upstream = Served::start(built("rust-http.wasm"), &[]);
    let url = format!("http://{}", upstream.address);
    let app = Served::start(
        built("rust-outgoing.wasm"),
        &["--allow-host", &held, "--allow-host", &url],
    );
    let more = app.get(&format!("/many?64&{held}/&{url}/")).await;
    assert!(
        more.status == 502 && more.text().contains("ConnectionLimitReached"),
        "{}",
        more.text()
    );
    app.wait_for("64 are under way already for one instance");
    // They were of that instance, and are gone with it.
    let enough = app.get(&format!("/many?63&{held}/&{url}/")).await;
    assert_eq!(
        (enough.status, enough.text().as_str()),
        (200, "Hello from a Rust component\n")
    );
    app.stop();
    upstream.stop();
}

#[tokio::test]
#[cfg(all(feature = "host", feature = "image"))]
async fn aleph_is_the_guest_api_of_the_machine() {
    for (hosts, expected) in [("\"aleph\"", "0xabc"), ("\"self\"", "HttpRequestDenied")] {
        let folder = folder_with(
            "polyinit.toml",
            format!("[components.out]\nsource = \"out.wasm\"\n[components.out.wasm]\nhosts = [{hosts}]\n"),
        );
        std::fs::copy(built("rust-outgoing.wasm"), folder.path().join("out.wasm")).unwrap();
        let guest = Guest::start(&[]).await;
        let _api = Api::serve(&guest.api_socket());
        let answer = guest
            .configure(&configuration_for(folder.path(), "executable", "out.wasm"))
            .await;
        assert_eq!(answer, ConfigurationAnswer::Success);
        let asked = http_scope("GET", "/fetch", "http://aleph/properties");
        let reply = format!("{:?}", guest.event(&asked).await);
        assert!(reply.contains(expected), "{hosts}: {reply}");
        if expected != "0xabc" {
            guest.wait_for("hosts = [\"aleph\"] in [components.out.wasm]");
        }
        guest.stop().await;
    }
}

#[tokio::test]
async fn self_is_the_programs_other_components() {
    let folder = folder_with(
        "polyinit.toml",
        format!(
            "[components.hello]\nsource = {:?}\nroutes = [\"/hello/*\"]\n\
             [components.out]\nsource = {:?}\nroutes = [\"/fetch\"]\n[components.out.wasm]\nhosts = [\"self\"]\n",
            built("c-cgi.wasm"),
            built("rust-outgoing.wasm"),
        ),
    );
    let path = folder.path().to_str().unwrap();
    let (code, said, errors) = polyinit(&["invoke", path, "--path", "/fetch?http://self/hello", "--quiet"]);
    assert_eq!((code, said.as_str()), (4, "nothing at /hello\n"), "{errors}");
    let app = Served::start(folder.path(), &[]);
    let reply = app.get("/fetch?http://self/hello/nobody").await;
    assert_eq!(reply.status, app.get("/hello/nobody").await.status);
    let named = app.get("/fetch?http://hello.internal/hello/nobody").await;
    assert_eq!((named.status, named.text()), (reply.status, reply.text()));
    assert_eq!(app.get("/fetch?http://self/elsewhere").await.status, 404);
    let round = format!("/fetch?{}", "http://self/fetch?".repeat(12));
    let reply = app.get(&round).await;
    assert!(
        reply.status == 502 && reply.text().contains("LoopDetected"),
        "{}",
        reply.text()
    );
    app.stop();
}

#[tokio::test]
async fn folders_are_seen_where_they_are_granted_and_written_to_where_that_is_said() {
    let folder = folder_with("note.txt", "a note");
    let grant = |mode: &str| format!("{}::/data{mode}", folder.path().display());

    let app = Served::start(built("rust-cgi.wasm"), &[]);
    assert_eq!(app.get("/file?/data/note.txt").await.status, 500);
    app.stop();

    let app = Served::start(built("rust-cgi.wasm"), &["--allow-dir", &grant("")]);
    assert_eq!(app.get("/file?/data/note.txt").await.text(), "a note");
    assert_eq!(app.get("/file?/data/../../etc/hostname").await.status, 500);
    assert_eq!(app.post("/write?/data/new.txt", "new").await.status, 500);
    assert_eq!(app.post("/write?/data/note.txt", "new").await.status, 500);
    app.stop();
    assert_eq!(std::fs::read(folder.path().join("note.txt")).unwrap(), b"a note");

    let app = Served::start(built("rust-cgi.wasm"), &["--allow-dir", &grant(":rw")]);
    assert_eq!(app.post("/write?/data/new.txt", "new").await.status, 204);
    app.stop();
    assert_eq!(std::fs::read(folder.path().join("new.txt")).unwrap(), b"new");
}

#[tokio::test]
async fn a_folder_that_takes_anothers_place_is_seen_by_the_next_event() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let note = |text: &str| {
        let next = parent.path().join("next");
        std::fs::create_dir(&next).unwrap();
        std::fs::write(next.join("note.txt"), text).unwrap();
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(next, &folder).unwrap();
    };
    note("first");
    let grant = format!("{}::/data", folder.display());
    for reuse in ["1", "100"] {
        let app = Served::start(built("rust-http.wasm"), &["--allow-dir", &grant, "--reuse", reuse]);
        for text in ["one", "two", "three"] {
            note(text);
            assert_eq!(app.get("/note").await.text(), text, "{reuse}");
        }
        app.stop();
    }
}

#[tokio::test]
async fn what_can_not_be_granted_is_told_before_the_first_event() {
    for (guest, flags, expected) in [
        ("rust-cgi.wasm", ["--allow-dir", "/no/such::/data"], "/no/such"),
        ("rust-cgi.wasm", ["--allow-dir", "data"], "write data::/data"),
        ("rust-cgi.wasm", ["--allow-host", "ftp://host"], "there is no scheme"),
        ("rust-cgi.wasm", ["--memory", "1000000"], "an instance has"),
        ("rust-cgi.wasm", ["--reuse", "0"], "--reuse"),
        (
            "exec-go",
            ["--reuse", "2"],
            "are for WebAssembly, and there is none here",
        ),
    ] {
        let running = Served::launch(built(guest), &flags);
        let (status, output) = running.end();
        assert!(!status.success() && output.contains(expected), "{flags:?}: {output}");
    }
}

#[tokio::test]
async fn a_command_has_the_arguments_that_are_named() {
    let app = Served::start(built("rust-cgi.wasm"), &["--arg", "one", "--arg", "--two"]);
    assert_eq!(app.get("/arguments").await.text(), "one\n--two\n");
    app.stop();
}
