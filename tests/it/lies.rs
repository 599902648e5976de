//! Registries with false content, endless responses, or no response: the same for every kind of runtime. Each fails only the
//! image concerned, in bounded time, and a rerun with an honest registry completes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bed::faulty::{Fault, Proxy, Seen};
use crate::bed::{self, Harpoon, containerd, docker, eventually, kubernetes, registry, unique};
use crate::pulling::{PATIENCE, entry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An index whose only entry claims to be an index with this digest; the response is always the same.
const ITSELF: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":180,"platform":{"os":"linux","architecture":"amd64"}}]}"#;

type Lie = fn(&Seen) -> Fault;

fn for_manifests(seen: &Seen, fault: Fault) -> Fault {
    if seen.is_manifest() {
        fault
    } else {
        Fault::Pass
    }
}

fn for_blobs(seen: &Seen, fault: Fault) -> Fault {
    if seen.is_blob() { fault } else { Fault::Pass }
}

fn body(media_type: &str, text: String) -> Fault {
    Fault::Answer {
        status: 200,
        headers: vec![("content-type", media_type.to_owned())],
        body: text,
    }
}

fn long(filling: u64) -> Fault {
    Fault::Long {
        media_type: MANIFEST,
        start: r#"{"schemaVersion":2,"annotations":{"a":""#,
        filling,
        end: r#""}}"#,
    }
}

const LIES: &[(&str, Lie)] = &[
    ("a manifest without end", |seen| {
        for_manifests(seen, long(u64::MAX))
    }),
    ("a manifest of 100 MB", |seen| {
        for_manifests(seen, long(100_000_000))
    }),
    ("an index that names itself", |seen| {
        for_manifests(seen, body(INDEX, ITSELF.to_owned()))
    }),
    ("a redirect to itself", |seen| {
        let headers = vec![("location", seen.path.clone())];
        let again = Fault::Answer {
            status: 307,
            headers,
            body: String::new(),
        };
        for_manifests(seen, again)
    }),
    ("another blob", |seen| {
        for_blobs(seen, body("application/octet-stream", "x".repeat(20_000)))
    }),
    ("a short blob", |seen| {
        for_blobs(seen, body("application/octet-stream", "x".repeat(10)))
    }),
    ("a blob without end", |seen| for_blobs(seen, long(u64::MAX))),
];

/// An attempt's limit: more than a lie takes that is found out.
const LIMIT: Duration = Duration::from_secs(30);

fn lies_fail_their_own_image(
    endpoint: &str,
    lies: impl Iterator<Item = &'static (&'static str, Lie)>,
    has: impl Fn(&str) -> bool + Sync,
) {
    std::thread::scope(|scope| {
        for (what, lie) in lies {
            let has = &has;
            scope.spawn(move || {
                let name = format!("{}:1", unique("lie"));
                registry().image(&name).size(20_000).push();
                let honest = registry()
                    .push(&format!("{}:1", unique("honest")))
                    .reference;
                let lying = Arc::new(AtomicBool::new(true));
                let switch = Arc::clone(&lying);
                let proxy = Proxy::start(registry().url(), move |seen| {
                    if switch.load(Ordering::Relaxed) {
                        lie(seen)
                    } else {
                        Fault::Pass
                    }
                });
                let image = proxy.reference(&name);
                let pull = Harpoon::new(["pull", "--output=json", "--runtime-endpoint", endpoint])
                    .args([&image, &honest])
                    .env("PULL_TIMEOUT", format!("{}s", LIMIT.as_secs()))
                    .env("RETRIES", "0")
                    .limit(LIMIT * 4);
                let output = pull.run().expect(1);
                let report = output.json();
                let told = entry(&report, &image);
                assert_eq!(told["outcome"], "failed", "{what}: {output}");
                assert!(
                    told["message"].as_str().unwrap().len() < 2000,
                    "{what}: {output}"
                );
                assert_eq!(
                    entry(&report, &honest)["outcome"],
                    "pulled",
                    "{what}: {output}"
                );
                assert!(!has(&image), "{what}");
                assert!(output.elapsed < LIMIT * 2, "{what}: {output}");
                // Of what is long no more is kept than may be looked at.
                assert!(
                    output.peak_anonymous < 40 << 20,
                    "{what}: {} bytes",
                    output.peak_anonymous
                );
                // Reading an endless response is stopped.
                eventually(what, PATIENCE, || proxy.now() == 0);

                lying.store(false, Ordering::Relaxed);
                let output = pull
                    .env("PULL_TIMEOUT", "5m")
                    .env("RETRIES", "3")
                    .run()
                    .expect(0);
                assert_eq!(
                    entry(&output.json(), &image)["outcome"],
                    "pulled",
                    "{what}: {output}"
                );
                assert_eq!(
                    entry(&output.json(), &honest)["outcome"],
                    "present",
                    "{what}: {output}"
                );
            });
        }
    });
}

#[test]
fn containerd_fails_only_malformed_images() {
    lies_fail_their_own_image(containerd().endpoint(), LIES.iter(), |image| {
        containerd().has(image)
    });
}

/// Docker Engine 20.10 reads what has no end until its memory has, whatever its client does: nothing harpoon can stop, and
/// the end of the daemon that other tests use.
#[test]
fn docker_fails_only_malformed_images() {
    let lies = LIES
        .iter()
        .filter(|(what, _)| !what.ends_with("without end"));
    lies_fail_their_own_image(docker().endpoint(), lies, |image| docker().has(image));
}

#[test]
fn layout_fails_only_malformed_images() {
    let place = bed::directory();
    let index = place.path().join("store/index.json");
    let endpoint = format!("oci:{}", place.path().join("store").display());
    lies_fail_their_own_image(&endpoint, LIES.iter(), |image| {
        std::fs::read_to_string(&index).is_ok_and(|text| text.contains(image))
    });
}

/// No such name, nobody at the port, and a certificate that nobody vouches for: the API server's.
fn what_cannot_be_reached_fails_alone(endpoint: &str, tls: Option<&str>) {
    let good = registry()
        .push(&format!("{}:1", unique("reached")))
        .reference;
    let mut bad = vec![
        "no-such-host.invalid/app:1".to_owned(),
        "127.0.0.1:1/app:1".to_owned(),
    ];
    bad.extend(tls.map(|host| format!("{host}/app:1")));
    let output = Harpoon::new(["pull", "--output=json", "--runtime-endpoint", endpoint])
        .args(bad.iter().chain([&good]))
        .env("PULL_TIMEOUT", "30s")
        .env("RETRIES", "0")
        .run()
        .expect(1);
    let report = output.json();
    for image in &bad {
        let told = entry(&report, image);
        assert_eq!(
            (&told["outcome"], &told["reason"]),
            (&"failed".into(), &"unavailable".into()),
            "{image}: {output}"
        );
    }
    assert_eq!(entry(&report, &good)["outcome"], "pulled", "{output}");
}

#[test]
fn containerd_fails_only_unreachable_images() {
    // containerd does not look at the certificates of loopback addresses.
    let name = "tls.registry.example";
    containerd().map_host(name, kubernetes().server());
    what_cannot_be_reached_fails_alone(containerd().endpoint(), Some(name));
}

#[test]
fn docker_fails_only_unreachable_images() {
    what_cannot_be_reached_fails_alone(docker().endpoint(), None);
}

#[test]
fn layout_fails_only_unreachable_images() {
    let place = bed::directory();
    let endpoint = format!("oci:{}", place.path().join("store").display());
    let (_, host) = kubernetes().server().split_once("://").unwrap();
    what_cannot_be_reached_fails_alone(&endpoint, Some(host));
}
