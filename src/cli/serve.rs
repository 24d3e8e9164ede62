//! `polyinit serve`: runs a program on this machine and offers it over HTTP.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::start::{Opened, ProgramArguments, start};
use super::watch::Watch;
use super::workspace::{Interrupted, Workspace};
use super::{CommandError, address, say, tell};
use crate::console::Console;
use crate::engine::{Handling, processors};
use crate::event::Event;
use crate::intake::Handler;
use crate::intake::http::{self, Around};
use crate::intake::internal::Gateway;
use crate::program::manifest::AccessLog;
use crate::program::{Component, EngineKind};
use crate::report;
use crate::router::Router;
use crate::schedule;

/// How long requests under way, and then the program, may take to end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Run a program on this machine and offer it over HTTP/1.1 and HTTP/2 (h2c).
///
/// PATH is a file, a folder, a zip or a squashfs. What runs it is told from the program itself: a `.py` file or a
/// module is Python (ASGI, WSGI or a function), `.js` or a package.json is Node, ELF and #! are executables that serve
/// HTTP on $PORT or 8080, and `.wasm` is WebAssembly. A polyinit.toml beside the code says so where guessing would not do.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit serve main.py
  polyinit serve ./app --entrypoint shop.web:application --listen 127.0.0.1:3000
  polyinit serve hello.wasm --env GREETING=hello
  polyinit serve ./shop --watch
  polyinit serve shop.wasm --allow-dir ./data::/data --allow-host https://api.example.org

The log has the details of each failure. Clients see them only if --listen is a loopback address.")]
pub struct Serve {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,

    /// Print no line for each request
    #[arg(short, long)]
    quiet: bool,

    /// Print a JSON object for each request: time, id, client, method, path, status, ms, request_id, error
    #[arg(long, conflicts_with = "quiet")]
    json: bool,

    /// A page at /_polyinit/ that shows the program's components, requests and log. `auto`: for this machine's own users,
    /// if --listen is a loopback address; `on`: for everybody who can reach it
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    console: When,

    /// Rebuild and restart what changes, without dropping a request
    #[arg(short, long)]
    watch: bool,

    // Last, since the heading of WebAssembly's options is that of all that follow.
    #[command(flatten)]
    program: ProgramArguments,
}

/// Whether there is a console.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

/// `serve` with its port taken and its program read.
pub struct Ready {
    serve: Serve,
    listener: std::net::TcpListener,
    /// None where it is watched, and read again and again.
    opened: Option<Opened>,
    /// Listens since before the program was read.
    stop: Stop,
}

impl Ready {
    /// The threads that events are seen to on. Programs in processes of their own need the processors themselves, and
    /// threads that pass work on to each other cost them more than they help; WebAssembly runs on these threads.
    pub fn threads(&self) -> usize {
        let is_wasm = |component: &Component| component.engine == EngineKind::Wasm;
        match &self.opened {
            Some(opened) if !opened.program.components.iter().any(is_wasm) => processors().div_ceil(2),
            _ => processors(),
        }
    }

    pub async fn run(self) -> Result<(), CommandError> {
        let listener = TcpListener::from_std(self.listener)?;
        self.serve.run(listener, self.opened, self.stop).await
    }
}

