//! A tree as an archive of an OCI image with one layer: `podman load`, `skopeo copy oci-archive:FILE ...` and container
//! hosts take it. In a container there is no machine to set up: it serves what is mounted, or copied, to /app.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use data_encoding::HEXLOWER;
use flate2::{Compression, GzBuilder};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    CONFIG_TYPE, Config, Descriptor, Execution, INDEX_TYPE, Index, LAYER_TYPE, MANIFEST_TYPE, Manifest, Platform,
    RootFs, architecture_name,
};
use crate::image::archive::{self, ArchiveError, Folders};
use crate::image::layers::INIT;
use crate::image::target::Target;
use crate::image::tree::{Entry, Kind, Tree, TreeError};

/// The command's name in a container: as `init` it would take itself for a machine's.
const COMMAND: &str = "usr/bin/polyinit";
/// Where a container is given its program.
const PROGRAM: &str = "/app";

/// Why the archive can't be written.
#[derive(Debug, thiserror::Error)]
pub enum OciWriteError {
    #[error(transparent)]
    Layer(#[from] ArchiveError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("can't write the OCI image: {0}")]
    Write(#[from] io::Error),
}

/// Writes the tree for `architecture`, by Rust's name, every file with the time stamp `epoch`.
///
/// # Errors
/// A file of the tree can't be read, or the archive not be written.
pub fn write(
    mut tree: Tree,
    environment: &BTreeMap<String, String>,
    architecture: &str,
    epoch: u32,
    target: &Target<'_>,
) -> Result<(), OciWriteError> {
    let command = Entry {
        mode: 0o777,
        uid: 0,
        gid: 0,
        kind: Kind::Symlink(Path::new("/").join(INIT)),
    };
    tree.insert(Path::new(COMMAND), command)?;

    // The layer goes to a file first, since its digest comes before it.
    let mut layer = tempfile::tempfile()?;
    let (layer_blob, diff_id) = write_layer(&tree, epoch, &mut layer)?;
    let execution = Execution {
        env: Some(
            std::iter::once("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned())
                .chain(environment.iter().map(|(name, value)| format!("{name}={value}")))
                .collect(),
        ),
        entrypoint: Some(vec![format!("/{COMMAND}")]),
        cmd: Some(
            ["serve", PROGRAM, "--listen", "0.0.0.0:8080"]
                .map(str::to_owned)
                .to_vec(),
        ),
        working_dir: Some("/".to_owned()),
    };
    let platform = Platform {
        architecture: architecture_name(architecture).to_owned(),
        os: "linux".to_owned(),
    };
    let config = json(&Config {
        created: Some(timestamp(epoch)),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        config: execution,
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids: vec![diff_id],
        },
    })?;
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST_TYPE.to_owned()),
        config: descriptor(CONFIG_TYPE, &config),
        layers: vec![layer_blob.clone()],
    })?;
    let index = json(&Index {
        schema_version: 2,
        media_type: Some(INDEX_TYPE.to_owned()),
        manifests: vec![Descriptor {
            platform: Some(platform),
            ..descriptor(MANIFEST_TYPE, &manifest)
        }],
    })?;

    let mut archive = tar::Builder::new(BufWriter::new(target.file()));
    let mut add = |name: &str, length: u64, content: &mut dyn io::Read| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(epoch.into());
        header.set_size(length);
        archive.append_data(&mut header, name, content)
    };
    layer.rewind()?;
    for (descriptor, content) in [
        (
            &descriptor(MANIFEST_TYPE, &manifest),
            &mut manifest.as_slice() as &mut dyn io::Read,
        ),
        (&descriptor(CONFIG_TYPE, &config), &mut config.as_slice()),
        (&layer_blob, &mut layer),
    ] {
        let name = descriptor.digest.replace("sha256:", "blobs/sha256/");
        add(&name, descriptor.size, content)?;
    }
    add("index.json", index.len() as u64, &mut index.as_slice())?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    add("oci-layout", layout.len() as u64, &mut layout.as_slice())?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// Writes the tree as a compressed tar. Returns what the manifest says of it, and the digest of the tar itself.
fn write_layer(tree: &Tree, epoch: u32, file: &mut std::fs::File) -> Result<(Descriptor, String), OciWriteError> {
    // No name, no time: the same bytes every time.
    let packed = GzBuilder::new()
        .mtime(0)
        .write(Hashed::new(BufWriter::new(file)), Compression::default());
    let mut content = Hashed::new(packed);
    archive::write(tree, epoch, Folders::All, &mut content)?;
    let (packed, diff_id, _) = content.finish();
    let (mut file, digest, size) = packed.finish()?.finish();
    file.flush()?;
    let descriptor = Descriptor {
        media_type: LAYER_TYPE.to_owned(),
        digest,
        size,
        platform: None,
    };
    Ok((descriptor, diff_id))
}

fn json(document: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(io::Error::from)
}

fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest_of(Sha256::new().chain_update(content)),
        size: content.len() as u64,
        platform: None,
    }
}

fn digest_of(hash: Sha256) -> String {
    format!("sha256:{}", HEXLOWER.encode(&hash.finalize()))
}

/// RFC 3339, from days by the Gregorian calendar in years that begin with March.
fn timestamp(epoch: u32) -> String {
    let (days, second) = (u64::from(epoch) / 86_400 + 719_468, epoch % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A writer that takes the digest and the length of what goes through it.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, digest_of(self.hash), self.length)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_image_is_a_date() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(315_532_800), "1980-01-01T00:00:00Z");
        assert_eq!(timestamp(951_825_661), "2000-02-29T12:01:01Z");
    }
}
