//! Fast fill on a real containerd: the same image as by containerd's own pull, sooner, and the runtime wherever that is not sure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, PullImageRequest, RemoveImageRequest};
use serde_json::Value;
use tonic::transport::Channel;

use crate::bed::faulty::{Fault, Proxy, Seen};
use crate::bed::{self, Containerd, Harpoon, Output, Runtime as _, registry, unique};
use crate::pulling::{PATIENCE, entry};
use crate::sealed::channel;

mod faults;
mod file_systems;
mod hosts;
mod interrupted;
mod parts;
mod sealed;
mod trees;

/// `harpoon pull --fill fast`.
fn fast(containerd: &Containerd, images: &[&str]) -> Harpoon {
    Harpoon::new(["pull", "--log-level=debug", "--runtime-endpoint"])
        .args([containerd.endpoint(), "--"])
        .args(images)
        .env("OUTPUT", "json")
        .env("FILL", "fast")
}

/// Runs a program in a file tree of its own, in which containerd's root directory is empty.
pub(crate) fn hidden(containerd: &Containerd) -> Vec<OsString> {
    let hide = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    let words = ["unshare", "--mount", "sh", "-c", hide].map(OsString::from);
    let root = containerd.store().into_os_string();
    words.into_iter().chain([root]).collect()
}

/// containerd's events, from now on.
pub(crate) struct Events<'a> {
    containerd: &'a Containerd,
    ctr: Child,
    file: tempfile::NamedTempFile,
}

impl<'a> Events<'a> {
    pub(crate) fn of(containerd: &'a Containerd) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut ctr = containerd.client(&["events"]);
        let ctr = ctr.stdout(file.reopen().unwrap()).spawn().unwrap();
        let events = Self {
            containerd,
            ctr,
            file,
        };
        events.until_now();
        events
    }

    /// All events until now: those before one of its own.
    fn until_now(&self) -> String {
        let label = unique("heard");
        let mut text = String::new();
        bed::eventually("the event is received", PATIENCE, || {
            let label = format!("{label}=1");
            self.containerd
                .ctr(&["namespaces", "label", "default", &label]);
            text = std::fs::read_to_string(self.file.path()).unwrap();
            text.contains(&label[..label.len() - 2])
        });
        text
    }

    /// The events of names of images.
    pub(crate) fn of_names(&self) -> Vec<String> {
        let text = self.until_now();
        let lines = text.lines().filter(|line| line.contains("/images/"));
        lines.map(str::to_owned).collect()
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}

/// Fails the test unless harpoon itself filled containerd.
#[track_caller]
fn filled(output: &Output) {
    assert!(!output.stderr.contains("the runtime pulls"), "{output}");
}

/// Digests, sizes and labels of all blobs.
fn content(containerd: &Containerd) -> BTreeMap<String, Vec<String>> {
    let list = containerd.ctr(&["content", "list"]);
    let line = |line: &str| {
        let mut fields = line.split('\t').filter(|field| !field.is_empty());
        let digest = fields.next()?.to_owned();
        let mut rest: Vec<String> = vec![fields.next()?.to_owned()];
        let labels = fields.nth(1).unwrap_or_default();
        rest.extend(labels.split(',').map(str::to_owned));
        rest.sort();
        Some((digest, rest))
    };
    list.lines().skip(1).filter_map(line).collect()
}

fn snapshot_keys(containerd: &Containerd) -> Vec<String> {
    let list = containerd.ctr(&["snapshots", "list"]);
    let keys = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split("  ").next());
    keys.map(|key| key.split(" sha256:").next().unwrap().trim().to_owned())
        .collect()
}

/// All snapshots, as containerd describes them, without the times.
fn snapshots(containerd: &Containerd) -> BTreeMap<String, Value> {
    let keys = snapshot_keys(containerd).into_iter();
    let info = |key: String| {
        let text = containerd.ctr(&["snapshots", "info", &key]);
        let mut info: Value = serde_json::from_str(&text).unwrap();
        for time in ["Created", "Updated"] {
            info.as_object_mut().unwrap().remove(time);
        }
        (key, info)
    };
    keys.map(info).collect()
}

