//! Python programs: ASGI and WSGI applications and plain functions, in worker processes that need nothing but the
//! standard library.
//!
//! `worker/` is the other end of the channel. Heads travel in [`marshal`], which the interpreter decodes in one call.

mod marshal;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version};
use hyper::ext::Protocol;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::worker::{self, Language, ReplyHead, Warm};
use super::{Engine, Settings, StartError};
use crate::event::{Body, Context, Message};
use crate::program::{Component, Entrypoint};

const INTERPRETER: &str = "python3";

/// The worker's modules, by the names that they are imported under.
const WORKER: [(&str, &str); 12] = [
    ("polyinit_worker", include_str!("worker/__init__.py")),
    ("polyinit_worker.asgi", include_str!("worker/asgi.py")),
    ("polyinit_worker.channel", include_str!("worker/channel.py")),
    ("polyinit_worker.exchange", include_str!("worker/exchange.py")),
    ("polyinit_worker.handler", include_str!("worker/handler.py")),
    ("polyinit_worker.main", include_str!("worker/main.py")),
    ("polyinit_worker.output", include_str!("worker/output.py")),
    ("polyinit_worker.program", include_str!("worker/program.py")),
    ("polyinit_worker.report", include_str!("worker/report.py")),
    ("polyinit_worker.threads", include_str!("worker/threads.py")),
    ("polyinit_worker.websocket", include_str!("worker/websocket.py")),
    ("polyinit_worker.wsgi", include_str!("worker/wsgi.py")),
];

/// Reads the worker's modules off the channel and runs them: no file in the program's file system, no 40 KB in the
/// list of processes, and names to know their frames by in tracebacks. Each is compiled when it is imported.
const BOOTSTRAP: &str = "\
import time
began = time.monotonic_ns()
import marshal, os, sys
from importlib.machinery import ModuleSpec
channel = int(sys.argv[1])
def take(count):
    data = b''
    while len(data) < count:
        piece = os.read(channel, count - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data
sources = dict(marshal.loads(take(int.from_bytes(take(4), 'little'))))
class Embedded:
    def find_spec(name, path=None, target=None):
        if name in sources:
            return ModuleSpec(name, Embedded, origin='<polyinit>', is_package='.' not in name)
    def create_module(spec):
        pass
    def exec_module(module):
        name = module.__name__
        exec(compile(sources[name], '<polyinit ' + name + '>', 'exec'), module.__dict__)
sys.meta_path.insert(0, Embedded)
from polyinit_worker.main import main
main(began)
";

/// CPython: by the name that Debian, Alpine and the official images have, unless the program brings its own.
#[derive(Default)]
struct Python {
    own: Option<PathBuf>,
}

impl Python {
    /// For a program that stands in `root`: the interpreter of its virtual environment, where that is another one than
    /// the machine's. (One that is the same may be warm already; what is installed beside it is found all the same.)
    fn of(root: &Path) -> Self {
        let own = virtual_environments(root)
            .into_iter()
            .map(|folder| folder.join("bin").join(INTERPRETER))
            .find_map(|file| Some((file.canonicalize().ok()?, file)));
        let Some((real, file)) = own else {
            return Self::default();
        };
        let machines = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path)
                .map(|folder| folder.join(INTERPRETER))
                .find(|file| file.is_file())
        });
        let machines = machines.and_then(|file| file.canonicalize().ok());
        Self {
            own: (machines != Some(real)).then_some(file),
        }
    }
}

/// The virtual environments that a program in `root` may have its packages in, of those that there are.
fn virtual_environments(root: &Path) -> Vec<PathBuf> {
    let places = [root.join(".venv"), root.join("venv"), "/opt/venv".into()];
    places.into_iter().filter(|folder| folder.is_dir()).collect()
}

/// Starts an interpreter that waits for a program, for [`start`] to take. The machine does this while it waits for
/// its configuration. Does nothing where there is no Python.
pub fn warm_up(warm: &Warm, settings: &Settings) {
    warm.put(Arc::new(Python::default()), settings);
}

/// Starts the workers of a Python component.
///
/// # Errors
/// With the program's traceback where it can't be imported or refuses to start.
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    worker::start(Arc::new(Python::of(&component.root)), component, settings).await
}

