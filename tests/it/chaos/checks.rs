//! Differences of the cluster from what is asked for: the plan, the images of each node, and what the statuses tell of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::actors::{API, Cast, Node, name, policy};
use super::world::{IMAGES, NODES, PRIVATE, Planned, Policy, World};
use crate::agent::seals;
use crate::bed;
use crate::fast::images as checked;
use crate::pins::{Named, names};

/// The images that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Images that were removed: those with the policy `None`, and those that wait to be pulled again, if the status names them.
    Removed,
    /// The same, but failures of pulls are over.
    Evicted,
    /// Nothing.
    Nothing,
}

/// An image that a node needs, as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Present,
    /// The status names it as failed.
    Failing,
    /// The status names it as removed repeatedly.
    Resting,
    /// It was removed, and is not pulled again.
    GivenUp,
    /// It is not there, and the status does not say so.
    Missing,
}

/// The names, seals and leases of one node.
struct Content {
    names: BTreeMap<String, Named>,
    /// The digests of the seals of each image.
    seals: BTreeMap<String, Vec<String>>,
    /// Leases of harpoon's that are no seals; without those of trials, which expire after ten minutes.
    leases: Vec<String>,
}

/// The images that a node needs, and the state of each.
type OnNode = (BTreeMap<usize, Planned>, BTreeMap<usize, Found>);

/// The differences, one a line; none if all is as asked for.
pub(super) fn differences(cast: &Cast, world: &World, allowed: Allowed) -> Vec<String> {
    let mut found = plan(cast, world);
    let statuses = by_name(cast, "nodeprefetches");
    let mut nodes = Vec::new();
    for (number, node) in cast.nodes.iter().enumerate() {
        let content = Content::of(node);
        let status = &statuses.get(&node.name).unwrap_or(&Value::Null)["status"];
        let wanted = world.wanted(number);
        let states: BTreeMap<usize, Found> = wanted
            .iter()
            .map(|(image, planned)| {
                let state = content.state(&cast.store.images()[*image], planned, status);
                (*image, state)
            })
            .collect();
        let on_node = content.differences(cast, world, number, &states, allowed);
        found.extend(
            on_node
                .into_iter()
                .chain(told(status, &wanted, &states))
                .map(|what| format!("{}: {what}", node.name)),
        );
        nodes.push((wanted, states));
    }
    found.extend(summed(cast, world, &nodes));
    found
}

fn by_name(cast: &Cast, plural: &str) -> BTreeMap<String, Value> {
    let list = cast.cluster.get(&format!("{API}/{plural}"));
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let named = items.into_iter().map(|item| {
        let name = item["metadata"]["name"].as_str().unwrap().to_owned();
        (name, item)
    });
    named.collect()
}

