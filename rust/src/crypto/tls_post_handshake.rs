//! Handshake messages that come after the handshake: a client skips session tickets, both sides follow
//! KeyUpdate (RFC 8446 4.6), all else is refused.

use super::tls_record::{RecordError, Side, TlsVersion};

/// Longest session ticket message that is skipped; real ones are a few hundred bytes.
const MAX_TICKET: u32 = 1 << 16;
const HELLO_REQUEST: u8 = 0;
const NEW_SESSION_TICKET: u8 = 4;
/// Message type of KeyUpdate (RFC 8446 4.6.3).
pub(super) const KEY_UPDATE: u8 = 24;

/// Handshake messages after the handshake: skipped, whole or in pieces, but for KeyUpdate.
#[derive(Debug)]
pub(super) struct PartialMessage {
    header: [u8; 4],
    have: u8,
    left: u32,
}

impl PartialMessage {
    pub(super) const NEW: Self = Self { header: [0; 4], have: 0, left: 0 };

    /// True when no message is half read.
    pub(super) const fn is_between(&self) -> bool {
        self.have == 0
    }

    /// Takes one record's worth; gives the request flag when it ended with a KeyUpdate.
    pub(super) fn take(
        &mut self,
        mut plain: &[u8],
        version: TlsVersion,
        side: Side,
    ) -> Result<Option<bool>, RecordError> {
        if plain.is_empty() {
            return Err(RecordError::Malformed);
        }
        while let Some((byte, rest)) = plain.split_first() {
            if let Some(room) = self.header.get_mut(usize::from(self.have)) {
                *room = *byte;
                self.have += 1;
                plain = rest;
                if self.have == 4 {
                    self.start(version, side)?;
                }
                continue;
            }
            if self.header.first() == Some(&KEY_UPDATE) {
                *self = Self::NEW;
                return end_key_update(*byte, rest);
            }
            let skipped = plain.len().min(self.left as usize);
            plain = plain.get(skipped..).unwrap_or_default();
            self.left -= skipped as u32;
            if self.left == 0 {
                *self = Self::NEW;
            }
        }
        Ok(None)
    }

    /// The header is whole: may this message come?
    fn start(&mut self, version: TlsVersion, side: Side) -> Result<(), RecordError> {
        let [kind, l2, l1, l0] = self.header;
        self.left = u32::from_be_bytes([0, l2, l1, l0]);
        match (version, side, kind, self.left) {
            (TlsVersion::Tls13, Side::Client, NEW_SESSION_TICKET, 1..=MAX_TICKET)
            | (TlsVersion::Tls13, _, KEY_UPDATE, 1) => Ok(()),
            (TlsVersion::Tls12, Side::Client, HELLO_REQUEST, 0) => {
                *self = Self::NEW;
                Ok(())
            }
            (TlsVersion::Tls13, _, KEY_UPDATE, _) => Err(RecordError::Malformed),
            _ => Err(RecordError::Unexpected),
        }
    }
}

/// The byte of a KeyUpdate; nothing may follow it under the old key (RFC 8446 5.1).
fn end_key_update(byte: u8, rest: &[u8]) -> Result<Option<bool>, RecordError> {
    match (byte, rest) {
        (0, []) => Ok(Some(false)),
        (1, []) => Ok(Some(true)),
        _ => Err(RecordError::Malformed),
    }
}
