//! One server of a registry, as a container runtime's host configuration names it: the registry itself, or a mirror of it.
//!
//! Reads no file: certificates and keys are given as PEM texts. Its `Debug` output contains no header value and no key.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use reqwest::Url;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::credentials::secret::Secret;

/// A server that serves a registry's content.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Base of the API, such as `https://mirror.example/v2`, without a slash at the end.
    pub base: Url,
    /// The registry that the content is of, sent as the query `ns` where the server is not the registry itself.
    pub namespace: Option<String>,
    /// Headers of each request to this server. They are not sent to the target of a redirect.
    pub headers: HeaderMap,
    /// Verification and authentication of TLS.
    pub tls: Tls,
}

/// Certificate chain and key of a client; PEM.
pub type Identity = (Vec<u8>, Vec<u8>);

/// TLS settings of a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that are trusted beside the machine's own; PEM.
    pub roots: Vec<Vec<u8>>,
    /// Certificate and key of the client.
    pub client: Option<Identity>,
    /// The server's certificate is not verified.
    pub skip_verify: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base.as_str())
            .field("namespace", &self.namespace)
            .field("headers", &self.headers.keys())
            .field("tls", &self.tls)
            .finish()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots.len())
            .field("client", &self.client.is_some())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// The reason why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file has no valid certificate.
    #[error("no valid certificate in a CA file")]
    Roots,
    /// The client's certificate or key is malformed, or they do not match.
    #[error("invalid client certificate or key")]
    Client,
}

impl Endpoint {
    /// The URL of a path that starts with `/v2/`.
    pub(super) fn url(&self, path: &str) -> Option<Url> {
        let path = path.strip_prefix("/v2")?;
        let base = self.base.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}{path}")).ok()?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Some(url)
    }

    /// The values of its headers, which may be credentials.
    pub(super) fn secrets(&self) -> impl Iterator<Item = Secret> {
        let values = self.headers.values();
        let texts = values.filter_map(|value| value.to_str().ok());
        texts.map(|text| Secret::new(text.split_once(' ').map_or(text, |(_, secret)| secret)))
    }
}

/// A header of an [`Endpoint`], whose value is never printed.
pub fn private_header(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Tls {
    /// Adds the trusted certificates to the machine's.
    pub(super) fn extend(&self, roots: &mut RootCertStore) -> Result<(), TlsError> {
        for pem in &self.roots {
            let found = CertificateDer::pem_slice_iter(pem);
            let found: Result<Vec<_>, _> = found.collect();
            let (added, _) = roots.add_parsable_certificates(found.map_err(|_| TlsError::Roots)?);
            if added == 0 {
                return Err(TlsError::Roots);
            }
        }
        Ok(())
    }

    /// Certificate chain and key of the client.
    pub(super) fn identity(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
        let Some((chain, key)) = &self.client else {
            return Ok(None);
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|_| TlsError::Client)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Client)?;
        match chain.is_empty() {
            true => Err(TlsError::Client),
            false => Ok(Some((chain, key))),
        }
    }
}

/// Accepts every certificate, where the node's configuration says `skip_verify`.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn endpoint(base: &str, namespace: Option<&str>) -> Endpoint {
        Endpoint {
            base: Url::parse(base).unwrap(),
            namespace: namespace.map(str::to_owned),
            headers: HeaderMap::new(),
            tls: Tls::default(),
        }
    }

    #[test]
    fn paths_are_below_the_base() {
        for (base, namespace, expected) in [
            (
                "https://registry.example/v2",
                None,
                "https://registry.example/v2/web/manifests/1",
            ),
            (
                "http://mirror.example:5000/hub/v2",
                Some("docker.io"),
                "http://mirror.example:5000/hub/v2/web/manifests/1?ns=docker.io",
            ),
            (
                "https://mirror.example",
                None,
                "https://mirror.example/web/manifests/1",
            ),
        ] {
            let url = endpoint(base, namespace).url("/v2/web/manifests/1");
            assert_eq!(url.unwrap().as_str(), expected);
        }
    }

    #[test]
    fn headers_are_not_printed() {
        let mut with = endpoint("https://mirror.example/v2", None);
        let value = private_header("Basic c2VjcmV0").unwrap();
        with.headers.insert(http::header::AUTHORIZATION, value);
        let shown = format!("{with:?}");
        assert!(!shown.contains("c2VjcmV0"), "{shown}");
        let secrets: Vec<_> = with.secrets().collect();
        assert_eq!(secrets[0].expose(), "c2VjcmV0");
    }
}
