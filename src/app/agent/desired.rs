//! The images that the node needs, in the order of their pulls, each with the time from which it may be pulled. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::planned::Planned;
use crate::app::continuous::names;
use crate::planning::node_match::{Node, mismatch};

/// An image that the node needs.
#[derive(Debug, Clone)]
pub(super) struct Desired {
    pub(super) planned: Arc<Planned>,
    /// The time from which its pull may start; `None` for at once.
    pub(super) start: Option<SystemTime>,
}

/// The facts about the node that decide about images and their times.
#[derive(Debug)]
pub(super) struct Here<'a> {
    pub(super) node: &'a Node,
    /// The time when it joined the cluster.
    pub(super) created: Option<SystemTime>,
    /// True until the node's first fill is complete: it waits for no slot.
    pub(super) is_first_fill: bool,
}

/// The images that the node needs, the most used first.
pub(super) fn desired<'a>(
    images: impl IntoIterator<Item = &'a Arc<Planned>>,
    here: &Here<'_>,
) -> Vec<Desired> {
    let needed = images
        .into_iter()
        .filter(|image| is_needed(image, here.node));
    let mut desired: Vec<Desired> = needed
        .map(|planned| Desired {
            planned: Arc::clone(planned),
            start: start(planned, here),
        })
        .collect();
    desired.sort_by(|a, b| order(&a.planned).cmp(&order(&b.planned)));
    // Only objects that nobody but the controller should write can name one image twice.
    let mut seen = HashSet::new();
    desired.retain(|desired| seen.insert(Arc::clone(&desired.planned.image)));
    desired
}

fn order(planned: &Planned) -> (Reverse<u64>, &str, &str) {
    (Reverse(planned.pods), &planned.image, &planned.object)
}

/// The images that the node needed, which no prefetch uses any more, and which are kept for a time.
pub(super) fn kept<'a>(
    images: impl IntoIterator<Item = &'a Arc<Planned>>,
    node: &Node,
) -> Vec<Arc<Planned>> {
    let images = images.into_iter();
    let unused = images.filter(|image| image.prefetches.is_empty() && fits(image, node));
    unused.cloned().collect()
}

/// Returns whether the node needs the image. An image that no prefetch uses any more is only kept.
fn is_needed(image: &Planned, node: &Node) -> bool {
    !image.prefetches.is_empty() && fits(image, node)
}

fn fits(image: &Planned, node: &Node) -> bool {
    let fits = |requirements| mismatch(requirements, node).is_none();
    image.placements.is_empty() || image.placements.iter().any(fits)
}

/// The node's slot in the rollout of the image. A node that is being filled for the first time, and one that is younger than the
/// plan of the image, start at once.
fn start(image: &Planned, here: &Here<'_>) -> Option<SystemTime> {
    let planned = image.planned?;
    let is_younger = here.created.is_some_and(|created| created > planned);
    if here.is_first_fill || is_younger {
        return None;
    }
    let delay = image.rollout.delay(&here.node.name, &image.image);
    planned.checked_add(delay).filter(|start| *start > planned)
}

