//! A component that takes a port of its own choice, so that a new one of it can't be started beside the old: they take
//! turns, and requests that come in between wait. For `serve --watch`, in the component's place in the router.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::live::held;
use crate::engine::{Engine, Handling, Working};
use crate::event::{Event, Failure, FailureKind};

/// How long events under way may take once their turn is to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest that an event waits for the next turn. A start that fails is told sooner.
const LONGEST: Duration = Duration::from_secs(90);

/// The place of the one whose turn it is.
pub(super) struct Turn {
    component: String,
    now: watch::Sender<Now>,
}

enum Now {
    Serving(Serving),
    /// The old one ends, the new one begins.
    Between,
    /// There will be no other.
    Over,
}

#[derive(Clone)]
struct Serving {
    engine: Arc<dyn Engine>,
    under_way: TaskTracker,
}

impl Turn {
    /// The first turn is that of `engine`.
    pub fn new(component: &str, engine: Arc<dyn Engine>) -> Arc<Self> {
        Arc::new(Self {
            component: component.to_owned(),
            now: watch::Sender::new(serving(engine)),
        })
    }

    pub fn is_of(&self, component: &str) -> bool {
        self.component == component
    }

    /// Whether it is somebody's turn.
    pub fn is_serving(&self) -> bool {
        matches!(&*self.now.borrow(), Now::Serving(_))
    }

    /// Ends the turn: has events wait from now on, and returns when what was there has ended, once its events are done or
    /// have had their time.
    pub async fn end(&self, grace: Duration) {
        let Now::Serving(Serving { engine, under_way }) = self.now.send_replace(Now::Between) else {
            return;
        };
        under_way.close();
        if tokio::time::timeout(PATIENCE, under_way.wait()).await.is_err() {
            tracing::warn!(
                "{}: some requests took more than {} s, and end with the program they were given to",
                self.component,
                PATIENCE.as_secs()
            );
        }
        engine.stop(grace).await;
    }

    /// Begins the turn of `engine`, which gets the events that have waited.
    pub fn begin(&self, engine: Arc<dyn Engine>) {
        self.now.send_replace(serving(engine));
    }

    /// There is no other: events that have waited fail.
    pub fn give_up(&self) {
        self.now.send_replace(Now::Over);
    }
}

fn serving(engine: Arc<dyn Engine>) -> Now {
    Now::Serving(Serving {
        engine,
        under_way: TaskTracker::new(),
    })
}

impl Engine for Turn {
    fn handle(&self, event: Event) -> Handling {
        let mut now = self.now.subscribe();
        let component = self.component.clone();
        Box::pin(async move {
            let unavailable = |what: &str| Failure::new(FailureKind::Unavailable, format!("{component} {what}"));
            let begun = {
                let begun = now.wait_for(|now| !matches!(now, Now::Between));
                let begun = tokio::time::timeout(LONGEST, begun).await;
                match begun.map_err(|_| unavailable("is still being started anew"))? {
                    // The token is there before anybody can end this turn, and wait for it.
                    Ok(now) => match &*now {
                        Now::Serving(serving) => Some((serving.engine.clone(), serving.under_way.token())),
                        Now::Between | Now::Over => None,
                    },
                    Err(_) => None,
                }
            };
            let (engine, token) = begun.ok_or_else(|| unavailable("could not be started anew"))?;
            Ok(held(engine.handle(event).await?, token))
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        let now = self.now.send_replace(Now::Over);
        Box::pin(async move {
            if let Now::Serving(Serving { engine, .. }) = now {
                engine.stop(grace).await;
            }
        })
    }

    fn describe(&self) -> String {
        match &*self.now.borrow() {
            Now::Serving(serving) => serving.engine.describe(),
            Now::Between | Now::Over => String::new(),
        }
    }

    fn has_own_port(&self) -> bool {
        true
    }
}
