//! Directories that another user created first.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Bundle, digest_of, layers, pulled, sha256, told};
use crate::bed::{self, Pushed, registry, unique};

const SOMEBODY: u32 = 1000;
const PRECIOUS: &str = "precious";

/// A directory in which both the user `SOMEBODY` and we make the layout, and files that are ours alone.
struct Trap {
    bundle: Bundle,
    ours: tempfile::TempDir,
    image: Pushed,
    layer: String,
}

impl Trap {
    fn new() -> Self {
        // Tests' own directories are for root alone.
        let parent = tempfile::tempdir_in("/tmp").unwrap();
        let bundle = Bundle { parent };
        let ours = bed::directory();
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(bundle.parent.path(), everybody).unwrap();
        fs::write(ours.path().join("file"), PRECIOUS).unwrap();
        fs::create_dir(ours.path().join("empty")).unwrap();
        let image = registry().push(&unique("trap"));
        let layer = layers(&image.reference).pop_first().unwrap();
        Self {
            bundle,
            ours,
            image,
            layer: layer.replace("sha256:", ""),
        }
    }

    fn ours(&self, name: &str) -> PathBuf {
        self.ours.path().join(name)
    }

    /// Has `user` make the layout's directory, and in it a link from `link` to what is ours.
    fn plant(&self, user: u32, link: &str, target: &Path) {
        let layout = self.bundle.path();
        let script = r#"umask 0; mkdir -p "$(dirname "$1/$2")" && ln -sn "$3" "$1/$2""#;
        let mut shell = Command::new("setpriv");
        let id = user.to_string();
        shell.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        shell.args(["sh", "-c", script, "sh"]);
        bed::run(shell.arg(&layout).arg(link).arg(target));
        if !layout.join("oci-layout").is_symlink() {
            fs::write(
                layout.join("oci-layout"),
                r#"{"imageLayoutVersion":"1.0.0"}"#,
            )
            .unwrap();
            chown(layout.join("oci-layout"), Some(user), Some(user)).unwrap();
        }
    }

    /// Our files are unchanged.
    #[track_caller]
    fn is_untouched(&self, what: &str) {
        let names = fs::read_dir(self.ours.path()).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["empty", "file"], "{what}");
        let file = fs::read(self.ours("file")).unwrap();
        let file = String::from_utf8_lossy(&file);
        assert!(file == PRECIOUS, "now of {} bytes: {what}", file.len());
        let count = fs::read_dir(self.ours("empty")).unwrap().count();
        assert_eq!(count, 0, "{what}");
    }

    /// The paths that may be a link, and our files that they lead to.
    fn links(&self) -> Vec<(String, PathBuf)> {
        let registry = bed::directory();
        fs::write(registry.path().join("name"), self.registry()).unwrap();
        let registry = sha256(&registry.path().join("name"));
        let partial = format!(".harpoon/partial/sha256-{}", self.layer);
        let to = |link: &str, target: &str| (link.to_owned(), self.ours(target));
        vec![
            to(&partial, "file"),
            to(&format!("{partial}-{}", &registry[..16]), "file"),
            to(".harpoon/partial", "empty"),
            to(".harpoon", "empty"),
            to(".harpoon/lock", "new"),
            to("blobs", "empty"),
            to("blobs/sha256", "empty"),
            to("index.json", "new"),
            to("oci-layout", "new"),
        ]
    }

    fn registry(&self) -> &str {
        self.image.reference.split_once('/').unwrap().0
    }
}

#[test]
fn layout_of_another_user_is_refused() {
    let count = Trap::new().links().len();
    for at in 0..count {
        let trap = Trap::new();
        let (link, target) = trap.links().swap_remove(at);
        trap.plant(SOMEBODY, &link, &target);
        let output = trap.bundle.pull(&[&trap.image.reference]).run();
        trap.is_untouched(&format!("{link}: {output}"));
        let output = output.expect(3);
        let top = trap.bundle.path();
        let names = output.stderr.contains(top.to_str().unwrap());
        let why = ["owned by user 1000", "symbolic link"];
        let why = why.iter().any(|why| output.stderr.contains(why));
        assert!(names && why, "{link}: {output}");
    }
}

