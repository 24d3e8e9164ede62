//! The processes of one component, each supervised by itself and on a port of its own; which of them gets an event.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select_ok};

use super::launch::{Listening, Start};
use super::supervise::{Conditions, Run, Supervised};
use crate::engine::Settings;
use crate::event::Failure;
use crate::program::Component;

/// At least one.
pub struct Fleet(Vec<Supervised>);

impl Fleet {
    /// `first` runs already; the others are started by `start`, in the background.
    pub fn new(component: &Component, settings: &Settings, start: &Arc<dyn Start>, first: Listening) -> Self {
        let conditions = Conditions {
            component: component.name.clone(),
            start: Arc::clone(start),
            timeout: settings.event_timeout,
            max_requests: component.keys.max_requests,
        };
        // What a program has in memory is whole only where there is one of it: so more are for those who ask.
        let count = component.keys.workers.map_or(1, |workers| workers.on(settings.cores));
        let first = Supervised::new(conditions.clone(), Some(first));
        let others = (1..count).map(|_| Supervised::new(conditions.clone(), None));
        Self(std::iter::once(first).chain(others).collect())
    }

    /// The run that gets the next event: the one with the fewest, or else the first one that comes up.
    ///
    /// # Errors
    /// As [`Supervised::run`].
    pub async fn run(&self) -> Result<Arc<Run>, Failure> {
        if let [only] = &self.0[..] {
            return only.run().await;
        }
        // Whoever waits for a reply holds on to the run.
        let up = self.0.iter().filter_map(Supervised::up);
        if let Some(run) = up.min_by_key(Arc::strong_count) {
            return Ok(run);
        }
        let all = self.0.iter().map(|one| Box::pin(one.run()));
        select_ok(all).await.map(|(run, _)| run)
    }

    /// Has all of them stopped, as [`Supervised::stop`].
    pub async fn stop(&self, grace: Duration) {
        join_all(self.0.iter().map(|one| one.stop(grace))).await;
    }
}
