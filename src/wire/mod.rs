//! The aleph protocol as data: what the host sends, what it gets back, and where a value ends in a stream of bytes.
//! No I/O here; `intake::aleph` speaks it from the guest's side, `host::link` from the host's.

mod configuration;
mod event;
mod reply;
mod scan;

pub use configuration::{Configuration, Encoding, Volume};
pub use event::{DecodeError, HttpScope, Scope};
pub use reply::{ConfigurationAnswer, EventAnswer, HttpAnswer};
pub use scan::{ScanError, Scanner};

/// What the guest sends to (2, 52) once it listens: the version of the protocol that it speaks.
pub fn ready_signal() -> Vec<u8> {
    // fixmap(1), "version", "2.0.0".
    b"\x81\xa7version\xa52.0.0".to_vec()
}

/// The vsock port on which the guest takes its configuration and events, and on the host the ready signal.
pub const PORT: u32 = 52;

/// The vsock port of the host on which the guest API is offered.
pub const GUEST_API_PORT: u32 = 53;

/// The largest answer to a configuration, in bytes: the host reads it with one read of this size.
pub const CONFIGURATION_ANSWER_LIMIT: usize = 1_000_000;

/// The command that ends the machine.
pub const HALT: &[u8] = b"halt";

/// What the guest says when it has stopped the program, and when nothing more follows.
pub const STOPPED: [&[u8]; 2] = [b"STOP\n", b"STOPZ\n"];
