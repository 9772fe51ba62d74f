//! TLS between two of our ends.

use super::super::aead::Algorithm;
use super::super::tls_errors::TlsErrorKind;
use super::super::tls_record::{
    BLOCK_LIMIT, MAX_IDLE_RECORDS, MAX_PLAIN, Record, RecordError, SealError, TlsVersion,
    UPDATE_AFTER_BLOCKS, record_length,
};
use super::support::{ALPN, End, Prng, World, shake};

fn ends() -> (End, End) {
    let (server, client) = World::new().pair();
    let (server, client) = shake(server, client, 9_999).unwrap();
    (End::new(server), End::new(client))
}

#[test]
fn both_ends_agree() {
    for chunk in [1, 3, 7, 500, 100_000] {
        let (server, client) = World::new().pair();
        let (server, client) = shake(server, client, chunk).unwrap();
        assert_eq!(server.version, TlsVersion::Tls13);
        assert_eq!(server.alpn.as_deref(), Some(ALPN));
        assert_eq!(client.alpn.as_deref(), Some(ALPN));
        assert_eq!(server.ddt_root, client.ddt_root);
        assert_eq!(server.resume_binding, client.resume_binding);
        assert_ne!(server.ddt_root, server.resume_binding);
        assert_eq!(server.algorithm, client.algorithm);
    }
}

#[test]
fn the_cheapest_algorithm_is_chosen() {
    let (server, client) = World::new().pair();
    let (server, _) = shake(server, client, 9_999).unwrap();
    let cheapest = if super::super::tls_profile::has_fast_aes() {
        Algorithm::Aes128Gcm
    } else {
        Algorithm::ChaCha20Poly1305
    };
    assert_eq!(server.algorithm, cheapest);
}

#[test]
fn data_flows_both_ways() {
    let (mut server, mut client) = ends();
    let mut prng = Prng(1);
    for round in 0..2_000_usize {
        let plain = prng.bytes(1 + round % 1_500);
        let record = client.seal(&plain);
        assert_eq!(server.data(&record), plain);
        let record = server.seal(&plain);
        assert_eq!(client.data(&record), plain);
    }
    let largest = prng.bytes(MAX_PLAIN);
    let record = client.seal(&largest);
    assert_eq!(server.data(&record), largest);
}

#[test]
fn the_clients_first_data_may_come_with_its_finished() {
    let (mut server, mut client) = World::new().pair();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    client.feed(&[], &mut to_server).unwrap();
    server.feed(&to_server, &mut to_client).unwrap();
    to_server.clear();
    assert!(client.feed(&to_client, &mut to_server).unwrap().done);
    let mut client = End::new(client.finish().unwrap());
    let handshake = to_server.len();
    to_server.extend(client.seal(b"first"));
    to_server.extend(client.seal(b"second"));
    let step = server.feed(&to_server, &mut to_client).unwrap();
    assert!(step.done);
    assert_eq!(step.consumed, handshake);
    let mut server = End::new(server.finish().unwrap());
    assert_eq!(server.data(&to_server[handshake..]), b"firstsecond");
}

#[test]
fn key_updates_in_both_directions() {
    let (mut server, mut client) = ends();
    for round in 0..5_u8 {
        let mut wire = client.seal(b"old");
        client.sealer.key_update_record(true, &mut wire).unwrap();
        wire.extend(client.seal(&[round]));
        let seen = server.open(&wire);
        assert_eq!(seen[0].1, b"old");
        assert_eq!(seen[1].0, Record::KeyUpdate { request: true });
        assert_eq!(seen[2].1, [round]);
        let mut answer = Vec::new();
        server.sealer.key_update_record(false, &mut answer).unwrap();
        answer.extend(server.seal(b"new"));
        let seen = client.open(&answer);
        assert_eq!(seen[0].0, Record::KeyUpdate { request: false });
        assert_eq!(seen[1].1, b"new");
    }
}

#[test]
fn a_worn_key_asks_for_an_update_and_then_refuses() {
    let (mut server, mut client) = ends();
    if !super::super::tls_profile::has_fast_aes() {
        return; // ChaCha20-Poly1305 does not wear out.
    }
    assert!(!client.sealer.needs_update());
    client.sealer.wear(UPDATE_AFTER_BLOCKS);
    assert!(client.sealer.needs_update());
    let mut wire = Vec::new();
    client.sealer.key_update_record(false, &mut wire).unwrap();
    assert!(!client.sealer.needs_update());
    assert_eq!(server.open(&wire)[0].0, Record::KeyUpdate { request: false });
    client.sealer.wear(BLOCK_LIMIT);
    assert_eq!(client.sealer.seal_record(&mut [0; 100], 10), Err(SealError::Exhausted));
}

#[test]
fn closing_and_alerts() {
    let (mut server, mut client) = ends();
    let mut wire = Vec::new();
    client.sealer.close_notify(&mut wire).unwrap();
    assert_eq!(server.open(&wire)[0].0, Record::Close);
    wire.clear();
    server.sealer.alert(RecordError::BadTag.alert(), &mut wire).unwrap();
    assert_eq!(client.open(&wire)[0].0, Record::Alert(20));
}

