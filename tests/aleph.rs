//! The aleph host's protocol: every vector, every encoding, bodies however they are cut, messages, halt.

use std::time::Duration;

use bytes::Bytes;
use polyinit::wire::{Configuration, ConfigurationAnswer, EventAnswer, HttpAnswer, HttpScope, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::host::{Guest, configuration_for, http_scope, vector};
use crate::support::{built, program};

const SUCCESS: &[u8] = b"\x81\xa7success\xc3";

async fn with(folder: &str, interface: &str, entrypoint: &str) -> Guest {
    let guest = Guest::start(&[]).await;
    let answer = guest
        .configure(&configuration_for(&program(folder), interface, entrypoint))
        .await;
    assert_eq!(answer, ConfigurationAnswer::Success);
    guest
}

/// A program that is one Python file, `app` in it.
fn plain(code: &str) -> Configuration {
    Configuration {
        interface: "asgi".into(),
        entrypoint: "app".into(),
        code: Some(code.as_bytes().to_vec().into()),
        ..Configuration::default()
    }
}

fn http(answer: EventAnswer) -> HttpAnswer {
    match answer {
        EventAnswer::Http(answer) => answer,
        other => panic!("no HTTP answer: {other:?}"),
    }
}

fn failure(answer: EventAnswer) -> (String, String) {
    match answer {
        EventAnswer::Failure { error, traceback } => (error, traceback),
        other => panic!("no failure: {other:?}"),
    }
}

fn says_hello(answer: &[u8]) {
    let answer = http(EventAnswer::decode(answer).unwrap());
    assert_eq!((answer.status, &answer.body[..]), (200, &b"Hello, World!"[..]));
    assert_eq!(
        answer.headers[0],
        (Bytes::from("content-type"), Bytes::from("text/plain"))
    );
}

#[tokio::test]
async fn every_configuration_vector_starts_a_program_that_answers_every_event_vector() {
    let configurations = [
        "config-v1-plain",
        "config-v2-plain",
        "config-v2-zip",
        "config-v2-no-network",
        "config-v3-unknown-keys",
    ];
    for name in configurations {
        let guest = Guest::start(&[]).await;
        assert_eq!(guest.ready, b"\x81\xa7version\xa52.0.0");
        assert_eq!(
            guest.exchange(&vector(&format!("{name}.wire"))).await,
            SUCCESS,
            "{name}"
        );
        for event in ["event-get", "event-get-query", "event-post-1MiB"] {
            says_hello(&guest.exchange(&vector(&format!("{event}.wire"))).await);
        }
        // This program asserts that it is asked for HTTP.
        let (error, traceback) =
            failure(EventAnswer::decode(&guest.exchange(&vector("event-message.wire")).await).unwrap());
        assert!(error.contains("AssertionError"), "{error}");
        assert!(
            traceback.starts_with("Traceback") && traceback.contains("assert scope['type'] == 'http'"),
            "{traceback}"
        );
        assert!(!traceback.contains("polyinit worker"), "{traceback}");
        guest.stop().await;
    }
}

#[tokio::test]
async fn the_executable_vector_serves_on_port_8080() {
    let guest = Guest::start(&[]).await;
    assert_eq!(guest.exchange(&vector("config-v2-executable.wire")).await, SUCCESS);
    let answer = http(EventAnswer::decode(&guest.exchange(&vector("event-get.wire")).await).unwrap());
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8_lossy(&answer.body).contains("run.sh"), "{answer:?}");
    guest.stop().await;
}

