//! The node's registry configuration: its mirrors serve fast fill too, and what it does not know goes to the runtime.

use std::path::Path;

use super::*;

/// A registry name that no server has.
const REGISTRY: &str = "registry.example";

/// [`fast`], where harpoon sees containerd's configuration. containerd 2 does not tell its directory: the usual one is mounted.
fn configured(containerd: &Containerd, images: &[&str]) -> Harpoon {
    let harpoon = fast(containerd, images);
    match bed::has_newer_runtimes() {
        true => harpoon.bind(containerd.certs(), "/etc/containerd/certs.d"),
        false => harpoon,
    }
}

fn put(containerd: &Containerd, text: &str) {
    let directory = Path::new(containerd.certs()).join(REGISTRY);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

#[test]
fn mirrors_are_asked_in_order() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("mirrored"));
    registry().image(&name).layers(2).push();
    let empty = Proxy::start(registry().url(), |_| Fault::status(404));
    let pulls = Proxy::start(registry().url(), |_| Fault::Pass);
    let resolves = Proxy::start(registry().url(), |_| Fault::Pass);
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n[host.\"{}\".header]\nx-test = \"yes\"\n[host.\"{}\"]\ncapabilities = [\"resolve\", \"pull\"]\n",
        empty.url(),
        pulls.url(),
        pulls.url(),
        resolves.url(),
    );
    put(&containerd, &text);
    let image = format!("{REGISTRY}/{name}");
    let output = configured(&containerd, &[&image]).run().expect(0);
    filled(&output);
    let ours = |proxy: &Proxy| {
        let mut seen = proxy.seen();
        seen.retain(|seen| {
            seen.headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with("harpoon")
        });
        seen
    };
    let (pulled, resolved) = (ours(&pulls), ours(&resolves));
    assert!(pulled.iter().all(bed::faulty::Seen::is_blob), "{pulled:?}");
    assert!(pulled.iter().all(|seen| seen.headers["x-test"] == "yes"));
    assert!(
        resolved.iter().all(bed::faulty::Seen::is_manifest),
        "{resolved:?}"
    );
    for seen in pulled.iter().chain(&resolved) {
        assert_eq!(seen.query, format!("ns={REGISTRY}"), "{seen:?}");
    }
    assert_eq!((pulled.len(), resolved.len()), (3, 1));
    assert_eq!(empty.seen().len(), 0);
}

#[test]
fn unknown_settings_are_for_the_runtime() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("unknown"));
    registry().push(&name);
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let image = format!("{REGISTRY}/{name}");
    let text = format!("[host.\"{}\"]\nunknown = \"1\"\n", proxy.url());
    put(&containerd, &text);
    let output = configured(&containerd, &[&image]).run().expect(0);
    assert!(
        output.stderr.contains("unsupported field unknown"),
        "{output}"
    );
    assert!(proxy.seen().iter().all(Seen::is_by_containerd));
}

#[test]
fn mirror_in_cri_is_the_runtimes() {
    let name = format!("{}:1", unique("in-cri"));
    registry().push(&name);
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let containerd = Containerd::with_mirror(REGISTRY, &proxy.url());
    let image = format!("{REGISTRY}/{name}");
    let output = configured(&containerd, &[&image])
        .env("FILL", "auto")
        .run()
        .expect(0);
    assert!(
        output
            .stderr
            .contains("registries are configured in containerd"),
        "{output}"
    );
    assert!(proxy.seen().iter().all(Seen::is_by_containerd));
}

#[test]
fn unreachable_mirror_is_not_passed_by() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("unreachable"));
    registry().push(&name);
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let image = format!("{REGISTRY}/{name}");
    let gone = "http://127.0.0.1:1";
    put(
        &containerd,
        &format!("server = \"{}\"\n[host.\"{gone}\"]\n", proxy.url()),
    );
    let output = configured(&containerd, &[&image]).run().expect(0);
    assert!(
        output.stderr.contains("the runtime pulls (--fill)"),
        "{output}"
    );
    assert!(proxy.seen().iter().all(Seen::is_by_containerd));
}

#[test]
fn tls_settings_of_mirrors_are_used() {
    let containerd = Containerd::start();
    let secure = bed::Registry::with_tls();
    let url = format!("https://{}", secure.address());
    for (name, setting, is_filled) in [
        ("none", String::new(), false),
        ("ca", format!("ca = \"{}\"\n", secure.ca().display()), true),
        ("skip", "skip_verify = true\n".to_owned(), true),
    ] {
        let name = format!("{}:1", unique(name));
        secure.push(&name);
        put(&containerd, &format!("[host.\"{url}\"]\n{setting}"));
        let image = format!("{REGISTRY}/{name}");
        let output = configured(&containerd, &[&image]).env("RETRIES", "0").run();
        assert_eq!(output.code == Some(0), is_filled, "{output}");
        let by_runtime = output.stderr.contains("the runtime pulls (--fill)");
        assert_eq!(by_runtime, !is_filled, "{output}");
    }
}
