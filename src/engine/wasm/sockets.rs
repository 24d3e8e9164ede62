//! Sockets of guests, by the program's list of hosts: names are looked up where a rule names them, and connections go to
//! addresses that a rule names, or that such a look-up gave for it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::{Accessor, HasData, Linker, Resource};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as p2;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, SocketError};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as p3;
use wasmtime_wasi::p3::bindings::sockets::types as p3_types;
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtxView, WasiSocketsView as _};

use super::host::ComponentHost;
use super::log::Log;
use super::outgoing::connect;
use crate::program::sandbox::{HostRule, Scheme};

/// No name is longer, in bytes: 253 characters (RFC 1035, section 2.3.4) of whatever script.
const NAME_LIMIT: usize = 4 * 253;
/// Characters of what is no name that are told.
const NAME_SHOWN: usize = 80;
/// Addresses that one instance is known to have looked up.
const KNOWN: usize = 1024;

/// What one instance may connect to. Clones are of the same.
#[derive(Clone)]
pub(super) struct Sockets(Arc<Inner>);

struct Inner {
    component: Arc<str>,
    rules: Arc<[HostRule]>,
    log: Log,
    /// The rules that lead to an address, by their place in `rules`.
    known: Mutex<HashMap<IpAddr, Vec<usize>>>,
    /// Names that are being looked up, by the stream of their addresses.
    streams: Mutex<HashMap<u32, Vec<usize>>>,
}

impl Sockets {
    pub(super) fn new(component: Arc<str>, rules: Arc<[HostRule]>, log: Log) -> Self {
        Self(Arc::new(Inner {
            component,
            rules,
            log,
            known: Mutex::default(),
            streams: Mutex::default(),
        }))
    }

    /// Grants sockets to a guest, as far as the rules go.
    pub(super) fn grant(&self, wasi: &mut WasiCtxBuilder) {
        let this = self.clone();
        wasi.allow_tcp(true)
            .allow_udp(true)
            .allow_ip_name_lookup(true)
            .socket_addr_check(move |address, usage| {
                let allowed = this.allows(address, usage);
                Box::pin(std::future::ready(allowed))
            });
    }

    fn allows(&self, address: SocketAddr, usage: SocketAddrUse) -> bool {
        let scheme = match usage {
            SocketAddrUse::TcpConnect => Scheme::Tcp,
            SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => Scheme::Udp,
            // What connecting does of itself; a port of the guest's choice would be one to listen on.
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                return address.ip().to_canonical().is_unspecified() && address.port() == 0;
            }
            SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => {
                self.refuse(
                    "listen",
                    "guests have no sockets of their own to listen on; they are given requests",
                );
                return false;
            }
        };
        let ip = address.ip().to_canonical();
        let text = ip.to_string();
        let known = self.0.known.lock();
        let looked_up = known.get(&ip).map_or(&[][..], Vec::as_slice);
        let allowed = self.0.rules.iter().enumerate().any(|(at, rule)| {
            rule.permits(scheme, address.port())
                && rule.may_lead_to(ip)
                && (rule.names(&text) || looked_up.contains(&at))
        });
        drop(known);
        if !allowed && !matches!(usage, SocketAddrUse::UdpReceive) {
            self.refuse_host(
                &format!("connect to {address}"),
                &format!("{}://{address}", scheme.as_str()),
            );
        }
        allowed
    }

    /// The rules that `name` may be looked up for.
    fn rules_for(&self, name: &str) -> Option<Vec<usize>> {
        // What is no name could be as long as the guest's memory, and look like lines of the log.
        if name.len() > NAME_LIMIT || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
            let shown: String = name.chars().take(NAME_SHOWN).collect();
            self.refuse(&format!("look up {shown:?}"), "it is no name of a host");
            return None;
        }
        let rules: Vec<usize> = (0..self.0.rules.len())
            .filter(|at| self.0.rules[*at].names(name))
            .collect();
        if rules.is_empty() {
            let host = match name.parse() {
                Ok(IpAddr::V6(address)) => format!("[{address}]"),
                _ => name.to_owned(),
            };
            self.refuse_host(&format!("look up {name:?}"), &format!("tcp://{host}:PORT"));
            return None;
        }
        Some(rules)
    }

    /// Whether a look-up may give `address` for a name of these rules; then it may be connected to.
    fn learn(&self, address: IpAddr, rules: &[usize]) -> bool {
        let leading: Vec<usize> = rules
            .iter()
            .copied()
            .filter(|at| self.0.rules[*at].may_lead_to(address))
            .collect();
        if leading.is_empty() {
            let text = address.to_string();
            return self.0.rules.iter().any(|rule| rule.is_address() && rule.names(&text));
        }
        let mut known = self.0.known.lock();
        if known.len() >= KNOWN && !known.contains_key(&address) {
            known.clear();
        }
        let entry = known.entry(address).or_default();
        for at in leading {
            if !entry.contains(&at) {
                entry.push(at);
            }
        }
        true
    }

    fn refuse_host(&self, what: &str, line: &str) {
        let component = &self.0.component;
        self.0.log.refuse(&format!(
            "refused to {what}: {component} is not granted that host; to allow it: hosts = [{line:?}] in \
             [components.{component}.wasm] of polyinit.toml, or --allow-host {line}"
        ));
    }

    fn refuse(&self, what: &str, why: &str) {
        self.0.log.refuse(&format!("refused to {what}: {why}"));
    }
}

