//! A web server on the standard library alone, one thread a connection. It answers with the odd things that servers answer
//! with, so that what stands in front of it can be seen to leave them alone.

mod gzip;
mod http;

use std::env;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::thread;
use std::time::Duration;

use http::{Connection, Request};

fn main() -> io::Result<()> {
    let port = env::var("PORT").unwrap_or_else(|_| "8080".into());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    eprintln!("exec-rust: listening on port {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("exec-rust: {error}");
            }
        });
    }
    Ok(())
}

fn serve(stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some(request) = connection.next_request()? {
        answer(&mut connection, request)?;
    }
    Ok(())
}

fn answer(connection: &mut Connection, request: Request) -> io::Result<()> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let text = b"Content-Type: text/plain\r\n";
    match path {
        "/" => connection.reply("200 OK", text, b"Hello from a Rust server\n"),
        "/echo" => {
            let content_type = request.header("content-type").unwrap_or("application/octet-stream");
            connection.reply(
                "200 OK",
                format!("Content-Type: {content_type}\r\n").as_bytes(),
                &request.body,
            )
        }
        "/redirect" => connection.reply("302 Found", b"Location: /headers?a=%20b\r\n", b""),
        "/gzip" => {
            let packed = gzip::stored(&b"this was compressed\n".repeat(100));
            connection.reply(
                "200 OK",
                b"Content-Type: text/plain\r\nContent-Encoding: gzip\r\n",
                &packed,
            )
        }
        "/cookies" => {
            let cookies = b"Content-Type: text/plain\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; Path=/\r\n";
            connection.reply("200 OK", cookies, b"two cookies\n")
        }
        "/headers" => connection.reply(
            "200 OK",
            b"Content-Type: application/json\r\n",
            request.headers_as_json().as_bytes(),
        ),
        // "café" in ISO 8859-1, which HTTP/1.1 allows and UTF-8 does not.
        "/latin1" => connection.reply(
            "200 OK",
            b"Content-Type: text/plain\r\nX-Drink: caf\xe9\r\n",
            b"a header in latin-1\n",
        ),
        "/stream" => connection.reply_in_pieces(
            text,
            (0..10).map(|piece| {
                thread::sleep(milliseconds(query));
                format!("piece {piece}\n")
            }),
        ),
        "/slow" => {
            thread::sleep(milliseconds(query));
            connection.reply("200 OK", text, b"slow\n")
        }
        "/die" => {
            eprintln!("exec-rust: asked to die by the request for /die");
            process::exit(3)
        }
        "/die-midway" => {
            connection
                .stream()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of an ans")?;
            eprintln!("exec-rust: asked to die by the request for /die-midway");
            process::exit(3)
        }
        "/garbage" => connection.stream().write_all(b"this is not HTTP\r\n\r\n"),
        // /raw and all that starts with it or is stranger: the target as it came.
        _ => connection.reply("200 OK", text, request.target.as_bytes()),
    }
}

fn milliseconds(query: &str) -> Duration {
    Duration::from_millis(query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(0))
}
