//! Fetches an image from the servers of its registry: manifests, configuration, and layers as ordered streams.
//!
//! A layer comes over one connection or, where that is slow, in parts over several; all layers of all images share one budget of
//! connections and one of memory. A credential is sent to the registry's own server only. It stores nothing.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::Failure;
use super::hosts::{Host, Unsupported};
use crate::credentials::secret::Credential;
use crate::model::digest::Digest;
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::registry::manifest::{Content, Descriptor, ImageManifest, Manifest};
use crate::registry::select::{INDEX_DEPTH_MAX, entry};
use crate::registry::{self, Access, Blob, Client, ClientError, Options};

/// Maximum number of concurrent requests for layers, of all images together.
const CONNECTIONS: usize = 12;
/// Maximum number of parts that are received or wait for their turn, of all layers together.
const PARTS_HELD: usize = 18;
/// Size of a part. With [`PARTS_HELD`] it bounds the memory.
const PART: u64 = 2 << 20;
/// A connection is slow if its first [`FIRST`] bytes take longer. A single faster connection is cheaper than many.
const SLOW: Duration = Duration::from_millis(25);
const FIRST: u64 = 1 << 20;
/// Maximum number of resumptions after a lost connection. Each must have received some bytes.
const RESUMES: usize = 3;
/// Maximum size of an image's configuration in bytes.
const CONFIG_MAX: u64 = 8 << 20;
/// Clients of configured servers that are kept for the next image.
const CLIENTS_MAX: usize = 64;

/// State shared by all fetches of a process.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// Clients of servers, the latest last.
    clients: Mutex<Vec<(Host, Client)>>,
    connections: Arc<Semaphore>,
    parts: Arc<Semaphore>,
}

/// The manifest of an image, and the indexes above it.
#[derive(Debug)]
pub(super) struct Found {
    /// The indexes, the outermost first.
    pub(super) indexes: Vec<Manifest>,
    /// The manifest of the platform.
    pub(super) manifest: Manifest,
    /// Its content.
    pub(super) image: ImageManifest,
}

impl Found {
    /// The digest of the reference.
    pub(super) fn root(&self) -> &Digest {
        self.indexes
            .first()
            .map_or(&self.manifest.digest, |i| &i.digest)
    }
}

impl Fetcher {
    pub(super) fn new() -> Self {
        Self {
            clients: Mutex::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            parts: Arc::new(Semaphore::new(PARTS_HELD)),
        }
    }

    /// The servers to fetch an image from.
    pub(super) fn servers<'a>(
        &self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
        hosts: Vec<Host>,
    ) -> Result<Servers<'a>, Failure> {
        let mut servers = Vec::new();
        for host in hosts {
            let credential = credential.filter(|_| host.is_own);
            if credential.is_some() && host.is_plain() {
                let reason = "a credential would be sent over plain http".to_owned();
                return Err(Unsupported(reason).into());
            }
            let client = self
                .client(&host)
                .map_err(|error| Failure::Unsupported(crate::model::text::chain(&error)))?;
            servers.push(Server {
                client,
                access: Access { image, credential },
                resolves: host.resolves,
                pulls: host.pulls,
            });
        }
        Ok(Servers {
            servers,
            connections: self.connections.clone(),
            parts: self.parts.clone(),
        })
    }

    fn client(&self, host: &Host) -> Result<Client, ClientError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = clients.iter().position(|(known, _)| known == host) {
            let (host, client) = clients.remove(at);
            clients.push((host, client.clone()));
            return Ok(client);
        }
        let options = Options {
            connect_timeout: host.dial_timeout.min(Options::default().connect_timeout),
            ..Options::default()
        };
        let client = match &host.endpoint {
            None => Client::with_options(&options)?,
            Some(endpoint) => Client::at(endpoint.clone(), &options)?,
        };
        if clients.len() >= CLIENTS_MAX {
            clients.remove(0);
        }
        clients.push((host.clone(), client.clone()));
        Ok(client)
    }
}

/// The servers of one image's registry, in order.
#[derive(Debug)]
pub(super) struct Servers<'a> {
    servers: Vec<Server<'a>>,
    connections: Arc<Semaphore>,
    parts: Arc<Semaphore>,
}

#[derive(Debug)]
struct Server<'a> {
    client: Client,
    access: Access<'a>,
    resolves: bool,
    pulls: bool,
}

/// The failure of one server: the next one is asked, unless this one cannot be reached from here. containerd may reach it, so that
/// it must not be passed by.
fn tried(error: registry::Error, last: &mut Option<Failure>) -> Result<(), Failure> {
    if error.is_unreachable() {
        return Err(Failure::Unsupported(error.chain()));
    }
    tracing::debug!("trying the next host: {}", error.chain());
    *last = Some(error.into());
    Ok(())
}

fn no_server() -> Failure {
    Failure::Unsupported("no configured host may serve the image".to_owned())
}

