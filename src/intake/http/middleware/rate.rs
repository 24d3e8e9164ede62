//! How many requests one address may send: the generic cell rate algorithm (ITU-T I.371), one time stamp a client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::program::manifest::RateKeys;

/// Clients remembered at most. Where more come at once, those beyond share one allowance.
const CLIENTS: usize = 65_536;

/// What one address may send.
pub struct Rate {
    /// One request each.
    period: Duration,
    /// How far ahead of that a client may be.
    tolerance: Duration,
    /// When each client's allowance is whole again.
    clients: Mutex<HashMap<IpAddr, Instant>>,
}

impl Rate {
    pub fn new(keys: &RateKeys) -> Self {
        let requests = keys.requests.get();
        let period = Duration::try_from_secs_f64(keys.seconds / f64::from(requests)).unwrap_or(Duration::MAX);
        Self {
            period,
            tolerance: period.saturating_mul(keys.burst.map_or(requests, |burst| burst.get()) - 1),
            clients: Mutex::default(),
        }
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// The time until its next one is let in.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut clients = self.clients.lock();
        let mut client = network(client);
        if clients.len() >= CLIENTS && !clients.contains_key(&client) {
            clients.retain(|_, whole| *whole > now);
            if clients.len() >= CLIENTS {
                client = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let whole = clients.entry(client).or_insert(now);
        let ahead = whole.saturating_duration_since(now);
        if ahead > self.tolerance {
            return Err(ahead - self.tolerance);
        }
        *whole = now + ahead.saturating_add(self.period).min(Duration::from_secs(1 << 31));
        Ok(())
    }
}

/// Who has one IPv6 address has all of its /64 (RFC 6177): they are one client.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(requests: u32, seconds: f64, burst: Option<u32>) -> Rate {
        Rate::new(&RateKeys {
            requests: requests.try_into().unwrap(),
            seconds,
            burst: burst.map(|burst| burst.try_into().unwrap()),
        })
    }

    #[test]
    fn so_many_at_once_then_one_each_period() {
        let (rate, now) = (rate(2, 1.0, Some(3)), Instant::now());
        let client = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..3 {
            rate.admit(client, now).unwrap();
        }
        assert_eq!(rate.admit(client, now), Err(Duration::from_millis(500)));
        assert_eq!(rate.admit([10, 0, 0, 2].into(), now), Ok(()));
        let later = now + Duration::from_millis(500);
        assert_eq!(rate.admit(client, later), Ok(()));
        assert_eq!(rate.admit(client, later), Err(Duration::from_millis(500)));
        let much_later = now + Duration::from_secs(60);
        for _ in 0..3 {
            rate.admit(client, much_later).unwrap();
        }
        assert!(rate.admit(client, much_later).is_err());
    }

    #[test]
    fn memory_is_bounded_whoever_comes() {
        let (rate, now) = (rate(1, 3600.0, None), Instant::now());
        let address = |number: usize| IpAddr::V4((number as u32).into());
        for number in 0..CLIENTS {
            rate.admit(address(number), now).unwrap();
        }
        assert_eq!(rate.admit(address(CLIENTS), now), Ok(()));
        assert!(rate.admit(address(CLIENTS + 1), now).is_err());
        assert!(rate.clients.lock().len() <= CLIENTS + 1);
        // Their hour is over.
        let later = now + Duration::from_secs(3601);
        assert_eq!(rate.admit(address(CLIENTS + 2), later), Ok(()));
        assert_eq!(rate.clients.lock().len(), 1);
    }

    #[test]
    fn a_v6_network_is_one_client() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }
}
