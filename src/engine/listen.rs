//! Tells when a program has begun to listen, and where, without touching it.
//!
//! A connection made to find out would be the program's first event: it would be logged, and a server that answers
//! one connection and ends, as shell scripts do, would spend itself on it. So the kernel is asked which sockets
//! listen (one netlink question costs some 10 µs; `/proc/net/tcp`, which walks the table of all connections and takes
//! milliseconds on a large machine, is for kernels without that), and `/proc` whether the program holds one of them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::unistd::Pid;

use crate::engine::process;

/// A TCP socket in the state LISTEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listener {
    pub address: SocketAddr,
    /// The number by which `/proc/<pid>/fd` calls the socket.
    pub inode: u32,
    /// Connections that the program has not accepted yet.
    pub queued: u32,
    /// How many of these the socket has room for (listen(2)); 0 where the kernel does not tell.
    pub room: u32,
    /// Whether a socket of IPv6 is known to take IPv4, too.
    pub takes_ipv4: bool,
}

impl Listener {
    /// Addresses to reach the socket at, the likeliest first.
    pub fn reach(&self) -> Vec<SocketAddr> {
        let port = self.address.port();
        let at = |ip: IpAddr| SocketAddr::new(ip, port);
        match self.address.ip().to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![at(Ipv4Addr::LOCALHOST.into())],
            // Where programs name the proxy that they trust, they often name that of IPv4 alone.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if self.takes_ipv4 => {
                vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]
            }
            // Such a socket takes IPv4 too, unless told not to; the other way is for machines whose IPv6 is off.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![at(Ipv6Addr::LOCALHOST.into()), at(Ipv4Addr::LOCALHOST.into())],
            ip => vec![at(ip)],
        }
    }
}

/// All TCP sockets of this network namespace that listen.
///
/// # Errors
/// Those of `/proc/net/tcp`, where the kernel has no sock_diag(7) either.
pub fn listeners() -> io::Result<Vec<Listener>> {
    netlink::listeners().or_else(|_| table::listeners())
}

/// The sockets that the processes of `leader`'s session hold, by inode.
pub fn sockets_of(leader: Pid) -> HashSet<u32> {
    let mut inodes = HashSet::new();
    for member in process::members(leader) {
        // A process that ends meanwhile, or isn't ours to look into, has nothing for us.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{member}/fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let target = fs::read_link(descriptor.path()).ok();
            let inode: Option<u32> = target.as_deref().and_then(|target| {
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            });
            inodes.extend(inode);
        }
    }
    inodes
}

/// The sockets that listen and that the processes of `leader`'s session hold.
///
/// # Errors
/// Those of [`listeners`].
pub fn held_by(leader: Pid) -> io::Result<Vec<Listener>> {
    let mut listeners = listeners()?;
    let held = sockets_of(leader);
    listeners.retain(|listener| held.contains(&listener.inode));
    Ok(listeners)
}

