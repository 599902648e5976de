//! CRI-O: a mock of its server, and a real one if it is on the `PATH`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_cri::v1 as cri;
use prost::Message;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::{Daemon, Runtime, block_on, directory};

/// The response to `ImageFsInfo`: the size of `overlay-images`, which contains no layers.
const RECORDS: u64 = 96 << 10;

/// A server that responds like CRI-O 1.37. It downloads nothing.
#[derive(Debug)]
pub struct CrioStandIn {
    directory: tempfile::TempDir,
    store: Arc<Mutex<Store>>,
    server: AbortHandle,
}

#[derive(Debug, Default)]
struct Store {
    directory: PathBuf,
    /// `unqualified-search-registries`.
    search: Vec<String>,
    /// The images in registries, by full reference, with their sizes.
    offered: BTreeMap<String, u64>,
    stored: BTreeMap<String, cri::Image>,
}

impl CrioStandIn {
    /// One that searches these registries for a name without a registry.
    pub fn start(search: &[&str]) -> Self {
        let directory = directory();
        let store = Arc::new(Mutex::new(Store {
            directory: directory.path().join("overlay-images"),
            search: search.iter().map(|host| (*host).to_owned()).collect(),
            ..Store::default()
        }));
        let socket = directory.path().join("crio.sock");
        let shared = Arc::clone(&store);
        let server = block_on(async move { serve(socket, shared) });
        Self {
            directory,
            store,
            server,
        }
    }

    /// `unix:///...`
    pub fn endpoint(&self) -> String {
        format!("unix://{}/crio.sock", self.directory.path().display())
    }

    /// Adds an image with this full reference to a registry.
    pub fn offer(&self, reference: &str, bytes: u64) {
        let mut store = self.store.lock().unwrap();
        store.offered.insert(reference.to_owned(), bytes);
    }

    /// Adds the image to the store; returns its ID.
    pub fn add(&self, reference: &str, bytes: u64) -> String {
        self.offer(reference, bytes);
        self.store.lock().unwrap().pull(reference).unwrap()
    }

    /// The full references of all stored images.
    pub fn images(&self) -> Vec<String> {
        self.store.lock().unwrap().stored.keys().cloned().collect()
    }

    /// Removes the image with this full reference.
    pub fn remove(&self, reference: &str) {
        self.store.lock().unwrap().stored.remove(reference);
    }
}

impl Drop for CrioStandIn {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Store {
    /// The full references that a name may resolve to, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Vec<String> {
        let host = name.split_once('/').map_or("", |(host, _)| host);
        if host.contains(['.', ':']) || host == "localhost" {
            return vec![name.to_owned()];
        }
        let library = |registry: &str| match registry == "docker.io" && !name.contains('/') {
            true => "library/",
            false => "",
        };
        let search = self.search.iter();
        search
            .map(|registry| format!("{registry}/{}{name}", library(registry)))
            .collect()
    }

    /// By its ID, by three or more of its first digits, or by its name.
    fn status(&self, name: &str) -> Option<cri::Image> {
        let mut images = self.stored.values();
        let by_id = images.find(|image| name.len() >= 3 && image.id.starts_with(name));
        let by_name = || {
            let candidates = self.candidates(name);
            candidates.iter().find_map(|full| self.stored.get(full))
        };
        by_id.or_else(by_name).cloned()
    }

    fn pull(&mut self, name: &str) -> Result<String, String> {
        let candidates = self.candidates(name);
        let found = candidates
            .iter()
            .find_map(|full| Some((full, *self.offered.get(full)?)));
        let Some((full, bytes)) = found else {
            return Err(unknown(candidates.last().map_or(name, |full| full)));
        };
        let (repository, _) = full.rsplit_once(':').unwrap();
        // Equal for equal names, different for others.
        let id: String = full.bytes().rev().map(|b| format!("{b:02x}")).collect();
        let id: String = id.chars().chain("0".repeat(64).chars()).take(64).collect();
        let image = cri::Image {
            id: id.clone(),
            repo_tags: vec![full.clone()],
            repo_digests: vec![format!("{repository}@sha256:{id}")],
            size: bytes,
            ..cri::Image::default()
        };
        self.stored.insert(full.clone(), image);
        Ok(id)
    }