impl Servers<'_> {
    /// Finds the manifest of the image for the platform.
    pub(super) async fn find(&self, wanted: &Platform) -> Result<Found, Failure> {
        let mut manifest = self.resolve().await?;
        let mut indexes = Vec::new();
        loop {
            let index = match manifest.content()? {
                Content::Index(index) => index,
                Content::Image(image) => {
                    return Ok(Found {
                        indexes,
                        manifest,
                        image,
                    });
                }
            };
            if indexes.len() >= INDEX_DEPTH_MAX {
                return Err(Failure::Unsupported("deeply nested indexes".to_owned()));
            }
            let entry = entry(&index, wanted, self.image())?;
            indexes.push(manifest);
            manifest = self.manifest(&entry.digest).await?;
        }
    }

    fn image(&self) -> &str {
        let first = self.servers.first();
        first.map_or("", |server| server.access.image.normalized())
    }

    /// The manifest or index of the reference.
    async fn resolve(&self) -> Result<Manifest, Failure> {
        let pinned = self.servers.first().and_then(|s| s.access.image.digest());
        if let Some(digest) = pinned {
            return self.manifest(digest).await;
        }
        let mut last = None;
        for server in self.servers.iter().filter(|server| server.resolves) {
            if !server.pulls {
                match server.client.resolve(server.access).await {
                    Ok(digest) => return self.manifest(&digest).await,
                    Err(error) => tried(error, &mut last)?,
                }
                continue;
            }
            match server.client.manifest(server.access, None).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => tried(error, &mut last)?,
            }
        }
        Err(last.unwrap_or_else(no_server))
    }

    async fn manifest(&self, digest: &Digest) -> Result<Manifest, Failure> {
        let mut last = None;
        for server in self.servers.iter().filter(|server| server.pulls) {
            match server.client.manifest(server.access, Some(digest)).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => tried(error, &mut last)?,
            }
        }
        Err(last.unwrap_or_else(no_server))
    }

    /// The configuration of the image, verified.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, Failure> {
        if descriptor.size > CONFIG_MAX {
            return Err(Failure::Unsupported("large configuration".to_owned()));
        }
        let (pieces, mut received) = mpsc::channel::<Bytes>(1);
        let collect = async {
            let mut all = Vec::new();
            while let Some(piece) = received.recv().await {
                all.extend_from_slice(&piece);
            }
            Ok(Bytes::from(all))
        };
        let sent = |_| {};
        let fetch = async {
            let pieces = pieces;
            self.blob(descriptor, &pieces, &sent).await
        };
        let ((), config) = tokio::try_join!(fetch, collect)?;
        registry::digest::verify(&config, &descriptor.digest)?;
        Ok(config)
    }

    /// Sends a blob's bytes in order. Ends early, without an error, when nobody receives them any more. The receiver verifies them.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
        pieces: &mpsc::Sender<Bytes>,
        came: &(impl Fn(u64) + Sync),
    ) -> Result<(), Failure> {
        let mut last = None;
        let mut at = 0;
        for server in self.servers.iter().filter(|server| server.pulls) {
            let download = Download {
                server,
                descriptor,
                pieces,
                came,
                connections: &self.connections,
                parts: &self.parts,
            };
            match download.run(&mut at).await {
                Ok(()) => return Ok(()),
                Err(Stop::Unwanted) => return Ok(()),
                Err(Stop::Registry(error)) => tried(error, &mut last)?,
            }
        }
        Err(last.unwrap_or_else(no_server))
    }
}

/// The reason why a download stops.
enum Stop {
    Registry(registry::Error),
    /// Nobody receives the bytes.
    Unwanted,
}

impl From<registry::Error> for Stop {
    fn from(error: registry::Error) -> Self {
        Self::Registry(error)
    }
}

/// A part of a blob in memory, which its permit accounts for.
struct Part {
    chunks: Vec<Bytes>,
    _memory: Option<OwnedSemaphorePermit>,
}

/// One blob that is downloaded from one server.
struct Download<'a, C> {
    server: &'a Server<'a>,
    descriptor: &'a Descriptor,
    pieces: &'a mpsc::Sender<Bytes>,
    came: &'a C,
    connections: &'a Arc<Semaphore>,
    parts: &'a Arc<Semaphore>,
}

