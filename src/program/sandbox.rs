//! What a WebAssembly component is granted beside its request, and how far it may go: the table `[components.NAME.wasm]`
//! of a manifest, and the flags of `polyinit serve` that say the same. Nothing here opens anything; the engine does.

mod host;

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use host::{HostRule, Scheme};

/// What a WebAssembly component is granted beside its events, and how far it may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// Folders that the guest sees.
    pub directories: Vec<Directory>,
    /// Where it may connect and send requests to.
    pub hosts: Vec<HostRule>,
    /// Arguments of a command, after its name.
    pub arguments: Vec<String>,
    /// Events that one instance has before it is replaced; 1 is a fresh instance for each.
    pub reuse: Option<NonZeroU32>,
    /// The most work on one event, in units of Wasmtime's fuel, about one for each instruction.
    pub fuel: Option<NonZeroU64>,
}

impl Sandbox {
    /// Takes what the manifest in `root` calls a path as from there.
    pub fn resolve(&mut self, root: &Path) {
        for directory in &mut self.directories {
            directory.host = root.join(&directory.host);
        }
    }

    /// Adds what `other` grants; its limits win.
    pub fn extend(&mut self, other: &Self) {
        self.directories.extend_from_slice(&other.directories);
        self.hosts.extend_from_slice(&other.hosts);
        self.arguments.extend_from_slice(&other.arguments);
        self.reuse = other.reuse.or(self.reuse);
        self.fuel = other.fuel.or(self.fuel);
    }
}

/// A folder of this machine as a guest sees it: `HOST::GUEST`, or `HOST::GUEST:rw` where it may write.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Directory {
    pub host: PathBuf,
    /// An absolute path of the guest's own.
    pub guest: String,
    pub writable: bool,
}

/// Why a text names no folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("{0:?} is no HOST::GUEST: write data::/data, or data::/data:rw for a folder that may be written to")]
    NoPair(String),
    #[error("{text:?}: the guest's path, {guest:?}, has to begin with a slash and have no \"..\" in it")]
    GuestPath { text: String, guest: String },
}

impl FromStr for Directory {
    type Err = DirectoryError;

    fn from_str(text: &str) -> Result<Self, DirectoryError> {
        let no_pair = || DirectoryError::NoPair(text.to_owned());
        let (host, guest) = text.split_once("::").ok_or_else(no_pair)?;
        let (guest, writable) = match guest.strip_suffix(":rw") {
            Some(guest) => (guest, true),
            None => (guest.strip_suffix(":ro").unwrap_or(guest), false),
        };
        if host.is_empty() || guest.is_empty() {
            return Err(no_pair());
        }
        if !guest.starts_with('/') || guest.split('/').any(|part| part == "..") || guest.contains(['\0', ':']) {
            return Err(DirectoryError::GuestPath {
                text: text.to_owned(),
                guest: guest.to_owned(),
            });
        }
        // Guests look for it by the name that they open, in which nothing is empty and nothing is ".".
        let parts: Vec<&str> = guest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        Ok(Self {
            host: host.into(),
            guest: format!("/{}", parts.join("/")),
            writable,
        })
    }
}

impl TryFrom<String> for Directory {
    type Error = DirectoryError;

    fn try_from(text: String) -> Result<Self, DirectoryError> {
        text.parse()
    }
}

impl From<Directory> for String {
    fn from(directory: Directory) -> Self {
        directory.to_string()
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.writable { ":rw" } else { "" };
        write!(f, "{}::{}{mode}", self.host.display(), self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_only_unless_said() {
        let directory: Directory = "data::/data".parse().unwrap();
        assert_eq!((directory.guest.as_str(), directory.writable), ("/data", false));
        assert_eq!(directory.to_string(), "data::/data");
        let directory: Directory = "/var/lib/x::/:rw".parse().unwrap();
        assert_eq!(
            (directory.host.to_str(), directory.writable),
            (Some("/var/lib/x"), true)
        );
        assert_eq!(directory.to_string(), "/var/lib/x::/:rw");
        assert!(!"data::/data:ro".parse::<Directory>().unwrap().writable);
        for (written, meant) in [("/data/", "/data"), ("//a/./b//", "/a/b"), ("/", "/"), ("/./", "/")] {
            let directory: Directory = format!("data::{written}").parse().unwrap();
            assert_eq!(directory.guest, meant);
        }
    }

    #[test]
    fn what_names_no_folder_is_refused_with_what_would() {
        for (text, expected) in [
            ("data", "data::/data"),
            ("::/data", "data::/data"),
            ("data::", "data::/data"),
            ("data::data", "begin with a slash"),
            ("data::/a/../..", "\"..\""),
            ("data::/data:rx", "begin with a slash"),
        ] {
            let error = text.parse::<Directory>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn paths_of_a_manifest_are_from_where_it_stands() {
        let mut sandbox: Sandbox =
            toml::from_str("directories = [\"data::/data\", \"/srv::/srv\"]\nreuse = 9").unwrap();
        sandbox.resolve(Path::new("/program"));
        assert_eq!(sandbox.directories[0].host, Path::new("/program/data"));
        assert_eq!(sandbox.directories[1].host, Path::new("/srv"));
        assert_eq!(sandbox.reuse.unwrap().get(), 9);
        assert!(toml::from_str::<Sandbox>("reuse = 0").is_err());
        assert!(toml::from_str::<Sandbox>("hosts = [\"ftp://x\"]").is_err());
        assert!(toml::from_str::<Sandbox>("host = [\"x\"]").is_err());
    }
}
