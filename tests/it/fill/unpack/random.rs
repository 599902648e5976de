//! Random images: a few names, all kinds of entries, in any order, so that they collide.

use fastrand::Rng;

use super::tar::{Entry, Tar, dir, file, hard_link, node, symlink};
use super::{Blob, Outcome, PLAIN, ZSTD, compare};

/// Number of images; `UNPACK_IMAGES=N` overrides it.
const IMAGES: u64 = 20;
/// First seed; `UNPACK_SEED=N` overrides it.
const SEED: u64 = 1;
const DIRECTORIES: &[&str] = &["a", "b", "usr", "lib", "etc", "x-y"];
const OTHERS: &[&str] = &["f", "g", "h", "file", "passwd"];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

fn directory(random: &mut Rng) -> String {
    let depth = random.usize(1..=4);
    let names = (0..depth).map(|_| *random.choice(DIRECTORIES).unwrap());
    names.collect::<Vec<_>>().join("/")
}

/// The path of anything else. Rarely that of a directory: containerd refuses most such layers.
fn path(random: &mut Rng) -> String {
    if random.u8(..) == 0 {
        return directory(random);
    }
    let name = random.choice(OTHERS).unwrap();
    match random.u8(0..4) {
        0 => (*name).to_owned(),
        _ => format!("{}/{name}", directory(random)),
    }
}

/// An entry; `seen` has the paths of files of this layer.
fn entry(random: &mut Rng, seen: &mut Vec<String>, is_bottom: bool) -> Entry {
    let name = path(random);
    let new = match random.u8(0..100) {
        0..35 => {
            let length = random.usize(0..3000);
            let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                .take(length)
                .collect();
            seen.push(name.clone());
            file(&name, data)
        }
        35..60 => dir(format!("{}/", directory(random))),
        60..68 => {
            let target = ["usr", "/etc", "../lib", "a/b", ".", "nowhere"];
            symlink(&name, random.choice(target).unwrap())
        }
        68..76 => match random.choice(&*seen) {
            Some(target) => hard_link(&name, target),
            None => file(&name, ""),
        },
        76..80 => node(
            &name,
            *random.choice(b"346").unwrap(),
            1,
            random.i64(0..300),
        ),
        80..90 => {
            let (above, base) = name.rsplit_once('/').unwrap_or(("", &name));
            // Above the bottom, containerd refuses to delete what the layer has.
            let base = if is_bottom {
                base.to_owned()
            } else {
                format!("{base}{}", random.u8(..))
            };
            return file(format!("{above}/.wh.{base}"), "");
        }
        90..93 => return file(format!("{}/.wh..wh..opq", directory(random)), ""),
        _ => file(&name, "small").pax(
            "mtime",
            format!(
                "15{:08}.{:09}",
                random.u32(0..99_999_999),
                random.u32(0..999_999_999)
            ),
        ),
    };
    let modes = [0o644, 0o755, 0o600, 0o4755, 0o2775, 0o1777, 0o6711, 0];
    let new = new
        .mode(random.choice(modes).unwrap())
        .owner(random.i64(0..3), random.i64(0..3))
        .mtime(1_600_000_000 + random.i64(0..1_000_000));
    if new.kind != b'2' && random.u8(0..5) == 0 {
        let value = random.u8(..).to_string();
        return match new.kind {
            b'0' | b'5' => new.xattr(["user.a", "user.b"][random.usize(0..2)], value),
            _ => new,
        };
    }
    new
}

pub fn image(seed: u64) -> Vec<Blob> {
    let mut random = Rng::with_seed(seed);
    let layers = random.usize(1..=5);
    (0..layers)
        .map(|layer| {
            let mut seen = Vec::new();
            let entries = random.usize(0..60);
            let entries = (0..entries).map(|_| entry(&mut random, &mut seen, layer == 0));
            // A file in place of a parent is an error: such entries are left out.
            let archive = Tar::new(consistent(entries.collect())).end();
            match random.u8(0..4) {
                0 => Blob {
                    media_type: PLAIN,
                    bytes: archive.clone(),
                    archive,
                },
                1 => Blob {
                    media_type: ZSTD,
                    bytes: zstd::encode_all(archive.as_slice(), 3).unwrap(),
                    archive,
                },
                _ => Blob::gzip(archive),
            }
        })
        .collect()
}

/// Leaves out most of what makes containerd refuse a layer: entries below what is a file, links to what is gone, directories that
/// are no longer there at the end.
fn consistent(entries: Vec<Entry>) -> Vec<Entry> {
    use std::collections::BTreeMap;
    let mut kinds: BTreeMap<Vec<u8>, u8> = BTreeMap::new();
    let mut kept = Vec::new();
    for entry in entries {
        let name = entry
            .name
            .strip_suffix(b"/")
            .unwrap_or(&entry.name)
            .to_vec();
        let slashes = name.iter().enumerate().filter(|(_, b)| **b == b'/');
        let is_below_file = slashes.clone().any(|(at, _)| {
            let kind = kinds.get(&name[..at]);
            kind.is_some_and(|kind| !matches!(kind, b'5' | b'2'))
        });
        let was_directory = kinds.get(&name) == Some(&b'5') && entry.kind != b'5';
        let is_dangling = entry.kind == b'1' && !matches!(kinds.get(&entry.link), Some(b'0'));
        if is_below_file
            || was_directory
            || is_dangling
            || (entry.kind == b'1' && name == entry.link)
        {
            continue;
        }
        for (at, _) in slashes {
            kinds.entry(name[..at].to_vec()).or_insert(b'5');
        }
        kinds.insert(name, entry.kind);
        kept.push(entry);
    }
    kept
}

#[test]
#[allow(clippy::print_stderr, reason = "counts, for a run by hand")]
fn random_images_match() {
    let (seed, images) = (
        setting("UNPACK_SEED", SEED),
        setting("UNPACK_IMAGES", IMAGES),
    );
    let mut outcomes = Vec::new();
    for seed in seed..seed + images {
        match compare(&image(seed)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    let count = |outcome| outcomes.iter().filter(|o| **o == outcome).count();
    let (same, left) = (count(Outcome::Same), count(Outcome::LeftToDiff));
    eprintln!(
        "{same} same, {left} left to containerd, {} refused",
        count(Outcome::Refused)
    );
    assert!(same * 2 > outcomes.len(), "{outcomes:?}");
}
