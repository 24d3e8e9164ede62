//! What a user would notice, through the binary: one file a capability.

mod host;
mod support;

mod aleph;
mod bad_input;
mod executable;
#[cfg(feature = "image")]
mod image;
mod microvm;
mod node;
mod python;
mod serve;
mod vm;
mod wasm;