/// The revision of each prefetch that an image names, whatever the node needs of it.
pub(super) fn revisions<'a>(
    images: impl IntoIterator<Item = &'a Arc<Planned>>,
) -> BTreeMap<String, String> {
    let images = images.into_iter();
    let planned = images.map(|image| (&*image.prefetches, &*image.revised));
    let revisions = names::revisions(planned).into_iter();
    revisions
        .map(|(name, revision)| (name.to_owned(), revision))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::planning::node_match::Taint;

    const PLANNED: &str = "2026-01-01T00:00:00Z";

    fn image(image: &str, spec: &Value) -> Arc<Planned> {
        let mut object = json!({
            "apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage",
            "metadata": {"name": names::planned_image(image)}, "spec": {"image": image, "prefetches": ["shop"]}
        });
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        Arc::new(Planned::of(serde_json::from_value(object).unwrap()))
    }

    fn node(labels: &[(&str, &str)]) -> Node {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Node {
            name: "node-1".to_owned(),
            labels: labels.collect(),
            ..Node::default()
        }
    }

    fn here(node: &Node) -> Here<'_> {
        Here {
            node,
            created: None,
            is_first_fill: false,
        }
    }

    fn names_of(images: &[Arc<Planned>], node: &Node) -> Vec<String> {
        let desired = desired(images, &here(node));
        desired
            .iter()
            .map(|d| d.planned.image.to_string())
            .collect()
    }

    #[test]
    fn most_used_images_come_first() {
        let images = [
            image("r.io/b:1", &json!({"pods": 3})),
            image("r.io/c:1", &json!({"pods": 9})),
            image("r.io/a:1", &json!({"pods": 3})),
        ];
        let order = ["r.io/c:1", "r.io/a:1", "r.io/b:1"];
        assert_eq!(names_of(&images, &node(&[])), order);
    }

    #[test]
    fn image_is_desired_once() {
        let objects = [("a", 9), ("b", 5), ("a", 3)];
        let images =
            objects.map(|(name, pods)| image(&format!("r.io/{name}:1"), &json!({"pods": pods})));
        assert_eq!(names_of(&images, &node(&[])), ["r.io/a:1", "r.io/b:1"]);
    }

    #[test]
    fn unused_images_are_not_desired() {
        let unused = [image("r.io/a:1", &json!({"prefetches": []}))];
        assert!(names_of(&unused, &node(&[])).is_empty());
        assert!(revisions(&unused).is_empty());
    }

    #[test]
    fn any_placement_is_enough() {
        let gpu = json!({"nodeSelector": {"pool": "gpu"}, "tolerations": [{"operator": "Exists"}]});
        let arm = json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}});
        let images = [image("r.io/a:1", &json!({"placements": [gpu, arm]}))];
        assert_eq!(names_of(&images, &node(&[("pool", "gpu")])).len(), 1);
        let mut arm = node(&[("kubernetes.io/arch", "arm64")]);
        assert_eq!(names_of(&images, &arm).len(), 1);
        assert!(names_of(&images, &node(&[("kubernetes.io/arch", "amd64")])).is_empty());
        // Only the first placement tolerates taints, except for those of starting nodes.
        let taint = |key: &str| Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        arm.taints = vec![
            taint("node.kubernetes.io/not-ready"),
            taint("mine/starting"),
        ];
        assert!(names_of(&images, &arm).is_empty());
        arm.startup_taints = vec!["mine/starting".to_owned()];
        assert_eq!(names_of(&images, &arm).len(), 1);
    }

    #[test]
    fn new_nodes_wait_for_no_slot() {
        let rollout = json!({"type": "Linear", "window": "1h", "startTime": PLANNED});
        let images = [image("r.io/a:1", &json!({"rollout": rollout}))];
        let node = node(&[]);
        let planned = humantime::parse_rfc3339(PLANNED).unwrap();
        let start = |here: &Here<'_>| desired(&images, here)[0].start;
        let slot = start(&here(&node)).unwrap();
        assert!(slot > planned && slot < planned + Duration::from_secs(3600));
        let second = Duration::from_secs(1);
        for (created, is_first_fill, waits) in [
            (planned - second, false, true),
            (planned + second, false, false),
            (planned - second, true, false),
        ] {
            let here = Here {
                node: &node,
                created: Some(created),
                is_first_fill,
            };
            assert_eq!(start(&here).is_some(), waits);
        }
    }

    #[test]
    fn every_prefetch_has_a_revision() {
        let images = [
            image(
                "r.io/a:1",
                &json!({"prefetches": ["shop", "gpu"], "placements": [{"os": "windows"}]}),
            ),
            image("r.io/b:1", &json!({})),
        ];
        assert!(!names_of(&images, &node(&[])).contains(&"r.io/a:1".to_owned()));
        let revisions = revisions(&images);
        let b = names::planned_image("r.io/b:1");
        let a = &images[0].revised;
        assert_ne!(**a, images[0].object);
        assert_eq!(revisions["gpu"], names::revision([&**a]));
        assert_eq!(revisions["shop"], names::revision([&**a, &*b]));
    }
}
