//! The keys of `polyinit.toml`, as types. **A new key is a field here**: its `///` comment is what editors and
//! `docs/polyinit.schema.json` show of it, its type is what the manifest is checked against, and whoever needs it reads
//! it from [`Component::keys`](crate::program::Component::keys). What a type can't say is checked in `mod.rs`.
//! After a change, `POLYINIT_BLESS=1 cargo test schema` writes the schema anew; docs/manifest.md has a line for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::program::EngineKind;

/// What a program's parts are.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "polyinit.toml")]
pub struct ManifestKeys {
    /// The program's components, by their names: letters, digits, `-` and `_`.
    #[schemars(required)]
    pub components: BTreeMap<String, ComponentKeys>,
}

/// One component: one thing that an engine runs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ComponentKeys {
    /// The file or folder that it is, from where the manifest stands.
    pub source: PathBuf,
    /// Where it begins: `module:attribute`, or a file below the source. Found by looking unless said.
    pub entrypoint: Option<String>,
    /// What runs it. Told from the source unless said.
    pub engine: Option<EngineKind>,
    /// The command that makes the source, for `/bin/sh`, run where the manifest stands: by `polyinit build`, and by
    /// `polyinit serve --watch` whenever something changes.
    pub build: Option<String>,
    /// The files and folders whose changes `polyinit serve --watch` looks for, from where the manifest stands. The
    /// source unless said; with `build`, everything there.
    pub watch: Option<Vec<PathBuf>>,
    /// Variables for its environment.
    pub environment: BTreeMap<String, String>,
    /// The requests that go to it; the one that says most wins. Every request unless said, none with
    /// `messages = true`; `[]` is for a component that takes none.
    pub routes: Option<Vec<RouteKeys>>,
    /// Whether network messages go to it.
    pub messages: bool,
}

impl Default for ComponentKeys {
    fn default() -> Self {
        Self {
            source: ".".into(),
            entrypoint: None,
            engine: None,
            build: None,
            watch: None,
            environment: BTreeMap::new(),
            routes: None,
            messages: false,
        }
    }
}

/// A route: a path, or a table that says more.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RouteKeys {
    /// A path: exact (`/about`), or with all that is below (`/api/*`).
    Path(String),
    /// What a request must be like.
    Table(RouteTable),
}

/// What a request must be like to take this route.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTable {
    /// A path: exact (`/about`), or with all that is below (`/api/*`). Any unless said.
    pub path: Option<String>,
    /// A host name: exact (`shop.example`), or any below (`*.shop.example`). Any unless said.
    pub host: Option<String>,
    /// Methods (`["GET", "POST"]`); GET is HEAD, too. Any unless said.
    pub methods: Option<Vec<String>>,
}
