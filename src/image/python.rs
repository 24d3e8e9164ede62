//! Packages of the Python Package Index as a layer of an image, by this machine's pip, which need not be of the version
//! that the image has: only wheels are taken, which pip unpacks for any.
//!
//! With a package cache the wheels are kept there; offline they come from nowhere else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::folder::{self, FolderError, Modes};
use super::recipe::{Python, Recipe};
use super::tree::Tree;
use super::{PackageCache, Progress, tools};
use crate::open_files;

/// Wheels inside a package cache.
const CACHED_WHEELS: &str = "wheels";

/// The C libraries that an image's may be as new as, and wheels are made for (PEP 600), the newest first. Debian 12 has 2.36.
const LIBRARIES: [&str; 6] = [
    "manylinux_2_36",
    "manylinux_2_34",
    "manylinux_2_28",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux_2_5",
];

/// Why the packages can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    #[error(
        "the recipe's Python packages need pip, and `python3 -m pip` can't be run: {0}; `apt install python3-pip` brings it"
    )]
    Run(#[source] io::Error),
    #[error("pip could not get the recipe's Python packages: {0}")]
    Failed(String),
    #[error(
        "the list of Python packages {0} is not a file: correct python.requirements, which starts from the recipe's own folder"
    )]
    NoList(PathBuf),
    #[error("can't use a folder for Python packages: {0}")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Files(#[from] FolderError),
}

/// Adds the packages to `tree`. Their content is in the folder that is given back, until the image is written.
///
/// # Errors
/// pip is missing or fails.
pub fn add(
    tree: &mut Tree,
    python: &Python,
    recipe: &Recipe,
    cache: Option<&PackageCache>,
    progress: Progress<'_>,
) -> Result<TempDir, PythonError> {
    let list = recipe.folder.join(python.requirements.get_ref());
    if !list.is_file() {
        return Err(PythonError::NoList(list));
    }
    let temporary = tempfile::tempdir().map_err(PythonError::Folder)?;
    let wheels = cache.map_or_else(
        || temporary.path().join("wheels"),
        |cache| cache.folder.join(CACHED_WHEELS),
    );
    let unpacked = temporary.path().join("packages");
    for folder in [&wheels, &unpacked] {
        std::fs::create_dir_all(folder).map_err(PythonError::Folder)?;
    }
    progress(&format!("Python packages of {}", list.display()));
    if !cache.is_some_and(|cache| cache.offline) {
        let mut download = pip("download", python, &list);
        run(download.arg("--dest").arg(&wheels).arg("--find-links").arg(&wheels))?;
    }
    let mut install = pip("install", python, &list);
    install.args(["--no-index", "--no-compile", "--no-warn-conflicts"]);
    run(install.arg("--find-links").arg(&wheels).arg("--target").arg(&unpacked))?;
    // Programs that begin with the path of this machine's Python.
    match std::fs::remove_dir_all(unpacked.join("bin")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(PythonError::Folder(error)),
        _ => {}
    }
    folder::add_into(tree, &unpacked, Path::new(python.target.get_ref()), Modes::Plain)?;
    Ok(temporary)
}

/// pip, for the image's Python and processor. The list names everything: what it doesn't is not wanted, so that the same
/// list is the same packages.
fn pip(command: &str, python: &Python, list: &Path) -> Command {
    let mut pip = open_files::command("python3");
    pip.args([
        "-m",
        "pip",
        command,
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ])
    .args(["--no-deps", "--only-binary=:all:", "--implementation", "cp"])
    .args(["--python-version", python.version.get_ref()])
    .env("PIP_ROOT_USER_ACTION", "ignore")
    .env("PYTHONDONTWRITEBYTECODE", "1")
    // It removes none of what it has there when it is interrupted, and we do.
    .env("TMPDIR", tempfile::env::temp_dir());
    for library in LIBRARIES {
        pip.args(["--platform", &format!("{library}_{}", std::env::consts::ARCH)]);
    }
    pip.arg("--requirement").arg(list);
    pip
}

fn run(command: &mut Command) -> Result<(), PythonError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = tools::with(command, Child::wait_with_output).map_err(PythonError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().filter(|line| line.starts_with("ERROR:"));
    let errors: Vec<&str> = lines.map(|line| line.trim_start_matches("ERROR:").trim()).collect();
    Err(PythonError::Failed(match errors.is_empty() {
        true => said.trim().to_owned(),
        false => errors.join("; "),
    }))
}
