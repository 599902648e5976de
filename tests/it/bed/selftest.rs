//! Tests of the bed itself.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::faulty::{Fault, Proxy, first};
use super::{
    Containerd, Docker, Harpoon, Kubernetes, PASSWORD, Registry, Terminal, USER, block_on, client,
    containerd, docker, kubernetes, registry, registry_with_password, run, unique,
};

/// The fetched body, or how the connection failed.
fn fetch(url: String) -> Result<(u16, Vec<u8>), String> {
    block_on(async move {
        let failed = |e: reqwest::Error| e.to_string();
        let answer = client(None).get(url).send().await.map_err(failed)?;
        let status = answer.status().as_u16();
        Ok((status, answer.bytes().await.map_err(failed)?.to_vec()))
    })
}

fn inspect(reference: &str, credentials: Option<&str>) -> serde_json::Value {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", "--no-tags"]);
    if let Some(credentials) = credentials {
        skopeo.args(["--creds", credentials]);
    }
    serde_json::from_str(&run(skopeo.arg(format!("docker://{reference}")))).unwrap()
}

#[test]
fn pushed_images_are_valid() {
    let pushed = registry()
        .image(&format!("{}:1", unique("real")))
        .size(50_000)
        .layers(3)
        .push();
    let seen = inspect(&pushed.reference, None);
    assert_eq!(seen["Digest"], json!(pushed.digest));
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 3);
    assert!((50_000..60_000).contains(&pushed.bytes), "{}", pushed.bytes);
}

#[test]
fn same_seed_makes_same_layers() {
    let name = unique("seed");
    let push = |tag, seed| {
        registry()
            .image(&format!("{name}:{tag}"))
            .seed(seed)
            .push()
            .digest
    };
    assert_eq!(push("1", "a"), push("2", "a"));
    assert_ne!(push("1", "a"), push("2", "b"));
}

#[test]
fn registry_requires_its_password() {
    let pushed = registry_with_password().push(&format!("{}:1", unique("locked")));
    let seen = inspect(&pushed.reference, Some(&format!("{USER}:{PASSWORD}")));
    assert_eq!(seen["Digest"], json!(pushed.digest));
    assert_eq!(
        fetch(format!("{}/v2/", registry_with_password().url()))
            .unwrap()
            .0,
        401
    );
}

#[test]
fn containerd_pulls_from_loopback_registry() {
    let pushed = registry().push(&format!("{}:1", unique("plain")));
    containerd().ctr(&["images", "pull", "--plain-http", &pushed.reference]);
    assert!(containerd().has(&pushed.reference));
    containerd().remove(&pushed.reference);
    assert!(!containerd().has(&pushed.reference));
}

#[test]
fn containerd_follows_host_mapping() {
    let name = unique("mapped");
    registry().push(&format!("{name}:1"));
    containerd().map_host("mapped.example", registry().url());
    let hosts = containerd().socket().with_file_name("certs.d");
    let reference = format!("mapped.example/{name}:1");
    containerd().ctr(&[
        "images",
        "pull",
        "--hosts-dir",
        hosts.to_str().unwrap(),
        &reference,
    ]);
    assert!(containerd().has(&reference));
}

#[test]
fn docker_pulls_from_loopback_registry() {
    let pushed = registry().push(&format!("{}:1", unique("plain")));
    let (name, tag) = pushed.reference.rsplit_once(':').unwrap();
    docker().ask(
        "POST",
        &format!("/images/create?fromImage={name}&tag={tag}"),
    );
    assert!(docker().has(&pushed.reference));
    docker().remove(&pushed.reference);
    assert!(!docker().has(&pushed.reference));
}

#[test]
fn cluster_stores_objects_and_enforces_rbac() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 3, "nginx:1.27");
    let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    assert_eq!(
        cluster.get(&deployments)["items"][0]["spec"]["replicas"],
        json!(3)
    );

    let token = cluster.service_account(&namespace, "reader");
    let status = |token: String| {
        let request = client(Some(cluster.ca())).get(format!("{}{deployments}", cluster.server()));
        block_on(async move {
            request
                .bearer_auth(token)
                .send()
                .await
                .unwrap()
                .status()
                .as_u16()
        })
    };
    assert_eq!(status("wrong".into()), 401);
    assert_eq!(status(cluster.nobody().into()), 403);
    assert_eq!(status(token.clone()), 403);
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]);
    cluster.grant((&namespace, "reader"), Some(&namespace), &rules);
    super::eventually("the grant is known", Duration::from_secs(40), || {
        status(token.clone()) == 200
    });
}

