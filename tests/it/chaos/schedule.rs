//! The sequence of changes and troubles: it depends on the seed and the number of changes alone. Pure.

use std::collections::BTreeMap;

use super::world::{
    Change, IMAGES, NODES, PREFETCHES, PRIVATE, Policy, Pool, Prefetch, Source, WORKLOADS,
    Workload, World,
};

/// Number of controllers.
pub(super) const CONTROLLERS: usize = 2;
/// Changes between two comparisons of everything with the plan.
const SETTLE: usize = 50;
/// The most troubles at once.
const TROUBLES: usize = 3;
/// The shortest and the longest trouble, in changes.
const LASTS: std::ops::RangeInclusive<usize> = 2..=12;

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Process {
    Agent(usize),
    Controller(usize),
    Containerd(usize),
}

/// The way in which a connection to the API server is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Connections are closed.
    Closed,
    /// Nothing arrives.
    Silent,
}

/// The behaviour of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    /// Some requests fail, are cut off or late.
    Flaky,
    Away,
    /// The rate is limited.
    Limiting,
    Slow,
    /// No blob arrives until it is over.
    Silent,
}

/// Something that is wrong for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Killed, and started at the end.
    Killed(Process),
    /// Stopped, and continued at the end.
    Stopped(Process),
    /// The agent or controller does not reach the API server.
    CutOff(Process, Cut),
    Registry(Mood),
    /// The disk of the last node is used to this percentage.
    Full(u8),
}

/// The part that a trouble concerns: each has one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Process(Process),
    Link(Process),
    Registry,
    Disk,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Ask(Change),
    /// Another party removes the name of an image.
    Untag(usize, usize),
    /// The kubelet evicts an image, with all its names.
    Evict(usize, usize),
    /// The kubelet pulls an image.
    Pull(usize, usize),
    /// Another party removes the label that pins an image.
    Unpin(usize, usize),
    Begin(Trouble),
    End(Trouble),
    /// The API server is killed and started.
    RestartApi,
    /// Everything is waited for, without any trouble.
    Settle,
}

/// A step, and the number of changes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) at: usize,
    pub(super) action: Action,
}

impl Trouble {
    fn place(self) -> Place {
        match self {
            Self::Killed(process) | Self::Stopped(process) => Place::Process(process),
            Self::CutOff(process, _) => Place::Link(process),
            Self::Registry(_) => Place::Registry,
            Self::Full(_) => Place::Disk,
        }
    }
}

/// The steps of so many changes, which end with a [`Action::Settle`].
pub(super) fn schedule(seed: u64, changes: usize) -> Vec<Step> {
    let mut director = Director {
        random: fastrand::Rng::with_seed(seed),
        world: World::new(),
        troubles: BTreeMap::new(),
        steps: Vec::new(),
        now: 0,
    };
    for now in 0..changes {
        director.now = now;
        // The last comparison is soon enough.
        if now > 0 && now % SETTLE == 0 && changes - now >= SETTLE / 2 {
            director.settle();
        }
        director.end(|until| until <= now);
        director.trouble();
        director.change();
    }
    director.now = changes;
    director.settle();
    director.steps
}

struct Director {
    random: fastrand::Rng,
    world: World,
    /// Those that have not ended, with their ends.
    troubles: BTreeMap<Place, (Trouble, usize)>,
    steps: Vec<Step>,
    now: usize,
}

