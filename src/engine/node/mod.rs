//! Node programs, in worker processes that need nothing but Node 18 or newer. What is in `worker/` is the other end of the
//! channel; it loads the program as its main module and looks at what that offers, in this order:
//!
//! | the program | how it gets its events |
//! |---|---|
//! | `export default { fetch(request, env, context) }` or `export function fetch` | in frames; replies with a `Response` |
//! | `export function handler(event, context)`, or a method of the default export | in frames; replies with a value |
//! | exports an `http.Server` that does not listen, or what has one (Fastify) | HTTP, on a port of the worker's choice |
//! | listens itself (`http.createServer(...).listen(process.env.PORT)`, Express, Fastify) | HTTP, on that port |
//! | exports an Express or Koa application, or `(request, response) => ...` | HTTP, on a port of the worker's choice |
//! | `export default function (request)` | as `fetch` |
//! | none of these | HTTP, once it listens on `$PORT` or on the conventional port |
//!
//! The default export may be a promise of any of these.
//!
//! There is one process in either case: what was loaded to be looked at is what serves. Programs with `fetch` get as
//! many processes as there are processors; those that listen have one, as when started by hand, unless the manifest says
//! more, and are treated as any [executable](super::executable) is, restarts included.
//!
//! Network messages go to the method `message` beside `fetch` (`export default { fetch, message }`, or
//! `export function message`): it is called with the message, which is JSON, as a value, and what it returns is the
//! reply: a string, bytes, a `Response`'s body, or anything else as JSON. Without it they are events of `handler`. A
//! program that listens gets them as executables do.
//!
//! An error that nobody catches fails the event that it came from, be it by frames or by HTTP; one of no event ends the
//! process, as always. What the program prints on behalf of an event has that event's id in the log.
//!
//! `request.url` is a URL as the URL standard has it: `/%2e%2e/x` is `/x` there. `request.signal` is aborted when the
//! client goes away. `context.waitUntil(promise)` keeps the process alive until the promise is settled.

mod serve;
mod start_script;
#[cfg(test)]
mod tests;
mod typescript;

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use self::start_script::StartScript;
use super::worker::{self, Language, ReplyHead, Warm};
use super::{Engine, Settings, StartError};
use crate::event::{Body, Context, Message};
use crate::program::{Component, Entrypoint};

/// The worker's parts, in the order in which they run. Each is a function of what they share.
const WORKER: [&str; 9] = [
    include_str!("worker/channel.js"),
    include_str!("worker/errors.js"),
    include_str!("worker/web.js"),
    include_str!("worker/exchange.js"),
    include_str!("worker/reply.js"),
    include_str!("worker/events.js"),
    include_str!("worker/serve.js"),
    include_str!("worker/program.js"),
    include_str!("worker/main.js"),
];

/// Reads the worker's source off the channel and runs it, under a name to know its frames by in stack traces.
const BOOTSTRAP: &str = "\
{
  const { hrtime } = process;
  const marks = [hrtime.bigint()];
  const fs = require('fs');
  const channel = Number(process.argv[1]);
  const take = (count) => {
    const data = Buffer.alloc(count);
    for (let length = 0; length < count; ) {
      const read = fs.readSync(channel, data, length, count - length);
      if (read === 0) process.exit(0);
      length += read;
    }
    return data;
  };
  const source = take(take(4).readUInt32LE()).toString();
  const parts = new (require('vm').Script)(source, { filename: '<polyinit worker>' }).runInThisContext();
  const shared = { descriptor: channel, require, load: (url) => import(url), marks, mark: () => marks.push(hrtime.bigint()) };
  for (const part of parts) part(shared);
}";

/// Node, with what it is told beside the component itself.
#[derive(Default)]
struct Node {
    /// `PORT` and `HOST`, for programs that listen.
    environment: Vec<(String, String)>,
    /// What Node itself is told: by the package's script, or to run TypeScript.
    flags: Vec<String>,
    /// Where a package says how it is started.
    start: Option<StartScript>,
}

/// Starts an interpreter that waits for a program, for [`start`] to take. Does nothing where there is no Node.
pub fn warm_up(warm: &Warm, settings: &Settings) {
    warm.put(Arc::new(Node::default()), settings);
}

/// Starts the workers of a Node component, or the one that serves HTTP itself.
///
/// # Errors
/// With the program's stack trace where it can't be loaded, and as [`super::executable::start`] where it neither
/// exports anything nor listens.
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    let (language, lookout) = serve::prepare(component, settings).await?;
    let first = worker::launch(&language, component, settings).await?;
    if first.found.listens {
        return serve::start(component, settings, lookout, first).await;
    }
    Ok(worker::with(language, component, settings, first))
}

