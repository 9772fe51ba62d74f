//! What can go wrong with a TLS profile or handshake, with a stable name and a text that says what
//! to do about it.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// The kind of failure; [`TlsErrorKind::name`] is stable and meant for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsErrorKind {
    /// The peer's first bytes are not TLS.
    NotTls,
    /// The peer's certificate has expired or is not valid yet.
    CertificateExpired,
    /// The peer's certificate was not issued by an authority that we trust.
    UnknownIssuer,
    /// The certificate is for another name.
    NameMismatch,
    /// The leaf certificate is not the pinned one.
    PinMismatch,
    /// A certificate that is wrong in another way.
    BadCertificate,
    /// A client certificate is required and none came.
    NoClientCertificate,
    /// No application protocol in common.
    AlpnMismatch,
    /// No TLS version or cipher in common.
    NoCommonParameters,
    /// The peer sent a fatal alert.
    AlertReceived,
    /// The peer closed in the middle of the handshake.
    Closed,
    /// The peer broke the protocol.
    Protocol,
    /// A record that could not be decrypted.
    BadRecord,
    /// A mistake of ours or of the system (no randomness, no time).
    Internal,
}

impl TlsErrorKind {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotTls => "tls_not_tls",
            Self::CertificateExpired => "tls_certificate_expired",
            Self::UnknownIssuer => "tls_unknown_issuer",
            Self::NameMismatch => "tls_name_mismatch",
            Self::PinMismatch => "tls_pin_mismatch",
            Self::BadCertificate => "tls_bad_certificate",
            Self::NoClientCertificate => "tls_no_client_certificate",
            Self::AlpnMismatch => "tls_alpn_mismatch",
            Self::NoCommonParameters => "tls_no_common_parameters",
            Self::AlertReceived => "tls_alert_received",
            Self::Closed => "tls_closed",
            Self::Protocol => "tls_protocol",
            Self::BadRecord => "tls_bad_record",
            Self::Internal => "tls_internal",
        }
    }
}

/// A handshake that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// What kind of failure.
    pub kind: TlsErrorKind,
    /// What happened and what to do, for people.
    pub detail: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

impl std::error::Error for TlsError {}

/// A profile that cannot be built from the given files or settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileError {
    /// What is wrong and what to do, for people.
    pub detail: String,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for ProfileError {}

impl ProfileError {
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into() }
    }
}

/// The marker that our verifier puts into `CertificateError::Other` when the pin does not fit.
#[derive(Debug)]
pub(super) struct PinMismatch;

impl fmt::Display for PinMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the certificate is not the pinned one")
    }
}

impl std::error::Error for PinMismatch {}

