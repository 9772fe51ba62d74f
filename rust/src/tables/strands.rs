//! The streams of a session beside its main one, and how media is spread over all of them.
//!
//! Signalling stays on the main stream. Which streams there are is the control plane's to say; packets read the
//! list without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use arc_swap::{ArcSwap, Guard};

use crate::limits::MAX_STREAMS;
use crate::tunnel::Tunnel;

/// What becomes of a media frame that goes by stream; the numbers are those of the boundary and of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Spread {
    /// The main stream only.
    #[default]
    Single = 0,
    /// Every stream gets a copy, in numbered frames.
    FanOut = 1,
    /// One stream gets it, each in its turn.
    LoadBalance = 2,
}

impl Spread {
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Single, Self::FanOut, Self::LoadBalance].into_iter().find(|s| *s as u8 == number)
    }
}

/// The further streams of one session.
#[derive(Debug)]
pub struct Strands {
    extras: ArcSwap<Vec<Arc<Tunnel>>>,
    spread: AtomicU8,
    turn: AtomicU32,
}

impl Default for Strands {
    fn default() -> Self {
        Self {
            extras: ArcSwap::from_pointee(Vec::new()),
            spread: AtomicU8::new(Spread::Single as u8),
            turn: AtomicU32::new(0),
        }
    }
}

impl Strands {
    #[inline]
    pub fn spread(&self) -> Spread {
        Spread::from_number(self.spread.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Whether each stream gets a copy of media, and there is more than one.
    #[inline]
    pub fn fans_out(&self) -> bool {
        self.spread() == Spread::FanOut && !self.extras.load().is_empty()
    }

    pub fn set_spread(&self, spread: Spread) {
        self.spread.store(spread as u8, Ordering::Relaxed);
    }

    /// The further streams, as they are at this moment.
    #[inline]
    pub fn extras(&self) -> Guard<Arc<Vec<Arc<Tunnel>>>> {
        self.extras.load()
    }

    /// One more stream; false if there are as many as may be.
    pub fn add(&self, tunnel: &Arc<Tunnel>) -> bool {
        let mut added = false;
        self.extras.rcu(|old| {
            let mut new = old.as_ref().clone();
            let known = new.iter().any(|t| Arc::ptr_eq(t, tunnel));
            added = known || new.len() + 1 < MAX_STREAMS;
            if added && !known {
                new.push(Arc::clone(tunnel));
            }
            new
        });
        added
    }

    /// One stream less.
    pub fn remove(&self, tunnel: &Arc<Tunnel>) {
        if self.extras.load().iter().any(|t| Arc::ptr_eq(t, tunnel)) {
            self.extras
                .rcu(|old| old.iter().filter(|t| !Arc::ptr_eq(t, tunnel)).cloned().collect::<Vec<_>>());
        }
    }

    /// No stream any more; those there were.
    pub fn clear(&self) -> Arc<Vec<Arc<Tunnel>>> {
        self.set_spread(Spread::Single);
        self.extras.swap(Arc::new(Vec::new()))
    }

    /// The stream whose turn it is: the one that has least waiting, each in turn where they are alike.
    #[inline]
    pub fn pick(&self, main: Option<&Arc<Tunnel>>) -> Option<Arc<Tunnel>> {
        let extras = self.extras.load();
        let count = extras.len() + usize::from(main.is_some());
        if count == 0 {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let stream = |index: usize| match main {
            Some(main) if index == 0 => Some(main),
            Some(_) => extras.get(index - 1),
            None => extras.get(index),
        };
        (0..count)
            .filter_map(|step| stream((turn + step) % count))
            .min_by_key(|tunnel| tunnel.stream().map_or(usize::MAX, |link| link.egress.lock().bytes()))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Class;
    use crate::tunnel::{Link, StreamLink};

    fn stream(id: u64) -> Arc<Tunnel> {
        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Arc::new(Tunnel::new(id, None, nowhere, nowhere, Link::Stream(StreamLink::default()), 0))
    }

    #[test]
    fn there_are_as_many_streams_as_may_be_and_no_more() {
        let strands = Strands::default();
        let streams: Vec<_> = (1..=MAX_STREAMS as u64).map(stream).collect();
        let added = streams.iter().filter(|s| strands.add(s)).count();
        assert_eq!(added, MAX_STREAMS - 1);
        assert!(strands.add(&streams[0]), "one that is there already counts once");
        strands.remove(&streams[0]);
        assert_eq!(strands.extras().len(), MAX_STREAMS - 2);
        assert_eq!((strands.clear().len(), strands.extras().len()), (MAX_STREAMS - 2, 0));
    }

    #[test]
    fn streams_take_turns_and_one_that_is_backed_up_is_passed_over() {
        let strands = Strands::default();
        let (main, second, third) = (stream(1), stream(2), stream(3));
        assert!(strands.add(&second) && strands.add(&third));
        let ids = |count: usize| -> Vec<u64> {
            (0..count).filter_map(|_| strands.pick(Some(&main))).map(|t| t.id).collect()
        };
        assert_eq!(ids(6), [1, 2, 3, 1, 2, 3]);
        second.stream().unwrap().egress.lock().push(Class::Media, b"waits", 0);
        assert!(!ids(6).contains(&2));
        assert_eq!(strands.pick(None).map(|t| t.id), Some(3), "the main one is lost");
    }

    #[test]
    fn without_any_stream_there_is_none_to_pick() {
        assert!(Strands::default().pick(None).is_none());
    }
}
