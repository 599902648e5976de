//! The disk budget and `--refresh` with an image layout, which keeps just what it downloads.

use super::*;

#[test]
fn budget_is_exact_to_the_byte() {
    let seed = unique("seed");
    let push = |prefix: &str, layers: usize| {
        let image = registry().image(&format!("{}:1", unique(prefix)));
        image
            .seed(&seed)
            .layers(layers)
            .size(1_000_000 * layers as u64)
            .push()
    };
    // `b` has both layers of `a` and one more; `c` is of its own.
    let (a, b) = (push("a", 2), push("b", 3));
    let c = registry()
        .image(&format!("{}:1", unique("c")))
        .size(50_000)
        .push();
    let bundle = Bundle::new();
    let images = [&a, &b, &c].map(|pushed| pushed.reference.clone());
    // The configurations take some hundred bytes each, the manifests too.
    let pull = |budget: u64| bundle.pull(&images).env("DISK_BUDGET", budget.to_string());
    let outcomes = |output: &Output| images.each_ref().map(|i| told(output, i));
    let skipped = [json!("skipped"), json!("disk_budget"), json!(0)];
    let output = pull(a.bytes + c.bytes + 4000).run().expect(0);
    assert_eq!(
        outcomes(&output),
        [pulled(1), skipped.clone(), pulled(1)],
        "{output}"
    );
    let held: u64 = bundle.blobs().values().sum();
    assert!(held <= a.bytes + c.bytes + 4000, "{held}");
    // Present blobs count, and shared ones do not count again.
    let output = pull(b.bytes + c.bytes - 500_000).run().expect(0);
    assert_eq!(outcomes(&output)[1], skipped, "{output}");
    let output = pull(b.bytes + c.bytes + 8000).run().expect(0);
    assert_eq!(outcomes(&output)[1], pulled(1), "{output}");
    let held: u64 = bundle.blobs().values().sum();
    assert!(held <= b.bytes + c.bytes + 8000, "{held}");
}

#[test]
fn moved_tag_is_pulled_again() {
    let name = format!("{}:latest", unique("moving"));
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let bundle = Bundle::new();
    let pull = |seed: &str| {
        let pushed = registry()
            .image(&name)
            .seed(seed)
            .platforms(&["linux/amd64", "linux/arm64"])
            .push();
        let output = bundle.pull(&[&image]).arg("--refresh").run().expect(0);
        assert_eq!(report(&output, &image)["digest"], pushed.digest, "{output}");
        report(&output, &image)["outcome"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(pull("one"), "pulled");
    let asked = proxy.count(|_| true);
    assert_eq!(pull("one"), "present");
    assert_eq!(proxy.count(|_| true), asked + 1, "{:?}", proxy.seen());
    assert_eq!(pull("two"), "pulled");
    assert_eq!(pull("one"), "pulled");
}

#[test]
fn bad_repository_fails_alone_under_budget() {
    // They are asked for in the order of their names, one at a time.
    let names = ["a", "b", "c", "d", "e"].map(|prefix| {
        let name = unique(prefix);
        registry().push(&format!("{name}:1"));
        name
    });
    let (bad, late) = (names[0].clone(), names[1].clone());
    let proxy = Proxy::start(registry().url(), move |seen| {
        // The second is back when its size is asked for again, before its pull.
        let fails = seen.is_of(&bad) || seen.is_of(&late) && seen.nth <= 2;
        match seen.is_manifest() && fails {
            true => Fault::status(500),
            false => Fault::Pass,
        }
    });
    let images = names.map(|name| proxy.reference(&format!("{name}:1")));
    let bundle = Bundle::new();
    let pull = bundle.pull(&images).env("DISK_BUDGET", "1Ti");
    let pull = pull.args(["--registry-concurrency=1", "--retries=1"]);
    let output = pull.run().expect(1);
    assert_eq!(
        images.each_ref().map(|i| told(&output, i)),
        [
            failed("unavailable", 2),
            pulled(1),
            pulled(1),
            pulled(1),
            pulled(1)
        ],
        "{output}"
    );
    let message = report(&output, &images[0])["message"].to_string();
    assert!(message.contains("size unknown"), "{message}");
}
