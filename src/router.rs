//! Chooses the component that an event goes to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use crate::engine::{Engine, Handling};
use crate::event::{Body, Event, Failure, FailureKind, Input, Reply, shown};
use crate::program::Component;
use crate::program::route::{Fit, Route};
use crate::program::subscription::Subject;

/// What follows a component's name in the host that other components know it by.
pub const INTERNAL: &str = ".internal";

/// The components of a running program, by what they take.
pub struct Router {
    components: Vec<Running>,
    /// With the place of its component; the most specific one first.
    routes: Vec<(Route, usize)>,
    names_hosts: bool,
    asks_of_messages: bool,
}

/// A component with what runs it.
#[derive(Clone)]
pub struct Running {
    pub component: Component,
    pub engine: Arc<dyn Engine>,
}

/// `NAME: why, what was found in it → engine`, for the line that tells the user.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Component { name, why, engine, .. } = &self.component;
        write!(f, "{name}: {why}")?;
        let found = self.engine.describe();
        if !found.is_empty() {
            write!(f, ", {found}")?;
        }
        write!(f, " → {engine}")
    }
}

/// What a request is given to.
enum Choice<'a> {
    Component(&'a Running),
    /// The path has routes, but none for this method; with the methods that there are.
    Methods(Vec<&'a Method>),
    None,
}

impl Router {
    pub fn new(components: Vec<Running>) -> Self {
        let routes = routes_of(components.iter().map(|running| &running.component));
        Self {
            names_hosts: routes.iter().any(|(route, _)| route.names_host()),
            asks_of_messages: components.iter().any(|running| running.component.keys.messages.asks()),
            routes,
            components,
        }
    }

    /// The components and what runs them.
    pub fn components(&self) -> &[Running] {
        &self.components
    }

    /// Gives an event to the component with the most specific route or subscription for it.
    pub fn handle(&self, event: Event) -> Handling {
        match &event.input {
            Input::Http(request) if request.method() == Method::CONNECT => tunnel(),
            Input::Http(request) => match self.by_route(request) {
                Choice::Component(running) => running.engine.handle(event),
                Choice::Methods(methods) => answered(Ok(method_not_allowed(&methods))),
                Choice::None => not_found(format!("no component has a route for {}", shown(request.uri().path()))),
            },
            Input::Message(message) => match self.for_message(&message.body) {
                Some(running) => running.engine.handle(event),
                None => not_found("no component takes this message: give one `messages = true`".to_owned()),
            },
        }
    }

    /// Gives a request that another component makes to the one that it names as `NAME.internal`, whatever its routes; one
    /// with another host goes where the routes lead.
    pub fn call(&self, event: Event) -> Handling {
        let Input::Http(request) = &event.input else {
            return self.handle(event);
        };
        let host = host_of(request).unwrap_or_default();
        let name = host.strip_suffix(INTERNAL);
        let Some(name) = name.filter(|_| request.method() != Method::CONNECT) else {
            return self.handle(event);
        };
        let names = || self.components.iter().map(|running| running.component.name.as_str());
        match names().position(|known| known.eq_ignore_ascii_case(name)) {
            Some(place) => self.components[place].engine.handle(event),
            None => {
                let names: Vec<&str> = names().collect();
                not_found(format!(
                    "there is no component {name:?}; there are: {}",
                    names.join(", ")
                ))
            }
        }
    }

    /// Ends every component, all at once, within `grace`.
    pub async fn stop(&self, grace: Duration) {
        join_all(self.components.iter().map(|running| running.engine.stop(grace))).await;
    }

    fn by_route(&self, request: &Request<Body>) -> Choice<'_> {
        let host = self.names_hosts.then(|| host_of(request)).flatten();
        let path = request.uri().path();
        let mut methods = Vec::new();
        for (route, component) in &self.routes {
            match route.fits(host.as_deref(), path, request.method()) {
                Fit::Whole => return Choice::Component(&self.components[*component]),
                Fit::OtherMethod => methods.extend(route.methods().into_iter().flatten()),
                Fit::No => {}
            }
        }
        if methods.is_empty() {
            Choice::None
        } else {
            Choice::Methods(methods)
        }
    }

    /// The component whose subscription fits a message best; of equals, the first by name.
    fn for_message(&self, message: &str) -> Option<&Running> {
        if let [only] = &self.components[..] {
            return Some(only);
        }
        // Most programs have one component for all messages, which need not be read to find it.
        let subject = if self.asks_of_messages {
            Subject::of(message)
        } else {
            Subject::default()
        };
        let wants = |running: &&Running| running.component.keys.messages.wants(&subject);
        let wanting = self.components.iter().rev().filter(|running| wants(running).is_some());
        wanting.max_by_key(wants)
    }
}

/// What needs no program to be answered.
fn answered(answer: Result<Reply, Failure>) -> Handling {
    Box::pin(std::future::ready(answer))
}

/// What CONNECT asks for (RFC 9110, section 9.3.6): every 2xx of a program's would seem to open it.
fn tunnel() -> Handling {
    let message = "CONNECT asks for a tunnel, which programs don't offer";
    answered(Err(Failure::new(FailureKind::BadEvent, message)))
}

fn not_found(message: String) -> Handling {
    answered(Err(Failure::new(FailureKind::NotFound, message)))
}

