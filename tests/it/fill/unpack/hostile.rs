//! Layers that try to reach files outside, and layers that containerd refuses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use harpoon::fill::unpack::{Budget, Layer, Limits, Position, UnpackError, unpack};
use harpoon::registry::digest::sha256;

use super::tar::{Entry, Tar, dir, file, gzip, hard_link, node, symlink};
use super::{BUDGET, Blob, GZIP, Ours, ZSTD, compare, open, unpack_blob};
use crate::bed::{self, unique};

/// The image is unpacked alike, refused alike, or left to containerd: never something of our own.
fn accepted(is_bottom: bool, name: &str, entries: Vec<Entry>) -> Option<String> {
    let base = Tar::new([dir("d/"), file("d/f", "1"), file("etc/passwd", "x")]).end();
    let layer = Blob::gzip(Tar::new(entries).end());
    let blobs = if is_bottom {
        vec![layer]
    } else {
        vec![Blob::gzip(base), layer]
    };
    let error = compare(&blobs).err();
    error.map(|error| format!("{name}: {error}"))
}

#[test]
fn escapes_stay_beneath_bottom() {
    escapes(true);
}

#[test]
fn escapes_stay_beneath_upper() {
    escapes(false);
}

fn escapes(is_bottom: bool) {
    let marker = "harpoon-escape-test";
    let kept = unique("keep");
    let images = [
        // CVE-2018-15664, CVE-2019-14271 and others: a link out of the root, then files through it.
        (
            "absolute link",
            vec![
                symlink("evil", "/"),
                file(format!("evil/tmp/{marker}"), "e"),
            ],
        ),
        (
            "relative link",
            vec![
                symlink("evil", "../../../../../.."),
                file(format!("evil/tmp/{marker}"), "e"),
            ],
        ),
        (
            "link to var",
            vec![symlink("evil", "/tmp"), file(format!("evil/{marker}"), "e")],
        ),
        // CVE-2021-32760 (containerd): a mode set on the host through a link.
        (
            "hard link to link",
            vec![
                symlink("link", "/etc/shadow"),
                hard_link("hard", "link").mode(0o777),
            ],
        ),
        // CVE-2018-8115 (hcsshim), CVE-2007-4131 (tar): `..` in names.
        (
            "dots",
            vec![
                file(format!("../../../../../../tmp/{marker}"), "e"),
                file(format!("a/../../../../tmp/{marker}"), "e"),
            ],
        ),
        ("absolute name", vec![file(format!("/tmp/{marker}"), "e")]),
        (
            "dots in directory",
            vec![
                dir("../../../tmp/x/").mode(0o777),
                dir("..").mode(0o777),
                dir("/").mode(0o777),
            ],
        ),
        // CVE-2023-39804 and CVE-2019-18466 manner: links to links.
        (
            "link chain",
            vec![
                symlink("a", ".."),
                symlink("b", "a/a"),
                file(format!("b/{marker}"), "e"),
            ],
        ),
        (
            "link chain deep",
            vec![
                symlink("a", "/"),
                symlink("b", "a/tmp"),
                file(format!("b/{marker}"), "e"),
            ],
        ),
        (
            "loop",
            vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "1")],
        ),
        (
            "hard link out",
            vec![hard_link("x", "../../../../../../etc/passwd")],
        ),
        (
            "hard link absolute",
            vec![hard_link("x", "/etc/hostname"), file("x", "overwritten")],
        ),
        (
            "hard link through link",
            vec![symlink("l", "/etc"), hard_link("x", "l/hostname")],
        ),
        // CVE-2024-21626 manner: links into /proc.
        (
            "proc",
            vec![
                symlink("p", "/proc/self/root"),
                file(format!("p/tmp/{marker}"), "e"),
            ],
        ),
        (
            "proc fd",
            vec![
                symlink("p", "/proc/self/fd/3"),
                file("p/x", "e"),
                symlink("c", "/proc/self/cwd"),
                file(format!("c/{marker}"), ""),
            ],
        ),
        // CVE-2020-27534 manner: a directory over a link.
        (
            "directory over link",
            vec![
                symlink("s", "/etc"),
                dir("s/").mode(0o711),
                file(format!("s/{marker}"), "1"),
            ],
        ),
        (
            "whiteout through link",
            vec![
                symlink("s", "/tmp"),
                file(format!("s/.wh.{kept}"), ""),
                file("s/.wh..wh..opq", ""),
            ],
        ),
        (
            "whiteout of link",
            vec![symlink("s", "/tmp"), file(".wh.s", "")],
        ),
        (
            "times through link",
            vec![dir("t/").mtime(1), symlink("t", "/tmp")],
        ),
        (
            "attributes through link",
            vec![
                symlink("s", "/tmp")
                    .xattr("user.x", "1")
                    .xattr("security.capability", "x"),
            ],
        ),
    ];
    let outside = std::env::temp_dir();
    let keep = outside.join(&kept);
    fs::write(&keep, "").unwrap();
    let before = fs::metadata("/etc/passwd").unwrap();
    let etc = fs::metadata("/etc").unwrap().mode();
    let wrong: Vec<_> = images
        .into_iter()
        .filter_map(|(n, i)| accepted(is_bottom, n, i))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for place in [
        outside.as_path(),
        "/".as_ref(),
        "/tmp".as_ref(),
        "/etc".as_ref(),
        "/var".as_ref(),
    ] {
        assert!(!place.join(marker).exists(), "{}", place.display());
    }
    assert!(keep.exists());
    fs::remove_file(keep).unwrap();
    let after = fs::metadata("/etc/passwd").unwrap();
    assert_eq!(
        (before.ino(), before.nlink(), before.mode()),
        (after.ino(), after.nlink(), after.mode())
    );
    assert_eq!(etc, fs::metadata("/etc").unwrap().mode());
}

