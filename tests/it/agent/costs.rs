//! What an agent costs while it has nothing to do.

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

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// An agent with 500 images, all of them one image in the registry with 500 tags.
#[test]
fn idle_agent_is_cheap() {
    let cluster = with_definitions();
    let machine = Machine::new(&cluster, containerd());
    let name = unique("agent-many");
    let pushed = bed::registry().push(&format!("{name}:0"));
    let placement =
        json!({"nodeSelector": {"test": machine.name}, "tolerations": [{"operator": "Exists"}]});
    let objects = (0..500).map(|n| {
        let image = bed::registry().reference(&format!("{name}-{n}@{}", pushed.digest));
        // Only the first is there: the others are missing in the registry, which is the worse case.
        let image = if n == 0 { pushed.reference.clone() } else { image };
        json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage", "metadata": {"name": format!("image-{n}")},
            "spec": {"image": image, "pods": n, "prefetches": ["shop"], "placements": [placement]}})
    });
    cluster.create_all(&format!("{API}/plannedimages"), objects.collect());
    let agent = machine.harpoon().args(["--resync", "60s"]).start();
    machine.wait_for(&agent, "all were tried", || {
        let status = machine.status();
        status["desired"] == 500 && status["pulling"] == 0
    });
    std::thread::sleep(Duration::from_secs(10));
    let (before, began) = (processor_time(agent.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let used = processor_time(agent.pid()) - before;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    let memory = resident(agent.pid());
    println!(
        "{:.2}% of a core, {} KiB resident",
        share * 100.0,
        memory >> 10
    );
    if !bed::is_test_build() {
        assert!(memory <= 20 << 20, "{memory}");
        assert!(share <= 0.002, "{share}");
    }
}
