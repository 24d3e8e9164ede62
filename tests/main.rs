//! What a user would notice, through the binary: one file a capability.

mod host;
mod support;

mod aleph;
mod bad_input;
mod executable;
#[cfg(feature = "image")]
mod image;
#[cfg(all(feature = "host", feature = "image"))]
mod machine;
#[cfg(all(feature = "host", feature = "image"))]
mod microvm;
mod node;
mod python;
#[cfg(all(feature = "host", feature = "image"))]
mod readme;
mod serve;
#[cfg(all(feature = "host", feature = "image"))]
mod vm;
mod wasm;
