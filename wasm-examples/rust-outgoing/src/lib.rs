//! A `wasi:http/proxy` component that goes out by itself: a request for `/fetch?URL` sends one to URL and passes its reply on,
//! one for `/connect?HOST:PORT` says its body to a TCP server and returns what that says, one for `/datagram?ADDRESS:PORT` does the
//! same by UDP, one for `/many?COUNT&HELD&URL` does what `/fetch` does while it has COUNT others under way, and one for `/send` sends what its
//! headers say and tells what came of it.

use std::io::{self, Read, Write};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    http_error_code, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::OutgoingDatagram;
use wasip2::sockets::udp_create_socket::create_udp_socket;

wasip2::http::proxy::export!(Component);

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let outcome = match path {
            "/fetch" => fetch(query),
            "/many" => many(query),
            "/send" => send(&request),
            "/connect" => body_of(&request).and_then(|body| connect(query, &body)),
            "/datagram" => body_of(&request).and_then(|body| datagram(query, body)),
            _ => Ok((404, format!("nothing at {path}\n").into_bytes())),
        };
        let (status, body) = outcome.unwrap_or_else(|error| (502, format!("{error}\n").into_bytes()));
        reply(response, status, &body);
    }
}

/// A GET of `url`.
fn get(url: &str) -> Result<OutgoingRequest, String> {
    let (scheme, rest) = url.split_once("://").ok_or("write http://host/path")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })));
    set.map_err(|()| format!("{url} is no URL"))?;
    Ok(request)
}

/// Status and body of the reply to a GET.
fn fetch(url: &str) -> Result<(u16, Vec<u8>), String> {
    let coming = outgoing_handler::handle(get(url)?, None).map_err(|code| format!("{code:?}"))?;
    coming.subscribe().block();
    let response = coming
        .get()
        .ok_or("no response though it is ready")?
        .map_err(|()| "the response was taken already")?
        .map_err(|code| format!("{code:?}"))?;
    let body = response.consume().map_err(|()| "the response has no body")?;
    Ok((response.status(), read(body)?))
}

/// Sends a request with `x-method`, `x-scheme`, `x-authority` and `x-path`, `x-body` bytes and, where they are there, the content-length
/// `x-length` and the milliseconds `x-connect` and `x-first-byte` that these may take; tells the reply's status, its headers `x-method`
/// and `x-path`, and how long its body is.
fn send(asked: &IncomingRequest) -> Result<(u16, Vec<u8>), String> {
    let asked = asked.headers();
    let header = |name: &str| asked.get(name).first().map(|value| String::from_utf8_lossy(value).into_owned());
    let fields = Fields::new();
    if let Some(length) = header("x-length") {
        fields.append("content-length", length.as_bytes()).map_err(|error| format!("{error:?}"))?;
    }
    let request = OutgoingRequest::new(fields);
    let method = match header("x-method").as_deref() {
        None | Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some("PUT") => Method::Put,
        Some(other) => Method::Other(other.to_owned()),
    };
    let scheme = match header("x-scheme").as_deref() {
        None | Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(other) => Scheme::Other(other.to_owned()),
    };
    request.set_method(&method).map_err(|()| "set-method failed")?;
    request.set_scheme(Some(&scheme)).map_err(|()| "set-scheme failed")?;
    request.set_authority(header("x-authority").as_deref()).map_err(|()| "set-authority failed")?;
    request.set_path_with_query(header("x-path").as_deref()).map_err(|()| "set-path-with-query failed")?;
    let options = RequestOptions::new();
    let time = |name: &str| header(name).and_then(|time| Some(time.parse::<u64>().ok()? * 1_000_000));
    options.set_connect_timeout(time("x-connect")).map_err(|()| "set-connect-timeout failed")?;
    options.set_first_byte_timeout(time("x-first-byte")).map_err(|()| "set-first-byte-timeout failed")?;
    let body = request.body().map_err(|()| "the request has no body")?;
    let coming = outgoing_handler::handle(request, Some(options)).map_err(|code| format!("handle: {code:?}"))?;
    let mut left: usize = header("x-body").and_then(|size| size.parse().ok()).unwrap_or_default();
    let stream = body.write().map_err(|()| "the body has no stream")?;
    while left > 0 {
        let piece = left.min(4096);
        left -= piece;
        stream.blocking_write_and_flush(&[b'x'; 4096][..piece]).map_err(|error| match error {
            StreamError::LastOperationFailed(error) => format!("write: {:?}", http_error_code(&error)),
            StreamError::Closed => "write: closed".to_owned(),
        })?;
    }
    drop(stream);
    OutgoingBody::finish(body, None).map_err(|code| format!("finish: {code:?}"))?;
    coming.subscribe().block();
    let response = coming.get().ok_or("not ready")?.map_err(|()| "taken already")?.map_err(|code| format!("reply: {code:?}"))?;
    let headers = response.headers();
    let [method, path] = ["x-method", "x-path"].map(|name| String::from_utf8_lossy(&headers.get(name).concat()).into_owned());
    let status = response.status();
    let length = read(response.consume().map_err(|()| "the response has no body")?)?.len();
    Ok((200, format!("{status} {method} {path} {length}").into_bytes()))
}

