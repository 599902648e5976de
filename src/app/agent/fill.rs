//! Fills the node while the runtime responds: plans whenever something has changed, pulls, compares with the runtime.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::Agent;
use super::connection::{self, Lost};
use super::retention::{self, Retention};
use super::secrets::{Secrets, Wanted};
use crate::app::node_run;
use crate::app::settings::SealSettings;
use crate::fill::{FillMode, FillingRuntime};
use crate::model::image_size::Usage;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::seal::SealPolicy;
use crate::model::text::sanitize;
use crate::planning::disk_budget::DiskBudget;
use crate::planning::plan::Moved;
use crate::planning::registry_probe::RegistryProbe;
use crate::pulling::continuous::{Feed, keep_pulling};
use crate::pulling::executor::{Event, Options};
use crate::retry::backoff::shortened;
use crate::runtime::containerd::Keep;
use crate::runtime::detect::Runtime;
use crate::runtime::image_service::ImageService;
use crate::runtime::sealing::SealingRuntime;

/// A burst of changes is planned for once.
const BURST: Duration = Duration::from_millis(100);
/// The lifetime of a seal, which the agent renews every hour.
const SEAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The time between two renewals of seals, and between two checks for tags that have moved.
const HOUR: Duration = Duration::from_secs(3600);
/// The time between the start and the first renewal.
const FIRST_RENEWAL: Duration = Duration::from_secs(60);
/// The shortest time between two comparisons with the runtime because of deleted images.
const AFTER_REMOVAL: Duration = Duration::from_secs(1);
/// The part of a time that is less as jitter.
const JITTER: f64 = 0.2;
/// The time between two reads of the disk usage, without pulls and with pulls.
const USAGE: Duration = Duration::from_secs(600);
const USAGE_BUSY: Duration = Duration::from_secs(30);

/// The pause before another check of a runtime that cannot be filled as `--fill fast` requires.
const NOT_READY: Duration = Duration::from_secs(60);

/// Fills the node until the runtime is lost.
pub(super) async fn fill(agent: &Agent, runtime: Runtime) -> Lost {
    let seals = SealSettings {
        policy: SealPolicy::Auto,
        lifetime: SEAL_LIFETIME,
    };
    let pull = &agent.settings.pull;
    let platform = agent.platform();
    let runtime = runtime.for_platform(&platform);
    let keep = Keep {
        by_agent: true,
        ..seals.keep(pull.pull_timeout)
    };
    let runtime = SealingRuntime::new(runtime, seals.policy, keep);
    let filling = FillingRuntime::new(runtime, agent.settings.fill);
    if agent.settings.fill == FillMode::Fast
        && let Err(error) = filling.require().await
    {
        sleep(NOT_READY).await;
        return Lost(error.to_string());
    }
    let runtime = filling.sealing();
    let probe = RegistryProbe::new(&agent.keyring, platform, pull.registry_concurrency);
    let options = Options {
        concurrency: pull.concurrency,
        registry_concurrency: pull.registry_concurrency,
        pull_timeout: pull.pull_timeout,
        deadline: None,
        retries: pull.retries,
        probe: Some(&probe),
    };
    let feed = Feed::default();
    let see = |event: Event<'_>| agent.see(&event);
    let pulling = async {
        let budget = budget(agent, runtime).await;
        let marks = agent.marks_in_use();
        keep_pulling(
            &feed,
            &filling,
            &agent.keyring,
            &options,
            budget,
            marks,
            &see,
        )
        .await
    };
    agent.checks.runtime.pass();
    runtime.resume(std::mem::take(&mut *agent.unsettled()));
    let lost = tokio::select! {
        lost = connection::until_lost(runtime.runtime()) => lost,
        never = Box::pin(pulling) => match never {},
        never = Box::pin(plan(agent, runtime, &feed)) => match never {},
        never = Box::pin(refresh(agent, &probe)) => match never {},
        never = Box::pin(renew(agent, runtime)) => match never {},
        never = Box::pin(settle(agent, runtime)) => match never {},
        never = Box::pin(measure(agent, runtime)) => match never {},
        never = Box::pin(retention::removals(agent, runtime)) => match never {},
    };
    *agent.unsettled() = runtime.unsettled();
    lost
}

