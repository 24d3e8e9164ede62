//! A `wasi:http/proxy` component that goes out by itself: a request for `/fetch?URL` sends one to URL and passes its reply on,
//! one for `/connect?HOST:PORT` says its body to a TCP server and returns what that says, one for `/datagram?ADDRESS:PORT` does the
//! same by UDP, and one for `/many?COUNT&URL` sends so many at once and tells how many were let go out.

use std::io::{self, Read, Write};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
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

/// Sends `COUNT&URL` as so many requests, waits for none, and tells what became of them.
fn many(query: &str) -> Result<(u16, Vec<u8>), String> {
    let (count, url) = query.split_once('&').ok_or("write /many?COUNT&URL")?;
    let count: u32 = count.parse().map_err(|_| format!("{count:?} is no number"))?;
    let mut under_way = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..count {
        match outgoing_handler::handle(get(url)?, None) {
            Ok(coming) => under_way.push(coming),
            Err(code) => refused.push(code),
        }
    }
    let last = refused.last().map(|code| format!("{code:?}")).unwrap_or_default();
    Ok((200, format!("{} sent, {} refused {last}\n", under_way.len(), refused.len()).into_bytes()))
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