/// Names, types and digests of all images, and whether containerd takes them for complete and unpacked.
pub(crate) fn images(containerd: &Containerd) -> Vec<String> {
    let check = ["images", "check"];
    // It fails if an image is removed while it looks.
    let attempt = |_| {
        let output = containerd.client(&check).output().unwrap();
        let is_good = output.status.success();
        is_good.then(|| String::from_utf8(output.stdout).unwrap())
    };
    let checked = (0..5).find_map(attempt);
    let checked = checked.unwrap_or_else(|| containerd.ctr(&check));
    let mut lines: Vec<_> = checked.lines().skip(1).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The tree of an image, as a container sees it.
fn tree(containerd: &Containerd, image: &str) -> String {
    mounted(containerd, image, |path| {
        let list = "cd \"$0\" && find . -mindepth 1 -printf '%P %y %m %U %G %T@ %n %s\\n' | sort && find . -type f -exec sha256sum {} + | sort";
        bed::run(Command::new("sh").args(["-c", list]).arg(path))
    })
}

/// Runs something with the image mounted as a container sees it.
fn mounted<T>(containerd: &Containerd, image: &str, look: impl FnOnce(&Path) -> T) -> T {
    let target = bed::directory();
    let path = target.path().to_str().unwrap();
    containerd.ctr(&["images", "mount", image, path]);
    let seen = look(target.path());
    containerd.ctr(&["images", "unmount", "--rm", path]);
    seen
}

/// The files of an export, whose order depends on the run: names and contents.
fn export(containerd: &Containerd, image: &str) -> BTreeMap<String, Vec<u8>> {
    let directory = bed::directory();
    let file = directory.path().join("image.tar");
    let mut files = Err(io::ErrorKind::NotFound.into());
    // That of containerd 2.1 sometimes ends before all is written.
    bed::eventually("an export is complete", PATIENCE, || {
        containerd.ctr(&["images", "export", file.to_str().unwrap(), image]);
        files = files_of(&file);
        files
            .as_ref()
            .is_ok_and(|files| files.contains_key("oci-layout"))
    });
    files.unwrap()
}

fn files_of(archive: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive)?);
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let name = entry.path()?.display().to_string();
        files.insert(name, content);
    }
    Ok(files)
}

/// Calls containerd's CRI server, as the kubelet and crictl do.
fn by_cri<T: Send + 'static>(
    containerd: &Containerd,
    image: &str,
    call: impl AsyncFnOnce(ImageServiceClient<Channel>, Option<ImageSpec>) -> T,
) -> T {
    let image = Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let images = ImageServiceClient::new(channel(containerd).await);
        call(images, image).await
    })
}

/// Pulls within this time, or fails, as the kubelet does.
pub(crate) fn try_pull_by_cri(containerd: &Containerd, image: &str, limit: Duration) {
    let request = |image| PullImageRequest {
        image,
        ..PullImageRequest::default()
    };
    by_cri(containerd, image, async |mut images, image| {
        let pull = images.pull_image(request(image));
        let _ = tokio::time::timeout(limit, pull).await;
    });
}

/// Removes all names of the image, if it is there, as the kubelet's garbage collection does.
pub(crate) fn evict_by_cri(containerd: &Containerd, image: &str) {
    by_cri(containerd, image, async |mut images, image| {
        let _ = images.remove_image(RemoveImageRequest { image }).await;
    });
}

fn pull_by_cri(containerd: &Containerd, image: &str) {
    let request = |image| PullImageRequest {
        image,
        ..PullImageRequest::default()
    };
    by_cri(containerd, image, async |mut images, image| {
        images.pull_image(request(image)).await.unwrap();
    });
}

/// Removes all names of the image, as the kubelet's garbage collection does.
fn remove(containerd: &Containerd, image: &str) {
    by_cri(containerd, image, async |mut images, image| {
        let request = RemoveImageRequest { image };
        images.remove_image(request).await.unwrap();
    });
}

