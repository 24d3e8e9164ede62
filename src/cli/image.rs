//! `polyinit image`: builds root file systems from recipes, and tells what is inside them.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::image::{Build, BuildError, Built, InspectError, PackageCache, inspect};

/// Build an image for a microVM, or look into one.
#[derive(Debug, Args)]
pub struct ImageCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build an image from its recipe.
    ///
    /// The same recipe, packages and init give the same bytes. A recipe with the base debian needs mmdebstrap
    /// (`apt install mmdebstrap`) and either root or user namespaces; all others need nothing.
    #[command(after_help = "Examples:\n  \
        polyinit image build runtimes/wasm -o wasm.squashfs\n  \
        polyinit image build runtimes/debian-12 -o debian-12.squashfs --cache ~/.cache/polyinit/packages")]
    Build(BuildArguments),
    /// Tell what is inside an image.
    Inspect(InspectArguments),
}

#[derive(Debug, Args)]
struct BuildArguments {
    /// The recipe: a folder with image.toml, or that file.
    recipe: PathBuf,
    /// Where the image is written to.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The program that becomes /sbin/init [default: this polyinit, if it is linked statically].
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Keep downloaded packages in this folder and take them from there.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Use nothing but the cache: no network, and the same versions as when it was filled.
    #[arg(long, requires = "cache")]
    offline: bool,
}

#[derive(Debug, Args)]
struct InspectArguments {
    /// The image.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why `polyinit image` failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image can't be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The image can't be inspected.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The answer can't be written.
    #[error("can't write to standard output: {0}")]
    Output(#[from] std::io::Error),
    /// The thread that did the work ended early.
    #[error("the build ended unexpectedly: {0}")]
    Work(#[from] tokio::task::JoinError),
}

/// Does what the command line asks for.
///
/// # Errors
/// What failed, in words for the user.
pub async fn run(command: ImageCommand) -> Result<(), ImageError> {
    tokio::task::spawn_blocking(|| match command.action {
        Action::Build(arguments) => build(arguments),
        Action::Inspect(arguments) => inspect_image(&arguments),
    })
    .await?
}

fn build(arguments: BuildArguments) -> Result<(), ImageError> {
    let start = std::time::Instant::now();
    let output = arguments.output.clone();
    let build = Build {
        recipe: arguments.recipe,
        output: arguments.output,
        init: arguments.init,
        cache: arguments.cache.map(|folder| PackageCache {
            folder,
            offline: arguments.offline,
        }),
    };
    // Nobody to read it is no reason to stop building.
    let progress = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
    let Built { bytes, entries } = build.run(&progress)?;
    let (megabytes, seconds) = (bytes as f64 / 1e6, start.elapsed().as_secs_f64());
    progress(&format!(
        "{}: {megabytes:.1} MB, {entries} entries, in {seconds:.1} s",
        output.display()
    ));
    Ok(())
}

fn inspect_image(arguments: &InspectArguments) -> Result<(), ImageError> {
    let inspection = inspect::inspect(&arguments.file)?;
    let mut output = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut output, &inspection).map_err(std::io::Error::from)?;
        writeln!(output)?;
    } else {
        write!(output, "{inspection}")?;
    }
    Ok(())
}