#[test]
fn damage_is_noticed_wherever_it_is() {
    let (mut server, mut client) = ends();
    let record = client.seal(&[5; 40]);
    for at in 0..record.len() {
        // A fresh pair each time would be slow: a failed record does not move the opener.
        let mut damaged = record.clone();
        damaged[at] ^= 1;
        assert!(server.opener.open_record(&mut damaged).is_err(), "byte {at}");
    }
    for len in 0..record.len() {
        assert!(server.opener.open_record(&mut record[..len].to_vec()).is_err());
    }
    assert_eq!(server.data(&record), [5; 40]);
    assert!(server.opener.open_record(&mut record.clone()).is_err(), "replayed");
}

#[test]
fn records_out_of_order_end_the_stream() {
    let (mut server, mut client) = ends();
    let _lost = client.seal(b"one");
    let mut second = client.seal(b"two");
    assert_eq!(server.opener.open_record(&mut second), Err(RecordError::BadTag));
}

#[test]
fn empty_records_are_tolerated_up_to_a_limit() {
    let (mut server, mut client) = ends();
    for _ in 0..MAX_IDLE_RECORDS {
        let wire = client.seal(&[]);
        assert_eq!(server.open(&wire)[0].0, Record::Ignore);
    }
    let mut wire = client.seal(&[]);
    assert_eq!(server.opener.open_record(&mut wire), Err(RecordError::TooManyIdle));
}

#[test]
fn data_between_makes_idle_records_harmless() {
    let (mut server, mut client) = ends();
    for _ in 0..200 {
        let mut wire = client.seal(&[]);
        wire.extend(client.seal(b"x"));
        assert_eq!(server.data(&wire), b"x");
    }
}

#[test]
fn buffers_that_are_too_small_are_refused() {
    let (_, mut client) = ends();
    let whole = client.sealer.headroom() + 10 + client.sealer.tailroom();
    for len in 0..whole {
        assert_eq!(client.sealer.seal_record(&mut vec![0; len], 10), Err(SealError::BadLength));
    }
    assert_eq!(client.sealer.seal_record(&mut vec![0; whole], 10), Ok(whole));
    let mut large = vec![0; 20_000];
    assert_eq!(client.sealer.seal_record(&mut large, MAX_PLAIN + 1), Err(SealError::BadLength));
}

#[test]
fn record_lengths() {
    assert_eq!(record_length(&[]), Ok(None));
    assert_eq!(record_length(&[23, 3, 3, 0]), Ok(None));
    assert_eq!(record_length(&[23, 3, 3, 1, 2]), Ok(Some(5 + 258)));
    assert_eq!(record_length(&[24, 3, 3, 1, 2]), Err(RecordError::BadHeader));
    assert_eq!(record_length(&[23, 2, 3, 1, 2]), Err(RecordError::BadHeader));
    assert_eq!(record_length(&[23, 3, 3, 0, 0]), Err(RecordError::TooShort));
    assert_eq!(record_length(&[23, 3, 3, 0xff, 0xff]), Err(RecordError::TooLong));
    let (server, _) = ends();
    let just = u16::to_be_bytes(16_384 + 256);
    assert_eq!(server.opener.record_length(&[23, 3, 3, just[0], just[1]]), Ok(Some(5 + 16_640)));
    assert_eq!(server.opener.record_length(&[23, 3, 3, just[0], just[1] + 1]), Err(RecordError::TooLong));
}

#[test]
fn other_protocols_are_recognised() {
    for (bytes, word) in [
        (&b"GET / HTTP/1.1\r\n"[..], "HTTP request"),
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"REGISTER sip:a SIP/2.0\r\n", "SIP"),
        (b"\x80\x2e\x01\x00\x02\x00", "not TLS"),
    ] {
        let (mut server, mut client) = World::new().pair();
        let mut out = Vec::new();
        let error = server.feed(bytes, &mut out).unwrap_err();
        assert_eq!(error.kind, TlsErrorKind::NotTls);
        assert!(error.detail.contains(word), "{error}");
        assert!(out.is_empty(), "nothing it could read");
        assert_eq!(client.feed(bytes, &mut out).unwrap_err().kind, TlsErrorKind::NotTls);
    }
}

#[test]
fn a_failed_handshake_leaves_an_alert_for_the_peer() {
    let (mut server, mut client) = World::new().pair();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    client.feed(&[], &mut to_server).unwrap();
    let middle = to_server.len() / 2;
    to_server.truncate(middle);
    server.feed(&to_server, &mut to_client).unwrap();
    let mut garbage = vec![22, 3, 3, 0, 40];
    garbage.extend([0xee; 4_000]);
    assert!(server.feed(&garbage, &mut to_client).is_err());
    assert_eq!(to_client.first(), Some(&21), "an alert record");
    let error = client.feed(&to_client, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind, TlsErrorKind::AlertReceived);
}

#[test]
fn an_endless_handshake_is_cut_off() {
    let (mut server, _) = World::new().pair();
    let mut out = Vec::new();
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.extend([0; 0x4000]);
    // A handshake message that claims 64 KiB, in records without end.
    record[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    let ended = (0..100).any(|_| server.feed(&record, &mut out).is_err());
    assert!(ended);
}
