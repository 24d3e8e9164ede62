//! The base `debian`: mmdebstrap makes it and hands it over as a tar, which becomes a [`Tree`].
//!
//! Nothing is unpacked here, so owners and devices survive without being root: mmdebstrap uses a user namespace then.
//! What depends on the day or on the machine that built is left out of the tree ([`is_leftover`]).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::archive::{self, ArchiveError};
use super::recipe::{Debian, Recipe};
use super::tree::{Modes, Tree, TreeError};
use super::{PackageCache, Progress};

const MMDEBSTRAP: &str = "mmdebstrap";
/// Ships with mmdebstrap. Makes /bin and its like links from the start, which spares the image usrmerge and all of perl.
const MERGED_USR_HOOKS: &str = "/usr/share/mmdebstrap/hooks/merged-usr";
/// apt's package lists, its packages, and the sources that they came from, inside a package cache.
const CACHED_LISTS: &str = "lists";
const CACHED_PACKAGES: &str = "archives";
const CACHED_SOURCES: &str = "sources.list";
const APT_LISTS: &str = "/var/lib/apt/lists";
const APT_PACKAGES: &str = "/var/cache/apt/archives";
/// What a command of the recipe is announced with among all that mmdebstrap says.
const COMMAND_MARK: &str = "command ";
/// How the way to the network is named in an environment (apt and curl both follow them).
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];

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
    /// The recipe's files can't be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Makes the base: suite and packages, the recipe's files over them, then its commands.
///
/// # Errors
/// mmdebstrap is missing or fails; every line that it wrote was given to `progress` before.
pub fn bootstrap(
    debian: &Debian,
    recipe: &Recipe,
    epoch: u32,
    cache: Option<&PackageCache>,
    progress: Progress<'_>,
) -> Result<Tree, DebianError> {
    let mut files = Tree::default();
    if let Some(folder) = recipe.files() {
        files.add_folder(&folder, Modes::Plain)?;
    }
    let layer = tempfile::NamedTempFile::new().map_err(DebianError::Run)?;
    archive::write(&files, epoch, io::BufWriter::new(layer.as_file()))?;

    let mut command = Command::new(MMDEBSTRAP);
    command
        .args(options(debian))
        .args(cache.map_or(Ok(Vec::new()), cache_options)?);
    command.arg(hook("customize", &format!("tar-in {} /", quoted_path(layer.path())?)));
    for (number, line) in (1..).zip(&recipe.commands) {
        command.arg(hook("customize", &in_chroot(number, line.get_ref(), recipe, epoch)));
    }
    command.args([debian.suite.get_ref(), "-"]);
    let sources = match cache {
        Some(cache) if cache.offline => {
            command.arg(cache.folder.join(CACHED_SOURCES));
            None
        }
        _ => machine_sources(debian.suite.get_ref()),
    };
    match &sources {
        Some(sources) => {
            command.arg("-");
            progress(&format!(
                "packages from this machine's apt sources: {}",
                sources.trim().replace('\n', "; ")
            ));
        }
        None => {
            progress("packages from the cache, or from Debian's own mirrors where apt lists none of the suite here")
        }
    }

    let mut output = tempfile::tempfile().map_err(DebianError::Run)?;
    clean_environment(&mut command, epoch);
    run(command, sources.as_deref().unwrap_or_default(), &output, progress)?;
    output.rewind().map_err(DebianError::Run)?;
    Ok(archive::read(output, |path| {
        !is_leftover(path) || files.get(path).is_some()
    })?)
}