#[tokio::test]
async fn the_squashfs_vector_runs_code_and_packages_from_its_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let squashfs = |name: &str, file: &str, content: &str| {
        let mut image = backhand::FilesystemWriter::default();
        image
            .push_file(content.as_bytes(), file, backhand::NodeHeader::default())
            .unwrap();
        let path = folder.path().join(name);
        image.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let main = "import greeting\n\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
                await send({'type': 'http.response.start', 'status': 200, 'headers': [[b'content-type', b'text/plain']]})\n    \
                await send({'type': 'http.response.body', 'body': greeting.TEXT})\n";
    let code = squashfs("code", "main.py", main);
    let packages = squashfs("packages", "greeting.py", "TEXT = b'Hello, World!'\n");
    let (vdb, vdc) = (format!("vdb={code}"), format!("vdc={packages}"));
    let guest = Guest::start(&["--device", &vdb, "--device", &vdc]).await;
    assert_eq!(guest.exchange(&vector("config-v2-squashfs.wire")).await, SUCCESS);
    says_hello(&guest.exchange(&vector("event-get.wire")).await);
    guest.stop().await;
}

#[tokio::test]
async fn every_bad_vector_is_answered_in_form_and_the_next_event_is_served() {
    let guest = Guest::start(&[]).await;
    let bad_configurations = [("bad-huge-length", "99999999"), ("bad-length-text", "12x4")];
    for (name, expected) in bad_configurations {
        let answer = ConfigurationAnswer::decode(&guest.exchange(&vector(&format!("{name}.wire"))).await).unwrap();
        let ConfigurationAnswer::Failure { error, .. } = answer else {
            panic!("{name} succeeded")
        };
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert_eq!(guest.exchange(&vector("config-v2-plain.wire")).await, SUCCESS);
    let bad_events = [
        ("bad-not-msgpack", "0xc1"),
        ("bad-not-a-map", "0x93"),
        ("bad-no-scope", "scope"),
        ("bad-scope-type", "ftp"),
        ("bad-truncated-event", "cut short"),
    ];
    for (name, expected) in bad_events {
        let (error, traceback) =
            failure(EventAnswer::decode(&guest.exchange_and_close(&vector(&format!("{name}.wire"))).await).unwrap());
        assert!(error.contains(expected), "{name}: {error}");
        assert!(!traceback.is_empty());
        says_hello(&guest.exchange(&vector("event-get.wire")).await);
    }
    for (name, expected) in bad_configurations {
        let answer = ConfigurationAnswer::decode(&guest.exchange(&vector(&format!("{name}.wire"))).await).unwrap();
        let ConfigurationAnswer::Failure { error, .. } = answer else {
            panic!("{name} succeeded")
        };
        assert!(error.contains(expected), "{name}: {error}");
        says_hello(&guest.exchange(&vector("event-get.wire")).await);
    }
    guest.stop().await;
}

#[tokio::test]
async fn the_reply_vectors_are_what_we_answer_with() {
    let ok = http(EventAnswer::decode(&vector("reply-ok.msgpack")).unwrap());
    assert_eq!(ok.headers.len(), 3);
    let (error, traceback) = failure(EventAnswer::decode(&vector("reply-error.msgpack")).unwrap());
    assert_eq!(error, "boom");
    // Byte for byte, since the host knows no other form.
    assert_eq!(
        EventAnswer::Failure { error, traceback }.encode(b""),
        vector("reply-error.msgpack")
    );
}

#[tokio::test]
async fn a_configuration_without_program_is_refused_and_another_one_accepted() {
    let guest = Guest::start(&[]).await;
    let (error, _) = failure(guest.get("/").await);
    assert!(error.contains("no configuration yet"), "{error}");
    for (wire, expected) in [
        (&b"CONNECT 52\n3\n\x93\x01\x02"[..], "not as the protocol has it"),
        (b"CONNECT 52\n50\n\x80", "1 of 50 bytes"),
        (b"CONNECT 52\n1\n\x80", "has no code"),
    ] {
        let answer = ConfigurationAnswer::decode(&guest.exchange_and_close(wire).await).unwrap();
        let ConfigurationAnswer::Failure { error, .. } = answer else {
            panic!("{wire:?} succeeded")
        };
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(guest.exchange(&vector("config-v2-plain.wire")).await, SUCCESS);
    let answer = ConfigurationAnswer::decode(&guest.exchange(&vector("config-v2-plain.wire")).await).unwrap();
    assert!(matches!(answer, ConfigurationAnswer::Failure { error, .. } if error.contains("already")));
    says_hello(&guest.exchange(&vector("event-get.wire")).await);
    guest.stop().await;
}

#[tokio::test]
async fn a_variable_that_no_environment_can_hold_is_named() {
    let guest = Guest::start(&[]).await;
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
        let configuration = Configuration {
            variables: Some([(name.to_owned(), value.to_owned())].into()),
            ..plain("app = None")
        };
        match guest.configure(&configuration).await {
            ConfigurationAnswer::Failure { error, .. } => {
                assert_eq!(
                    error,
                    format!("variables: {name:?} and its value can't be in an environment")
                );
            }
            ConfigurationAnswer::Success => panic!("{name:?} was taken"),
        }
    }
    guest.stop().await;
}

#[tokio::test]
async fn events_come_however_they_are_cut() {
    let guest = with("asgi-plain", "asgi", "main:app").await;
    for (length, size) in [(1000, 1), (300 << 10, 1000), (1 << 20, 65_536), (12 << 20, usize::MAX)] {
        let body: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8).collect();
        let Scope::Http(mut scope) = http_scope("POST", "/echo", "") else {
            unreachable!()
        };
        scope.body = body.clone().into();
        let mut wire = b"CONNECT 52\n".to_vec();
        wire.extend(Scope::Http(scope).encode().unwrap());
        let answer = http(EventAnswer::decode(&guest.exchange_in_pieces(&wire, size).await).unwrap());
        assert_eq!((answer.status, answer.body.len()), (200, length));
        assert!(answer.body == body, "{length} bytes in pieces of {size}");
    }
    guest.stop().await;
}

