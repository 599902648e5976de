//! Retention: pins what the kubelet must not remove, gives protected images up when the disk is full, and releases what has left
//! the plan.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;

use tracing::{info, warn};

use super::Agent;
use super::state::{Presence, State};
use crate::api::v1alpha1::RetentionPolicy;
use crate::app::metrics::ReleaseCause;
use crate::model::image_size::{ImageFs, LayerStorage, Size};
use crate::model::reference::Reference;
use crate::model::text::sanitize;
use crate::planning::disk_budget::on_disk;
use crate::planning::disk_marks::{Decision, DiskMarks, PlannedImage};
use crate::runtime::containerd::{Removal, Seal};
use crate::runtime::image_service::{ImageService, RuntimeError};
use crate::runtime::sealing::SealingRuntime;

/// Has the runtime compared as soon as a planned image is deleted, where the runtime tells that.
pub(super) async fn removals(agent: &Agent, runtime: &SealingRuntime) -> Infallible {
    let Some(pins) = runtime.pins() else {
        return std::future::pending().await;
    };
    let told = pins.removals(|removal| {
        let mut state = agent.state();
        let is_ours = match removal {
            Removal::Name(name) => state.needs(&name),
            Removal::Unknown => true,
        };
        if is_ours {
            state.is_stale = true;
            agent.planned.notify_one();
        }
    });
    told.await
}

/// The pins and seals of the agent on one runtime.
pub(super) struct Retention<'a> {
    agent: &'a Agent,
    runtime: &'a SealingRuntime,
    /// The images that were to be pinned at the last time; `None` before the first.
    pinned: Option<BTreeSet<String>>,
    /// It is known whether pins have an effect.
    has_asked: bool,
    /// The log says that the marks are off.
    has_warned: bool,
    /// The highest usage since the images that did not fit were tried again.
    peak: u64,
}

impl<'a> Retention<'a> {
    pub(super) fn new(agent: &'a Agent, runtime: &'a SealingRuntime) -> Self {
        Self {
            agent,
            runtime,
            pinned: None,
            has_asked: false,
            has_warned: false,
            peak: 0,
        }
    }

    /// Protects the images as planned; `is_due` if the runtime was compared. Returns images whose pulls may succeed now.
    pub(super) async fn keep(&mut self, is_due: bool) -> Vec<String> {
        let mut again = Vec::new();
        if is_due {
            again = self.follow_disk().await;
            self.follow_seals().await;
        } else {
            let mut state = self.agent.state();
            // Images that are new in the plan wait too.
            if let Some(why) = state.yielding.clone() {
                state.set_yielding(Some(why));
            }
        }
        let is_yielding = self.agent.state().yielding.is_some();
        self.agent.metrics.set_disk_pressure(is_yielding);
        self.pin().await;
        again
    }