    /// The response message of a call, or the text of its failure.
    fn answer(&mut self, path: &str, request: &[u8]) -> Result<Vec<u8>, String> {
        Ok(match path {
            "/runtime.v1.RuntimeService/Version" => cri::VersionResponse {
                version: "0.1.0".to_owned(),
                runtime_name: "cri-o".to_owned(),
                runtime_version: "1.37.0".to_owned(),
                runtime_api_version: "v1".to_owned(),
            }
            .encode_to_vec(),
            "/runtime.v1.ImageService/ImageStatus" => {
                let request = cri::ImageStatusRequest::decode(request).unwrap();
                cri::ImageStatusResponse {
                    image: self.status(&request.image.unwrap().image),
                    ..cri::ImageStatusResponse::default()
                }
                .encode_to_vec()
            }
            "/runtime.v1.ImageService/ListImages" => cri::ListImagesResponse {
                images: self.stored.values().cloned().collect(),
            }
            .encode_to_vec(),
            "/runtime.v1.ImageService/PullImage" => {
                let request = cri::PullImageRequest::decode(request).unwrap();
                let image_ref = self.pull(&request.image.unwrap().image)?;
                cri::PullImageResponse { image_ref }.encode_to_vec()
            }
            "/runtime.v1.ImageService/ImageFsInfo" => cri::ImageFsInfoResponse {
                image_filesystems: vec![cri::FilesystemUsage {
                    fs_id: Some(cri::FilesystemIdentifier {
                        mountpoint: self.directory.display().to_string(),
                    }),
                    used_bytes: Some(cri::UInt64Value { value: RECORDS }),
                    ..cri::FilesystemUsage::default()
                }],
                ..cri::ImageFsInfoResponse::default()
            }
            .encode_to_vec(),
            path => return Err(format!("unknown method {path}")),
        })
    }
}

/// The text of a failed pull: the image library's failure for an image, and again for an artifact.
fn unknown(full: &str) -> String {
    let (repository, tag) = full.rsplit_once(':').unwrap();
    let failure = format!("reading manifest {tag} in {repository}: manifest unknown");
    format!(
        "unable to pull image or OCI artifact: pull image err: initializing source docker://{full}: {failure}; artifact err: \
         get manifest: build image source: {failure}"
    )
}

fn serve(socket: PathBuf, store: Arc<Mutex<Store>>) -> AbortHandle {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        // Aborting the server must end its connections too.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let store = Arc::clone(&store);
            connections.spawn(async move {
                let service =
                    hyper::service::service_fn(move |request| call(request, Arc::clone(&store)));
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
    .abort_handle()
}

async fn call(
    request: http::Request<hyper::body::Incoming>,
    store: Arc<Mutex<Store>>,
) -> Result<http::Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, hyper::Error>
{
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    // A message follows a flag and its length.
    let answer = store.lock().unwrap().answer(&path, &body[5..]);
    let mut trailers = http::HeaderMap::new();
    let mut frame = BytesMut::new();
    match answer {
        Ok(message) => {
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).unwrap());
            frame.put_slice(&message);
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        }
        Err(text) => {
            trailers.insert("grpc-status", http::HeaderValue::from_static("2"));
            trailers.insert("grpc-message", text.parse().unwrap());
        }
    }
    let body = Full::new(frame.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Ok(http::Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap())
}

/// A real CRI-O. It is not in Debian, so only ignored tests start it.
#[derive(Debug)]
pub struct Crio(Daemon);

impl Crio {
    fn images(&self) -> Vec<String> {
        let endpoint = self.endpoint().to_owned();
        block_on(async move {
            let channel = tonic::transport::Endpoint::try_from(endpoint).unwrap();
            let channel = channel.connect().await.unwrap();
            let mut images = cri::image_service_client::ImageServiceClient::new(channel);
            let listed = images.list_images(cri::ListImagesRequest::default());
            let listed = listed.await.unwrap().into_inner().images;
            let names = |image: cri::Image| [image.repo_tags, image.repo_digests].concat();
            listed.into_iter().flat_map(names).collect()
        })
    }
}

impl Runtime for Crio {
    const NAME: &'static str = "cri-o";

    fn shared() -> &'static Self {
        static SHARED: std::sync::OnceLock<Crio> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        Self(Daemon::start::<&str>("crio", &[]))
    }

    fn with_hub(url: &str) -> Self {
        Self(Daemon::start("crio", &["--hub", url]))
    }

    fn with_space(bytes: u64) -> Self {
        Self(Daemon::start(
            "crio",
            &["--space".to_owned(), bytes.to_string()],
        ))
    }

    fn endpoint(&self) -> &str {
        self.0.value("ENDPOINT")
    }

    fn socket(&self) -> PathBuf {
        self.0.value("SOCKET").into()
    }

    fn store(&self) -> PathBuf {
        self.0.directory.join("root")
    }

    fn has(&self, reference: &str) -> bool {
        self.images().iter().any(|image| image == reference)
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn restart(&self) {
        self.0.restart();
    }
}
