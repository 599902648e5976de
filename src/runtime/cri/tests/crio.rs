//! Responses of CRI-O 1.37 on the wire.

use k8s_cri::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};

use super::*;

const FS_INFO: &str = "/runtime.v1.ImageService/ImageFsInfo";
const GB: u64 = 1_000_000_000;

/// `ImageFsInfo` as CRI-O returns it: for the directory `overlay-images`.
fn fs_info(bytes: u64) -> Answer {
    Answer::message(&ImageFsInfoResponse {
        image_filesystems: vec![FilesystemUsage {
            fs_id: Some(FilesystemIdentifier {
                mountpoint: "/var/lib/containers/storage/overlay-images".to_owned(),
            }),
            used_bytes: Some(UInt64Value { value: bytes }),
            ..FilesystemUsage::default()
        }],
        ..ImageFsInfoResponse::default()
    })
}

fn listed(images: &[(char, &str, u64)]) -> Answer {
    let image = |(id, tag, size): &(char, &str, u64)| Image {
        id: id.to_string().repeat(64),
        repo_tags: vec![(*tag).to_owned()],
        size: *size,
        ..Image::default()
    };
    Answer::message(&ListImagesResponse {
        images: images.iter().map(image).collect(),
    })
}

async fn usage(name: &'static str, told: u64) -> Result<Usage, RuntimeError> {
    let server = StandIn::start(move |path, _| match path {
        VERSION => version(name),
        FS_INFO => fs_info(told),
        LIST if name == "broken" => Answer::Fail(Code::Unavailable, "not now".to_owned()),
        LIST => listed(&[
            ('a', "quay.io/team/a:1", 2 * GB),
            ('a', "quay.io/team/a:2", 2 * GB),
            ('b', "quay.io/team/b:1", GB),
        ]),
        _ => Answer::unknown_service(),
    });
    server.connect().await.unwrap().usage().await
}

#[tokio::test]
async fn usage_counts_listed_images_once() {
    assert_eq!(usage("cri-o", 96 << 10).await.unwrap().bytes, 3 * GB);
    assert_eq!(usage("cri-o", 5 * GB).await.unwrap().bytes, 5 * GB);
    // cri-dockerd.
    assert_eq!(usage("docker", 96 << 10).await.unwrap().bytes, 3 * GB);
}

#[tokio::test]
async fn usage_fails_without_image_list() {
    let error = usage("broken", 96 << 10).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Unavailable, "{error}");
}

#[test]
fn repeated_texts_are_shown_once() {
    let image = image("127.0.0.1:5000/team/app:1");
    let source = "initializing source docker://127.0.0.1:5000/team/app:1: reading manifest 1 in 127.0.0.1:5000/team/app";
    let both = |first: &str, second: &str| {
        format!(
            "unable to pull image or OCI artifact: pull image err: {first}; artifact err: {second}"
        )
    };
    for (kind, first) in [
        (FailureKind::NotFound, "manifest unknown"),
        (
            FailureKind::Unauthorized,
            "unauthorized: authentication required",
        ),
    ] {
        let first = format!("{source}: {first}");
        let second = format!("get manifest: build image source: {first}");
        let error = failure(&Status::new(Code::Unknown, both(&first, &second)), &image);
        assert_eq!((error.kind, error.message), (kind, first));
    }
    // The text before it is the CRI's own name of the error.
    let text = both(
        "Source image rejected: no signature",
        "no space left on device",
    );
    let text = format!("SignatureValidationFailed: {text}");
    let error = failure(&Status::new(Code::Unknown, text), &image);
    assert_eq!(error.kind, FailureKind::SignatureRejected);
    assert_eq!(
        error.message,
        "SignatureValidationFailed: Source image rejected: no signature"
    );
    // Nothing is removed if one of the two texts is missing.
    for text in [
        "unable to pull image or OCI artifact: pull image err: half",
        "a registry's own words; artifact err: x",
        "unable to pull image or OCI artifact: pull image err: ; artifact err: x",
    ] {
        let error = failure(&Status::new(Code::Unknown, text), &image);
        assert_eq!(error.message, text);
    }
}

/// The names in the requests to the runtime.
#[tokio::test]
async fn status_request_matches_the_kubelets() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let server = StandIn::start(move |path, request| match path {
        VERSION => version("cri-o"),
        _ => {
            let request = ImageStatusRequest::decode(request).unwrap();
            seen.lock().unwrap().push(request.image.unwrap().image);
            Answer::message(&ImageStatusResponse::default())
        }
    });
    let cri = server.connect().await.unwrap();
    let digest = format!("quay.io/a@{}", sha256('a'));
    let tagged = format!("quay.io/a:1@{}", sha256('a'));
    let names = [
        ("4bc", "4bc:latest"),
        ("nginx", "nginx:latest"),
        ("quay.io/a", "quay.io/a:latest"),
        ("nginx:latest", "nginx:latest"),
        ("nginx:1", "nginx:1"),
        (&digest, &digest),
        (&tagged, &tagged),
        // containerd treats it as the prefix of an image ID.
        ("sha256:4bc", "docker.io/library/sha256:4bc"),
    ];
    for (name, _) in names {
        assert_eq!(cri.status(&image(name)).await.unwrap(), None);
    }
    assert_eq!(*asked.lock().unwrap(), names.map(|(_, asked)| asked));
}