/// Differences of the PlannedImages.
fn plan(cast: &Cast, world: &World) -> Vec<String> {
    let describe = |planned: &Planned| {
        let prefetches: Vec<_> = planned.prefetches.iter().map(|n| name(*n)).collect();
        let seal = if planned.is_sealed { "Always" } else { "Never" };
        format!("{} {} {seal}", prefetches.join(","), policy(planned.policy))
    };
    let image = |number: &usize| cast.store.images()[*number].clone();
    let expected = world.planned();
    let expected: BTreeSet<_> = expected
        .iter()
        .map(|(number, planned)| format!("{} {}", image(number), describe(planned)))
        .collect();
    let objects = by_name(cast, "plannedimages");
    let found: Vec<_> = objects
        .values()
        .map(|object| {
            let spec = &object["spec"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let prefetches = spec["prefetches"].as_array().cloned().unwrap_or_default();
            let prefetches: Vec<_> = prefetches.iter().map(text).collect();
            let (policy, seal) = (text(&spec["retention"]["policy"]), text(&spec["seal"]));
            format!(
                "{} {} {policy} {seal}",
                text(&spec["image"]),
                prefetches.join(",")
            )
        })
        .collect();
    let unique: BTreeSet<_> = found.iter().cloned().collect();
    let twice = (unique.len() < found.len()).then(|| "an image is planned twice".to_owned());
    let missing = expected
        .difference(&unique)
        .map(|one| format!("not planned: {one}"));
    let more = unique
        .difference(&expected)
        .map(|one| format!("planned, but not asked for: {one}"));
    missing.chain(more).chain(twice).collect()
}

impl Content {
    fn of(node: &Node) -> Self {
        let leases = node.containerd.ctr(&["leases", "list"]);
        let leases = leases.lines().map(str::to_owned);
        let leases = leases.filter(|lease| {
            lease.starts_with("harpoon/")
                && !lease.starts_with("harpoon/trial/")
                && !lease.contains("harpoon.dev/image=")
        });
        Self {
            names: names(&node.containerd),
            seals: seals(&node.containerd),
            leases: leases.collect(),
        }
    }

    fn seals_of(&self, image: &str) -> &[String] {
        self.seals.get(image).map_or(&[], Vec::as_slice)
    }

    fn state(&self, image: &str, planned: &Planned, status: &Value) -> Found {
        let is_there = match planned.is_sealed {
            true => !self.seals_of(image).is_empty(),
            false => self.names.contains_key(image),
        };
        let failures = status["failures"].as_array().cloned().unwrap_or_default();
        let named = failures.iter().find(|failure| failure["image"] == image);
        // There may be no room for all of them.
        let is_clipped = status["failed"].as_u64().unwrap_or_default() > failures.len() as u64;
        match is_there {
            true => Found::Present,
            false if named.is_some_and(|failure| failure["reason"] == "evicted") => Found::Resting,
            false if named.is_some() || is_clipped => Found::Failing,
            false if planned.policy == Policy::None => Found::GivenUp,
            false => Found::Missing,
        }
    }

    /// Differences of names, pins and seals.
    fn differences(
        &self,
        cast: &Cast,
        world: &World,
        number: usize,
        states: &BTreeMap<usize, Found>,
        allowed: Allowed,
    ) -> Vec<String> {
        let mut found = Vec::new();
        let (planned, wanted) = (world.planned(), world.wanted(number));
        let images = cast.store.images();
        let mut pinned = BTreeSet::new();
        for image in 0..IMAGES {
            let reference = &images[image];
            let (seals, named) = (self.seals_of(reference), self.names.get(reference));
            let is_right = match (wanted.get(&image), planned.contains_key(&image)) {
                (Some(planned), _) if planned.is_sealed => {
                    let is_same = |digest| named.is_none_or(|named| named.target() == digest);
                    seals.is_empty() || matches!(seals, [digest] if is_same(digest))
                }
                // It stays sealed until it has its name.
                (Some(_), _) => {
                    seals.is_empty() || [Found::Failing, Found::Resting].contains(&states[&image])
                }
                // A seal of what only other nodes need expires.
                (None, true) => seals.len() <= 1,
                (None, false) => seals.is_empty(),
            };
            if !is_right {
                found.push(format!(
                    "{reference} has the seals {seals:?}, {:?}",
                    wanted.get(&image)
                ));
            }
            let is_pinned =
                |planned: &&Planned| planned.policy == Policy::Pin && !planned.is_sealed;
            if let (Some(named), Some(_)) = (named, wanted.get(&image).filter(is_pinned)) {
                pinned.insert(named.target());
            }
        }
        for (name, named) in &self.names {
            let is_wanted = pinned.contains(named.target());
            if named.is_pinned != is_wanted || named.is_marked != is_wanted {
                found.push(format!("{name}: {named:?}, to be pinned: {is_wanted}"));
            }
            // A former containerd has no pull without a name, so that one that was killed can leave it.
            let private = &images[..PRIVATE];
            if bed::has_newer_runtimes() && private.iter().any(|image| is_of(name, image)) {
                found.push(format!("{name} is a name of an image that is only sealed"));
            }
            if !name.starts_with("sha256:") && !images.iter().any(|image| is_of(name, image)) {
                found.push(format!("{name} is nobody's"));
            }
        }
        let unknown = self.seals.keys().filter(|image| !images.contains(image));
        found.extend(unknown.map(|image| format!("{image} is sealed")));
        // What came of an image that waits is kept for the next attempt.
        let waits = |state: &Found| [Found::Failing, Found::Resting].contains(state);
        if !states.values().any(waits) {
            found.extend(
                self.leases
                    .iter()
                    .map(|lease| format!("a lease is left: {lease}")),
            );
        }
        for line in checked(&cast.nodes[number].containerd) {
            if !line.contains("complete (") || !line.trim_end().ends_with("true") {
                found.push(format!("not whole: {line}"));
            }
        }
        let bad = states.iter().filter(|(_, state)| match allowed {
            Allowed::Removed => **state == Found::Missing,
            Allowed::Evicted => [Found::Missing, Found::Failing].contains(state),
            Allowed::Nothing => **state != Found::Present,
        });
        found.extend(bad.map(|(image, state)| format!("{} is {state:?}", images[*image])));
        found
    }
}

/// Returns whether this is the image's reference, or that by its digest.
fn is_of(name: &str, image: &str) -> bool {
    let (repository, _) = image.rsplit_once(':').unwrap();
    name == image
        || name
            .strip_prefix(repository)
            .is_some_and(|rest| rest.starts_with('@'))
}

/// The numbers of images that are needed, there and failing.
fn numbers<'a>(states: impl Iterator<Item = &'a Found>) -> [u64; 3] {
    let mut numbers = [0; 3];
    for state in states {
        let of = match state {
            Found::Present => [1, 1, 0],
            Found::Failing | Found::Resting | Found::Missing => [1, 0, 1],
            Found::GivenUp => [0, 0, 0],
        };
        for (number, more) in numbers.iter_mut().zip(of) {
            *number += more;
        }
    }
    numbers
}