/// Puts our look-up of names in the place of Wasmtime's, which knows of no rules.
pub(super) fn add_to_linker(linker: &mut Linker<ComponentHost>, service: bool) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p2::add_to_linker::<ComponentHost, Lookups>(linker, lookup)?;
    if service {
        p3::add_to_linker::<ComponentHost, Lookups>(linker, lookup)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

struct Lookups;

impl HasData for Lookups {
    type Data<'a> = Lookup<'a>;
}

struct Lookup<'a> {
    sockets: Option<Sockets>,
    wasi: WasiSocketsCtxView<'a>,
}

fn lookup(host: &mut ComponentHost) -> Lookup<'_> {
    Lookup {
        sockets: host.sockets.clone(),
        wasi: host.sockets(),
    }
}

impl network::Host for Lookup<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        network::Host::convert_error_code(&mut self.wasi, error)
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        network::Host::network_error_code(&mut self.wasi, error)
    }
}

impl network::HostNetwork for Lookup<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.wasi, network)
    }
}

impl Lookup<'_> {
    fn granted(&self, name: &str) -> Option<(Sockets, Vec<usize>)> {
        let sockets = self.sockets.clone()?;
        let rules = sockets.rules_for(name)?;
        Some((sockets, rules))
    }
}

impl p2::Host for Lookup<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<p2::ResolveAddressStream>, SocketError> {
        let (sockets, rules) = self.granted(&name).ok_or(ErrorCode::AccessDenied)?;
        let stream = self.wasi.resolve_addresses(network, name)?;
        sockets.0.streams.lock().insert(stream.rep(), rules);
        Ok(stream)
    }
}

impl p2::HostResolveAddressStream for Lookup<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<p2::ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        let Some(sockets) = self.sockets.clone() else {
            return Err(ErrorCode::AccessDenied.into());
        };
        let rules = sockets.0.streams.lock().get(&stream.rep()).cloned().unwrap_or_default();
        loop {
            let Some(address) = self.wasi.resolve_next_address(Resource::new_borrow(stream.rep()))? else {
                return Ok(None);
            };
            if sockets.learn(std_address(address).to_canonical(), &rules) {
                return Ok(Some(address));
            }
        }
    }

    fn subscribe(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        self.wasi.subscribe(stream)
    }

    fn drop(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<()> {
        if let Some(sockets) = &self.sockets {
            sockets.0.streams.lock().remove(&stream.rep());
        }
        p2::HostResolveAddressStream::drop(&mut self.wasi, stream)
    }
}

fn std_address(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => IpAddr::from([a, b, c, d]),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => IpAddr::from([a, b, c, d, e, f, g, h]),
    }
}

impl p3::Host for Lookup<'_> {}

