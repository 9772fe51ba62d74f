//! Frames: what stands back to back on a stream and together in a datagram (docs/protocol.md, "Frames"),
//! and the fixed part of control messages that the user plane looks at.

use crate::coding::frames::{PACKED, RECOVERY, packed_length, recovery_length};
use crate::limits::{MAX_CONTROL_MESSAGE, MAX_INNER_PACKET, MAX_PROBE, MAX_TLVS};

/// Bytes of a control message before its TLVs.
pub const CONTROL_HEADER: usize = 16;

pub const KEEPALIVE_REQUEST: u8 = 7;
pub const KEEPALIVE_RESPONSE: u8 = 8;
/// "I hear nothing on the datagram tunnel": no response, no TLVs.
pub const PATH_ALERT: u8 = 10;
/// "I send nothing just now, and am here", on the datagram tunnel: no response, no TLVs.
pub const PATH_PULSE: u8 = 11;
pub const CONFIGURATION_REQUEST: u8 = 1;

/// Bytes of a sequenced frame before its inner packet.
pub const SEQUENCED_HEADER: usize = 6;
const SEQUENCED: u8 = 0x12;

/// TSID of a message whose sender has none yet.
pub const UNASSIGNED_TSID: u64 = u64::MAX;

/// Sequence numbers with this bit belong to the user plane's own keepalives, so that they never meet those
/// the control plane counts.
pub const PROBE_SEQUENCE_BIT: u32 = 0x8000_0000;

const TLV_TIMESTAMP: u16 = 24;
const TLV_PADDING: u16 = 40;
const TLV_HEADER: usize = 4;
/// Bytes of a Keepalive Request that only carries its time.
const PLAIN_PROBE: usize = CONTROL_HEADER + TLV_HEADER + 8;

/// What the first bytes of a buffer hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An inner packet of this many bytes.
    Inner(usize),
    /// A control message of this many bytes.
    Control(usize),
    /// A numbered inner packet that may come twice; the length is of the whole frame.
    Sequenced(usize),
    /// Compressed headers: a packet without its headers, with a context, or word about one.
    Packed(usize),
    /// Recovery data: earlier frames of a flow, for when they were lost.
    Recovery(usize),
    /// The frame is not complete; nothing can be said before more bytes are there.
    Incomplete,
}

/// Why bytes are not a frame. On a stream there is no way on after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// First nibble or IP header that cannot be.
    Malformed,
    /// A known nibble with an indication this version does not carry.
    Reserved,
    /// Longer than the cap.
    Oversized,
}

/// Find the first frame in `data`.
#[inline]
pub fn next_frame(data: &[u8]) -> Result<Frame, FrameError> {
    let Some(first) = data.first() else {
        return Ok(Frame::Incomplete);
    };
    match first >> 4 {
        4 => inner_length(data, 4, 2, 0, 20),
        6 => inner_length(data, 6, 4, 40, 40),
        1 if first & 0x0f == 0 => control_length(data),
        1 if *first == SEQUENCED => sequenced_length(data),
        1 if *first == PACKED => packed_length(data),
        1 if *first == RECOVERY => recovery_length(data),
        1 => Err(FrameError::Reserved),
        _ => Err(FrameError::Malformed),
    }
}

fn inner_length(
    data: &[u8],
    need: usize,
    at: usize,
    extra: usize,
    least: usize,
) -> Result<Frame, FrameError> {
    let Some(field) = data.get(at..at + 2).filter(|_| data.len() >= need) else {
        return Ok(Frame::Incomplete);
    };
    let length = usize::from(u16::from_be_bytes([field[0], field[1]])) + extra;
    if length < least {
        return Err(FrameError::Malformed);
    }
    if length > MAX_INNER_PACKET {
        return Err(FrameError::Oversized);
    }
    Ok(if data.len() >= length { Frame::Inner(length) } else { Frame::Incomplete })
}

/// Type 0x12, reserved 0, number (32 bits), then one inner packet, which may have its headers compressed.
fn sequenced_length(data: &[u8]) -> Result<Frame, FrameError> {
    let Some(inner) = data.get(SEQUENCED_HEADER..).filter(|d| !d.is_empty()) else {
        return Ok(Frame::Incomplete);
    };
    match inner.first() {
        Some(first) if matches!(first >> 4, 4 | 6) || *first == PACKED => {}
        _ => return Err(FrameError::Malformed),
    }
    match next_frame(inner)? {
        Frame::Inner(length) | Frame::Packed(length) => Ok(Frame::Sequenced(SEQUENCED_HEADER + length)),
        Frame::Control(_) | Frame::Sequenced(_) | Frame::Recovery(_) | Frame::Incomplete => {
            Ok(Frame::Incomplete)
        }
    }
}

