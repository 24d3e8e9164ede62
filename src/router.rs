//! Chooses the component that an event goes to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;

use crate::engine::{Engine, Handling};
use crate::event::{Body, Event, Failure, FailureKind, Input, Reply};
use crate::program::Component;
use crate::program::route::{Fit, Route};
use crate::program::subscription::Subject;

/// What follows a component's name in the host that other components know it by.
pub const INTERNAL: &str = ".internal";

/// The components of a running program, by what they take.
pub struct Router {
    components: Vec<Running>,
    /// With the place of its component; the one that says most goes first.
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

/// What a request is given to.
enum Choice<'a> {
    Component(&'a Running),
    /// There is a component, but not for this method; with those that there are.
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

    /// Gives an event to the component whose route says most of it; a message to the one that takes messages.
    pub fn handle(&self, event: Event) -> Handling {
        let is_head = is_head(&event);
        let chosen = match &event.input {
            Input::Http(request) => match self.by_route(request) {
                Choice::Component(running) => Ok(running),
                Choice::Methods(methods) => Err(Ok(method_not_allowed(&methods))),
                Choice::None => Err(Err(Failure::new(
                    FailureKind::NotFound,
                    format!("no component has a route for {}", request.uri().path()),
                ))),
            },
            Input::Message(message) => self.for_message(&message.body).map_err(Err),
        };
        let handling = match chosen {
            Ok(running) => running.engine.handle(event),
            Err(reply) => Box::pin(std::future::ready(reply)),
        };
        if is_head { without_body(handling) } else { handling }
    }

    /// Gives a request that another component makes to the one that it names as `NAME.internal`, whatever its routes; one
    /// with another host goes where the routes lead.
    pub fn call(&self, event: Event) -> Handling {
        let Input::Http(request) = &event.input else {
            return self.handle(event);
        };
        let host = host_of(request).unwrap_or_default();
        let Some(name) = host.strip_suffix(INTERNAL) else {
            return self.handle(event);
        };
        match self
            .components
            .iter()
            .find(|running| running.component.name.eq_ignore_ascii_case(name))
        {
            Some(running) if is_head(&event) => without_body(running.engine.handle(event)),
            Some(running) => running.engine.handle(event),
            None => {
                let names: Vec<&str> = self
                    .components
                    .iter()
                    .map(|running| running.component.name.as_str())
                    .collect();
                let message = format!("there is no component {name:?}; there are: {}", names.join(", "));
                Box::pin(std::future::ready(Err(Failure::new(FailureKind::NotFound, message))))
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

    /// The component that says most of a message; of several, the first by name.
    fn for_message(&self, message: &str) -> Result<&Running, Failure> {
        if let [only] = &self.components[..] {
            return Ok(only);
        }
        // Most programs have one component for all of them, and no message need be read for that.
        let subject = if self.asks_of_messages {
            Subject::of(message)
        } else {
            Subject::default()
        };
        let wants = |running: &&Running| running.component.keys.messages.wants(&subject);
        let wanting = self.components.iter().rev().filter(|running| wants(running).is_some());
        wanting.max_by_key(wants).ok_or_else(|| {
            Failure::new(
                FailureKind::NotFound,
                "no component takes this message: give one `messages = true`",
            )
        })
    }
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

fn is_head(event: &Event) -> bool {
    matches!(&event.input, Input::Http(request) if request.method() == Method::HEAD)
}

/// The reply to HEAD: that to GET, without its body (RFC 9110, 9.3.2). Most programs give the body all the same, and over
/// HTTP/2 it would go out.
fn without_body(handling: Handling) -> Handling {
    Box::pin(async move {
        let response = match handling.await? {
            Reply::Http(response) => response,
            value @ Reply::Value(_) => return Ok(value),
        };
        let (mut head, body) = response.into_parts();
        if let Some(length @ 1..) = body.size_hint().exact() {
            head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
        }
        Ok(Reply::Http(Response::from_parts(head, Body::empty())))
    })
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
