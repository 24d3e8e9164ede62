//! What the user brings: a file, a folder or an archive, and what is in it.
//!
//! ```text
//! archive (plain, zip, squashfs, folder) -> a directory -> manifest or detection -> components
//! ```

pub mod archive;
pub mod detect;
pub mod manifest;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What runs a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A Python worker process: ASGI, WSGI or a plain handler.
    Python,
    /// A Node worker process.
    Node,
    /// Any executable that serves HTTP on `$PORT` or 8080.
    Executable,
    /// A WebAssembly module or component, inside this process.
    Wasm,
}

/// One part of a program: one thing that an engine runs.
#[derive(Debug, Clone)]
pub struct Component {
    pub name: String,
    /// The directory that the program's own files are in; working directory and import root.
    pub root: PathBuf,
    pub engine: EngineKind,
    pub entrypoint: Entrypoint,
    /// Environment of this component alone.
    pub environment: BTreeMap<String, String>,
    /// Path patterns, `/api/*` or `/exact`; none means every path.
    pub routes: Vec<String>,
    /// Whether network messages go here.
    pub messages: bool,
    /// Why this engine: "main.py is a Python file".
    pub why: String,
}

/// Where a component begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entrypoint {
    /// A Python module and, unless the worker shall look for it, an attribute of it.
    Module { module: String, attribute: Option<String> },
    /// A file below the component's root, or absolute.
    File(PathBuf),
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Executable => "executable",
            Self::Wasm => "wasm",
        })
    }
}