/// The budget at the start. A store that does not tell its usage is asked again before each pull. Nothing is pulled while the
/// bytes of a percentage are not known.
async fn budget(agent: &Agent, runtime: &SealingRuntime) -> Option<DiskBudget> {
    let limit = agent.settings.disk_budget?;
    let budget = loop {
        match node_run::budget(Some(runtime), limit).await {
            Ok(bytes) => break bytes,
            Err(error) => warn!("pulling nothing: {}", sanitize(&format!("{error:#}"))),
        }
        sleep(shortened(agent.settings.resync, JITTER)).await;
    };
    let usage = runtime.usage().await.unwrap_or_else(|error| {
        warn!(
            "failed to get disk usage from the runtime: {}",
            sanitize(&error.message)
        );
        Usage::default()
    });
    Some(DiskBudget::new(budget, runtime.layer_storage(), usage))
}

/// Plans whenever something has changed, a slot is reached or the runtime is to be compared again.
async fn plan(agent: &Agent, runtime: &SealingRuntime, feed: &Feed) -> Infallible {
    let mut planner = Planner {
        agent,
        runtime,
        feed,
        secrets: Secrets::new(),
        wanted: None,
        retention: Retention::new(agent, runtime),
        files: agent.keyring.changes(),
        // Everything is checked at once.
        resync: Instant::now(),
        compared: None,
    };
    loop {
        if agent.state().can_decide() {
            planner.plan().await;
            agent.told.notify_one();
        }
        tokio::select! {
            () = agent.planned.notified() => sleep(BURST).await,
            // Until enough is known, only news matter.
            () = sleep_until(planner.next()), if agent.state().can_decide() => {}
        }
    }
}

struct Planner<'a> {
    agent: &'a Agent,
    runtime: &'a SealingRuntime,
    feed: &'a Feed,
    secrets: Secrets,
    /// The pull secrets of the images that the node needs; `None` before the first plan.
    wanted: Option<Wanted>,
    retention: Retention<'a>,
    /// Number of changes of the files with credentials, at the last plan.
    files: u64,
    /// The time of the next comparison with the runtime.
    resync: Instant,
    /// The time of the last one.
    compared: Option<Instant>,
}

impl Planner<'_> {
    async fn plan(&mut self) {
        let now = Instant::now();
        if std::mem::take(&mut self.agent.state().is_stale) {
            let earliest = self.compared.map_or(now, |at| at + AFTER_REMOVAL);
            self.resync = self.resync.min(earliest);
        }
        let is_due = now >= self.resync;
        if is_due {
            self.compared = Some(now);
            self.resync = now + shortened(self.agent.settings.resync, JITTER);
        }
        let (decided, references) = {
            let mut state = self.agent.state();
            let decided = state.decide();
            if decided.is_some() || self.wanted.is_none() {
                self.runtime.set_policies(state.seal_policies());
                self.wanted = Some(state.pull_secrets());
            }
            if std::mem::take(&mut state.is_refused) {
                self.secrets.refused();
            }
            (decided, state.references(is_due))
        };
        let mut retried = decided.unwrap_or_default();
        look_up(self.agent, self.runtime, &references).await;
        retried.extend(self.retention.keep(is_due).await);
        let Agent {
            cluster, keyring, ..
        } = self.agent;
        let wanted = self.wanted.get_or_insert_default();
        let changed = self.secrets.follow(cluster, keyring, wanted).await;
        retried.extend(changed.iter().map(ToString::to_string));
        let files = keyring.changes();
        let mut state = self.agent.state();
        if files != std::mem::replace(&mut self.files, files) {
            retried.extend(state.failed());
        }
        state.secret_problems = self.secrets.problems();
        state.end_first_fill();
        self.feed.set(state.plan(SystemTime::now(), Instant::now()));
        drop(state);
        self.feed.retry(retried);
    }

    /// The time of the next plan without any news.
    fn next(&self) -> Instant {
        let start = self.agent.state();
        let start = start.next_start(SystemTime::now(), Instant::now());
        let start = start.map(|left| Instant::now() + left);
        let next = start.into_iter().chain(self.secrets.next()).min();
        next.map_or(self.resync, |next| next.min(self.resync))
    }
}

