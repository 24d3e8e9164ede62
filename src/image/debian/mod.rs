//! The base `debian`: mmdebstrap makes it and hands it over as a tar, which becomes a [`Tree`].
//!
//! Nothing is unpacked here, so owners and devices survive without being root: mmdebstrap uses a user namespace then.
//! What depends on the day or on the machine that built is left out of the tree ([`is_leftover`]).

mod leftovers;
mod mmdebstrap;
mod sources;

use std::io::{self, BufWriter, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use super::archive::{self, ArchiveError, Folders};
use super::recipe::{Debian, Recipe};
use super::tree::Tree;
use super::{PackageCache, Progress};
use leftovers::is_leftover;
use mmdebstrap::{COMMAND_MARK, PROXY_VARIABLES, hook, quoted};

/// Ships with mmdebstrap. Makes /bin and its like links from the start, which spares the image usrmerge and all of perl.
const MERGED_USR_HOOKS: &str = "/usr/share/mmdebstrap/hooks/merged-usr";
/// apt's package lists, its packages, and the sources that they came from, inside a package cache.
const CACHED_LISTS: &str = "lists";
const CACHED_PACKAGES: &str = "archives";
const CACHED_SOURCES: &str = "sources.list";
const APT_LISTS: &str = "/var/lib/apt/lists";
const APT_PACKAGES: &str = "/var/cache/apt/archives";
/// Why a Debian base can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// The tool isn't there.
    #[error(
        "base debian needs mmdebstrap, which is not installed: run `apt install mmdebstrap` (on Debian and Ubuntu; \
         runtimes/setup does it too), or build the image on such a machine"
    )]
    NoMmdebstrap,
    /// It is there and can't be run, or its output not be kept.
    #[error("can't run mmdebstrap: {0}")]
    Run(#[source] io::Error),
    /// It ran and failed.
    #[error("mmdebstrap could not make the base ({status}): {reason}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        reason: String,
    },
    /// A cache without lists can't be worked from.
    #[error("{0} holds no packages yet: build once with this --cache and without --offline")]
    EmptyCache(PathBuf),
    /// The cache's folder can't be used.
    #[error("can't use {path} as a cache of packages: {source}")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A name that a hook of mmdebstrap can't be given.
    #[error("{0} can't be used: its name is not UTF-8")]
    NotUtf8(PathBuf),
    /// The recipe's files can't be packed, or mmdebstrap's output not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Sees to it that there is what makes a base, before anything is done for one.
///
/// # Errors
/// mmdebstrap is not installed.
pub fn check() -> Result<(), DebianError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&path).any(|folder| folder.join(mmdebstrap::PROGRAM).is_file());
    if is_there {
        Ok(())
    } else {
        Err(DebianError::NoMmdebstrap)
    }
}

/// Makes the base: suite and packages, the recipe's `files` over them, then its commands.
///
/// # Errors
/// mmdebstrap is missing or fails; every line that it wrote was given to `progress` before.
pub fn bootstrap(
    debian: &Debian,
    recipe: &Recipe,
    files: &Tree,
    epoch: u32,
    cache: Option<&PackageCache>,
    progress: Progress<'_>,
) -> Result<Tree, DebianError> {
    let layer = tempfile::NamedTempFile::new().map_err(DebianError::Run)?;
    archive::write(files, epoch, Folders::Empty, BufWriter::new(layer.as_file()))?;

    // Its last stage: where packages are only unpacked, mmdebstrap has none after that, and passes over its hooks.
    let stage = if debian.essential { "customize" } else { "extract" };
    let mut command = mmdebstrap::command(epoch);
    command
        .args(options(debian))
        .args(cache.map_or(Ok(Vec::new()), |cache| cache_options(cache, stage))?);
    command.arg(hook(stage, &format!("tar-in {} /", quoted_path(layer.path())?)));
    for (number, line) in (1..).zip(&recipe.commands) {
        command.arg(hook(stage, &in_chroot(number, line.get_ref(), recipe, epoch)));
    }
    let suite = debian.suite.get_ref();
    command.args([suite, "-"]);
    let sources = match cache.filter(|cache| cache.offline) {
        Some(cache) => {
            progress(&format!("packages from {}", cache.folder.display()));
            command.arg(cache.folder.join(CACHED_SOURCES));
            None
        }
        None => sources::of_machine(suite),
    };
    if let Some(sources) = &sources {
        progress(&format!(
            "packages from this machine's apt sources: {}",
            sources.trim().replace('\n', ", ")
        ));
        command.arg("-");
    }

    let mut output = tempfile::tempfile().map_err(DebianError::Run)?;
    mmdebstrap::run(command, sources.as_deref().unwrap_or_default(), &output, progress)?;
    output.rewind().map_err(DebianError::Run)?;
    Ok(archive::read(output, |path| {
        !is_leftover(path) || files.get(path).is_some()
    })?)
}

