//! polyinit: gives each event of a machine (an HTTP request, a network message) to what runs it.
//!
//! ```text
//! host --vsock 52, msgpack--> intake::aleph --+                        +--> engine::python
//! client --HTTP/1.1, HTTP/2-> intake::http  --+--> Event --> router ---+--> engine::node
//!                                                                      +--> engine::executable
//! <------------------- the same way back ---- Reply <------------------+--> engine::wasm
//! ```
//!
//! - [`event`], [`wire`] and [`report`] know nobody.
//! - [`program`] is what the user brings; [`engine`] runs it; [`router`] chooses the component; [`intake`] takes events,
//!   and [`schedule`] makes those that a program asks for at certain times.
//! - [`machine`] does PID 1's duties and knows nothing of events.
//! - `again` is how tasks are polled in which two sides wake each other; `open_files` is how many files this process and
//!   the programs that it starts may have open.
//! - [`console`] shows a developer what happens, where it is asked to.
//! - [`init`] and [`cli`] put the pieces together. [`host`] is the other side, for development and tests.

#![deny(unsafe_code)]

mod again;
pub mod cli;
pub mod console;
pub mod engine;
pub mod event;
pub mod guest_api;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "image")]
pub mod image;
pub mod init;
pub mod intake;
pub mod machine;
mod open_files;
pub mod program;
pub mod report;
pub mod router;
pub mod schedule;
pub mod wire;
