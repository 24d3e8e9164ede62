//! `polyinit guest`: a guest of the aleph protocol without a machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{CommandError, address, assignment};
use crate::init::{self, Options};
use crate::intake::aleph::Limits;
use crate::report;

/// Play the guest of the aleph.im protocol without a machine.
///
/// Listens on a Unix socket that speaks as Firecracker's vsock device does (`CONNECT 52`), tells SOCKET_52 that it is
/// ready, takes a configuration and events, and ends when the host says halt. The program runs as it would in a machine,
/// but in a temporary folder in place of /opt and /data. For tests, and for those who write hosts.
#[derive(Args)]
#[command(after_help = "Example:\n  polyinit guest --socket /tmp/v.sock")]
pub struct Guest {
    /// The socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// A squashfs file that stands for a read-only volume's device
    #[arg(long = "device", value_name = "NAME=FILE", value_parser = assignment)]
    devices: Vec<(String, String)>,

    /// Where the program is served over HTTP as well, as by a machine's option `http`; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    http: Vec<SocketAddr>,

    /// The largest event and the largest reply, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().event)]
    event_limit: usize,

    /// Let the host run commands (`!`), as an image with `shell = true` does
    #[arg(long)]
    shell: bool,
}

impl Guest {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(std::io::stderr(), "info");
        let options = Options {
            socket: self.socket,
            devices: self
                .devices
                .into_iter()
                .map(|(name, file)| (name, file.into()))
                .collect(),
            http: self.http,
            shell: self.shell,
            limits: Limits {
                event: self.event_limit,
                ..Limits::default()
            },
        };
        Ok(init::live_in_folder(options).await?)
    }
}