/// What doesn't depend on anything but the recipe.
fn options(debian: &Debian) -> Vec<String> {
    let mut options = vec![
        format!("--variant={}", if debian.essential { "essential" } else { "extract" }),
        "--format=tar".to_owned(),
        "--skip=download/empty,essential/unlink".to_owned(),
        format!("--hook-dir={MERGED_USR_HOOKS}"),
        "--aptopt=Acquire::Retries \"3\"".to_owned(),
        // The tree is thrown away if the machine fails meanwhile: no need to wait for its disk.
        "--dpkgopt=force-unsafe-io".to_owned(),
    ];
    options.extend(
        debian
            .packages
            .iter()
            .map(|package| format!("--include={}", package.get_ref())),
    );
    options.extend(
        debian
            .exclude
            .iter()
            .map(|pattern| format!("--dpkgopt=path-exclude={}", pattern.get_ref())),
    );
    options.extend(
        debian
            .keep
            .iter()
            .map(|pattern| format!("--dpkgopt=path-include={}", pattern.get_ref())),
    );
    options
}

/// Takes packages from the cache and leaves new ones in it. Offline, the lists are the cache's too, so the versions
/// are those of the run that filled it.
fn cache_options(cache: &PackageCache, last_stage: &str) -> Result<Vec<String>, DebianError> {
    let folder = |name| {
        let path = cache.folder.join(name);
        std::fs::create_dir_all(&path).map_err(|source| DebianError::Cache {
            path: path.clone(),
            source,
        })?;
        quoted_path(&path)
    };
    if cache.offline && !cache.folder.join(CACHED_SOURCES).is_file() {
        return Err(DebianError::EmptyCache(cache.folder.clone()));
    }
    let (lists, packages) = (folder(CACHED_LISTS)?, folder(CACHED_PACKAGES)?);
    let sources = quoted_path(&cache.folder.join(CACHED_SOURCES))?;
    let mut options = vec![
        hook("setup", &format!("mkdir -p \"$1\"{APT_LISTS} \"$1\"{APT_PACKAGES}")),
        hook("setup", &format!("sync-in {packages} {APT_PACKAGES}")),
    ];
    if cache.offline {
        options.push(hook("setup", &format!("sync-in {lists} {APT_LISTS}")));
        options.push("--skip=update".to_owned());
        options.push("--aptopt=APT::Get::Download \"false\"".to_owned());
    } else {
        options.push(hook(last_stage, &format!("sync-out {APT_PACKAGES} {packages}")));
        options.push(hook(last_stage, &format!("sync-out {APT_LISTS} {lists}")));
        options.push(hook(last_stage, &format!("download /etc/apt/sources.list {sources}")));
    }
    Ok(options)
}

/// A command of the recipe, run inside the base with an environment that is the same everywhere.
fn in_chroot(number: usize, line: &str, recipe: &Recipe, epoch: u32) -> String {
    let mut variables = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "HOME=/root".to_owned(),
        "LC_ALL=C.UTF-8".to_owned(),
        "DEBIAN_FRONTEND=noninteractive".to_owned(),
        "PYTHONHASHSEED=0".to_owned(),
        "PYTHONDONTWRITEBYTECODE=1".to_owned(),
        format!("SOURCE_DATE_EPOCH={epoch}"),
    ];
    variables.extend(
        PROXY_VARIABLES
            .iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))),
    );
    variables.extend(
        recipe
            .environment
            .iter()
            .map(|(name, value)| format!("{}={}", name.get_ref(), value.get_ref())),
    );
    let variables: Vec<String> = variables.iter().map(|variable| quoted(variable)).collect();
    let begin = quoted(&format!("{COMMAND_MARK}{number}: {line}"));
    let failed = quoted(&format!("E: command {number} of the recipe failed: {line}"));
    format!(
        "umask 022; echo {begin} >&2; /usr/bin/env -i {variables} chroot \"$1\" /bin/sh -e -c {line} || {{ echo {failed} >&2; exit 1; }}",
        variables = variables.join(" "),
        line = quoted(line),
    )
}

fn quoted_path(path: &Path) -> Result<String, DebianError> {
    let path = std::path::absolute(path).map_err(DebianError::Run)?;
    path.to_str()
        .map(quoted)
        .ok_or_else(|| DebianError::NotUtf8(path.clone()))
}
