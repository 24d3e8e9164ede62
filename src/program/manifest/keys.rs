//! The keys of `polyinit.toml`, as types. **A new key is a field here**: its `///` comment is what editors and
//! `docs/polyinit.schema.json` show of it, its type is what the manifest is checked against, and whoever needs it reads
//! it from [`Component::keys`](crate::program::Component::keys). What a type can't say is checked in `mod.rs`.
//! After a change, `POLYINIT_BLESS=1 cargo test schema` writes the schema anew; docs/manifest.md has a line for it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::program::EngineKind;
use crate::program::limits::{Account, MaxRequests, ResourceLimits, Size, WorkerCount};
use crate::program::sandbox::Sandbox;
use crate::program::subscription::Messages;

/// What a program's parts are.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "polyinit.toml")]
pub struct ManifestKeys {
    /// The program's components, by their names: letters, digits, `-` and `_`.
    #[schemars(required)]
    pub components: BTreeMap<String, ComponentKeys>,
    /// What is done with every request that comes over HTTP. Nothing by default.
    pub http: HttpKeys,
}

/// What is done with every request that comes over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpKeys {
    /// Gives every request an `x-request-id`, unless it has one, and its reply the same.
    pub request_id: bool,
    /// How each request is written to standard output, or in a machine to its log. By default `text` for `polyinit serve`
    /// and `off` in a machine.
    pub access_log: Option<AccessLog>,
    /// Compresses replies for clients that accept it (zstd, br, gzip).
    pub compression: bool,
    /// The longest time from a request's head to its reply's head, in seconds; beyond it, 504.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timeout: Option<f64>,
    /// The largest body of a request, in bytes; beyond it, 413.
    pub body_limit: Option<u64>,
    /// Lets pages of other origins read replies.
    pub cors: Option<CorsKeys>,
    /// How many requests one address may send; beyond that, 429.
    pub rate_limit: Option<RateKeys>,
}

/// How each request is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// A line for people.
    Text,
    /// A JSON object.
    Json,
    /// Not at all.
    Off,
}

/// Which pages of other origins may read replies (the Fetch standard's CORS protocol).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsKeys {
    /// Origins (`https://shop.example`), or `*` for all.
    pub origins: Vec<String>,
    /// Methods that they may use. All by default.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// Headers that they may send. All by default.
    #[serde(default)]
    pub headers: Option<Vec<String>>,
    /// Headers of the reply that they may read, besides those that they always may.
    #[serde(default)]
    pub expose: Vec<String>,
    /// Whether they may send cookies.
    #[serde(default)]
    pub credentials: bool,
    /// For how long a browser may remember all this, in seconds.
    #[serde(default)]
    pub max_age: Option<u64>,
}

/// How many requests one address (for IPv6, one /64) may send.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateKeys {
    /// The number of requests.
    pub requests: NonZeroU32,
    /// The seconds in which they may come. 1 by default.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub seconds: f64,
    /// How many may come at once. By default as many as `requests`.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
}

fn one() -> f64 {
    1.0
}

/// One component: one thing that an engine runs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ComponentKeys {
    /// Its file or folder, relative to the manifest.
    pub source: PathBuf,
    /// Where it begins: `module:attribute`, or a file below the source. Found by looking, by default.
    pub entrypoint: Option<String>,
    /// What runs it. Told from the source by default.
    pub engine: Option<EngineKind>,
    /// The command that makes the source, for `/bin/sh`, run in the manifest's folder: by `polyinit build`, and by
    /// `polyinit serve --watch` whenever something changes.
    pub build: Option<String>,
    /// The files and folders that `polyinit serve --watch` watches for changes, relative to the manifest. By default the
    /// source, and what is beside it if it is a file for Python or Node; with `build`, everything beside the manifest.
    pub watch: Option<Vec<PathBuf>>,
    /// Variables for its environment.
    pub environment: BTreeMap<String, String>,
    /// The requests that go to it; the most specific route wins. By default every request, or with `messages` and other
    /// components none; `[]` is for a component that takes none.
    pub routes: Option<Vec<RouteKeys>>,
    /// The most processes, or `"auto"` for one per processor. Python and Node start more than one as events overlap, by
    /// default up to one per processor, and at least two; what serves HTTP itself has one by default.
    pub workers: Option<WorkerCount>,
    /// Requests after which a process is replaced by a new one, or up to a tenth more. Never by default.
    pub max_requests: Option<MaxRequests>,
    /// Seconds that it may take to start.
    pub start_timeout: Option<f64>,
    /// Seconds until its reply to a request begins, or for WebAssembly ends.
    pub request_timeout: Option<f64>,
    /// The most memory of one process and what it starts (cgroup); of one instance, if it is WebAssembly.
    pub memory: Option<Size>,
    /// The most processors that one process and what it starts keep busy: `0.5` is half of one (cgroup).
    pub cpu: Option<f64>,
    /// The user that its processes run as.
    pub user: Option<Account>,
    /// The group that its processes run as; by default the user's own.
    pub group: Option<Account>,
    /// Whether its processes are kept from gaining privileges, for example by sudo; `true` by default.
    pub no_new_privs: Option<bool>,
    /// Resource limits of its processes (getrlimit(2)).
    pub rlimits: ResourceLimits,
    /// What it is granted besides its events, and how far it may go: for WebAssembly only.
    pub wasm: Sandbox,
    /// Whether network messages go to it: `true`, or a list of which. A message goes to the component with the most specific
    /// match.
    pub messages: Messages,
    /// Requests that it gets at certain times.
    pub schedules: Vec<ScheduleKeys>,
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
            workers: None,
            max_requests: None,
            start_timeout: None,
            request_timeout: None,
            memory: None,
            cpu: None,
            user: None,
            group: None,
            no_new_privs: None,
            rlimits: ResourceLimits::new(),
            wasm: Sandbox::default(),
            messages: Messages::default(),
            schedules: Vec::new(),
        }
    }
}

/// A request at certain times (UTC).
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleKeys {
    /// When, as cron says it: minute, hour, day of the month, month, day of the week; seconds may stand before them.
    pub cron: String,
    /// The request's path. `/` by default.
    #[serde(default)]
    pub path: Option<String>,
    /// The request's method. `POST` by default.
    #[serde(default)]
    pub method: Option<String>,
}

/// A route: a path, or a table that says more.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RouteKeys {
    /// A path: exact (`/about`), or with all that is below it (`/api/*`).
    Path(String),
    /// What a request must be like.
    Table(RouteTable),
}

/// What a request must be like to take this route.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTable {
    /// A path: exact (`/about`), or with all that is below it (`/api/*`). Any by default.
    pub path: Option<String>,
    /// A host name: exact (`shop.example`), or any below it (`*.shop.example`). Any by default.
    pub host: Option<String>,
    /// Methods (`["GET", "POST"]`); GET includes HEAD. Any by default.
    pub methods: Option<Vec<String>>,
}
