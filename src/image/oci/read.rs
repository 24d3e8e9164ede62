//! The base `oci`: an image layout (a folder) or an archive of one, such as `skopeo copy docker://... oci-archive:FILE`
//! and `podman save --format oci-archive` write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Config, DOCKER_INDEX_TYPE, Descriptor, INDEX_TYPE, Index, Manifest, architecture_name, variables};
use crate::image::archive::{self, ArchiveError};
use crate::image::tree::Tree;

/// An index, a manifest or a configuration that is longer than this, in bytes, is none.
const DOCUMENT_LIMIT: u64 = 4 << 20;

/// A layer may hold no more than this, unpacked, in bytes: a small one that unpacks to anything would fill the disk.
const LAYER_LIMIT: u64 = 16 << 30;

/// How many indexes may lead to others.
const DEPTH: usize = 4;

/// Why an image can't be a base.
#[derive(Debug, thiserror::Error)]
pub enum OciReadError {
    #[error("can't read {path} of the OCI image: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no OCI image: it has no {missing}", path = .path.display())]
    NoImage { path: PathBuf, missing: &'static str },
    #[error("{what} of the OCI image is not as the specification has it: {reason}")]
    Document { what: String, reason: String },
    #[error("{digest} of the OCI image is damaged: its content has the digest {found}")]
    Damaged { digest: String, found: String },
    #[error("the OCI image is for {found}, and none of it for linux/{wanted}")]
    Platform { found: String, wanted: String },
    #[error("a layer of the OCI image has the type {0:?}, which is not known: tar, tar+gzip and tar+zstd are")]
    LayerType(String),
    #[error(transparent)]
    Layer(#[from] ArchiveError),
}

/// What an image gives to start from.
#[derive(Debug)]
pub struct Base {
    pub tree: Tree,
    /// What its programs are to have in their environment.
    pub environment: BTreeMap<String, String>,
}

/// Reads the image at `path` that is for `architecture`, by Rust's name.
///
/// # Errors
/// It is no image, or damaged, or for other processors.
pub fn read(path: &Path, architecture: &str) -> Result<Base, OciReadError> {
    let layout = Layout::open(path)?;
    let index: Index = layout.document("index.json", layout.file("index.json")?)?;
    let wanted = architecture_name(architecture);
    let manifest = layout.manifest(&index, wanted, DEPTH)?;
    let config: Config = layout.blob_document(&manifest.config)?;
    if (config.os.as_str(), config.architecture.as_str()) != ("linux", wanted) {
        return Err(OciReadError::Platform {
            found: format!("{}/{}", config.os, config.architecture),
            wanted: wanted.to_owned(),
        });
    }
    let mut tree = Tree::default();
    for layer in &manifest.layers {
        let content = layout.layer(layer)?;
        archive::read_over(&mut tree, content)?;
    }
    Ok(Base {
        tree,
        environment: variables(config.config.env.as_deref().unwrap_or_default()),
    })
}

/// Where the image's files are.
enum Layout {
    Folder(PathBuf),
    /// In a tar, by name: first byte and length.
    Archive {
        path: PathBuf,
        files: BTreeMap<PathBuf, (u64, u64)>,
    },
}

impl Layout {
    fn open(path: &Path) -> Result<Self, OciReadError> {
        let layout = if path.is_dir() {
            Self::Folder(path.to_owned())
        } else {
            let error = |source| OciReadError::Read {
                path: path.to_owned(),
                source,
            };
            let file = File::open(path).map_err(error)?;
            let mut files = BTreeMap::new();
            let mut archive = tar::Archive::new(&file);
            for entry in archive.entries_with_seek().map_err(error)? {
                let entry = entry.map_err(error)?;
                let name = entry.path().map_err(error)?;
                let name = name.strip_prefix(".").unwrap_or(&name).to_owned();
                files.insert(name, (entry.raw_file_position(), entry.size()));
            }
            Self::Archive {
                path: path.to_owned(),
                files,
            }
        };
        layout.file("oci-layout").map_err(|_| OciReadError::NoImage {
            path: path.to_owned(),
            missing: "file oci-layout; `skopeo copy docker-archive:FILE oci-archive:FILE` makes one of what `docker save` writes",
        })?;
        Ok(layout)
    }

    /// A file of the layout, at its beginning, and its length.
    fn file(&self, name: &str) -> Result<(File, u64), OciReadError> {
        let error = |source| OciReadError::Read {
            path: name.into(),
            source,
        };
        match self {
            Self::Folder(folder) => {
                let file = File::open(folder.join(name)).map_err(error)?;
                let length = file.metadata().map_err(error)?.len();
                Ok((file, length))
            }
            Self::Archive { path, files } => {
                let (at, length) = files
                    .get(Path::new(name))
                    .ok_or_else(|| error(io::ErrorKind::NotFound.into()))?;
                let mut file = File::open(path).map_err(error)?;
                file.seek(SeekFrom::Start(*at)).map_err(error)?;
                Ok((file, *length))
            }
        }
    }

    fn document<T: DeserializeOwned>(&self, what: &str, (file, length): (File, u64)) -> Result<T, OciReadError> {
        let wrong = |reason: String| OciReadError::Document {
            what: what.to_owned(),
            reason,
        };
        if length > DOCUMENT_LIMIT {
            return Err(wrong(format!("it is longer than {DOCUMENT_LIMIT} bytes")));
        }
        serde_json::from_reader(BufReader::new(file.take(length))).map_err(|error| wrong(error.to_string()))
    }

    /// A blob whose content has been seen to be what its digest says.
    fn blob(&self, descriptor: &Descriptor) -> Result<(File, u64), OciReadError> {
        let digest = &descriptor.digest;
        let hexadecimal = digest
            .strip_prefix("sha256:")
            .filter(|hexadecimal| hexadecimal.len() == 64 && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let name = hexadecimal.map(|hexadecimal| format!("blobs/sha256/{hexadecimal}"));
        let name = name.ok_or_else(|| OciReadError::Document {
            what: format!("the digest {digest:?}"),
            reason: "sha256 is the one that is known".to_owned(),
        })?;
        let error = |source| OciReadError::Read {
            path: name.clone().into(),
            source,
        };
        let (mut file, length) = self.file(&name)?;
        let begin = file.stream_position().map_err(error)?;
        let mut hash = Hash(Sha256::new());
        io::copy(&mut (&file).take(length), &mut hash).map_err(error)?;
        let found = format!("sha256:{}", HEXLOWER.encode(&hash.0.finalize()));
        if found != *digest || length != descriptor.size {
            return Err(OciReadError::Damaged {
                digest: digest.clone(),
                found,
            });
        }
        file.seek(SeekFrom::Start(begin)).map_err(error)?;
        Ok((file, length))
    }

    fn blob_document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, OciReadError> {
        self.document(&descriptor.digest, self.blob(descriptor)?)
    }

    /// The manifest for this architecture, by way of indexes in the index.
    fn manifest(&self, index: &Index, wanted: &str, depth: usize) -> Result<Manifest, OciReadError> {
        let fits = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_none_or(|platform| (platform.os.as_str(), platform.architecture.as_str()) == ("linux", wanted))
        };
        let Some(chosen) = index.manifests.iter().find(fits) else {
            let platforms = index
                .manifests
                .iter()
                .filter_map(|descriptor| descriptor.platform.as_ref());
            let found: Vec<_> = platforms
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            return Err(OciReadError::Platform {
                found: if found.is_empty() {
                    "nothing".to_owned()
                } else {
                    found.join(", ")
                },
                wanted: wanted.to_owned(),
            });
        };
        if [INDEX_TYPE, DOCKER_INDEX_TYPE].contains(&chosen.media_type.as_str()) && depth > 0 {
            return self.manifest(&self.blob_document(chosen)?, wanted, depth - 1);
        }
        self.blob_document(chosen)
    }

    /// A layer's tar, decompressed.
    fn layer(&self, descriptor: &Descriptor) -> Result<File, OciReadError> {
        let (file, length) = self.blob(descriptor)?;
        let packed = BufReader::new(file.take(length));
        let kind = descriptor.media_type.as_str();
        // Docker's own names end alike.
        let content: Box<dyn Read> = if kind.ends_with("gzip") {
            Box::new(flate2::read::MultiGzDecoder::new(packed))
        } else if kind.ends_with("zstd") {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed);
            Box::new(decoder.map_err(|source| self.layer_error(descriptor, source))?)
        } else if kind.ends_with("tar") {
            Box::new(packed)
        } else {
            return Err(OciReadError::LayerType(kind.to_owned()));
        };
        let unpack = || {
            let mut tar = tempfile::tempfile()?;
            if io::copy(&mut content.take(LAYER_LIMIT + 1), &mut tar)? > LAYER_LIMIT {
                return Err(io::Error::other(format!("it unpacks to more than {LAYER_LIMIT} bytes")));
            }
            tar.rewind()?;
            Ok(tar)
        };
        unpack().map_err(|source| self.layer_error(descriptor, source))
    }

    fn layer_error(&self, descriptor: &Descriptor, source: io::Error) -> OciReadError {
        OciReadError::Read {
            path: descriptor.digest.clone().into(),
            source,
        }
    }
}

/// A digest as something to write to.
struct Hash(Sha256);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_image_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), "x86_64").unwrap_err().to_string();
        assert!(error.contains("is no OCI image: it has no file oci-layout"), "{error}");

        fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        let index = r#"{"schemaVersion": 2, "manifests": [{"mediaType": "x", "size": 1,
            "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "platform": {"os": "linux", "architecture": "s390x"}}]}"#;
        fs::write(folder.path().join("index.json"), index).unwrap();
        let error = read(folder.path(), "x86_64").unwrap_err().to_string();
        assert_eq!(
            error,
            "the OCI image is for linux/s390x, and none of it for linux/amd64"
        );

        fs::write(folder.path().join("index.json"), index.replace("s390x", "amd64")).unwrap();
        fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        fs::write(folder.path().join("blobs/sha256").join("0".repeat(64)), "x").unwrap();
        let error = read(folder.path(), "x86_64").unwrap_err().to_string();
        assert!(
            error.contains("is damaged: its content has the digest sha256:2d711642"),
            "{error}"
        );

        fs::write(
            folder.path().join("index.json"),
            index.replace("s390x", "amd64").replace("0000\"", "/../\""),
        )
        .unwrap();
        let error = read(folder.path(), "x86_64").unwrap_err().to_string();
        assert!(error.contains("sha256 is the one that is known"), "{error}");
    }
}