/// Append a sequenced frame to `out`.
pub fn write_sequenced(number: u32, packet: &[u8], out: &mut Vec<u8>) {
    sequenced_head(number, out);
    out.extend_from_slice(packet);
}

/// Append what stands before the packet of a sequenced frame.
pub fn sequenced_head(number: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[SEQUENCED, 0]);
    out.extend_from_slice(&number.to_be_bytes());
}

/// The number and the inner packet of a sequenced frame.
pub fn open_sequenced(frame: &mut [u8]) -> Option<(u32, &mut [u8])> {
    let (header, packet) = frame.split_first_chunk_mut::<SEQUENCED_HEADER>()?;
    Some((u32::from_be_bytes([header[2], header[3], header[4], header[5]]), packet))
}

fn control_length(data: &[u8]) -> Result<Frame, FrameError> {
    let Some(count) = data.get(3).map(|c| usize::from(*c)) else {
        return Ok(Frame::Incomplete);
    };
    if count > MAX_TLVS {
        return Err(FrameError::Oversized);
    }
    let mut length = CONTROL_HEADER;
    for _ in 0..count {
        let Some(head) = data.get(length + 2..length + 4) else {
            return bounded_incomplete(length + 4);
        };
        length += 4 + usize::from(u16::from_be_bytes([head[0], head[1]]));
        bounded_incomplete(length)?;
    }
    Ok(if data.len() >= length { Frame::Control(length) } else { Frame::Incomplete })
}

fn bounded_incomplete(length: usize) -> Result<Frame, FrameError> {
    if length > MAX_CONTROL_MESSAGE { Err(FrameError::Oversized) } else { Ok(Frame::Incomplete) }
}

/// The header of a control message whose framing has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlHead {
    pub kind: u8,
    pub tsid: u64,
    pub sequence: u32,
}

impl ControlHead {
    /// Read the header; None if it is too short.
    pub fn parse(data: &[u8]) -> Option<ControlHead> {
        let head: &[u8; CONTROL_HEADER] = data.first_chunk()?;
        Some(ControlHead {
            kind: head[2],
            tsid: u64::from_be_bytes(*head[4..].first_chunk()?),
            sequence: u32::from_be_bytes(*head[12..].first_chunk()?),
        })
    }
}

/// A Keepalive Request, perhaps padded.
pub struct KeepaliveRequest {
    data: [u8; MAX_PROBE],
    length: usize,
}

impl KeepaliveRequest {
    pub fn bytes(&self) -> &[u8] {
        self.data.get(..self.length).unwrap_or(&self.data)
    }
}

/// Write a timestamped Keepalive Request of (about) `size` bytes, as far as that is possible.
pub fn keepalive_request(tsid: u64, sequence: u32, micros: u64, size: usize) -> KeepaliveRequest {
    let mut data = [0u8; MAX_PROBE];
    data[0] = 0x10;
    data[2] = KEEPALIVE_REQUEST;
    data[3] = 1;
    data[4..12].copy_from_slice(&tsid.to_be_bytes());
    data[12..16].copy_from_slice(&sequence.to_be_bytes());
    data[16..18].copy_from_slice(&TLV_TIMESTAMP.to_be_bytes());
    data[18..20].copy_from_slice(&8u16.to_be_bytes());
    data[20..28].copy_from_slice(&micros.to_be_bytes());
    let mut length = PLAIN_PROBE;
    let size = size.min(MAX_PROBE);
    if size >= PLAIN_PROBE + TLV_HEADER {
        data[3] = 2;
        data[28..30].copy_from_slice(&TLV_PADDING.to_be_bytes());
        data[30..32].copy_from_slice(&((size - PLAIN_PROBE - TLV_HEADER) as u16).to_be_bytes());
        length = size;
    }
    KeepaliveRequest { data, length }
}

/// When the peer sent its Keepalive Request, by its own clock: what `keepalive_request` wrote.
pub fn keepalive_time(message: &[u8]) -> Option<u64> {
    let tlv: &[u8; TLV_HEADER] = message.get(CONTROL_HEADER..)?.first_chunk()?;
    let timestamp = u16::from_be_bytes([tlv[0], tlv[1]]) == TLV_TIMESTAMP && tlv[2..] == [0, 8];
    let value: &[u8; 8] = message.get(CONTROL_HEADER + TLV_HEADER..)?.first_chunk()?;
    timestamp.then(|| u64::from_be_bytes(*value))
}

