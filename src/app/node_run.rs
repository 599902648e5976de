//! The steps that `run`, `pull` and `plan` share: querying the runtime, pulling, reporting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::app::candidates;
use crate::app::keyring;
use crate::app::settings::{
    PullSettings, RuntimeSettings, SealSettings, SettingError, StartSettings, StoreSettings,
};
use crate::app::shutdown::{End, GRACE, Interrupt, Interrupted, Shutdown};
use crate::app::start_delay;
use crate::credentials::keyring::Keyring;
use crate::discovery::Source;
use crate::fill::{FillMode, FillingRuntime};
use crate::model::candidate::Candidate;
use crate::model::failure::FailureKind;
use crate::model::image_size::{DiskLimit, LayerStorage, Size, Usage};
use crate::model::node_facts::NodeFacts;
use crate::model::outcome::ImageReport;
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::seal::SealPolicy;
use crate::model::text::{chain, sanitize};
use crate::planning::disk_budget::{DiskBudget, Tally};
use crate::planning::plan::{
    self, Action, Facts, Moved, Plan, Policy, Presence, Selection, Step, Unknown,
};
use crate::planning::registry_probe::RegistryProbe;
use crate::pulling::executor;
use crate::report::progress::{Screen, Watch};
use crate::report::{Report, text};
use crate::retry::polling::Polling;
use crate::runtime::detect::{FindError, Runtime, find};
use crate::runtime::image_fs::ImageFsError;
use crate::runtime::image_service::{ImageService, RuntimeError, RuntimeInfo};
use crate::runtime::sealing::SealingRuntime;

/// Error message when signal handlers cannot be installed.
pub(crate) const NO_SIGNALS: &str = "failed to listen for signals";
/// Time limit for a runtime to answer when it is detected.
const FIND_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for a runtime to come back while planning reads its disk usage.
const RESTART_LIMIT: Duration = Duration::from_secs(60);
/// The pauses between these attempts.
const RESTART_POLLING: Polling = Polling {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(5),
};

/// Runs a command's future to its end on a tokio runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    let result = runtime.block_on(work);
    // A blocking task, such as reading a page for an interrupted request, must not delay the exit.
    runtime.shutdown_background();
    result
}

/// Finds the runtime that the settings name, or the first that answers.
pub(crate) async fn find_runtime(settings: &RuntimeSettings) -> Result<Runtime, FindError> {
    let platform = settings.platform.clone().unwrap_or_else(Platform::current);
    let runtime = find(settings.endpoint.as_ref(), &platform, FIND_LIMIT).await?;
    let about = runtime.info();
    info!(
        endpoint = about.endpoint,
        "runtime: {} {}",
        sanitize(&about.name),
        sanitize(&about.version)
    );
    Ok(runtime)
}

/// Looks up a selection in the runtime. An image whose lookup fails counts as not present; the pull decides.
pub(crate) async fn presence(runtime: &SealingRuntime, selection: &Selection) -> Presence {
    let wanted: Vec<_> = selection.wanted().collect();
    let statuses = runtime.statuses(&wanted).await;
    let present = wanted
        .into_iter()
        .zip(statuses)
        .filter_map(|(image, status)| match status {
            Ok(stored) => stored.map(|stored| (selection.key(image).into_owned(), stored)),
            Err(error) => {
                warn!(
                    image = image.as_written(),
                    "failed to look up the image in the runtime: {}",
                    sanitize(&error.message)
                );
                None
            }
        });
    present.collect()
}

/// Usage of the runtime's store. An unreachable runtime is retried, since it may be restarting.
async fn usage(runtime: &SealingRuntime) -> Result<Usage, RuntimeError> {
    let deadline = tokio::time::Instant::now() + RESTART_LIMIT;
    let is_away = |error: &RuntimeError| error.kind == FailureKind::Unavailable;
    let tell = |error: &RuntimeError, pause| {
        warn!(
            "failed to get disk usage from the runtime, retrying in {}: {}",
            text::seconds(pause),
            sanitize(&error.message)
        );
    };
    RESTART_POLLING
        .ask(Some(deadline), || runtime.usage(), is_away, tell)
        .await
}

