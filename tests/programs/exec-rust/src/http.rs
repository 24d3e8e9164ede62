//! As much of HTTP/1.1 (RFC 9112) as a server needs that knows its clients: request heads, bodies by length or in chunks,
//! and replies on a connection that stays open.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub struct Connection {
    reader: BufReader<TcpStream>,
}

pub struct Request {
    /// The request target, byte for byte as it was sent.
    pub target: String,
    pub body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Connection {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// The next request with its whole body, or `None` where the client has closed the connection.
    pub fn next_request(&mut self) -> io::Result<Option<Request>> {
        let Some(line) = self.line()? else { return Ok(None) };
        let mut words = line.split(' ');
        let (Some(_method), Some(target)) = (words.next(), words.next()) else {
            return Err(malformed("request line", &line));
        };
        let mut request = Request {
            target: target.to_string(),
            body: Vec::new(),
            headers: Vec::new(),
        };
        while let Some(line) = self.line()?.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("header", &line))?;
            request
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        request.body = self.body(&request)?;
        Ok(Some(request))
    }

    fn body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.stream().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if request.header("transfer-encoding").is_some() {
            loop {
                let line = self.line()?.unwrap_or_default();
                let size = line.split(';').next().unwrap_or("").trim();
                let size = u64::from_str_radix(size, 16).map_err(|_| malformed("chunk size", &line))?;
                (&mut self.reader).take(size).read_to_end(&mut body)?;
                self.line()?; // the end of the chunk, or of the trailers, of which our clients send none
                if size == 0 {
                    return Ok(body);
                }
            }
        }
        let length = request.header("content-length").unwrap_or("0");
        let length: u64 = length.parse().map_err(|_| malformed("content-length", length))?;
        (&mut self.reader).take(length).read_to_end(&mut body)?;
        Ok(body)
    }

    /// A line without its end, read as ISO 8859-1 so that every byte is some character.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        if self.reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        Ok(Some(line.into_iter().map(char::from).collect()))
    }

    pub fn reply(&mut self, status: &str, headers: &[u8], body: &[u8]) -> io::Result<()> {
        let mut reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len()).into_bytes();
        reply.extend_from_slice(headers);
        reply.extend_from_slice(b"\r\n");
        reply.extend_from_slice(body);
        self.stream().write_all(&reply)
    }

    pub fn reply_in_pieces(&mut self, headers: &[u8], pieces: impl Iterator<Item = String>) -> io::Result<()> {
        let stream = self.stream();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n")?;
        stream.write_all(headers)?;
        stream.write_all(b"\r\n")?;
        for piece in pieces {
            write!(stream, "{:x}\r\n{piece}\r\n", piece.len())?;
        }
        stream.write_all(b"0\r\n\r\n")
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// `{"name": ["value", ...]}`, names in lower case.
    pub fn headers_as_json(&self) -> String {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let fields: Vec<String> = names
            .into_iter()
            .map(|name| {
                let values = self
                    .headers
                    .iter()
                    .filter(|(known, _)| known == name)
                    .map(|(_, value)| quote(value));
                format!("{}: [{}]", quote(name), values.collect::<Vec<_>>().join(", "))
            })
            .collect();
        format!("{{{}}}\n", fields.join(", "))
    }
}

fn malformed(what: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}: {text:?}"))
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