/// What doesn't depend on anything but the recipe.
fn options(debian: &Debian) -> Vec<String> {
    let mut options = vec![
        "--variant=essential".to_owned(),
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
fn cache_options(cache: &PackageCache) -> Result<Vec<String>, DebianError> {
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
    } else {
        options.push(hook("customize", &format!("sync-out {APT_PACKAGES} {packages}")));
        options.push(hook("customize", &format!("sync-out {APT_LISTS} {lists}")));
        options.push(hook("customize", &format!("download /etc/apt/sources.list {sources}")));
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
        "umask 022; echo {begin} >&2; chroot \"$1\" /usr/bin/env -i {variables} /bin/sh -e -c {line} || {{ echo {failed} >&2; exit 1; }}",
        variables = variables.join(" "),
        line = quoted(line),
    )
}

/// mmdebstrap and the packages' scripts see what they need and nothing else of this machine's environment.
fn clean_environment(command: &mut Command, epoch: u32) {
    let kept = ["PATH", "HOME", "USER", "LOGNAME", "TMPDIR"]
        .into_iter()
        .chain(PROXY_VARIABLES);
    let kept: Vec<(&str, OsString)> = kept.filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
    command
        .env_clear()
        .envs(kept)
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
}

/// apt's own view of where this machine gets the suite from, as lines for a sources.list; only what Debian signed as its own.
///
/// None where apt has no lists of the suite: then mmdebstrap's default, Debian's public mirrors, is as good.
fn machine_sources(suite: &str) -> Option<String> {
    let format = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    sources_of_suite(&String::from_utf8(output.stdout).ok()?, suite)
}

fn sources_of_suite(targets: &str, suite: &str) -> Option<String> {
    let names = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    let mut lines = Vec::new();
    let mut has_suite = false;
    for target in targets.lines() {
        let [origin, code_name, component, uri, release] = target.split('|').collect::<Vec<_>>()[..] else {
            continue;
        };
        if origin == "Debian" && component == "main" && names.iter().any(|name| name == code_name) {
            has_suite |= code_name == suite;
            let line = format!("deb {uri} {release} main\n");
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    has_suite.then(|| lines.concat())
}

/// Runs mmdebstrap with `sources` as its standard input and `output` as its standard output.
fn run(mut command: Command, sources: &str, output: &File, progress: Progress<'_>) -> Result<(), DebianError> {
    let output = output.try_clone().map_err(DebianError::Run)?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                DebianError::NoMmdebstrap
            } else {
                DebianError::Run(error)
            }
        })?;
    // A few lines fit into the pipe, so this doesn't wait for the child; and one that died already says why itself.
    if let Some(mut stdin) = child.stdin.take() {
        drop(stdin.write_all(sources.as_bytes()));
    }
    let mut last_words = LastWords::default();
    let mut in_command = false;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.map_err(DebianError::Run)?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            last_words.hear(line);
            in_command |= line.starts_with(COMMAND_MARK);
            if let Some(shown) = worth_showing(line, in_command) {
                progress(shown);
            }
        }
    }
    let status = child.wait().map_err(DebianError::Run)?;
    if status.success() {
        Ok(())
    } else {
        Err(DebianError::Failed {
            status,
            reason: last_words.reason(),
        })
    }
}

/// mmdebstrap's headlines, warnings and errors; and all that the recipe's own commands say, once they began.
fn worth_showing(line: &str, in_command: bool) -> Option<&str> {
    match line.split_once(": ") {
        // Hooks are ours; those that matter announce themselves.
        Some(("I", text)) => {
            Some(text).filter(|text| !text.starts_with("running --") && !text.starts_with("running special"))
        }
        Some(("E" | "W", _)) => Some(line),
        _ => in_command.then_some(line),
    }
}

/// What of a failed run goes into its error: the lines that say that they are errors, else the last one.
#[derive(Default)]
struct LastWords {
    errors: Vec<String>,
    last: String,
}

impl LastWords {
    /// More than the first few errors are only what follows from them.
    const MAX_ERRORS: usize = 5;

    fn hear(&mut self, line: &str) {
        if let Some(error) = line.strip_prefix("E: ")
            && self.errors.len() < Self::MAX_ERRORS
        {
            self.errors.push(error.trim().to_owned());
        }
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut self.last);
        }
    }

    fn reason(self) -> String {
        if self.errors.is_empty() {
            self.last
        } else {
            self.errors.join("; ")
        }
    }
}

