//! Random changes of the plan, evictions and restarts on a real API server and containerd: what the agent protects equals the plan
//! at the end. `HARPOON_CHANGES` is the number of changes, `HARPOON_SEED` repeats those of a run.
#![expect(
    clippy::print_stderr,
    reason = "the figures, for who asks with --nocapture"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::retention::PIN;
use super::*;
use crate::bed::Registry;
use crate::pins::{Named, evict, names, own, pull};

/// Two tags of each repository, which can have the same content.
const TAGS: usize = 6;
/// Contents that each repository can have.
const CONTENTS: usize = 2;
/// Changes between two comparisons of the node with the plan.
const BATCH: usize = 20;
/// After a failure the agent pauses for up to so long.
const SETTLED: Duration = Duration::from_secs(120);

/// An image of the plan.
#[derive(Debug, Clone)]
struct Wanted {
    object: String,
    policy: &'static str,
    seal: &'static str,
    /// False once no prefetch uses it: it is protected, but not pulled.
    is_used: bool,
}

/// The node and its plan.
struct History<'a> {
    machine: Machine<'a>,
    containerd: &'static Containerd,
    registry: &'static Registry,
    images: Vec<String>,
    plan: BTreeMap<String, Wanted>,
    agent: Option<Running>,
    random: fastrand::Rng,
    done: Vec<String>,
}