/// The lookups in the store and in registries before a plan is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Questions {
    pub(crate) store: StoreSettings,
    /// The sealing policy.
    pub(crate) seal: SealPolicy,
    /// True to look up image sizes even without a disk budget.
    pub(crate) sizes: bool,
}

impl Questions {
    /// Returns whether image sizes are looked up.
    pub(crate) fn need_sizes(self) -> bool {
        self.sizes || self.store.disk_budget.is_some()
    }

    /// Returns whether registries are queried.
    pub(crate) fn need_registries(self) -> bool {
        self.need_sizes() || self.store.refresh
    }
}

/// Makes the plan of the selection after the lookups, first in the runtime, then in registries. `sizes` are the sizes already
/// known.
///
/// No lookup starts after the end of the run. The plan is then made of the facts known so far: nothing of it is pulled, but the
/// report has to list all images.
///
/// # Errors
/// If there is a budget and the runtime does not report its disk usage.
pub(crate) async fn plan(
    selection: Selection,
    runtime: Option<&SealingRuntime>,
    questions: Questions,
    probe: &RegistryProbe<'_>,
    sizes: HashMap<String, Size>,
    end: End<'_>,
) -> Result<Plan> {
    let mut facts = Facts::default();
    if let Some(runtime) = runtime {
        let presence = end.before(presence(runtime, &selection)).await;
        facts.presence = presence.unwrap_or_default();
        facts.cannot_seal = runtime.cannot_seal();
    }
    facts.seals = seals(&selection, questions.seal, probe.keyring());
    if questions.store.refresh {
        let moved = end.before(moved(&selection, &facts.presence, probe)).await;
        facts.moved = moved.unwrap_or_default();
    }
    if questions.need_sizes()
        && let Ok(usage) = end.before(store(runtime, questions)).await
    {
        let (usage, budget) = usage?;
        facts.tally = Tally::new(usage.blobs.clone());
        // Without sizes no budget is enforced, which is safe since nothing is pulled any more.
        let asked = weigh(&selection, &facts, sizes, probe);
        if let Ok(sizes) = end.before(asked).await {
            let keeps = runtime.map_or(LayerStorage::Both, ImageService::layer_storage);
            facts.room = budget.map(|budget| DiskBudget::new(budget, keeps, usage));
            facts.sizes = sizes;
        }
    }
    Ok(against(selection, facts))
}

/// The images whose pulls will seal them, by normalised reference, each with the reason.
fn seals(
    selection: &Selection,
    policy: SealPolicy,
    keyring: &Keyring,
) -> HashMap<String, Arc<str>> {
    let always: Arc<str> = Arc::from("--seal always");
    let reason = |image: &Reference| match policy {
        SealPolicy::Never => None,
        SealPolicy::Always => Some(Arc::clone(&always)),
        SealPolicy::Auto => keyring.pull_secret(image),
    };
    let sealed = selection.wanted().filter_map(|image| {
        let reason = reason(image)?;
        Some((image.normalized().to_owned(), reason))
    });
    sealed.collect()
}

/// The present images whose tags have moved in their registries, by normalised reference.
async fn moved(
    selection: &Selection,
    presence: &Presence,
    probe: &RegistryProbe<'_>,
) -> HashMap<String, Moved> {
    let moved = probe.moved(selection.movable(presence)).await;
    for (name, moved) in &moved {
        if let Moved::Unknown(unknown) = moved {
            warn!(
                image = name,
                "failed to check whether the tag has moved: {}",
                sanitize(&unknown.message)
            );
        }
    }
    moved
}

/// The usage of the runtime's store, and the budget in bytes if there is one.
async fn store(
    runtime: Option<&SealingRuntime>,
    questions: Questions,
) -> Result<(Usage, Option<u64>)> {
    let usage = store_usage(runtime, questions).await?;
    let budget = match questions.store.disk_budget {
        Some(limit) => Some(budget(runtime, limit).await?),
        None => None,
    };
    Ok((usage, budget))
}

