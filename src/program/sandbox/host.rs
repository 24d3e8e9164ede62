//! One line of a component's list of hosts: which name or address, by which scheme, on which port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a guest may connect to: `[SCHEME://]NAME[:PORT]`, `self` or `aleph`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum HostRule {
    /// `self`: the other components of the program, by their routes.
    Program,
    /// `aleph`: the guest API of the machine's host.
    Aleph,
    /// `[SCHEME://]NAME[:PORT]`.
    Host {
        /// `None` for every scheme.
        scheme: Option<Scheme>,
        name: Name,
        port: Port,
    },
}

/// How a guest connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
    Tcp,
    Udp,
}

/// The host of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `*`: every host with a public address.
    Any,
    /// `*.example.org`: every name below it, but not itself.
    Below(String),
    /// `api.example.org`.
    Exact(String),
    Address(IpAddr),
}

/// The port of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// None named: 80 for http, 443 for https, and no other.
    Usual,
    /// `:*`.
    Any,
    One(u16),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostRuleError {
    #[error(
        "{0:?} names no host: write https://api.example.org, *.example.org, tcp://10.0.0.7:5432, self (the other \
         components) or aleph (the guest API)"
    )]
    NoHost(String),
    #[error("{text:?}: there is no scheme {scheme:?} here; there are http, https, tcp and udp")]
    Scheme { text: String, scheme: String },
    #[error("{text:?}: {port:?} is no port: a number from 1 to 65535, or * for all")]
    Port { text: String, port: String },
    #[error("{0:?} has a path; rules are for whole hosts: leave out what follows the name")]
    Path(String),
    #[error("{0:?}: a rule for sockets names its port, as in tcp://db.example.org:5432, or :* for all")]
    PortMissing(String),
}

impl Scheme {
    fn usual_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp | Self::Udp => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl HostRule {
    /// Whether it is for this host, as the guest names it, an address without brackets among them.
    pub fn names(&self, host: &str) -> bool {
        let Self::Host { name, .. } = self else {
            return false;
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        match name {
            Name::Any => true,
            Name::Below(parent) => host
                .get(..host.len().saturating_sub(parent.len()))
                .zip(host.get(host.len().saturating_sub(parent.len())..))
                .is_some_and(|(below, end)| {
                    end.eq_ignore_ascii_case(parent) && below.len() > 1 && below.ends_with('.')
                }),
            Name::Exact(name) => host.eq_ignore_ascii_case(name),
            Name::Address(address) => host.parse::<IpAddr>().is_ok_and(|host| host.to_canonical() == *address),
        }
    }

    /// Whether it is for this way to connect.
    pub fn permits(&self, wanted: Scheme, wanted_port: u16) -> bool {
        let Self::Host { scheme, port, .. } = self else {
            return false;
        };
        scheme.is_none_or(|scheme| scheme == wanted)
            && match port {
                Port::Any => true,
                Port::One(port) => *port == wanted_port,
                Port::Usual => wanted.usual_port() == Some(wanted_port),
            }
    }

    /// Whether it lets `name` lead to `address`: as a rule for the name, or as one for the address, whoever leads there.
    pub fn leads_from(&self, name: &str, address: IpAddr) -> bool {
        (self.is_address() || self.names(name)) && self.may_lead_to(address)
    }

    /// Whether it is for an address, and not for a name.
    pub fn is_address(&self) -> bool {
        matches!(
            self,
            Self::Host {
                name: Name::Address(_),
                ..
            }
        )
    }

    /// Whether a name of this rule may lead to `address`.
    ///
    /// Whoever owns a name decides on its addresses: one of this machine or its network would let a guest reach what
    /// only this machine should. So a rule that many names fit leads to public addresses alone, and one that is for a
    /// single name to private networks, too, but to this machine only where it is called `localhost`, and to the
    /// link's own addresses (where clouds keep credentials) never. A rule that is an address means just that.
    pub fn may_lead_to(&self, address: IpAddr) -> bool {
        let Self::Host { name, .. } = self else {
            return false;
        };
        match name {
            Name::Address(own) => *own == address.to_canonical(),
            Name::Any | Name::Below(_) => reach(address) == Reach::Public,
            Name::Exact(name) => match reach(address) {
                Reach::Public | Reach::Private => true,
                Reach::Machine => name == "localhost" || name.ends_with(".localhost"),
                Reach::Link => false,
            },
        }
    }
}

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Machine,
    Link,
    Private,
    Public,
}

/// By the special-purpose registries of RFC 6890.
fn reach(address: IpAddr) -> Reach {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            if v4.is_loopback() || a == 0 {
                Reach::Machine
            } else if v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || a >= 240 {
                Reach::Link
            } else if v4.is_private()
                || (a == 100 && b & 0xc0 == 64)
                || (a == 192 && b == 0 && matches!(c, 0 | 2))
                || (a == 198 && b & 0xfe == 18)
            {
                Reach::Private
            } else {
                Reach::Public
            }
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            if v6.is_loopback() || v6.is_unspecified() {
                Reach::Machine
            } else if v6.is_unicast_link_local() || v6.is_multicast() {
                Reach::Link
            } else if v6.is_unique_local() || first & 0xffc0 == 0xfec0 {
                Reach::Private
            } else if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = v6.segments() {
                // NAT64 (RFC 6052): an IPv4 address by another name.
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                reach(std::net::Ipv4Addr::new(a, b, c, d).into())
            } else {
                Reach::Public
            }
        }
    }
}

