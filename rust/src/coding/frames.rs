//! The frames of indications 1 (compressed headers) and 3 (recovery data), as bytes (docs/protocol.md).

use crate::frame::{Frame, FrameError, next_frame};

pub const PACKED: u8 = 0x11;
pub const RECOVERY: u8 = 0x13;

/// Bytes of a compressed-header frame before what it carries: they stand for 28 (IPv4) or 48 (IPv6).
pub const PACKED_HEADER: usize = 4;

/// Longest payload of a compressed packet: what eleven bits say. Media is shorter.
pub const PACKED_PAYLOAD: usize = 2047;

/// Generations of a context id before they repeat.
pub const GENERATIONS: u8 = 8;

const FEEDBACK: usize = 5;

/// What a compressed-header frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A payload without its headers.
    Data,
    /// The same with the IPv4 identification before it.
    DataIdentified,
    /// A whole packet whose head is this context from now on.
    Establish,
    /// The receiver knows the context, or does not.
    Feedback,
}

/// The first four bytes of a compressed-header frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedHead {
    pub kind: Kind,
    pub id: u8,
    pub generation: u8,
    pub length: usize,
}

impl PackedHead {
    /// Read; None if there are not four bytes.
    #[inline]
    pub fn parse(data: &[u8]) -> Option<PackedHead> {
        let head: &[u8; PACKED_HEADER] = data.first_chunk()?;
        let word = u16::from_be_bytes([head[2], head[3]]);
        let kind = match word >> 14 {
            0 => Kind::Data,
            1 => Kind::DataIdentified,
            2 => Kind::Establish,
            _ => Kind::Feedback,
        };
        let generation = (word >> 11) as u8 & (GENERATIONS - 1);
        Some(PackedHead { kind, id: head[1], generation, length: usize::from(word & 0x7ff) })
    }

    /// Append to `out`.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Data => 0,
            Kind::DataIdentified => 1,
            Kind::Establish => 2,
            Kind::Feedback => 3u16,
        };
        let word = kind << 14 | u16::from(self.generation) << 11 | self.length as u16;
        out.extend_from_slice(&[PACKED, self.id]);
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// The length of the compressed-header frame at the start of `data`.
pub fn packed_length(data: &[u8]) -> Result<Frame, FrameError> {
    let Some(head) = PackedHead::parse(data) else { return Ok(Frame::Incomplete) };
    let length = match (head.kind, head.length) {
        (Kind::Data, length) => PACKED_HEADER + length,
        (Kind::DataIdentified, length) => PACKED_HEADER + 2 + length,
        (Kind::Feedback, FEEDBACK) => PACKED_HEADER + FEEDBACK,
        (Kind::Establish, 0) => match inner_length(data.get(PACKED_HEADER..).unwrap_or_default())? {
            Some(length) => PACKED_HEADER + length,
            None => return Ok(Frame::Incomplete),
        },
        (Kind::Feedback | Kind::Establish, _) => return Err(FrameError::Malformed),
    };
    Ok(if data.len() >= length { Frame::Packed(length) } else { Frame::Incomplete })
}

/// The length of the inner packet at the start of `data`; None while that cannot be said, an error if another
/// frame stands there.
fn inner_length(data: &[u8]) -> Result<Option<usize>, FrameError> {
    match data.first().map(|b| b >> 4) {
        None => return Ok(None),
        Some(4 | 6) => {}
        Some(_) => return Err(FrameError::Malformed),
    }
    Ok(match next_frame(data)? {
        Frame::Inner(length) => Some(length),
        _ => None,
    })
}

/// What the receiver of a context says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feedback {
    pub id: u8,
    pub generation: u8,
    /// The head with this check stands under the id; None: nothing of that generation does.
    pub known: Option<u32>,
}

/// A whole feedback frame.
pub fn write_feedback(feedback: &Feedback) -> [u8; PACKED_HEADER + FEEDBACK] {
    let mut out = [0; PACKED_HEADER + FEEDBACK];
    let word = 3 << 14 | u16::from(feedback.generation) << 11 | FEEDBACK as u16;
    out[..2].copy_from_slice(&[PACKED, feedback.id]);
    out[2..4].copy_from_slice(&word.to_be_bytes());
    out[4] = u8::from(feedback.known.is_some());
    out[5..].copy_from_slice(&feedback.known.unwrap_or(0).to_be_bytes());
    out
}