#[tokio::test]
async fn an_event_beyond_the_limit_is_refused_before_it_is_read() {
    let guest = Guest::start(&["--event-limit", "1000"]).await;
    assert_eq!(guest.exchange(&vector("config-v2-plain.wire")).await, SUCCESS);
    let (error, _) = failure(EventAnswer::decode(&guest.exchange(&vector("event-post-1MiB.wire")).await).unwrap());
    assert!(error.contains("limit of 1000 bytes"), "{error}");
    says_hello(&guest.exchange(&vector("event-get.wire")).await);
    guest.stop().await;
}

#[tokio::test]
async fn many_events_at_once_each_get_their_own_answer() {
    let guest = with("asgi-plain", "asgi", "main:app").await;
    let events = (0..64).map(|number| {
        let Scope::Http(mut scope) = http_scope("POST", "/echo", "") else {
            unreachable!()
        };
        scope.body = format!("event {number}").into();
        let guest = &guest;
        async move { http(guest.event(&Scope::Http(scope)).await).body }
    });
    for (number, body) in futures_util::future::join_all(events).await.into_iter().enumerate() {
        assert_eq!(body, format!("event {number}"));
    }
    guest.stop().await;
}

#[tokio::test]
async fn accept_encoding_is_not_passed_on() {
    let guest = with("asgi-plain", "asgi", "main:app").await;
    let scope = Scope::Http(HttpScope {
        path: "/scope".into(),
        method: "GET".into(),
        headers: vec![
            ("host".into(), "example.org".into()),
            ("accept-encoding".into(), "gzip, br".into()),
        ],
        ..HttpScope::default()
    });
    let answer = http(guest.event(&scope).await);
    assert!(!String::from_utf8_lossy(&answer.body).contains("gzip"), "{answer:?}");
    guest.stop().await;
}