impl Language for Python {
    fn name(&self) -> &'static str {
        "Python"
    }

    fn command(&self) -> Vec<OsString> {
        // -u: what a program prints is seen when it prints it; -X utf8 is what a machine without locales needs.
        let interpreter = self.own.as_deref().unwrap_or(Path::new(INTERPRETER));
        let arguments = ["-u", "-X", "utf8", "-c", BOOTSTRAP].map(OsString::from);
        std::iter::once(interpreter.into()).chain(arguments).collect()
    }

    fn takes_warm(&self, _: &Component) -> bool {
        self.own.is_none()
    }

    fn preamble(&self) -> Vec<u8> {
        let mut sources = BytesMut::new();
        marshal::tuple(&mut sources, WORKER.len() as u8);
        for (name, source) in WORKER {
            marshal::tuple(&mut sources, 2);
            marshal::text(&mut sources, name);
            marshal::text(&mut sources, source);
        }
        let mut preamble = (sources.len() as u32).to_le_bytes().to_vec();
        preamble.extend_from_slice(&sources);
        preamble
    }

    fn last_part(&self) -> &'static str {
        "lifespan"
    }

    fn load(&self, component: &Component, settings: &Settings) -> Result<Vec<u8>, StartError> {
        let Entrypoint::Module { module, attribute } = &component.entrypoint else {
            return Err(StartError::new(format!(
                "{}: a Python component begins with a module, \"main:app\"",
                component.name
            )));
        };
        let load = json!({
            "root": component.root,
            "packages": settings.packages.iter().filter(|folder| folder.is_dir()).collect::<Vec<_>>(),
            "virtual_environments": virtual_environments(&component.root),
            "module": module,
            "attribute": attribute,
            "environment": settings.environment_of(component),
            "start_timeout": settings.start_timeout.as_secs_f64(),
            "event_timeout": settings.event_timeout.as_secs_f64(),
            "body_limit": settings.body_limit,
        });
        let mut encoded = BytesMut::new();
        marshal::value(&mut encoded, &load);
        Ok(encoded.into())
    }

    /// `(event, method, path, raw_path, query_string, http_version, scheme, headers, client, server, body)`
    fn encode_request(&self, out: &mut BytesMut, context: &Context, head: &Parts, body: Option<&Bytes>) {
        marshal::tuple(out, 11);
        marshal::displayed(out, context.id);
        marshal::text(out, head.method.as_str());
        let raw_path = head.uri.path();
        match &context.decoded_path {
            Some(path) => marshal::text(out, path),
            None if raw_path.contains('%') => marshal::text(out, &percent_decode_str(raw_path).decode_utf8_lossy()),
            None => marshal::text(out, raw_path),
        }
        marshal::binary(out, raw_path.as_bytes());
        marshal::binary(out, head.uri.query().unwrap_or_default().as_bytes());
        marshal::text(
            out,
            match head.version {
                // A WebSocket's, see `intake::http`.
                _ if head.extensions.get::<Protocol>().is_some() => "2",
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
        );
        marshal::text(out, context.scheme);
        let authority = match (head.headers.get(http::header::HOST), head.uri.authority()) {
            // HTTP/2 has :authority instead; ASGI wants it as a host header.
            (None, Some(authority)) => Some(authority.as_str()),
            _ => None,
        };
        marshal::list(out, head.headers.len() + usize::from(authority.is_some()));
        if let Some(authority) = authority {
            header(out, b"host", authority.as_bytes());
        }
        for (name, value) in &head.headers {
            header(out, name.as_str().as_bytes(), value.as_bytes());
        }
        for address in [context.client, context.server] {
            match address {
                Some(address) => {
                    marshal::tuple(out, 2);
                    marshal::text(out, &address.ip().to_string());
                    marshal::number(out, address.port());
                }
                None => marshal::none(out),
            }
        }
        match body {
            Some(body) => marshal::binary(out, body),
            None => marshal::none(out),
        }
    }

    /// `(event, body)`
    fn encode_message(&self, out: &mut BytesMut, context: &Context, message: &Message) {
        marshal::tuple(out, 2);
        marshal::displayed(out, context.id);
        marshal::text(out, &message.body);
    }

    /// `(status, headers, body)`
    fn decode_reply(&self, payload: Bytes) -> Result<ReplyHead, String> {
        let mut reader = marshal::Reader::new(payload);
        let wrong = |what: &str| {
            let what = what.to_owned();
            move |reason: String| format!("the program's http.response.start has {what} that is wrong: {reason}")
        };
        if reader.sequence()? != 3 {
            return Err("the worker sent a reply of another shape".to_owned());
        }
        let status = reader.number().map_err(wrong("a status"))?;
        let status = u16::try_from(status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or_else(|| format!("the program's http.response.start has the status {status}"))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        let count = reader.sequence().map_err(wrong("headers"))?;
        let headers = response.headers_mut();
        headers.reserve(count);
        for _ in 0..count {
            if reader.sequence().map_err(wrong("a header"))? != 2 {
                return Err("the program's http.response.start has a header that is no pair".to_owned());
            }
            let name = reader.binary().map_err(wrong("a header's name"))?;
            let value = reader.binary().map_err(wrong("a header's value"))?;
            let known = HeaderName::from_bytes(&name)
                .map_err(|_| format!("the program sent a header named {:?}", String::from_utf8_lossy(&name)))?;
            let value = HeaderValue::from_maybe_shared(value)
                .map_err(|_| format!("the program sent the header {known} with a value that no header may have"))?;
            headers.append(known, value);
        }
        let body = reader
            .binary()
            .map_err(|reason| format!("the program's body is wrong: {reason}"))?;
        Ok(ReplyHead { response, body })
    }
}

fn header(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    marshal::tuple(out, 2);
    marshal::binary(out, name);
    marshal::binary(out, value);
}