/// The budget in bytes.
///
/// # Errors
/// If it is a percentage, and the runtime's image store is not visible.
pub(crate) async fn budget(runtime: Option<&SealingRuntime>, limit: DiskLimit) -> Result<u64> {
    let percent = match limit {
        DiskLimit::Bytes(bytes) => return Ok(bytes),
        DiskLimit::Percent(percent) => percent,
    };
    let refused = |why: &str| SettingError::new("disk-budget", &format!("{percent}%"), why);
    let Some(runtime) = runtime else {
        return Err(refused("a percentage requires a container runtime").into());
    };
    match runtime.image_fs().await {
        Ok(fs) => Ok(fs.percent(percent)),
        Err(ImageFsError::Runtime(error)) => Err(error).context(
            "failed to get the image file system from the runtime; cannot enforce --disk-budget",
        ),
        Err(error) => Err(refused(&chain(&error)).into()),
    }
}

/// Usage of the runtime's store; `None` without a runtime, or if it does not report its usage and there is no budget.
async fn store_usage(runtime: Option<&SealingRuntime>, questions: Questions) -> Result<Usage> {
    let Some(runtime) = runtime else {
        return Ok(Usage::default());
    };
    match usage(runtime).await {
        Ok(usage) => Ok(usage),
        Err(error) if questions.store.disk_budget.is_none() => {
            warn!(
                "failed to get disk usage from the runtime: {}",
                sanitize(&error.message)
            );
            Ok(Usage::default())
        }
        Err(error) => Err(error)
            .context("failed to get disk usage from the runtime; cannot enforce --disk-budget"),
    }
}

/// Sizes of the images that are not present or have moved, by normalised reference: known sizes first, the others from
/// registries.
async fn weigh(
    selection: &Selection,
    facts: &Facts,
    mut known: HashMap<String, Size>,
    probe: &RegistryProbe<'_>,
) -> HashMap<String, Result<Size, Unknown>> {
    let present = |image: &Reference| facts.presence.contains_key(&*selection.key(image));
    // The size that a Node reports for a moved tag may be that of the previous image.
    for image in selection.wanted().filter(|image| present(image)) {
        known.remove(image.normalized());
    }
    let coming = selection.wanted().filter(|image| {
        let name = image.normalized();
        let moved = matches!(facts.moved.get(name), Some(Moved::Yes(_)));
        !known.contains_key(name) && (moved || !present(image))
    });
    let mut sizes = probe.sizes(coming).await;
    sizes.extend(known.into_iter().map(|(name, size)| (name, Ok(size))));
    sizes
}

/// [`plan::select`] for this runtime; logs the duration at debug level.
pub(crate) fn select(
    candidates: Vec<Candidate>,
    policy: &Policy,
    runtime: Option<&SealingRuntime>,
) -> Selection {
    let (count, began) = (candidates.len(), Instant::now());
    let policy = Policy {
        short_names_apart: runtime.is_some_and(|runtime| runtime.info().searches_registries()),
        ..policy.clone()
    };
    let selection = plan::select(candidates, &policy);
    debug!(
        "selected from {count} candidates in {} µs",
        began.elapsed().as_micros()
    );
    selection
}

/// [`Selection::against`]; logs the duration at debug level.
fn against(selection: Selection, facts: Facts) -> Plan {
    let began = Instant::now();
    let plan = selection.against(facts);
    debug!(
        "planned {} images in {} µs",
        plan.images().len(),
        began.elapsed().as_micros()
    );
    plan
}

/// A finished run.
pub(crate) struct Ended {
    /// The report of all images.
    pub(crate) report: Report,
    /// The signal that ended it, if one did.
    pub(crate) interrupt: Option<Interrupt>,
}

/// The settings of a command that pulls, except for the source of candidates.
pub(crate) struct Settings {
    pub(crate) runtime: RuntimeSettings,
    pub(crate) store: StoreSettings,
    pub(crate) seal: SealSettings,
    /// Method of fetching and unpacking images.
    pub(crate) fill: FillMode,
    pub(crate) pull: PullSettings,
    /// The name of this node.
    pub(crate) node: Option<String>,
}

