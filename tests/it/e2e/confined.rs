//! Permissions of the two containers, according to the kernel's view of their processes.

use super::*;

/// Only the init container has the socket and a token, and neither has a capability.
pub(super) fn containers(turn: &Turn<'_>) {
    turn.idle("slow");
    // While the registry is frozen, the pull continues.
    let frozen = turn.cluster.freeze_registry();
    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    let running = turn
        .cluster
        .wait_for(&turn.namespace, "the init container runs", || {
            let pod = harpoon.pods().pop()?;
            let status = &pod["status"]["initContainerStatuses"][0];
            status["state"]["running"]
                .is_object()
                .then(|| status.clone())
        });
    let process = turn.cluster.process(&running);
    assert_eq!(process.read("cmdline"), "/harpoon\0run\0");
    assert_confined(&process);
    assert_eq!(process.status("Uid"), "65532\t65532\t65532\t65532");
    let mounts = mounts(&process);
    assert!(has(&mounts, "/run/containerd"), "{mounts:?}");
    let token = "/run/secrets/kubernetes.io/serviceaccount";
    assert!(has(&mounts, token), "{mounts:?}");
    drop(frozen);

    let pod = harpoon.ready();
    summary(&pod);
    let statuses = pod["status"]["containerStatuses"].as_array().unwrap();
    let [status] = statuses.as_slice() else {
        panic!("one container: {statuses:?}");
    };
    let process = turn.cluster.process(status);
    assert_eq!(process.read("cmdline"), "/harpoon\0pause\0");
    assert_confined(&process);
    for ids in ["Uid", "Gid"] {
        assert_eq!(process.status(ids), "65532\t65532\t65532\t65532");
    }
    let mounts = self::mounts(&process);
    assert!(
        !has(&mounts, "/run/containerd") && !has(&mounts, token) && !has(&mounts, "/config"),
        "{mounts:?}"
    );
    // None of its open files leads outside: two sockets are the pair that signals wake it with.
    let open = process.open_files();
    let sockets = open.iter().filter(|file| file.starts_with("socket:"));
    assert!(sockets.count() <= 2, "{open:?}");
    for table in ["net/tcp", "net/tcp6", "net/udp", "net/udp6"] {
        // The tenth field is the inode: what the init container has closed and the kernel still remembers has none.
        let table = process.read(table);
        let mut inodes = table.lines().skip(1).map(|l| l.split_whitespace().nth(9));
        assert!(inodes.all(|inode| inode == Some("0")), "{table}");
    }
}

/// What holds for both containers.
#[track_caller]
fn assert_confined(process: &Process) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(process.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Seccomp"), "2");
    let mounts = mounts(process);
    let (_, options) = mounts.iter().find(|(target, _)| target == "/").unwrap();
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
}

/// The mount points and their options.
fn mounts(process: &Process) -> Vec<(String, String)> {
    let mounts = process.read("mountinfo");
    let mount = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[4].to_owned(), fields[5].to_owned())
    };
    mounts.lines().map(mount).collect()
}

/// Returns whether anything is mounted at a path or below it, also if it is reached through `/var/run`.
fn has(mounts: &[(String, String)], place: &str) -> bool {
    mounts.iter().any(|(target, _)| {
        let target = target.strip_prefix("/var").unwrap_or(target);
        target
            .strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}