#[test]
fn api_server_accepts_many_objects() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
    let object = |n| json!({"metadata": {"name": format!("many-{n}")}, "data": {"text": "x".repeat(20_000)}});
    cluster.create_all(&collection, (0..500).map(object).collect());
    let list = cluster.get(&format!("{collection}?limit=200"));
    assert_eq!(list["items"].as_array().unwrap().len(), 200);
    assert_eq!(list["metadata"]["remainingItemCount"], json!(300));
}

#[test]
fn restart_keeps_address_and_content() {
    let registry = Registry::start();
    registry.push("kept:1");
    let containerd = Containerd::start();
    containerd.ctr(&[
        "images",
        "pull",
        "--plain-http",
        &registry.reference("kept:1"),
    ]);
    registry.kill();
    assert!(fetch(format!("{}/v2/", registry.url())).is_err());
    registry.restart();
    containerd.kill();
    containerd.restart();
    assert!(containerd.has(&registry.reference("kept:1")));
    inspect(&registry.reference("kept:1"), None);
}

#[test]
fn stopped_daemon_leaves_nothing() {
    let directories = {
        let (containerd, docker, cluster) =
            (Containerd::start(), Docker::start(), Kubernetes::start());
        [
            containerd.socket().to_owned(),
            docker.socket(),
            cluster.kubeconfig().to_owned(),
        ]
        .map(|file| file.parent().unwrap().to_owned())
    };
    for directory in directories {
        assert!(!directory.exists());
        let directory = directory.to_str().unwrap();
        assert!(
            !std::fs::read_to_string("/proc/mounts")
                .unwrap()
                .contains(directory)
        );
        for process in Path::new("/proc").read_dir().unwrap().flatten() {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            assert!(!command.contains(directory), "{command}");
        }
    }
}

#[test]
fn proxy_answers_faults_then_passes() {
    let name = unique("faulty");
    registry().push(&format!("{name}:1"));
    let proxy = Proxy::start(
        registry().url(),
        first(2, Fault::too_many(7), |seen| seen.is_manifest()),
    );
    let manifest = format!("{}/v2/{name}/manifests/1", proxy.url());
    let status = || fetch(manifest.clone()).unwrap().0;
    assert_eq!([status(), status()], [429, 429]);
    inspect(&proxy.reference(&format!("{name}:1")), None);
    let seen = proxy.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.path == "/v2/" || seen.is_of(&name)),
        "{seen:?}"
    );
    assert_eq!(proxy.count(|seen| seen.is_manifest() && seen.nth > 2), 1);
}

#[test]
fn proxy_corrupts_bodies() {
    let name = unique("spoilt");
    let pushed = registry().image(&format!("{name}:1")).size(400_000).push();
    let manifest = inspect(&pushed.reference, None);
    let blob = format!(
        "/v2/{name}/blobs/{}",
        manifest["Layers"][0].as_str().unwrap()
    );
    let fetch_by = |fault: Fault| {
        let proxy = Proxy::start(registry().url(), move |_| fault.clone());
        let began = Instant::now();
        (fetch(format!("{}{blob}", proxy.url())), began.elapsed())
    };
    let whole = fetch_by(Fault::Pass).0.unwrap();
    assert_eq!((whole.0, whole.1.len() as u64), (200, pushed.bytes));
    assert!(fetch_by(Fault::CutAfter(1000)).0.is_err());
    assert!(fetch_by(Fault::Close).0.is_err());
    assert!(fetch_by(Fault::Delay(Duration::from_millis(300))).1 > Duration::from_millis(300));
    let (slow, time) = fetch_by(Fault::Throttle(400_000));
    assert_eq!(slow.unwrap(), whole);
    assert!(
        time > Duration::from_millis(800) && time < Duration::from_secs(30),
        "{time:?}"
    );

    for fault in [Fault::Stall, Fault::StallAfter(1000)] {
        let proxy = Proxy::start(registry().url(), move |_| fault.clone());
        let url = format!("{}{blob}", proxy.url());
        let limited = block_on(async move {
            tokio::time::timeout(Duration::from_millis(300), async {
                client(None).get(url).send().await.unwrap().bytes().await
            })
            .await
        });
        assert!(limited.is_err(), "it did not stall");
    }
}

#[test]
fn proxy_serves_the_api_server() {
    let cluster = kubernetes();
    let faults = first(1, Fault::status(500), |seen| seen.path == "/version");
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), faults);
    let status = || fetch(format!("{}/version", proxy.url())).unwrap().0;
    assert_eq!([status(), status()], [500, 200]);
}

