//! A client of the OCI distribution protocol: requests manifests and blobs from registries.
//!
//! It only reads, and trusts no registry: bodies are bounded, content must have the requested digest, stalled responses end,
//! redirects carry no credential to another host, and no error contains one. It knows neither Kubernetes nor the command line,
//! stores nothing on disk, and never retries, except once with a new token.

mod auth;
#[cfg(test)]
pub(crate) mod capture;
pub mod digest;
pub mod endpoint;
mod error;
pub mod manifest;
pub(crate) mod select;
#[cfg(test)]
pub(crate) mod standin;
pub(crate) mod transport;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};

use crate::model::digest::Digest;
use crate::model::reference::Reference;

use crate::credentials::secret::{Credential, Login};
use auth::Tokens;
use endpoint::Endpoint;
pub use error::{ClientError, Error};
use manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST};
pub use select::Chosen;
use transport::{Answer, Ask, Transport};

/// Maximum size of a manifest in bytes: the limit that the distribution specification recommends to registries.
pub const MANIFEST_MAX: u64 = 4 << 20;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// An image, and the credential to request it with.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// The image.
    pub image: &'a Reference,
    /// The credential for its registry if it requires authentication; `None` for anonymous access.
    pub credential: Option<&'a Credential>,
}

impl<'a> Access<'a> {
    /// Anonymous access to the image.
    pub fn anonymous(image: &'a Reference) -> Self {
        Self {
            image,
            credential: None,
        }
    }

    fn registry(self) -> &'a str {
        self.image.registry()
    }

    fn login(self) -> Option<&'a Login> {
        self.credential.map(|c| &*c.login)
    }
}

/// The time limits of a client.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time limit for establishing a connection, including TLS.
    pub connect_timeout: Duration,
    /// Maximum time without a received byte. There is no limit on the whole transfer: the caller drops it.
    pub stall_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// A client for any number of registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its tokens are left out.
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

struct Inner {
    transport: Transport,
    tokens: Tokens,
}

impl Client {
    /// Creates a client with the default limits. Reads the machine's root certificates and the environment's proxies.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new() -> Result<Self, ClientError> {
        Self::with_options(&Options::default())
    }

    /// Creates a client with other limits.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn with_options(options: &Options) -> Result<Self, ClientError> {
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(options, None)?,
                tokens: Tokens::default(),
            }),
        })
    }

    /// Creates a client whose requests to a registry all go to this server of it. Its credentials must be meant for that server.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn at(endpoint: Endpoint, options: &Options) -> Result<Self, ClientError> {
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(options, Some(endpoint))?,
                tokens: Tokens::default(),
            }),
        })
    }

    /// Number of requests that this client and its clones have sent, including those for tokens and redirects.
    pub fn requests(&self) -> u64 {
        self.inner.transport.sent()
    }

    /// The manifest or index of the reference or, if given, the one with `digest` in its repository.
    ///
    /// # Errors
    /// See [`Error`]; for example if the content does not match the digest.
    pub async fn manifest(
        &self,
        access: Access<'_>,
        digest: Option<&Digest>,
    ) -> Result<Manifest, Error> {
        let wanted = digest.or(access.image.digest());
        let answer = self.ask_manifest(access, wanted, Method::GET).await?;
        let told = Digest::parse(answer.header(CONTENT_DIGEST)).ok();
        let media_type = answer.header(header::CONTENT_TYPE);
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let media_type = media_type.to_owned();
        let bytes = answer.bytes("the manifest", MANIFEST_MAX).await?;
        // A registry may report the digest with another algorithm than the request: any digest that can be verified is.
        for digest in wanted.into_iter().chain(&told) {
            match digest::verify(&bytes, digest) {
                Err(Error::Algorithm { .. }) if Some(digest) != wanted => {}
                verified => verified?,
            }
        }
        let digest = match wanted {
            Some(digest) => digest.clone(),
            None => digest::sha256(&bytes),
        };
        Manifest::new(bytes, digest, &media_type)
    }

    /// The current digest of the reference, without the manifest itself if the registry supports that.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resolve(&self, access: Access<'_>) -> Result<Digest, Error> {
        if let Some(digest) = access.image.digest() {
            return Ok(digest.clone());
        }
        let told = match self.ask_manifest(access, None, Method::HEAD).await {
            Ok(answer) => Digest::parse(answer.header(CONTENT_DIGEST)).ok(),
            Err(Error::Refused { status, .. }) if status == StatusCode::METHOD_NOT_ALLOWED => None,
            Err(error) => return Err(error),
        };
        match told {
            Some(digest) => Ok(digest),
            None => Ok(self.manifest(access, None).await?.digest),
        }
    }

    /// Starts to read a blob at byte `offset`. [`Blob::offset`] returns the actual start, since not every server supports ranges.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn blob(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Blob, Error> {
        let path = blob_path(access, descriptor);
        let ask = Ask::new(Method::GET, "*/*").from(offset);
        match self.ask(access, &path, ask).await {
            Ok(answer) => Blob::new(answer, descriptor, offset..descriptor.size),
            Err(Error::Refused { status, .. })
                if offset > 0 && status == StatusCode::RANGE_NOT_SATISFIABLE =>
            {
                let ask = Ask::new(Method::GET, "*/*");
                Blob::new(
                    self.ask(access, &path, ask).await?,
                    descriptor,
                    0..descriptor.size,
                )
            }
            Err(error) => Err(error),
        }
    }

    /// Starts to read a part of a blob.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Range`] if the server does not send exactly that part.
    pub async fn blob_part(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        part: Range<u64>,
    ) -> Result<Blob, Error> {
        let path = blob_path(access, descriptor);
        let ask = Ask::new(Method::GET, "*/*").within(&part);
        let answer = self.ask(access, &path, ask).await?;
        let length = part.end.saturating_sub(part.start);
        let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
        if !is_part || answer.content_length().is_some_and(|told| told != length) {
            return Err(Error::Range {
                host: answer.host().to_owned(),
                digest: descriptor.digest.to_string(),
            });
        }
        Blob::new(answer, descriptor, part)
    }

    async fn ask_manifest(
        &self,
        access: Access<'_>,
        digest: Option<&Digest>,
        method: Method,
    ) -> Result<Answer, Error> {
        let name = digest
            .map(Digest::as_str)
            .or(access.image.tag())
            .unwrap_or_default();
        let path = format!("/v2/{}/manifests/{name}", access.image.repository());
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        self.ask(access, &path, Ask::new(method, &accept)).await
    }

    /// Sends a request to the image's registry with the cached authentication; after a challenge, once more as it requires.
    async fn ask(&self, access: Access<'_>, path: &str, ask: Ask<'_>) -> Result<Answer, Error> {
        let Inner { transport, tokens } = &*self.inner;
        let mut ask = ask.concealing(access.login());
        ask.authorize(tokens.current(access).await);
        let registry = access.registry();
        let answer = transport.send_to_registry(registry, path, &ask).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !answer.is_same_origin() {
            return answer.successful().await;
        }
        let shown = ask.authorization();
        let Some(wanted) = tokens.renew(transport, access, &answer, shown).await? else {
            return answer.successful().await;
        };
        // Its body is not needed; the connection is, and is reusable only after the response is dropped.
        drop(answer);
        ask.authorize(Some(wanted));
        let answer = transport.send_to_registry(registry, path, &ask).await?;
        answer.successful().await
    }
}

