//! A stand-in for the container runtimes of many nodes: CRI over gRPC on one Unix socket for each node.
//!
//! A pull takes as long as it would, and transfers nothing: the stand-in counts what a registry would send, with and without
//! peers that serve each other.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse,
    PullImageRequest, PullImageResponse, UInt64Value, VersionRequest, VersionResponse,
};
use sha2::Digest;
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// Compressed size of every image.
pub const IMAGE_BYTES: u64 = 200_000_000;
/// Duration of a pull, more or less up to a quarter.
pub const PULL: Duration = Duration::from_secs(8);
/// Number of pulls that a peer with the image serves at once.
pub const UPLOADS: usize = 2;
/// An image whose reference contains this does not exist.
pub const MISSING: &str = "/missing/";
/// The registry of an image whose reference contains this limits the rate.
pub const LIMITED: &str = "/limited/";

/// The runtimes of all nodes.
pub struct Runtimes {
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
    /// The nodes run on it.
    _tokio: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    /// Images that every node has.
    everywhere: RwLock<Vec<Image>>,
    pulls: Mutex<HashMap<String, Pulls>>,
}

/// The pulls of one image.
#[derive(Debug, Clone, Default)]
pub struct Pulls {
    /// The time of each start.
    pub starts: Vec<Instant>,
    active: usize,
    complete: usize,
    from_registry: usize,
    /// The most pulls at one time: what the registry serves without peers.
    pub peak: usize,
    /// The most pulls at one time that no peer could serve.
    pub peak_with_peers: usize,
    /// Number of pulls that no peer could serve.
    pub unserved: usize,
}

impl Pulls {
    /// A pull begins; returns whether the registry has to serve it where peers exist.
    fn begin(&mut self) -> bool {
        self.starts.push(Instant::now());
        let by_peers = self.active - self.from_registry;
        let from_registry = by_peers >= self.complete * UPLOADS;
        self.active += 1;
        self.peak = self.peak.max(self.active);
        if from_registry {
            self.from_registry += 1;
            self.unserved += 1;
            self.peak_with_peers = self.peak_with_peers.max(self.from_registry);
        }
        from_registry
    }

    /// Seconds from a moment until each start, sorted.
    pub fn starts_after(&self, moment: Instant) -> Vec<f64> {
        let starts = self.starts.iter();
        let after = starts.map(|start| start.saturating_duration_since(moment).as_secs_f64());
        let mut after: Vec<f64> = after.collect();
        after.sort_by(f64::total_cmp);
        after
    }

    fn end(&mut self, from_registry: bool) {
        self.active -= 1;
        self.complete += 1;
        self.from_registry -= usize::from(from_registry);
    }
}

/// A node's runtime.
struct Node {
    shared: Arc<Shared>,
    /// The images that not every node has.
    own: Mutex<HashSet<String>>,
}

impl Runtimes {
    /// Starts the runtimes of nodes `0..nodes`.
    pub fn start(nodes: usize) -> Self {
        let tokio = super::tokio(2);
        let directory = crate::bed::directory();
        let shared = Arc::new(Shared::default());
        for n in 0..nodes {
            let node = Arc::new(Node {
                shared: Arc::clone(&shared),
                own: Mutex::default(),
            });
            let _inside = tokio.enter();
            let listener = UnixListener::bind(socket(directory.path(), n)).unwrap();
            tokio.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, Arc::clone(&node)));
                }
            });
        }
        Self {
            shared,
            directory,
            _tokio: tokio,
        }
    }

    /// The directory of the sockets.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// These images are on every node from now on.
    pub fn seed(&self, references: &[String]) {
        let images = references.iter().map(|reference| image(reference));
        *self.shared.everywhere.write().unwrap() = images.collect();
    }

    /// The pulls of an image so far.
    pub fn pulls(&self, reference: &str) -> Pulls {
        let pulls = self.shared.pulls();
        pulls.get(reference).cloned().unwrap_or_default()
    }
}

/// The socket of a node.
pub fn socket(directory: &Path, node: usize) -> PathBuf {
    directory.join(format!("{node}.sock"))
}

impl Shared {
    fn pulls(&self) -> MutexGuard<'_, HashMap<String, Pulls>> {
        self.pulls.lock().unwrap()
    }
}

impl Node {
    fn status(&self, reference: &str) -> Option<Image> {
        if self.own.lock().unwrap().contains(reference) {
            return Some(image(reference));
        }
        let everywhere = self.shared.everywhere.read().unwrap();
        let mut same = everywhere.iter().filter(|i| i.repo_tags[0] == reference);
        same.next().cloned()
    }

