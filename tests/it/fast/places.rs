//! Nodes that lack something: fast fill does without it, or the runtime pulls.

use super::*;

/// Calls of the kernel that fail in harpoon, as `strace` writes them.
fn failing(harpoon: Harpoon, fault: &str) -> Harpoon {
    let (call, _) = fault.split_once(':').unwrap();
    harpoon.under([
        "strace".to_owned(),
        "-fqq".to_owned(),
        "--seccomp-bpf".to_owned(),
        "-o/dev/null".to_owned(),
        format!("-etrace={call}"),
        format!("-einject={fault}"),
    ])
}

#[test]
fn old_kernel_gets_the_same_image() {
    let (ours, theirs) = (Containerd::start(), Containerd::start());
    let image = registry().image(&format!("{}:1", unique("kernel")));
    let pushed = image.layers(3).size(300_000).push();
    let reference = &*pushed.reference;
    let harpoon = failing(fast(&ours, &[reference]), "openat2:error=ENOSYS");
    filled(&harpoon.run().expect(0));
    let runtime = fast(&theirs, &[reference]).env("FILL", "runtime");
    runtime.run().expect(0);
    assert_eq!(tree(&ours, reference), tree(&theirs, reference));
    assert_eq!(snapshots(&ours), snapshots(&theirs));
}

#[test]
fn missing_exchange_leaves_it_to_the_runtime() {
    let containerd = Containerd::start();
    let pushed = registry().push(&format!("{}:1", unique("exchange")));
    let run = |fill: &str| {
        let harpoon = fast(&containerd, &[&pushed.reference]).env("FILL", fill);
        failing(harpoon, "renameat2:error=EINVAL").run()
    };
    let output = run("fast").expect(3);
    assert!(
        output.stderr.contains("failed to exchange directories"),
        "{output}"
    );
    let output = run("auto").expect(0);
    assert!(
        output.stderr.contains("the runtime pulls (--fill)"),
        "{output}"
    );
    assert!(containerd.has(&pushed.reference));
    assert_eq!(containerd.leases(), [""; 0]);
}

#[test]
fn unmounted_content_goes_through_the_socket() {
    let (ours, theirs) = (Containerd::start(), Containerd::start());
    let image = registry().image(&format!("{}:1", unique("socket")));
    let pushed = image.layers(3).size(5_000_000).push();
    let reference = &*pushed.reference;
    // A file tree of its own, in which the content store is empty.
    let hide = "mkdir -p \"$0\" && mount -t tmpfs none \"$0\" && exec \"$@\"";
    let store = ours.store().join("io.containerd.content.v1.content");
    let harpoon = fast(&ours, &[reference]).under(
        ["unshare", "--mount", "sh", "-c", hide]
            .map(std::ffi::OsString::from)
            .into_iter()
            .chain([store.into_os_string()]),
    );
    filled(&harpoon.run().expect(0));
    let runtime = fast(&theirs, &[reference]).env("FILL", "runtime");
    runtime.run().expect(0);
    assert_eq!(content(&ours), content(&theirs));
    assert_eq!(snapshots(&ours), snapshots(&theirs));
    assert_eq!(images(&ours), images(&theirs));
}

#[test]
fn refused_blob_goes_through_the_socket() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("refused")));
    let pushed = image.layers(2).size(5_000_000).push();
    // The file cannot be moved to its place.
    let harpoon = failing(
        fast(&containerd, &[&pushed.reference]),
        "rename,renameat:error=EPERM",
    );
    let output = harpoon.run().expect(0);
    filled(&output);
    assert!(
        output.stderr.contains("goes through containerd's socket"),
        "{output}"
    );
    assert!(
        images(&containerd)
            .iter()
            .all(|line| line.contains("complete (3/3)"))
    );
    assert_eq!(containerd.downloads(), [""; 0]);
}
