//! Pins on a real containerd: exactly the images of the plan, after whatever has happened.
#![expect(
    clippy::print_stderr,
    reason = "the figures, for who asks with --nocapture"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest};

use harpoon::model::reference::Reference;
use harpoon::model::seal::SealPolicy;
use harpoon::runtime::containerd::{Keep, PinChanges, Removal};
use harpoon::runtime::cri::Cri;
use harpoon::runtime::detect::Runtime;
use harpoon::runtime::docker::Docker;
use harpoon::runtime::image_service::{ImageService as _, Progress};
use harpoon::runtime::sealing::SealingRuntime;

use crate::bed::{self, Containerd, Harpoon, Registry, block_on, eventually, unique};
use crate::sealed::channel;

pub(crate) mod marks;

const LIMIT: Duration = Duration::from_secs(60);
const PINNED: &str = "io.cri-containerd.pinned=pinned";
const MARK: &str = "harpoon.dev/pinned=";
/// Tags of the random history, and contents that each can have.
const TAGS: usize = 5;
const CONTENTS: usize = 2;

/// A containerd of the test's own, because pins of images that are not in the plan are removed.
pub(crate) fn own() -> &'static Containerd {
    Box::leak(Box::new(Containerd::start()))
}

async fn connect(containerd: &Containerd) -> Cri {
    Cri::connect(containerd.socket(), LIMIT).await.unwrap()
}

fn parsed(image: &str) -> Reference {
    Reference::parse(image).unwrap()
}

fn set(containerd: &'static Containerd, images: &[&str]) -> PinChanges {
    let images: Vec<_> = images.iter().map(|image| parsed(image)).collect();
    block_on(async move {
        let cri = connect(containerd).await;
        let wanted: Vec<_> = images.iter().collect();
        let changes = cri.pins().unwrap().set(&wanted).await.unwrap();
        assert!(changes.failed.is_empty(), "{changes:?}");
        changes
    })
}

fn release(containerd: &'static Containerd, image: Option<&str>) -> Vec<String> {
    let image = image.map(parsed);
    block_on(async move {
        let cri = connect(containerd).await;
        let named = image.as_ref().map(std::slice::from_ref);
        cri.pins().unwrap().release(named).await.unwrap()
    })
}

pub(crate) fn pull(containerd: &'static Containerd, image: &str) {
    let image = parsed(image);
    block_on(async move {
        let cri = connect(containerd).await;
        cri.pull(&image, None, &Progress::default()).await.unwrap();
    });
}

/// Deletes the image with all its names, as the kubelet's garbage collection does.
pub(crate) fn evict(containerd: &'static Containerd, image: &str) {
    let image = image.to_owned();
    block_on(async move {
        let mut images = ImageServiceClient::new(channel(containerd).await);
        let image = Some(ImageSpec {
            image,
            ..ImageSpec::default()
        });
        images
            .remove_image(RemoveImageRequest { image })
            .await
            .unwrap();
    });
}

/// Returns whether the CRI reports the image under this name as pinned.
fn cri_pins(containerd: &'static Containerd, image: &str) -> bool {
    let image = image.to_owned();
    block_on(async move {
        let mut images = ImageServiceClient::new(channel(containerd).await);
        let listed = images.list_images(ListImagesRequest::default()).await;
        let listed = listed.unwrap().into_inner().images;
        let has = |names: &[String]| names.contains(&image);
        listed
            .iter()
            .any(|i| i.pinned && (has(&i.repo_tags) || has(&i.repo_digests)))
    })
}

/// A name as containerd's own client lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    target: String,
    pub(crate) is_pinned: bool,
    pub(crate) is_marked: bool,
}

impl Named {
    /// The digest of its manifest or index.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Returns whether it names the same image.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.target == other.target
    }
}

pub(crate) fn names(containerd: &Containerd) -> BTreeMap<String, Named> {
    let list = containerd.ctr(&["images", "list"]);
    let named = list.lines().skip(1).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let labels = words.last().unwrap();
        let named = Named {
            target: words[2].to_owned(),
            is_pinned: labels.split(',').any(|label| label == PINNED),
            is_marked: labels.split(',').any(|label| label.starts_with(MARK)),
        };
        (words[0].to_owned(), named)
    });
    named.collect()
}

/// Asserts that harpoon's pins are on all names of these images, and on no others.
#[track_caller]
fn assert_pinned(containerd: &Containerd, images: &[&str], history: &str) {
    let names = names(containerd);
    let wanted = images.iter().filter_map(|image| names.get(*image));
    let wanted: BTreeSet<_> = wanted.map(|named| &named.target).collect();
    for (name, named) in &names {
        let is_wanted = wanted.contains(&named.target);
        assert!(
            named.is_pinned || !is_wanted,
            "{history}: {name} of {names:?}"
        );
        assert!(
            !named.is_marked || is_wanted,
            "{history}: {name} of {names:?}"
        );
    }
}

