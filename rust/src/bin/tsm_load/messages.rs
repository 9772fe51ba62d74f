//! The few control messages a crowd needs (docs/protocol.md has them all).

use std::net::{IpAddr, Ipv4Addr};

const CONFIGURATION_REQUEST: u8 = 1;
const RELEASE_REQUEST: u8 = 3;
const SERVICE_REQUEST: u8 = 5;
const CONFIGURATION_RESPONSE: u8 = 2;
const RELEASE_RESPONSE: u8 = 4;
const SERVICE_RESPONSE: u8 = 6;

const CODE: u16 = 1;
const PASSWORD: u16 = 5;
const INNER_IPV4: u16 = 9;
const SERVICE: u16 = 19;
const ACTION: u16 = 20;
const FLOW: u16 = 21;
const TUNNEL_ID: u16 = 22;
const PATH_MODE: u16 = 23;

const DDT: u16 = 3;
const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const STREAM: u8 = 0;
const DATAGRAM: u8 = 1;
const UDP: u8 = 17;

/// What the server says.
pub enum Answer {
    Configured {
        tsid: u64,
        address: IpAddr,
    },
    /// With the TSID of a reserved datagram tunnel, if one was asked for.
    Service {
        reserved: Option<u64>,
    },
    /// The tunnel is given back.
    Released,
}

fn message(kind: u8, tsid: u64, sequence: u32, tlvs: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = vec![0x10, 0, kind, tlvs.len() as u8];
    out.extend_from_slice(&tsid.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    for (name, value) in tlvs {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(value);
    }
    out
}

/// A Configuration Request; with a token on the stream, without one on a datagram tunnel.
pub fn configuration(tsid: u64, token: &[u8]) -> Vec<u8> {
    let credentials = [(PASSWORD, token)];
    message(CONFIGURATION_REQUEST, tsid, 1, if token.is_empty() { &[] } else { &credentials })
}

/// A Configuration Release Request: the tunnel is no longer wanted.
pub fn release(tsid: u64) -> Vec<u8> {
    message(RELEASE_REQUEST, tsid, 2, &[])
}

/// A Service Request: this UDP port is media, on a datagram tunnel or on the stream.
pub fn media(tsid: u64, port: u16, datagram: bool) -> Vec<u8> {
    let (action, mode) = if datagram { (ENABLE, DATAGRAM) } else { (DISABLE, STREAM) };
    let [high, low] = port.to_be_bytes();
    let tlvs: [(u16, &[u8]); 4] = [
        (SERVICE, &DDT.to_be_bytes()),
        (ACTION, &[action]),
        (PATH_MODE, &[mode]),
        (FLOW, &[UDP, 0, high, low]),
    ];
    message(SERVICE_REQUEST, tsid, 2, &tlvs)
}

/// Read an answer.
pub fn read(data: &[u8]) -> Result<Answer, String> {
    let kind = data.get(2).copied().unwrap_or(0);
    let tsid = data.get(4..12).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).ok_or("too short")?;
    let code = tlv(data, CODE).and_then(|v| v.try_into().ok()).map(u16::from_be_bytes);
    if code != Some(0) {
        return Err(format!("the server answers with code {code:?} in a message of type {kind}"));
    }
    match kind {
        CONFIGURATION_RESPONSE => {
            let address = tlv(data, INNER_IPV4).and_then(|v| v.first_chunk::<4>().copied());
            let address = address.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
            Ok(Answer::Configured { tsid, address: address.into() })
        }
        SERVICE_RESPONSE => {
            let reserved = tlv(data, TUNNEL_ID).and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
            Ok(Answer::Service { reserved })
        }
        RELEASE_RESPONSE => Ok(Answer::Released),
        other => Err(format!("a message of type {other}")),
    }
}

fn tlv(data: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = data.get(16..)?;
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = after.get(..length)?;
        if u16::from_be_bytes([head[0], head[1]]) == wanted {
            return Some(value);
        }
        rest = after.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_refusals_are_errors() {
        let good =
            message(CONFIGURATION_RESPONSE, 7, 1, &[(CODE, &[0, 0]), (INNER_IPV4, &[10, 1, 2, 3, 32])]);
        let Ok(Answer::Configured { tsid: 7, address }) = read(&good) else { panic!("not read") };
        assert_eq!(address.to_string(), "10.1.2.3");
        let refused = message(CONFIGURATION_RESPONSE, 7, 1, &[(CODE, &[0, 3])]);
        assert!(read(&refused).is_err_and(|e| e.contains("Some(3)")));
        assert!(read(&good[..10]).is_err());
    }
}