impl Serve {
    /// Takes the port, and reads the program.
    pub fn ready(self) -> Result<Ready, CommandError> {
        report::log::begin(io::stderr(), "info");
        // The port first: finding it taken after a program's long start would be a pity.
        let listener = http::bind(self.listen)?;
        // What is read decides how many threads there are, and until then one is enough.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let read = runtime.block_on(async {
            let mut stop = Stop::listen()?;
            let opened = match self.watch {
                true => None,
                false => Some(self.program.open_unless(&mut stop).await?),
            };
            Ok::<_, CommandError>((stop, opened))
        });
        runtime.shutdown_background();
        // To be stopped is what it is there for.
        let (stop, opened) = read.map_err(Interrupted::ends_with(0))?;
        Ok(Ready {
            serve: self,
            listener,
            opened,
            stop,
        })
    }

    async fn run(self, listener: TcpListener, opened: Option<Opened>, mut stop: Stop) -> Result<(), CommandError> {
        let address = listener.local_addr()?;
        let Some(mut opened) = opened else {
            return self.watched(listener, address, stop).await;
        };
        let shutdown = CancellationToken::new();
        let console = self.console(&shutdown);
        let gateway = opened.gateway().await;
        let running = tokio::select! {
            running = start(opened.program.components.clone(), &opened.settings, console.as_deref(), |running| say(&running.to_string())) => running?,
            () = stop.asked() => return Ok(()),
        };
        let router = Arc::new(Router::new(running));
        opened.settings.loopback.lead_to(&router, Router::call);
        let handler = |give: fn(&Router, Event) -> Handling| -> Handler {
            let router = router.clone();
            Arc::new(move |event| give(&router, event))
        };
        if let Some(gateway) = gateway {
            tokio::spawn(gateway.serve(handler(Router::call), self.reveals()));
        }
        let _schedules = schedule::keep(opened.program.components.iter(), &handler(Router::call));
        let intake = self.announce(address, console, handler(Router::handle));
        let around = Around::default();
        around.ask(&opened.program.http, self.reveals());
        self.serve(listener, intake, around, shutdown, &mut stop, pending())
            .await?;
        router.stop(GRACE).await;
        Ok(())
    }

    async fn watched(&self, listener: TcpListener, address: SocketAddr, mut stop: Stop) -> Result<(), CommandError> {
        let live = Arc::new(Live::new());
        let shutdown = CancellationToken::new();
        let console = self.console(&shutdown);
        let handler = |give: fn(&Router, Event) -> Handling| -> Handler {
            let live = live.clone();
            Arc::new(move |event| live.give(event, give))
        };
        let workspace = Workspace::default();
        let mut variables = Vec::new();
        if let Some(gateway) = Gateway::open(&workspace.folder()?.join("components.sock"), &mut variables).await {
            tokio::spawn(gateway.serve(handler(Router::call), self.reveals()));
        }
        let around = Around::default();
        let asked = (around.clone(), self.reveals());
        let mut watch = Watch::new(self.program.clone(), live.clone(), console.clone(), variables, asked)?;
        tokio::select! {
            () = watch.begin() => {}
            () = stop.asked() => return Ok(()),
        }
        let intake = self.announce(address, console, handler(Router::handle));
        self.serve(listener, intake, around, shutdown, &mut stop, watch.run())
            .await?;
        Router::new(watch.components()).stop(GRACE).await;
        Ok(())
    }

    /// The console, if there is to be one, until `shutdown`.
    fn console(&self, shutdown: &CancellationToken) -> Option<Arc<Console>> {
        let wanted = match self.console {
            When::Auto => self.reveals(),
            When::On => true,
            When::Off => false,
        };
        wanted.then(|| Console::new(self.console == When::On, shutdown.clone()))
    }

    /// Says where the program is to be had; what takes its requests, the console's among them.
    fn announce(&self, address: SocketAddr, console: Option<Arc<Console>>, program: Handler) -> Handler {
        report::reached("serving");
        say(&format!("serving on http://{address}"));
        match console {
            Some(console) => console.in_front_of(program),
            None => program,
        }
    }

    /// Whether clients see what failed inside: those of this machine do.
    fn reveals(&self) -> bool {
        self.listen.ip().is_loopback()
    }

    /// Serves until it is told to stop, and tells so by `shutdown`; `beside` is done meanwhile.
    async fn serve(
        &self,
        listener: TcpListener,
        handler: Handler,
        around: Around,
        shutdown: CancellationToken,
        stop: &mut Stop,
        beside: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let said = match (self.quiet, self.json) {
            (true, _) => Some(AccessLog::Off),
            (_, true) => Some(AccessLog::Json),
            _ => None,
        };
        let options = http::Options {
            observer: Box::new(move |served| tell(&served, said.or(served.access_log).unwrap_or(AccessLog::Text))),
            reveal: self.reveals(),
            around,
            grace: GRACE,
        };
        let serving = http::serve(listener, handler, options, shutdown.clone());
        tokio::pin!(serving, beside);
        tokio::select! {
            served = &mut serving => return served,
            () = stop.asked() => {}
            // It has said why it ended, and what is served is served on.
            () = &mut beside => tokio::select! {
                served = &mut serving => return served,
                () = stop.asked() => {}
            }
        }
        shutdown.cancel();
        // Whoever asks twice does not want to wait for the requests under way.
        tokio::select! {
            served = serving => served,
            () = stop.asked() => Ok(()),
        }
    }
}

/// Ctrl-C, SIGTERM, and a terminal that is closed.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// Where it is not ignored, as nohup(1) has it.
    hangup: Option<Signal>,
}

impl Stop {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup()?,
        })
    }

    pub(super) async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// SIGHUP, unless whoever has started this process had it ignore that.
pub fn hangup() -> io::Result<Option<Signal>> {
    (!hangups_are_ignored())
        .then(|| signal(SignalKind::hangup()))
        .transpose()
}

/// Whether whoever has started this process had it ignore SIGHUP (proc_pid_status(5), SigIgn).
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SignalKind::hangup().as_raw_value() - 1) != 0)
}
