//! TLS profiles: certificates, keys and rules, checked once and shared by all handshakes.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring as ring_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion, version,
};

use super::tls::SecretCatcher;
use super::tls_errors::{PinMismatch, ProfileError};

/// Whether a server asks its clients for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It does not ask.
    #[default]
    None,
    /// It asks; a client without one is let in, one with a bad one is not.
    Request,
    /// Without a good certificate nobody gets in.
    Require,
}

/// What a server profile is made of. All files as bytes in PEM.
#[derive(Clone, Debug, Default)]
pub struct ServerSettings {
    /// Leaf certificate, then the intermediates.
    pub chain_pem: Vec<u8>,
    /// Private key of the leaf: PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key_pem: Vec<u8>,
    /// Authorities that client certificates must come from; empty without `client_auth`.
    pub client_ca_pem: Vec<u8>,
    /// Whether clients are asked for certificates.
    pub client_auth: ClientAuth,
    /// Application protocols, best first; empty: none.
    pub alpn: Vec<Vec<u8>>,
    /// Refuse a peer that agrees on no application protocol.
    pub require_alpn: bool,
    /// Allow TLS 1.2 besides TLS 1.3.
    pub tls12: bool,
}

/// Which servers a client trusts.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// The system's certificate authorities.
    #[default]
    System,
    /// The authorities in this PEM file.
    Pem(Vec<u8>),
    /// Any certificate whatsoever (`verify: false`). Only together with a pin does this keep anyone
    /// out; without, it is for laboratories.
    Anything,
}

/// What a client profile is made of.
#[derive(Clone, Debug, Default)]
pub struct ClientSettings {
    /// Which servers to trust.
    pub trust: Trust,
    /// SHA-256 of the server's leaf certificate (DER). Must hold besides what `trust` asks.
    pub pin_sha256: Option<[u8; 32]>,
    /// Client certificate chain in PEM; empty: none.
    pub chain_pem: Vec<u8>,
    /// Private key of the client certificate in PEM.
    pub key_pem: Vec<u8>,
    /// Application protocols, best first; empty: none.
    pub alpn: Vec<Vec<u8>>,
    /// Refuse a server that agrees on no application protocol.
    pub require_alpn: bool,
    /// Allow TLS 1.2 besides TLS 1.3.
    pub tls12: bool,
}

/// A checked server profile. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerProfile {
    pub(super) config: Arc<ServerConfig>,
    pub(super) require_alpn: bool,
}

/// A checked client profile. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientProfile {
    pub(super) config: Arc<ClientConfig>,
    pub(super) require_alpn: bool,
}

impl ServerProfile {
    /// Checks the settings and makes the profile. Sessions are never resumed (no tickets, no cache):
    /// each connection has fresh keys, and OpenTSM has a resume of its own.
    ///
    /// # Errors
    /// [`ProfileError`] that says which file is wrong and how.
    pub fn new(settings: &ServerSettings) -> Result<Self, ProfileError> {
        let provider = provider();
        let chain = read_chain(&settings.chain_pem, "server certificate")?;
        let key = read_key(&settings.key_pem, "server")?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(settings.tls12))
            .map_err(|error| ProfileError::new(format!("TLS versions: {error}")))?;
        let builder = match settings.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Request | ClientAuth::Require => {
                builder.with_client_cert_verifier(client_verifier(settings, &provider)?)
            }
        };
        let mut config =
            builder.with_single_cert(chain, key).map_err(|error| pair_error("server", &error))?;
        config.alpn_protocols.clone_from(&settings.alpn);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_tls13_tickets = 0;
        config.require_ems = true;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(SecretCatcher);
        Ok(Self { config: Arc::new(config), require_alpn: settings.require_alpn })
    }
}

