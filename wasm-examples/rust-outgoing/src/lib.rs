//! A `wasi:http/proxy` component that goes out by itself: a request for `/fetch?URL` sends one to URL and passes its reply on,
//! one for `/connect?HOST:PORT` says its body to a TCP server and returns what that says.

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

wasip2::http::proxy::export!(Component);

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let outcome = match path {
            "/fetch" => fetch(query),
            "/connect" => body_of(&request).and_then(|body| connect(query, &body)),
            _ => Ok((404, format!("nothing at {path}\n").into_bytes())),
        };
        let (status, body) = outcome.unwrap_or_else(|error| (502, format!("{error}\n").into_bytes()));
        reply(response, status, &body);
    }
}

/// Status and body of the reply to a GET.
fn fetch(url: &str) -> Result<(u16, Vec<u8>), String> {
    let (scheme, rest) = url.split_once("://").ok_or("write /fetch?http://host/path")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })));
    set.map_err(|()| format!("{url} is no URL"))?;
    let coming = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    coming.subscribe().block();
    let response = coming
        .get()
        .ok_or("no response though it is ready")?
        .map_err(|()| "the response was taken already")?
        .map_err(|code| format!("{code:?}"))?;
    let body = response.consume().map_err(|()| "the response has no body")?;
    Ok((response.status(), read(body)?))
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