    fn list(&self) -> Vec<Image> {
        let mut images = self.shared.everywhere.read().unwrap().clone();
        images.extend(self.own.lock().unwrap().iter().map(|own| image(own)));
        images
    }

    async fn pull(&self, reference: String) -> Result<String, Status> {
        if reference.contains(MISSING) {
            // containerd's words, which the reason of a failure depends on.
            let message = format!(
                "failed to pull and unpack image \"{reference}\": failed to resolve reference \"{reference}\": {reference}: not found"
            );
            return Err(Status::not_found(message));
        }
        if reference.contains(LIMITED) {
            let message = format!(
                "failed to pull and unpack image \"{reference}\": unexpected status: 429 Too Many Requests"
            );
            return Err(Status::unknown(message));
        }
        let begin = |pulls: &mut Pulls| pulls.begin();
        let from_registry = begin(self.shared.pulls().entry(reference.clone()).or_default());
        tokio::time::sleep(PULL.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        if let Some(pulls) = self.shared.pulls().get_mut(&reference) {
            pulls.end(from_registry);
        }
        let id = image(&reference).id;
        self.own.lock().unwrap().insert(reference);
        Ok(id)
    }
}

fn image(reference: &str) -> Image {
    let hash = sha2::Sha256::digest(reference.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let repository = reference
        .rsplit_once(':')
        .map_or(reference, |(name, _)| name);
    Image {
        id: format!("sha256:{hash}"),
        repo_tags: vec![reference.to_owned()],
        repo_digests: vec![format!("{repository}@sha256:{hash}")],
        size: IMAGE_BYTES,
        ..Image::default()
    }
}

async fn serve(stream: UnixStream, node: Arc<Node>) {
    let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&node)));
    let connection = http2::Builder::new(TokioExecutor::new());
    // An error is a client that has gone.
    let _ = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, node: Arc<Node>) -> Result<Response<Body>, Infallible> {
    let name = |spec: Option<ImageSpec>| spec.unwrap_or_default().image;
    let answer = match request.uri().path() {
        "/runtime.v1.RuntimeService/Version" => {
            unary(request, |_: VersionRequest| ready(Ok(version()))).await
        }
        "/runtime.v1.ImageService/ListImages" => {
            let list = |_: ListImagesRequest| {
                ready(Ok(ListImagesResponse {
                    images: node.list(),
                }))
            };
            unary(request, list).await
        }
        "/runtime.v1.ImageService/ImageStatus" => {
            let status = |asked: ImageStatusRequest| {
                let image = node.status(&name(asked.image));
                ready(Ok(ImageStatusResponse {
                    image,
                    ..ImageStatusResponse::default()
                }))
            };
            unary(request, status).await
        }
        "/runtime.v1.ImageService/ImageFsInfo" => {
            unary(request, |_: ImageFsInfoRequest| {
                ready(Ok(file_system(&node)))
            })
            .await
        }
        "/runtime.v1.ImageService/PullImage" => {
            let node = Arc::clone(&node);
            let pull = move |asked: PullImageRequest| async move {
                let image_ref = node.pull(name(asked.image)).await?;
                Ok::<_, Status>(PullImageResponse { image_ref })
            };
            unary(request, pull).await
        }
        _ => Status::new(Code::Unimplemented, "not served by the stand-in").into_http(),
    };
    Ok(answer)
}

/// Answers a call with one message.
async fn unary<M, R, F, A>(request: Request<Incoming>, answer: F) -> Response<Body>
where
    M: prost::Message + Default + Send + 'static,
    R: prost::Message + Default + Send + 'static,
    F: FnOnce(M) -> A,
    A: Future<Output = Result<R, Status>>,
{
    let mut answer = Some(answer);
    let service = tower::service_fn(move |request: tonic::Request<M>| {
        let answered = answer.take().expect("one message a call")(request.into_inner());
        async move { answered.await.map(tonic::Response::new) }
    });
    let mut grpc = Grpc::new(ProstCodec::<R, M>::default());
    grpc.unary(service, request).await
}

fn version() -> VersionResponse {
    VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "stand-in".into(),
        runtime_version: "1.0.0".into(),
        runtime_api_version: "v1".into(),
    }
}

fn file_system(node: &Node) -> ImageFsInfoResponse {
    let everywhere = node.shared.everywhere.read().unwrap().len();
    let images = everywhere + node.own.lock().unwrap().len();
    let value = images as u64 * IMAGE_BYTES;
    ImageFsInfoResponse {
        image_filesystems: vec![FilesystemUsage {
            fs_id: Some(FilesystemIdentifier {
                mountpoint: "/var/lib/stand-in".into(),
            }),
            used_bytes: Some(UInt64Value { value }),
            ..FilesystemUsage::default()
        }],
        ..ImageFsInfoResponse::default()
    }
}