/// The routes of these components in the order in which they are tried, each with its component's place.
pub fn routes_of<'a>(components: impl ExactSizeIterator<Item = &'a Component>) -> Vec<(Route, usize)> {
    let alone = components.len() == 1;
    let of = |(place, component): (usize, &Component)| {
        let routes = component.routes_taken(alone);
        routes.into_iter().map(move |route| (route, place)).collect::<Vec<_>>()
    };
    let mut routes: Vec<_> = components.enumerate().flat_map(of).collect();
    routes.sort_by_cached_key(|(route, _)| route.rank());
    routes
}

/// The host that a request names, in lower case and without its port: in its target (HTTP/2, proxies), or in its header.
fn host_of(request: &Request<Body>) -> Option<String> {
    let authority = match request.uri().host() {
        Some(host) => host,
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    Some(authority[..end].to_ascii_lowercase())
}

/// RFC 9110, 15.5.6: with `Allow`.
fn method_not_allowed(methods: &[&Method]) -> Reply {
    let mut names: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.sort_unstable();
    names.dedup();
    let names = names.join(", ");
    let problem = serde_json::json!({
        "title": "Method Not Allowed",
        "status": 405,
        "detail": format!("this path takes {names}"),
    });
    let mut response = Response::new(Body::from(format!("{problem:#}\n")));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    // Method names are tokens (RFC 9110, 5.6.2), which a header's value may always hold.
    headers.extend(HeaderValue::try_from(names).ok().map(|names| (ALLOW, names)));
    Reply::Http(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Working;
    use crate::program::manifest::RouteKeys;
    use crate::program::{EngineKind, Entrypoint};

    /// Answers with its name.
    struct Named(&'static str);

    impl Engine for Named {
        fn handle(&self, _: Event) -> Handling {
            Box::pin(std::future::ready(Ok(Reply::Value(self.0.into()))))
        }

        fn stop(&self, _: Duration) -> Working {
            Box::pin(std::future::ready(()))
        }

        fn describe(&self) -> String {
            String::new()
        }
    }

    fn router(components: &[(&'static str, &str)]) -> Router {
        Router::new(
            components
                .iter()
                .map(|&(name, routes)| {
                    let entrypoint = Entrypoint::File("x".into());
                    let mut component = Component::new(name, ".", EngineKind::Wasm, entrypoint);
                    let keys: Vec<RouteKeys> = serde_json::from_str(routes).unwrap();
                    component.routes = Some(keys.iter().map(|keys| Route::new(keys).unwrap()).collect());
                    Running {
                        component,
                        engine: Arc::new(Named(name)),
                    }
                })
                .collect(),
        )
    }

    async fn ask(router: &Router, method: &str, target: &str, host: &str) -> String {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = target.parse().unwrap();
        request.headers_mut().insert(HOST, host.parse().unwrap());
        match router.handle(Event::http(request)).await {
            Ok(Reply::Value(name)) => String::from_utf8(name.to_vec()).unwrap(),
            Ok(Reply::Http(response)) => {
                let allow = response.headers()[ALLOW].to_str().unwrap();
                format!("{} {allow}", response.status().as_u16())
            }
            Err(failure) => failure.kind.status().as_u16().to_string(),
        }
    }

    #[tokio::test]
    async fn the_route_that_says_most_wins() {
        let router = router(&[
            ("rest", r#"["/*"]"#),
            ("api", r#"["/api/*"]"#),
            (
                "post",
                r#"[{"path": "/api/*", "methods": ["POST"]}, {"path": "/only", "methods": ["GET"]}]"#,
            ),
            ("exact", r#"["/api/x"]"#),
            ("admin", r#"[{"host": "admin.example"}]"#),
        ]);
        for (method, target, host, expected) in [
            ("GET", "/", "h", "rest"),
            ("GET", "/api/y", "h", "api"),
            ("POST", "/api/y", "h", "post"),
            ("POST", "/api/x", "h", "exact"),
            ("GET", "/api/x", "ADMIN.example:80", "admin"),
            ("GET", "http://admin.example/api/x", "h", "admin"),
            ("PUT", "/only", "h", "rest"),
        ] {
            assert_eq!(
                ask(&router, method, target, host).await,
                expected,
                "{method} {host} {target}"
            );
        }
    }

    #[tokio::test]
    async fn a_method_that_no_route_takes_is_told_those_that_are() {
        let router = router(&[
            ("read", r#"[{"path": "/a", "methods": ["GET"]}]"#),
            ("write", r#"[{"path": "/a", "methods": ["POST", "DELETE"]}]"#),
        ]);
        assert_eq!(ask(&router, "HEAD", "/a", "h").await, "read");
        assert_eq!(ask(&router, "PUT", "/a", "h").await, "405 DELETE, GET, HEAD, POST");
        assert_eq!(ask(&router, "PUT", "/b", "h").await, "404");
    }

    #[tokio::test]
    async fn tunnels_are_refused() {
        let router = router(&[("all", r#"["/*"]"#)]);
        for give in [Router::handle, Router::call] {
            for host in ["example.org:443", "all.internal:80"] {
                let request = Request::connect(host).header(HOST, host).body(Body::empty()).unwrap();
                let Err(failure) = give(&router, Event::http(request)).await else {
                    panic!("a tunnel to {host}");
                };
                assert_eq!(failure.kind, FailureKind::BadEvent);
            }
        }
    }

    #[test]
    fn a_host_is_compared_without_its_port() {
        let host = |value: &str| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().insert(HOST, value.parse().unwrap());
            host_of(&request)
        };
        assert_eq!(host("A.example:8080").as_deref(), Some("a.example"));
        assert_eq!(host("[::1]:80").as_deref(), Some("[::1]"));
        assert_eq!(host_of(&Request::new(Body::empty())), None);
    }
}
