//! What the parties of a relay report to each other by RTCP (RFC 3550 section 6.4), read in passing: loss and
//! jitter as they see them, and from sender reports and their echoes the round trip to each of them.

/// Packet types (RFC 3550 section 12.1).
const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
/// Header with the sender's SSRC; one report block; the sender's own numbers before them.
const HEAD: usize = 8;
const BLOCK: usize = 24;
const SENDER_INFO: usize = 20;
/// A round trip longer than this is a clock that was set, or a lie.
const MAX_RTT_US: u64 = 10_000_000;

/// Whether a packet on a media port is RTCP (RFC 5761 section 4).
#[inline]
pub fn is_rtcp(packet: &[u8]) -> bool {
    matches!(packet, [first, kind, ..] if first >> 6 == 2 && (192..=223).contains(kind))
        && packet.len() >= HEAD
}

/// What one party has reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    /// RTCP packets heard.
    pub packets: u64,
    /// Report blocks heard.
    pub blocks: u64,
    /// Of the last block: share lost since the one before (in 256ths), lost in all, jitter in RTP clock ticks.
    pub fraction: u8,
    pub lost: i32,
    pub jitter: u32,
    /// Last round trip between this party and us; 0: unknown.
    pub rtt_us: u64,
    /// The last sender report that went through: middle 32 bits of its NTP time, and when.
    sender_report: Option<(u32, u64)>,
}

impl Reports {
    pub fn sent(&self) -> Option<(u32, u64)> {
        self.sender_report
    }

    /// Read one compound packet.
    ///
    /// `other` is the last sender report of the other party: an echo of it tells how long it took from us to this
    /// party and back.
    pub fn hear(&mut self, compound: &[u8], other: Option<(u32, u64)>, now_us: u64) {
        self.packets += 1;
        let mut rest = compound;
        while let Some((packet, behind)) = split(rest) {
            let count = usize::from(packet.first().map_or(0, |b| b & 31));
            let blocks = match packet.get(1) {
                Some(&SENDER_REPORT) => {
                    self.note_sender_report(packet, now_us);
                    packet.get(HEAD + SENDER_INFO..)
                }
                Some(&RECEIVER_REPORT) => packet.get(HEAD..),
                _ => None,
            };
            for block in blocks.unwrap_or_default().chunks_exact(BLOCK).take(count) {
                self.note_block(block, other, now_us);
            }
            rest = behind;
        }
    }

    fn note_sender_report(&mut self, packet: &[u8], now_us: u64) {
        if let Some(middle) = word(packet, HEAD + 2) {
            self.sender_report = Some((middle, now_us));
        }
    }

    fn note_block(&mut self, block: &[u8], other: Option<(u32, u64)>, now_us: u64) {
        let (Some(losses), Some(jitter), Some(echo), Some(held)) =
            (word(block, 4), word(block, 12), word(block, 16), word(block, 20))
        else {
            return;
        };
        self.blocks += 1;
        self.fraction = (losses >> 24) as u8;
        // 24 bits with a sign.
        self.lost = (losses << 8) as i32 >> 8;
        self.jitter = jitter;
        if let Some((middle, at_us)) = other
            && middle == echo
            && echo != 0
        {
            let held_us = (u64::from(held) * 1_000_000) >> 16;
            let trip = now_us.saturating_sub(at_us).saturating_sub(held_us);
            if trip < MAX_RTT_US {
                self.rtt_us = trip;
            }
        }
    }
}

/// The first packet of a compound one, and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    if !is_rtcp(data) {
        return None;
    }
    let words = usize::from(u16::from_be_bytes([*data.get(2)?, *data.get(3)?]));
    let length = (words + 1) * 4;
    (length <= data.len()).then(|| data.split_at(length))
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: u8, count: u8, words: &[u32]) -> Vec<u8> {
        let mut out = vec![0x80 | count, kind];
        out.extend_from_slice(&(words.len() as u16).to_be_bytes());
        out.extend(words.iter().flat_map(|w| w.to_be_bytes()));
        out
    }

    fn sender_report(middle: u32) -> Vec<u8> {
        words(SENDER_REPORT, 0, &[1, middle >> 16, middle << 16, 0, 10, 1600])
    }

    fn receiver_report(losses: u32, echo: u32, held: u32) -> Vec<u8> {
        words(RECEIVER_REPORT, 1, &[2, 1, losses, 70, 55, echo, held])
    }

    #[test]
    fn an_echoed_sender_report_tells_the_round_trip() {
        let (mut a, mut b) = (Reports::default(), Reports::default());
        a.hear(&sender_report(0x0001_8000), None, 1_000_000);
        // Held for half a second (in 65536ths), back after 580 ms: 80 ms on the way.
        b.hear(&receiver_report(0x4000_0009, 0x0001_8000, 0x8000), a.sent(), 1_580_000);
        assert_eq!((b.blocks, b.fraction, b.lost, b.jitter, b.rtt_us), (1, 64, 9, 55, 80_000));
    }

    #[test]
    fn duplicates_make_the_loss_negative_and_strange_echoes_tell_nothing() {
        let mut b = Reports::default();
        b.hear(&receiver_report(0x00ff_ffff, 5, 0), Some((6, 0)), 1_000);
        assert_eq!((b.lost, b.rtt_us), (-1, 0));
        b.hear(&receiver_report(0, 6, 0), Some((6, 0)), MAX_RTT_US + 1);
        assert_eq!(b.rtt_us, 0);
    }

    #[test]
    fn compound_packets_are_read_to_the_end_and_cut_ones_survived() {
        let mut whole = sender_report(7 << 16);
        whole.extend(receiver_report(3, 0, 0));
        for length in 0..=whole.len() {
            let mut reports = Reports::default();
            reports.hear(&whole[..length], None, 0);
            assert_eq!(reports.blocks, u64::from(length == whole.len()));
        }
        assert!(!is_rtcp(&[0x80, 0, 0, 1, 0, 0, 0, 0]) && is_rtcp(&whole));
    }
}