/// Read a feedback frame whose framing has been checked.
pub fn open_feedback(frame: &[u8]) -> Option<Feedback> {
    let head = PackedHead::parse(frame)?;
    let (flag, check) = frame.get(PACKED_HEADER..)?.split_first_chunk::<1>()?;
    let check = u32::from_be_bytes(*check.first_chunk()?);
    let known = (flag[0] == 1).then_some(check);
    Some(Feedback { id: head.id, generation: head.generation, known })
}

/// Frames one recovery frame may stand for.
pub const MAX_MEMBERS: usize = 4;

const WIDE: u8 = 0x10;

/// A recovery frame: the exclusive or of the payloads of some earlier frames of the flow whose sequenced frame
/// stands before it in the datagram; with one member, a copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery<'a> {
    ages: [u16; MAX_MEMBERS],
    count: usize,
    /// Exclusive or of the lengths of the payloads.
    pub lengths: u16,
    /// Exclusive or of the payloads, each with zeros behind it to the length of the longest.
    pub body: &'a [u8],
}

impl<'a> Recovery<'a> {
    /// A recovery frame of members of these ages, which are 1 to MAX_MEMBERS in number.
    pub fn new(ages: &[u16], lengths: u16, body: &'a [u8]) -> Option<Recovery<'a>> {
        let mut all = [0; MAX_MEMBERS];
        all.get_mut(..ages.len())?.copy_from_slice(ages);
        (!ages.is_empty() && !ages.contains(&0)).then_some(Recovery {
            ages: all,
            count: ages.len(),
            lengths,
            body,
        })
    }

    /// How many numbers each member is before that of the datagram's sequenced frame.
    pub fn ages(&self) -> &[u16] {
        self.ages.get(..self.count).unwrap_or_default()
    }

    /// Bytes this frame takes.
    pub fn size(&self) -> usize {
        let width = if self.wide() { 2 } else { 1 };
        2 + width * (self.count + 1 + usize::from(self.count > 1)) + self.body.len()
    }

    fn wide(&self) -> bool {
        self.body.len() > 255 || self.lengths > 255 || self.ages().iter().any(|age| *age > 255)
    }

    /// Append to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let wide = self.wide();
        out.extend_from_slice(&[RECOVERY, if wide { WIDE } else { 0 } | self.count as u8]);
        let mut number = |value: u16| match wide {
            true => out.extend_from_slice(&value.to_be_bytes()),
            false => out.push(value as u8),
        };
        self.ages().iter().for_each(|age| number(*age));
        number(self.body.len() as u16);
        if self.count > 1 {
            number(self.lengths);
        }
        out.extend_from_slice(self.body);
    }

    /// Read the frame at the start of `data`, and say how long it is. Ok(None): not all of it is there.
    pub fn parse(data: &'a [u8]) -> Result<Option<(Recovery<'a>, usize)>, FrameError> {
        let Some(flags) = data.get(1) else { return Ok(None) };
        let (width, count) = (1 + usize::from(flags & WIDE != 0), usize::from(flags & 0x0f));
        if flags & !(WIDE | 0x0f) != 0 || !(1..=MAX_MEMBERS).contains(&count) {
            return Err(FrameError::Malformed);
        }
        let fields = count + 1 + usize::from(count > 1);
        let start = 2 + width * fields;
        let Some(head) = data.get(2..start) else { return Ok(None) };
        let mut values = [0u16; MAX_MEMBERS + 2];
        for (value, bytes) in values.iter_mut().zip(head.chunks_exact(width)) {
            *value = bytes.iter().fold(0, |value, byte| value << 8 | u16::from(*byte));
        }
        let (ages, rest) = values.split_at(count);
        let extent = usize::from(rest.first().copied().unwrap_or(0));
        if extent > PACKED_PAYLOAD {
            return Err(FrameError::Oversized);
        }
        let lengths = if count > 1 { rest.get(1).copied().unwrap_or(0) } else { extent as u16 };
        let Some(body) = data.get(start..start + extent) else { return Ok(None) };
        let recovery = Recovery::new(ages, lengths, body).ok_or(FrameError::Malformed)?;
        Ok(Some((recovery, start + extent)))
    }
}