#[test]
fn malformed_bottoms_are_refused_alike() {
    malformed(true);
}

#[test]
fn malformed_uppers_are_refused_alike() {
    malformed(false);
}

fn malformed(is_bottom: bool) {
    let entries = [
        ("whiteout of nothing", vec![file(".wh.", "")]),
        ("whiteout of dot", vec![file("d/.wh..", "")]),
        ("whiteout of dots", vec![file("d/.wh...", "")]),
        (
            "file, then whiteout",
            vec![file("a", "1"), file(".wh.a", "")],
        ),
        ("file as parent", vec![file("f", "1"), file("f/x", "2")]),
        (
            "directory, then file",
            vec![dir("q/"), file("q", "now a file")],
        ),
        (
            "directory, then whiteout",
            vec![dir("q/"), file(".wh.q", "")],
        ),
        (
            "directory, then link",
            vec![dir("q/"), symlink("q", "gone")],
        ),
        ("link to directory", vec![hard_link("x", "d")]),
        ("link to dots", vec![hard_link("x", "..")]),
        ("link to nothing", vec![hard_link("x", "nothing")]),
        ("link to itself", vec![file("x", ""), hard_link("x", "x")]),
        ("volume label", vec![file("vol", "").kind(b'V')]),
        ("contiguous", vec![file("c", "abc").kind(b'7')]),
        (
            "GNU sparse",
            vec![file("s", "").kind(b'S').magic(b"ustar  \0")],
        ),
        (
            "PAX sparse",
            vec![
                file("s", "")
                    .pax("GNU.sparse.major", "1")
                    .pax("GNU.sparse.minor", "0"),
            ],
        ),
        (
            "unknown namespace",
            vec![file("x", "").xattr("bogus.ns", "1")],
        ),
        (
            "user attribute of link",
            vec![symlink("x", "y").xattr("user.foo", "1")],
        ),
        (
            "large attribute",
            vec![file("x", "").xattr("user.x", vec![b'x'; 70_000])],
        ),
        ("long component", vec![file("x".repeat(256), "")]),
        (
            "long path",
            vec![file(["y".repeat(200).as_str(); 25].join("/"), "")],
        ),
        ("deep path", vec![file(["y"; 400].join("/"), "")]),
        ("large device", vec![node("c", b'3', 4_000_000, 1)]),
        (
            "opaque entry is a directory",
            vec![dir("k/.wh..wh..opq/"), file("k/a", "")],
        ),
        ("bad record", vec![file("x", "").pax("mtime", "x")]),
        ("negative size", vec![file("x", "").pax("size", "-1")]),
        (
            "global names a file",
            vec![
                dir("g/"),
                file("g/a", ""),
                file("g", "19 comment=0123456\n").kind(b'g'),
            ],
        ),
        (
            "opaque twice",
            vec![
                file("o/a/b", ""),
                file("o/.wh..wh..opq", ""),
                file("o/a/c", ""),
                file("o/.wh..wh..opq", ""),
            ],
        ),
        ("negative owner", vec![file("x", "").owner(-1, -1)]),
    ];
    let wrong: Vec<_> = entries
        .into_iter()
        .filter_map(|(n, i)| accepted(is_bottom, n, i))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn malformed_bytes_are_refused_alike() {
    let tar = Tar::new([file("t", vec![1; 5000])]);
    let bytes = [
        ("short content", tar.0[..1500].to_vec()),
        ("short header", tar.0[..100].to_vec()),
        ("checksum", {
            let mut bytes = tar.clone().end();
            bytes[0] = b'u';
            bytes
        }),
        (
            "entry after the end",
            [&[0; 512], tar.0.as_slice()].concat(),
        ),
        ("no archive", b"hello world".repeat(1000)),
    ];
    for (name, archive) in bytes {
        let result = compare(&[Blob::gzip(archive)]);
        assert!(result.is_ok(), "{name}: {result:?}");
    }
    let archive = tar.end();
    let whole = gzip(&archive);
    for (name, bytes) in [
        ("half", whole[..whole.len() / 2].to_vec()),
        ("without sum", whole[..whole.len() - 4].to_vec()),
        (
            "garbage after it",
            [whole.as_slice(), b"garbage after it"].concat(),
        ),
        ("zeros after it", [whole.as_slice(), &[0; 100]].concat()),
    ] {
        let archive = archive.clone();
        let blob = Blob {
            media_type: GZIP,
            bytes,
            archive,
        };
        let ours = Ours::new(std::slice::from_ref(&blob), &[]);
        let error = ours.layers[0].as_ref().unwrap_err();
        assert!(error.needs_diff_service(), "{name}: {error}");
    }
}

fn path(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let top = bed::directory();
    let path = top.path().join(name);
    (top, path)
}

#[test]
fn wrong_digests_are_errors() {
    let blob = Blob::gzip(Tar::new([file("a", "1")]).end());
    let (_top, directory) = path("layer");
    fs::create_dir(&directory).unwrap();
    let (right, wrong) = (sha256(&blob.bytes), sha256(b"other"));
    let diff_id = sha256(&blob.archive);
    let (budget, cancelled) = (Budget::new(BUDGET), AtomicBool::new(false));
    let run = |bytes: &[u8], digest, diff_id| {
        let layer = Layer {
            media_type: GZIP,
            digest: Some(digest),
            diff_id,
            position: Position::Bottom,
        };
        unpack(
            bytes,
            &layer,
            &open(&directory),
            &Limits::new(&budget, &cancelled),
        )
        .unwrap_err()
    };
    let error = run(&blob.bytes, &wrong, &diff_id);
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
    let error = run(&blob.bytes, &right, &wrong);
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
    // A layer that cannot be unpacked because its bytes are wrong is not left to containerd.
    let mut broken = blob.bytes.clone();
    broken[20] ^= 0xff;
    let error = run(&broken, &right, &diff_id);
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
    let error = run(&blob.bytes[..30], &right, &diff_id);
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
}

#[test]
fn bombs_end_at_budget() {
    let zeros = vec![0; 64 << 20];
    let tar = Tar::new([file("zeros", &zeros)]).end();
    let (budget, cancelled) = (Budget::new(1 << 20), AtomicBool::new(false));
    let directories: Vec<_> = (0..100)
        .map(|n| file([format!("{n}"), ["y"; 1500].join("/")].join("/"), ""))
        .collect();
    let directories = Tar::new(directories).end();
    for (media_type, bytes, archive) in [
        (GZIP, gzip(&tar), &tar),
        (ZSTD, zstd::encode_all(tar.as_slice(), 3).unwrap(), &tar),
        (GZIP, gzip(&directories), &directories),
    ] {
        let (_top, directory) = path("layer");
        fs::create_dir(&directory).unwrap();
        let layer = Layer {
            media_type,
            digest: Some(&sha256(&bytes)),
            diff_id: &sha256(archive),
            position: Position::Bottom,
        };
        let result = unpack(
            bytes.as_slice(),
            &layer,
            &open(&directory),
            &Limits::new(&budget, &cancelled),
        );
        let error = result.unwrap_err();
        assert!(
            matches!(error, UnpackError::OverBudget { limit: 1_048_576 }),
            "{error}"
        );
    }
    cancelled.store(true, Ordering::Relaxed);
    let (_top, directory) = path("layer");
    fs::create_dir(&directory).unwrap();
    let bytes = gzip(&tar);
    let layer = Layer {
        media_type: GZIP,
        digest: None,
        diff_id: &sha256(&tar),
        position: Position::Above,
    };
    let error = unpack(
        bytes.as_slice(),
        &layer,
        &open(&directory),
        &Limits::new(&budget, &cancelled),
    )
    .unwrap_err();
    assert!(matches!(error, UnpackError::Cancelled), "{error}");
}

#[test]
fn deep_directories_are_removed() {
    let deep = ["y"; 1800].join("/");
    let mut entries = vec![file(format!("x/{deep}"), "")];
    entries.extend((0..300).map(|n| file(format!("x/z{n}/f"), "")));
    entries.push(file("x", "replaced"));
    let blob = Blob::gzip(Tar::new(entries).end());
    let (_top, directory) = path("layer");
    unpack_blob(&blob, &directory, false).unwrap();
    assert_eq!(fs::read(directory.join("x")).unwrap(), b"replaced");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn many_directories_are_left_to_diff() {
    let blob = Blob::gzip(Tar::new((0..100).map(|n| dir(format!("d{n}")))).end());
    let (_top, directory) = path("layer");
    fs::create_dir(&directory).unwrap();
    let (budget, cancelled) = (Budget::new(BUDGET), AtomicBool::new(false));
    let mut limits = Limits::new(&budget, &cancelled);
    limits.memory = 4000;
    let diff_id = sha256(&blob.archive);
    let layer = Layer {
        media_type: GZIP,
        digest: None,
        diff_id: &diff_id,
        position: Position::Bottom,
    };
    let error = unpack(blob.bytes.as_slice(), &layer, &open(&directory), &limits).unwrap_err();
    assert!(error.needs_diff_service(), "{error}");
    let foreign = Layer {
        media_type: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ..layer
    };
    let error = unpack(blob.bytes.as_slice(), &foreign, &open(&directory), &limits).unwrap_err();
    assert!(matches!(error, UnpackError::Unsupported { .. }), "{error}");
}