/// What a build leaves behind that says something about the build, not about the image: it would differ from one day or
/// machine to the next. Devices and mount points are the same for every image and come with [`super::layers`].
fn is_leftover(path: &Path) -> bool {
    const BELOW: [&str; 7] = [
        "dev",
        "run",
        "tmp",
        "var/log",
        "var/cache",
        "var/lib/apt",
        "etc/apt/sources.list.d",
    ];
    const FILES: [&str; 8] = [
        "etc/.pwd.lock",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/apt/sources.list",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/dpkg/available",
        "var/lib/dpkg/lock",
    ];
    // Copies that are made before something is changed.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_backup = (path.parent() == Some(Path::new("etc")) && name.ends_with('-'))
        || (path.starts_with("var/lib/dpkg") && (name.ends_with("-old") || name == "lock-frontend" || name == "Lock"));
    is_backup
        || FILES.iter().any(|file| path == Path::new(file))
        || BELOW
            .iter()
            .any(|folder| path.starts_with(folder) && path != Path::new(folder))
}

fn hook(stage: &str, command: &str) -> String {
    format!("--{stage}-hook={command}")
}

/// A word for a POSIX shell (XCU 2.2.2), and for mmdebstrap's own splitting of special hooks.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn quoted_path(path: &Path) -> Result<String, DebianError> {
    let path = std::path::absolute(path).map_err(DebianError::Run)?;
    path.to_str()
        .map(quoted)
        .ok_or_else(|| DebianError::NotUtf8(path.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_suites_own_sources_of_debian_are_used() {
        let targets = "Debian|bookworm|main|http://mirror/debian/|bookworm\n\
            Debian|bookworm-security|main|http://mirror/security/|bookworm-security\n\
            Debian|bookworm|contrib|http://mirror/debian/|bookworm\n\
            Debian|bookworm|main|http://mirror/debian/|bookworm\n\
            Debian|trixie|main|http://mirror/debian/|trixie\n\
            Node Source|bookworm|main|http://elsewhere/|bookworm\n\
            broken line\n";
        assert_eq!(
            sources_of_suite(targets, "bookworm").as_deref(),
            Some("deb http://mirror/debian/ bookworm main\ndeb http://mirror/security/ bookworm-security main\n")
        );
        assert_eq!(sources_of_suite(targets, "bullseye"), None);
    }

    #[test]
    fn what_a_build_leaves_behind_is_not_the_images() {
        for path in [
            "var/log/dpkg.log",
            "etc/passwd-",
            "etc/resolv.conf",
            "var/lib/dpkg/status-old",
            "dev/null",
        ] {
            assert!(is_leftover(Path::new(path)), "{path}");
        }
        for path in [
            "var/log",
            "etc/passwd",
            "var/lib/dpkg/status",
            "usr/lib/x-",
            "etc/hosts",
            "device",
        ] {
            assert!(!is_leftover(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn words_for_the_shell_stay_one_word() {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("printf %s {}", quoted("a 'b' $c \\ \"d\"")))
            .output();
        assert_eq!(output.expect("a shell").stdout, b"a 'b' $c \\ \"d\"");
    }

    #[test]
    fn a_failed_run_is_told_by_its_errors() {
        let mut last_words = LastWords::default();
        for line in [
            "I: running",
            "E: Unable to locate package nodjs",
            "noise",
            "E: apt-get failed",
            "",
        ] {
            last_words.hear(line);
        }
        assert_eq!(last_words.reason(), "Unable to locate package nodjs; apt-get failed");
        let mut last_words = LastWords::default();
        last_words.hear("sh: 1: x: not found");
        assert_eq!(last_words.reason(), "sh: 1: x: not found");
    }
}