impl<T> p3::HostWithStore<T> for Lookups {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<p3_types::IpAddress>, p3::ErrorCode>> {
        let Some((sockets, rules)) = store.with(|mut store| store.get().granted(&name)) else {
            return Ok(Err(p3::ErrorCode::AccessDenied));
        };
        let Ok(addresses) = connect::resolve(&name).await else {
            return Ok(Err(p3::ErrorCode::NameUnresolvable));
        };
        let addresses = addresses
            .into_iter()
            .map(|address| address.to_canonical())
            .filter(|address| sockets.learn(*address, &rules));
        Ok(Ok(addresses.map(Into::into).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn sockets(rules: &[&str]) -> Sockets {
        let component: Arc<str> = "test".into();
        let log = Log::new(&component, EventId::NONE, "stderr");
        Sockets::new(component, rules.iter().map(|rule| rule.parse().unwrap()).collect(), log)
    }

    fn connects(sockets: &Sockets, address: &str) -> bool {
        sockets.allows(address.parse().unwrap(), SocketAddrUse::TcpConnect)
    }

    #[test]
    fn addresses_of_allowed_names_alone_are_connected_to() {
        let sockets = sockets(&[
            "tcp://db.example.org:5432",
            "tcp://10.0.0.7:6379",
            "tcp://127.0.0.9:6379",
        ]);
        assert!(connects(&sockets, "10.0.0.7:6379") && !connects(&sockets, "10.0.0.7:6380"));
        assert!(!connects(&sockets, "93.184.215.14:5432"));
        let rules = sockets.rules_for("db.example.org").unwrap();
        assert!(sockets.learn("93.184.215.14".parse().unwrap(), &rules));
        assert!(!sockets.learn("127.0.0.1".parse().unwrap(), &rules));
        assert!(sockets.learn("127.0.0.9".parse().unwrap(), &rules) && !connects(&sockets, "127.0.0.9:5432"));
        assert!(connects(&sockets, "93.184.215.14:5432") && !connects(&sockets, "93.184.215.14:6379"));
        assert!(!connects(&sockets, "127.0.0.1:5432"));
        assert!(sockets.rules_for("other.example.org").is_none() && sockets.rules_for("fd00::1").is_none());
        let told = sockets.0.log.tail();
        assert!(told.contains("hosts = [\"tcp://other.example.org:PORT\"]"), "{told}");
        assert!(told.contains("--allow-host tcp://10.0.0.7:6380"), "{told}");
        assert!(told.contains("--allow-host tcp://[fd00::1]:PORT"), "{told}");
    }

    #[test]
    fn an_address_of_two_rules_is_connected_to_by_both() {
        let sockets = sockets(&["tcp://db.example.org:5432", "udp://10.0.0.7:53"]);
        let rules = sockets.rules_for("db.example.org").unwrap();
        assert!(sockets.learn("10.0.0.7".parse().unwrap(), &rules));
        assert!(connects(&sockets, "10.0.0.7:5432") && !connects(&sockets, "10.0.0.7:53"));
        // As far as the other goes.
        assert!(sockets.allows("10.0.0.7:53".parse().unwrap(), SocketAddrUse::UdpSend));
    }

    #[test]
    fn what_is_no_name_is_not_looked_up_and_tells_no_lines_of_its_own() {
        let sockets = sockets(&["*:*"]);
        for name in ["db\nERROR another: forged", &"x".repeat(1 << 20), "a b"] {
            assert!(sockets.rules_for(name).is_none());
            let told = sockets.0.log.tail();
            let line = told.lines().last().unwrap();
            assert!(line.starts_with("refused to look up \"") && line.len() < 200, "{line}");
        }
        assert!(sockets.rules_for("bücher.example.org.").is_some() && sockets.rules_for("::1").is_some());
    }

    #[test]
    fn guests_listen_nowhere() {
        let sockets = sockets(&["*:*"]);
        assert!(!sockets.allows("0.0.0.0:80".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(!sockets.allows("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpListen));
        assert!(sockets.allows("[::]:0".parse().unwrap(), SocketAddrUse::UdpBind));
    }
}
