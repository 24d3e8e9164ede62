//! A WASI 0.1 program by the CGI convention (RFC 3875): the request's head is in the environment, its body on stdin,
//! and the response goes to stdout as headers, an empty line and the body.

use std::env;
use std::io::{self, Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match env::var("EVENT_TYPE").as_deref() {
        Ok("message") => answer_message(),
        _ => answer_request(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("rust-cgi: {error}");
        ExitCode::FAILURE
    })
}

/// A network message comes whole on stdin; all that is written to stdout is the answer.
fn answer_message() -> io::Result<ExitCode> {
    let mut message = String::new();
    io::stdin().read_to_string(&mut message)?;
    print!(
        "{{\"language\": \"rust\", \"bytes\": {}, \"message\": {}}}",
        message.len(),
        quote(&message)
    );
    Ok(ExitCode::SUCCESS)
}

fn answer_request() -> io::Result<ExitCode> {
    let path = variable("PATH_INFO");
    match path.as_str() {
        "" | "/" => reply(
            "200 OK",
            "Content-Type: text/plain\n",
            b"Hello from Rust by way of CGI\n",
        ),
        "/echo" => echo(),
        "/env" => reply("200 OK", "Content-Type: application/json\n", environment().as_bytes()),
        "/cookies" => reply(
            "200 OK",
            "Content-Type: text/plain\nSet-Cookie: a=1; Path=/\nSet-Cookie: b=2; Path=/\n",
            b"two cookies\n",
        ),
        "/stream" => stream(),
        "/file" => reply(
            "200 OK",
            "Content-Type: application/octet-stream\n",
            &std::fs::read(variable("QUERY_STRING"))?,
        ),
        "/arguments" => {
            let arguments: String = env::args().skip(1).map(|argument| argument + "\n").collect();
            reply("200 OK", "Content-Type: text/plain\n", arguments.as_bytes())
        }
        "/write" => {
            let mut body = Vec::new();
            io::stdin().read_to_end(&mut body)?;
            std::fs::write(variable("QUERY_STRING"), body)?;
            reply("204 No Content", "", b"")
        }
        "/memory" => {
            let taken = take_memory_until_refused();
            reply(
                "200 OK",
                "Content-Type: text/plain\n",
                format!("{taken} MiB, then no more\n").as_bytes(),
            )
        }
        "/panic" => panic!("asked to panic by the request for /panic"),
        "/spin" => loop {
            std::hint::black_box(());
        },
        "/fail" => fail(),
        _ => match path.strip_prefix("/status/") {
            Some(status) => reply(
                status,
                "Content-Type: text/plain\n",
                format!("status {status}\n").as_bytes(),
            ),
            None => reply(
                "404 Not Found",
                "Content-Type: text/plain\n",
                format!("nothing at {path}\n").as_bytes(),
            ),
        },
    }
}

fn reply(status: &str, headers: &str, body: &[u8]) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    write!(out, "Status: {status}\n{headers}\n")?;
    out.write_all(body)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn echo() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let content_type = match variable("CONTENT_TYPE") {
        none if none.is_empty() => "application/octet-stream".into(),
        given => given,
    };
    write!(out, "Content-Type: {content_type}\n\n")?;
    io::copy(&mut io::stdin().lock(), &mut out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn stream() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    write!(out, "Content-Type: text/plain\n\n")?;
    for n in 1..=10 {
        writeln!(out, "piece {n}")?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `/fail` fails before it has answered, `/fail?late` in the middle of its answer.
fn fail() -> io::Result<ExitCode> {
    if variable("QUERY_STRING") == "late" {
        print!("Content-Type: text/plain\n\nhalf of an ans");
        io::stdout().flush()?;
    }
    eprintln!("rust-cgi: asked to fail by the request for /fail");
    Ok(ExitCode::from(3))
}

fn environment() -> String {
    let pairs: Vec<String> = env::vars_os()
        .map(|(name, value)| {
            format!(
                "{}: {}",
                quote(&name.to_string_lossy()),
                quote(&value.to_string_lossy())
            )
        })
        .collect();
    format!("{{{}}}\n", pairs.join(", "))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// A JSON string (RFC 8259, section 7).
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\x1f' => quoted.push_str(&format!("\\u{:04x}", character as u32)),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// Allocates and fills one MiB after another, and gives all of it back before it returns how many there were.
fn take_memory_until_refused() -> usize {
    const MIB: usize = 1024 * 1024;
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(4096);
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            return taken.len();
        }
        block.resize(MIB, 1);
        taken.push(block);
    }
}