#[test]
fn dropped_proxy_closes_pending_responses() {
    let proxy = Proxy::start(registry().url(), |_| Fault::Stall);
    let (url, address) = (proxy.url(), proxy.address());
    let asking = std::thread::spawn(move || fetch(url));
    super::eventually("it asks", Duration::from_secs(40), || {
        proxy.count(|_| true) == 1
    });
    drop(proxy);
    assert!(asking.join().unwrap().is_err());
    super::eventually("the port closes", Duration::from_secs(40), || {
        std::net::TcpStream::connect(&address).is_err()
    });
}

/// Replaces the program: checks the environment that a shell finds in its place.
fn shell(text: &str) -> Harpoon {
    Harpoon::new::<[&str; 0]>([]).under(["sh", "-c", text])
}

#[test]
fn program_gets_clean_environment() {
    let output = shell("env; exit 7").env("ONLY", "a b").run().expect(7);
    let home = format!("HOME={}", output.home().display());
    let mut names: Vec<_> = output
        .stdout
        .lines()
        .filter(|line| !line.starts_with("PATH="))
        .collect();
    names.sort_unstable();
    names.retain(|line| !line.starts_with("PWD="));
    assert_eq!(names, ["FILL=runtime", home.as_str(), "ONLY=a b"]);
}

#[test]
fn program_under_test_runs() {
    Harpoon::new(["--help"]).run().expect(0);
}

#[test]
fn program_can_be_signaled() {
    let running =
        shell("trap 'echo caught; exit 143' TERM; echo ready >&2; while :; do sleep 0.01; done")
            .start();
    running.wait_for("ready", Duration::from_secs(40));
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().expect(143).stdout, "caught\n");
}

#[test]
#[should_panic(expected = "killed after")]
fn program_has_limited_time() {
    shell("sleep 100").limit(Duration::from_millis(100)).run();
}

#[test]
fn memory_is_measured_for_program_only() {
    let output = shell("cp /bin/sleep harpoon; exec ./harpoon 0.2")
        .run()
        .expect(0);
    assert!(
        (100_000..20_000_000).contains(&output.peak_rss),
        "{}",
        output.peak_rss
    );
    assert!(
        output.elapsed > Duration::from_millis(200) && output.elapsed < Duration::from_secs(40)
    );
}

#[test]
fn dropped_run_is_killed() {
    for terminal in [Terminal::None, Terminal::Both] {
        let running = shell("exec sleep 100").terminal(terminal).start();
        let process = format!("/proc/{}/exe", running.pid());
        assert!(Path::new(&process).exists());
        drop(running);
        super::eventually("it is gone", Duration::from_secs(40), || {
            !Path::new(&process).exists()
        });
    }
}

#[test]
fn terminal_is_a_tty() {
    let text = "[ -t 1 ] && echo out >&2; [ -t 2 ] && echo err >&2; stty size </dev/tty >&2; echo data; exit 5";
    let output = shell(text)
        .terminal(Terminal::Stderr)
        .env("TERM", "dumb")
        .run()
        .expect(5);
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("data\n", "err\r\n30 100\r\n")
    );
    let output = shell(text).terminal(Terminal::Both).run().expect(5);
    assert_eq!(output.stdout, "out\r\nerr\r\n30 100\r\ndata\r\n");
}

#[test]
fn pod_binds_sockets_and_files() {
    let cluster = kubernetes();
    let account = cluster.account_directory("default", cluster.nobody());
    let images = super::directory();
    std::fs::write(images.path().join("images"), "nginx:1.27\n").unwrap();
    let pod = Harpoon::new(["--help"])
        .bind(containerd().socket(), "/run/containerd/containerd.sock")
        .bind(docker().socket(), "/var/run/docker.sock")
        .bind(
            account.path(),
            "/var/run/secrets/kubernetes.io/serviceaccount",
        )
        .bind(images.path(), "/config")
        .empty_file("/dev/termination-log");
    pod.run().expect(0);
    let look = "ctr version >/dev/null && curl -sf --unix-socket /run/docker.sock http://docker/_ping >/dev/null && \
        ls /run /var/run/secrets/kubernetes.io/serviceaccount && cat /config/images && echo told >/dev/termination-log && \
        touch /new /var/new && exit 9";
    let output = pod.under(["sh", "-c", look]).run().expect(9);
    assert_eq!(
        output.stdout,
        "/run:\ncontainerd\ndocker.sock\nsecrets\n\n/var/run/secrets/kubernetes.io/serviceaccount:\nca.crt\nnamespace\ntoken\nnginx:1.27\n"
    );
    for path in [
        "/new",
        "/var/new",
        "/dev/termination-log",
        "/run/secrets/kubernetes.io",
    ] {
        assert!(!Path::new(path).exists(), "{path}");
    }
}
