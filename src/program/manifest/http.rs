//! What types can't say of `[http]`.

use http::{HeaderName, Method};

use super::{Check, CorsKeys, HttpKeys, Step};

/// The longest time that a key can name, in seconds: a year is as good as for ever.
const LONGEST: f64 = 31_536_000.0;

impl Check<'_> {
    pub(super) fn http(&mut self, keys: &HttpKeys) {
        self.seconds(&[Step::Key("http"), Step::Key("timeout")], keys.timeout);
        if let Some(rate) = &keys.rate_limit {
            let at = [Step::Key("http"), Step::Key("rate_limit"), Step::Key("seconds")];
            self.seconds(&at, Some(rate.seconds));
        }
        if let Some(cors) = &keys.cors {
            self.cors(cors);
        }
    }

    fn seconds(&mut self, at: &[Step<'_>], value: Option<f64>) {
        if value.is_some_and(|seconds| !(seconds > 0.0 && seconds <= LONGEST)) {
            self.say(at, "must be more than 0 seconds, and at most a year", None);
        }
    }

    fn cors(&mut self, keys: &CorsKeys) {
        let at = |key, item| [Step::Key("http"), Step::Key("cors"), Step::Key(key), Step::Item(item)];
        for (place, origin) in keys.origins.iter().enumerate() {
            if origin != "*" && !is_origin(origin) {
                let hint = "scheme and host in lower case, with the port where it is not the usual one: \
                            \"https://shop.example\"";
                self.say(&at("origins", place), format!("{origin:?} is no origin"), Some(hint));
            }
            if origin == "*" && keys.credentials {
                let hint = "name the origins: browsers take no \"*\" with credentials (Fetch standard, CORS protocol)";
                self.say(
                    &at("origins", place),
                    "every origin can't be let in with credentials",
                    Some(hint),
                );
            }
            if origin == "*" && keys.origins.len() > 1 {
                self.say(
                    &at("origins", place),
                    "\"*\" is every origin, so no other can stand beside it",
                    None,
                );
            }
        }
        for (place, name) in keys.methods.iter().flatten().enumerate() {
            self.cors_star(&at("methods", place), name, keys.credentials);
            if Method::from_bytes(name.as_bytes()).is_err() || name.bytes().any(|byte| byte.is_ascii_lowercase()) {
                self.say(&at("methods", place), format!("{name:?} is no HTTP method"), None);
            }
        }
        for (key, names) in [("headers", keys.headers.as_deref()), ("expose", Some(&keys.expose[..]))] {
            for (place, name) in names.into_iter().flatten().enumerate() {
                self.cors_star(&at(key, place), name, keys.credentials);
                if name.parse::<HeaderName>().is_err() {
                    self.say(&at(key, place), format!("{name:?} is no header's name"), None);
                }
            }
        }
    }

    /// With credentials a star is a name like any other to browsers, and no method and no header is called so.
    fn cors_star(&mut self, at: &[Step<'_>], name: &str, credentials: bool) {
        if name == "*" && credentials {
            let hint = "name them; methods and headers are all where the key is left out";
            self.say(at, "\"*\" stands for nothing with credentials", Some(hint));
        }
    }
}

/// `https://shop.example:8443` as browsers write it (RFC 6454, 6.2), which is how it is compared.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let usual =
        matches!(scheme, "http" if host.ends_with(":80")) || matches!(scheme, "https" if host.ends_with(":443"));
    !usual
        && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@*".contains(&byte))
}
