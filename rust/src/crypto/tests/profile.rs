//! Profiles and the words of their errors.

use super::super::tls_errors::TlsErrorKind;
use super::super::tls_profile::{ClientAuth, ClientProfile, ClientSettings, ServerProfile, Trust};
use super::super::{TlsError, TlsHandshake};
use super::support::{ALPN, Identity, World, make_ca, make_identity, make_leaf, make_other_ca, shake};

fn failure(world: &World, client: &ClientSettings, name: &str) -> TlsError {
    let server = ServerProfile::new(&world.server_settings()).unwrap();
    let client = ClientProfile::new(client).unwrap();
    let client = TlsHandshake::client(&client, name).unwrap();
    shake(TlsHandshake::server(&server).unwrap(), client, 9_999).unwrap_err()
}

#[test]
fn an_unknown_issuer_is_named() {
    let world = World::new();
    let mut settings = world.client_settings(false);
    settings.trust = Trust::Pem(make_other_ca().pem());
    let error = failure(&world, &settings, "tsm.example");
    assert_eq!(error.kind, TlsErrorKind::UnknownIssuer);
    assert!(error.detail.contains("CA"), "{error}");
}

#[test]
fn a_ca_made_anew_under_the_same_name_is_explained() {
    let world = World::new();
    let mut settings = world.client_settings(false);
    settings.trust = Trust::Pem(make_ca().pem());
    let error = failure(&world, &settings, "tsm.example");
    assert_eq!(error.kind, TlsErrorKind::BadCertificate);
    assert!(error.detail.contains("made anew"), "{error}");
}

#[test]
fn a_wrong_name_is_named() {
    let world = World::new();
    let error = failure(&world, &world.client_settings(false), "other.example");
    assert_eq!(error.kind, TlsErrorKind::NameMismatch);
    assert!(error.detail.contains("other.example"), "{error}");
}

#[test]
fn an_expired_certificate_is_named() {
    let mut world = World::new();
    world.leaf = make_identity("tsm.example", Some(&world.ca), (-30, -1));
    let error = failure(&world, &world.client_settings(false), "tsm.example");
    assert_eq!(error.kind, TlsErrorKind::CertificateExpired);
}

#[test]
fn a_pin_alone_suffices_and_a_wrong_one_does_not() {
    let world = World::new();
    let digest = ring::digest::digest(&ring::digest::SHA256, &world.leaf.certificate.to_der().unwrap());
    let mut settings = world.client_settings(false);
    settings.trust = Trust::Anything;
    settings.pin_sha256 = Some(digest.as_ref().try_into().unwrap());
    let server = ServerProfile::new(&world.server_settings()).unwrap();
    let client = ClientProfile::new(&settings).unwrap();
    let client = TlsHandshake::client(&client, "whatever").unwrap();
    assert!(shake(TlsHandshake::server(&server).unwrap(), client, 9_999).is_ok());
    settings.pin_sha256 = Some([7; 32]);
    assert_eq!(failure(&world, &settings, "tsm.example").kind, TlsErrorKind::PinMismatch);
    settings.trust = Trust::Pem(world.ca.pem());
    assert_eq!(failure(&world, &settings, "tsm.example").kind, TlsErrorKind::PinMismatch);
}

fn with_auth(world: &World, auth: ClientAuth, own: Option<&Identity>) -> Result<Option<Vec<u8>>, TlsError> {
    let mut server = world.server_settings();
    server.client_auth = auth;
    server.client_ca_pem = world.ca.pem();
    let mut client = world.client_settings(false);
    if let Some(own) = own {
        client.chain_pem = own.pem();
        client.key_pem = own.key_pem();
    }
    let server = TlsHandshake::server(&ServerProfile::new(&server).unwrap()).unwrap();
    let profile = ClientProfile::new(&client).unwrap();
    let client = TlsHandshake::client(&profile, "tsm.example").unwrap();
    let (server, client) = shake(server, client, 9_999)?;
    assert!(client.peer_certificate.is_some());
    Ok(server.peer_certificate)
}

#[test]
fn client_certificates_are_asked_for_and_shown() {
    let world = World::new();
    let own = make_leaf(&world.ca, "alice");
    let der = own.certificate.to_der().unwrap();
    assert_eq!(with_auth(&world, ClientAuth::None, Some(&own)), Ok(None));
    assert_eq!(with_auth(&world, ClientAuth::Request, None), Ok(None));
    assert_eq!(with_auth(&world, ClientAuth::Request, Some(&own)), Ok(Some(der.clone())));
    assert_eq!(with_auth(&world, ClientAuth::Require, Some(&own)), Ok(Some(der)));
    let error = with_auth(&world, ClientAuth::Require, None).unwrap_err();
    assert_eq!(error.kind, TlsErrorKind::NoClientCertificate);
    let stranger = make_leaf(&make_other_ca(), "mallory");
    let error = with_auth(&world, ClientAuth::Request, Some(&stranger)).unwrap_err();
    assert_eq!(error.kind, TlsErrorKind::UnknownIssuer);
}

#[test]
fn no_common_application_protocol_is_an_error() {
    let world = World::new();
    let mut settings = world.client_settings(false);
    settings.alpn = vec![b"h2".to_vec()];
    assert_eq!(failure(&world, &settings, "tsm.example").kind, TlsErrorKind::AlpnMismatch);
}

#[test]
fn a_peer_without_application_protocol_is_refused_if_asked() {
    let world = World::new();
    let mut silent = world.client_settings(false);
    silent.alpn.clear();
    let mut server = world.server_settings();
    let accepted = |server: &super::super::ServerSettings| {
        let client = ClientProfile::new(&silent).unwrap();
        shake(
            TlsHandshake::server(&ServerProfile::new(server).unwrap()).unwrap(),
            TlsHandshake::client(&client, "tsm.example").unwrap(),
            9_999,
        )
    };
    assert_eq!(accepted(&server).unwrap().0.alpn, None);
    server.require_alpn = true;
    assert_eq!(accepted(&server).unwrap_err().kind, TlsErrorKind::AlpnMismatch);
}

#[test]
fn bad_files_are_explained() {
    let world = World::new();
    let mut settings = world.server_settings();
    settings.key_pem = world.ca.key_pem();
    let error = ServerProfile::new(&settings).unwrap_err();
    assert!(error.detail.contains("key belongs"), "{error}");
    settings.key_pem = b"nonsense".to_vec();
    assert!(ServerProfile::new(&settings).unwrap_err().detail.contains("key"));
    settings.chain_pem.clear();
    assert!(ServerProfile::new(&settings).unwrap_err().detail.contains("BEGIN CERTIFICATE"));
    let mut client = world.client_settings(false);
    client.trust = Trust::Pem(b"-----BEGIN".to_vec());
    assert!(ClientProfile::new(&client).is_err());
    client.alpn = vec![ALPN.to_vec()];
    client.trust = Trust::Pem(world.ca.pem());
    let profile = ClientProfile::new(&client).unwrap();
    let error = TlsHandshake::client(&profile, "not a name").unwrap_err();
    assert!(error.detail.contains("DNS name"), "{error}");
}

#[test]
fn the_systems_store_is_read() {
    // A machine without any authorities says so instead of trusting nobody in silence.
    match ClientProfile::new(&ClientSettings::default()) {
        Ok(_) => {}
        Err(error) => assert!(error.detail.contains("ca-certificates"), "{error}"),
    }
}
