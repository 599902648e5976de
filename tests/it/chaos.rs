//! A cluster of three nodes that changes at random while its parts are killed, stopped, cut off and filled up: at the end the
//! state equals the plan, the statuses are true, and nothing has leaked.
//!
//! `make test` makes some changes in half a minute, `make chaos` 200 in ten minutes. `SEED` repeats the steps of a run, `CHANGES`
//! and `MINUTES` say how many there are and how long they take.
//!
//! | file | does |
//! | --- | --- |
//! | `world.rs` | what people ask for, and what follows from it; pure |
//! | `schedule.rs` | the steps, from the seed; pure |
//! | `actors.rs`, `registry.rs`, `link.rs` | the daemons, the programs and the connections between them |
//! | `checks.rs` | compares plan, nodes and statuses with what is asked for |
//! | `leaks.rs` | compares what is left with nothing |
#![expect(
    clippy::print_stderr,
    reason = "the seed and the steps, for who asks with --nocapture"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

mod actors;
mod checks;
mod leaks;
mod link;
mod registry;
mod schedule;
mod world;

use actors::Cast;
use checks::{Allowed, differences};
use schedule::{Action, schedule};
use world::{Change, IMAGES, PREFETCHES, PRIVATE, Policy, Prefetch, Source, World};

/// The time in which everything settles: longer than the pause after a failed pull, and the time after which the standby leads.
const SETTLED: Duration = Duration::from_secs(200);

/// A run of so long waits until all failures are over. A short one has new agents before.
const LONG: Duration = Duration::from_secs(120);

/// The run that is asked for.
#[derive(Debug, Clone, Copy)]
struct Run {
    seed: u64,
    changes: usize,
    /// The time of all changes.
    time: Duration,
}

/// A run in progress.
struct Play {
    run: Run,
    cast: Cast,
    world: World,
    began: Instant,
    done: Vec<String>,
    /// The descriptors of each containerd at the start.
    descriptors: Vec<usize>,
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable)
        .ok()
        .filter(|text| !text.is_empty())?;
    let parsed = text.parse().ok();
    Some(parsed.unwrap_or_else(|| panic!("{variable}={text} is not a number")))
}

impl Run {
    fn from_environment() -> Self {
        let seconds = number("MINUTES").map_or(20.0, |minutes: f64| minutes * 60.0);
        Self {
            seed: number("SEED").unwrap_or_else(|| fastrand::u64(..1_000_000)),
            changes: number("CHANGES").unwrap_or(50),
            time: Duration::from_secs_f64(seconds),
        }
    }

    /// The command that repeats it.
    fn again(self) -> String {
        let minutes = self.time.as_secs_f64() / 60.0;
        format!(
            "make chaos SEED={} CHANGES={} MINUTES={minutes:.2}",
            self.seed, self.changes
        )
    }
}

impl Play {
    fn start(run: Run) -> Self {
        let world = World::new();
        let cast = Cast::start(run.seed, &world);
        let descriptors = leaks::of_daemons(&cast);
        Self {
            run,
            cast,
            world,
            began: Instant::now(),
            done: Vec::new(),
            descriptors,
        }
    }

    fn note(&mut self, what: &str) {
        let line = format!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.done.push(line);
    }

    /// Does all steps of the schedule, each not before its time.
    fn perform(&mut self) {
        let began = Instant::now();
        let pace = self.run.time / u32::try_from(self.run.changes.max(1)).unwrap();
        let mut late = Duration::ZERO;
        for step in schedule(self.run.seed, self.run.changes) {
            let at = pace * u32::try_from(step.at).unwrap() + late;
            std::thread::sleep(at.saturating_sub(began.elapsed()));
            self.note(&format!("{:?}", step.action));
            self.cast.check();
            let before = began.elapsed();
            match &step.action {
                Action::Settle => self.settle(Allowed::Removed),
                action => self.cast.act(action),
            }
            if matches!(step.action, Action::Settle | Action::RestartApi) {
                late += began.elapsed() - before;
            }
            if let Action::Ask(change) = &step.action {
                self.world.apply(change);
            }
        }
    }

    fn ask(&mut self, change: &Change) {
        self.note(&format!("{change:?}"));
        self.cast.ask(change);
        self.world.apply(change);
    }

    /// Waits until all is as asked for.
    #[track_caller]
    fn settle(&mut self, allowed: Allowed) {
        let began = Instant::now();
        loop {
            self.cast.check();
            let found = differences(&self.cast, &self.world, allowed);
            if found.is_empty() {
                break;
            }
            assert!(
                began.elapsed() < SETTLED,
                "not within {SETTLED:?}:\n{}\n{:#?}",
                found.join("\n"),
                self.world
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        self.note(&format!(
            "as asked for after {:.1?}, except for {allowed:?}",
            began.elapsed()
        ));
    }

    /// New agents, which know nothing of what was removed, complete everything.
    fn complete(&mut self) {
        self.cast
            .agents
            .iter_mut()
            .for_each(actors::Program::restart);
        for (number, images) in [(0, PRIVATE..IMAGES), (1, 0..PRIVATE)] {
            let all = Prefetch {
                is_sealed: images.start == 0,
                source: Source::Images(images.collect()),
                pool: None,
                policy: Policy::Keep,
                is_immediate: true,
            };
            self.ask(&Change::Prefetch(number, Some(all)));
        }
        self.settle(Allowed::Nothing);
        leaks::downloads(&self.cast);
    }

    /// Nobody asks for anything any more: everything goes.
    fn clear(&mut self) {
        for number in 0..PREFETCHES {
            self.ask(&Change::Prefetch(number, None));
        }
        self.settle(Allowed::Nothing);
        let programs = self.cast.agents.iter_mut();
        for program in programs.chain(&mut self.cast.controllers) {
            program.end();
        }
        leaks::nodes(&self.cast);
    }

    /// Writes the logs to files; returns their directory.
    fn write_logs(&self) -> PathBuf {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos");
        let write = |name: &str, text: String| {
            let _ = std::fs::write(directory.join(name).with_extension("log"), text);
        };
        let _ = std::fs::create_dir_all(&directory);
        self.cast
            .programs()
            .for_each(|program| write(&program.name, program.log()));
        for node in &self.cast.nodes {
            write(&format!("containerd-{}", node.name), node.containerd.log());
        }
        write("registry", self.cast.store.log());
        write("apiserver", self.cast.cluster.log());
        write("steps", self.done.join("\n"));
        directory
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let directory = self.write_logs();
            eprintln!(
                "failed: {}; the logs are in {}",
                self.run.again(),
                directory.display()
            );
        }
    }
}

#[test]
fn state_equals_plan_after_chaos() {
    let run = Run::from_environment();
    eprintln!("{}", run.again());
    let mut play = Play::start(run);
    play.settle(Allowed::Nothing);
    play.perform();
    if run.time >= LONG {
        play.settle(Allowed::Evicted);
    }
    leaks::processes(&play.cast, &play.descriptors);
    play.complete();
    play.clear();
    let requests = play.cast.store.requests();
    play.note(&format!(
        "nothing is left; {requests} requests to the registry; {}",
        run.again()
    ));
}