impl ClientProfile {
    /// Checks the settings and makes the profile. It reads the system's store if `trust` says so.
    ///
    /// # Errors
    /// [`ProfileError`] that says which file is wrong and how.
    pub fn new(settings: &ClientSettings) -> Result<Self, ProfileError> {
        let provider = provider();
        let verifier = Arc::new(ServerVerifier {
            chain: chain_verifier(&settings.trust, &provider)?,
            pin: settings.pin_sha256,
            provider: provider.clone(),
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(settings.tls12))
            .map_err(|error| ProfileError::new(format!("TLS versions: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = if settings.chain_pem.is_empty() && settings.key_pem.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = read_chain(&settings.chain_pem, "client certificate")?;
            let key = read_key(&settings.key_pem, "client")?;
            builder.with_client_auth_cert(chain, key).map_err(|error| pair_error("client", &error))?
        };
        config.alpn_protocols.clone_from(&settings.alpn);
        config.resumption = Resumption::disabled();
        config.require_ems = true;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(SecretCatcher);
        Ok(Self { config: Arc::new(config), require_alpn: settings.require_alpn })
    }
}

/// ring's algorithms, cheapest first: AES-128-GCM where the processor has AES instructions.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring_provider::default_provider();
    provider.cipher_suites.sort_by_key(|suite| preference(&format!("{:?}", suite.suite())));
    Arc::new(provider)
}

fn preference(suite: &str) -> u8 {
    let old = u8::from(!suite.starts_with("TLS13")) * 4;
    old + match (suite.contains("CHACHA20"), suite.contains("AES_128")) {
        (true, _) if has_fast_aes() => 1,
        (true, _) => 0,
        (_, true) => u8::from(!has_fast_aes()),
        _ => 2,
    }
}

/// True when AES-GCM is quicker than ChaCha20-Poly1305 on this processor.
pub(super) fn has_fast_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

static NEW_ONLY: [&SupportedProtocolVersion; 1] = [&version::TLS13];
static NEW_AND_OLD: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

fn versions(tls12: bool) -> &'static [&'static SupportedProtocolVersion] {
    if tls12 { &NEW_AND_OLD } else { &NEW_ONLY }
}

fn read_chain(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, ProfileError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| ProfileError::new(format!("{what}: not readable as PEM: {error}")))?;
    if chain.is_empty() {
        return Err(ProfileError::new(format!(
            "{what}: no certificate in it; a PEM file with -----BEGIN CERTIFICATE----- is expected"
        )));
    }
    Ok(chain)
}

fn read_key(pem: &[u8], whose: &str) -> Result<PrivateKeyDer<'static>, ProfileError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        ProfileError::new(format!(
            "{whose} key: no private key that can be read ({error}); a PEM file with an \
             unencrypted PKCS#8, SEC1 or PKCS#1 key is expected"
        ))
    })
}

fn pair_error(whose: &str, error: &rustls::Error) -> ProfileError {
    ProfileError::new(format!(
        "{whose} certificate and key: {error}; check that the key belongs to the first \
         certificate of the chain, and that it is RSA, ECDSA (P-256, P-384) or Ed25519"
    ))
}

fn read_roots(pem: &[u8], what: &str) -> Result<RootCertStore, ProfileError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(pem, what)? {
        roots.add(certificate).map_err(|error| ProfileError::new(format!("{what}: {error}")))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, ProfileError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry a few certificates that do not parse; the rest is what counts.
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        return Err(ProfileError::new(
            "this system has no certificate authorities (install ca-certificates), or give the \
             CA file of the server",
        ));
    }
    Ok(roots)
}

fn client_verifier(
    settings: &ServerSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, ProfileError> {
    let roots = read_roots(&settings.client_ca_pem, "client CA")?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = match settings.client_auth {
        ClientAuth::Request => builder.allow_unauthenticated(),
        ClientAuth::None | ClientAuth::Require => builder,
    };
    builder.build().map_err(|error| ProfileError::new(format!("client CA: {error}")))
}

fn chain_verifier(
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<WebPkiServerVerifier>>, ProfileError> {
    let roots = match trust {
        Trust::Anything => return Ok(None),
        Trust::System => system_roots()?,
        Trust::Pem(pem) => read_roots(pem, "CA")?,
    };
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map(Some)
        .map_err(|error| ProfileError::new(format!("CA: {error}")))
}

/// The chain (unless switched off), then the pin (if set). The handshake's signature is always
/// checked: otherwise a pin would prove nothing.
#[derive(Debug)]
struct ServerVerifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    pin: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(pin) = self.pin {
            let digest = ring::digest::digest(&ring::digest::SHA256, end_entity);
            if digest.as_ref() != pin {
                let why = CertificateError::Other(OtherError(Arc::new(PinMismatch)));
                return Err(rustls::Error::InvalidCertificate(why));
            }
        }
        match &self.chain {
            None => Ok(ServerCertVerified::assertion()),
            Some(chain) => {
                chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
