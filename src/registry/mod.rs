//! A client of the OCI distribution protocol: asks registries for manifests and blobs.
//!
//! It only reads, and trusts a registry with nothing: bodies are bounded, content has the digest it was asked for by or is an
//! error, silence ends, redirects carry no credential to another host, and no
//! error repeats one. It knows neither Kubernetes nor the command line,
//! keeps nothing on disk, and never tries again by itself, save once with a fresh token.

mod auth;
#[cfg(test)]
pub(crate) mod capture;
pub mod digest;
mod error;
pub mod manifest;
pub(crate) mod select;
#[cfg(test)]
pub(crate) mod standin;
mod transport;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};

use crate::model::digest::Digest;
use crate::model::reference::Reference;

use crate::credentials::secret::{Credential, Login};
use auth::Tokens;
pub use error::{ClientError, Error};
use manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST};
pub use select::Chosen;
use transport::{Answer, Ask, Transport};

/// Longest manifest that is read, in bytes: what registries accept at most, by the distribution specification's advice.
pub const MANIFEST_MAX: u64 = 4 << 20;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// An image, and who asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// The image.
    pub image: &'a Reference,
    /// What its registry is shown if it asks for it; none is anonymous.
    pub credential: Option<&'a Credential>,
}

impl<'a> Access<'a> {
    /// The image for anybody.
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

/// How a client waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a connection may take to come about, TLS included.
    pub connect_timeout: Duration,
    /// How long a registry may send nothing. There is no limit on the whole: the caller drops what takes too long.
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

/// A client of any number of registries. A clone shares connections and tokens.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    tokens: Tokens,
}

impl Client {
    /// A client with the usual limits. Reads the machine's root certificates and the environment's proxies.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new() -> Result<Self, ClientError> {
        Self::with_options(&Options::default())
    }

    /// A client with other limits.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn with_options(options: &Options) -> Result<Self, ClientError> {
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(options)?,
                tokens: Tokens::default(),
            }),
        })
    }

    /// How many requests this client and its clones have sent, those for tokens and those that were redirected included.
    pub fn requests(&self) -> u64 {
        self.inner.transport.sent()
    }

    /// The manifest or index that the reference names; or, of its repository, the one with `digest`.
    ///
    /// # Errors
    /// See [`Error`]; among others where the content is not what the digest says.
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
        // A registry may tell the digest by another algorithm than it was asked by: what can be verified is.
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

    /// The digest that the reference stands for now, without the manifest itself where the registry can tell it so.
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

    /// Begins to read a blob at byte `offset`. [`Blob::offset`] tells where it really begins, since not every server
    /// knows ranges.
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

    /// Begins to read a part of a blob.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Range`] where the server does not give just that part.
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

    /// Asks the image's registry, with what it is known to want; if that will not do, once more with what it says it wants.
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
        // Its body is of no use; the connection is, and is free for another only when the answer is gone.
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

/// A blob, or a part of one, that is being read. Its digest is the reader's to verify; never more bytes come than the
/// descriptor tells.
pub struct Blob {
    answer: Answer,
    offset: u64,
    /// Where the next byte belongs.
    at: u64,
    /// Where the answer ends.
    end: u64,
    /// Where it ends for whoever reads it.
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

    /// The byte at which it begins: the one asked for, or the first.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Ends it before byte `end` of the blob, whatever else would come.
    pub fn end_at(&mut self, end: u64) {
        self.wanted = self.wanted.min(end);
    }

    /// The next bytes; `None` when all have come.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_cut`] where the rest can be asked for.
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
