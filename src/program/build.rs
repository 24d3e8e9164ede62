//! Builds components: runs the `build` commands of a manifest, before there is anything to run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::open_files;

/// The most that is kept of what a command printed, in bytes: its last words say what is wrong.
const OUTPUT_KEPT: usize = 64 << 10;

/// A component's build command, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The component's name.
    pub component: String,
    /// For `/bin/sh -c`.
    pub command: String,
    /// Where the manifest stands.
    pub directory: PathBuf,
    /// What the component is made of, besides what the command makes: folders and files, absolute.
    pub watched: Vec<PathBuf>,
    /// What the command makes.
    pub product: PathBuf,
}

/// Why a component could not be built.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildError {
    #[error("{component}: the build command can't be run: {reason}")]
    Start { component: String, reason: String },
    #[error("{component}: the build command {how}: {command}\n{output}")]
    Failed {
        component: String,
        command: String,
        how: String,
        /// What it printed, its last words.
        output: String,
    },
    #[error("{component}: the build command made no {product}: {command}", product = .product.display())]
    NoProduct {
        component: String,
        command: String,
        product: PathBuf,
    },
}

impl Build {
    /// Runs the command, and returns how long it took. Dropping the future ends it.
    ///
    /// # Errors
    /// [`BuildError`], with what the command printed.
    pub async fn run(&self) -> Result<Duration, BuildError> {
        let began = Instant::now();
        let component = || self.component.clone();
        let start = |error: io::Error| BuildError::Start {
            component: component(),
            reason: error.to_string(),
        };
        // Both streams into one pipe: what belongs together stays together.
        let (reader, writer) = io::pipe().map_err(start)?;
        let mut child = Command::from(open_files::command("/bin/sh"))
            .args(["-c", &self.command])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(start)?)
            .stderr(writer)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let group = Group(child.id());
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(start)?;
        let output = collect(reader);
        tokio::pin!(output);
        let mut text = None;
        let status = tokio::select! {
            status = child.wait() => status,
            all = &mut output => { text = Some(all); child.wait().await }
        }
        .map_err(start)?;
        drop(group);
        let output = match text {
            Some(text) => text,
            None => output.await,
        };
        if !status.success() {
            return Err(BuildError::Failed {
                component: component(),
                command: self.command.clone(),
                how: match status.code() {
                    Some(code) => format!("failed with status {code}"),
                    None => "was killed".to_owned(),
                },
                output,
            });
        }
        if !self.product.exists() {
            return Err(BuildError::NoProduct {
                component: component(),
                command: self.command.clone(),
                product: self.product.clone(),
            });
        }
        Ok(began.elapsed())
    }

    /// Whether a change of `path` is one of what the component is made of.
    pub fn is_made_of(&self, path: &Path) -> bool {
        !path.starts_with(&self.product) && self.watched.iter().any(|watched| path.starts_with(watched))
    }
}

/// What a build command has started ends with it: a compiler that nobody waits for would hold the pipe, and the files.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // ESRCH, the usual outcome, means that nothing of it is left.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

async fn collect(mut pipe: impl AsyncReadExt + Unpin) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 8 << 10];
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        kept.extend_from_slice(&piece[..read]);
        if kept.len() > 2 * OUTPUT_KEPT {
            kept.drain(..kept.len() - OUTPUT_KEPT);
        }
    }
    let from = kept.len().saturating_sub(OUTPUT_KEPT);
    String::from_utf8_lossy(&kept[from..]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(folder: &Path, command: &str) -> Build {
        Build {
            component: "app".to_owned(),
            command: command.to_owned(),
            directory: folder.to_owned(),
            watched: vec![folder.to_owned()],
            product: folder.join("app"),
        }
    }

    #[tokio::test]
    async fn a_build_makes_its_product_or_says_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let run = async |command: &str| {
            build(folder.path(), command)
                .run()
                .await
                .map_err(|error| error.to_string())
        };
        assert!(run("true").await.unwrap_err().contains("made no"));
        let failed = run("echo first; echo second >&2; exit 3").await.unwrap_err();
        assert!(
            failed.starts_with("app: the build command failed with status 3"),
            "{failed}"
        );
        assert!(failed.ends_with("first\nsecond"), "{failed}");
        assert!(run("kill $$").await.unwrap_err().contains("was killed"));
        run("echo x > app").await.unwrap();
        // One that leaves something in the background does not keep us waiting for it.
        run("sleep 1000 &").await.unwrap();
        let long = run("head -c 1000000 /dev/zero; exit 1").await.unwrap_err();
        assert!(long.len() < OUTPUT_KEPT + 200, "{}", long.len());
    }

    #[test]
    fn its_own_product_is_no_reason_to_build_again() {
        let build = build(Path::new("/p"), "");
        assert!(build.is_made_of(Path::new("/p/main.go")));
        assert!(!build.is_made_of(Path::new("/p/app")));
        assert!(!build.is_made_of(Path::new("/q/main.go")));
    }
}
