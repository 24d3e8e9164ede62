//! `polyinit invoke`: starts a program, gives it one event, shows the reply, and ends it.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;

use super::serve::{GRACE, Stop};
use super::start::{ProgramArguments, start};
use super::workspace::Interrupted;
use super::{CommandError, Ended, note};
use crate::event::{Body, Event, Failure, Reply};
use crate::report::{self, milliseconds};
use crate::router::Router;

/// The exit codes for replies that are no success: the status code's class.
const CLIENT_ERROR: u8 = 4;
const SERVER_ERROR: u8 = 5;

/// The exit code for a reply that breaks off: that of every other failure.
const BROKEN_OFF: u8 = 1;

/// The exit code of what was interrupted: 128 and SIGINT's number, as shells have it.
const INTERRUPTED: u8 = 130;

/// Start a program, give it one event, show the reply, and end it.
///
/// The reply's body goes to standard output as it comes; status, headers and timings go to standard error.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit invoke main.py
  polyinit invoke ./shop --path '/api/search?q=lamp' --header 'accept: application/json'
  polyinit invoke ./shop --method POST --path /api/orders --body '{\"lamp\": 1}'
  polyinit invoke ./shop --message message.json --json

Exit codes:
  0    a reply below 400, or a message's answer
  1    the program can't be started, or its reply breaks off
  2    the command line is not understood
  4    a 4xx
  5    a 5xx, or an event that fails
  130  ended by Ctrl-C")]
pub struct Invoke {
    /// The request's method [default: GET, or POST with --body]
    #[arg(long, value_name = "METHOD")]
    method: Option<Method>,

    /// The request's path, with its query
    #[arg(long = "path", value_name = "PATH", default_value = "/", value_parser = target)]
    target: Uri,

    /// A header of the request; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// The request's body; @FILE for a file's content, @- for standard input
    #[arg(long, value_name = "BODY")]
    body: Option<String>,

    /// Give it a network message, the JSON in this file (- for standard input), and no request
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "target", "headers", "body"])]
    message: Option<String>,

    /// Print one JSON object: status, headers, body (or body_base64), value, failure, timings in ms
    #[arg(long)]
    json: bool,

    /// Print nothing but the reply's body
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,

    // Last, since the heading of WebAssembly's options is that of all that follow.
    #[command(flatten)]
    program: ProgramArguments,
}

/// How long the parts of it took.
#[derive(Clone, Copy)]
struct Timings {
    start: Duration,
    /// From the event to the reply's head.
    head: Duration,
    /// From the event to the end of the reply.
    whole: Duration,
}

