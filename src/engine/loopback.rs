//! The way from a component back to the program that it is part of: set once the program runs, used by guests that send
//! requests to `self`.

use std::sync::{Arc, OnceLock, Weak};

use super::Handling;
use crate::event::{Event, Failure, FailureKind};

/// Takes events for the whole program. Clones are the same way.
#[derive(Clone, Default)]
pub struct Loopback(Arc<OnceLock<Box<Way>>>);

type Way = dyn Fn(Event) -> Handling + Send + Sync;

impl Loopback {
    /// Leads to `program` from now on, as long as there is one: what runs it is not kept alive by its own components.
    pub fn lead_to<P: Send + Sync + 'static>(&self, program: &Arc<P>, handle: fn(&P, Event) -> Handling) {
        let program: Weak<P> = Arc::downgrade(program);
        let way = move |event| match program.upgrade() {
            Some(program) => handle(&program, event),
            None => gone("the program has been stopped"),
        };
        // A program is started once.
        let _ = self.0.set(Box::new(way));
    }

    /// Gives `event` to the program's component for it.
    pub fn handle(&self, event: Event) -> Handling {
        match self.0.get() {
            Some(way) => way(event),
            None => gone("the program's other components are not started yet"),
        }
    }
}

impl std::fmt::Debug for Loopback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loopback")
    }
}

fn gone(why: &str) -> Handling {
    Box::pin(std::future::ready(Err(Failure::new(FailureKind::Unavailable, why))))
}