#[tokio::test]
async fn what_is_compressed_all_the_same_goes_back_as_it_was() {
    let guest = Guest::start(&[]).await;
    let answer = guest
        .configure(&configuration_for(&built("exec-rust"), "executable", "exec-rust"))
        .await;
    assert_eq!(answer, ConfigurationAnswer::Success);
    let answer = http(guest.get("/gzip").await);
    assert!(
        answer.headers.iter().all(|(name, _)| name != "content-encoding"),
        "{answer:?}"
    );
    assert!(std::str::from_utf8(&answer.body).is_ok(), "{answer:?}");
    guest.stop().await;
}

#[tokio::test]
async fn executables_get_their_targets_as_the_host_has_them_and_as_much_time_as_they_need() {
    let guest = Guest::start(&[]).await;
    let answer = guest
        .configure(&configuration_for(&built("exec-go"), "executable", "exec-go"))
        .await;
    assert_eq!(answer, ConfigurationAnswer::Success);
    for (path, query, expected) in [
        ("/raw/%2e%2e/x", "a=%20b", "/raw/%2e%2e/x?a=%20b"),
        ("/raw/a b/é", "", "/raw/a%20b/%C3%A9"),
    ] {
        let body = http(guest.event(&http_scope("GET", path, query)).await).body;
        assert_eq!(String::from_utf8_lossy(&body).trim_end(), expected);
    }
    assert_eq!(http(guest.get("/redirect").await).status, 302);
    assert_eq!(http(guest.get("/latin1").await).status, 200);
    // Longer than today's guest waits for a reply.
    let slow = guest.event(&http_scope("GET", "/slow", "ms=5500")).await;
    assert_eq!(http(slow).status, 200);
    guest.stop().await;
}

#[tokio::test]
async fn what_a_program_leaves_in_data_goes_back_once() {
    let code = "import os\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
                data = os.path.join(os.path.dirname(os.path.dirname(os.getcwd())), 'data')\n    \
                if scope['path'] == '/write':\n        os.makedirs(data, exist_ok=True)\n        \
                open(os.path.join(data, 'out.txt'), 'w').write('result')\n    \
                await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
                await send({'type': 'http.response.body', 'body': b'done'})\n";
    let guest = Guest::start(&[]).await;
    assert_eq!(guest.configure(&plain(code)).await, ConfigurationAnswer::Success);
    for (path, there) in [("/", false), ("/write", true), ("/", false)] {
        let mut wire = b"CONNECT 52\n".to_vec();
        wire.extend(http_scope("GET", path, "").encode().unwrap());
        let answer = guest.exchange(&wire).await;
        // A zip begins with these, and names its files in the clear.
        let zip =
            answer.windows(7).any(|bytes| bytes == b"out.txt") && answer.windows(4).any(|bytes| bytes == b"PK\x03\x04");
        assert_eq!(zip, there, "{path}");
    }
    guest.stop().await;
}

#[tokio::test]
async fn a_message_is_answered_with_what_the_program_sends() {
    let guest = with("asgi-plain", "asgi", "main:app").await;
    let answer = EventAnswer::decode(&guest.exchange(&vector("event-message.wire")).await).unwrap();
    let EventAnswer::Value(value) = answer else {
        panic!("{answer:?}")
    };
    let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(value["type"], "aleph.message.reply");
    assert_eq!(value["keys"], serde_json::json!(["content", "item_hash", "type"]));
    let (error, traceback) = failure(
        guest
            .event(&Scope::Message("{\"content\": {\"fail\": 1}}".into()))
            .await,
    );
    assert_eq!(error, "ValueError: this message asked for a failure");
    assert!(traceback.contains("answer_message"), "{traceback}");
    guest.stop().await;
}

#[tokio::test]
async fn wasm_and_node_start_though_the_host_can_only_say_asgi_or_executable() {
    for interface in ["asgi", "executable"] {
        let guest = Guest::start(&[]).await;
        let answer = guest
            .configure(&configuration_for(&built("c-cgi.wasm"), interface, "c-cgi.wasm"))
            .await;
        assert_eq!(answer, ConfigurationAnswer::Success);
        let body = http(guest.get("/").await).body;
        assert!(body.starts_with(b"Hello from C"), "{body:?}");
        guest.stop().await;
    }
    let guest = with("node-fetch", "asgi", "main:app").await;
    assert_eq!(http(guest.get("/").await).status, 200);
    guest.stop().await;
}