impl FromStr for HostRule {
    type Err = HostRuleError;

    fn from_str(text: &str) -> Result<Self, HostRuleError> {
        match text {
            "self" => return Ok(Self::Program),
            "aleph" => return Ok(Self::Aleph),
            _ => {}
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(parse_scheme(scheme, text)?), rest),
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(HostRuleError::Path(text.to_owned()));
        }
        let (host, port) = split_port(rest);
        let port = match port {
            None => Port::Usual,
            Some("*") => Port::Any,
            Some(port) => match port.parse() {
                Ok(number) if number > 0 => Port::One(number),
                _ => {
                    return Err(HostRuleError::Port {
                        text: text.to_owned(),
                        port: port.to_owned(),
                    });
                }
            },
        };
        if port == Port::Usual && matches!(scheme, Some(Scheme::Tcp | Scheme::Udp)) {
            return Err(HostRuleError::PortMissing(text.to_owned()));
        }
        let name = parse_name(host).ok_or_else(|| HostRuleError::NoHost(text.to_owned()))?;
        Ok(Self::Host { scheme, name, port })
    }
}

fn parse_scheme(scheme: &str, text: &str) -> Result<Scheme, HostRuleError> {
    [Scheme::Http, Scheme::Https, Scheme::Tcp, Scheme::Udp]
        .into_iter()
        .find(|known| known.as_str() == scheme)
        .ok_or_else(|| HostRuleError::Scheme {
            text: text.to_owned(),
            scheme: scheme.to_owned(),
        })
}

/// `[::1]:80`, `::1`, `name:80`, `name`.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((address, rest)) = rest.split_once(']')
    {
        return (address, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        // More than one colon without brackets: an IPv6 address and no port.
        Some((host, _)) if host.contains(':') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

fn parse_name(host: &str) -> Option<Name> {
    if host == "*" {
        return Some(Name::Any);
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Name::Address(address.to_canonical()));
    }
    let (name, below) = match host.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (host, false),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return None;
    }
    Some(if below { Name::Below(name) } else { Name::Exact(name) })
}

impl TryFrom<String> for HostRule {
    type Error = HostRuleError;

    fn try_from(text: String) -> Result<Self, HostRuleError> {
        text.parse()
    }
}

