//! Where inner packets go: exact addresses of sessions first, then the longest prefix.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::RandomState;
use arc_swap::ArcSwap;

use super::session::Session;
use super::sharded::Sharded;

/// What a prefix leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TUN device.
    Tun(u64),
    /// Sockets of this process.
    Local,
    /// The userspace core side.
    Core,
}

/// An inner prefix, normalised (host bits zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    v6: bool,
    length: u8,
    bits: u128,
}

impl Prefix {
    /// A prefix of `address`; None if `length` is too long for the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        let v6 = address.is_ipv6();
        (length <= if v6 { 128 } else { 32 }).then(|| Prefix { v6, length, bits: masked(address, length) })
    }

    /// "10.0.0.0/8", "fd00::/8" or a bare address.
    pub fn parse(text: &str) -> Option<Prefix> {
        match text.split_once('/') {
            Some((address, length)) => Prefix::new(address.parse().ok()?, length.parse().ok()?),
            None => {
                let address: IpAddr = text.parse().ok()?;
                Prefix::new(address, if address.is_ipv6() { 128 } else { 32 })
            }
        }
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.v6 && masked(address, self.length) == self.bits
    }
}

/// The leading `length` bits of an address, left-aligned in 128 bits.
fn masked(address: IpAddr, length: u8) -> u128 {
    let bits = match address {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => u128::from(a),
    };
    if length == 0 { 0 } else { bits & (u128::MAX << (128 - u32::from(length))) }
}

/// Prefix table, replaced whole when it changes: prefixes are few and change seldom.
#[derive(Clone, Debug, Default)]
struct PrefixTable {
    rows: HashMap<Prefix, Target, RandomState>,
    /// Lengths in use, longest first, per family.
    lengths: [Vec<u8>; 2],
}

impl PrefixTable {
    fn rebuild_lengths(&mut self) {
        for v6 in [false, true] {
            let mut lengths: Vec<u8> = self.rows.keys().filter(|p| p.v6 == v6).map(|p| p.length).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            self.lengths[usize::from(v6)] = lengths;
        }
    }

    fn find(&self, address: IpAddr) -> Option<Target> {
        let v6 = address.is_ipv6();
        self.lengths[usize::from(v6)].iter().find_map(|length| {
            self.rows.get(&Prefix { v6, length: *length, bits: masked(address, *length) }).copied()
        })
    }
}

/// The routing table of one engine.
#[derive(Debug, Default)]
pub struct Routes {
    sessions: Sharded<IpAddr, Arc<Session>>,
    prefixes: ArcSwap<PrefixTable>,
    change: parking_lot::Mutex<()>,
}

impl Routes {
    /// The session that leases this very address.
    #[inline]
    pub fn session(&self, address: IpAddr) -> Option<Arc<Session>> {
        self.sessions.get(&address)
    }

    /// The longest prefix that holds this address.
    #[inline]
    pub fn prefix(&self, address: IpAddr) -> Option<Target> {
        self.prefixes.load().find(address)
    }

    /// Lease addresses to a session.
    pub fn add_session(&self, session: &Arc<Session>) {
        for address in &session.addresses {
            self.sessions.insert(*address, Arc::clone(session));
        }
    }

    /// Take back the addresses of a session, unless somebody else has them by now.
    pub fn remove_session(&self, session: &Arc<Session>) {
        for address in &session.addresses {
            self.sessions.remove_if(address, |s| Arc::ptr_eq(s, session));
        }
    }

    /// Set or (None) remove a prefix.
    pub fn set_prefix(&self, prefix: Prefix, target: Option<Target>) {
        let _one_writer = self.change.lock();
        let mut table = PrefixTable::clone(&self.prefixes.load());
        match target {
            Some(target) => table.rows.insert(prefix, target),
            None => table.rows.remove(&prefix),
        };
        table.rebuild_lengths();
        self.prefixes.store(Arc::new(table));
    }

    /// Remove every prefix that leads to this TUN device.
    pub fn remove_tun(&self, tun: u64) {
        let _one_writer = self.change.lock();
        let mut table = PrefixTable::clone(&self.prefixes.load());
        table.rows.retain(|_, target| *target != Target::Tun(tun));
        table.rebuild_lengths();
        self.prefixes.store(Arc::new(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_like_a_slow_search() {
        let routes = Routes::default();
        let rows = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/8", "fd00:1::/32"];
        let parsed: Vec<_> = rows.iter().map(|r| Prefix::parse(r).unwrap()).collect();
        for (i, prefix) in parsed.iter().enumerate() {
            routes.set_prefix(*prefix, Some(Target::Tun(i as u64)));
        }
        for text in ["10.1.2.3", "10.1.2.4", "10.2.0.1", "9.9.9.9", "fd00:1::7", "fdff::1", "2001::1"] {
            let address: IpAddr = text.parse().unwrap();
            let slow =
                (0..rows.len()).filter(|i| parsed[*i].contains(address)).max_by_key(|i| parsed[*i].length);
            assert_eq!(routes.prefix(address), slow.map(|i| Target::Tun(i as u64)), "{text}");
        }
        routes.set_prefix(parsed[3], None);
        assert_eq!(routes.prefix("10.1.2.3".parse().unwrap()), Some(Target::Tun(2)));
        routes.remove_tun(2);
        assert_eq!(routes.prefix("10.1.2.3".parse().unwrap()), Some(Target::Tun(1)));
    }

    #[test]
    fn prefixes_are_checked() {
        assert!(Prefix::parse("10.0.0.0/33").is_none());
        assert!(Prefix::parse("::/129").is_none());
        assert!(Prefix::parse("10.0.0").is_none());
    }
}
