//! The marks of the disk on a small real file system.

use std::fs;

use harpoon::model::image_size::ImageFs;
use harpoon::planning::disk_marks::{DiskMarks, PlannedImage};

use super::*;
use crate::bed::Runtime as _;

const MB: u64 = 1_000_000;
/// An image of 5 MB is kept compressed and unpacked.
const IMAGE: u64 = 10 * MB;

pub(crate) fn image_fs(containerd: &'static Containerd) -> ImageFs {
    block_on(async move {
        let keep = Keep {
            seal: LIMIT,
            pull: LIMIT,
            by_agent: false,
        };
        let runtime = Runtime::Cri(connect(containerd).await);
        let runtime = SealingRuntime::new(runtime, SealPolicy::Auto, keep);
        runtime.image_fs().await.unwrap()
    })
}

fn unseal(containerd: &'static Containerd, image: &str) {
    let image = parsed(image);
    block_on(async move {
        let cri = connect(containerd).await;
        let images = std::slice::from_ref(&image);
        cri.seals().unwrap().release(Some(images)).await.unwrap();
    });
}

/// Has a neighbour's file fill the file system up to this percentage.
pub(crate) fn fill(containerd: &'static Containerd, percent: u8) {
    let path = containerd.store().join("neighbour");
    let mut file = fs::OpenOptions::new();
    let file = file.create(true).append(true).open(path).unwrap();
    let own = file.metadata().unwrap().len();
    let now = image_fs(containerd);
    let bytes = now.percent(percent) + own - now.used;
    match bytes < own {
        true => file.set_len(bytes).unwrap(),
        // Takes the space without writing it.
        false => {
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap()
        }
    }
}

#[test]
fn full_disk_takes_least_important_images() {
    let containerd: &'static Containerd = Box::leak(Box::new(Containerd::with_space(100 * MB)));
    let push = |name: &str| {
        let image = bed::registry().image(&format!("{}:1", unique(name)));
        image.size(IMAGE / 2).push().reference
    };
    let [web, api, sealed] = ["marks-web", "marks-api", "marks-sealed"].map(push);
    pull(containerd, &web);
    pull(containerd, &api);
    set(containerd, &[&web, &api]);
    let seal = ["pull", "--seal=always", "--runtime-endpoint"];
    let seal = Harpoon::new(seal).args([containerd.endpoint(), &sealed]);
    seal.run().expect(0);

    let mut marks = DiskMarks::new(80);
    let mut plan = [(&web, 9), (&api, 5), (&sealed, 1)].map(|(name, importance)| PlannedImage {
        name,
        is_present: true,
        is_protected: true,
        bytes: IMAGE,
        importance,
    });
    assert!(!marks.decide(image_fs(containerd), &plan).is_yielding);
    fill(containerd, 82);
    let decision = marks.decide(image_fs(containerd), &plan);
    assert!(decision.is_yielding);
    assert_eq!(decision.give_up, [&*sealed]);
    unseal(containerd, &sealed);
    let resume = marks.resume(image_fs(containerd));
    eventually("the space of the seal is free", LIMIT, || {
        image_fs(containerd).used < resume
    });
    // It is gone and there is room for it, but the next neighbour would take that again.
    (plan[2].is_present, plan[2].is_protected) = (false, false);
    let now = image_fs(containerd);
    assert!(!marks.decide(now, &plan).is_yielding);
    assert!(now.used + IMAGE / 2 < marks.high(now));
    assert!(!marks.admits(now, 0, &sealed, IMAGE / 2));
    assert!(marks.admits(now, 0, "another", IMAGE / 2));

    fill(containerd, 89);
    let decision = marks.decide(image_fs(containerd), &plan);
    assert_eq!(decision.give_up, [&*api]);
    set(containerd, &[&web]);
    assert_pinned(containerd, &[&web], "given up");
    // The kubelet takes what is free for it.
    evict(containerd, &api);
    (plan[1].is_present, plan[1].is_protected) = (false, false);
    let high = marks.high(image_fs(containerd));
    eventually("the space of the image is free", LIMIT, || {
        image_fs(containerd).used <= high
    });
    let decision = marks.decide(image_fs(containerd), &plan);
    assert!(
        decision.is_yielding && decision.give_up.is_empty(),
        "{decision:?}"
    );
    assert!(names(containerd)[&web].is_pinned);
}
