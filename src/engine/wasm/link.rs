//! From compiled code to a guest that can be instantiated: what it exports says how it is run, what it imports has to
//! be what we offer. All that can be known before the first event is found out here.

use std::num::NonZeroU32;
use std::sync::Arc;

use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Engine, ImportType, Linker, Module, Store};
use wasmtime_wasi::{WasiCtxBuilder, p1, p2, p3};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::Shared;
use super::command::Command;
use super::host::{ComponentHost, ModuleHost};
use super::instances::Instances;
use super::limits::Limits;
use super::load::{COMMAND, Code, SERVICE};
use super::message::{self, MessagePre};
use super::outgoing::bounds;
use super::runtime::{self, Runtime};
use super::{refusal, service, sockets};
use crate::engine::StartError;
use crate::program::sandbox::Sandbox;

/// A program that is ready to be instantiated.
pub(super) struct Linked {
    /// How it takes HTTP requests by `wasi:http`, if it does.
    pub(super) http: Option<Http>,
    /// How it takes messages by `polyinit:event`, if it does.
    pub(super) message: Option<Arc<Instances<MessagePre>>>,
    /// How it is run as a command, if it is one.
    pub(super) command: Option<Command>,
    /// Places that one instance takes in the runtime.
    pub(super) memories: u32,
    /// Whether it imports sockets.
    pub(super) sockets: bool,
    /// "a component for wasi:http/proxy 0.2".
    pub(super) description: String,
}

impl Linked {
    /// Makes instances for the first events.
    pub(super) fn make_ahead(&self, shared: &Arc<Shared>) {
        match &self.http {
            Some(Http::Proxy(instances)) => instances.make_ahead(shared, None),
            Some(Http::Service(handler)) => handler.instances.make_ahead(shared, None),
            None => {}
        }
        if let Some(instances) = &self.message {
            instances.make_ahead(shared, None);
        }
    }

    /// Drops the instances that nobody uses.
    pub(super) fn clear(&self) {
        match &self.http {
            Some(Http::Proxy(instances)) => instances.clear(),
            Some(Http::Service(handler)) => handler.instances.clear(),
            None => {}
        }
        if let Some(instances) = &self.message {
            instances.clear();
        }
    }
}

/// A component that takes requests by `wasi:http`.
pub(super) enum Http {
    /// Version 0.2.
    Proxy(Arc<Instances<ProxyPre<ComponentHost>>>),
    /// Version 0.3.
    Service(service::Handler),
}

/// Events that one instance has unless the program says otherwise: guests for 0.2 are written for one request.
const PROXY_REUSE: u32 = 1;
/// The same for 0.3, whose guests are written for many. Whatever they leak is gone after so many.
const SERVICE_REUSE: u32 = 128;

/// Interfaces of WASI 0.2 that a component may import.
const OFFERED: [&str; 29] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Links `code`, the program that errors call `name`.
///
/// # Errors
/// Which imports are missing and what to do about them, or what is exported in place of what can be run.
pub(super) fn link(
    runtime: &'static Runtime,
    code: &Code,
    name: &str,
    sandbox: &Sandbox,
    cores: usize,
) -> Result<Linked, StartError> {
    match code {
        Code::Module(module) => link_module(runtime, module, name),
        Code::Component(component) => link_component(runtime, component, name, sandbox, cores),
    }
}

fn link_module(runtime: &'static Runtime, module: &Module, name: &str) -> Result<Linked, StartError> {
    let Some(start) = module.get_export_index("_start") else {
        let exports: Vec<_> = module.exports().map(|export| export.name().to_owned()).collect();
        let imports: Vec<_> = module.imports().map(|import| full_name(&import)).collect();
        return Err(refusal::no_program(name, &exports, &imports));
    };
    let failed = |error: wasmtime::Error| StartError::new(format!("{name} can't be linked: {error:#}"));
    let mut linker = Linker::new(&runtime.engine);
    p1::add_to_linker_async(&mut linker, ModuleHost::wasi).map_err(failed)?;

    let mut store = Store::new(
        &runtime.engine,
        ModuleHost {
            wasi: WasiCtxBuilder::new().build_p1(),
            limits: Limits::new(runtime.budget, 0),
        },
    );
    let missing: Vec<String> = module
        .imports()
        .filter(|import| linker.get_by_import(&mut store, import).is_none())
        .map(|import| full_name(&import))
        .collect();
    if !missing.is_empty() {
        return Err(refusal::missing_imports(name, &missing));
    }
    let pre = linker.instantiate_pre(module).map_err(failed)?;
    Ok(Linked {
        http: None,
        message: None,
        command: Some(Command::Module { pre, start }),
        memories: runtime::slots_for(&module.resources_required()),
        sockets: false,
        description: "a WASI 0.1 module, run by the CGI convention".into(),
    })
}

/// As the module names it: its module, and what it wants of that.
fn full_name(import: &ImportType) -> String {
    format!("{}.{}", import.module(), import.name())
}