/// The interpreter runs before it is told of it.
#[tokio::test]
async fn the_hosts_time_zone_is_the_programs() {
    let guest = Guest::start(&[]).await;
    let mut configuration = plain(
        "import time\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
         await send({'type': 'http.response.start', 'status': 200})\n    \
         await send({'type': 'http.response.body', 'body': time.strftime('%Z %H', time.localtime(0)).encode()})\n",
    );
    configuration.variables = Some([("TZ".to_owned(), "HERE-9".to_owned())].into());
    assert_eq!(guest.configure(&configuration).await, ConfigurationAnswer::Success);
    let reply = http(guest.get("/").await);
    assert_eq!(reply.body, &b"HERE 09"[..]);
    guest.stop().await;
}

#[tokio::test]
async fn input_data_is_unpacked_and_variables_are_set() {
    let code = "import os\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
                data = os.path.join(os.path.dirname(os.path.dirname(os.getcwd())), 'data/in/answer.txt')\n    \
                body = open(data).read() + os.environ['GREETING'] + os.environ['EMPTY'] + os.environ['ALEPH_API_HOST']\n    \
                await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
                await send({'type': 'http.response.body', 'body': body.encode()})\n";
    let zip = Configuration::decode(&vector("config-v2-zip.msgpack")).unwrap();
    let configuration = Configuration {
        encoding: polyinit::wire::Encoding::Plain,
        entrypoint: "app".into(),
        code: Some(code.as_bytes().to_vec().into()),
        ..zip
    };
    let guest = Guest::start(&[]).await;
    assert_eq!(guest.configure(&configuration).await, ConfigurationAnswer::Success);
    assert_eq!(http(guest.get("/").await).body, "42\nhéllohttp://localhost");
    guest.stop().await;
}

#[tokio::test]
async fn the_guest_api_reaches_the_host() {
    let code = "import os, socket\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
                api = socket.socket(socket.AF_UNIX)\n    api.connect(os.environ['ALEPH_API_UNIX_SOCKET'])\n    \
                api.sendall(b'ping')\n    api.shutdown(socket.SHUT_WR)\n    body = api.recv(100)\n    \
                await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
                await send({'type': 'http.response.body', 'body': body})\n";
    let guest = Guest::start(&[]).await;
    let host = UnixListener::bind(guest.api_socket()).unwrap();
    assert_eq!(guest.configure(&plain(code)).await, ConfigurationAnswer::Success);
    let answer_api = async {
        let (mut stream, _) = host.accept().await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        said.extend(b" pong");
        stream.write_all(&said).await.unwrap();
    };
    let (answer, ()) = tokio::join!(guest.get("/"), answer_api);
    assert_eq!(http(answer).body, "ping pong");
    guest.stop().await;
}

#[tokio::test]
async fn the_shell_is_off_unless_it_is_turned_on() {
    let guest = Guest::start(&[]).await;
    let output = guest.exchange(&vector("shell.wire")).await;
    let output = String::from_utf8_lossy(&output);
    assert!(
        output.starts_with("the shell is off") && output.contains("shell = true"),
        "{output}"
    );
    guest.stop().await;
}

#[tokio::test]
async fn the_shell_vector_runs_its_command() {
    let guest = Guest::start(&["--shell"]).await;
    assert_eq!(guest.exchange(&vector("shell.wire")).await, b"hi\n");
    let output = guest.exchange(b"CONNECT 52\n!echo sorry >&2; exit 3").await;
    assert_eq!(String::from_utf8_lossy(&output), "sorry\nexit status: 3\n");
    guest.stop().await;
}