impl Invoke {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), if self.quiet { "warn" } else { "info" });
        // Before signals are listened to: nothing but its end stops a read of standard input.
        let event = self.event()?;
        let mut stop = Stop::listen()?;
        let began = Instant::now();
        let mut opened = self
            .program
            .open_unless(&mut stop)
            .await
            .map_err(Interrupted::ends_with(INTERRUPTED))?;
        let gateway = opened.gateway().await;
        let running = tokio::select! {
            running = start(opened.program.components.clone(), &opened.settings, None, |_| ()) => running?,
            () = stop.asked() => return Err(Ended(INTERRUPTED).into()),
        };
        let started = began.elapsed();
        let router = Arc::new(Router::new(running));
        opened.settings.loopback.lead_to(&router, Router::call);
        if let Some(gateway) = gateway {
            let router = router.clone();
            tokio::spawn(gateway.serve(Arc::new(move |event| router.call(event)), true));
        }
        let code = tokio::select! {
            code = self.give(&router, event, started) => code,
            () = stop.asked() => Ok(INTERRUPTED),
        };
        router.stop(GRACE).await;
        match code? {
            0 => Ok(()),
            code => Err(Ended(code).into()),
        }
    }

    fn event(&self) -> Result<Event, CommandError> {
        if let Some(file) = &self.message {
            let bytes = read(file).map_err(|error| format!("--message {file}: {error}"))?;
            let text =
                String::from_utf8(bytes).map_err(|_| format!("--message {file}: it is not UTF-8, so no JSON"))?;
            return Ok(Event::message(text));
        }
        let body = match self.body.as_deref().map(|body| (body, body.strip_prefix('@'))) {
            Some((_, Some(file))) => Bytes::from(read(file).map_err(|error| format!("--body @{file}: {error}"))?),
            Some((text, None)) => Bytes::copy_from_slice(text.as_bytes()),
            None => Bytes::new(),
        };
        let usual = if self.body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::new(Body::from(body.clone()));
        *request.method_mut() = self.method.clone().unwrap_or(usual);
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.extend(self.headers.iter().cloned().map(|(name, value)| (Some(name), value)));
        headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
        if !body.is_empty() {
            headers.insert(http::header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Event::http(request))
    }

    /// Gives the event to the program and shows what comes back; the exit code.
    async fn give(&self, router: &Router, event: Event, start: Duration) -> Result<u8, CommandError> {
        let began = Instant::now();
        let reply = router.handle(event).await;
        let mut timings = Timings {
            start,
            head: began.elapsed(),
            whole: began.elapsed(),
        };
        match reply {
            Ok(Reply::Http(response)) if self.json => {
                let (head, body) = response.into_parts();
                let collected = body.collect(usize::MAX).await;
                timings.whole = began.elapsed();
                let broken = collected.as_ref().err().map(ToString::to_string);
                let body = collected.unwrap_or_default();
                let response = Response::from_parts(head, ());
                print(&json_of_response(&response, &body, broken.as_deref(), timings));
                Ok(if broken.is_some() {
                    BROKEN_OFF
                } else {
                    exit_code(response.status())
                })
            }
            Ok(Reply::Http(response)) => {
                let (head, body) = response.into_parts();
                let response = Response::from_parts(head, ());
                self.show_head(&response);
                let ended = copy_out(body).await;
                timings.whole = began.elapsed();
                self.show_timings(timings);
                ended.map_err(|error| format!("the reply broke off: {error}"))?;
                Ok(exit_code(response.status()))
            }
            Ok(Reply::Value(value)) if self.json => {
                let text = String::from_utf8_lossy(&value);
                let value = serde_json::from_slice(&value).unwrap_or_else(|_| serde_json::Value::from(text));
                print(&serde_json::json!({ "value": value, "timings": json_of(timings) }));
                Ok(0)
            }
            Ok(Reply::Value(value)) => {
                write_out(&value)?;
                write_out(b"\n")?;
                self.show_timings(timings);
                Ok(0)
            }
            Err(failure) => {
                self.show_failure(&failure, timings);
                Ok(exit_code(failure.kind.status()))
            }
        }
    }

    fn show_head(&self, response: &Response<()>) {
        if self.quiet {
            return;
        }
        let mut text = format!("{}\n", response.status());
        for (name, value) in response.headers() {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
        note(&text);
    }

    fn show_timings(&self, Timings { start, head, whole }: Timings) {
        if !self.quiet {
            note("");
            for (component, start) in report::start::starts() {
                note(&format!("{component}: {start}"));
            }
            let [start, head, whole] = [start, head, whole].map(milliseconds);
            note(&format!(
                "started in {start:.1} ms, replied after {head:.2} ms, done after {whole:.2} ms"
            ));
        }
    }

    fn show_failure(&self, failure: &Failure, timings: Timings) {
        if self.json {
            print(&serde_json::json!({
                "failure": {
                    "status": failure.kind.status().as_u16(),
                    "message": failure.message,
                    "traceback": failure.traceback,
                },
                "timings": json_of(timings),
            }));
            return;
        }
        note(&format!("error: {failure}"));
        if let Some(traceback) = &failure.traceback {
            note(traceback.trim_end());
        }
        self.show_timings(timings);
    }
}

fn exit_code(status: StatusCode) -> u8 {
    match status.as_u16() {
        500.. => SERVER_ERROR,
        400.. => CLIENT_ERROR,
        _ => 0,
    }
}

fn json_of_response(response: &Response<()>, body: &[u8], broken: Option<&str>, timings: Timings) -> serde_json::Value {
    let headers: Vec<[String; 2]> = response
        .headers()
        .iter()
        .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let mut json = serde_json::json!({
        "status": response.status().as_u16(),
        "headers": headers,
        "timings": json_of(timings),
    });
    match std::str::from_utf8(body) {
        Ok(text) => json["body"] = text.into(),
        Err(_) => json["body_base64"] = data_encoding::BASE64.encode(body).into(),
    }
    if let Some(broken) = broken {
        json["failure"] = serde_json::json!({ "message": broken });
    }
    json
}

fn json_of(Timings { start, head, whole }: Timings) -> serde_json::Value {
    let [start, head, whole] = [start, head, whole].map(milliseconds);
    let starts = report::start::json();
    serde_json::json!({ "start_ms": start, "head_ms": head, "whole_ms": whole, "starts": starts })
}

fn print(json: &serde_json::Value) {
    super::say(&format!("{json:#}"));
}

async fn copy_out(mut body: Body) -> Result<(), CommandError> {
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        match write_out(&data) {
            // `| head`: whoever has read enough is no fault of the reply's.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(())
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn read(file: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file {
        "-" => io::stdin().lock().read_to_end(&mut bytes)?,
        file => std::fs::File::open(file)?.read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

fn target(text: &str) -> Result<Uri, String> {
    if !text.starts_with('/') {
        return Err("must begin with a slash".to_owned());
    }
    text.parse()
        .map_err(|error| format!("{error}; spaces and the like are written %20"))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("must be NAME: VALUE")?;
    let name = name
        .trim()
        .parse()
        .map_err(|_| format!("{name:?} is no header's name"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| format!("{value:?} is no header's value"))?;
    Ok((name, value))
}
