//! The machine's network: `lo` at boot, the first Ethernet device when the configuration comes, and the files that the
//! C library reads names from. Speaks rtnetlink(7).
//!
//! [`Plan::new`] checks what was asked for without touching anything; [`apply`] tells the kernel.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroI32;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

/// What the machine is to be called on its network, as text from outside. Empty texts count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addressing {
    /// With or without prefix length; without: 24.
    pub ipv4: Option<String>,
    pub ipv4_gateway: Option<String>,
    /// With or without prefix length; without: 64.
    pub ipv6: Option<String>,
    pub ipv6_gateway: Option<String>,
    /// IPv4 and IPv6 addresses of name servers.
    pub dns_servers: Vec<String>,
    /// The largest packet, in bytes; what the device has without.
    pub mtu: Option<u32>,
}

/// Why the machine has no network, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the {field} `{value}` is not valid: {expected} is expected")]
    Field {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("an address was given, but the machine has no Ethernet device")]
    NoDevice,
    #[error("talking to the kernel about the network failed: {0}")]
    Socket(io::Error),
    #[error("{act} failed: {errno}")]
    Refused { act: String, errno: Errno },
    #[error("{act} failed: {cause}")]
    Protocol { act: String, cause: rtnetlink::Error },
    #[error("writing {path} failed: {source}")]
    File { path: String, source: io::Error },
}

/// An address with the length of its prefix, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interface<A> {
    address: A,
    length: u8,
}

/// Valid addressing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    ipv4: Option<Interface<Ipv4Addr>>,
    ipv4_gateway: Option<Ipv4Addr>,
    ipv6: Option<Interface<Ipv6Addr>>,
    ipv6_gateway: Option<Ipv6Addr>,
    dns_servers: Vec<IpAddr>,
    mtu: Option<u32>,
}

const IPV4_LENGTH: u8 = 24;
const IPV6_LENGTH: u8 = 64;

impl Plan {
    /// Checks `addressing`.
    ///
    /// # Errors
    /// With the first field that is not what it should be.
    pub fn new(addressing: &Addressing) -> Result<Self, NetworkError> {
        let interface4 = "an address such as 172.16.0.2/24";
        let interface6 = "an address such as fd00::2/64";
        Ok(Self {
            ipv4: parse(&addressing.ipv4, "IPv4 address (ip)", interface4, |text| {
                interface(text, IPV4_LENGTH, 32).filter(|one: &Interface<Ipv4Addr>| is_host4(one.address))
            })?,
            ipv4_gateway: parse(
                &addressing.ipv4_gateway,
                "IPv4 gateway (route)",
                "an address such as 172.16.0.1",
                |text| text.parse().ok().filter(|address| is_host4(*address)),
            )?,
            ipv6: parse(&addressing.ipv6, "IPv6 address (ipv6)", interface6, |text| {
                interface(text, IPV6_LENGTH, 128).filter(|one: &Interface<Ipv6Addr>| is_host6(one.address))
            })?,
            ipv6_gateway: parse(
                &addressing.ipv6_gateway,
                "IPv6 gateway (ipv6_gateway)",
                "an address such as fd00::1",
                |text| text.parse().ok().filter(|address| is_host6(*address)),
            )?,
            dns_servers: addressing
                .dns_servers
                .iter()
                .map(|server| {
                    server.parse().map_err(|_| NetworkError::Field {
                        field: "DNS server (dns_servers)",
                        value: shortened(server),
                        expected: "an IPv4 or IPv6 address",
                    })
                })
                .collect::<Result<_, _>>()?,
            mtu: addressing.mtu,
        })
    }

    fn needs_device(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }
}

