//! A fuzz target: unpacks a text as a layer and checks that nothing outside its directory changes.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::header::BLOCK;
use super::{Budget, Dir, Layer, Limits, Position, mend, unpack};
use crate::registry::digest::sha256;

/// Enough for every kind of entry.
const BUDGET: u64 = 4 << 20;

/// The first byte chooses the layer's position and type, and whether checksums are repaired; the rest is the layer.
///
/// # Panics
/// If an invariant does not hold.
pub fn fuzz_layer(data: &[u8]) {
    let Some((choice, layer)) = data.split_first() else {
        return;
    };
    let mut layer = layer.to_vec();
    if choice & 4 == 0 {
        repair(&mut layer);
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("harpoon-fuzz-{}-{number}", std::process::id());
    let top = std::env::temp_dir().join(name);
    let directory = top.join("layer");
    fs::create_dir_all(&directory).expect("create a directory");
    fs::write(top.join("outside"), "outside").expect("write a file");

    let types = ["tar", "tar+gzip"];
    let media_type = types[usize::from(choice & 2 != 0)];
    let media_type = format!("application/vnd.oci.image.layer.v1.{media_type}");
    let digest = sha256(&layer);
    let spec = Layer {
        media_type: &media_type,
        digest: Some(&digest),
        diff_id: &digest,
        position: if choice & 1 == 0 {
            Position::Bottom
        } else {
            Position::Above
        },
    };
    let (budget, cancelled) = (Budget::new(BUDGET), AtomicBool::new(false));
    let limits = Limits::new(&budget, &cancelled);
    let root = Dir::open(&directory).expect("open the directory");
    match unpack(layer.as_slice(), &spec, &root, &limits) {
        Ok(unpacked) => {
            assert_eq!(unpacked.compressed_bytes, layer.len() as u64);
            assert!(unpacked.file_bytes <= unpacked.archive_bytes);
            let below = [Dir::open(&top).expect("open the directory")];
            _ = mend(&unpacked, &root, &below);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 4000 && !text.contains('\n'), "{text}");
        }
    }
    let outside = fs::read(top.join("outside")).expect("read the file");
    assert_eq!(outside, b"outside");
    assert_eq!(fs::read_dir(&top).expect("list").count(), 2);
    fs::remove_dir_all(&top).expect("remove the directory");
}

/// Makes the checksums of all headers right, without which nothing is read.
fn repair(layer: &mut [u8]) {
    for block in layer.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