impl Director {
    fn push(&mut self, action: Action) {
        let at = self.now;
        self.steps.push(Step { at, action });
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    /// Ends the troubles whose end is so.
    fn end(&mut self, is_over: impl Fn(usize) -> bool) {
        let troubles = self.troubles.values();
        let over: Vec<_> = troubles
            .filter(|(_, until)| is_over(*until))
            .map(|(trouble, _)| *trouble)
            .collect();
        for trouble in over {
            self.troubles.remove(&trouble.place());
            self.push(Action::End(trouble));
        }
    }

    fn settle(&mut self) {
        self.end(|_| true);
        self.push(Action::Settle);
    }

    /// Begins a trouble, or none.
    fn trouble(&mut self) {
        if self.troubles.len() >= TROUBLES || self.random.u8(..100) >= 45 {
            return;
        }
        if self.random.u8(..100) < 2 {
            return self.push(Action::RestartApi);
        }
        let trouble = self.any_trouble();
        let place = trouble.place();
        if self.troubles.contains_key(&place) {
            return;
        }
        let until = self.now + self.random.usize(LASTS);
        self.troubles.insert(place, (trouble, until));
        self.push(Action::Begin(trouble));
    }

    fn any_trouble(&mut self) -> Trouble {
        let node = self.random.usize(..NODES);
        let controller = self.random.usize(..CONTROLLERS);
        let mut ours = [Process::Agent(node), Process::Agent(node)];
        ours[1] = Process::Controller(controller);
        let ours = self.pick(&ours);
        let any = match self.random.u8(..3) {
            0 => Process::Containerd(node),
            _ => ours,
        };
        match self.random.u8(..100) {
            0..30 => Trouble::Killed(any),
            30..50 => Trouble::Stopped(any),
            50..70 => Trouble::CutOff(ours, self.pick(&[Cut::Closed, Cut::Silent])),
            70..88 => {
                let moods = [
                    Mood::Flaky,
                    Mood::Flaky,
                    Mood::Away,
                    Mood::Limiting,
                    Mood::Slow,
                    Mood::Silent,
                ];
                Trouble::Registry(self.pick(&moods))
            }
            _ => Trouble::Full(self.pick(&[83, 90, 100])),
        }
    }

    fn change(&mut self) {
        let node = self.random.usize(..NODES);
        let image = self.random.usize(..IMAGES);
        let named = self.random.usize(PRIVATE..IMAGES);
        let can_ask = !self
            .troubles
            .contains_key(&Place::Process(Process::Containerd(node)));
        let can_pull = can_ask && !self.troubles.contains_key(&Place::Registry);
        let action = match self.random.u8(..100) {
            0..10 if can_ask => Action::Untag(node, image),
            10..22 if can_ask => Action::Evict(node, image),
            22..30 if can_pull => Action::Pull(node, named),
            30..36 if can_ask => Action::Unpin(node, named),
            36..46 => Action::Ask(Change::Label(node, self.pick(&[Pool::Blue, Pool::Green]))),
            46..62 => Action::Ask(self.workload()),
            _ => Action::Ask(self.prefetch()),
        };
        if let Action::Ask(change) = &action {
            self.world.apply(change);
        }
        self.push(action);
    }

    fn pool(&mut self) -> Option<Pool> {
        self.pick(&[None, None, Some(Pool::Blue), Some(Pool::Green)])
    }

    fn workload(&mut self) -> Change {
        let number = self.random.usize(..WORKLOADS);
        let workload = Workload {
            image: self.random.usize(PRIVATE..IMAGES),
            pool: self.pool(),
        };
        let is_deleted = self.world.workloads.contains_key(&number) && self.random.u8(..4) == 0;
        Change::Workload(number, (!is_deleted).then_some(workload))
    }

    fn prefetch(&mut self) -> Change {
        let number = self.random.usize(..PREFETCHES);
        let is_sealed = self.random.u8(..3) == 0;
        let least = if is_sealed { 0 } else { PRIVATE };
        let mut images: Vec<_> = (least..IMAGES).collect();
        self.random.shuffle(&mut images);
        images.truncate(self.random.usize(1..=5));
        let source = match !is_sealed && self.random.u8(..3) == 0 {
            true => Source::Workloads,
            false => Source::Images(images.into_iter().collect()),
        };
        let prefetch = Prefetch {
            source,
            pool: self.pool(),
            policy: self.pick(&[Policy::None, Policy::Keep, Policy::Pin]),
            is_sealed,
            is_immediate: self.random.bool(),
        };
        let is_deleted = self.world.prefetches.contains_key(&number) && self.random.u8(..4) == 0;
        Change::Prefetch(number, (!is_deleted).then_some(prefetch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_alone_decides_the_steps() {
        assert_eq!(schedule(7, 120), schedule(7, 120));
        assert_ne!(schedule(7, 120), schedule(8, 120));
    }

    #[test]
    fn every_change_has_one_step() {
        for seed in 0..50 {
            let steps = schedule(seed, 73);
            let of = |at| {
                let now = steps.iter().filter(move |step| step.at == at);
                now.filter(|step| {
                    !matches!(
                        step.action,
                        Action::Begin(_) | Action::End(_) | Action::Settle | Action::RestartApi
                    )
                })
            };
            assert!((0..73).all(|at| of(at).count() == 1), "seed {seed}");
            assert!(steps.iter().is_sorted_by_key(|step| step.at));
            assert_eq!(steps.last().unwrap().at, 73);
        }
    }

    #[test]
    fn troubles_end_and_never_collide() {
        for seed in 0..50 {
            let mut open: Vec<Trouble> = Vec::new();
            for Step { at, action } in schedule(seed, 200) {
                let is_asked = |node| {
                    let process = Place::Process(Process::Containerd(node));
                    open.iter().all(|trouble| trouble.place() != process)
                };
                match action {
                    Action::Begin(trouble) => {
                        assert!(open.iter().all(|other| other.place() != trouble.place()));
                        open.push(trouble);
                        assert!(open.len() <= TROUBLES);
                    }
                    Action::End(trouble) => {
                        let at = open.iter().position(|other| *other == trouble);
                        open.remove(at.unwrap());
                    }
                    Action::Settle => assert_eq!(open, [], "seed {seed} at {at}"),
                    Action::Untag(node, _)
                    | Action::Evict(node, _)
                    | Action::Pull(node, _)
                    | Action::Unpin(node, _) => assert!(is_asked(node), "seed {seed} at {at}"),
                    Action::Ask(_) | Action::RestartApi => {}
                }
            }
            assert_eq!(open, [], "seed {seed}");
        }
    }

    #[test]
    fn every_kind_of_step_comes() {
        let steps: String = (0..20)
            .flat_map(|seed| schedule(seed, 200))
            .map(|step| format!("{:?}\n", step.action))
            .collect();
        for kind in [
            "Begin(Killed(Agent",
            "Begin(Killed(Controller",
            "Begin(Killed(Containerd",
            "Begin(Stopped(Agent",
            "Begin(Stopped(Controller",
            "Begin(Stopped(Containerd",
            "Begin(CutOff(Agent(0), Closed",
            "Begin(CutOff(Controller(1), Silent",
            "Registry(Flaky",
            "Registry(Away",
            "Registry(Limiting",
            "Registry(Slow",
            "Registry(Silent",
            "Full(100",
            "RestartApi",
            "Settle",
            "Untag",
            "Evict",
            "Pull",
            "Unpin",
            "Label",
            "Workload(0, None)",
            "Prefetch(0, None)",
            "source: Workloads",
        ] {
            assert!(steps.contains(kind), "{kind}");
        }
    }
}