fn told_numbers(status: &Value) -> [u64; 4] {
    ["desired", "present", "failed", "pulling"]
        .map(|field| status[field].as_u64().unwrap_or(u64::MAX))
}

/// Differences of the status of a NodePrefetch from what the node has.
fn told(
    status: &Value,
    wanted: &BTreeMap<usize, Planned>,
    states: &BTreeMap<usize, Found>,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, status: &Value, [desired, present, failed]: [u64; 3]| {
        let (is, told) = ([desired, present, failed, 0], told_numbers(status));
        if is != told {
            found.push(format!(
                "{what}: desired, present, failed and pulling are {is:?}, the status tells {told:?}"
            ));
        }
    };
    compare("all", status, numbers(states.values()));
    let entries = status["prefetches"].as_array().cloned().unwrap_or_default();
    let prefetches: BTreeSet<_> = wanted
        .values()
        .flat_map(|planned| &planned.prefetches)
        .collect();
    for prefetch in prefetches {
        let own = states
            .iter()
            .filter(|(image, _)| wanted[image].prefetches.contains(prefetch));
        let entry = entries
            .iter()
            .find(|entry| entry["name"] == name(*prefetch).as_str());
        compare(
            &name(*prefetch),
            entry.unwrap_or(&Value::Null),
            numbers(own.map(|(_, state)| state)),
        );
    }
    found
}

/// Differences of the statuses of the ImagePrefetches from what the nodes have.
fn summed(cast: &Cast, world: &World, nodes: &[OnNode]) -> Vec<String> {
    let mut found = Vec::new();
    let objects = by_name(cast, "imageprefetches");
    let names: BTreeSet<_> = world
        .prefetches
        .keys()
        .map(|number| name(*number))
        .collect();
    if names != objects.keys().cloned().collect() {
        found.push(format!("the ImagePrefetches are {:?}", objects.keys()));
    }
    let planned = world.planned();
    for number in world.prefetches.keys() {
        let Some(object) = objects.get(&name(*number)) else {
            continue;
        };
        let (mut desired, mut complete, mut failing) = (0, 0, 0);
        for (wanted, states) in nodes {
            let own = states
                .iter()
                .filter(|(image, _)| wanted[image].prefetches.contains(number));
            let [needed, _, failed] = numbers(own.map(|(_, state)| state));
            desired += u64::from(needed > 0);
            complete += u64::from(needed > 0 && failed == 0);
            failing += u64::from(failed > 0);
        }
        assert!(desired <= NODES as u64);
        let status = &object["status"];
        let count = |field: &str| status["nodes"][field].as_u64().unwrap_or_default();
        let told = ["desired", "complete", "failing", "updating", "unknown"].map(count);
        let is = [desired, complete, failing, 0, 0];
        let images = planned
            .values()
            .filter(|one| one.prefetches.contains(number))
            .count();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready");
        let is_ready = ready.is_some_and(|ready| ready["status"] == "True");
        let is_latest = status["observedGeneration"] == object["metadata"]["generation"];
        if told != is
            || status["images"] != images as u64
            || is_ready != (failing == 0)
            || !is_latest
        {
            found.push(format!(
                "{}: {images} images; desired, complete, failing, updating and unknown nodes are {is:?}; the status tells {status}",
                name(*number)
            ));
        }
    }
    found
}