#[test]
fn links_in_layout_are_not_followed() {
    let count = Trap::new().links().len();
    for at in 0..count {
        let trap = Trap::new();
        let (link, target) = trap.links().swap_remove(at);
        trap.plant(0, &link, &target);
        let output = trap.bundle.pull(&[&trap.image.reference]).run();
        trap.is_untouched(&format!("{link}: {output}"));
        // A name that only 0.1 gave to a download is not used any more.
        if at > 0 {
            let shown = format!("{}{}", output.stdout, output.stderr);
            assert!(shown.contains("symbolic link"), "{link}: {output}");
            assert!(shown.contains(&link), "{link}: {output}");
        }
    }
}

#[test]
fn linked_blob_is_absent_and_replaced() {
    let trap = Trap::new();
    let pull = trap.bundle.pull(&[&trap.image.reference]);
    pull.run().expect(0);
    let blob = trap.bundle.path().join("blobs/sha256").join(&trap.layer);
    let size = fs::metadata(&blob).unwrap().size();
    let other = trap.ours("file");
    fs::write(&other, vec![b'x'; size.try_into().unwrap()]).unwrap();
    fs::remove_file(&blob).unwrap();
    symlink(&other, &blob).unwrap();
    assert_eq!(trap.bundle.plan(&[&trap.image.reference]), ["pull"]);
    let output = pull.run().expect(0);
    assert_eq!(told(&output, &trap.image.reference), pulled(1));
    assert!(fs::symlink_metadata(&blob).unwrap().is_file());
    assert_eq!(trap.bundle.blobs().len(), 3);
    let content = fs::read(&other).unwrap();
    assert!(content.iter().all(|byte| *byte == b'x'), "written through");
}

#[test]
fn pipes_in_layout_do_not_hang() {
    for name in ["index.json", "oci-layout", ".harpoon/lock"] {
        let trap = Trap::new();
        let path = trap.bundle.path();
        fs::create_dir_all(path.join(".harpoon")).unwrap();
        bed::run(Command::new("mkfifo").arg(path.join(name)));
        let pull = trap.bundle.pull(&[&trap.image.reference]);
        let output = pull.arg("--deadline=20s").run().expect(3);
        assert!(output.stderr.contains("not a regular file"), "{output}");
        assert!(output.stderr.contains(name), "{output}");
    }
}

/// Gives the layout and what is in it to a user, or all but its top.
fn give(bundle: &Bundle, user: u32) {
    let owner = format!("{user}:{user}");
    bed::run(
        Command::new("chown")
            .args(["-R", &owner])
            .arg(bundle.path()),
    );
}

#[test]
fn foreign_layout_names_path_and_owner() {
    let trap = Trap::new();
    let image = [&trap.image.reference];
    trap.bundle.pull(&image).run().expect(0);
    give(&trap.bundle, SOMEBODY);
    let output = trap.bundle.pull(&image).run().expect(3);
    let path = trap.bundle.path().join("oci-layout");
    for text in [path.to_str().unwrap(), "user 1000", "user 0", "chown"] {
        assert!(output.stderr.contains(text), "{text}: {output}");
    }
    // As the error message recommends.
    give(&trap.bundle, 0);
    let output = trap.bundle.pull(&image).run().expect(0);
    assert_eq!(told(&output, image[0])[0], json!("present"));
}

#[test]
fn own_layout_serves_an_unprivileged_user() {
    let trap = Trap::new();
    let image = [&trap.image.reference];
    let id = SOMEBODY.to_string();
    let become_somebody = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let pull = trap.bundle.pull(&image);
    let pull = pull.under(become_somebody);
    let output = pull.run().expect(0);
    assert_eq!(told(&output, image[0]), pulled(1));
    assert_eq!(fs::metadata(trap.bundle.path()).unwrap().uid(), SOMEBODY);
    let output = pull.run().expect(0);
    assert_eq!(told(&output, image[0])[0], json!("present"));
}

#[test]
fn top_directory_may_be_a_link() {
    let trap = Trap::new();
    let target = trap.bundle.parent.path().join("elsewhere");
    fs::create_dir(&target).unwrap();
    symlink(&target, trap.bundle.path()).unwrap();
    let output = trap.bundle.pull(&[&trap.image.reference]).run().expect(0);
    assert_eq!(told(&output, &trap.image.reference), pulled(1));
    let index = fs::read(target.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let digest = digest_of(&format!("{}:latest", trap.image.reference));
    assert_eq!(index["manifests"][0]["digest"], json!(digest));
}