/// A command that pulls.
pub(crate) struct Run {
    settings: Settings,
    keyring: Keyring,
    screen: Screen,
    started: Instant,
}

impl Run {
    /// A run that began at `started`; progress is shown on the screen.
    pub(crate) fn new(
        settings: Settings,
        keyring: Keyring,
        screen: Screen,
        started: Instant,
    ) -> Self {
        Self {
            settings,
            keyring,
            screen,
            started,
        }
    }

    /// The whole flow, or until a signal.
    pub(crate) async fn main(
        self,
        source: impl Future<Output = Result<Source>>,
        start: &StartSettings,
        policy: &Policy,
    ) -> Result<Ended> {
        let shutdown = Shutdown::on_signal(Some(GRACE)).context(NO_SIGNALS)?;
        Box::pin(self.until(&shutdown, source, start, policy)).await
    }

    /// The whole flow, or until the request to stop. A request before there is a plan still produces a report.
    pub(crate) async fn until(
        mut self,
        shutdown: &Shutdown,
        source: impl Future<Output = Result<Source>>,
        start: &StartSettings,
        policy: &Policy,
    ) -> Result<Ended> {
        let mut found = None;
        let report = match self
            .until_done(source, start, policy, shutdown, &mut found)
            .await
        {
            Ok(report) => report,
            Err(error) => match error.downcast_ref() {
                Some(interrupted @ Interrupted(_)) => Report {
                    runtime: found,
                    node: self.settings.node.clone(),
                    error: Some(format!("{interrupted} before images were discovered")),
                    images: Vec::new(),
                    elapsed: self.started.elapsed(),
                },
                None => return Err(error),
            },
        };
        Ok(Ended {
            report,
            interrupt: shutdown.interrupt(),
        })
    }

    /// The flow. The runtime's description is stored in `about` as soon as it is known.
    async fn until_done(
        &mut self,
        source: impl Future<Output = Result<Source>>,
        start: &StartSettings,
        policy: &Policy,
        shutdown: &Shutdown,
        about: &mut Option<RuntimeInfo>,
    ) -> Result<Report> {
        let open = async {
            let runtime = find_runtime(&self.settings.runtime).await?;
            *about = Some(runtime.info().clone());
            anyhow::Ok((runtime, source.await?))
        };
        let (runtime, source) = shutdown.or_deadline(self.deadline()).before(open).await??;
        // The run begins after the delay: neither the deadline nor the reported time includes it.
        let turn = stagger(start, source.node());
        self.started += shutdown.or_deadline(None).before(turn).await?;
        let end = shutdown.or_deadline(self.deadline());

        let keyring = std::mem::take(&mut self.keyring);
        let platform = platform(&self.settings.runtime, source.node());
        let runtime = runtime.for_platform(&platform);
        let keep = self.settings.seal.keep(self.settings.pull.pull_timeout);
        let runtime = SealingRuntime::new(runtime, self.settings.seal.policy, keep);
        let filling = FillingRuntime::new(runtime, self.settings.fill);
        if self.settings.fill == FillMode::Fast {
            end.before(Box::pin(filling.require())).await??;
        }
        let runtime = filling.sealing();
        let found = end.before(Box::pin(candidates::find(source))).await??;
        keyring::set_pull_secrets(&keyring, found.pull_secrets);
        let probe = RegistryProbe::new(&keyring, platform, self.settings.pull.registry_concurrency);
        let questions = Questions {
            store: self.settings.store,
            seal: self.settings.seal.policy,
            sizes: false,
        };
        let selection = select(found.candidates, policy, Some(runtime));
        let plan = plan(
            selection,
            Some(runtime),
            questions,
            &probe,
            found.sizes,
            end,
        );
        let plan = Box::pin(plan).await?;
        // What cannot be renewed by the end is none the worse for it: a seal has at least half of its life left.
        let _ = end.before(renew(runtime, &plan)).await;
        let mut images = self
            .execute(&plan, &filling, &keyring, &probe, shutdown.token())
            .await;
        let settled = end.before(Box::pin(runtime.settle())).await;
        tell_named(&mut images, runtime, settled.is_ok());
        warn_of_credentials(&images);
        Ok(Report {
            runtime: Some(runtime.info().clone()),
            node: self.settings.node.clone(),
            error: None,
            images,
            elapsed: self.started.elapsed(),
        })
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        let end = self.started.checked_add(self.settings.pull.deadline?)?;
        Some(tokio::time::Instant::from_std(end))
    }