/// Everything of images that containerd has: names, snapshots, blobs, incomplete ones, directories of snapshots.
pub(crate) fn remains(containerd: &Containerd) -> Vec<String> {
    let mut all = containerd.images();
    all.extend(snapshot_keys(containerd));
    all.extend(content(containerd).into_keys());
    all.extend(containerd.downloads());
    for directory in [
        "io.containerd.snapshotter.v1.overlayfs/snapshots",
        "io.containerd.content.v1.content/ingest",
        "io.containerd.content.v1.content/blobs/sha256",
    ] {
        // containerd makes some of them when it needs them.
        let entries = std::fs::read_dir(containerd.store().join(directory));
        let entries = entries.into_iter().flatten();
        all.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    all
}

/// Nothing of any image is left.
#[track_caller]
fn empty(containerd: &Containerd) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let remains = remains(containerd);
        if remains.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < end, "{remains:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn filled_image_equals_the_runtimes() {
    let (ours, theirs) = (Containerd::start(), Containerd::start());
    for (name, platforms) in [("one", &[][..]), ("index", &["linux/amd64", "linux/arm64"])] {
        let image = registry().image(&format!("{}:1", unique(name)));
        let image = image.layers(4).size(400_000).platforms_if(platforms);
        let pushed = image.push();
        let reference = &*pushed.reference;
        let output = fast(&ours, &[reference]).run().expect(0);
        filled(&output);
        let report = output.json();
        assert_eq!(entry(&report, reference)["outcome"], "pulled");
        assert_eq!(entry(&report, reference)["digest"], pushed.digest);
        fast(&theirs, &[reference])
            .env("FILL", "runtime")
            .run()
            .expect(0);
        assert_eq!(images(&ours), images(&theirs));
        assert_eq!(content(&ours), content(&theirs));
        assert_eq!(snapshots(&ours), snapshots(&theirs));
        assert_eq!(tree(&ours, reference), tree(&theirs, reference));
        assert!(export(&ours, reference) == export(&theirs, reference));
    }
    assert_eq!(ours.leases(), [""; 0]);
}

#[test]
fn filled_image_runs() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("runs")));
    let pushed = image.layers(3).push();
    filled(&fast(&containerd, &[&pushed.reference]).run().expect(0));
    let name = unique("container");
    // It sleeps until it is told to end.
    containerd.ctr(&["run", "--detach", &pushed.reference, &name]);
    let tasks = containerd.ctr(&["tasks", "list"]);
    let own = tasks.lines().find(|line| line.starts_with(&name));
    assert!(own.is_some_and(|line| line.contains("RUNNING")), "{tasks}");
    containerd.ctr(&["tasks", "delete", "--force", &name]);
    containerd.ctr(&["containers", "delete", &name]);
    remove(&containerd, &pushed.reference);
    empty(&containerd);
}

#[test]
fn removing_the_image_frees_all() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("freed")));
    let pushed = image.layers(3).push();
    filled(&fast(&containerd, &[&pushed.reference]).run().expect(0));
    assert!(!snapshots(&containerd).is_empty());
    remove(&containerd, &pushed.reference);
    empty(&containerd);
}

#[test]
fn shared_layers_are_reused_both_ways() {
    let seed = unique("seed");
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let push = |layers: usize| {
        let name = format!("{}:1", unique("shared"));
        let image = registry().image(&name).seed(&seed).layers(layers);
        image.size(100_000 * layers as u64).push();
        proxy.reference(&name)
    };
    let images = [push(2), push(3), push(4)];
    let containerd = Containerd::start();
    let fills = ["runtime", "fast", "runtime"];
    // The first image has two layers, each further one has one more; besides them, a configuration.
    for ((image, fill), blobs) in images.iter().zip(fills).zip([3, 2, 2]) {
        let before = proxy.count(|seen| seen.is_blob());
        let output = fast(&containerd, &[image])
            .env("FILL", fill)
            .run()
            .expect(0);
        if fill == "fast" {
            filled(&output);
        }
        let asked = proxy.count(|seen| seen.is_blob()) - before;
        assert_eq!(asked, blobs, "{image} by {fill}: {output}");
    }
}

#[test]
fn present_content_is_not_fetched() {
    let containerd = Containerd::start();
    let (name, seed) = (unique("content"), unique("seed"));
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let [image, other] = ["1", "2"].map(|tag| {
        let image = registry().image(&format!("{name}:{tag}")).seed(&seed);
        image.layers(2).size(200_000).push();
        proxy.reference(&format!("{name}:{tag}"))
    });
    // Fetched but not unpacked.
    containerd.ctr(&["content", "fetch", "--plain-http", &other]);
    let before = proxy.count(|seen| seen.is_blob());
    filled(&fast(&containerd, &[&image]).run().expect(0));
    // The configuration alone is read from the registry.
    assert_eq!(proxy.count(|seen| seen.is_blob()) - before, 1);
    let checked = images(&containerd);
    let is_whole = |line: &&String| line.starts_with(&image);
    assert!(checked.iter().find(is_whole).unwrap().contains("true"));
}