impl TlsError {
    pub(super) fn new(kind: TlsErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub(super) fn internal(what: impl fmt::Display) -> Self {
        Self::new(TlsErrorKind::Internal, format!("internal failure: {what}"))
    }

    /// Bytes that are no TLS record: say what they are if that can be seen.
    pub(super) fn not_tls(first: &[u8]) -> Self {
        let shown = String::from_utf8_lossy(first).into_owned();
        let what = match first {
            [b'G', b'E', b'T', ..]
            | [b'P', b'O', b'S', b'T', ..]
            | [b'P', b'U', b'T', ..]
            | [b'H', b'E', b'A', b'D', ..]
            | [b'O', b'P', b'T', b'I', ..]
            | [b'C', b'O', b'N', b'N', ..]
            | [b'D', b'E', b'L', b'E', ..]
            | [b'P', b'A', b'T', b'C', ..] => {
                "the peer sent a plain HTTP request; this port speaks TLS: use https:// or tls://"
            }
            [b'H', b'T', b'T', b'P', ..] => {
                "the peer answered with plain HTTP; the port belongs to a web server or a proxy \
                 without TLS: check address and port"
            }
            [b'S', b'S', b'H', ..] => "the peer speaks SSH: check address and port",
            [b'R', b'E', b'G', b'I', ..] | [b'I', b'N', b'V', b'I', ..] | [b'S', b'I', b'P', ..] => {
                "the peer speaks plain SIP: SIP goes inside the tunnel, not to this port"
            }
            _ => "the first bytes are not TLS: check address, port and transport",
        };
        Self::new(TlsErrorKind::NotTls, format!("{what} (it began with {shown:?})"))
    }

    /// rustls' errors, in our words.
    pub(super) fn from_rustls(error: &Error) -> Self {
        let (kind, advice) = classify(error);
        let detail = if advice.is_empty() { error.to_string() } else { format!("{error}: {advice}") };
        Self::new(kind, detail)
    }
}

fn classify(error: &Error) -> (TlsErrorKind, &'static str) {
    match error {
        Error::InvalidCertificate(why) => classify_certificate(why),
        Error::NoCertificatesPresented => (
            TlsErrorKind::NoClientCertificate,
            "this server asks for a client certificate: configure one at the client",
        ),
        Error::NoApplicationProtocol => (
            TlsErrorKind::AlpnMismatch,
            "the peer offered no application protocol of ours: is it an OpenTSM peer?",
        ),
        Error::PeerIncompatible(why) => (TlsErrorKind::NoCommonParameters, incompatible(why)),
        Error::AlertReceived(alert) => (TlsErrorKind::AlertReceived, alert_advice(*alert)),
        Error::DecryptError => {
            (TlsErrorKind::BadRecord, "a record was damaged on its way, or something between rewrites TLS")
        }
        Error::General(_)
        | Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::HandshakeNotComplete
        | Error::EncryptError
        | Error::BadMaxFragmentSize => (TlsErrorKind::Internal, ""),
        _ => (TlsErrorKind::Protocol, "the peer does not follow TLS, or a box in between changes it"),
    }
}

fn classify_certificate(error: &CertificateError) -> (TlsErrorKind, &'static str) {
    use CertificateError as C;
    match error {
        C::Expired | C::ExpiredContext { .. } => {
            (TlsErrorKind::CertificateExpired, "renew the certificate, or check this machine's clock")
        }
        C::NotValidYet | C::NotValidYetContext { .. } => (
            TlsErrorKind::CertificateExpired,
            "the certificate begins in the future: check this machine's clock",
        ),
        C::UnknownIssuer => (
            TlsErrorKind::UnknownIssuer,
            "give the issuing authority's certificate as the CA, or pin the certificate; if it was \
             issued by a public authority, the peer's chain file may lack the intermediate",
        ),
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            (TlsErrorKind::NameMismatch, "connect by a name in the certificate, or set the server name")
        }
        C::Other(other) if other.0.is::<PinMismatch>() => (
            TlsErrorKind::PinMismatch,
            "the certificate was renewed (update the pin) or somebody is in between",
        ),
        C::BadSignature => (
            TlsErrorKind::BadCertificate,
            "the CA of that name has another key: a CA that was made anew needs its new file on \
             both sides",
        ),
        _ => (TlsErrorKind::BadCertificate, "issue a proper certificate"),
    }
}

const fn incompatible(why: &PeerIncompatible) -> &'static str {
    match why {
        PeerIncompatible::ExtendedMasterSecretExtensionRequired => {
            "the peer's TLS 1.2 lacks the extended master secret (RFC 7627): use TLS 1.3"
        }
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::SupportedVersionsExtensionRequired => {
            "no TLS version in common: allow TLS 1.2 in the profile, or update the peer"
        }
        _ => "no cipher, group or signature in common: update the peer",
    }
}

const fn alert_advice(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => {
            "the peer does not trust our certificate's issuer: give it the CA certificate"
        }
        AlertDescription::CertificateExpired => "the peer finds our certificate expired: renew it",
        AlertDescription::CertificateRequired => "the server requires a client certificate",
        AlertDescription::NoApplicationProtocol => {
            "the peer does not speak our application protocol: is it an OpenTSM peer?"
        }
        AlertDescription::ProtocolVersion => "no TLS version in common: allow TLS 1.2 or update",
        AlertDescription::HandshakeFailure => {
            "no cipher or signature in common, or a client certificate is missing"
        }
        AlertDescription::BadCertificate => {
            "the peer refuses our certificate (wrong name, or not well formed)"
        }
        AlertDescription::UnrecognisedName => "the server does not know the name we asked for",
        _ => "the peer's log says why",
    }
}
