//! The configuration that the host sends on its first connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What the host tells the machine about itself and its program. Keys may be absent; unknown ones come with newer
/// hosts and are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Configuration {
    /// A zip that belongs into `/data`.
    pub input_data: Option<ByteBuf>,
    /// `asgi` or `executable`: all that today's hosts can say; the program itself says more.
    pub interface: String,
    /// 64 hexadecimal digits, from which the host name is made.
    pub vm_hash: String,
    pub encoding: Encoding,
    /// `module.path:attribute` or a file's path.
    pub entrypoint: String,
    /// The program, as `encoding` says; empty where it stands on a volume.
    pub code: Option<ByteBuf>,
    /// IPv4 address, with or without its prefix length (24 then).
    pub ip: Option<String>,
    /// IPv4 gateway.
    pub route: Option<String>,
    pub dns_servers: Vec<String>,
    pub volumes: Vec<Volume>,
    /// Environment of the program.
    pub variables: Option<BTreeMap<String, String>>,
    /// IPv6 address with its prefix length.
    pub ipv6: Option<String>,
    pub ipv6_gateway: Option<String>,
    /// SSH keys of root.
    pub authorized_keys: Option<Vec<String>>,
}

/// What the configuration's `code` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The source text or the executable itself.
    #[default]
    Plain,
    Zip,
    /// Nothing: the program is on the volume that is mounted on /opt/code.
    Squashfs,
}

/// A block device to mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Volume {
    /// Where to, absolute.
    pub mount: String,
    /// Name below /dev: `vdb`.
    pub device: String,
    #[serde(default)]
    pub read_only: bool,
}

impl Configuration {
    /// Decodes a configuration, without the length line before it.
    ///
    /// # Errors
    /// A sentence that names the key that is wrong, where the decoder knows it.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }

    /// Encodes it as the host does, keys by name.
    ///
    /// # Errors
    /// None that this type can cause; the signature is the encoder's.
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(self)
    }
}