#[test]
fn every_name_is_pinned() {
    let containerd = own();
    let pushed = bed::registry().push(&format!("{}:1", unique("pins")));
    let image = &*pushed.reference;
    pull(containerd, image);
    let changes = set(containerd, &[image]);
    assert_eq!(changes.pinned.len(), 3, "{changes:?}");
    let all = names(containerd);
    assert!(
        all.values().all(|name| name.is_pinned && name.is_marked),
        "{all:?}"
    );
    assert!(set(containerd, &[image]).is_empty());

    let honoured = block_on(async move {
        let cri = connect(containerd).await;
        cri.pins().unwrap().are_honoured().await.unwrap()
    });
    assert_eq!(honoured, Some(bed::has_newer_runtimes()));
    assert_eq!(cri_pins(containerd, image), bed::has_newer_runtimes());
    containerd.restart();
    assert_eq!(cri_pins(containerd, image), bed::has_newer_runtimes());

    let changes = set(containerd, &[]);
    assert_eq!(changes.unpinned.len(), 3, "{changes:?}");
    eventually("unpinned in the CRI", LIMIT, || {
        !cri_pins(containerd, image)
    });
    assert_pinned(containerd, &[], "unpinned");
}

#[test]
fn pins_return_after_pulls() {
    let containerd = own();
    let name = format!("{}:1", unique("pins-again"));
    let old = bed::registry().image(&name).seed("old").push();
    let image = &*old.reference;
    assert_eq!(set(containerd, &[image]).missing, [image]);
    pull(containerd, image);
    set(containerd, &[image]);
    pull(containerd, image);
    set(containerd, &[image]);
    assert_pinned(containerd, &[image], "pulled again");

    bed::registry().image(&name).seed("new").push();
    pull(containerd, image);
    let changes = set(containerd, &[image]);
    assert!(changes.unpinned.len() >= 2, "{changes:?}");
    assert_pinned(containerd, &[image], "moved");
    assert!(names(containerd).values().any(|name| !name.is_pinned));
    assert!(set(containerd, &[image]).is_empty());

    evict(containerd, image);
    assert_eq!(set(containerd, &[image]).missing, [image]);
    pull(containerd, image);
    set(containerd, &[image]);
    assert_pinned(containerd, &[image], "evicted");
}

#[test]
fn pins_of_others_stay() {
    let containerd = own();
    let repository = unique("pins-others");
    let push = |tag: &str| {
        bed::registry()
            .push(&format!("{repository}-{tag}:1"))
            .reference
    };
    let (pause, web, api) = (push("pause"), push("web"), push("api"));
    for image in [&pause, &web, &api] {
        pull(containerd, image);
    }
    containerd.ctr(&["images", "label", &pause, PINNED]);
    set(containerd, &[&pause, &web, &api]);
    assert_eq!(release(containerd, Some(&web)), [&*web]);
    assert_eq!(release(containerd, Some(&web)), [""; 0]);
    assert!(!names(containerd)[&web].is_pinned && names(containerd)[&api].is_pinned);
    assert_eq!(release(containerd, None), {
        let mut released = [&*api, &*pause];
        released.sort_unstable();
        released
    });
    let all = names(containerd);
    assert!(all.values().all(|name| !name.is_marked), "{all:?}");
    let pinned: Vec<_> = all.iter().filter(|(_, name)| name.is_pinned).collect();
    assert_eq!(pinned.len(), 1, "{all:?}");
    assert_eq!(*pinned[0].0, pause);
}

#[test]
fn release_command_unpins() {
    let containerd = own();
    let repository = unique("pins-release");
    let push = |tag: &str| {
        bed::registry()
            .push(&format!("{repository}-{tag}:1"))
            .reference
    };
    let (web, api) = (push("web"), push("api"));
    pull(containerd, &web);
    pull(containerd, &api);
    set(containerd, &[&web, &api]);
    let release = ["release", "--output=json", "--runtime-endpoint"];
    let harpoon = Harpoon::new(release).arg(containerd.endpoint());
    let missing = "registry.example/no:1";
    let output = harpoon.clone().args(["--", &web, missing]).run().expect(0);
    assert_eq!(
        output.json()["released"],
        serde_json::json!([web]),
        "{output}"
    );
    let warning = "neither sealed nor pinned on this node";
    assert!(output.stderr.contains(warning), "{output}");
    assert_pinned(containerd, &[&api], "released one");
    let output = harpoon.run().expect(0);
    assert_eq!(
        output.json()["released"],
        serde_json::json!([api]),
        "{output}"
    );
    assert_pinned(containerd, &[], "released all");
    let all = names(containerd);
    assert!(all.values().all(|name| !name.is_pinned), "{all:?}");
    let output = harpoon.run().expect(0);
    assert_eq!(output.json()["released"], serde_json::json!([]), "{output}");
}