/// Write a message that is nothing but its type: a Path Alert, a Path Pulse.
pub fn short_message(kind: u8, tsid: u64, sequence: u32) -> [u8; CONTROL_HEADER] {
    let mut out = [0u8; CONTROL_HEADER];
    out[0] = 0x10;
    out[2] = kind;
    out[4..12].copy_from_slice(&tsid.to_be_bytes());
    out[12..16].copy_from_slice(&sequence.to_be_bytes());
    out
}

/// Turn a Keepalive Request into its response: the same message with another type.
pub fn answer_keepalive(message: &mut [u8]) {
    if let Some(kind) = message.get_mut(2) {
        *kind = KEEPALIVE_RESPONSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(tlvs: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0x10, 0, 5, tlvs.len() as u8];
        out.extend_from_slice(&7u64.to_be_bytes());
        out.extend_from_slice(&9u32.to_be_bytes());
        for value in tlvs {
            out.extend_from_slice(&3u16.to_be_bytes());
            out.extend_from_slice(&(value.len() as u16).to_be_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    #[test]
    fn every_proper_prefix_is_incomplete_and_the_whole_is_a_frame() {
        let message = control(&[b"abc", b"", b"0123456789"]);
        for cut in 0..message.len() {
            assert_eq!(next_frame(&message[..cut]), Ok(Frame::Incomplete), "cut at {cut}");
        }
        assert_eq!(next_frame(&message), Ok(Frame::Control(message.len())));
        assert_eq!(ControlHead::parse(&message), Some(ControlHead { kind: 5, tsid: 7, sequence: 9 }));
    }

    #[test]
    fn impossible_frames_are_named() {
        assert_eq!(next_frame(&[0x00]), Err(FrameError::Malformed));
        assert_eq!(next_frame(&[0x1f, 0]), Err(FrameError::Reserved));
        assert_eq!(next_frame(&[0x45, 0, 0, 10]), Err(FrameError::Malformed));
        assert_eq!(next_frame(&[0x45, 0, 0xff, 0xff]), Err(FrameError::Oversized));
        assert_eq!(next_frame(&[0x10, 0, 1, 65]), Err(FrameError::Oversized));
        let mut long = control(&[&[0; 4000]]);
        long[3] = 2;
        long.extend_from_slice(&[0, 3, 0x10, 0]);
        assert_eq!(next_frame(&long), Err(FrameError::Oversized));
    }

    #[test]
    fn sequenced_frames_carry_one_inner_packet() {
        let mut packet = vec![0x45, 0, 0, 28];
        packet.resize(28, 0);
        let mut frame = Vec::new();
        write_sequenced(0xfffe_0001, &packet, &mut frame);
        for cut in 0..frame.len() {
            assert_eq!(next_frame(&frame[..cut]), Ok(Frame::Incomplete), "cut at {cut}");
        }
        assert_eq!(next_frame(&frame), Ok(Frame::Sequenced(34)));
        assert_eq!(open_sequenced(&mut frame), Some((0xfffe_0001, &mut packet[..])));
        let nested = [0x12, 0, 0, 0, 0, 0, 0x12, 0];
        assert_eq!(next_frame(&nested), Err(FrameError::Malformed));
    }

    #[test]
    fn keepalives_are_valid_frames_and_answers_differ_in_type_only() {
        for size in [0, 28, 31, 32, 220, MAX_PROBE, 5000] {
            let message = keepalive_request(7, PROBE_SEQUENCE_BIT, 99, size);
            let length = if size < 32 { 28 } else { size.min(MAX_PROBE) };
            assert_eq!(next_frame(message.bytes()), Ok(Frame::Control(length)));
            assert_eq!(keepalive_time(message.bytes()), Some(99));
        }
        assert_eq!(keepalive_time(&short_message(PATH_PULSE, 7, 1)), None);
        let probe = keepalive_request(0x0102_0304_0506_0708, PROBE_SEQUENCE_BIT | 5, 99, 0);
        let mut message = probe.bytes().to_vec();
        answer_keepalive(&mut message);
        let head = ControlHead::parse(&message).unwrap();
        assert_eq!((head.kind, head.sequence), (KEEPALIVE_RESPONSE, PROBE_SEQUENCE_BIT | 5));
    }
}
