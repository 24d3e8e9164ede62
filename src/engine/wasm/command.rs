//! Guests that are commands, by the CGI convention: WASI 0.1 modules with `_start`, and components for
//! `wasi:cli/command` 0.2 and 0.3. Each event is one run: in on stdin and environment, out on stdout (`cgi` is how).

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode, response};
use wasmtime::{InstancePre, ModuleExport, Store};
use wasmtime_wasi::{p2, p3};

use super::body::{Pieces, Unfinished};
use super::host::{ComponentHost, Grants, ModuleHost};
use super::log::Log;
use super::run::{Guest, Run};
use super::stdio::{Stdin, Stdout};
use super::{Shared, cgi, failure};
use crate::event::{Body, Context, Failure, FailureKind, Message, Reply};

/// A command that is linked already.
pub(super) enum Command {
    Module {
        pre: InstancePre<ModuleHost>,
        /// Where `_start` is.
        start: ModuleExport,
    },
    Component(p2::bindings::CommandPre<ComponentHost>),
    /// Version 0.3, whose `run` is asynchronous.
    Concurrent(p3::bindings::CommandPre<ComponentHost>),
}

/// The three streams of one run.
struct Streams {
    stdin: Stdin,
    stdout: Stdout,
    stderr: Log,
}

impl Streams {
    fn new(stdin: Body, shared: &Shared, context: &Context) -> Self {
        Self {
            stdin: Stdin::new(stdin),
            stdout: Stdout::default(),
            stderr: Log::new(&shared.component, context.id, "stderr"),
        }
    }
}

/// Gives `request` to a run of `command`.
pub(super) async fn http(
    shared: &Arc<Shared>,
    command: &Command,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let (parts, body) = request.into_parts();
    let environment = cgi::environment(&shared.grants.environment, &parts, &body, context)?;
    let terms = shared.terms(context).await?;
    let streams = Streams::new(body, shared, context);
    let mut run = Run::new(terms, command.run(shared, &streams, &environment, context)?);
    let Streams { stdout, stderr, .. } = streams;

    let (head, ended) = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut run).poll(cx);
        if let Poll::Ready(Err(failure)) = polled {
            return Poll::Ready(Err(failure));
        }
        let ended = polled.is_ready();
        let head = stdout.inspect(|output| match cgi::parse_head(output) {
            Ok(Some((head, length))) => {
                let _ = output.split_to(length);
                Ok(Some(head))
            }
            Ok(None) if ended => Err(cgi::unfinished(output)),
            other => other.map(|_| None),
        });
        match head {
            Ok(Some(head)) => Poll::Ready(Ok((head, ended))),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(failure::broke_interface(error.to_string(), &stderr))),
        }
    })
    .await?;

    let promised = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let body = if ended {
        let body = stdout.take();
        check_length(&head, &parts.method, promised, &body, &stderr)?;
        body.into()
    } else {
        Unfinished::body(Pieces::default(), stdout, run, promised)
    };
    Ok(Reply::Http(http::Response::from_parts(head, body)))
}

/// What a guest announced must be what it wrote; no client could make sense of anything else.
fn check_length(
    head: &response::Parts,
    method: &Method,
    promised: Option<u64>,
    body: &Bytes,
    stderr: &Log,
) -> Result<(), Failure> {
    let bodiless = method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
    match promised {
        Some(promised) if promised != body.len() as u64 && !(bodiless && body.is_empty()) => {
            Err(failure::broke_interface(
                format!(
                    "the guest announced `Content-Length: {promised}` and wrote {} bytes",
                    body.len()
                ),
                stderr,
            ))
        }
        None if head.headers.contains_key(CONTENT_LENGTH) => Err(failure::broke_interface(
            format!(
                "the guest's `Content-Length: {:?}` is no number",
                head.headers[CONTENT_LENGTH]
            ),
            stderr,
        )),
        _ => Ok(()),
    }
}

