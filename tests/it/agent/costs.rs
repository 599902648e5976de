//! The costs of an idle agent.
#![allow(clippy::print_stdout, reason = "tests print what they measure")]

use super::*;

/// The processor time of a process so far.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = after.split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The resident memory of a process in bytes: all of it, and what is not mapped from files.
fn resident(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kibibytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kibibytes.parse::<u64>().unwrap() << 10
    };
    (bytes("VmRSS:"), bytes("RssAnon:"))
}

/// Gives the image `name:0` of the shared registry 500 tags; returns their references.
fn many_tags(name: &str) -> Vec<String> {
    bed::registry().push(&format!("{name}:0"));
    let url = format!("{}/v2/{name}/manifests", bed::registry().url());
    bed::block_on(async move {
        let client = bed::client(None);
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
        let get = client.get(format!("{url}/0")).header("accept", accept);
        let manifest = get.send().await.unwrap();
        let kind = manifest.headers()["content-type"].clone();
        let manifest = manifest.bytes().await.unwrap();
        for tag in 1..500 {
            let put = client.put(format!("{url}/{tag}"));
            let put = put.header("content-type", kind.clone());
            let answer = put.body(manifest.clone()).send().await.unwrap();
            assert!(answer.status().is_success(), "{answer:?}");
        }
    });
    let tags = 0..500;
    tags.map(|tag| bed::registry().reference(&format!("{name}:{tag}")))
        .collect()
}

#[test]
fn idle_agent_is_cheap() {
    let (cluster, containerd) = (with_definitions(), Containerd::start());
    let machine = Machine::new(&cluster, &containerd);
    let placement =
        json!({"nodeSelector": {"test": machine.name}, "tolerations": [{"operator": "Exists"}]});
    let images = many_tags(&unique("agent-many")).into_iter().enumerate();
    let objects = images.map(|(n, image)| {
        json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage", "metadata": {"name": format!("image-{n}")},
            "spec": {"image": image, "pods": n, "prefetches": ["shop"], "placements": [placement]}})
    });
    cluster.create_all(&format!("{API}/plannedimages"), objects.collect());
    let agent = machine.resyncing("60s").start();
    machine.wait_for(&agent, "all are present", || {
        machine.status()["present"] == 500
    });
    let filled = machine.status()["firstFillSeconds"].clone();
    std::thread::sleep(Duration::from_secs(5));
    let (before, began) = (processor_time(agent.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(if bed::is_test_build() {
        10
    } else {
        120
    }));
    let used = processor_time(agent.pid()) - before;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    let (memory, anonymous) = resident(agent.pid());
    println!(
        "500 images in {filled} s; then {:.2}% of a core, {} KiB resident, {} KiB of it anonymous",
        share * 100.0,
        memory >> 10,
        anonymous >> 10
    );
    let most = if bed::is_test_build() { 10 } else { 1 };
    assert!(memory <= most * (20 << 20), "{memory}");
    assert!(share <= 0.002 * f64::from(most as u32), "{share}");
}

#[test]
fn restarted_agent_repeats_no_report() {
    // Of its own: the status names the prefetches of all tests. Kubernetes before 1.22 stores who applied the status, and who the rest.
    let cluster = Kubernetes::start_newer();
    cluster.install_definitions();
    let machine = Machine::new(&cluster, containerd());
    let agent = machine.start();
    machine.plan(&push("agent"), &json!({}));
    machine.wait_for(&agent, "the image is reported", || {
        machine.status()["present"] == 1 && machine.ready().0 == "True"
    });
    agent.signal(Signal::TERM);
    agent.wait().expect(0);
    let before = machine.object();
    let agent = machine.start();
    machine.wait_for(&agent, "it has looked", || {
        let (_, metrics) = served(&agent, "/metrics");
        metrics.contains("harpoon_images{state=\"present\"} 1")
            && served(&agent, "/readyz").0 == 200
    });
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(machine.object(), before);
    agent.signal(Signal::KILL);
    drop(agent.wait());
    // What has changed meanwhile is reported.
    machine.plan(&push("agent"), &json!({}));
    let agent = machine.start();
    machine.wait_for(&agent, "the second image is reported", || {
        machine.status()["present"] == 2
    });
    let status = machine.status();
    assert_eq!(
        status["firstFillSeconds"],
        before["status"]["firstFillSeconds"]
    );
}
