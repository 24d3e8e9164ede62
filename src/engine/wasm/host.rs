//! What a guest's store holds, and with it what the guest is granted: its request, stdout and stderr, clocks,
//! randomness, and beyond that what the program names: environment, folders, hosts.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{Error as HttpError, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::limits::{CROWDED, HasLimits, Limits, RANDOM};
use super::log::Log;
use super::outgoing::{Hooks, Outgoing};
use super::outside;
use super::sockets::Sockets;
use super::stdio::Stdin;
use crate::event::{Context, Failure, FailureKind};
use crate::program::sandbox::Directory;

/// What every guest of one program is granted.
pub(super) struct Grants {
    pub(super) component: Arc<str>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) directories: Vec<Directory>,
    /// A command's, after its name.
    pub(super) arguments: Vec<String>,
    pub(super) outgoing: Arc<Outgoing>,
    /// Whether the guest knows of sockets at all.
    pub(super) sockets: bool,
}

impl Grants {
    /// WASI for one guest with this environment and these streams.
    ///
    /// # Errors
    /// If a folder can't be opened any more.
    pub(super) fn wasi(
        &self,
        environment: &[(String, String)],
        stdin: Option<Stdin>,
        stdout: impl StdoutStream + 'static,
        stderr: Log,
    ) -> Result<WasiCtxBuilder, Failure> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.envs(environment)
            .stdout(stdout)
            .stderr(stderr)
            .max_random_size(RANDOM)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        if let Some(stdin) = stdin {
            wasi.stdin(stdin);
        }
        for directory in &self.directories {
            open(&mut wasi, directory).map_err(|error| Failure::new(FailureKind::Unavailable, error))?;
        }
        Ok(wasi)
    }

    /// Which folders are granted at the moment: others may have come in the place of those that an instance has open.
    pub(super) fn folders(&self) -> Folders {
        let identity = |directory: &Directory| {
            let metadata = std::fs::metadata(&directory.host).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        Folders(self.directories.iter().map(identity).collect())
    }

    /// What the store of a core module holds.
    pub(super) fn module(mut wasi: WasiCtxBuilder, limits: Limits) -> ModuleHost {
        let mut wasi = wasi.build_p1();
        wasi.ctx().table.set_max_capacity(limits.resources());
        ModuleHost { wasi, limits }
    }

    /// What the store of a component holds.
    pub(super) fn component(&self, mut wasi: WasiCtxBuilder, log: &Log, limits: Limits) -> ComponentHost {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.resources());
        let sockets = self.sockets.then(|| {
            let sockets = Sockets::new(self.component.clone(), self.outgoing.rules.clone(), log.clone());
            sockets.grant(&mut wasi);
            sockets
        });
        ComponentHost {
            table,
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            hooks: Hooks::new(self.outgoing.clone(), log.clone()),
            sockets,
            limits,
        }
    }
}

/// What tells folders apart, whatever they are called.
#[derive(PartialEq, Eq)]
pub(super) struct Folders(Vec<Option<(u64, u64)>>);

/// Opens a folder for a guest.
///
/// # Errors
/// A sentence with both its names.
pub(super) fn open(wasi: &mut WasiCtxBuilder, directory: &Directory) -> Result<(), String> {
    let permissions = if directory.writable {
        FsPerms::ReadWrite
    } else {
        FsPerms::ReadOnly
    };
    match wasi.preopened_dir(&directory.host, &directory.guest, permissions) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "the folder {}, which the guest is granted as {}, can't be opened: {error:#}",
            directory.host.display(),
            directory.guest
        )),
    }
}

/// The store's data of a component.
pub(super) struct ComponentHost {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(super) sockets: Option<Sockets>,
    pub(super) limits: Limits,
}

impl ComponentHost {
    /// For another event.
    pub(super) fn begin(&mut self, context: &Context) {
        self.limits.begin();
        self.hooks.begin(context);
    }

    /// Whether so many resources are left from earlier events that the next may not find room for its own. Some stay though
    /// the guest did its part: Wasmtime's `outgoing-handler.handle` keeps the options that it is given.
    pub(super) fn is_crowded(&mut self) -> bool {
        // What the last event held does not count for as long as nobody uses the instance.
        if self.limits.counts_outside() {
            self.look();
        }
        self.limits.is_overdrawn() || self.table.iter_mut().count() > CROWDED
    }

    /// Counts, now and then, what the guest holds outside its memory; where that is too much, it is left nothing.
    fn account(&mut self) {
        if self.limits.is_due() {
            self.look();
        }
    }

    fn look(&mut self) {
        outside::account(&mut self.table, self.hooks.under_way(), &mut self.limits);
    }

    /// For another event beside those that there are.
    pub(super) fn share(&mut self) {
        self.hooks.share();
    }
}

/// The store's data of a core module.
pub(super) struct ModuleHost {
    pub(super) wasi: WasiP1Ctx,
    pub(super) limits: Limits,
}

impl ModuleHost {
    /// For a call of the guest's: counts, now and then, what it has open.
    pub(super) fn wasi(&mut self) -> &mut WasiP1Ctx {
        if self.limits.is_due() {
            outside::account(self.wasi.ctx().table, 0, &mut self.limits);
        }
        &mut self.wasi
    }
}

impl HasLimits for ComponentHost {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl HasLimits for ModuleHost {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl WasiView for ComponentHost {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.account();
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for ComponentHost {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.account();
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

/// A body as `wasi:http` takes it.
pub(super) fn wasi_body(body: crate::event::Body) -> WasiBody {
    body.map_err(|error| HttpError::InternalError(Some(format!("the body broke off: {error}"))))
        .boxed_unsync()
}
