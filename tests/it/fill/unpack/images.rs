//! Images made by hand, each for one part of what layers can contain.

use super::tar::{Entry, Tar, dir, file, gzip, hard_link, node, symlink};
use super::{Blob, Outcome, PLAIN, ZSTD, compare};

fn layers<const N: usize>(layers: [Vec<Entry>; N]) -> Vec<Blob> {
    let archives = layers.into_iter().map(|layer| Tar::new(layer).end());
    archives.map(Blob::gzip).collect()
}

/// All of them, by names that are fit for repositories.
pub fn all() -> Vec<(&'static str, Vec<Blob>)> {
    vec![
        ("owners-and-modes", owners_and_modes()),
        ("hard-links", hard_links()),
        ("devices-and-pipes", devices_and_pipes()),
        ("attributes", attributes()),
        ("names", names()),
        ("times", times()),
        ("late-directories", late_directories()),
        ("set-gid-is-handed-down", set_gid_is_handed_down()),
        ("replacements", replacements()),
        ("whiteouts", whiteouts()),
        ("opaque-directories", opaque_directories()),
        ("directories-through-links", directories_through_links()),
        ("encodings", encodings()),
        ("access-control-lists", access_control_lists()),
    ]
}

#[track_caller]
fn same(blobs: &[Blob]) {
    assert_eq!(compare(blobs), Ok(Outcome::Same));
}

/// The entries that most images start with.
fn base() -> Vec<Entry> {
    vec![
        dir("./"),
        dir("bin/"),
        file("bin/sh", "#!").mode(0o755),
        dir("etc/").mtime(1_600_000_000),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/shadow", "x").mode(0o640).owner(0, 42),
        dir("tmp/").mode(0o1777),
        dir("usr/").mtime(1_300_000_000),
        dir("usr/lib/").mode(0o711).owner(3, 4).mtime(1_300_000_001),
        file("usr/lib/a.so", "so"),
    ]
}

fn owners_and_modes() -> Vec<Blob> {
    layers([
        base(),
        vec![
            file("suid", "#!").mode(0o4755),
            file("sgid", "#!").mode(0o2755).owner(0, 5),
            file("both", "#!").mode(0o6711).owner(1000, 1000),
            file("sticky", "").mode(0o1600),
            file("none", "").mode(0),
            dir("locked/").mode(0),
            file("locked/in", "1"),
            file("type-bits", "").mode(0o100_644),
            file("large-id", "").owner(2_500_000, 4_000_000_000),
            file("pax-id", "").pax("uid", "3000000000").pax("gid", "7"),
            symlink("link", "bin/sh").owner(33, 44),
            file("empty", ""),
            file("large", vec![7; 3 << 20]),
        ],
    ])
}

#[test]
fn owners_and_modes_match() {
    same(&owners_and_modes());
}

fn hard_links() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                hard_link("one", "etc/passwd"),
                hard_link("two", "/etc/passwd"),
                hard_link("three", "./etc/../etc/passwd")
                    .owner(9, 9)
                    .mode(0o600)
                    .mtime(1_500_000_000),
                symlink("link", "/etc/shadow"),
                hard_link("four", "link").mode(0o400),
                symlink("also-etc", "etc"),
                hard_link("five", "also-etc/shadow"),
                hard_link("implied/dir/six", "../../bin/sh"),
                node("fifo", b'6', 0, 0),
                hard_link("fifo-link", "fifo"),
                hard_link("one", "bin/sh"),
            ],
        ]
        .concat(),
        vec![file("new", "n"), hard_link("new-too", "new")],
    ])
}

#[test]
fn hard_links_match() {
    same(&hard_links());
}

#[test]
fn hard_link_into_lower_layer_is_refused() {
    let blobs = layers([base(), vec![hard_link("x", "etc/passwd")]]);
    assert_eq!(compare(&blobs), Ok(Outcome::Refused));
}

