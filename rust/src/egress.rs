//! What waits to be written to one stream: signalling before media, stale media dropped oldest first.

use std::collections::VecDeque;

use crate::limits::{MEDIA_QUEUE, QUEUE_KEEP, SIGNALLING_QUEUE, STREAM_RECORD};

/// The two classes of frames on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Control messages and every inner packet that is not media. Never dropped for age.
    Signalling,
    /// Real-time media: late is as good as lost.
    Media,
}

/// Frames of one class, in one ring of bytes with their lengths and times beside it.
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<u8>,
    frames: VecDeque<(u32, u64)>,
}

impl Lane {
    fn push(&mut self, frame: &[u8], now_us: u64) {
        self.bytes.extend(frame);
        self.frames.push_back((frame.len() as u32, now_us));
    }

    /// Move whole frames to `out` until it holds `limit` bytes; always at least one if `out` is empty.
    fn drain_into(&mut self, out: &mut Vec<u8>, start: usize, limit: usize) -> usize {
        let (mut moved, mut total) = (0, 0);
        while let Some((length, _)) = self.frames.front() {
            let length = *length as usize;
            let held = out.len() - start + total;
            if held > 0 && held + length > limit {
                break;
            }
            total += length;
            self.frames.pop_front();
            moved += 1;
        }
        // In two pieces at most: an iterator over the ring would copy byte by byte.
        let (front, back) = self.bytes.as_slices();
        let in_front = total.min(front.len());
        out.extend_from_slice(front.get(..in_front).unwrap_or_default());
        out.extend_from_slice(back.get(..total - in_front).unwrap_or_default());
        self.bytes.drain(..total);
        if self.frames.is_empty() && self.bytes.capacity() > QUEUE_KEEP {
            *self = Lane::default();
        }
        moved
    }

    fn drop_front(&mut self) {
        if let Some((length, _)) = self.frames.pop_front() {
            self.bytes.drain(..length as usize);
        }
    }
}

/// Egress queue of one stream.
#[derive(Debug, Default)]
pub struct Egress {
    signalling: Lane,
    media: Lane,
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Queued,
    /// Queued, after this many older media frames were dropped to make room.
    MadeRoom(u64),
    /// Not queued: the signalling lane is full.
    Full,
}

impl Egress {
    /// Queue one frame.
    pub fn push(&mut self, class: Class, frame: &[u8], now_us: u64) -> Pushed {
        match class {
            Class::Signalling if self.signalling.bytes.len() + frame.len() > SIGNALLING_QUEUE => Pushed::Full,
            Class::Signalling => {
                self.signalling.push(frame, now_us);
                Pushed::Queued
            }
            Class::Media => self.push_media(frame, now_us),
        }
    }

    fn push_media(&mut self, frame: &[u8], now_us: u64) -> Pushed {
        let mut dropped = 0;
        while self.media.bytes.len() + frame.len() > MEDIA_QUEUE && !self.media.frames.is_empty() {
            self.media.drop_front();
            dropped += 1;
        }
        self.media.push(frame, now_us);
        if dropped == 0 { Pushed::Queued } else { Pushed::MadeRoom(dropped) }
    }

    /// Drop media that has waited longer than `age_us`. Only to be called while the stream is backed up: a
    /// late turn of our own thread is no reason to lose what could be sent at once.
    pub fn drop_stale(&mut self, now_us: u64, age_us: u64) -> u64 {
        let mut dropped = 0;
        while self.media.frames.front().is_some_and(|(_, at)| now_us.saturating_sub(*at) > age_us) {
            self.media.drop_front();
            dropped += 1;
        }
        dropped
    }

    /// Append frames for one record to `out`, signalling first. Returns how many.
    pub fn take_record(&mut self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let first = self.signalling.drain_into(out, start, STREAM_RECORD);
        if !self.signalling.frames.is_empty() {
            return first;
        }
        if out.len() > start
            && self.media.frames.front().is_some_and(|(l, _)| out.len() - start + *l as usize > STREAM_RECORD)
        {
            return first;
        }
        first + self.media.drain_into(out, start, STREAM_RECORD)
    }

    pub fn is_empty(&self) -> bool {
        self.signalling.frames.is_empty() && self.media.frames.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.signalling.bytes.len() + self.media.bytes.len()
    }

    /// Forget everything; returns how many frames there were.
    pub fn clear(&mut self) -> usize {
        let frames = self.signalling.frames.len() + self.media.frames.len();
        *self = Self::default();
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signalling_overtakes_media() {
        let mut egress = Egress::default();
        egress.push(Class::Media, b"m1", 0);
        egress.push(Class::Signalling, b"s1", 0);
        egress.push(Class::Media, b"m2", 0);
        let mut out = Vec::new();
        assert_eq!(egress.take_record(&mut out), 3);
        assert_eq!(out, b"s1m1m2");
        assert!(egress.is_empty());
    }

    #[test]
    fn records_hold_whole_frames_up_to_the_limit() {
        let mut egress = Egress::default();
        for _ in 0..30 {
            egress.push(Class::Media, &[7; 200], 0);
        }
        let mut out = Vec::new();
        assert_eq!(egress.take_record(&mut out), STREAM_RECORD / 200);
        assert_eq!(out.len() % 200, 0);
        out.clear();
        egress.push(Class::Signalling, &[1; 9000], 0);
        assert_eq!(egress.take_record(&mut out), 1);
        assert_eq!(out.len(), 9000);
    }

    #[test]
    fn only_old_media_is_dropped_and_oldest_first() {
        let mut egress = Egress::default();
        egress.push(Class::Signalling, b"s", 0);
        egress.push(Class::Media, b"old", 0);
        egress.push(Class::Media, b"new", 200_000);
        assert_eq!(egress.drop_stale(300_000, 250_000), 1);
        let mut out = Vec::new();
        egress.take_record(&mut out);
        assert_eq!(out, b"snew");
    }

    #[test]
    fn both_lanes_are_bounded() {
        let mut egress = Egress::default();
        let frame = [0u8; 1000];
        let mut made_room = 0;
        for _ in 0..2 * MEDIA_QUEUE / frame.len() {
            if let Pushed::MadeRoom(n) = egress.push(Class::Media, &frame, 0) {
                made_room += n;
            }
        }
        assert!(made_room > 0 && egress.bytes() <= MEDIA_QUEUE);
        let full = (0..2 * SIGNALLING_QUEUE / frame.len())
            .filter(|_| egress.push(Class::Signalling, &frame, 0) == Pushed::Full);
        assert!(full.count() > 0);
        assert!(egress.bytes() <= MEDIA_QUEUE + SIGNALLING_QUEUE);
    }

    #[test]
    fn an_emptied_queue_gives_memory_back() {
        let mut egress = Egress::default();
        for _ in 0..500 {
            egress.push(Class::Media, &[0; 1000], 0);
        }
        let mut out = Vec::new();
        while !egress.is_empty() {
            egress.take_record(&mut out);
        }
        assert!(egress.media.bytes.capacity() <= QUEUE_KEEP);
    }
}