fn parse<T>(
    text: &Option<String>,
    field: &'static str,
    expected: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, NetworkError> {
    let Some(text) = text.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    read(text).map(Some).ok_or_else(|| NetworkError::Field {
        field,
        value: shortened(text),
        expected,
    })
}

/// Enough of a wrong value to know it by.
fn shortened(value: &str) -> String {
    value.chars().take(60).collect()
}

fn interface<A: std::str::FromStr>(text: &str, default_length: u8, longest: u8) -> Option<Interface<A>> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, length.parse().ok()?),
        None => (text, default_length),
    };
    let valid = (1..=longest).contains(&length);
    let address = address.parse().ok().filter(|_| valid)?;
    Some(Interface { address, length })
}

fn is_host4(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast() && !address.is_loopback()
}

fn is_host6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

impl Interface<Ipv4Addr> {
    fn holds(&self, other: Ipv4Addr) -> bool {
        (self.address.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.length)
    }
}

impl Interface<Ipv6Addr> {
    fn holds(&self, other: Ipv6Addr) -> bool {
        (self.address.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.length)
    }
}

nix::ioctl_read_bad!(interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Brings up `lo`. The kernel gives it 127.0.0.1 and ::1 by itself.
///
/// By ioctl (netdevice(7)): that is three system calls, and this is on the way to the ready signal.
///
/// # Errors
/// When the kernel refuses, for want of rights.
#[allow(unsafe_code, reason = "ioctl(2)")]
pub fn loopback_up() -> Result<(), NetworkError> {
    let refused = |errno| NetworkError::Refused {
        act: "bringing up lo".to_owned(),
        errno,
    };
    let any_socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(refused)?;
    // SAFETY: all zeroes is a valid ifreq, a plain C structure: no name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    // SAFETY: the kernel writes the flags into `request`, which has room for whatever SIOCGIFFLAGS gives.
    unsafe { interface_flags(any_socket.as_raw_fd(), &raw mut request) }.map_err(refused)?;
    // SAFETY: SIOCGIFFLAGS has just made the flags the union's valid field.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the kernel only reads `request`.
    unsafe { set_interface_flags(any_socket.as_raw_fd(), &raw const request) }.map_err(refused)?;
    Ok(())
}

/// Gives the Ethernet device its addresses and default routes, as `plan` has them. Does nothing for a plan without
/// addresses. What is set already stays.
///
/// IPv6 addresses can be used at once: nobody else on the machine's own link could have one, so there is no detection
/// of duplicates (RFC 4862, section 5.4) to wait for.
///
/// # Errors
/// When there is no device, or the kernel refuses. A kernel without IPv6 is no reason: the log tells.
pub async fn apply(plan: &Plan) -> Result<(), NetworkError> {
    if !plan.needs_device() {
        return Ok(());
    }
    let kernel = Kernel::connect()?;
    let device = kernel.ethernet_device().await?.ok_or(NetworkError::NoDevice)?;
    skip_duplicate_detection(&device.name);
    if let Some(mtu) = plan.mtu {
        let change = LinkUnspec::new_with_index(device.index).mtu(mtu).build();
        let act = format!("setting the MTU of {} to {mtu}", device.name);
        kernel.change_link(&act, change).await?;
    }
    let up = LinkUnspec::new_with_index(device.index).up().build();
    kernel.change_link(&format!("bringing up {}", device.name), up).await?;

    if let Some(ipv4) = plan.ipv4 {
        kernel.add_address(&device, ipv4.address.into(), ipv4.length).await?;
        if let Some(gateway) = plan.ipv4_gateway {
            kernel
                .add_default_route(&device, gateway.into(), !ipv4.holds(gateway))
                .await?;
        }
    }
    if let Some(ipv6) = plan.ipv6 {
        match kernel.add_address(&device, ipv6.address.into(), ipv6.length).await {
            Err(NetworkError::Refused { errno, .. }) if says_no_ipv6(errno) => {
                tracing::warn!(
                    "this kernel has no IPv6, or has it turned off ({errno}): {} is not used",
                    ipv6.address
                );
                return Ok(());
            }
            other => other?,
        }
        if let Some(gateway) = plan.ipv6_gateway {
            // Link-local addresses are on every link.
            let on_link = ipv6.holds(gateway) || gateway.is_unicast_link_local();
            kernel.add_default_route(&device, gateway.into(), !on_link).await?;
        }
    }
    Ok(())
}

fn says_no_ipv6(errno: Errno) -> bool {
    // EACCES: net.ipv6.conf.*.disable_ipv6 is set.
    matches!(errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EACCES)
}

/// For the link-local address, which the kernel makes itself when the device comes up.
fn skip_duplicate_detection(device: &str) {
    // Missing where there is no IPv6.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_dad"), "0\n");
}

struct Device {
    index: u32,
    name: String,
}

/// A conversation with the kernel.
struct Kernel {
    handle: Handle,
    /// Carries the messages; ends with this value.
    carrier: tokio::task::JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl Kernel {
    fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        let carrier = tokio::spawn(connection);
        Ok(Self { handle, carrier })
    }

    /// `eth0`, or the first Ethernet device of another name.
    async fn ethernet_device(&self) -> Result<Option<Device>, NetworkError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| refused("listing network devices", e))?;
        let mut devices: Vec<Device> = links
            .into_iter()
            .filter(|link| link.header.link_layer_type == LinkLayerType::Ether)
            .filter_map(|link| {
                let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })?;
                Some(Device {
                    index: link.header.index,
                    name,
                })
            })
            .collect();
        devices.sort_by_key(|device| (device.name != "eth0", device.index));
        Ok(devices.into_iter().next())
    }

    async fn change_link(&self, act: &str, change: LinkMessage) -> Result<(), NetworkError> {
        let changed = self.handle.link().change(change).execute().await;
        changed.map_err(|e| refused(act, e))
    }

    async fn add_address(&self, device: &Device, address: IpAddr, length: u8) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(device.index, address, length).replace();
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let act = format!("giving {} the address {address}/{length}", device.name);
        request.execute().await.map_err(|e| refused(&act, e))
    }

    /// `outside`: the gateway is not within the device's prefix, and reached through the device all the same.
    async fn add_default_route(&self, device: &Device, gateway: IpAddr, outside: bool) -> Result<(), NetworkError> {
        let act = format!("setting the default route through {gateway} on {}", device.name);
        let route = match gateway {
            IpAddr::V4(gateway) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(gateway)
                    .output_interface(device.index);
                if outside { route.onlink() } else { route }.build()
            }
            IpAddr::V6(gateway) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .gateway(gateway)
                    .output_interface(device.index);
                if outside { route.onlink() } else { route }.build()
            }
        };
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|e| refused(&act, e))
    }
}

