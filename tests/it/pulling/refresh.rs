//! Tags that move: the number of requests, and the images that are pulled again.

use super::*;
use crate::bed::{Pushed, kubernetes};

with_both! {
    only_moved_tag_is_pulled_again,
    only_movable_tags_are_checked,
    unreachable_registry_keeps_present_image,
}

with_crio! {
    only_moved_tag_is_pulled_again,
    only_movable_tags_are_checked,
    unreachable_registry_keeps_present_image,
}

/// A repository whose tag moves, behind a proxy that counts.
struct Moving {
    name: String,
    proxy: Proxy,
}

impl Moving {
    fn new(tag: &str) -> Self {
        Self {
            name: format!("{}:{tag}", unique("moving")),
            proxy: Proxy::start(registry().url(), |_| Fault::Pass),
        }
    }

    /// Has the tag stand for the image that follows from the seed.
    fn push(&self, seed: &str) -> Pushed {
        registry().image(&self.name).seed(seed).push()
    }

    fn image(&self) -> String {
        self.proxy.reference(&self.name)
    }
}

fn refresh<R: Runtime>(runtime: &R, image: &str) -> Harpoon {
    run(runtime, &[image]).env("REFRESH", "true")
}

/// Outcome and digest, and the message.
#[track_caller]
fn told(output: &Output, image: &str) -> (String, Value) {
    let report = output.json();
    let entry = entry(&report, image);
    let text = |key: &str| entry[key].as_str().unwrap_or("-");
    let line = format!("{} {}", text("outcome"), text("digest"));
    (line, entry["message"].clone())
}

fn only_moved_tag_is_pulled_again<R: Runtime>() {
    let moving = Moving::new("latest");
    let image = moving.image();
    let mut here = moving.push("one");
    let output = refresh(R::shared(), &image).run().expect(0);
    assert_eq!(
        told(&output, &image).0,
        format!("pulled {}", here.digest),
        "{output}"
    );

    let asked = moving.proxy.count(|_| true);
    let output = refresh(R::shared(), &image).run().expect(0);
    let present = (format!("present {}", here.digest), Value::Null);
    assert_eq!(told(&output, &image), present, "{output}");
    let requests = &moving.proxy.seen()[asked..];
    assert!(
        requests.len() == 1 && requests[0].method == "HEAD",
        "{requests:?}"
    );

    // To another image, and back to one that the runtime still has.
    for seed in ["two", "one"] {
        let there = moving.push(seed);
        let output = run(R::shared(), &[&image]).run().expect(0);
        assert_eq!(
            told(&output, &image).0,
            format!("present {}", here.digest),
            "{output}"
        );
        let output = refresh(R::shared(), &image).run().expect(0);
        let (line, message) = told(&output, &image);
        assert_eq!(line, format!("pulled {}", there.digest), "{output}");
        let moved = format!("its tag has moved from {} to {}", here.digest, there.digest);
        assert_eq!(message, moved, "{output}");
        here = there;
    }
    let output = refresh(R::shared(), &image).run().expect(0);
    assert_eq!(
        told(&output, &image).0,
        format!("present {}", here.digest),
        "{output}"
    );
}

fn only_movable_tags_are_checked<R: Runtime>() {
    let moving = Moving::new("1");
    let image = moving.image();
    let first = moving.push("one");
    pull(R::shared(), &[&image]).run().expect(0);
    let second = moving.push("two");
    let asked = moving.proxy.count(|_| true);
    let output = refresh(R::shared(), &image).run().expect(0);
    assert_eq!(
        told(&output, &image).0,
        format!("present {}", first.digest),
        "{output}"
    );
    assert_eq!(
        moving.proxy.count(|_| true),
        asked,
        "{:?}",
        moving.proxy.seen()
    );

    // A workload with the pull policy Always makes any tag be compared.
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let labels = json!({"app": "web"});
    let deployment = |policy: &str| {
        let containers = json!([{"name": "c", "image": image, "imagePullPolicy": policy}]);
        json!({"metadata": {"name": policy.to_lowercase()}, "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}})
    };
    let harpoon = Harpoon::new(["run", "--refresh", "--output=json", "--runtime-endpoint"]);
    let file = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&file, cluster.server(), cluster.token(), &namespace);
    let harpoon = harpoon.arg(R::shared().endpoint()).env("KUBECONFIG", file);
    let expected = [
        ("IfNotPresent", "present", &first),
        ("Always", "pulled", &second),
    ];
    for (policy, outcome, pushed) in expected {
        let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
        cluster.create(&deployments, deployment(policy));
        let output = harpoon.run().expect(0);
        let line = format!("{outcome} {}", pushed.digest);
        assert_eq!(told(&output, &image).0, line, "{policy}: {output}");
    }
}

fn unreachable_registry_keeps_present_image<R: Runtime>() {
    let moving = Moving::new("latest");
    let image = moving.image();
    let first = moving.push("one");
    pull(R::shared(), &[&image]).run().expect(0);
    drop(moving.proxy);
    let output = refresh(R::shared(), &image).run().expect(0);
    let (line, message) = told(&output, &image);
    assert_eq!(line, format!("present {}", first.digest), "{output}");
    let message = message.as_str().unwrap();
    assert!(
        message.starts_with("failed to check whether the tag has moved: "),
        "{output}"
    );
    assert!(
        output
            .stderr
            .contains("failed to check whether the tag has moved"),
        "{output}"
    );
}
