//! Certificates, pipes and peers for the tests.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use super::super::tls_profile::{ClientProfile, ClientSettings, ServerProfile, ServerSettings, Trust};
use super::super::tls_record::{Record, StreamOpener, StreamSealer};
use super::super::{Finished, TlsError, TlsHandshake};

pub const ALPN: &[u8] = b"opentsm/1";

/// A certificate and its key.
pub struct Identity {
    pub certificate: X509,
    pub key: PKey<Private>,
}

impl Identity {
    pub fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

/// Days from now between which a certificate holds.
pub type Validity = (i64, i64);
pub const VALID: Validity = (-1, 30);

pub fn make_ca() -> Identity {
    make_identity("Test CA", None, VALID)
}

pub fn make_other_ca() -> Identity {
    make_identity("Other CA", None, VALID)
}

pub fn make_leaf(ca: &Identity, name: &str) -> Identity {
    make_identity(name, Some(ca), VALID)
}

pub fn make_identity(name: &str, issuer: Option<&Identity>, (from, to): Validity) -> Identity {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(rand_u32()).unwrap().to_asn1_integer().unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(&subject).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let day = |offset: i64| Asn1Time::from_unix(now + offset * 86_400).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(to)).unwrap();
    builder.set_pubkey(&key).unwrap();
    if issuer.is_none() {
        let extension = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(extension).unwrap();
        builder.set_issuer_name(&subject).unwrap();
    } else {
        let mut names = SubjectAlternativeName::new();
        names.dns(name);
        let extension = names.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(extension).unwrap();
    }
    match issuer {
        Some(ca) => {
            builder.set_issuer_name(ca.certificate.subject_name()).unwrap();
            builder.sign(&ca.key, MessageDigest::sha256()).unwrap();
        }
        None => builder.sign(&key, MessageDigest::sha256()).unwrap(),
    }
    Identity { certificate: builder.build(), key }
}

fn rand_u32() -> u32 {
    let mut bytes = [0; 4];
    openssl::rand::rand_bytes(&mut bytes).unwrap();
    u32::from_be_bytes(bytes) >> 1
}

/// A CA, a server certified by it, and settings for both ends.
pub struct World {
    pub ca: Identity,
    pub leaf: Identity,
}

impl World {
    pub fn new() -> Self {
        let ca = make_ca();
        let leaf = make_leaf(&ca, "tsm.example");
        Self { ca, leaf }
    }

    pub fn server_settings(&self) -> ServerSettings {
        ServerSettings {
            chain_pem: self.leaf.pem(),
            key_pem: self.leaf.key_pem(),
            alpn: vec![ALPN.to_vec()],
            tls12: true,
            ..ServerSettings::default()
        }
    }

    pub fn client_settings(&self, tls12: bool) -> ClientSettings {
        ClientSettings {
            trust: Trust::Pem(self.ca.pem()),
            alpn: vec![ALPN.to_vec()],
            tls12,
            ..ClientSettings::default()
        }
    }

    /// Both ends of a TLS 1.3 handshake.
    pub fn pair(&self) -> (TlsHandshake, TlsHandshake) {
        let server = ServerProfile::new(&self.server_settings()).unwrap();
        let client = ClientProfile::new(&self.client_settings(false)).unwrap();
        (TlsHandshake::server(&server).unwrap(), TlsHandshake::client(&client, "tsm.example").unwrap())
    }
}

/// Runs a handshake between two of our ends, in pieces of `chunk` bytes.
pub fn shake(
    mut server: TlsHandshake,
    mut client: TlsHandshake,
    chunk: usize,
) -> Result<(Finished, Finished), TlsError> {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    client.feed(&[], &mut to_server)?;
    let (mut server_done, mut client_done) = (false, false);
    for _ in 0..20 {
        server_done |= feed_all(&mut server, &mut to_server, &mut to_client, chunk)?;
        client_done |= feed_all(&mut client, &mut to_client, &mut to_server, chunk)?;
        if server_done && client_done {
            break;
        }
    }
    Ok((server.finish()?, client.finish()?))
}

fn feed_all(
    end: &mut TlsHandshake,
    input: &mut Vec<u8>,
    out: &mut Vec<u8>,
    chunk: usize,
) -> Result<bool, TlsError> {
    let mut done = false;
    for piece in std::mem::take(input).chunks(chunk) {
        let step = end.feed(piece, out)?;
        assert_eq!(step.consumed, piece.len(), "bytes left over before data was sent");
        done |= step.done;
    }
    Ok(done)
}

/// One end of a stream after the handshake.
pub struct End {
    pub sealer: StreamSealer,
    pub opener: StreamOpener,
    pub inbox: Vec<u8>,
}

impl End {
    pub fn new(finished: Finished) -> Self {
        Self { sealer: finished.sealer, opener: finished.opener, inbox: Vec::new() }
    }

    pub fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let room = self.sealer.headroom();
        let mut buf = vec![0; room + plain.len() + self.sealer.tailroom()];
        buf[room..room + plain.len()].copy_from_slice(plain);
        let len = self.sealer.seal_record(&mut buf, plain.len()).unwrap();
        buf.truncate(len);
        buf
    }

    /// Takes bytes; gives the whole records in them, data as its bytes.
    pub fn open(&mut self, bytes: &[u8]) -> Vec<(Record, Vec<u8>)> {
        self.inbox.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(len) = self.opener.record_length(&self.inbox).unwrap() {
            if len > self.inbox.len() {
                break;
            }
            let mut record: Vec<u8> = self.inbox.drain(..len).collect();
            let what = self.opener.open_record(&mut record).unwrap();
            let plain = match &what {
                Record::Data(range) => record[range.clone()].to_vec(),
                _ => Vec::new(),
            };
            found.push((what, plain));
        }
        found
    }

    /// All data in `bytes`, in one piece.
    pub fn data(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.open(bytes).into_iter().flat_map(|(_, plain)| plain).collect()
    }
}

/// Both directions in memory for OpenSSL, as a stream.
#[derive(Debug, Default)]
pub struct Pipe {
    pub input: VecDeque<u8>,
    pub output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buf)
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A small generator with a seed: the tests do the same each time.
pub struct Prng(pub u64);

impl Prng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
