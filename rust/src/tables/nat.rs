//! Protocol policies: inner packets to certain destinations are denied or sent elsewhere, and the answers
//! are given their old face back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::routes::Prefix;
use crate::limits::MAX_NAT_BINDINGS;
use crate::packet::{End, Meta, readdress};

/// One policy row.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub id: u64,
    pub prefix: Prefix,
    /// 0 = any.
    pub protocol: u8,
    /// 0 = any.
    pub port: u16,
    pub allow: bool,
    pub to: Option<(IpAddr, u16)>,
}

impl Rule {
    fn matches(&self, meta: &Meta) -> bool {
        (self.protocol == 0 || self.protocol == meta.protocol)
            && (self.port == 0 || self.port == meta.destination_port)
            && self.prefix.contains(meta.destination)
    }
}

/// Outcome for a packet from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Unchanged,
    Rewritten,
    Denied,
    TableFull,
}

/// (protocol, client, client port, new far, new far port).
type Binding = (u8, IpAddr, u16, IpAddr, u16);

#[derive(Debug, Default)]
struct Bindings {
    rows: HashMap<Binding, (IpAddr, u16), RandomState>,
    /// Keys by client, so that the end of one does not walk the bindings of all.
    by_client: HashMap<IpAddr, Vec<Binding>, RandomState>,
}

/// All policies of an engine, first match wins.
#[derive(Debug, Default)]
pub struct Policies {
    rules: ArcSwap<Vec<Rule>>,
    bindings: Mutex<Bindings>,
    bound: AtomicUsize,
}

impl Policies {
    pub fn add(&self, rule: Rule) {
        self.rules.rcu(|rules| {
            let mut rules = Vec::clone(rules);
            rules.push(rule);
            Arc::new(rules)
        });
    }

    pub fn remove(&self, id: u64) {
        self.rules.rcu(|rules| Arc::new(rules.iter().filter(|r| r.id != id).copied().collect::<Vec<_>>()));
    }

    /// Apply the first matching rule to a packet from a client.
    #[inline]
    pub fn outward(&self, data: &mut [u8], meta: &Meta) -> Applied {
        let rules = self.rules.load();
        if rules.is_empty() {
            return Applied::Unchanged;
        }
        match rules.iter().find(|r| r.matches(meta)) {
            None => Applied::Unchanged,
            Some(rule) if !rule.allow => Applied::Denied,
            Some(Rule { to: Some((to, port)), .. }) => self.rewrite(data, meta, *to, *port),
            Some(_) => Applied::Unchanged,
        }
    }

    fn rewrite(&self, data: &mut [u8], meta: &Meta, to: IpAddr, port: u16) -> Applied {
        let port = if port == 0 { meta.destination_port } else { port };
        let key = (meta.protocol, meta.source, meta.source_port, to, port);
        let mut bindings = self.bindings.lock();
        if !bindings.rows.contains_key(&key) {
            if bindings.rows.len() >= MAX_NAT_BINDINGS {
                return Applied::TableFull;
            }
            bindings.by_client.entry(meta.source).or_default().push(key);
        }
        bindings.rows.insert(key, (meta.destination, meta.destination_port));
        self.bound.store(bindings.rows.len(), Ordering::Release);
        drop(bindings);
        if readdress(data, meta, End::Destination, to, port) { Applied::Rewritten } else { Applied::Denied }
    }

    /// Give an answer to a client the source address the client knows. True if it was changed.
    #[inline]
    pub fn inward(&self, data: &mut [u8], meta: &Meta) -> bool {
        if self.bound.load(Ordering::Acquire) == 0 {
            return false;
        }
        let key = (meta.protocol, meta.destination, meta.destination_port, meta.source, meta.source_port);
        let known = self.bindings.lock().rows.get(&key).copied();
        known.is_some_and(|(address, port)| readdress(data, meta, End::Source, address, port))
    }

    /// A client is gone: its bindings are too.
    pub fn forget_client(&self, addresses: &[IpAddr]) {
        if self.bound.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut bindings = self.bindings.lock();
        for address in addresses {
            for key in bindings.by_client.remove(address).unwrap_or_default() {
                bindings.rows.remove(&key);
            }
        }
        self.bound.store(bindings.rows.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UdpHead, udp_checksum_ok, write_udp};

    fn packet(source: (&str, u16), destination: (&str, u16)) -> Vec<u8> {
        let mut out = Vec::new();
        let head = UdpHead {
            source: source.0.parse().unwrap(),
            source_port: source.1,
            destination: destination.0.parse().unwrap(),
            destination_port: destination.1,
            tos: 0,
        };
        assert!(write_udp(&head, b"data", &mut out));
        out
    }

    #[test]
    fn a_rewritten_packet_and_its_answer_meet_the_same_faces() {
        let policies = Policies::default();
        let prefix = Prefix::parse("192.0.2.0/24").unwrap();
        let to = Some(("10.9.9.9".parse().unwrap(), 389));
        policies.add(Rule { id: 1, prefix, protocol: 17, port: 0, allow: true, to });
        let mut out = packet(("10.0.0.1", 4000), ("192.0.2.7", 636));
        let meta = Meta::parse(&out).unwrap();
        assert_eq!(policies.outward(&mut out, &meta), Applied::Rewritten);
        let meta = Meta::parse(&out).unwrap();
        assert_eq!((meta.destination.to_string().as_str(), meta.destination_port), ("10.9.9.9", 389));
        assert!(udp_checksum_ok(&meta, &out));
        let mut back = packet(("10.9.9.9", 389), ("10.0.0.1", 4000));
        let meta = Meta::parse(&back).unwrap();
        assert!(policies.inward(&mut back, &meta));
        let meta = Meta::parse(&back).unwrap();
        assert_eq!((meta.source.to_string().as_str(), meta.source_port), ("192.0.2.7", 636));
        policies.forget_client(&["10.0.0.1".parse().unwrap()]);
        let mut back = packet(("10.9.9.9", 389), ("10.0.0.1", 4000));
        let meta = Meta::parse(&back).unwrap();
        assert!(!policies.inward(&mut back, &meta));
    }

    #[test]
    fn the_first_match_decides() {
        let policies = Policies::default();
        let any = Prefix::parse("0.0.0.0/0").unwrap();
        policies.add(Rule { id: 1, prefix: any, protocol: 17, port: 53, allow: true, to: None });
        policies.add(Rule { id: 2, prefix: any, protocol: 0, port: 0, allow: false, to: None });
        let mut dns = packet(("10.0.0.1", 1), ("8.8.8.8", 53));
        let meta = Meta::parse(&dns).unwrap();
        assert_eq!(policies.outward(&mut dns, &meta), Applied::Unchanged);
        let mut other = packet(("10.0.0.1", 1), ("8.8.8.8", 54));
        let meta = Meta::parse(&other).unwrap();
        assert_eq!(policies.outward(&mut other, &meta), Applied::Denied);
        policies.remove(2);
        assert_eq!(policies.outward(&mut other, &meta), Applied::Unchanged);
    }
}