impl<C: Fn(u64) + Sync> Download<'_, C> {
    /// Sends the bytes from `at` on, which is moved along.
    async fn run(&self, at: &mut u64) -> Result<(), Stop> {
        let mut resumes = 0;
        let mut may_part = true;
        while *at < self.descriptor.size {
            let before = *at;
            match self.read(at, may_part).await {
                Ok(()) => {}
                Err(Stop::Registry(error))
                    if matches!(error, registry::Error::Range { .. }) && may_part =>
                {
                    // One response may succeed where several do not.
                    may_part = false;
                }
                Err(Stop::Registry(error))
                    if error.is_cut() && *at > before && resumes < RESUMES =>
                {
                    resumes += 1;
                    tracing::debug!(digest = %self.descriptor.digest, at, "download interrupted, resuming");
                }
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    async fn read(&self, at: &mut u64, may_part: bool) -> Result<(), Stop> {
        let size = self.descriptor.size;
        let connection = self.connections.acquire().await;
        let began = Instant::now();
        let Server { client, access, .. } = self.server;
        let mut answer = client.blob(*access, self.descriptor, *at).await?;
        // Bytes that were sent before are not sent again.
        let mut skip = at.saturating_sub(answer.offset());
        let first = at.saturating_add(FIRST);
        let could_part = may_part && size.saturating_sub(first) >= 2 * PART;
        while *at < size {
            if could_part && *at >= first && began.elapsed() > SLOW {
                drop(answer);
                drop(connection);
                return self.read_parts(at).await;
            }
            let Some(mut chunk) = answer.chunk().await? else {
                break;
            };
            if skip > 0 {
                let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                skip -= cut as u64;
                chunk = chunk.slice(cut..);
            }
            (self.came)(chunk.len() as u64);
            self.send(chunk, at).await?;
            // Fast so far: no further look at the clock is needed.
            if could_part && *at >= first && began.elapsed() <= SLOW {
                return self.rest(answer, at).await;
            }
        }
        Ok(())
    }

    /// Sends all that is left of a response.
    async fn rest(&self, mut answer: Blob, at: &mut u64) -> Result<(), Stop> {
        while let Some(chunk) = answer.chunk().await? {
            (self.came)(chunk.len() as u64);
            self.send(chunk, at).await?;
        }
        Ok(())
    }

    async fn send(&self, chunk: Bytes, at: &mut u64) -> Result<(), Stop> {
        let bytes = chunk.len() as u64;
        if bytes > 0 {
            self.pieces.send(chunk).await.map_err(|_| Stop::Unwanted)?;
            *at += bytes;
        }
        Ok(())
    }

    /// Sends the rest in parts. Each part is requested in its turn, so that the one that is sent next is always among those that
    /// are received: no download waits for the memory of another that waits for it.
    async fn read_parts(&self, at: &mut u64) -> Result<(), Stop> {
        // Room for all parts in memory: while a finished part waits for its turn, the others are received.
        let (done, mut ready) = mpsc::channel::<Part>(PARTS_HELD);
        let receive = async {
            let mut parts = stream::iter(parts(*at, self.descriptor.size))
                .map(|part| self.read_part(part))
                .buffered(CONNECTIONS);
            let done = done;
            while let Some(part) = parts.next().await {
                if done.send(part?).await.is_err() {
                    break;
                }
            }
            Ok::<_, Stop>(())
        };
        let mut sent = *at;
        let send = async {
            while let Some(part) = ready.recv().await {
                for chunk in part.chunks {
                    self.send(chunk, &mut sent).await?;
                }
            }
            Ok(())
        };
        let ended = tokio::try_join!(receive, send);
        *at = sent;
        ended.map(|_| ())
    }

    async fn read_part(&self, part: Range<u64>) -> Result<Part, Stop> {
        let memory = self.parts.clone().acquire_owned().await.ok();
        let mut chunks = Vec::new();
        let mut at = part.start;
        let mut resumes = 0;
        while at < part.end {
            let _connection = self.connections.acquire().await;
            let before = at;
            match self.read_range(at..part.end, &mut at, &mut chunks).await {
                Err(error) if error.is_cut() && at > before && resumes < RESUMES => resumes += 1,
                read => read?,
            }
        }
        Ok(Part {
            chunks,
            _memory: memory,
        })
    }

    async fn read_range(
        &self,
        range: Range<u64>,
        at: &mut u64,
        chunks: &mut Vec<Bytes>,
    ) -> Result<(), registry::Error> {
        let Server { client, access, .. } = self.server;
        let end = range.end;
        let mut answer = client.blob_part(*access, self.descriptor, range).await?;
        answer.end_at(end);
        while let Some(chunk) = answer.chunk().await? {
            *at += chunk.len() as u64;
            (self.came)(chunk.len() as u64);
            chunks.push(chunk);
        }
        Ok(())
    }
}

/// The parts of the bytes from `at` to `size`.
fn parts(at: u64, size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let mut next = at;
    std::iter::from_fn(move || {
        let part = next..next.saturating_add(PART).min(size);
        next = part.end;
        (part.start < part.end).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_rest_exactly_once() {
        for (at, size) in [(0, 1), (0, PART), (5, 3 * PART + 7), (PART, PART)] {
            let mut next = at;
            for part in parts(at, size) {
                assert_eq!(part.start, next);
                assert!(part.end > part.start && part.end - part.start <= PART);
                next = part.end;
            }
            assert_eq!(next, size);
        }
    }
}
