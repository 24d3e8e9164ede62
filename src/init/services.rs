//! Commands that run beside the program for as long as the machine does: those of the options, and the SSH server.
//! What ends is started again, with a growing pause.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::Settings;
use crate::engine::backoff::Backoff;
use crate::engine::process::{self, Confinement, Launch, Process};

/// The pauses before a command is started again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The commands under way. Clones share them.
#[derive(Clone, Default)]
pub struct Services(Arc<Shared>);

#[derive(Default)]
struct Shared {
    running: Mutex<JoinSet<()>>,
    end: CancellationToken,
}

impl Services {
    /// Starts `command`, which begins with its program's path, and keeps it running.
    pub fn start(&self, name: &str, command: Vec<String>, settings: &Settings, grace: Duration) {
        let service = Service {
            name: name.to_owned(),
            command,
            environment: process::base_environment(settings),
            grace,
        };
        let end = self.0.end.clone();
        self.0.running.lock().spawn(service.run(end));
    }

    /// Ends all, and returns when nothing of them is left.
    pub async fn stop(&self) {
        self.0.end.cancel();
        let mut running = std::mem::take(&mut *self.0.running.lock());
        while running.join_next().await.is_some() {}
    }
}

struct Service {
    name: String,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    /// Between SIGTERM and SIGKILL.
    grace: Duration,
}

impl Service {
    async fn run(self, end: CancellationToken) {
        let mut backoff = Backoff::between(SHORTEST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = tokio::time::Instant::now();
            match self.launch().start().await {
                Ok(mut process) => {
                    tokio::select! {
                        how = process.ended() => self.tell(&process, how).await,
                        () = end.cancelled() => {
                            let _ = process.stop(self.grace).await;
                            return;
                        }
                    }
                }
                Err(error) => tracing::warn!("{} can't be started: {error}", self.command.join(" ")),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.after(began.elapsed())) => {}
                () = end.cancelled() => return,
            }
        }
    }

    fn launch(&self) -> Launch {
        let mut words = self.command.iter();
        Launch {
            component: self.name.clone(),
            program: words.next().map(PathBuf::from).unwrap_or_default(),
            arguments: words.map(Into::into).collect(),
            directory: "/".into(),
            environment: self.environment.clone(),
            channel: None,
            // They are the machine's own: who logs in may have to become somebody else.
            confinement: Confinement::none(),
        }
    }

    async fn tell(&self, process: &Process, how: std::io::Result<process::Exit>) {
        let how = how.map_or_else(|error| format!("is gone: {error}"), |exit| exit.to_string());
        let words = process.last_words().await;
        let last = words.lines().last().unwrap_or_default();
        tracing::warn!("{} {how}, and is started again; its last words: {last:?}", self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_is_started_again_until_all_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("starts");
        let script = format!("echo x >> {}; exit 1", file.display());
        let services = Services::default();
        let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        services.start("test", command, &Settings::default(), Duration::from_secs(1));
        let again = async {
            while std::fs::read_to_string(&file).unwrap_or_default().lines().count() < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again)
            .await
            .expect("started again");
        services.stop().await;
        let count = std::fs::read_to_string(&file).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), count);
    }
}