    /// Compares the file system with the marks. Returns the images that may be pulled again.
    async fn follow_disk(&mut self) -> Vec<String> {
        if self.agent.marks_in_use().is_none() {
            return Vec::new();
        }
        let fs = match self.runtime.image_fs().await {
            Ok(fs) => fs,
            Err(error) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    let error = sanitize(&error.to_string());
                    warn!("the high mark of the disk is off (--disk-high-percent): {error}");
                }
                return self.agent.state().set_yielding(None);
            }
        };
        self.has_warned = false;
        let in_use = self.in_use().await;
        let (decision, sealed, mut again) = {
            let mut state = self.agent.state();
            let mut marks = self.agent.marks();
            state.capacity = Some(fs.capacity);
            let can_pin = self.runtime.supports_pins() && state.pins_ignored.is_none();
            let keeps = self.runtime.layer_storage();
            let decision = decide(&mut marks, &state, fs, in_use.as_ref(), (can_pin, keeps));
            let why = decision.is_yielding.then(|| above(&marks, fs));
            if why.is_some() != state.yielding.is_some() {
                match &why {
                    Some(why) => warn!("{why}"),
                    None => info!("the disk has space again: pulling"),
                }
            }
            let sealed = state.sealed();
            (decision, sealed, state.set_yielding(why))
        };
        again.extend(self.space_came(fs));
        self.give_up(&decision, sealed).await;
        again
    }

    /// Returns the images that did not fit if a hundredth of the disk has become free since they were tried.
    fn space_came(&mut self, fs: ImageFs) -> Vec<String> {
        self.peak = self.peak.max(fs.used);
        let is_less = fs.used.saturating_add(fs.percent(1)) <= self.peak;
        if !is_less || self.agent.marks().is_yielding() {
            return Vec::new();
        }
        self.peak = fs.used;
        self.agent.state().fits_again()
    }

    /// The digests of images of which containers were made; `None` if the runtime does not tell now.
    async fn in_use(&self) -> Option<HashSet<String>> {
        let Some(pins) = self.runtime.pins() else {
            return Some(HashSet::new());
        };
        let asked = pins.in_use().await;
        let failed = |error: &RuntimeError| {
            warn!("failed to list containers: {}", sanitize(&error.message));
        };
        asked.inspect_err(failed).ok()
    }

    /// Takes the seals off these images. Their pins go with the next [`Retention::pin`].
    async fn give_up(&self, decision: &Decision, mut sealed: Vec<Reference>) {
        for image in &decision.give_up {
            info!(image, "given up: the disk is above the high mark");
            self.agent.metrics.released(ReleaseCause::Disk);
        }
        sealed.retain(|image| {
            let mut given_up = decision.give_up.iter();
            given_up.any(|name| name == image.normalized())
        });
        if let Err(error) = self.release(&sealed).await {
            warn!("failed to give up seals: {}", sanitize(&error.message));
        }
    }

    /// Seals what is to be sealed and has a name, and releases the seals that are not wanted any more.
    async fn follow_seals(&self) {
        let Some(seals) = self.runtime.seals() else {
            return;
        };
        let found = match seals.list().await {
            Ok(found) => found,
            Err(error) => {
                warn!("failed to list seals: {}", sanitize(&error.message));
                return;
            }
        };
        let to_hold = {
            let (state, marks) = (self.agent.state(), self.agent.marks());
            let mut to_hold = match state.yielding {
                Some(_) => Vec::new(),
                None => state.to_hold(|image| found.contains_key(image)),
            };
            to_hold.retain(|image| marks.may_protect(image.normalized()));
            to_hold
        };
        for image in &to_hold {
            self.runtime.hold(image).await;
        }
        if let Err(error) = seals.take_off_replaced().await {
            warn!("failed to release seals: {}", sanitize(&error.message));
        }
        // What was interrupted is kept for the next attempt, and for no longer.
        let released = seals.release_pulls(|image| !self.agent.state().resumes(image));
        match released.await {
            Ok(0) => {}
            Ok(pulls) => info!(pulls, "freed what interrupted pulls have left"),
            Err(error) => warn!(
                "failed to free what pulls have left: {}",
                sanitize(&error.message)
            ),
        }
        let unused: Vec<_> = {
            let state = self.agent.state();
            let unused = found.values().filter(|seal| is_unused(&state, seal));
            unused
                .filter_map(|seal| Reference::of(&(&*seal.image).into()).ok())
                .collect()
        };
        match self.release(&unused).await {
            Ok(released) => released.iter().for_each(|image| {
                info!(image, "released the seal: it is not planned any more");
                self.agent.metrics.released(ReleaseCause::Unused);
            }),
            Err(error) => warn!("failed to release seals: {}", sanitize(&error.message)),
        }
    }

    async fn release(&self, images: &[Reference]) -> Result<Vec<String>, RuntimeError> {
        match self.runtime.seals() {
            Some(seals) if !images.is_empty() => seals.release(Some(images)).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Pins what is to be pinned, and nothing else.
    async fn pin(&mut self) {
        let Some(pins) = self.runtime.pins() else {
            let mut state = self.agent.state();
            let has_any = to_pin(&state, |_| true).next().is_some();
            state.pins_ignored = has_any.then(|| self.runtime.cannot_pin()).flatten();
            return;
        };
        let wanted: Vec<Reference> = {
            let state = self.agent.state();
            let marks = self.agent.marks();
            to_pin(&state, |name| marks.may_protect(name)).collect()
        };
        let names: BTreeSet<_> = wanted.iter().map(|i| i.normalized().to_owned()).collect();
        if names.is_empty() {
            self.agent.state().pins_ignored = None;
            self.has_asked = false;
            if self.pinned.as_ref().is_some_and(BTreeSet::is_empty) {
                return;
            }
        }
        let changes = match pins.set(&wanted.iter().collect::<Vec<_>>()).await {
            Ok(changes) => changes,
            Err(error) => {
                warn!("failed to pin images: {}", sanitize(&error.message));
                return;
            }
        };
        for (name, error) in &changes.failed {
            warn!(name, "failed to change a pin: {}", sanitize(&error.message));
        }
        if !changes.pinned.is_empty() || !changes.unpinned.is_empty() {
            let (pinned, unpinned) = (changes.pinned.len(), changes.unpinned.len());
            info!(pinned, unpinned, "changed pins of image names");
        }
        self.count_unused(names);
        let has_pins = changes.missing.len() < wanted.len();
        if has_pins && !std::mem::replace(&mut self.has_asked, true) {
            self.ask_whether_ignored().await;
        }
    }

    /// Counts the images that were pinned and are not in the node's plan any more.
    fn count_unused(&mut self, names: BTreeSet<String>) {
        let before = self.pinned.replace(names).unwrap_or_default();
        let state = self.agent.state();
        let gone = before
            .iter()
            .filter(|name| !state.needs(name) && !state.keeps(name));
        gone.for_each(|_| self.agent.metrics.released(ReleaseCause::Unused));
    }

    async fn ask_whether_ignored(&mut self) {
        match self.runtime.ignores_pins().await {
            Ok(ignored) => {
                if let Some(why) = &ignored {
                    warn!("{why}");
                }
                self.agent.state().pins_ignored = ignored;
            }
            Err(error) => {
                self.has_asked = false;
                warn!("failed to check pins: {}", sanitize(&error.message));
            }
        }
    }
}

/// Returns whether a seal is to be released: an agent's whose image has left the plan or is planned without a seal and has its
/// name; while the disk is full, any of an image that is only kept. Seals of runs expire.
fn is_unused(state: &State, seal: &Seal) -> bool {
    let name = &*seal.image;
    let is_unwanted = !state.is_planned(name) || state.is_open(name);
    (seal.is_of_agent && is_unwanted) || (state.yielding.is_some() && state.keeps(name))
}

/// The message while harpoon yields.
fn above(marks: &DiskMarks, fs: ImageFs) -> String {
    let percent = u128::from(fs.used) * 100 / u128::from(fs.capacity.max(1));
    let resume = u128::from(marks.resume(fs)) * 100 / u128::from(fs.capacity.max(1));
    format!(
        "{percent}% of the image file system is used: pulls wait until it is below {resume}% (--disk-high-percent {})",
        marks.high_percent()
    )
}

/// Decides by the marks about the images that the node needs. What a container uses frees nothing; if that is unknown, nothing is
/// given up.
fn decide(
    marks: &mut DiskMarks,
    state: &State,
    fs: ImageFs,
    in_use: Option<&HashSet<String>>,
    (can_pin, keeps): (bool, LayerStorage),
) -> Decision {
    let plan: Vec<_> = state
        .images()
        .map(|image| {
            let name = &*image.planned.image;
            let mut planned = PlannedImage {
                name,
                is_present: false,
                is_protected: false,
                bytes: 0,
                importance: image.planned.pods,
            };
            if let Presence::Present(stored, _) = &image.presence {
                let is_pinned = can_pin
                    && image.planned.retention == RetentionPolicy::Pin
                    && marks.may_protect(name);
                let mut digests = stored.digest.iter().chain(&stored.known);
                let is_used = in_use.is_none_or(|used| digests.any(|d| used.contains(d)));
                planned.is_present = true;
                planned.is_protected = stored.is_sealed || is_pinned;
                planned.bytes = match stored.bytes {
                    Some(bytes) if !is_used => on_disk(&Size::Packed(bytes), keeps),
                    _ => 0,
                };
            }
            planned
        })
        .collect();
    marks.decide(fs, &plan)
}

/// The images to pin: present and not sealed, or kept though no prefetch uses them any more, unless the disk is full.
fn to_pin(state: &State, may_protect: impl Fn(&str) -> bool) -> impl Iterator<Item = Reference> {
    let needed = state.images().filter(|image| match &image.presence {
        Presence::Present(stored, _) => !stored.is_sealed,
        _ => false,
    });
    let needed = needed.map(|image| &image.planned);
    let kept = state.kept.iter().filter(|_| state.yielding.is_none());
    let all = needed.chain(kept);
    let pinned = all.filter(move |planned| {
        planned.retention == RetentionPolicy::Pin && may_protect(&planned.image)
    });
    pinned.filter_map(|planned| planned.reference.clone().ok())
}
