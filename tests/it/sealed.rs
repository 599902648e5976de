//! Sealed images on a real containerd: there, and yet nobody's who may not pull them.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use harpoon::credentials::secret::{Credential, Login, Secret};
use harpoon::model::failure::FailureKind;
use harpoon::model::reference::Reference;
use harpoon::model::stored_image::StoredImage;
use harpoon::runtime::containerd::Keep;
use harpoon::runtime::cri::Cri;
use harpoon::runtime::image_service::{ImageService, Progress, RuntimeError};

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Containerd, PASSWORD, USER, block_on, containerd, token, unique};

mod races;
mod runs;

const LIMIT: Duration = Duration::from_secs(60);
const KEEP: Keep = Keep {
    seal: Duration::from_secs(3600),
    pull: Duration::from_secs(600),
    by_agent: false,
};

fn login(user: &str, password: &str) -> Credential {
    Credential {
        login: Login::Password {
            user: Secret::new(user),
            password: Secret::new(password),
        }
        .into(),
        source: "test".into(),
        is_pull_secret: false,
    }
}

/// A connection to the CRI server.
async fn connect(containerd: &Containerd) -> Cri {
    Cri::connect(containerd.socket(), LIMIT).await.unwrap()
}

/// Seals the image as a run does, through the CRI where there is no other way.
async fn seal_on(
    cri: &Cri,
    image: &Reference,
    credential: Option<&Credential>,
) -> Result<StoredImage, RuntimeError> {
    let (seals, progress) = (cri.seals().unwrap(), Progress::default());
    if let Some(stored) = seals.pull(image, credential, KEEP, &progress).await? {
        return Ok(stored);
    }
    let before = seals.before().await?;
    cri.pull(image, credential, &progress).await?;
    let stored = seals.adopt(before, image, KEEP).await?;
    seals.settle().await;
    Ok(stored)
}

fn seal(
    containerd: &'static Containerd,
    image: &str,
    credential: &Credential,
) -> Result<StoredImage, RuntimeError> {
    let (image, credential) = (Reference::parse(image).unwrap(), credential.clone());
    block_on(async move {
        let cri = connect(containerd).await;
        seal_on(&cri, &image, Some(&credential)).await
    })
}

/// Pulls as the kubelet does for a pod with or without a pull secret.
fn pull(
    containerd: &'static Containerd,
    image: &str,
    credential: Option<&Credential>,
) -> Result<StoredImage, RuntimeError> {
    let (image, credential) = (Reference::parse(image).unwrap(), credential.cloned());
    block_on(async move {
        let cri = connect(containerd).await;
        let progress = Progress::default();
        cri.pull(&image, credential.as_ref(), &progress).await
    })
}

/// All that the CRI lists which has the text in one of its names or IDs.
fn visible(containerd: &Containerd, text: &str) -> Vec<String> {
    let mut images = containerd.images();
    images.retain(|image| image.contains(text));
    images
}

#[test]
fn sealed_image_is_for_its_pullers() {
    let registry = bed::registry_with_password();
    let name = unique("sealed");
    let pushed = registry.image(&format!("{name}:1")).layers(3).push();
    let proxy = Proxy::start(registry.url(), |_| Fault::Pass);
    let image = proxy.reference(&format!("{name}:1"));
    let right = login(USER, PASSWORD);
    let stored = seal(containerd(), &image, &right).unwrap();
    assert_eq!(stored.digest.as_deref(), Some(&*pushed.digest));
    assert_eq!(visible(containerd(), &name), [""; 0]);

    let refused = pull(containerd(), &image, None).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unauthorized, "{refused}");
    let wrong = login(USER, "not the password");
    let refused = pull(containerd(), &image, Some(&wrong)).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unauthorized, "{refused}");

    let asked = proxy.seen().len();
    pull(containerd(), &image, Some(&right)).unwrap();
    let requests: Vec<_> = proxy.seen().into_iter().skip(asked).collect();
    assert!(requests.iter().all(|seen| !seen.is_blob()), "{requests:?}");
    assert!(containerd().has(&image));

    // The kubelet's garbage collection takes the pod's names away again: the seal is still there.
    for name in visible(containerd(), &name) {
        containerd().remove(&name);
    }
    let asked = proxy.seen().len();
    pull(containerd(), &image, Some(&right)).unwrap();
    let requests: Vec<_> = proxy.seen().into_iter().skip(asked).collect();
    assert!(requests.iter().all(|seen| !seen.is_blob()), "{requests:?}");
}