fn devices_and_pipes() -> Vec<Blob> {
    layers([
        base(),
        vec![
            node("fifo", b'6', 0, 0).mode(0o622).owner(3, 0),
            node("null", b'3', 1, 3).mode(0o666),
            node("block", b'4', 259, 300).mode(0o660).owner(0, 6),
            node("zero", b'3', 0, 0).mode(0o600),
            node("large", b'3', 4095, 1_048_575),
            file("fifo", "now a file"),
            node("null", b'6', 0, 0),
        ],
    ])
}

#[test]
fn devices_and_pipes_match() {
    same(&devices_and_pipes());
}

/// `cap_net_raw+ep`.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn attributes() -> Vec<Blob> {
    layers([
        base(),
        vec![
            file("user", "x")
                .xattr("user.foo", "bar")
                .xattr("user.empty", "")
                .xattr("trusted.bad", "no")
                .xattr("trusted.overlay.opaque", "y"),
            file("capable", "x")
                .mode(0o755)
                .owner(1, 1)
                .xattr("security.capability", CAPABILITY),
            hard_link("capable-too", "capable")
                .mode(0o755)
                .xattr("security.capability", CAPABILITY),
            dir("dir/")
                .mode(0o751)
                .owner(12, 13)
                .xattr("user.d", [0, 1, 255]),
            dir("dir/").xattr("user.e", "2"),
            file("dir/in", ""),
        ],
        vec![dir("dir/").xattr("user.f", "3"), file("dir/new", "")],
    ])
}

#[test]
fn attributes_match() {
    same(&attributes());
}

fn names() -> Vec<Blob> {
    let mut tar = Tar::new(base());
    tar.push(file(format!("long/{}", "L".repeat(200)), "1"));
    tar.push(file(
        [["d".repeat(90).as_str(); 4].join("/"), "f".repeat(255)].join("/"),
        "2",
    ));
    tar.push(file("n".repeat(60), "3").prefix(format!("{}/{}", "p".repeat(80), "q".repeat(70))));
    let gnu = [b"gnu/".as_slice(), &[b'g'; 200]].concat();
    tar.gnu_long(b'L', &gnu);
    tar.raw(&file("gnu/ggg", "4").magic(b"ustar  \0"));
    let target = [b"/".as_slice(), &[b't'; 150]].concat();
    tar.gnu_long(b'K', &target);
    tar.raw(&symlink("gnu-link", "/ttt").magic(b"ustar  \0"));
    tar.push(symlink("pax-link", "u".repeat(300)));
    tar.push(file("unicode-é中", ""));
    tar.push(file(b"latin-\xe9\xff", ""));
    tar.push(file("new\nline", ""));
    tar.push(file("a space", ""));
    tar.push(file("./a//b/./c", ""));
    tar.push(file("/absolute/file", ""));
    tar.push(file("v7-dir/", "").kind(0).magic(b""));
    tar.push(file("v7-file", "v7").kind(0).magic(b""));
    tar.push(file(".wh", "no whiteout"));
    tar.push(file("x.wh.y", "no whiteout"));
    tar.push(file("a/b/../up", ""));
    vec![Blob::gzip(tar.end())]
}

#[test]
fn names_match() {
    same(&names());
}

fn times() -> Vec<Blob> {
    layers([
        base(),
        vec![
            file("nanoseconds", "")
                .pax("mtime", "1700000000.123456789")
                .pax("atime", "1700000100.5"),
            file("more-digits", "").pax("mtime", "1600000000.1234567891234"),
            file("negative", "").pax("mtime", "-12345.5"),
            file("far", "").pax("mtime", "99999999999"),
            file("binary", "").mtime(-5),
            file("first", "").mtime(0),
            symlink("link", "x").pax("mtime", "1500000000.25"),
            dir("dir/").pax("mtime", "1400000000.75"),
            file("dir/in", ""),
            dir("dir/deep/").mtime(1_200_000_000),
            file("dir/deep/in", ""),
            symlink("to-dir", "dir"),
            dir("to-dir/deep/").mtime(1_100_000_000),
            file("dir/deep/late", ""),
        ],
    ])
}

#[test]
fn times_match() {
    same(&times());
}