impl From<HostRule> for String {
    fn from(rule: HostRule) -> Self {
        rule.to_string()
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, name, port) = match self {
            Self::Program => return f.write_str("self"),
            Self::Aleph => return f.write_str("aleph"),
            Self::Host { scheme, name, port } => (scheme, name, port),
        };
        if let Some(scheme) = scheme {
            write!(f, "{}://", scheme.as_str())?;
        }
        match name {
            Name::Any => f.write_str("*")?,
            Name::Below(name) => write!(f, "*.{name}")?,
            Name::Exact(name) => f.write_str(name)?,
            Name::Address(address) if address.is_ipv6() => write!(f, "[{address}]")?,
            Name::Address(address) => write!(f, "{address}")?,
        }
        match port {
            Port::Usual => Ok(()),
            Port::Any => f.write_str(":*"),
            Port::One(port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> HostRule {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_is_for_its_scheme_name_and_port_alone() {
        let api = rule("https://api.example.org");
        assert!(api.names("API.example.org") && api.names("api.example.org."));
        assert!(!api.names("example.org") && !api.names("xapi.example.org") && !api.names("api.example.org.evil"));
        assert!(api.permits(Scheme::Https, 443));
        assert!(!api.permits(Scheme::Https, 8443) && !api.permits(Scheme::Http, 443) && !api.permits(Scheme::Tcp, 443));

        let below = rule("*.example.org");
        assert!(below.names("a.example.org") && below.names("a.b.example.org"));
        assert!(!below.names("example.org") && !below.names("badexample.org") && !below.names(".example.org"));
        assert!(!below.names("é.org") && !below.names(""));
        assert!(
            below.permits(Scheme::Http, 80) && below.permits(Scheme::Https, 443) && !below.permits(Scheme::Tcp, 80)
        );

        let database = rule("tcp://[fd00::1]:5432");
        assert!(database.names("fd00::1") && !database.names("fd00::2"));
        assert!(database.permits(Scheme::Tcp, 5432) && !database.permits(Scheme::Udp, 5432));
        assert!(rule("10.0.0.7:*").permits(Scheme::Udp, 9) && rule("10.0.0.7:*").names("::ffff:10.0.0.7"));
        assert!(!rule("self").names("self") && !rule("aleph").permits(Scheme::Http, 80));
    }

    #[test]
    fn names_lead_only_where_their_rule_lets_them() {
        let leads = |text: &str, address: &str| rule(text).may_lead_to(address.parse().unwrap());
        for text in ["*", "*.example.org", "api.example.org"] {
            // 192.0.78.9 is one of wordpress.com, next to what is special of 192.0.0.0/16.
            for public in ["93.184.215.14", "2606:2800::1", "192.0.78.9"] {
                assert!(leads(text, public), "{text} {public}");
            }
            for inside in [
                "127.0.0.1",
                "0.0.0.0",
                "::1",
                "::",
                "::ffff:127.0.0.1",
                "64:ff9b::7f00:1",
            ] {
                assert!(!leads(text, inside), "{text} {inside}");
            }
            for link in [
                "169.254.169.254",
                "fe80::1",
                "224.0.0.1",
                "ff02::1",
                "::ffff:169.254.169.254",
            ] {
                assert!(!leads(text, link), "{text} {link}");
            }
        }
        for private in [
            "10.0.0.7",
            "192.168.1.1",
            "172.16.0.1",
            "192.0.0.1",
            "100.64.0.1",
            "fd00::1",
        ] {
            assert!(leads("db.internal", private) && !leads("*.internal", private) && !leads("*", private));
        }
        let from = |text: &str, address: &str| rule(text).leads_from("db.internal", address.parse().unwrap());
        assert!(from("127.0.0.1", "127.0.0.1") && !from("127.0.0.1", "127.0.0.2"));
        assert!(from("*.internal", "9.9.9.9") && !from("*.internal", "10.0.0.7") && !from("db.example", "9.9.9.9"));
        assert!(leads("localhost", "127.0.0.1") && leads("a.localhost", "::1"));
        assert!(leads("169.254.169.254", "169.254.169.254") && leads("127.0.0.1", "::ffff:127.0.0.1"));
        assert!(!leads("127.0.0.1", "127.0.0.2"));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be_one() {
        for (text, expected) in [
            ("", "names no host"),
            ("https://", "names no host"),
            ("a b", "names no host"),
            ("*.*.org", "names no host"),
            ("user@host", "names no host"),
            ("ftp://host", "there is no scheme \"ftp\""),
            ("host:0", "is no port"),
            ("host:http", "is no port"),
            ("https://host/path", "has a path"),
            ("tcp://host", "names its port"),
        ] {
            let error = text.parse::<HostRule>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in [
            "self",
            "aleph",
            "https://api.example.org",
            "*.example.org:*",
            "tcp://[::1]:5432",
            "udp://*:53",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("http://Example.org/").to_string(), "http://example.org");
    }
}