fn refused(act: &str, cause: rtnetlink::Error) -> NetworkError {
    let act = act.to_owned();
    match cause {
        rtnetlink::Error::NetlinkError(message) => NetworkError::Refused {
            act,
            errno: Errno::from_raw(message.code.map_or(0, NonZeroI32::get).saturating_abs()),
        },
        cause => NetworkError::Protocol { act, cause },
    }
}

/// Writes `etc`/resolv.conf (resolv.conf(5)) with the plan's name servers in their order. Without any, what the image
/// has stays.
///
/// # Errors
/// When the file can't be written.
pub fn write_resolv_conf(etc: &Path, plan: &Plan) -> Result<(), NetworkError> {
    if plan.dns_servers.is_empty() {
        return Ok(());
    }
    let text: String = plan
        .dns_servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    replace(&etc.join("resolv.conf"), &text)
}

/// Sees to it that `etc`/hosts (hosts(5)) knows `localhost` and `host_name`; other lines stay.
///
/// # Errors
/// When the file can't be written.
pub fn write_hosts(etc: &Path, host_name: &str) -> Result<(), NetworkError> {
    let path = etc.join("hosts");
    let old = fs::read_to_string(&path).unwrap_or_default();
    let mut text = String::new();
    for (address, names) in [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost ip6-localhost ip6-loopback"),
        ("127.0.1.1", host_name),
    ] {
        // `localhost` counts for each of its addresses, the host's name for any.
        let known = old.lines().any(|line| {
            let mut fields = line.split('#').next().unwrap_or_default().split_whitespace();
            let at = fields.next();
            let wanted = names.split(' ').next();
            (at == Some(address) || address == "127.0.1.1") && fields.any(|name| Some(name) == wanted)
        });
        if !known && !names.is_empty() {
            text.push_str(&format!("{address}\t{names}\n"));
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    text.push_str(&old);
    replace(&path, &text)
}

/// Puts `text` in the place of `path`, also of a symbolic link there: an image's resolv.conf often leads to a daemon's
/// file that is not there.
fn replace(path: &Path, text: &str) -> Result<(), NetworkError> {
    let fresh = path.with_extension("polyinit-new");
    let swapped = fs::File::create(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&fresh, path));
    swapped
        .or_else(|_| {
            let _ = fs::remove_file(&fresh);
            // A container's resolv.conf is a mount, which can be written to but not replaced.
            fs::write(path, text)
        })
        .map_err(|source| NetworkError::File {
            path: path.display().to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use rtnetlink::LinkDummy;
    use rtnetlink::packet_route::link::LinkFlags;
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags};

    fn addressing(ipv4: &str, ipv4_gateway: &str, ipv6: &str, ipv6_gateway: &str) -> Addressing {
        Addressing {
            ipv4: Some(ipv4.to_owned()),
            ipv4_gateway: Some(ipv4_gateway.to_owned()),
            ipv6: Some(ipv6.to_owned()),
            ipv6_gateway: Some(ipv6_gateway.to_owned()),
            dns_servers: Vec::new(),
            mtu: None,
        }
    }

    #[test]
    fn lengths_are_optional_and_empty_texts_are_absent() {
        let plan = Plan::new(&addressing("172.16.4.2", "172.16.4.1", "fd00::5/124", "")).expect("valid");
        let ipv4 = plan.ipv4.expect("an address");
        assert_eq!((ipv4.address, ipv4.length), (Ipv4Addr::new(172, 16, 4, 2), 24));
        assert_eq!(plan.ipv6.expect("an address").length, 124);
        assert_eq!(plan.ipv6_gateway, None);
        let plan = Plan::new(&addressing("10.0.0.2/32", "", "fd00::5", "")).expect("valid");
        assert_eq!(plan.ipv4.expect("an address").length, 32);
        assert_eq!(plan.ipv6.expect("an address").length, 64);
        assert_eq!(Plan::new(&addressing("", "", " ", "")).expect("valid"), Plan::default());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value() {
        let cases = [
            (
                addressing("172.16.4.2/33", "", "", ""),
                "the IPv4 address (ip) `172.16.4.2/33`",
            ),
            (
                addressing("172.16.4.2/0", "", "", ""),
                "the IPv4 address (ip) `172.16.4.2/0`",
            ),
            (addressing("172.16.4", "", "", ""), "the IPv4 address (ip) `172.16.4`"),
            (addressing("224.0.0.1", "", "", ""), "the IPv4 address (ip) `224.0.0.1`"),
            (addressing("fd00::1", "", "", ""), "the IPv4 address (ip) `fd00::1`"),
            (
                addressing("", "172.16.0.1/24", "", ""),
                "the IPv4 gateway (route) `172.16.0.1/24`",
            ),
            (addressing("", "0.0.0.0", "", ""), "the IPv4 gateway (route) `0.0.0.0`"),
            (addressing("", "", "fd00::g", ""), "the IPv6 address (ipv6) `fd00::g`"),
            (
                addressing("", "", "fd00::1/129", ""),
                "the IPv6 address (ipv6) `fd00::1/129`",
            ),
            (addressing("", "", "", "::"), "the IPv6 gateway (ipv6_gateway) `::`"),
        ];
        for (wrong, beginning) in cases {
            let error = Plan::new(&wrong).expect_err(beginning).to_string();
            assert!(error.starts_with(beginning), "{error}");
        }
        let long = Addressing {
            dns_servers: vec!["1.1.1.1".to_owned(), "x".repeat(10_000)],
            ..Addressing::default()
        };
        let error = Plan::new(&long).expect_err("no address").to_string();
        assert!(
            error.starts_with("the DNS server (dns_servers) `xxx") && error.len() < 200,
            "{error}"
        );
    }

    #[test]
    fn a_gateway_is_within_the_prefix_or_not() {
        let plan = Plan::new(&addressing("172.16.4.2/24", "", "fd00::5/124", "")).expect("valid");
        let (ipv4, ipv6) = (plan.ipv4.expect("set"), plan.ipv6.expect("set"));
        assert!(ipv4.holds(Ipv4Addr::new(172, 16, 4, 1)));
        assert!(!ipv4.holds(Ipv4Addr::new(172, 16, 5, 1)));
        assert!(ipv6.holds("fd00::1".parse().expect("valid")));
        assert!(!ipv6.holds("fd00::11".parse().expect("valid")));
    }

    #[test]
    fn resolv_conf_takes_the_place_of_a_dangling_link() {
        let etc = tempfile::tempdir().expect("a folder");
        let file = etc.path().join("resolv.conf");
        std::os::unix::fs::symlink("../run/nowhere/resolv.conf", &file).expect("a link");
        write_resolv_conf(etc.path(), &Plan::default()).expect("nothing to do");
        assert!(fs::read_to_string(&file).is_err());

        let plan = Plan {
            dns_servers: vec!["9.9.9.9".parse().expect("valid"), "2620:fe::fe".parse().expect("valid")],
            ..Plan::default()
        };
        write_resolv_conf(etc.path(), &plan).expect("written");
        let text = fs::read_to_string(&file).expect("a file");
        assert_eq!(text, "nameserver 9.9.9.9\nnameserver 2620:fe::fe\n");
        assert_eq!(fs::read_dir(etc.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn hosts_gains_what_is_missing_once() {
        let etc = tempfile::tempdir().expect("a folder");
        let file = etc.path().join("hosts");
        let text = || fs::read_to_string(&file).expect("a file");
        write_hosts(etc.path(), "machine").expect("written");
        let fresh = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tmachine\n";
        assert_eq!(text(), fresh);
        write_hosts(etc.path(), "machine").expect("nothing to do");
        assert_eq!(text(), fresh);

        fs::write(&file, "127.0.0.1 localhost # machine\n10.0.0.9 other\n").expect("written");
        write_hosts(etc.path(), "machine").expect("written");
        assert_eq!(
            text(),
            "::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tmachine\n\
             127.0.0.1 localhost # machine\n10.0.0.9 other\n"
        );
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work)
    }

    async fn flags_of(kernel: &Kernel, name: &str) -> LinkFlags {
        let links: Vec<LinkMessage> = kernel
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_collect()
            .await
            .expect(name);
        links[0].header.flags
    }

    #[test]
    fn lo_comes_up_where_there_is_nothing_else() {
        isolated(
            "machine::network::tests::lo_comes_up_where_there_is_nothing_else",
            &[Namespace::Network],
            || {
                block_on(async {
                    use std::net::{TcpListener, TcpStream};
                    // Some kernels let it be bound to while it is down.
                    let reached = || TcpListener::bind("127.0.0.1:0").and_then(|l| TcpStream::connect(l.local_addr()?));
                    reached().expect_err("lo is down");
                    loopback_up().expect("up");
                    reached().expect("lo is up");

                    apply(&Plan::default()).await.expect("nothing asked for");
                    let plan = Plan::new(&addressing("172.16.4.2", "172.16.4.1", "", "")).expect("valid");
                    let error = apply(&plan).await.expect_err("no device");
                    assert!(matches!(error, NetworkError::NoDevice), "{error}");
                });
            },
        );
    }

    /// The default routes: (gateway, on-link).
    async fn default_routes(kernel: &Kernel) -> Vec<(IpAddr, bool)> {
        let mut found = Vec::new();
        let queries = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for query in queries {
            let routes: Vec<_> = kernel
                .handle
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .expect("routes");
            for route in routes {
                let gateway = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::from(*gateway)),
                    RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::from(*gateway)),
                    _ => None,
                });
                if let Some(gateway) = gateway.filter(|_| route.header.destination_prefix_length == 0) {
                    found.push((gateway, route.header.flags.contains(RouteFlags::Onlink)));
                }
            }
        }
        found
    }

    /// The addresses of eth0 that are not of its link only: (address, length, whether it may be used).
    async fn addresses(kernel: &Kernel, index: u32) -> Vec<(IpAddr, u8, bool)> {
        let messages: Vec<_> = kernel
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .expect("addresses");
        let mut found: Vec<_> = messages
            .into_iter()
            .filter_map(|message| {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })?;
                let usable = !message.header.flags.contains(AddressHeaderFlags::Tentative);
                let link_local = message.header.family == rtnetlink::packet_route::AddressFamily::Inet6
                    && matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
                (!link_local).then_some((address, message.header.prefix_len, usable))
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn eth0_gets_addresses_and_routes_that_work_at_once() {
        isolated(
            "machine::network::tests::eth0_gets_addresses_and_routes_that_work_at_once",
            &[Namespace::Network],
            || {
                block_on(async {
                    let kernel = Kernel::connect().expect("netlink");
                    // A device that comes first, to be passed over for eth0.
                    for name in ["aaa0", "eth0"] {
                        let dummy = LinkDummy::new(name).build();
                        if let Err(e) = kernel.handle.link().add(dummy).execute().await {
                            eprintln!("SKIPPED: this kernel has no dummy devices: {e}");
                            return;
                        }
                    }
                    let device = kernel.ethernet_device().await.expect("a list").expect("a device");
                    assert_eq!(device.name, "eth0");
                    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");

                    let plan = Plan::new(&addressing("172.16.4.2", "172.16.4.1", "fd00::5/124", "fd00::1"));
                    let plan = plan.expect("valid");
                    apply(&plan).await.expect("applied");
                    assert!(flags_of(&kernel, "eth0").await.contains(LinkFlags::Up));
                    assert!(!flags_of(&kernel, "aaa0").await.contains(LinkFlags::Up));
                    let expected = [(ip("172.16.4.2"), 24, true), (ip("fd00::5"), 124, true)];
                    assert_eq!(addresses(&kernel, device.index).await, expected);
                    let expected = [(ip("172.16.4.1"), false), (ip("fd00::1"), false)];
                    assert_eq!(default_routes(&kernel).await, expected);
                    std::net::UdpSocket::bind("[fd00::5]:0").expect("the address can be used");

                    apply(&plan).await.expect("applied twice");
                    assert_eq!(addresses(&kernel, device.index).await.len(), 2);
                    assert_eq!(default_routes(&kernel).await.len(), 2);
                });
            },
        );
    }

    #[test]
    fn a_gateway_outside_the_prefix_is_reached_on_the_link() {
        isolated(
            "machine::network::tests::a_gateway_outside_the_prefix_is_reached_on_the_link",
            &[Namespace::Network],
            || {
                block_on(async {
                    let kernel = Kernel::connect().expect("netlink");
                    // Any name will do for the only device.
                    let dummy = LinkDummy::new("ens5").build();
                    if let Err(e) = kernel.handle.link().add(dummy).execute().await {
                        eprintln!("SKIPPED: this kernel has no dummy devices: {e}");
                        return;
                    }
                    let plan = Plan::new(&addressing("10.1.2.3/32", "10.9.9.9", "fd00::5/128", "fe80::1"));
                    apply(&plan.expect("valid")).await.expect("applied");
                    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
                    let expected = [(ip("10.9.9.9"), true), (ip("fe80::1"), false)];
                    assert_eq!(default_routes(&kernel).await, expected);
                });
            },
        );
    }
}