#[test]
fn deleted_images_are_told() {
    let containerd = own();
    let pushed = bed::registry().push(&format!("{}:1", unique("pins-told")));
    let image = &*pushed.reference;
    pull(containerd, image);
    let (send, told) = mpsc::channel();
    std::thread::spawn(move || {
        block_on(async move {
            let cri = connect(containerd).await;
            let removals = cri
                .pins()
                .unwrap()
                .removals(|removal| _ = send.send(removal));
            let _ = tokio::time::timeout(LIMIT, removals).await;
        });
    });
    // The subscription takes a moment: a name of its own is made and deleted until that is told.
    let probe = format!("{image}-probe");
    let subscribed = || {
        containerd.ctr(&["images", "tag", image, &probe]);
        containerd.remove(&probe);
        told.recv_timeout(Duration::from_millis(200)).is_ok()
    };
    eventually("a first event", LIMIT, subscribed);
    while told.recv_timeout(Duration::from_millis(500)).is_ok() {}
    let at = Instant::now();
    evict(containerd, image);
    let removal = Removal::Name(image.to_owned());
    let found = std::iter::from_fn(|| told.recv_timeout(LIMIT).ok()).find(|t| *t == removal);
    assert!(found.is_some());
    eprintln!("told of a deleted image after {:?}", at.elapsed());

    containerd.restart();
    let found = std::iter::from_fn(|| told.recv_timeout(LIMIT).ok());
    assert!(found.into_iter().any(|t| t == Removal::Unknown));
    pull(containerd, image);
    evict(containerd, image);
    let found = std::iter::from_fn(|| told.recv_timeout(LIMIT).ok()).find(|t| *t == removal);
    assert!(found.is_some());
}

#[test]
fn docker_cannot_pin() {
    block_on(async {
        let docker = Docker::connect(&bed::docker().socket(), LIMIT)
            .await
            .unwrap();
        let keep = Keep {
            seal: LIMIT,
            pull: LIMIT,
            by_agent: false,
        };
        let runtime = SealingRuntime::new(Runtime::Docker(docker), SealPolicy::Auto, keep);
        assert!(!runtime.supports_pins());
        let why = runtime.cannot_pin().unwrap();
        assert_eq!(
            why,
            "docker has no API to pin images: retention policy Pin acts as Keep"
        );
        assert_eq!(runtime.ignores_pins().await.unwrap(), Some(why));
    });
}

/// Rounds of the random history; `PIN_ROUNDS` says otherwise.
fn rounds() -> usize {
    std::env::var("PIN_ROUNDS").map_or(40, |text| {
        text.parse().expect("PIN_ROUNDS is a number of rounds")
    })
}

/// One random thing that happens to a node; returns its name.
fn happen(containerd: &'static Containerd, registry: &Registry, images: &[String]) -> String {
    let image = &images[fastrand::usize(..images.len())];
    let what = fastrand::usize(..100);
    match what {
        0..30 => pull(containerd, image),
        30..50 => {
            let name = image.split_once('/').unwrap().1;
            let seed = format!("{name}-{}", fastrand::usize(..CONTENTS));
            registry.image(name).seed(&seed).push();
            pull(containerd, image);
        }
        50..70 => evict(containerd, image),
        70..80 => {
            let all: Vec<_> = names(containerd).into_keys().collect();
            if let Some(name) = fastrand::choice(&all) {
                containerd.remove(name);
            }
        }
        80..90 => {
            let all: Vec<_> = names(containerd).into_keys().collect();
            if let Some(name) = fastrand::choice(&all) {
                containerd.ctr(&["images", "label", name, "io.cri-containerd.pinned="]);
            }
        }
        90..97 => set_while_pulling(containerd, image, images),
        _ => containerd.restart(),
    }
    format!("{what} {image}")
}

/// Pins all images, and pulls one at the same time.
fn set_while_pulling(containerd: &'static Containerd, image: &str, images: &[String]) {
    let all: Vec<_> = images.iter().map(String::as_str).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| pull(containerd, image));
        set(containerd, &all);
    });
}

#[test]
fn pins_equal_plan_after_any_history() {
    let containerd = own();
    let registry: &'static Registry = Box::leak(Box::new(Registry::start()));
    let repository = unique("pins-history");
    let push = |number| registry.push(&format!("{repository}-{number}:1")).reference;
    let images: Vec<_> = (0..TAGS).map(push).collect();
    let mut history = Vec::new();
    let (mut sets, mut time) = (0, Duration::ZERO);
    for _ in 0..rounds() {
        for _ in 0..fastrand::usize(1..4) {
            history.push(happen(containerd, registry, &images));
        }
        let plan: Vec<_> = images.iter().filter(|_| fastrand::bool()).collect();
        let plan: Vec<_> = plan.into_iter().map(String::as_str).collect();
        let at = Instant::now();
        let changes = set(containerd, &plan);
        (sets, time) = (sets + 1, time + at.elapsed());
        history.push(format!("{plan:?}: {changes:?}"));
        let last = &history[history.len().saturating_sub(8)..];
        assert_pinned(containerd, &plan, &last.join("\n"));
        assert!(set(containerd, &plan).is_empty(), "{last:?}");
    }
    eprintln!(
        "{sets} plans of {} events: {:?} each",
        history.len() - sets,
        time / u32::try_from(sets).unwrap()
    );
}
