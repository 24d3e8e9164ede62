//! `polyinit image`: builds root file systems from recipes, and tells what is inside them.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};

use super::CommandError;
use super::serve::Stop;
use super::workspace::unless_stopped;
use crate::image::{self, Build, Built, Format, Output, PackageCache, inspect};

/// Build an image for microVMs, or look into one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit image build runtimes/wasm -o wasm.squashfs
  polyinit image inspect wasm.squashfs

polyinit image COMMAND --help says more.")]
pub struct Image {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Build(BuildImage),
    Inspect(InspectImage),
}

/// Build an image from its recipe.
///
/// The same recipe, packages and init give the same bytes. A recipe with the base debian needs mmdebstrap (`apt install
/// mmdebstrap`), and root or the right to make user namespaces; one with Python packages needs pip; an erofs or an ext4
/// needs the tools of these file systems (erofs-utils, e2fsprogs). All others need nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit image build runtimes/wasm -o wasm.squashfs
  polyinit image build runtimes/minimal -o minimal.squashfs -o minimal.oci
  polyinit image build runtimes/debian-12 -o debian-12.squashfs --cache ~/.cache/polyinit/packages")]
struct BuildImage {
    /// The recipe: a folder with image.toml, or that file
    recipe: PathBuf,

    /// Where the image is written to; may be given again, for the same image in another format
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Vec<PathBuf>,

    /// What kind of image [default: by each file's name: .erofs, .ext4, .cpio, .oci; else squashfs]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// What becomes /sbin/init: a static program, or a script whose interpreter the image has [default: this polyinit, if it is
    /// linked statically]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,

    /// Keep downloaded packages in this folder, and take them from there
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,

    /// Use nothing but the cache: no network, and the versions of the build that filled it
    #[arg(long, requires = "cache")]
    offline: bool,
}

/// Tell what is inside an image.
///
/// Its format and size, the versions of the interpreters in it, its init, and whether a machine can boot it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit image inspect debian-12.squashfs
  polyinit image inspect debian-12.oci --json")]
struct InspectImage {
    /// The image
    file: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Image {
    pub async fn run(self) -> Result<(), CommandError> {
        let mut stop = Stop::listen()?;
        unless_stopped(&mut stop, image::abandon, |workspace| {
            // So that what is half done, and may be large, is known by one name. It is set once, here.
            let _ = tempfile::env::override_temp_dir(workspace.folder()?);
            match self.action {
                Action::Build(build) => build.run(),
                Action::Inspect(inspect) => inspect.run(),
            }
        })
        .await
    }
}

impl BuildImage {
    fn run(self) -> Result<(), CommandError> {
        let start = Instant::now();
        let offline = self.offline;
        let output = |path: PathBuf| Output {
            format: self.format.unwrap_or_else(|| Format::of(&path)),
            path,
        };
        let build = Build {
            recipe: self.recipe,
            outputs: self.output.into_iter().map(output).collect(),
            init: self.init,
            cache: self.cache.map(|folder| PackageCache { folder, offline }),
        };
        // Nobody to read it is no reason to stop building.
        let progress = |line: &str| drop(writeln!(io::stderr(), "{line}"));
        build.run(&progress, &|output, Built { bytes, entries }| {
            let (megabytes, seconds) = (bytes as f64 / 1e6, start.elapsed().as_secs_f64());
            let output = output.path.display();
            progress(&format!(
                "{output}: {megabytes:.1} MB with {entries} entries, in {seconds:.1} s"
            ));
        })?;
        Ok(())
    }
}

impl InspectImage {
    fn run(self) -> Result<(), CommandError> {
        let inspection = inspect::inspect(&self.file)?;
        let mut output = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut output, &inspection)?;
            writeln!(output)?;
        } else {
            write!(output, "{inspection}")?;
        }
        Ok(())
    }
}