fn late_directories() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                dir("own/")
                    .mode(0o711)
                    .owner(1000, 1001)
                    .xattr("user.own", "yes"),
                dir("own/deep/").mode(0o2770).owner(1002, 1003),
                dir("late/")
                    .mode(0o700)
                    .owner(5, 5)
                    .xattr("user.a", "1")
                    .xattr("user.b", "1"),
                file("implied/only/here", ""),
            ],
        ]
        .concat(),
        vec![
            file("late/child", "c"),
            dir("late/")
                .mode(0o750)
                .owner(6, 6)
                .mtime(1_400_000_000)
                .xattr("user.b", "2"),
            file("late/after", "c"),
            file("first/child", "c"),
            dir("first/").mode(0o700).mtime(1_400_000_000),
            file("own/deep/new", "n"),
            file("own/deep/er/new", "n"),
            dir("own/deep/named/"),
        ],
        vec![
            dir("own/").mode(0o755).owner(1, 0),
            file("own/deep/er/more", "2"),
            file("late/third", "3"),
            file("implied/only/new/one", "3"),
        ],
    ])
}

#[test]
fn late_directories_match() {
    same(&late_directories());
}

fn set_gid_is_handed_down() -> Vec<Blob> {
    layers([
        vec![
            dir("sgid/").mode(0o2775).owner(0, 50),
            file("sgid/implied/in", "x"),
            file("sgid/f", "y").owner(7, 8),
            dir("sgid/named/"),
            symlink("sgid/link", "x"),
        ],
        vec![
            file("sgid/new/deep/file", "1"),
            file("sgid/implied/two", "1"),
        ],
        vec![
            file("sgid/later/x", ""),
            dir("sgid/").mode(0o2770).owner(0, 51),
            file("sgid/last/x", ""),
            file("sgid/later/y/z", ""),
        ],
    ])
}

#[test]
fn set_gid_is_handed_down_alike() {
    same(&set_gid_is_handed_down());
}

fn replacements() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                file("dup", "first").mode(0o600),
                file("dup", "second"),
                file("to-dir", "file"),
                dir("to-dir/").mode(0o711),
                file("to-dir/in", "x"),
                dir("to-file/"),
                file("to-file/deep/er/in", "x"),
                symlink("to-file", "was a directory"),
                file("to-file", "now a file"),
                dir("to-link/"),
                file("to-link/in", "x"),
                symlink("to-link", "etc"),
            ],
        ]
        .concat(),
        vec![
            file("usr", "a file now"),
            dir("dup/").mode(0o700),
            file("etc/passwd/below", "was a file"),
            symlink("bin", "usr/bin"),
            file("to-link/new", "x"),
            file("implied/x", "1"),
            file("implied", "2"),
            file("other/a/b", "1"),
            symlink("other/a", "/etc"),
        ],
    ])
}

#[test]
fn replacements_match() {
    same(&replacements());
}

fn whiteouts() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                file("gone", "x"),
                file(".wh.gone", ""),
                file("wd/a", ""),
                file("wd/b", ""),
                file("tree/a/b", ""),
                file(".wh.tree", ""),
            ],
        ]
        .concat(),
        vec![
            file(".wh.bin", ""),
            file("wd/.wh.a", "").owner(4, 4),
            file("wd/.wh.never", "with content"),
            dir("etc/"),
            file("etc/.wh.shadow", ""),
            file(".wh..wh.aufs", ""),
            file(".wh.back", ""),
            file("back", "again"),
            file(".wh.back-dir", ""),
            dir("back-dir/").mode(0o750),
            file("back-dir/f", ""),
            file("deep/er/.wh.x", ""),
        ],
        vec![file("bin/new", ""), file("wd/.wh.b", ""), file("wd/a", "3")],
    ])
}

#[test]
fn whiteouts_match() {
    same(&whiteouts());
}

