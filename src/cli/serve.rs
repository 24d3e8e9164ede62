//! `polyinit serve`: runs a program on this machine and offers it over HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::access_log::tell;
use super::start::{ProgramArguments, described, start};
use super::{CommandError, say};
use crate::intake::Handler;
use crate::intake::http::{self, Middleware};
use crate::program::manifest::{AccessLog, HttpKeys};
use crate::report;
use crate::router::Router;

/// How long requests under way, and then the program, may take to end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Run a program on this machine and offer it over HTTP/1.1 and HTTP/2 (h2c).
///
/// PATH is a file, a folder, a zip or a squashfs. What runs it is told from the program itself: a `.py` file or a
/// module is Python (ASGI), `.js` or a package.json is Node, ELF and #! are executables that serve HTTP on $PORT or
/// 8080, and `.wasm` is WebAssembly. A polyinit.toml beside the code says so where guessing would not do.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit serve main.py
  polyinit serve ./app --entrypoint shop.web:application --listen 127.0.0.1:3000
  polyinit serve hello.wasm --env GREETING=hello

Details of failures are shown to clients where --listen is a loopback address, and to the log everywhere.")]
pub struct Serve {
    #[command(flatten)]
    program: ProgramArguments,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// No line for each request
    #[arg(short, long)]
    quiet: bool,

    /// A JSON object for each request: time, id, client, method, path, status, ms, request_id, error
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

impl Serve {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), "info");
        let mut stop = Stop::listen()?;
        // The port first: finding it taken after a program's long start would be a pity.
        let listener = http::bind(self.listen).await?;
        let address = listener.local_addr()?;
        let mut opened = self.program.open()?;
        let gateway = opened.gateway().await;
        let keys = opened.program.http.clone();
        let running = tokio::select! {
            running = start(opened.program.components.clone(), &opened.settings, |running| say(&described(running))) => running?,
            () = stop.asked() => return Ok(()),
        };
        let router = Arc::new(Router::new(running));
        if let Some(gateway) = gateway {
            let router = router.clone();
            let handler: Handler = Arc::new(move |event| router.call(event));
            tokio::spawn(gateway.serve(handler, self.listen.ip().is_loopback()));
        }
        say(&format!("serving on http://{address}"));
        self.serve(listener, &router, &keys, &mut stop).await?;
        router.stop(GRACE).await;
        Ok(())
    }

    async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        router: &Arc<Router>,
        keys: &HttpKeys,
        stop: &mut Stop,
    ) -> io::Result<()> {
        let shutdown = CancellationToken::new();
        let handler: Handler = {
            let router = router.clone();
            Arc::new(move |event| router.handle(event))
        };
        let form = match (self.quiet, self.json) {
            (true, _) => AccessLog::Off,
            (_, true) => AccessLog::Json,
            _ => keys.access_log,
        };
        let reveal = self.listen.ip().is_loopback();
        let options = http::Options {
            observer: Box::new(move |served| tell(&served, form)),
            reveal,
            middleware: Middleware::new(keys, reveal),
            grace: GRACE,
        };
        let serving = http::serve(listener, handler, options, shutdown.clone());
        tokio::pin!(serving);
        tokio::select! {
            served = &mut serving => return served,
            () = stop.asked() => {}
        }
        shutdown.cancel();
        // Whoever asks twice does not want to wait for the requests under way.
        tokio::select! {
            served = serving => served,
            () = stop.asked() => Ok(()),
        }
    }
}

/// Ctrl-C and SIGTERM.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