fn blob_path(access: Access<'_>, descriptor: &Descriptor) -> String {
    format!(
        "/v2/{}/blobs/{}",
        access.image.repository(),
        descriptor.digest
    )
}

/// A blob, or a part of one, that is being read. The reader has to verify its digest; it never returns more bytes than the size
/// in the descriptor.
pub struct Blob {
    answer: Answer,
    offset: u64,
    /// Offset of the next byte.
    at: u64,
    /// Offset of the response's end.
    end: u64,
    /// Offset up to which the reader wants bytes.
    wanted: u64,
    digest: Digest,
    size: u64,
}

impl Blob {
    fn new(answer: Answer, descriptor: &Descriptor, asked: Range<u64>) -> Result<Self, Error> {
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        let given = match partial {
            true => asked.clone(),
            false => 0..descriptor.size,
        };
        let blob = Self {
            offset: given.start,
            at: given.start,
            end: given.end,
            wanted: given.end,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            answer,
        };
        let range = blob.answer.header(header::CONTENT_RANGE);
        let begins = range.strip_prefix("bytes ").and_then(|r| r.split_once('-'));
        let elsewhere = partial && begins.is_some_and(|(at, _)| at.parse() != Ok(asked.start));
        let most = given.end.saturating_sub(given.start);
        if elsewhere || blob.answer.content_length().is_some_and(|l| l > most) {
            return Err(blob.wrong_size());
        }
        Ok(blob)
    }

    /// The byte at which it starts: the requested one, or the first.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Ends it before byte `end` of the blob, even if the response is longer.
    pub fn end_at(&mut self, end: u64) {
        self.wanted = self.wanted.min(end);
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_cut`] if the rest can be requested.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.at >= self.wanted {
            return Ok(None);
        }
        let Some(mut chunk) = self.answer.chunk().await? else {
            return Err(Error::Short {
                host: self.answer.host().to_owned(),
                digest: self.digest.to_string(),
                missing: self.end - self.at,
            });
        };
        let end = self.at.saturating_add(chunk.len() as u64);
        if end > self.end {
            return Err(self.wrong_size());
        }
        let over = usize::try_from(end.saturating_sub(self.wanted)).unwrap_or(chunk.len());
        chunk.truncate(chunk.len() - over);
        self.at = end;
        Ok(Some(chunk))
    }

    fn wrong_size(&self) -> Error {
        Error::Size {
            digest: self.digest.to_string(),
            expected: self.size,
        }
    }
}

#[cfg(test)]
mod tests;