/// The length of the recovery frame at the start of `data`.
pub fn recovery_length(data: &[u8]) -> Result<Frame, FrameError> {
    Ok(Recovery::parse(data)?.map_or(Frame::Incomplete, |(_, length)| Frame::Recovery(length)))
}

#[cfg(test)]
mod tests {
    use super::super::head::tests::packet;
    use super::*;

    #[test]
    fn compressed_frames_say_their_length() {
        for (kind, length, body) in [
            (Kind::Data, 172, 172),
            (Kind::DataIdentified, 33, 35),
            (Kind::Data, 0, 0),
            (Kind::Data, 2047, 2047),
        ] {
            let head = PackedHead { kind, id: 200, generation: 5, length };
            let mut frame = Vec::new();
            head.write(&mut frame);
            frame.extend(vec![7; body]);
            assert_eq!(PackedHead::parse(&frame), Some(head));
            assert_eq!(next_frame(&frame), Ok(Frame::Packed(frame.len())));
            for cut in 0..frame.len() {
                assert_eq!(next_frame(&frame[..cut]), Ok(Frame::Incomplete), "cut at {cut}");
            }
        }
        let mut establish = Vec::new();
        PackedHead { kind: Kind::Establish, id: 1, generation: 0, length: 0 }.write(&mut establish);
        establish.extend(packet(true, 9, b"abc"));
        assert_eq!(next_frame(&establish), Ok(Frame::Packed(establish.len())));
        establish[3] = 1;
        assert_eq!(next_frame(&establish), Err(FrameError::Malformed));
        establish[3] = 0;
        establish[4] = 0x10;
        assert_eq!(next_frame(&establish), Err(FrameError::Malformed), "only a packet may be in it");
    }

    #[test]
    fn feedback_comes_back() {
        for known in [None, Some(0), Some(0xdead_beef)] {
            let feedback = Feedback { id: 255, generation: 7, known };
            let frame = write_feedback(&feedback);
            assert_eq!(next_frame(&frame), Ok(Frame::Packed(frame.len())));
            assert_eq!(open_feedback(&frame), Some(feedback));
        }
    }

    #[test]
    fn recovery_frames_come_back_narrow_or_wide() {
        let body = [9u8; 300];
        for (ages, lengths, extent, size) in [
            (&[1u16][..], 33, 33, 4 + 33),
            (&[1, 3], 5, 172, 2 + 4 + 172),
            (&[256], 172, 172, 6 + 172),
            (&[1, 2, 3, 4], 40, 300, 2 + 12 + 300),
        ] {
            let lengths = if ages.len() == 1 { extent as u16 } else { lengths };
            let recovery = Recovery::new(ages, lengths, &body[..extent]).unwrap();
            let mut frame = Vec::new();
            recovery.write(&mut frame);
            assert_eq!((frame.len(), recovery.size()), (size, size));
            assert_eq!(next_frame(&frame), Ok(Frame::Recovery(size)));
            assert_eq!(Recovery::parse(&frame), Ok(Some((recovery, size))));
            for cut in 0..size {
                assert_eq!(next_frame(&frame[..cut]), Ok(Frame::Incomplete), "cut at {cut}");
            }
        }
    }

    #[test]
    fn impossible_recovery_frames_are_named() {
        for frame in [&[RECOVERY, 0][..], &[RECOVERY, 5], &[RECOVERY, 0x21], &[RECOVERY, 1, 0, 0]] {
            assert_eq!(next_frame(frame), Err(FrameError::Malformed), "{frame:?}");
        }
        assert_eq!(next_frame(&[RECOVERY, 0x11, 0, 1, 0xff, 0xff]), Err(FrameError::Oversized));
        assert!(Recovery::new(&[], 0, &[]).is_none() && Recovery::new(&[1; 5], 0, &[]).is_none());
    }
}
