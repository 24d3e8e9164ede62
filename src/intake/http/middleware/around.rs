//! What the program that runs now asks for around requests: it may come after the intake does (a machine's own), and
//! another may take its place (`serve --watch`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::Middleware;
use crate::program::manifest::{AccessLog, HttpKeys};

/// What is asked for at the moment: nothing at first. Clones are the same.
#[derive(Clone, Default)]
pub struct Around(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whether anything is: most programs ask for nothing, and their requests are not to pay for the lock.
    any: AtomicBool,
    asked: RwLock<Arc<Asked>>,
}

/// What one program asks for.
#[derive(Default)]
pub struct Asked {
    keys: HttpKeys,
    /// None where requests go by it.
    middleware: Option<Middleware>,
}

impl Around {
    /// Has done what `keys`, which have been checked, ask for, for requests that come from now on. `reveal`: whether
    /// clients see what failed inside.
    pub fn ask(&self, keys: &HttpKeys, reveal: bool) {
        // Where they ask for the same, clients keep what they have left of their rates.
        let mut now = self.0.asked.write();
        if now.keys == *keys {
            return;
        }
        *now = Arc::new(Asked {
            keys: keys.clone(),
            middleware: Middleware::new(keys, reveal),
        });
        self.0.any.store(*keys != HttpKeys::default(), Ordering::Release);
    }

    /// What is asked for at the moment, if anything is.
    pub fn now(&self) -> Option<Arc<Asked>> {
        let asked = || self.0.asked.read().clone();
        self.0.any.load(Ordering::Acquire).then(asked)
    }
}

impl Asked {
    /// What is done around each request, if anything is.
    pub fn middleware(&self) -> Option<&Middleware> {
        self.middleware.as_ref()
    }

    /// How each request is written down, where the program says.
    pub fn access_log(&self) -> Option<AccessLog> {
        self.keys.access_log
    }
}