#[test]
fn two_fillers_and_containerd_agree() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("races"));
    registry().image(&name).layers(4).size(8_000_000).push();
    let proxy = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(4_000_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    let started: Vec<_> = ["fast", "fast", "runtime"]
        .into_iter()
        .map(|fill| fast(&containerd, &[&image]).env("FILL", fill).start())
        .collect();
    for harpoon in started {
        harpoon.wait().expect(0);
    }
    assert!(
        images(&containerd)
            .iter()
            .all(|line| line.contains("complete (5/5)"))
    );
    for name in containerd.images() {
        containerd.remove(&name);
    }
    assert_eq!(snapshots(&containerd), BTreeMap::new());
}

/// The most threads of a fill: those of the unpackers are two for each core.
fn threads_max() -> usize {
    16 + 4 * std::thread::available_parallelism().unwrap().get()
}

/// Fills containerd with an image of so many layers over a slow link, so that they come in parts, and measures.
fn measured(layers: usize, bytes: u64) {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("large")));
    let pushed = image.layers(layers).size(bytes).uncompressed().push();
    let proxy = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(60_000_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(pushed.reference.split_once('/').unwrap().1);
    let harpoon = fast(&containerd, &[&image]).limit(Duration::from_secs(600));
    let (running, mut threads) = (harpoon.start(), 0);
    while !running.has_ended() {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid()));
        threads = threads.max(tasks.map_or(0, Iterator::count));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = running.wait().expect(0);
    filled(&output);
    assert!(output.peak_rss < 128 << 20, "{} bytes", output.peak_rss);
    assert!((3..=threads_max()).contains(&threads), "{threads} threads");
    assert!(proxy.count(|seen| seen.is_blob()) > 10, "no parts");
}

/// `FILL_BYTES=N` makes it of another size.
#[test]
fn large_image_needs_little_memory() {
    let bytes = std::env::var("FILL_BYTES").map_or(300_000_000, |n| n.parse().unwrap());
    measured(3, bytes);
}

#[test]
fn large_layer_needs_little_memory() {
    measured(1, 200_000_000);
}

#[test]
fn many_layers_need_little_memory() {
    measured(60, 60_000_000);
}

#[test]
fn charts_capabilities_are_enough() {
    let containerd = bed::containerd();
    let image = registry().image(&format!("{}:1", unique("confined")));
    let pushed = image.layers(3).push();
    // The capabilities that the chart adds, and no others.
    let capabilities = "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap";
    let output = fast(containerd, &[&pushed.reference])
        .under(["setpriv", "--no-new-privs", capabilities])
        .run()
        .expect(0);
    filled(&output);
}

#[test]
fn fast_without_containerd_is_refused() {
    let directory = bed::directory();
    let endpoint = format!("oci:{}", directory.path().display());
    let output = Harpoon::new(["pull", "--fill=fast", "--runtime-endpoint", &endpoint])
        .arg("registry.example/web:1")
        .run()
        .expect(3);
    assert!(output.stderr.contains("--fill fast (FILL)"), "{output}");
    let output = Harpoon::new(["pull", "--fill=slow", "registry.example/web:1"])
        .run()
        .expect(2);
    assert!(
        output.stderr.contains("expected auto, runtime or fast"),
        "{output}"
    );
}

#[test]
fn unmounted_root_leaves_it_to_the_runtime() {
    let containerd = bed::containerd();
    let pushed = registry().push(&format!("{}:1", unique("unmounted")));
    let hidden = |fill: &str| {
        let harpoon = fast(containerd, &[&pushed.reference]).env("FILL", fill);
        harpoon.under(hidden(containerd))
    };
    let output = hidden("fast").run().expect(3);
    assert!(output.stderr.contains("is not mounted"), "{output}");
    let output = hidden("auto").run().expect(0);
    assert!(
        output.stderr.contains("the runtime pulls (--fill)"),
        "{output}"
    );
    let shown = output.json();
    assert_eq!(entry(&shown, &pushed.reference)["outcome"], "pulled");
}