#[test]
fn discarded_layers_are_not_fetched_again() {
    static DISCARDING: std::sync::OnceLock<Containerd> = std::sync::OnceLock::new();
    let containerd = DISCARDING.get_or_init(Containerd::discarding);
    let registry = bed::registry_with_password();
    let name = format!("{}:1", unique("sealed-discarded"));
    registry.image(&name).layers(3).push();
    let proxy = Proxy::start(registry.url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let right = login(USER, PASSWORD);
    seal(containerd, &image, &right).unwrap();
    // The layers that the seal does not hold go at the latest now.
    containerd.ctr(&["leases", "create", "--id", "collect"]);
    containerd.ctr(&["leases", "delete", "--sync", "collect"]);
    let held = block_on(async {
        let cri = connect(containerd).await;
        cri.seals().unwrap().list().await.unwrap()
    });
    assert!(held[&image].is_whole);
    assert_eq!(visible(containerd, &name), [""; 0]);
    let asked = proxy.seen().len();
    assert!(pull(containerd, &image, None).is_err());
    pull(containerd, &image, Some(&right)).unwrap();
    let requests: Vec<_> = proxy.seen().into_iter().skip(asked).collect();
    assert!(requests.iter().all(|seen| !seen.is_blob()), "{requests:?}");
}

/// A connection to the CRI server for calls that harpoon does not make.
pub(crate) async fn channel(containerd: &Containerd) -> Channel {
    let socket = containerd.socket().to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connect).await.unwrap()
}

/// The pull of the kubelet for a pod whose runtime class has another snapshotter.
async fn pull_for_handler(containerd: &Containerd, image: &str, password: &str) {
    let channel = channel(containerd).await;
    let handler = ("io.containerd.cri.runtime-handler", "other");
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        }),
        auth: Some(AuthConfig {
            username: USER.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        }),
        sandbox_config: Some(PodSandboxConfig {
            annotations: [handler].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..PodSandboxConfig::default()
        }),
    };
    let mut images = ImageServiceClient::new(channel);
    images.pull_image(request).await.unwrap();
}

#[test]
fn other_snapshotter_unpacks_the_sealed_layers() {
    // containerd 1.6 knows no snapshotter of a handler's own.
    if !bed::has_newer_runtimes() {
        return;
    }
    static WITH_HANDLER: std::sync::OnceLock<Containerd> = std::sync::OnceLock::new();
    let containerd = WITH_HANDLER.get_or_init(Containerd::with_handler);
    let registry = bed::registry_with_password();
    let name = format!("{}:1", unique("sealed-handler"));
    registry.image(&name).layers(2).push();
    let proxy = Proxy::start(registry.url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    seal(containerd, &image, &login(USER, PASSWORD)).unwrap();
    let snapshots = || {
        let list = ["snapshots", "--snapshotter", "native", "list"];
        containerd.ctr(&list).lines().skip(1).count()
    };
    assert_eq!(snapshots(), 0);
    let asked = proxy.seen().len();
    let pulled = image;
    block_on(async move { pull_for_handler(containerd, &pulled, PASSWORD).await });
    assert_eq!(snapshots(), 2);
    let requests: Vec<_> = proxy.seen().into_iter().skip(asked).collect();
    assert!(requests.iter().all(|seen| !seen.is_blob()), "{requests:?}");
}

/// An index: the seal holds it whole, and the kubelet asks for it by its tag.
#[test]
fn index_is_sealed_with_its_manifest() {
    let registry = bed::registry_with_password();
    let name = format!("{}:1", unique("sealed-index"));
    let platforms = ["linux/arm64", "linux/amd64"];
    let pushed = registry.image(&name).platforms(&platforms).push();
    let proxy = Proxy::start(registry.url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let right = login(USER, PASSWORD);
    let stored = seal(containerd(), &image, &right).unwrap();
    assert_eq!(stored.digest, Some(pushed.digest));
    let asked = proxy.seen().len();
    pull(containerd(), &image, Some(&right)).unwrap();
    let requests: Vec<_> = proxy.seen().into_iter().skip(asked).collect();
    assert!(requests.iter().all(|seen| !seen.is_blob()), "{requests:?}");
}

/// By a mirror that only the CRI plugin's configuration leads to, which containerd 2 does not tell.
#[test]
fn mirrored_image_is_sealed() {
    let name = format!("{}:1", unique("sealed-mirror"));
    bed::registry().push(&name);
    let host = format!("{}.example", unique("sealed-mirror"));
    containerd().map_host(&host, bed::registry().url());
    let image = format!("{host}/{name}");
    seal(containerd(), &image, &login("me", "my password")).unwrap();
    assert_eq!(visible(containerd(), &image), [""; 0]);
}

#[test]
fn token_registry_seals_too() {
    let name = format!("{}:1", unique("sealed-token"));
    bed::registry().push(&name);
    let registry = token::Registry::start(bed::registry().url(), &[("me", "my password")], &[]);
    let image = registry.reference(&name);
    let right = login("me", "my password");
    seal(containerd(), &image, &right).unwrap();
    assert_eq!(visible(containerd(), &image), [""; 0]);
    let refused = pull(containerd(), &image, None).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unauthorized, "{refused}");
    let asked = registry.seen().len();
    pull(containerd(), &image, Some(&right)).unwrap();
    let requests: Vec<_> = registry.seen().into_iter().skip(asked).collect();
    let is_blob = |path: &str| path.contains("/blobs/");
    assert!(
        requests.iter().all(|seen| !is_blob(&seen.path)),
        "{requests:?}"
    );
}
