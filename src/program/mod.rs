//! What the user brings: a file, a folder or an archive, and what is in it.
//!
//! ```text
//! archive (plain, zip, squashfs, folder) -> a directory -> manifest or detection -> components
//! ```

pub mod archive;
pub mod build;
pub mod detect;
pub mod limits;
pub mod manifest;
mod page;
pub mod route;
pub mod sandbox;
pub mod subscription;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use manifest::{ComponentKeys, HttpKeys};
use route::Route;

/// What runs a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
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
    /// No program: the files of a folder, with ranges, `ETag`, and `.br`, `.zst` and `.gz` files in the place of what they
    /// were compressed from. Its `routes` say below which path they are.
    Static,
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
    /// The requests that go here, where somebody has said it.
    pub routes: Option<Vec<Route>>,
    /// Whether network messages go here.
    pub messages: bool,
    /// All that the manifest says of this component; as if it said nothing where there is none.
    pub keys: ComponentKeys,
    /// Why this engine: "main.py is a Python file".
    pub why: String,
}

/// What the user brought, read and found to be runnable.
#[derive(Debug, Clone)]
pub struct Program {
    /// At least one.
    pub components: Vec<Component>,
    /// What is done around every request that comes over HTTP.
    pub http: HttpKeys,
}

impl Program {
    fn of(component: Component) -> Self {
        Self {
            components: vec![component],
            http: HttpKeys::default(),
        }
    }
}

impl Component {
    /// One of which nothing is said but what it is.
    pub fn new(name: impl Into<String>, root: impl Into<PathBuf>, engine: EngineKind, entrypoint: Entrypoint) -> Self {
        Self {
            name: name.into(),
            root: root.into(),
            engine,
            entrypoint,
            environment: BTreeMap::new(),
            routes: None,
            messages: false,
            keys: ComponentKeys::default(),
            why: String::new(),
        }
    }

    /// Whether network messages go here, where that can be told before it is started.
    pub fn takes_messages(&self, alone: bool) -> bool {
        match self.engine {
            EngineKind::Static => false,
            // A program that knows of requests alone would be surprised.
            EngineKind::Executable => self.messages,
            EngineKind::Python | EngineKind::Node | EngineKind::Wasm => self.messages || alone,
        }
    }

    /// The requests that go here. Where nobody has said it: all; but one of several components that is there for
    /// messages has the routes that it names, and no others.
    pub fn routes_taken(&self, alone: bool) -> Vec<Route> {
        match &self.routes {
            Some(routes) => routes.clone(),
            None if self.messages && !alone => Vec::new(),
            None => vec![Route::any()],
        }
    }
}

/// Where a component begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entrypoint {
    /// A Python module and, unless the worker shall look for it, an attribute of it.
    Module { module: String, attribute: Option<String> },
    /// A file below the component's root, or absolute.
    File(PathBuf),
}

/// What somebody says of a program beside the program itself.
#[derive(Debug, Clone, Default)]
pub struct Hint {
    /// `module:attribute`, or a file.
    pub entrypoint: Option<String>,
    pub engine: Option<EngineKind>,
    /// What the host called it.
    pub interface: Option<Interface>,
    /// Where Python modules may be beside the program's own folder.
    pub packages: Vec<PathBuf>,
    /// What a program is called that has no name of its own, where its folder's says nothing to whoever brought it.
    pub name: Option<String>,
}

/// All that a host of today can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    Asgi,
    Executable,
}

/// Why what the user brought can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("can't read {path}: {error}", path = .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}", path = .path.display())]
    Archive {
        path: PathBuf,
        error: archive::ArchiveError,
    },
    #[error(transparent)]
    Workspace(io::Error),
    #[error("{0}")]
    Manifest(manifest::Mistakes),
    #[error("there is no entrypoint {entrypoint:?} in {root}, which holds: {there}", root = .root.display())]
    NoEntrypoint {
        entrypoint: String,
        root: PathBuf,
        there: String,
    },
    #[error("there is no module for the entrypoint {entrypoint:?} in {root}; did you mean `{meant}`?", root = .root.display())]
    Misspelt {
        entrypoint: String,
        root: PathBuf,
        meant: String,
    },
    #[error("the manifest says engine = \"{engine}\", and {path} is {is}", path = .path.display())]
    OtherEngine {
        engine: EngineKind,
        path: PathBuf,
        is: &'static str,
    },
    #[error(
        "{path} begins with \"{start}\", which is nothing that can be run: WebAssembly, an ELF executable, a script \
         with #!, or a file named .py, .js or .mjs can",
        path = .path.display()
    )]
    Unknown { path: PathBuf, start: String },
    #[error(
        "found no program in {root}, which holds: {there}. Name where it begins with --entrypoint, or put a {manifest} \
         beside it",
        root = .root.display(), manifest = manifest::NAME
    )]
    Nothing { root: PathBuf, there: String },
}

impl ProgramError {
    fn read(path: &Path, error: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            error,
        }
    }
}

/// The program at `path`: a file, a folder, or an archive, which is unpacked to the folder that `workspace` gives then.
///
/// # Errors
/// [`ProgramError`], in words for the one who brought the program.
pub fn open(
    path: &Path,
    hint: &Hint,
    workspace: impl FnOnce() -> io::Result<PathBuf>,
) -> Result<Program, ProgramError> {
    let archive = |error| ProgramError::Archive {
        path: path.to_owned(),
        error,
    };
    // What isn't there is told here, and with the path that the user gave.
    let metadata = std::fs::metadata(path).map_err(|error| ProgramError::read(path, error))?;
    if metadata.is_dir() {
        return find(path, hint);
    }
    let mut file = File::open(path).map_err(|error| ProgramError::read(path, error))?;
    let mut magic = [0; 4];
    let length = io::Read::read(&mut file, &mut magic).map_err(|error| ProgramError::read(path, error))?;
    io::Seek::rewind(&mut file).map_err(|error| ProgramError::read(path, error))?;
    let is_zip = match &magic[..length] {
        b"PK\x03\x04" | b"PK\x05\x06" => true,
        b"hsqs" => false,
        _ => return detect::find(path, hint).map(Program::of),
    };
    let workspace = workspace().map_err(ProgramError::Workspace)?;
    if is_zip {
        archive::unzip(io::BufReader::new(file), &workspace).map_err(archive)?;
    } else {
        archive::unsquash(file, &workspace).map_err(archive)?;
    }
    let name = || Some(path.file_stem()?.to_string_lossy().into_owned());
    let hint = Hint {
        name: hint.name.clone().or_else(name),
        ..hint.clone()
    };
    find(&workspace, &hint)
}

/// The program in the folder `root`: by its manifest, or else by looking.
///
/// # Errors
/// [`ProgramError`], in words for the one who brought the program.
pub fn find(root: &Path, hint: &Hint) -> Result<Program, ProgramError> {
    match manifest::read(root)? {
        Some(program) => Ok(program),
        None => detect::find(root, hint).map(Program::of),
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Executable => "executable",
            Self::Wasm => "wasm",
            Self::Static => "static",
        })
    }
}