impl History<'_> {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    /// One random change.
    fn happen(&mut self) {
        let number = self.random.usize(..self.images.len());
        let image = self.images[number].clone();
        let what = match self.random.u8(..100) {
            0..30 => self.replan(&image),
            30..40 => self.unplan(&image),
            40..55 => {
                evict(self.containerd, &image);
                "evicted".to_owned()
            }
            55..63 => {
                self.publish(number);
                pull(self.containerd, &image);
                "moved and pulled by the kubelet".to_owned()
            }
            63..68 => {
                self.publish(number);
                "moved".to_owned()
            }
            68..76 => {
                pull(self.containerd, &image);
                "pulled by the kubelet".to_owned()
            }
            76..86 => self.meddle(),
            86..95 => {
                self.kill();
                self.start();
                "agent killed".to_owned()
            }
            _ => {
                self.containerd.restart();
                "containerd restarted".to_owned()
            }
        };
        self.done.push(format!("{image}: {what}"));
        let pause = self.random.u64(..600);
        std::thread::sleep(Duration::from_millis(pause));
    }

    /// Plans the image, or plans it otherwise.
    fn replan(&mut self, image: &str) -> String {
        let wanted = Wanted {
            object: String::new(),
            policy: self.pick(&["None", "Keep", PIN, PIN]),
            seal: self.pick(&["Never", "Never", "Always"]),
            is_used: self.random.u8(..5) > 0,
        };
        let told = format!("{wanted:?}");
        let object = match self.plan.get(image) {
            Some(known) => known.object.clone(),
            None => self.machine.plan(image, &json!({})),
        };
        let prefetches = match wanted.is_used {
            true => json!([self.machine.name]),
            false => json!([]),
        };
        let spec = json!({"prefetches": prefetches, "seal": wanted.seal, "retention": {"policy": wanted.policy}});
        cluster().patch(
            &format!("{API}/plannedimages/{object}"),
            json!({"spec": spec}),
        );
        self.plan
            .insert(image.to_owned(), Wanted { object, ..wanted });
        told
    }

    fn unplan(&mut self, image: &str) -> String {
        if let Some(wanted) = self.plan.remove(image) {
            unplan(cluster(), &wanted.object);
        }
        "left the plan".to_owned()
    }

    /// Somebody removes a name or a label of it.
    fn meddle(&mut self) -> String {
        let all: Vec<_> = names(self.containerd).into_keys().collect();
        let Some(name) = self.random.choice(all) else {
            return String::new();
        };
        if self.random.bool() {
            self.containerd.remove(&name);
            return format!("removed the name {name}");
        }
        // The agent may have removed the name meanwhile.
        let label = ["images", "label", &name, "io.cri-containerd.pinned="];
        self.containerd.client(&label).output().unwrap();
        format!("unpinned {name}")
    }

    /// Pushes one of the contents under the tag.
    fn publish(&mut self, number: usize) {
        let (_, name) = self.images[number].split_once('/').unwrap();
        let (repository, _) = name.rsplit_once(':').unwrap();
        let seed = format!("{repository}-{}", self.random.usize(..CONTENTS));
        self.registry.image(name).seed(&seed).push();
    }

    fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.signal(Signal::KILL);
        }
    }

    fn start(&mut self) {
        self.agent = Some(self.machine.resyncing("1s").start());
    }

    /// The images that wait because they were removed repeatedly.
    fn resting(&self) -> BTreeSet<String> {
        let failures = self.machine.status()["failures"].clone();
        let failures = failures.as_array().cloned().unwrap_or_default();
        let resting = failures.iter().filter(|f| f["reason"] == "evicted");
        resting
            .map(|failure| failure["image"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The differences from the plan; empty if nothing does. Resting images need not be there.
    fn differences(&self, resting: &BTreeSet<String>, may_be_removed: bool) -> String {
        let names = names(self.containerd);
        let seals = seals(self.containerd);
        let mut found = String::new();
        for image in seals.keys().filter(|image| !self.plan.contains_key(*image)) {
            writeln!(found, "{image} is sealed, but not planned").unwrap();
        }
        for (image, wanted) in &self.plan {
            let seals = seals.get(image).map_or(&[][..], Vec::as_slice);
            let is_left = resting.contains(image) || (may_be_removed && wanted.policy == "None");
            let may_be_gone = !wanted.is_used || is_left;
            let is_right = match (wanted.seal, seals) {
                // An image that nobody uses keeps the seal that it had.
                (_, [_]) if !wanted.is_used => true,
                ("Always", [digest]) => {
                    let named = names.get(image);
                    named.is_none_or(|named| named.target() == digest)
                }
                ("Always", []) => may_be_gone,
                // It waits to be pulled under its name.
                ("Never", [_]) => resting.contains(image),
                ("Never", []) => names.contains_key(image) || may_be_gone,
                _ => false,
            };
            if !is_right {
                writeln!(found, "{image}: {wanted:?} has the seals {seals:?}").unwrap();
            }
        }
        let is_pinned = |image: &String| {
            let is_sealed = |named: &Named| {
                let seals = seals.get(image);
                seals.is_some_and(|seals| seals.iter().any(|digest| digest == named.target()))
            };
            let wanted = self.plan.get(image)?;
            let named = names.get(image)?;
            let is_pinned = wanted.policy == PIN && !(wanted.is_used && is_sealed(named));
            is_pinned.then(|| named.target())
        };
        let targets: BTreeSet<_> = self.images.iter().filter_map(is_pinned).collect();
        for (name, named) in &names {
            let is_wanted = targets.contains(named.target());
            if named.is_pinned != is_wanted || named.is_marked != is_wanted {
                writeln!(found, "{name}: {named:?}, to be pinned: {is_wanted}").unwrap();
            }
        }
        found
    }

    /// Waits until the node is as planned. To a new agent nothing was removed.
    #[track_caller]
    fn settle(&self, is_new: bool) {
        let end = Instant::now() + SETTLED;
        loop {
            // What was removed rests after the second time, or stays removed.
            let resting = match is_new {
                true => BTreeSet::new(),
                false => self.resting(),
            };
            let found = self.differences(&resting, !is_new);
            if found.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "{found}after {}\nstatus {}\n{}",
                self.done[self.done.len().saturating_sub(30)..].join("\n"),
                self.machine.status(),
                self.agent
                    .as_ref()
                    .map_or_else(String::new, Running::stderr)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The digests of the seals of each image.
pub(crate) fn seals(containerd: &Containerd) -> BTreeMap<String, Vec<String>> {
    let mut seals: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let list = containerd.ctr(&["leases", "list"]);
    for line in list.lines().skip(1) {
        let labels = line.split_whitespace().last().unwrap_or_default();
        let label = |key: &str| labels.split(',').find_map(|label| label.strip_prefix(key));
        if let (Some(image), Some(digest)) =
            (label("harpoon.dev/image="), label("harpoon.dev/digest="))
        {
            seals
                .entry(image.to_owned())
                .or_default()
                .push(digest.to_owned());
        }
    }
    seals
}

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

#[test]
fn protection_equals_plan_after_any_changes() {
    let containerd = own();
    let registry: &'static Registry = Box::leak(Box::new(Registry::start()));
    let repository = unique("changes");
    let image = |number: usize| {
        let name = format!("{repository}-{}:{}", number / 2, number % 2);
        registry.reference(&name)
    };
    let seed = number("HARPOON_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut history = History {
        machine: Machine::new(cluster(), containerd),
        containerd,
        registry,
        images: (0..TAGS).map(image).collect(),
        plan: BTreeMap::new(),
        agent: None,
        random: fastrand::Rng::with_seed(seed),
        done: vec![format!("seed {seed}")],
    };
    (0..TAGS).for_each(|number| history.publish(number));
    history.start();
    let changes = number("HARPOON_CHANGES").unwrap_or(40);
    let began = Instant::now();
    for change in 1..=usize::try_from(changes).unwrap() {
        history.happen();
        if change % BATCH == 0 {
            history.settle(false);
        }
    }
    // A new agent knows nothing of earlier evictions.
    history.kill();
    history.start();
    history.settle(true);
    eprintln!("{changes} changes (seed {seed}) in {:.0?}", began.elapsed());
    history.kill();
}