#[tokio::test]
async fn halt_lets_an_event_under_way_finish_and_the_program_shut_down() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("lifespan.log");
    let mut configuration = configuration_for(&program("fastapi-app"), "asgi", "main:app");
    configuration.variables = Some([("LIFESPAN_LOG".to_owned(), log.to_str().unwrap().to_owned())].into());
    let packages = crate::python::packages();
    configuration
        .variables
        .as_mut()
        .unwrap()
        .insert("PYTHONPATH".into(), packages);
    let guest = Guest::start(&[]).await;
    assert_eq!(guest.configure(&configuration).await, ConfigurationAnswer::Success);
    assert_eq!(http(guest.get("/").await).status, 200);
    let url = http(guest.event(&http_scope("GET", "/url", "a=%20b")).await);
    assert_eq!(url.status, 200, "{url:?}");
    assert!(
        String::from_utf8_lossy(&url.body).contains("http://example.org/url?a=%20b"),
        "{url:?}"
    );
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(!text.contains("shutdown"), "{text}");
    guest.stop().await;
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches("shutdown").count(), 1, "{text}");
}

#[tokio::test]
async fn halt_answers_the_event_that_is_under_way() {
    let guest = with("asgi-plain", "asgi", "main:app").await;
    let mut stream = guest.connect().await;
    stream.write_all(b"CONNECT 52\n").await.unwrap();
    stream
        .write_all(&http_scope("GET", "/wait", "s=0.5").encode().unwrap())
        .await
        .unwrap();
    // Once another event is answered, the first one is with the program.
    assert_eq!(http(guest.get("/").await).status, 200);
    let (said, took) = guest.halt().await;
    assert_eq!(said, b"STOP\nSTOPZ\n");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = http(EventAnswer::decode(answer.strip_prefix(b"OK 52\n").unwrap()).unwrap());
    assert!(answer.body.starts_with(b"waited"), "{answer:?}");
}

#[tokio::test]
async fn halt_takes_less_than_the_host_waits_whatever_the_program_does() {
    for path in ["/never", "/block"] {
        let guest = with("asgi-plain", "asgi", "main:app").await;
        let mut stream = guest.connect().await;
        stream.write_all(b"CONNECT 52\n").await.unwrap();
        stream
            .write_all(&http_scope("GET", path, "s=30").encode().unwrap())
            .await
            .unwrap();
        let (said, took) = guest.halt().await;
        assert_eq!(said, b"STOP\nSTOPZ\n");
        assert!(took < Duration::from_secs(5), "{path}: {took:?}");
    }
}

/// A host that is in a hurry says it again; so does whoever sends a signal as well.
#[tokio::test]
async fn a_second_halt_takes_nothing_from_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shut down");
    let guest = Guest::start(&[]).await;
    let code = format!(
        "import asyncio\nasync def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        \
         for word in ('startup', 'shutdown'):\n            await receive()\n            \
         await send({{'type': f'lifespan.{{word}}.complete'}})\n        open({file:?}, 'w').close()\n        return\n    \
         if scope['path'] == '/slow':\n        print('begun')\n        await asyncio.sleep(2)\n    \
         await send({{'type': 'http.response.start', 'status': 200}})\n    \
         await send({{'type': 'http.response.body'}})\n"
    );
    assert_eq!(guest.configure(&plain(&code)).await, ConfigurationAnswer::Success);
    let mut event = guest.connect().await;
    event.write_all(b"CONNECT 52\n").await.unwrap();
    let scope = http_scope("GET", "/slow", "").encode().unwrap();
    event.write_all(&scope).await.unwrap();
    guest.wait_for("begun");
    let mut first = guest.connect().await;
    first.write_all(b"CONNECT 52\nhalt").await.unwrap();
    while matches!(guest.get("/").await, EventAnswer::Value(_)) {}
    let (said, _) = guest.halt().await;
    assert_eq!(said, b"STOP\nSTOPZ\n");
    assert!(file.exists(), "the program was not told to shut down");
}
