//! Routes: what a request must be like to reach a component. Between the manifest, which says them, and the router,
//! which asks them.

use std::cmp::Reverse;

use http::Method;
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::manifest::{RouteKeys, RouteTable};

/// What a request must be like: host, path and method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    host: Host,
    path: Path,
    /// None for any.
    methods: Option<Vec<Method>>,
}

/// In the order of how much they say: the derived `Ord` is what "the one that says most wins" means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Any,
    /// `*.example.com`, as `.example.com`.
    Below(String),
    Exact(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Path {
    /// `/api/*`, as `/api`: that, and everything below. Empty for every path.
    Below(String),
    Exact(String),
}

/// How much of a route a request fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Another host or another path.
    No,
    /// All but the method.
    OtherMethod,
    Whole,
}

/// What is wrong with a route, and with which part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct RouteError {
    /// The key of the table that is wrong; a route that is a string is its `path`.
    pub key: &'static str,
    pub problem: String,
}

impl Route {
    /// Takes every request.
    pub const fn any() -> Self {
        Self {
            host: Host::Any,
            path: Path::Below(String::new()),
            methods: None,
        }
    }

    /// The route that a manifest says.
    ///
    /// # Errors
    /// A sentence for the one who wrote it.
    pub fn new(keys: &RouteKeys) -> Result<Self, RouteError> {
        let table = match keys {
            RouteKeys::Path(path) => &RouteTable {
                path: Some(path.clone()),
                ..RouteTable::default()
            },
            RouteKeys::Table(table) => table,
        };
        let wrong = |key| move |problem| RouteError { key, problem };
        Ok(Self {
            host: table
                .host
                .as_deref()
                .map_or(Ok(Host::Any), host)
                .map_err(wrong("host"))?,
            path: path(table.path.as_deref().unwrap_or("/*")).map_err(wrong("path"))?,
            methods: table
                .methods
                .as_deref()
                .map(methods)
                .transpose()
                .map_err(wrong("methods"))?,
        })
    }

    /// Whether a request takes this route. `host` is the request's, without a port and in lower case; it is only asked
    /// of routes that [name one](Self::names_host).
    pub fn fits(&self, host: Option<&str>, path: &str, method: &Method) -> Fit {
        if !self.path.fits(path) || !self.host.fits(host) {
            return Fit::No;
        }
        match &self.methods {
            Some(methods) if !allows(methods, method) => Fit::OtherMethod,
            _ => Fit::Whole,
        }
    }

    pub fn names_host(&self) -> bool {
        self.host != Host::Any
    }

    /// The methods that it takes, where it does not take every one.
    pub fn methods(&self) -> Option<&[Method]> {
        self.methods.as_deref()
    }

    /// The path that requests of a `/static/*` have in common: `/static`. None for one that is exact.
    pub fn prefix(&self) -> Option<&str> {
        match &self.path {
            Path::Below(prefix) => Some(prefix),
            Path::Exact(_) => None,
        }
    }

    /// Sorts routes so that of those that fit a request, the first is the one that says most: by host, then by path,
    /// then by method.
    pub fn rank(&self) -> impl Ord + use<> {
        let host = match &self.host {
            Host::Any => (0, 0),
            Host::Below(suffix) => (1, suffix.len()),
            Host::Exact(_) => (2, 0),
        };
        let path = match &self.path {
            Path::Below(prefix) => (false, prefix.len()),
            Path::Exact(path) => (true, path.len()),
        };
        Reverse((host, path, self.methods.is_some()))
    }

    /// Whether some request would take both, and neither says more.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.host == other.host
            && self.path == other.path
            && match (&self.methods, &other.methods) {
                (None, None) => true,
                (Some(ours), Some(theirs)) => ours.iter().any(|method| theirs.contains(method)),
                _ => false,
            }
    }
}

/// GET is HEAD, too: whoever answers the one answers the other (RFC 9110, 9.3.2).
fn allows(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || method == Method::HEAD && methods.contains(&Method::GET)
}

impl Host {
    fn fits(&self, host: Option<&str>) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Exact(name), Some(host)) => name == host,
            (Self::Below(suffix), Some(host)) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            (_, None) => false,
        }
    }
}

impl Path {
    fn fits(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            // "/api/*" is "/api", too.
            Self::Below(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty()),
        }
    }
}

fn path(text: &str) -> Result<Path, String> {
    let plain = text.strip_suffix("/*");
    if !text.starts_with('/') {
        return Err(format!("the route {text:?} must begin with a slash: \"/{text}\""));
    }
    if plain.unwrap_or(text).contains('*') {
        return Err(format!(
            "the route {text:?} has a star that isn't at the end, behind a slash: \"/api/*\""
        ));
    }
    if let Some(bad) = text
        .chars()
        .find(|letter| "?# ".contains(*letter) || letter.is_control())
    {
        return Err(format!("the route {text:?} has a {bad:?}, which no request's path has"));
    }
    if !text.is_ascii() {
        return Err(format!(
            "the route {text:?} has letters that come encoded: {:?}",
            utf8_percent_encode(text, CONTROLS).to_string()
        ));
    }
    Ok(match plain {
        Some(prefix) => Path::Below(prefix.to_owned()),
        None => Path::Exact(text.to_owned()),
    })
}

