//! What a component's processes may use: the values of the manifest's keys for that. What the kernel makes of them is
//! [`engine::process`](crate::engine::process)'s.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::EngineKind;
use super::manifest::ComponentKeys;
use super::sandbox::Sandbox;

/// How many processes a component has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum WorkerCount {
    /// A number.
    Count(NonZeroU16),
    /// As many as there are processors.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

impl WorkerCount {
    /// The number, on a machine with this many processors.
    pub fn on(self, cores: usize) -> usize {
        match self {
            Self::Count(count) => count.get().into(),
            Self::Auto(_) => cores.max(1),
        }
    }
}

/// A number of bytes: `268435456`, or `"256MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "SizeText", into = "u64")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        let text = match text {
            SizeText::Bytes(bytes) => return Ok(Self(bytes)),
            SizeText::Text(text) => text,
        };
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((&text, 1));
        let number: Option<u64> = number.trim_end().parse().ok();
        number
            .and_then(|number| number.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size: a number of bytes, or one with a unit, \"256MiB\""))
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes, or one with a unit: `\"256MiB\"`.",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+ ?([KMG]i?B|B)?$" }
            ]
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let best = UNITS[..3]
            .iter()
            .rev()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match best {
            Some((name, unit)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "must be a name, or a number that fits into 32 bits")]
pub enum Account {
    /// By its number.
    Id(u32),
    /// By its name in /etc/passwd or /etc/group.
    Name(String),
}

/// The value of a resource limit (getrlimit(2)): soft and hard limit alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ResourceLimit {
    /// An amount, in the unit of that resource.
    Value(u64),
    /// No limit.
    Unlimited(Unlimited),
}

/// The word `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    Unlimited,
}

/// What a process may use of a resource (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Address space, in bytes.
    As,
    /// The largest core dump, in bytes.
    Core,
    /// Processor time, in seconds.
    Cpu,
    /// Data segment, in bytes.
    Data,
    /// The largest file that it may write, in bytes.
    Fsize,
    /// Locked memory, in bytes.
    Memlock,
    /// Open files.
    Nofile,
    /// Processes of its user.
    Nproc,
    /// Stack, in bytes.
    Stack,
}

/// Resource limits by name.
pub type ResourceLimits = BTreeMap<Resource, ResourceLimit>;

/// Requests after which a process is replaced: never for all processes at once, see [`jittered`].
pub type MaxRequests = NonZeroU32;

/// `limit`, or up to a tenth more, so that workers that began together don't end together.
pub fn jittered(limit: MaxRequests) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    // Every state has keys of its own, from the system's random source.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let room = u64::from(limit.get() / 10) + 1;
    limit.get().saturating_add((random % room) as u32)
}

/// What is wrong with these keys that their types can't say: which key, and why.
pub fn mistakes(keys: &ComponentKeys, engine: EngineKind) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut say = |key, problem: &str| found.push((key, problem.to_owned()));
    for (key, seconds) in [
        ("start_timeout", keys.start_timeout),
        ("request_timeout", keys.request_timeout),
    ] {
        if seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= 1e9)) {
            say(key, "must be a number of seconds, more than 0");
        }
    }
    if keys.cpu.is_some_and(|cpu| !(0.01..=1024.0).contains(&cpu)) {
        say(
            "cpu",
            "must be a number of processors, 0.01 or more: 0.5 is half of one",
        );
    }
    if keys.memory.is_some_and(|memory| memory < Size(1 << 20)) {
        say("memory", "is too little for any process: 1MiB is the least");
    }
    let are_several = keys.workers.is_some_and(|workers| workers.on(2) > 1);
    if engine == EngineKind::Executable && are_several && keys.environment.contains_key("PORT") {
        say(
            "workers",
            "can't be more than one on the one port that `environment` names: leave PORT away",
        );
    }
    if engine != EngineKind::Wasm && keys.wasm != Sandbox::default() {
        say("wasm", "is for WebAssembly, which this is not");
    }
    if engine == EngineKind::Static {
        let program_keys = [
            ("entrypoint", keys.entrypoint.is_some()),
            ("environment", !keys.environment.is_empty()),
            ("memory", keys.memory.is_some()),
            ("messages", keys.messages.any()),
            ("request_timeout", keys.request_timeout.is_some()),
            ("schedules", !keys.schedules.is_empty()),
            ("start_timeout", keys.start_timeout.is_some()),
        ];
        for (key, _) in program_keys.into_iter().filter(|(_, is_set)| *is_set) {
            say(key, "is for programs, and static files are none");
        }
    }
    if matches!(engine, EngineKind::Wasm | EngineKind::Static) {
        let process_keys = [
            ("workers", keys.workers.is_some()),
            ("max_requests", keys.max_requests.is_some()),
            ("cpu", keys.cpu.is_some()),
            ("user", keys.user.is_some()),
            ("group", keys.group.is_some()),
            ("no_new_privs", keys.no_new_privs.is_some()),
            ("rlimits", !keys.rlimits.is_empty()),
        ];
        for (key, _) in process_keys.into_iter().filter(|(_, is_set)| *is_set) {
            say(key, "is for processes, and this component runs in none of its own");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_is_none_is_told_what_one_is() {
        let account = serde_json::from_str::<Account>;
        assert_eq!(account("4294967295").unwrap(), Account::Id(u32::MAX));
        let error = account("4294967296").unwrap_err().to_string();
        assert!(error.starts_with("must be a name"), "{error}");
    }

    #[test]
    fn sizes() {
        let size = |text: &str| Size::try_from(SizeText::Text(text.to_owned()));
        for (text, bytes) in [
            ("4096", 4096),
            ("256MiB", 256 << 20),
            ("1 GB", 1_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "99999999999GiB", "1 PiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(Size(256 << 20).to_string(), "256 MiB");
        assert_eq!(Size(1025).to_string(), "1025 bytes");
    }

    #[test]
    fn jitter_is_a_tenth_at_most() {
        for _ in 0..100 {
            assert!((100..=110).contains(&jittered(MaxRequests::new(100).unwrap())));
            assert_eq!(jittered(MaxRequests::new(3).unwrap()), 3);
        }
    }
}
