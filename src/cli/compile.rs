//! `polyinit compile`: WebAssembly compiled ahead of time.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::CommandError;
use super::say;
use crate::engine::wasm;
use crate::report;

/// Compile WebAssembly ahead of time, for every machine of this architecture.
///
/// The code is put beside each file, where it is looked for before the file is compiled: a machine that has both spends
/// no time and memory on compiling. The name has the file's hash in it, so that the code is never taken for another file's.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    polyinit compile hello.wasm\n  \
    polyinit compile hello.wasm -o hello.cwasm && polyinit serve hello.cwasm")]
pub struct Compile {
    /// WebAssembly modules and components
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Where the code goes, if there is only one file [default: beside it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Compile {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), "info");
        if self.output.is_some() && self.files.len() > 1 {
            return Err("--output is for one file, and there are several".into());
        }
        tokio::task::spawn_blocking(move || {
            self.files
                .iter()
                .try_for_each(|file| compile(file, self.output.as_deref()))
        })
        .await?
    }
}

fn compile(file: &Path, output: Option<&Path>) -> Result<(), CommandError> {
    let target = match output {
        Some(output) => output.to_owned(),
        None => wasm::place_ahead(file)?,
    };
    // What a link leads to is written, and the link stays.
    let place = target.canonicalize().unwrap_or_else(|_| target.clone());
    if file.canonicalize().is_ok_and(|file| file == place) {
        return Err(format!(
            "{} would be written over with its own code: give --output another name",
            file.display()
        )
        .into());
    }
    let code = wasm::compile(file)?;
    let folder = place
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let write = || {
        // A device or a pipe, /dev/null for one, is written to: a file in its place would be in everybody's way.
        if place.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return std::fs::write(&place, &code);
        }
        // Whole or not at all: nothing in there can be checked when it is used.
        let mut temporary = tempfile::Builder::new()
            // As any compiler's output: who runs it may be somebody else.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        temporary.write_all(&code)?;
        temporary.persist(&place).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| format!("can't write {}: {error}", target.display()))?;
    say(&format!(
        "{} → {}, {} KiB",
        file.display(),
        target.display(),
        code.len() >> 10
    ));
    Ok(())
}
