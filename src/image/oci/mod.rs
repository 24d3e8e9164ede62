//! Images as container tools have them: the OCI image format (image-spec 1.1), as a base to start from ([`read`]) and as a
//! kind of image to write ([`write`]).
//!
//! ```text
//! index.json -> manifest -> config (environment, architecture)
//!                        -> layers: tars, the later over the earlier, `.wh.` files for what they take away
//! ```

mod read;
mod write;

pub use read::{OciReadError, read};
pub use write::{OciWriteError, write};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The same by Docker's name, which it still has in images that were made for many processors.
const DOCKER_INDEX_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What is elsewhere, and how to know it (image-spec, descriptor.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// image-spec, image-index.md.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

/// image-spec, manifest.md.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// image-spec, config.md: what of it is used here.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    architecture: String,
    os: String,
    #[serde(default)]
    config: Execution,
    rootfs: RootFs,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

/// The name that OCI (Go, really) has for a processor that Rust calls `architecture`.
fn architecture_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// `NAME=VALUE` each.
fn variables(lines: &[String]) -> BTreeMap<String, String> {
    let split = lines.iter().filter_map(|line| line.split_once('='));
    split.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