/// A port that nobody uses at the moment.
///
/// # Errors
/// Those of bind(2).
pub fn free_port() -> io::Result<u16> {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
    let socket =
        std::net::TcpListener::bind(any).or_else(|_| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    Ok(socket.local_addr()?.port())
}

/// sock_diag(7): `SOCK_DIAG_BY_FAMILY` with `struct inet_diag_req_v2` of linux/inet_diag.h.
mod netlink {
    use super::*;

    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const HEADER: usize = 16;
    const TCP: u8 = 6;
    const INET_DIAG_SKV6ONLY: u16 = 11;
    /// `1 << TCP_LISTEN`.
    const LISTENING: u32 = 1 << 10;
    /// What the kernel fits its answers into; more come in further messages.
    const ANSWER: usize = 32 << 10;

    pub fn listeners() -> io::Result<Vec<Listener>> {
        let socket = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        let mut found = Vec::new();
        for family in [nix::libc::AF_INET as u8, nix::libc::AF_INET6 as u8] {
            ask(&socket, family)?;
            read(&socket, &mut found)?;
        }
        Ok(found)
    }

    fn ask(socket: &OwnedFd, family: u8) -> io::Result<()> {
        let mut request = [0; HEADER + 56];
        let length = request.len() as u32;
        request[0..4].copy_from_slice(&length.to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
        request[HEADER] = family;
        request[HEADER + 1] = TCP;
        request[HEADER + 4..HEADER + 8].copy_from_slice(&LISTENING.to_ne_bytes());
        let kernel = NetlinkAddr::new(0, 0);
        nix::sys::socket::sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    fn read(socket: &OwnedFd, found: &mut Vec<Listener>) -> io::Result<()> {
        let mut answer = vec![0; ANSWER];
        loop {
            // The kernel has answered before sendto(2) returned, or goes on in this very call: nothing to wait for.
            let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
            if parse(&answer[..length], found)? {
                return Ok(());
            }
        }
    }

    /// Takes the sockets out of one answer; tells whether it was the last one.
    pub(super) fn parse(mut answer: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
        let bad = || io::Error::other("the kernel's answer about sockets makes no sense");
        while !answer.is_empty() {
            let length = u32::from_ne_bytes(*answer.first_chunk().ok_or_else(bad)?) as usize;
            let message = answer
                .get(..length)
                .filter(|message| message.len() >= HEADER)
                .ok_or_else(bad)?;
            let body = &message[HEADER..];
            match u16::from_ne_bytes([message[4], message[5]]) {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    let errno = i32::from_ne_bytes(*body.first_chunk().ok_or_else(bad)?);
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                SOCK_DIAG_BY_FAMILY => found.push(listener(body).ok_or_else(bad)?),
                _ => {}
            }
            // Messages begin at multiples of four bytes (NLMSG_ALIGN).
            answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }

    /// `struct inet_diag_msg`: family, 3 bytes, then `struct inet_diag_sockid` (ports, addresses); from 52 on expiry,
    /// receive queue, send queue, user, inode, of which the queues mean the backlog where a socket listens.
    fn listener(message: &[u8]) -> Option<Listener> {
        let port = u16::from_be_bytes(message.get(4..6)?.try_into().ok()?);
        let ip: IpAddr = if i32::from(message[0]) == nix::libc::AF_INET {
            <[u8; 4]>::try_from(message.get(8..12)?).ok()?.into()
        } else {
            <[u8; 16]>::try_from(message.get(8..24)?).ok()?.into()
        };
        let number = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        Some(Listener {
            address: (ip, port).into(),
            queued: number(56)?,
            room: number(60)?,
            inode: number(68)?,
            takes_ipv4: is_ipv6_only(message.get(72..)?) == Some(false),
        })
    }

    /// What is behind that are attributes (`struct nlattr`): length, type, value.
    fn is_ipv6_only(mut attributes: &[u8]) -> Option<bool> {
        while let Some(&[a, b, c, d]) = attributes.first_chunk() {
            if u16::from_ne_bytes([c, d]) == INET_DIAG_SKV6ONLY {
                return attributes.get(4).map(|&value| value != 0);
            }
            let length = usize::from(u16::from_ne_bytes([a, b])).max(4);
            attributes = attributes.get(length.next_multiple_of(4)..)?;
        }
        None
    }
}

/// `/proc/net/tcp` and `/proc/net/tcp6` (proc_pid_net(5)).
mod table {
    use super::*;

    pub fn listeners() -> io::Result<Vec<Listener>> {
        let mut found: Vec<_> = fs::read_to_string("/proc/self/net/tcp")?
            .lines()
            .filter_map(listener)
            .collect();
        // Not there where the kernel has no IPv6.
        if let Ok(table) = fs::read_to_string("/proc/self/net/tcp6") {
            found.extend(table.lines().filter_map(listener));
        }
        Ok(found)
    }

    /// `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 12345 ...`
    pub(super) fn listener(line: &str) -> Option<Listener> {
        let mut fields = line.split_ascii_whitespace();
        let (ip, port) = fields.nth(1)?.split_once(':')?;
        if fields.nth(1)? != "0A" {
            return None;
        }
        // The address is printed as numbers of 32 bits in the machine's byte order.
        let word = |index: usize| {
            Some(
                u32::from_str_radix(ip.get(8 * index..8 * index + 8)?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        };
        let ip: IpAddr = match ip.len() {
            8 => word(0)?.into(),
            32 => {
                let octets = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
                <[u8; 16]>::try_from(octets).ok()?.into()
            }
            _ => return None,
        };
        Some(Listener {
            address: (ip, u16::from_str_radix(port, 16).ok()?).into(),
            queued: u32::from_str_radix(fields.next()?.split_once(':')?.1, 16).ok()?,
            room: 0,
            inode: fields.nth(4)?.parse().ok()?,
            takes_ipv4: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// One of each kind; those of IPv6 only where the machine has it.
    fn listen() -> Vec<TcpListener> {
        let mut sockets = ["127.0.0.1:0", "0.0.0.0:0"]
            .map(|address| TcpListener::bind(address).unwrap())
            .into_iter()
            .collect::<Vec<_>>();
        sockets.extend(
            ["[::1]:0", "[::]:0"]
                .iter()
                .filter_map(|address| TcpListener::bind(address).ok()),
        );
        sockets
    }

    fn listener(address: SocketAddr, inode: u32) -> Listener {
        Listener {
            address,
            inode,
            queued: 0,
            room: 0,
            takes_ipv4: false,
        }
    }

    fn assert_finds(found: &[Listener], sockets: &[TcpListener]) {
        for socket in sockets {
            let address = socket.local_addr().unwrap();
            let listener = found.iter().find(|listener| listener.address == address);
            let inode = listener.unwrap_or_else(|| panic!("{address} in {found:?}")).inode;
            let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("socket:[{inode}]"));
        }
    }

    #[test]
    fn both_ways_find_what_listens() {
        let sockets = listen();
        assert_finds(&table::listeners().unwrap(), &sockets);
        if let Ok(found) = netlink::listeners() {
            assert_finds(&found, &sockets);
        }
        assert_finds(&listeners().unwrap(), &sockets);
    }

    #[test]
    fn every_listener_can_be_reached() {
        for socket in listen() {
            let address = socket.local_addr().unwrap();
            for address in listener(address, 0).reach() {
                std::net::TcpStream::connect(address).unwrap();
            }
        }
    }

    #[test]
    fn goes_by_ipv4_where_that_leads_to_the_same_socket() {
        let Ok(socket) = TcpListener::bind("[::]:0") else {
            return;
        };
        let only = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only).unwrap();
        let address = socket.local_addr().unwrap();
        if let Ok(found) = netlink::listeners() {
            let listener = found.iter().find(|listener| listener.address == address).unwrap();
            assert_eq!(listener.reach()[0].is_ipv4(), !only);
        }
    }

    #[test]
    fn tells_how_many_wait_to_be_accepted() {
        let socket = &listen()[0];
        let address = socket.local_addr().unwrap();
        let _clients = [(); 3].map(|()| std::net::TcpStream::connect(address).unwrap());
        let find = |found: Vec<Listener>| found.into_iter().find(|listener| listener.address == address).unwrap();
        assert_eq!(find(table::listeners().unwrap()).queued, 3);
        if let Ok(found) = netlink::listeners() {
            let found = find(found);
            // The standard library asks for a backlog of 128.
            assert_eq!((found.queued, found.room), (3, 128));
        }
    }

    #[test]
    fn refuses_answers_that_make_no_sense() {
        let mut found = Vec::new();
        let mut message = vec![0; 16 + 71];
        message[0] = 16 + 71;
        message[4] = 20;
        let mut short = message.clone();
        short[0] = 3;
        let mut long = message.clone();
        long[0] = 200;
        for answer in [&message[..], &short, &long, &message[..7], &[1]] {
            assert!(netlink::parse(answer, &mut found).is_err());
        }
        let error = [20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff];
        assert_eq!(
            netlink::parse(&error, &mut found).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(found, []);
    }

    #[test]
    fn skips_lines_that_are_no_listeners() {
        let line = |state: &str| {
            format!(
                "   0: 00000000:07E8 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 640 1"
            )
        };
        let listener = listener("0.0.0.0:2024".parse().unwrap(), 640);
        assert_eq!(table::listener(&line("0A")), Some(listener));
        for line in [
            &line("01"),
            "",
            "  sl  local_address rem_address   st",
            "0: 0:1 0:0 0A",
            "0: zz000000:1 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(table::listener(line), None);
        }
    }
}