    /// Pulls the images of the plan and shows the progress.
    async fn execute(
        &self,
        plan: &Plan,
        runtime: &FillingRuntime,
        keyring: &Keyring,
        probe: &RegistryProbe<'_>,
        stop: &CancellationToken,
    ) -> Vec<ImageReport> {
        let options = executor::Options {
            concurrency: self.settings.pull.concurrency,
            registry_concurrency: self.settings.pull.registry_concurrency,
            pull_timeout: self.settings.pull.pull_timeout,
            deadline: self.deadline(),
            retries: self.settings.pull.retries,
            probe: Some(probe),
        };
        let watch = Watch::new(&self.screen, plan.count(Action::Pull));
        let see = |event: executor::Event<'_>| watch.see(event);
        let images = tokio::select! {
            images = executor::execute(plan, runtime, keyring, &options, stop, &see) => images,
            () = watch.run() => unreachable!("a watch never ends"),
        };
        watch.close();
        images
    }
}

/// Waits for the start delay of the node; returns its length.
async fn stagger(start: &StartSettings, node: Option<&NodeFacts>) -> Duration {
    let (false, Some(name)) = (start.stagger.is_zero(), &start.node) else {
        return Duration::ZERO;
    };
    let age = node.and_then(NodeFacts::age);
    let delay = start_delay::delay(name, start.stagger, age, start.min_age);
    let shown = text::seconds(delay);
    match age {
        Some(age) if delay.is_zero() => info!(
            "starting at once: this node is {} old, less than --stagger-min-age",
            text::seconds(age)
        ),
        Some(_) => info!("starting in {shown} (--stagger)"),
        None => info!("starting in {shown} (--stagger); node age unknown"),
    }
    tokio::time::sleep(delay).await;
    delay
}

/// The platform to plan for: from the setting, otherwise from the Node, otherwise of this machine.
pub(crate) fn platform(settings: &RuntimeSettings, node: Option<&NodeFacts>) -> Platform {
    let node = node.and_then(|node| node.platform.clone());
    settings
        .platform
        .clone()
        .or(node)
        .unwrap_or_else(Platform::current)
}

/// Renews the seals of the images that are here.
async fn renew(runtime: &SealingRuntime, plan: &Plan) {
    let sealed = plan.images().iter().filter(|image| match &image.step {
        Step::Present(stored) => stored.is_sealed,
        _ => false,
    });
    let sealed = sealed.filter_map(|image| Reference::of(&image.image).ok());
    let sealed: Vec<_> = sealed.collect();
    runtime.renew(&sealed.iter().collect::<Vec<_>>()).await;
}

/// Reports images as not sealed that have kept a name which their pull made.
fn tell_named(images: &mut [ImageReport], runtime: &SealingRuntime, is_settled: bool) {
    let named = runtime.still_named();
    if named.is_empty() {
        return;
    }
    if !is_settled {
        warn!(
            "the run ended before the names of {} sealed images were removed: every pod of this node can use them",
            named.len()
        );
    }
    for image in images.iter_mut().filter(|image| image.is_sealed) {
        let reference = Reference::of(&image.image);
        image.is_sealed = reference.is_ok_and(|r| !named.contains(r.normalized()));
    }
}

/// Logs once that an image pulled with a credential is available to the other users of the node.
fn warn_of_credentials(images: &[ImageReport]) {
    let is_open = |image: &&ImageReport| image.credential.is_some() && !image.is_sealed;
    let with = images.iter().filter(is_open).count();
    if with > 0 {
        warn!(
            "{with} images were pulled with a credential: on this node every namespace can use them now, unless the kubelet \
             verifies pulls (imagePullCredentialsVerificationPolicy, KEP-2535)"
        );
    }
}
