//! What a user would notice, through the binary: one file a capability.

mod host;
mod support;

mod aleph;
mod asgi;
mod bad_input;
mod calls;
mod console;
#[cfg(feature = "image")]
mod container;
mod executable;
mod files;
mod frameworks;
mod handler;
#[cfg(all(feature = "host", feature = "image"))]
mod help;
#[cfg(all(feature = "host", feature = "image"))]
mod hotplug;
mod http;
#[cfg(feature = "image")]
mod image;
mod invoke;
#[cfg(all(feature = "host", feature = "image"))]
mod machine;
mod manifest;
#[cfg(all(feature = "host", feature = "image"))]
mod microvm;
mod new;
mod node;
mod processes;
mod proxy;
mod python;
#[cfg(all(feature = "host", feature = "image"))]
mod readme;
mod recipes;
mod schedules;
mod serve;
#[cfg(all(feature = "host", feature = "image"))]
mod snapshot;
#[cfg(all(feature = "host", feature = "image"))]
mod vm;
mod wasm;
mod wasm_grants;
mod wasm_limits;
mod wasm_outgoing;
mod wasm_sharing;
mod watch;
mod websocket;
mod wsgi;