/// For `COUNT&HELD&URL`, sends so many requests to HELD, and while none of them is answered one to URL, whose reply it is.
fn many(query: &str) -> Result<(u16, Vec<u8>), String> {
    let mut parts = query.splitn(3, '&');
    let (Some(count), Some(held), Some(url)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("write /many?COUNT&HELD&URL".into());
    };
    let count: u32 = count.parse().map_err(|_| format!("{count:?} is no number"))?;
    let mut under_way = Vec::new();
    for _ in 0..count {
        under_way.push(outgoing_handler::handle(get(held)?, None).map_err(|code| format!("{code:?}"))?);
    }
    fetch(url)
}

fn body_of(request: &IncomingRequest) -> Result<Vec<u8>, String> {
    read(request.consume().map_err(|()| "the request has no body")?)
}

fn read(body: IncomingBody) -> Result<Vec<u8>, String> {
    let stream = body.stream().map_err(|()| "the body has no stream")?;
    let mut all = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(piece) => all.extend(piece),
            Err(StreamError::Closed) => return Ok(all),
            Err(error) => return Err(format!("{error:?}")),
        }
    }
}

/// Says `words` to a TCP server, and returns what it answers until it closes.
fn connect(target: &str, words: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let (host, port) = target.rsplit_once(':').ok_or("write /connect?HOST:PORT")?;
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let told = |code: ErrorCode| format!("{code:?}");
    let network = instance_network();
    let lookup = resolve_addresses(&network, host).map_err(told)?;
    let waiting = lookup.subscribe();
    let mut last = "the name has no address".to_owned();
    loop {
        waiting.block();
        let Some(address) = lookup.resolve_next_address().map_err(told)? else {
            return Err(last);
        };
        match exchange(address, port, words) {
            Ok(answer) => return Ok((200, answer)),
            Err(error) => last = error,
        }
    }
}

fn exchange(address: IpAddress, port: u16, words: &[u8]) -> Result<Vec<u8>, String> {
    let told = |code: ErrorCode| format!("{code:?}");
    let (family, address) = match address {
        IpAddress::Ipv4(address) => (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address })),
        IpAddress::Ipv6(address) => (
            IpAddressFamily::Ipv6,
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 }),
        ),
    };
    let socket = create_tcp_socket(family).map_err(told)?;
    socket.start_connect(&instance_network(), address).map_err(told)?;
    socket.subscribe().block();
    let (mut input, mut output) = socket.finish_connect().map_err(told)?;
    let mut talk = || -> io::Result<Vec<u8>> {
        output.write_all(words)?;
        Write::flush(&mut output)?;
        let mut answer = Vec::new();
        input.read_to_end(&mut answer)?;
        Ok(answer)
    };
    talk().map_err(|error| error.to_string())
}

/// Says `words` in one datagram to an IPv4 address, and returns what the first that comes back says.
fn datagram(target: &str, words: Vec<u8>) -> Result<(u16, Vec<u8>), String> {
    let told = |code: ErrorCode| format!("{code:?}");
    let target: std::net::SocketAddrV4 = target.parse().map_err(|_| "write /datagram?ADDRESS:PORT")?;
    let v4 = |address: std::net::SocketAddrV4| {
        let [a, b, c, d] = address.ip().octets();
        IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) })
    };
    let socket = create_udp_socket(IpAddressFamily::Ipv4).map_err(told)?;
    let anywhere = std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
    socket.start_bind(&instance_network(), v4(anywhere)).map_err(told)?;
    socket.finish_bind().map_err(told)?;
    let (coming, going) = socket.stream(Some(v4(target))).map_err(told)?;
    going.subscribe().block();
    going.check_send().map_err(told)?;
    going.send(&[OutgoingDatagram { data: words, remote_address: None }]).map_err(told)?;
    coming.subscribe().block();
    let came = coming.receive(1).map_err(told)?;
    Ok((200, came.into_iter().next().ok_or("nothing came back")?.data))
}

fn reply(response: ResponseOutparam, status: u16, text: &[u8]) {
    let head = OutgoingResponse::new(Fields::new());
    let _ = head.set_status_code(status);
    let Ok(body) = head.body() else { return };
    ResponseOutparam::set(response, Ok(head));
    let Ok(mut stream) = body.write() else { return };
    if stream.write_all(text).and_then(|()| Write::flush(&mut stream)).is_err() {
        return; // The client is gone.
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