/// Asks the runtime about these images.
async fn look_up(agent: &Agent, runtime: &SealingRuntime, references: &[Reference]) {
    if references.is_empty() {
        return;
    }
    let asked = Instant::now();
    let found = runtime
        .statuses(&references.iter().collect::<Vec<_>>())
        .await;
    agent.state().looked_up(references, found, asked);
}

/// Looks for tags that have moved.
async fn refresh(agent: &Agent, probe: &RegistryProbe<'_>) -> Infallible {
    loop {
        sleep(shortened(HOUR, JITTER)).await;
        let movable = agent.state().movable();
        let moved = probe
            .moved(movable.iter().map(|(image, stored)| (image, stored)))
            .await;
        for (image, moved) in moved {
            match moved {
                Moved::Yes(how) => {
                    info!(image, "{how}");
                    agent.state().moved(&image, how);
                    agent.planned.notify_one();
                }
                Moved::Unknown(unknown) => warn!(
                    image,
                    "failed to check whether the tag has moved: {}",
                    sanitize(&unknown.message)
                ),
                Moved::No => {}
            }
        }
    }
}

/// Renews the seals of the images that the node needs. Those of other images expire.
async fn renew(agent: &Agent, runtime: &SealingRuntime) -> Infallible {
    sleep(FIRST_RENEWAL).await;
    loop {
        let mut sealed = agent.state().protected_by_seals();
        sealed.retain(|image| agent.marks().may_protect(image.normalized()));
        runtime.renew(&sealed.iter().collect::<Vec<_>>()).await;
        sleep(shortened(HOUR, JITTER)).await;
    }
}

/// Removes the names that pulls through the CRI have made of sealed images.
async fn settle(agent: &Agent, runtime: &SealingRuntime) -> Infallible {
    loop {
        runtime.settle().await;
        if !runtime.forget_kept() {
            agent.sealed.notified().await;
        }
    }
}

/// Reads how much of the disk the images use.
async fn measure(agent: &Agent, runtime: &SealingRuntime) -> Infallible {
    loop {
        match runtime.usage().await {
            Ok(usage) => agent.state().used(&usage),
            Err(error) => tracing::debug!("failed to get disk usage: {}", sanitize(&error.message)),
        }
        agent.told.notify_one();
        sleep(USAGE_BUSY).await;
        tokio::select! {
            () = agent.pulled.notified() => {}
            () = sleep(shortened(USAGE, JITTER)) => {}
        }
    }
}

impl Agent {
    /// The platform of the node's images.
    fn platform(&self) -> Platform {
        let state = self.state();
        let node = state
            .node
            .as_ref()
            .and_then(|node| node.facts.platform.clone());
        let given = self.settings.runtime.platform.clone();
        given.or(node).unwrap_or_else(Platform::current)
    }

    /// Takes note of an event of the pulls.
    fn see(&self, event: &Event<'_>) {
        match event {
            Event::Started { image, .. } => self.state().started(image),
            Event::Retrying {
                image, error, wait, ..
            } => {
                tracing::debug!(image, ?wait, "retrying: {}", sanitize(&error.message));
                self.metrics.pull_retried(error.kind);
                self.state().retrying(image, error.kind, &error.message);
            }
            Event::Finished { report, .. } => self.see_finished(report),
        }
        self.told.notify_one();
    }

    fn see_finished(&self, report: &ImageReport) {
        self.state().finished(report, Instant::now());
        let image: &Arc<str> = &report.image;
        if report.outcome == Outcome::Pulled {
            let seconds = report.seconds.unwrap_or(0.0);
            info!(%image, sealed = report.is_sealed, "pulled in {seconds:.1} s");
            let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            self.metrics.pulled(duration, report.bytes);
            self.pulled.notify_one();
            if report.is_sealed {
                self.sealed.notify_one();
            }
        } else {
            let reason = report.reason.map_or("", Reason::as_str);
            let message = sanitize(report.message.as_deref().unwrap_or_default());
            warn!(%image, reason, "failed to pull: {message}");
            if let Some(Reason::Failure(kind)) = report.reason {
                self.metrics.pull_failed(kind);
            }
        }
        // A refusal may be due to a secret that has changed; a pulled image is looked at again.
        self.planned.notify_one();
    }
}
