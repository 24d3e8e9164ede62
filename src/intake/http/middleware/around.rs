//! What the program that runs now asks for around requests: it may come after the intake does (a machine's own), and
//! another may take its place (`serve --watch`).

use std::sync::{Arc, PoisonError, RwLock};

use super::Middleware;
use crate::program::manifest::{AccessLog, HttpKeys};

/// What is asked for at the moment: nothing at first. Clones are the same.
#[derive(Clone, Default)]
pub struct Around(Arc<RwLock<Arc<Asked>>>);

/// What one program asks for.
#[derive(Default)]
pub struct Asked {
    keys: HttpKeys,
    /// None where requests go by it.
    pub middleware: Option<Middleware>,
}

impl Around {
    /// Has done what `keys`, which have been checked, ask for, for requests that come from now on. `reveal`: whether
    /// clients see what failed inside.
    pub fn ask(&self, keys: &HttpKeys, reveal: bool) {
        // Where they ask for the same, clients keep what they have left of their rates.
        if self.now().keys == *keys {
            return;
        }
        let asked = Arc::new(Asked {
            keys: keys.clone(),
            middleware: Middleware::new(keys, reveal),
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// What is asked for at the moment.
    pub fn now(&self) -> Arc<Asked> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Asked {
    /// How each request is written down, where the program says.
    pub fn access_log(&self) -> Option<AccessLog> {
        self.keys.access_log
    }
}