fn link_component(
    runtime: &'static Runtime,
    component: &Component,
    name: &str,
    sandbox: &Sandbox,
    cores: usize,
) -> Result<Linked, StartError> {
    let engine = &runtime.engine;
    let ty = component.component_type();
    let exports: Vec<String> = ty.exports(engine).map(|(export, _)| export.to_owned()).collect();
    let exported = |interface: &str| exports.iter().any(|export| export.starts_with(interface));
    let service = exported(SERVICE);
    let proxy = exported("wasi:http/incoming-handler@0.2.");
    let concurrent_command = exported(COMMAND);
    let command = concurrent_command || exported("wasi:cli/run@0.2.");
    let concurrent = service || concurrent_command;
    let takes_messages = exports.iter().any(|export| export == message::INTERFACE);
    if !service && !proxy && !command && !takes_messages {
        return Err(refusal::no_world(name, &exports));
    }

    // What 0.3 has is left to the linker, which then names the first import that it lacks.
    let offered = |import: &str| {
        let (interface, version) = import.split_once('@').unwrap_or((import, ""));
        (concurrent && version.starts_with("0.3.") && import.starts_with("wasi:"))
            || (version.starts_with("0.2.") && OFFERED.binary_search(&interface).is_ok())
    };
    let imports: Vec<&str> = ty.imports(engine).map(|(import, _)| import).collect();
    let missing: Vec<String> = imports
        .iter()
        .copied()
        .filter(|import| !offered(import))
        .map(str::to_owned)
        .collect();
    if !missing.is_empty() {
        return Err(refusal::missing_imports(name, &missing));
    }
    let failed = |error: wasmtime::Error| refusal::not_linked(name, &error);
    let pre = runtime.offered()?.instantiate_pre(component).map_err(failed)?;
    let http = if service {
        let template = ServicePre::new(pre.clone()).map_err(failed)?;
        let reuse = sandbox.reuse.map_or(SERVICE_REUSE, NonZeroU32::get);
        Some(Http::Service(service::Handler::new(Instances::new(
            template, reuse, cores,
        ))))
    } else if proxy {
        let template = ProxyPre::new(pre.clone()).map_err(failed)?;
        let reuse = sandbox.reuse.map_or(PROXY_REUSE, NonZeroU32::get);
        Some(Http::Proxy(Instances::new(template, reuse, cores)))
    } else {
        None
    };
    let message = if takes_messages {
        let template = MessagePre::new(pre.clone(), component).map_err(failed)?;
        let reuse = if service { SERVICE_REUSE } else { PROXY_REUSE };
        let reuse = sandbox.reuse.map_or(reuse, NonZeroU32::get);
        Some(Instances::new(template, reuse, cores))
    } else {
        None
    };
    let command = match (concurrent_command, command) {
        (true, _) => Some(p3::bindings::CommandPre::new(pre).map(Command::Concurrent)),
        (false, true) => Some(p2::bindings::CommandPre::new(pre).map(Command::Component)),
        (false, false) => None,
    };
    let command = command.transpose().map_err(failed)?;
    let requests = match (&http, &command) {
        (Some(Http::Service(_)), _) => Some("wasi:http/service 0.3"),
        (Some(Http::Proxy(_)), _) => Some("wasi:http/proxy 0.2"),
        (None, Some(Command::Concurrent(_))) => Some("wasi:cli/command 0.3, run by the CGI convention"),
        (None, Some(_)) => Some("wasi:cli/command 0.2, run by the CGI convention"),
        (None, None) => None,
    };
    let messages = match (&message, &http, &command) {
        (Some(_), ..) => Some("polyinit:event/message"),
        (None, Some(_), Some(Command::Concurrent(_))) => Some("wasi:cli/run 0.3"),
        (None, Some(_), Some(_)) => Some("wasi:cli/run 0.2"),
        _ => None,
    };
    let description = match (requests, messages) {
        (Some(requests), Some(messages)) => format!("a component for {requests} that takes messages by {messages}"),
        (Some(requests), None) => format!("a component for {requests}"),
        (None, messages) => format!("a component for {}", messages.unwrap_or_default()),
    };
    Ok(Linked {
        http,
        message,
        command,
        memories: component
            .resources_required()
            .map_or(4, |required| runtime::slots_for(&required)),
        sockets: imports.iter().any(|import| import.starts_with("wasi:sockets/")),
        description,
    })
}

/// The interfaces that components may import; `concurrent`: those of WASI 0.3 as well.
///
/// # Errors
/// If they are in each other's way.
pub(super) fn offered(engine: &Engine, concurrent: bool) -> Result<ComponentLinker<ComponentHost>, StartError> {
    let mut linker = ComponentLinker::new(engine);
    let mut add = || -> wasmtime::Result<()> {
        p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        if concurrent {
            p3::add_to_linker(&mut linker)?;
            wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        }
        bounds::add_to_linker(&mut linker, concurrent)?;
        sockets::add_to_linker(&mut linker, concurrent)
    };
    add().map_err(|error| StartError::new(format!("what components import can't be offered: {error:#}")))?;
    Ok(linker)
}
