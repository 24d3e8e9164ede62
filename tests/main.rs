//! What a user would notice, through the binary: one file a capability.

mod host;
mod support;

mod aleph;
mod bad_input;
mod executable;
mod node;
mod python;
mod serve;
mod vm;
mod wasm;
