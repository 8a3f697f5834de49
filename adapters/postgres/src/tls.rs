//! Who the server has to prove to be, and what ties a password's proof to its certificate.

use std::io;
use std::sync::Arc;

use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::config::{Settings, Tls};

/// What the handshake with the server of these settings needs; nothing when it is to be plain text.
pub(crate) fn config(settings: &Settings) -> Result<Option<(ClientConfig, ServerName<'static>)>> {
    if settings.tls == Tls::Disable {
        return Ok(None);
    }
    let name = ServerName::try_from(settings.server_name().to_owned())
        .map_err(|error| failed("the host is not a name a certificate can hold").because(error))?;
    // Named and not the process's default, so that a program with a provider of its own keeps it.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed("no version of TLS can be spoken").because(error))?;
    let builder = match settings.tls {
        Tls::Disable | Tls::VerifyFull => builder.with_root_certificates(roots(settings)?),
        Tls::Require => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(algorithms))),
        Tls::VerifyCa => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(verifier(roots(settings)?, provider)?))),
    };
    let config = match &settings.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| unreadable("sslcert", certificate, error))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| failed("sslcert and sslkey do not fit each other").because(error))?
        }
    };
    Ok(Some((config, name)))
}

/// The `tls-server-end-point` binding (RFC 5929): the certificate's hash, by the hash of its own signature.
///
/// Absent for signatures without one (Ed25519), where the server has none to compare with either.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = match signature_algorithm(certificate)? {
        // MD5 and SHA-1 are replaced by SHA-256, says the RFC.
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x04 | 0x05 | 0x0B] => &digest::SHA256,
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01 | 0x03, ..] => match signature_algorithm(certificate)? {
            [.., 0x04, 0x03, 0x03] => &digest::SHA384,
            [.., 0x04, 0x03, 0x04] => &digest::SHA512,
            _ => &digest::SHA256,
        },
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0C] => &digest::SHA384,
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0D] => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The object identifier in `Certificate ::= SEQUENCE { tbs SEQUENCE, SEQUENCE { algorithm OID, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;

    let (body, _) = der(certificate, SEQUENCE)?;
    let (_, rest) = der(body, SEQUENCE)?;
    let (algorithm, _) = der(rest, SEQUENCE)?;
    der(algorithm, OBJECT_IDENTIFIER).map(|(identifier, _)| identifier)
}

/// The content of the element that starts here, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let (digits, rest) =
            rest.split_at_checked(usize::from(short & 0x7F)).filter(|(digits, _)| digits.len() <= 4)?;
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (first == tag).then(|| rest.split_at_checked(length))?
}

fn roots(settings: &Settings) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match &settings.root_certificate {
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| unreadable("sslrootcert", path, error))?;
            for certificate in certificates {
                roots.add(certificate).map_err(|error| {
                    failed("sslrootcert holds no authority").with("file", path.display()).because(error)
                })?;
            }
        }
        None => {
            // A system's store may hold single certificates nobody can read; the rest of it is good.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(failed("no authority is known that could vouch for the server")
            .hint("name the certificate of the server's authority in sslrootcert"));
    }
    Ok(roots)
}

fn verifier(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| failed("the authorities cannot be used").because(error))
}

fn unreadable(
    parameter: &'static str,
    path: &std::path::Path,
    error: rustls::pki_types::pem::Error,
) -> Error {
    failed("a certificate file cannot be read")
        .with("parameter", parameter)
        .with("file", path.display())
        .because(io::Error::other(error.to_string()))
}

fn failed(message: &'static str) -> Error {
    Error::new(code::TLS_FAILED, message)
}

/// `sslmode=require`: the server proves only that it holds the key of the certificate it shows.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// `sslmode=verify-ca`: everything but the name, which is looked at last and so is the only thing forgiven.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(certificate, chain, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate cut down to what is looked at: an empty body and a signature algorithm.
    fn certificate(oid: &[u8]) -> Vec<u8> {
        let mut algorithm = vec![0x06, u8::try_from(oid.len()).unwrap()];
        algorithm.extend(oid);
        let mut body = vec![0x30, 0x00, 0x30, u8::try_from(algorithm.len()).unwrap()];
        body.extend(algorithm);
        let mut whole = vec![0x30, 0x81, u8::try_from(body.len()).unwrap()];
        whole.extend(body);
        whole
    }

    #[test]
    fn a_binding_uses_the_hash_of_the_signature() {
        let rsa = |last| vec![0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, last];
        let ecdsa = |last| vec![0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, last];
        for (oid, bytes) in [
            (rsa(5), Some(32)),
            (rsa(11), Some(32)),
            (rsa(12), Some(48)),
            (rsa(13), Some(64)),
            (vec![0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01], Some(32)),
            (ecdsa(2), Some(32)),
            (ecdsa(3), Some(48)),
            (ecdsa(4), Some(64)),
            (vec![0x2B, 0x65, 0x70], None),
        ] {
            assert_eq!(end_point(&certificate(&oid)).map(|hash| hash.len()), bytes, "{oid:x?}");
        }
        let whole = certificate(&rsa(11));
        for cut in 0..whole.len() {
            assert_eq!(end_point(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(end_point(&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF, 0x30]), None);
    }
}
