//! Requests from component to component.

use std::time::{Duration, Instant};

use crate::support::{Served, built, folder_with};

const MANIFEST: &str = "\
[components.front]
source = \"front.py\"
[components.back]
source = \"back.py\"
routes = []
";

/// `/socket` and `/proxy` ask the other component over the one and the other; `/loop` asks itself without an end.
const FRONT: &str = "\
import asyncio, concurrent.futures, http.client, json, os, socket, urllib.request

# More than a circle of calls needs.
threads = concurrent.futures.ThreadPoolExecutor(64)

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ['POLYINIT_SOCKET'])

def over_socket(host, path, headers={}):
    connection = Connection(host, timeout=60)
    connection.request('GET', path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read()

def over_proxy(host, path, headers={}):
    proxy = urllib.request.ProxyHandler({'http': os.environ['POLYINIT_PROXY']})
    try:
        with urllib.request.build_opener(proxy).open(urllib.request.Request(f'http://{host}{path}', headers=headers)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

async def app(scope, receive, send):
    assert scope['type'] == 'http'
    way, _, host = scope['path'].strip('/').partition('/')
    headers = {name.decode(): value.decode() for name, value in scope['headers']}
    passed = {name: headers[name] for name in ('x-request-id', 'traceparent') if name in headers}
    if way == 'loop':
        ask, host, path = over_socket, 'front.internal', '/loop'
    else:
        ask, path = (over_proxy if way == 'proxy' else over_socket), '/path?x=1'
    status, body = await asyncio.get_running_loop().run_in_executor(threads, ask, host, path, passed)
    await send({'type': 'http.response.start', 'status': status})
    await send({'type': 'http.response.body', 'body': body})
";

const BACK: &str = "\
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    headers = dict(scope['headers'])
    told = [scope['path'].encode(), scope['query_string'], headers[b'host'], headers[b'x-request-id'], headers.get(b'traceparent', b'')]
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': b' '.join(told)})
";

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn program() -> tempfile::TempDir {
    let folder = folder_with("polyinit.toml", MANIFEST);
    std::fs::write(folder.path().join("front.py"), FRONT).unwrap();
    std::fs::write(folder.path().join("back.py"), BACK).unwrap();
    folder
}

async fn ask(app: &Served, path: &str) -> (u16, String) {
    let request = ::http::Request::get(path)
        .header("x-request-id", "mine")
        .header("traceparent", TRACE);
    let response = crate::support::request(&app.address, request, "").await;
    (response.status, response.text())
}

#[tokio::test]
async fn by_name_over_the_socket_and_the_proxy() {
    let folder = program();
    let app = Served::start(folder.path(), &[]);
    for way in ["socket", "proxy"] {
        let (status, told) = ask(&app, &format!("/{way}/back.internal")).await;
        assert_eq!(
            (status, told),
            (200, format!("/path x=1 back.internal mine {TRACE}")),
            "{way}"
        );
        let (status, told) = ask(&app, &format!("/{way}/other.internal")).await;
        assert_eq!(status, 404);
        assert!(told.contains("there are: back, front"), "{told}");
        app.wait_for("GET http://other.internal/path?x=1, asked by a component: there is no component");
        let (status, told) = ask(&app, &format!("/{way}/example.org")).await;
        assert_eq!(status, 400);
        assert!(told.contains("example.org is no component"), "{told}");
    }
    // From outside, the name means nothing.
    let request = ::http::Request::get("/socket/back.internal").header("host", "back.internal");
    let outside = crate::support::request(&app.address, request, "").await;
    assert!(outside.text().starts_with("/path x=1 back.internal "), "{outside:?}");
    app.stop();
}

#[tokio::test]
async fn a_circle_comes_to_an_end() {
    let folder = program();
    let app = Served::start(folder.path(), &[]);
    let (status, told) = ask(&app, "/loop").await;
    assert_eq!(status, 508);
    assert!(
        told.contains("32 calls between components are under way for one request"),
        "{told}"
    );
    assert_eq!(ask(&app, "/socket/back.internal").await.0, 200);
    app.stop();
}

/// What of a request's names reaches whom a guest calls that says none of them itself.
#[tokio::test]
async fn what_a_request_is_followed_by_goes_along_with_a_guests_calls() {
    for guest in ["rust-outgoing.wasm", "rust-service.wasm"] {
        let manifest = format!(
            "[components.out]\nsource = {:?}\nroutes = [\"/fetch\"]\n[components.out.wasm]\nhosts = [\"self\"]\n\
             [components.back]\nsource = \"back.py\"\nroutes = [\"/back\"]\n",
            built(guest)
        );
        let folder = folder_with("polyinit.toml", manifest);
        std::fs::write(folder.path().join("back.py"), BACK).unwrap();
        let app = Served::start(folder.path(), &[]);
        let told = async |path: &str| {
            let reply = ask(&app, path).await;
            assert_eq!(reply.0, 200, "{guest}: {}", reply.1);
            reply.1
        };
        let by_name = told("/fetch?http://back.internal/back").await;
        assert!(by_name.ends_with(&format!(" mine {TRACE}")), "{guest}: {by_name}");
        let by_route = told("/fetch?http://self/back").await;
        assert!(by_route.ends_with(&format!(" mine {TRACE}")), "{guest}: {by_route}");
        // From guest to guest to another.
        let through = told("/fetch?http://out.internal/fetch?http://back.internal/back").await;
        assert!(through.ends_with(&format!(" mine {TRACE}")), "{guest}: {through}");
        // Who has no name gets one, the same all the way.
        let unnamed = app.get("/fetch?http://back.internal/back").await.text();
        let id = unnamed.trim_end().rsplit(' ').next().unwrap();
        assert!(id.contains('-') && id.len() > 17 && id != "mine", "{guest}: {unnamed}");
        app.stop();
    }
}

/// Neither who calls nor who is called waits longer than its own `request_timeout`.
#[tokio::test]
async fn a_call_takes_no_more_time_than_its_ends_have() {
    let manifest = |out: &str, slow: &str| {
        format!(
            "[components.out]\nsource = {:?}\nroutes = [\"/fetch\"]\n{out}[components.out.wasm]\nhosts = [\"self\"]\n\
             [components.front]\nsource = \"front.py\"\nroutes = [\"/socket/*\"]\n\
             [components.slow]\nsource = \"slow.py\"\nroutes = []\n{slow}",
            built("rust-outgoing.wasm")
        )
    };
    let slow = "\
import asyncio
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await asyncio.sleep(1000)
";
    let timeout = "request_timeout = 0.5\n";
    for (manifest, paths) in [
        (manifest(timeout, ""), &["/fetch?http://slow.internal/"][..]),
        (
            manifest("", timeout),
            &["/fetch?http://slow.internal/", "/socket/slow.internal"],
        ),
    ] {
        let folder = folder_with("polyinit.toml", &manifest);
        std::fs::write(folder.path().join("front.py"), FRONT).unwrap();
        std::fs::write(folder.path().join("slow.py"), slow).unwrap();
        let app = Served::start(folder.path(), &[]);
        for path in paths {
            let began = Instant::now();
            let (status, told) = ask(&app, path).await;
            assert_eq!(status, 504, "{path}: {told}");
            assert!(told.contains("0.5 s"), "{path}: {told}");
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{path}: {:?}",
                began.elapsed()
            );
        }
        app.stop();
    }
}

/// A circle that goes through both ways, of which one end says nothing of whom it is called for.
#[tokio::test]
async fn a_circle_through_a_guest_comes_to_an_end() {
    let manifest = format!(
        "[components.out]\nsource = {:?}\nroutes = [\"/fetch\"]\n[components.out.wasm]\nhosts = [\"self\"]\n\
         [components.round]\nsource = \"round.py\"\nroutes = [\"/round\"]\n",
        built("rust-outgoing.wasm")
    );
    let round = "\
import http.client, os, socket
def handler(event, context):
    connection = http.client.HTTPConnection('out.internal', timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ['POLYINIT_SOCKET'])
    passed = {name: event['headers'][name] for name in ('x-request-id', 'traceparent') if name in event['headers']}
    connection.request('GET', '/fetch?http://round.internal/', headers=passed)
    response = connection.getresponse()
    return {'status': response.status, 'body': response.read()}
";
    let folder = folder_with("polyinit.toml", manifest);
    std::fs::write(folder.path().join("round.py"), round).unwrap();
    let app = Served::start(folder.path(), &[]);
    let ended = app.get("/round").await;
    let told = ended.text();
    assert!(
        ended.status >= 500 && (told.contains("LoopDetected") || told.contains("under way for one request")),
        "{}: {told}",
        ended.status
    );
    app.stop();
}

#[tokio::test]
async fn one_component_has_nobody_to_call() {
    let code = "\
import os
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': str('POLYINIT_SOCKET' in os.environ).encode()})
";
    let folder = folder_with("main.py", code);
    let app = Served::start(folder.path(), &[]);
    assert_eq!(app.get("/").await.text(), "False");
    app.stop();
}

/// Asks the other component twenty times at once, on behalf of one request.
const MANY: &str = "\
import asyncio, os

async def ask(trace):
    reader, writer = await asyncio.open_unix_connection(os.environ['POLYINIT_SOCKET'])
    writer.write(b'GET / HTTP/1.1\\r\\nhost: back.internal\\r\\nconnection: close\\r\\ntraceparent: ' + trace + b'\\r\\n\\r\\n')
    return (await reader.read())[9:12]

async def app(scope, receive, send):
    assert scope['type'] == 'http'
    trace = dict(scope['headers'])[b'traceparent']
    told = await asyncio.gather(*[ask(trace) for _ in range(20)])
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': b' '.join(told)})
";

const SLOW: &str = "\
import asyncio

async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await asyncio.sleep(0.3)
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body'})
";

/// Calls beside each other are no circle, though all of them are for the same request.
#[tokio::test]
async fn many_may_be_called_at_once() {
    let folder = folder_with("polyinit.toml", MANIFEST);
    std::fs::write(folder.path().join("front.py"), MANY).unwrap();
    std::fs::write(folder.path().join("back.py"), SLOW).unwrap();
    let app = Served::start(folder.path(), &[]);
    let (_, told) = ask(&app, "/").await;
    assert_eq!(told, ["200"; 20].join(" "));
    app.stop();
}
