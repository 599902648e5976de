//! File systems, kernels and profiles that lack what harpoon needs: the runtime pulls, and a debug line tells why.

use std::ffi::OsString;

use super::*;
use crate::bed::Pushed;

/// Makes system calls of a program fail (`testbed/refuse`).
fn refusing(calls: &[&str]) -> Vec<OsString> {
    let refuse = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/refuse");
    let words = [&[refuse], calls, &["--"]].concat();
    words.into_iter().map(OsString::from).collect()
}

fn pushed(name: &str) -> Pushed {
    let image = registry().image(&format!("{}:1", unique(name)));
    image.layers(3).size(300_000).push()
}

/// The image comes by the runtime, for this reason; `--fill fast` is refused.
#[track_caller]
fn left_to_runtime(harpoon: &Harpoon, image: &Pushed, reason: &str) {
    let output = harpoon.clone().env("FILL", "fast").run().expect(3);
    assert!(output.stderr.contains(reason), "{output}");
    assert!(output.stderr.contains("--fill fast (FILL)"), "{output}");
    let output = harpoon.clone().env("FILL", "auto").run().expect(0);
    let line = output.stderr.lines().find(|line| line.contains("--fill"));
    assert!(line.is_some_and(|line| line.contains(reason)), "{output}");
    assert_eq!(
        entry(&output.json(), &image.reference)["outcome"],
        "pulled",
        "{output}"
    );
}

#[test]
fn without_d_type_the_runtime_pulls() {
    // containerd's overlayfs snapshotter refuses such a file system itself.
    let containerd = Containerd::with_disk("untyped:60000000");
    let image = pushed("untyped");
    let harpoon = fast(&containerd, &[&image.reference]);
    left_to_runtime(&harpoon, &image, "the snapshotter is native");
}

#[test]
fn without_attributes_the_runtime_pulls() {
    let containerd = Containerd::with_disk("bare");
    let image = pushed("bare");
    let harpoon = fast(&containerd, &[&image.reference]);
    left_to_runtime(&harpoon, &image, "no extended attributes");
}

#[test]
fn without_exchange_the_runtime_pulls() {
    // As file systems and kernels answer that do not have it.
    for error in ["EINVAL", "ENOSYS"] {
        let image = pushed("unexchanged");
        let refuse = refusing(&[&format!("renameat2={error}")]);
        let harpoon = fast(bed::containerd(), &[&image.reference]).under(refuse);
        left_to_runtime(&harpoon, &image, "exchange directories");
    }
}

#[test]
fn without_rights_the_runtime_pulls() {
    let image = pushed("unprivileged");
    for (capability, reason) in [
        ("chown", "give a directory to another user"),
        ("dac_override", "write to another user's directory"),
        ("fowner", "change another user's directory"),
    ] {
        let bounding = format!("--bounding-set=-{capability},-dac_read_search");
        let harpoon = fast(bed::containerd(), &[&image.reference]);
        let harpoon = harpoon.under(["setpriv", "--no-new-privs", &bounding]);
        let output = harpoon.env("FILL", "fast").run().expect(3);
        assert!(output.stderr.contains(reason), "{capability}: {output}");
    }
}

#[test]
fn read_only_directory_is_the_runtimes() {
    let image = pushed("read-only");
    let containerd = bed::containerd();
    let root = containerd.store();
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let hide = ["unshare", "--mount", "sh", "-c", mount].map(OsString::from);
    let harpoon = fast(containerd, &[&image.reference]);
    let harpoon = harpoon.under(hide.into_iter().chain([root.into_os_string()]));
    left_to_runtime(&harpoon, &image, "Read-only file system");
}

#[test]
fn old_kernels_fill_without_openat2() {
    let (ours, theirs) = (Containerd::start(), bed::containerd());
    // A kernel before 5.6, and a profile of seccomp that does not know the call.
    for error in ["ENOSYS", "EPERM"] {
        let image = pushed("old-kernel").reference;
        let refuse = refusing(&[&format!("openat2={error}")]);
        filled(&fast(&ours, &[&image]).under(refuse).run().expect(0));
        fast(theirs, &[&image])
            .env("FILL", "runtime")
            .run()
            .expect(0);
        assert_eq!(tree(&ours, &image), tree(theirs, &image));
    }
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
            .map(OsString::from)
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
    let refuse = refusing(&["rename=EPERM", "renameat=EPERM"]);
    let harpoon = fast(&containerd, &[&pushed.reference]).under(refuse);
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

/// All differential tests again, in a process without openat2.
#[test]
fn unpacker_is_the_same_without_openat2() {
    let mut words = refusing(&["openat2=ENOSYS"]).into_iter();
    let mut tests = Command::new(words.next().unwrap());
    tests.args(words).arg(std::env::current_exe().unwrap());
    tests.args(["fill::unpack::", "fast::trees::", "--test-threads", "4"]);
    let told = bed::run(&mut tests);
    let ran = told.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(ran > 20, "{told}");
}