impl Language for Node {
    fn name(&self) -> &'static str {
        "Node"
    }

    fn command(&self) -> Vec<OsString> {
        let words = ["node"]
            .into_iter()
            .chain(self.flags.iter().map(String::as_str))
            .chain(["-e", BOOTSTRAP]);
        words.map(OsString::from).collect()
    }

    fn preamble(&self) -> Vec<u8> {
        let source = format!("[{}]", WORKER.join(","));
        let mut preamble = (source.len() as u32).to_le_bytes().to_vec();
        preamble.extend_from_slice(source.as_bytes());
        preamble
    }

    fn variables(&self) -> Vec<(String, String)> {
        let variables = self.start.iter().flat_map(|start| &start.variables);
        // Its options are among the flags, less those that the worker does in the program's folder.
        variables.filter(|(name, _)| name != "NODE_OPTIONS").cloned().collect()
    }

    fn takes_warm(&self, component: &Component) -> bool {
        let variables = self.variables();
        let mut names = component
            .environment
            .keys()
            .chain(variables.iter().map(|(name, _)| name));
        self.flags.is_empty() && !names.any(|name| is_read_early(name))
    }

    fn last_part(&self) -> &'static str {
        "listen"
    }

    fn load(&self, component: &Component, settings: &Settings) -> Result<Vec<u8>, StartError> {
        let Entrypoint::File(file) = &component.entrypoint else {
            return Err(StartError::new(format!(
                "{}: a Node component begins with a file, \"main.mjs\", or with the folder of its package.json",
                component.name
            )));
        };
        let mut environment = settings.environment_of(component);
        environment.extend(self.environment.iter().cloned());
        let load = json!({
            "root": component.root,
            "file": file,
            "start": self.start,
            "environment": environment,
            "event_timeout": settings.event_timeout.as_secs_f64(),
            "body_limit": settings.body_limit,
            "conventional_port": settings.conventional_port,
        });
        Ok(load.to_string().into_bytes())
    }

    /// `id \n message`
    fn encode_message(&self, out: &mut BytesMut, context: &Context, message: &Message) {
        // Writing to memory does not fail.
        let _ = writeln!(out.writer(), "{}", context.id);
        out.put_slice(message.body.as_bytes());
    }

    /// `u32 length of the JSON | [method, scheme, host, target, [name, value, ...], whole, id, client] | body, where it is
    /// whole`
    fn encode_request(&self, out: &mut BytesMut, context: &Context, head: &Parts, body: Option<&Bytes>) {
        let start = out.len();
        out.put_u32_le(0);
        out.put_u8(b'[');
        string(out, head.method.as_str().as_bytes());
        out.put_u8(b',');
        string(out, context.scheme.as_bytes());
        out.put_u8(b',');
        let host = head.headers.get(http::header::HOST).map(HeaderValue::as_bytes);
        let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        string(out, host.or(authority).unwrap_or(b"localhost"));
        out.put_u8(b',');
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        string(out, target.as_bytes());
        out.put_slice(b",[");
        let mut fields = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let host = authority
            .filter(|_| host.is_none())
            .map(|authority| ("host", authority));
        let mut comma = false;
        for (name, value) in host.into_iter().chain(&mut fields) {
            if comma {
                out.put_u8(b',');
            }
            comma = true;
            string(out, name.as_bytes());
            out.put_u8(b',');
            string(out, value);
        }
        out.put_slice(if body.is_some() { b"],true," } else { b"],false," });
        // Writing to memory does not fail.
        let _ = write!(out.writer(), "\"{}\",", context.id);
        let _ = match context.client {
            Some(client) => write!(out.writer(), "\"{}\"]", client.ip()),
            None => write!(out.writer(), "null]"),
        };
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        if let Some(body) = body {
            out.put_slice(body);
        }
    }

    /// `u32 length of the JSON | [status, [name, value, ...]] | body`
    fn decode_reply(&self, mut payload: Bytes) -> Result<ReplyHead, String> {
        let other_shape = || "the worker sent a reply of another shape".to_owned();
        if payload.len() < 4 {
            return Err(other_shape());
        }
        let length = payload.get_u32_le() as usize;
        if length > payload.len() {
            return Err(other_shape());
        }
        let head = payload.split_to(length);
        let (status, fields): (u32, Vec<String>) = serde_json::from_slice(&head).map_err(|_| other_shape())?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = u16::try_from(status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or_else(|| format!("the program's Response has the status {status}"))?;
        let headers = response.headers_mut();
        headers.reserve(fields.len() / 2);
        for field in fields.chunks_exact(2) {
            let name = HeaderName::from_bytes(field[0].as_bytes())
                .map_err(|_| format!("the program sent a header named {:?}", field[0]))?;
            let value = latin_1(&field[1])
                .ok_or_else(|| format!("the program sent the header {name} with a value that no header may have"))?;
            headers.append(name, value);
        }
        Ok(ReplyHead {
            response,
            body: payload,
        })
    }
}

/// Whether Node, its libraries or the loader read that variable once, when it starts, as Node does with its flags.
fn is_read_early(name: &str) -> bool {
    const FAMILIES: [&str; 6] = ["NODE_", "UV_", "OPENSSL_", "SSL_CERT_", "LD_", "MALLOC_"];
    name != "NODE_ENV" && FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Appends bytes as a JSON string of the characters U+0000 to U+00FF, which is how the Fetch standard has header values.
fn string(out: &mut BytesMut, bytes: &[u8]) {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if bytes.iter().all(plain) {
        out.put_u8(b'"');
        out.put_slice(bytes);
        out.put_u8(b'"');
        return;
    }
    let text: String = bytes.iter().copied().map(char::from).collect();
    // Writing to memory does not fail.
    let _ = serde_json::to_writer((&mut *out).writer(), &text);
}

fn latin_1(text: &str) -> Option<HeaderValue> {
    if text.is_ascii() {
        return HeaderValue::from_str(text).ok();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|letter| u8::try_from(letter).ok()).collect();
    HeaderValue::from_bytes(&bytes?).ok()
}
