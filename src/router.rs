//! Chooses the component that an event goes to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::engine::{Engine, Handling};
use crate::event::{Event, Failure, FailureKind, Input};
use crate::program::Component;

/// The components of a running program, by what they take.
pub struct Router {
    components: Vec<Running>,
}

/// A component with what runs it.
pub struct Running {
    pub component: Component,
    pub engine: Arc<dyn Engine>,
}

impl Router {
    pub fn new(components: Vec<Running>) -> Self {
        Self { components }
    }

    /// The components and what runs them.
    pub fn components(&self) -> &[Running] {
        &self.components
    }

    /// Gives an event to the component whose route it matches best; a message to the one that takes messages.
    pub fn handle(&self, event: Event) -> Handling {
        let chosen = match &event.input {
            Input::Http(request) => self.by_path(request.uri().path()),
            Input::Message(_) => self.for_messages(),
        };
        match chosen {
            Ok(running) => running.engine.handle(event),
            Err(failure) => Box::pin(std::future::ready(Err(failure))),
        }
    }

    /// Ends every component, all at once, within `grace`.
    pub async fn stop(&self, grace: Duration) {
        join_all(self.components.iter().map(|running| running.engine.stop(grace))).await;
    }

    fn by_path(&self, path: &str) -> Result<&Running, Failure> {
        let best = self
            .components
            .iter()
            .filter(|running| self.components.len() == 1 || takes_requests(&running.component))
            .filter_map(|running| Some((matched(&running.component.routes, path)?, running)))
            .max_by_key(|(length, _)| *length);
        best.map(|(_, running)| running)
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("no component has a route for {path}")))
    }

    fn for_messages(&self) -> Result<&Running, Failure> {
        match &self.components[..] {
            [only] => Ok(only),
            several => several
                .iter()
                .find(|running| running.component.messages)
                .ok_or_else(|| {
                    Failure::new(
                        FailureKind::NotFound,
                        "no component takes messages: give one `messages = true`",
                    )
                }),
        }
    }
}

/// One of several components that is there for messages has the paths that it names, and no others.
fn takes_requests(component: &Component) -> bool {
    !component.messages || !component.routes.is_empty()
}

/// How much of `path` the best of these routes matches; no routes match everything, as weakly as can be.
fn matched(routes: &[String], path: &str) -> Option<usize> {
    if routes.is_empty() {
        return Some(0);
    }
    let lengths = routes.iter().filter_map(|route| match route.strip_suffix("/*") {
        // "/api/*" is "/api", too, and everything below.
        Some(prefix) => {
            let rest = path.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len() + 1)
        }
        // One that names the whole path is better than any prefix of it.
        None => (route == path).then_some(route.len() + 2),
    });
    lengths.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_wins() {
        let routes = |routes: &[&str]| routes.iter().map(|route| (*route).to_owned()).collect::<Vec<_>>();
        assert_eq!(matched(&routes(&[]), "/any"), Some(0));
        assert!(matched(&routes(&["/*"]), "/a") > matched(&routes(&[]), "/a"));
        assert!(matched(&routes(&["/api/*"]), "/api/x") > matched(&routes(&["/*"]), "/api/x"));
        assert!(matched(&routes(&["/api/x"]), "/api/x") > matched(&routes(&["/api/x/*"]), "/api/x"));
        assert_eq!(matched(&routes(&["/api/*"]), "/apix"), None);
        assert!(matched(&routes(&["/api/*"]), "/api").is_some());
        assert_eq!(matched(&routes(&["/api"]), "/api/x"), None);
    }
}