fn host(text: &str) -> Result<Host, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let bracketed = name.starts_with('[') && name.ends_with(']');
    if name.contains(':') && !bracketed {
        return Err(format!(
            "the host {text:?} has a port, which is not compared: leave it out"
        ));
    }
    if !bracketed && !name.split('.').all(is_label) {
        return Err(format!(
            "{text:?} is no host name: \"shop.example\", or \"*.shop.example\" for all below it"
        ));
    }
    let name = name.to_ascii_lowercase();
    Ok(if text.starts_with("*.") {
        Host::Below(format!(".{name}"))
    } else {
        Host::Exact(name)
    })
}

fn methods(names: &[String]) -> Result<Vec<Method>, String> {
    if names.is_empty() {
        return Err("names no method, so nothing could take this route: leave it out for every method".to_owned());
    }
    names
        .iter()
        .map(|name| {
            let method = Method::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no HTTP method"))?;
            // Methods are case-sensitive (RFC 9110, 9.1), and "get" is never what is meant.
            if name.bytes().any(|byte| byte.is_ascii_lowercase()) {
                return Err(format!(
                    "{name:?} is not how a method is written: {:?}",
                    name.to_uppercase()
                ));
            }
            Ok(method)
        })
        .collect()
}

/// `GET,POST shop.example/api/*`
impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(methods) = &self.methods {
            let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
            write!(f, "{} ", names.join(","))?;
        }
        match &self.host {
            Host::Any => {}
            Host::Below(suffix) => write!(f, "*{suffix}")?,
            Host::Exact(name) => f.write_str(name)?,
        }
        match &self.path {
            Path::Below(prefix) => write!(f, "{prefix}/*"),
            Path::Exact(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str) -> Route {
        Route::new(&RouteKeys::Path(path.to_owned())).unwrap()
    }

    fn table(path: &str, host: Option<&str>, methods: &[&str]) -> Result<Route, RouteError> {
        Route::new(&RouteKeys::Table(RouteTable {
            path: Some(path.to_owned()),
            host: host.map(str::to_owned),
            methods: (!methods.is_empty()).then(|| methods.iter().map(|&method| method.to_owned()).collect()),
        }))
    }

    fn fits(route: &Route, host: &str, path: &str, method: Method) -> bool {
        route.fits(Some(host), path, &method) == Fit::Whole
    }

    #[test]
    fn what_says_more_goes_first() {
        let order = [
            table("/*", Some("a.example"), &[]).unwrap(),
            table("/api/*", Some("*.b.a.example"), &[]).unwrap(),
            table("/api/*", Some("*.a.example"), &[]).unwrap(),
            route("/api/x"),
            table("/api/x/*", None, &["GET"]).unwrap(),
            route("/api/x/*"),
            route("/api/*"),
            route("/*"),
        ];
        for pair in order.windows(2) {
            assert!(pair[0].rank() < pair[1].rank(), "{} before {}", pair[0], pair[1]);
        }
        assert_eq!(route("/*"), Route::any());
    }

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        for (pattern, path, expected) in [
            ("/api/*", "/api/x", true),
            ("/api/*", "/api", true),
            ("/api/*", "/apix", false),
            ("/api", "/api/x", false),
            ("/api", "/api", true),
            ("/*", "/", true),
            ("/*", "*", true),
        ] {
            assert_eq!(
                fits(&route(pattern), "h", path, Method::GET),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn hosts_and_methods() {
        let below = table("/*", Some("*.Shop.example"), &["GET", "POST"]).unwrap();
        assert!(fits(&below, "a.shop.example", "/", Method::GET));
        assert!(fits(&below, "a.shop.example", "/", Method::HEAD));
        assert!(!fits(&below, "shop.example", "/", Method::GET));
        assert!(!fits(&below, ".shop.example", "/", Method::GET));
        assert_eq!(below.fits(Some("a.shop.example"), "/", &Method::PUT), Fit::OtherMethod);
        assert_eq!(below.fits(None, "/", &Method::GET), Fit::No);
        assert_eq!(below.to_string(), "GET,POST *.shop.example/*");
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (mistake, expected) in [
            (table("api", None, &[]), "\"/api\""),
            (table("/a*b", None, &[]), "star"),
            (table("/a?b", None, &[]), "'?'"),
            (table("/caf\u{e9}/*", None, &[]), "\"/caf%C3%A9/*\""),
            (table("/", Some("a:80"), &[]), "port"),
            (table("/", Some("a b"), &[]), "no host name"),
            (table("/", Some("*"), &[]), "no host name"),
            (table("/", None, &["get"]), "\"GET\""),
            (table("/", None, &["G T"]), "no HTTP method"),
        ] {
            let problem = mistake.unwrap_err().problem;
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn routes_conflict_where_neither_says_more() {
        let get = table("/a", None, &["GET"]).unwrap();
        assert!(route("/a").conflicts(&route("/a")));
        assert!(!route("/a").conflicts(&get));
        assert!(get.conflicts(&table("/a", None, &["POST", "GET"]).unwrap()));
        assert!(!get.conflicts(&table("/a", Some("h"), &["GET"]).unwrap()));
    }
}