fn opaque_directories() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                dir("opq/"),
                file("opq/a", "1"),
                dir("opq/k/"),
                file("opq/k/b", "1"),
                file("opq/implied/c", "1"),
                file("opq/k/implied/d", "1"),
                file("opq/.wh..wh..opq", ""),
                file("opq/z", "2"),
                dir("other/").mode(0o700).owner(8, 8),
                file("other/a", ""),
                dir("only/").mode(0o701).mtime(1_111_111_111),
            ],
        ]
        .concat(),
        vec![
            dir("opq/"),
            file("opq/.wh..wh..opq", ""),
            file("opq/new", ""),
            file("other/.wh..wh..opq", ""),
            file("new/implied/.wh..wh..opq", ""),
            file("only/.wh..wh..opq", ""),
            file(".wh..wh..opq", ""),
        ],
        vec![file("other/b", ""), file("opq/k/c", "")],
    ])
}

#[test]
fn opaque_directories_match() {
    same(&opaque_directories());
}

fn directories_through_links() -> Vec<Blob> {
    layers([
        [
            base(),
            vec![
                symlink("lib", "usr/lib"),
                file("lib/x.so", "so"),
                symlink("lib64", "/usr/lib"),
                file("lib64/y.so", "so"),
                dir("lib64/sub/").mode(0o750).mtime(1_000_000_000),
                symlink("self", "."),
                file("self/self/deep", ""),
                symlink("missing", "/not/there/yet"),
                file("missing/made", ""),
            ],
        ]
        .concat(),
        vec![file("lib/new.so", ""), file("lib64/implied/z", "")],
        vec![dir("usr/"), file("lib/third", ""), symlink("lib64", "lib")],
    ])
}

#[test]
fn directories_through_links_match() {
    same(&directories_through_links());
}

fn encodings() -> Vec<Blob> {
    let tar = |name: &str| Tar::new([file(name, name.repeat(50_000))]).end();
    let (one, two) = (tar("one"), tar("two"));
    let half = two.len() / 2;
    let members = [gzip(&two[..half]), gzip(&two[half..])].concat();
    let frames = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let three = tar("three");
    let skippable = [
        &frames(&three)[..],
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
        &frames(b""),
    ]
    .concat();
    let blob = |media_type, bytes: &[u8], archive: &[u8]| Blob {
        media_type,
        bytes: bytes.to_vec(),
        archive: archive.to_vec(),
    };
    let plain = tar("four");
    let mut global = Tar::default();
    global.raw(&file("pax_global_header", "19 comment=0123456\n").kind(b'g'));
    global.push(file("five", ""));
    let unended = Tar::new([file("six", "6")]).0;
    let garbage = [Tar::new([file("seven", "7")]).end(), vec![9; 4096]].concat();
    let zeros = [unended.clone(), vec![0; 512]].concat();
    vec![
        Blob::gzip(one),
        blob(super::GZIP, &members, &two),
        blob(ZSTD, &skippable, &three),
        blob(PLAIN, &plain, &plain),
        // containerd looks at the bytes, not at the suffix.
        blob(super::GZIP, &plain, &plain),
        blob(ZSTD, &gzip(&plain), &plain),
        Blob::gzip(global.end()),
        Blob::gzip(unended),
        Blob::gzip(garbage),
        Blob::gzip(zeros),
        Blob::gzip(Tar::default().end()),
        Blob::gzip(Vec::new()),
    ]
}

#[test]
fn encodings_match() {
    same(&encodings());
}

/// A directory's default access control list, `u::rwx,u:2:rwx,g::r-x,m::rwx,o::---`.
const DEFAULT_LIST: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\x02\0\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

fn access_control_lists() -> Vec<Blob> {
    layers([
        vec![
            dir("acl/").xattr("system.posix_acl_default", DEFAULT_LIST),
            file("acl/f", "a").mode(0o666),
            dir("acl/d/").mode(0o777),
            file("acl/implied/x", ""),
        ],
        vec![file("other", "")],
    ])
}

#[test]
fn access_control_lists_match() {
    let mut blobs = access_control_lists();
    same(&blobs);
    blobs.extend(layers([vec![file("acl/new", "").mode(0o666)]]));
    assert_eq!(compare(&blobs), Ok(Outcome::LeftToDiff));
}