/// Gives `message` to a run of `command`; what it writes to stdout is the answer.
pub(super) async fn message(
    shared: &Arc<Shared>,
    command: &Command,
    message: Message,
    context: &Context,
) -> Result<Reply, Failure> {
    let environment = cgi::message_environment(&shared.grants.environment, message.body.len());
    let terms = shared.terms(context).await?;
    let streams = Streams::new(message.body.into(), shared, context);
    let mut run = Run::new(terms, command.run(shared, &streams, &environment, context)?);

    let mut answer = BytesMut::new();
    std::future::poll_fn(|cx| {
        loop {
            let polled = Pin::new(&mut run).poll(cx);
            let more = streams.stdout.take();
            if answer.len() + more.len() > shared.body_limit {
                return Poll::Ready(Err(Failure::new(
                    FailureKind::Program,
                    format!(
                        "the guest's answer is larger than the limit of {} bytes",
                        shared.body_limit
                    ),
                )));
            }
            answer.extend_from_slice(&more);
            match polled {
                Poll::Pending if !more.is_empty() => continue,
                polled => return polled,
            }
        }
    })
    .await?;
    Ok(Reply::Value(answer.freeze()))
}

impl Command {
    /// One run with these streams and this environment.
    ///
    /// # Errors
    /// If what the guest is granted can't be had any more.
    fn run(
        &self,
        shared: &Shared,
        streams: &Streams,
        environment: &[(String, String)],
        context: &Context,
    ) -> Result<Guest, Failure> {
        let Streams { stdin, stdout, stderr } = streams;
        let stderr = stderr.clone();
        let grants = &shared.grants;
        let mut wasi = grants.wasi(environment, Some(stdin.clone()), stdout.clone(), stderr.clone())?;
        wasi.arg(&*shared.component).args(&grants.arguments);
        let fuel = shared.fuel;
        let component = |wasi| {
            let mut store = shared.store(grants.component(wasi, &stderr, shared.limits()));
            store.data_mut().begin(context);
            store
        };
        Ok(match self {
            Self::Module { pre, start } => {
                let (pre, start) = (pre.clone(), *start);
                let mut store = shared.store(Grants::module(wasi, shared.limits()));
                Box::pin(async move {
                    let ran = async {
                        let instance = pre.instantiate_async(&mut store).await?;
                        let start = instance
                            .get_module_export(&mut store, &start)
                            .and_then(wasmtime::Extern::into_func);
                        let start = start.ok_or_else(|| wasmtime::format_err!("`_start` is no function"))?;
                        start.typed::<(), ()>(&store)?.call_async(&mut store, ()).await
                    };
                    match ran.await {
                        Ok(()) => Ok(()),
                        Err(error) => failure::ended(&error, &stderr, store.data().limits.refused(), fuel),
                    }
                })
            }
            Self::Component(pre) => {
                let pre = pre.clone();
                let mut store = component(wasi);
                Box::pin(async move {
                    let ran = async {
                        let guest = pre.instantiate_async(&mut store).await?;
                        guest.wasi_cli_run().call_run(&mut store).await
                    };
                    let ran = ran.await;
                    returned(ran, &stderr, &store, fuel)
                })
            }
            Self::Concurrent(pre) => {
                let pre = pre.clone();
                let mut store = component(wasi);
                Box::pin(async move {
                    let ran = async {
                        let guest = pre.instantiate_async(&mut store).await?;
                        store
                            .run_concurrent(async |accessor| {
                                let returned = guest.wasi_cli_run().call_run(accessor).await?;
                                // It may have tasks that still write.
                                std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                                Ok(returned)
                            })
                            .await?
                    };
                    let ran = ran.await;
                    returned(ran, &stderr, &store, fuel)
                })
            }
        })
    }
}

/// How the `run` of a component ended: it returns an error in place of a status.
fn returned(
    ran: wasmtime::Result<Result<(), ()>>,
    stderr: &Log,
    store: &Store<ComponentHost>,
    fuel: Option<u64>,
) -> Result<(), Failure> {
    match ran {
        Ok(Ok(())) => Ok(()),
        Ok(Err(())) => Err(failure::exited(1, stderr)),
        Err(error) => failure::ended(&error, stderr, store.data().limits.refused(), fuel),
    }
}
