//! Enforces the disk budget during a run, and the high mark of the image file system while pulling continuously. Before each pull
//! it reads the usage of the runtime's store, since the kubelet and others fill it too. It queries registries for image sizes that
//! planning could not determine.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tracing::warn;

use crate::model::failure::FailureKind;
use crate::model::image_size::{ImageFs, Size};
use crate::model::reference::Reference;
use crate::model::text::{sanitize, size as shown};
use crate::planning::disk_budget::{DiskBudget, more_on_disk, on_disk};
use crate::planning::disk_marks::DiskMarks;
use crate::planning::plan::{size_unknown, too_large};
use crate::planning::registry_probe::RegistryProbe;
use crate::runtime::image_service::{ImageService, RuntimeError};

/// Time without a pull after which a store's own count is complete. Runtimes count up to ten seconds late.
const COUNTED: Duration = Duration::from_secs(30);

/// The remaining space for the pulls of one run.
pub(crate) struct Store<'a> {
    room: Option<Mutex<DiskBudget>>,
    probe: Option<&'a RegistryProbe<'a>>,
    /// Sizes that were requested, of images that are not finished.
    sizes: Mutex<HashMap<usize, Size>>,
    /// The marks of the file system.
    marks: Option<&'a Mutex<DiskMarks>>,
    /// The estimated sizes on disk of the pulls in progress, where there are marks.
    coming: Mutex<HashMap<usize, u64>>,
    /// An image was pulled, or failed.
    changed: Notify,
    /// The end of the last pull, where the store's own count replaces ours: images leave the store too.
    ended: Option<Mutex<Instant>>,
}

/// The reason why an image is not admitted.
pub(crate) enum Denied {
    /// It does not fit, and no pull in progress can change that.
    Short(String),
    /// The file system would be above the high mark, and no pull in progress can change that.
    Mark(String),
    /// Its size is unknown; this is the error of the attempt.
    SizeUnknown(RuntimeError),
}

impl<'a> Store<'a> {
    /// Creates the guard, with a budget if `room` is given.
    pub(crate) fn new(room: Option<DiskBudget>, probe: Option<&'a RegistryProbe<'a>>) -> Self {
        Self {
            room: room.map(Mutex::new),
            probe,
            sizes: Mutex::default(),
            marks: None,
            coming: Mutex::default(),
            changed: Notify::new(),
            ended: None,
        }
    }

    /// The same for pulling without end, during which images leave the store too.
    pub(crate) fn lasting(room: Option<DiskBudget>, probe: Option<&'a RegistryProbe<'a>>) -> Self {
        Self {
            ended: Some(Mutex::new(Instant::now())),
            ..Self::new(room, probe)
        }
    }

    /// The same with the marks of the file system.
    pub(crate) fn with_marks(self, marks: Option<&'a Mutex<DiskMarks>>) -> Self {
        Self { marks, ..self }
    }

    /// Returns whether the store's count is complete by now.
    fn is_counted(&self) -> bool {
        let ended = self.ended.as_ref();
        ended.is_some_and(|ended| lock(ended).elapsed() > COUNTED)
    }

    /// Returns whether the image may be pulled now; `None` if that depends on the outcome of pulls in progress.
    ///
    /// # Errors
    /// See [`Denied`].
    pub(crate) async fn admit(
        &self,
        service: &impl ImageService,
        number: usize,
        image: &Reference,
        size: Option<&Size>,
    ) -> Option<Result<(), Denied>> {
        let within = self.within_budget(service, number, image, size).await;
        match (within, self.marks) {
            (Some(Ok(())), Some(marks)) => {
                self.below_mark(marks, service, number, image, size).await
            }
            (within, _) => within,
        }
    }

    /// Returns whether the file system stays below the high mark with the image. The registry is asked for the size only where
    /// that matters, because it counts such requests as pulls.
    async fn below_mark(
        &self,
        marks: &Mutex<DiskMarks>,
        service: &impl ImageService,
        number: usize,
        image: &Reference,
        size: Option<&Size>,
    ) -> Option<Result<(), Denied>> {
        // An attempt that has failed holds no space for the next one, which would make two that retry wait for each other.
        if lock(&self.coming).remove(&number).is_some() {
            self.changed.notify_waiters();
        }
        let Some(fs) = service.file_system().await else {
            return Some(Ok(()));
        };
        let assumed = lock(marks).assumed(fs, self.coming(number), image.normalized());
        if let (None, Some(bytes)) = (size, assumed)
            && self.comes(marks, fs, number, image, bytes)
        {
            return Some(Ok(()));
        }
        let size = match size {
            Some(size) => Some(size.clone()),
            None if lock(marks).is_yielding() => None,
            None => self.size(number, image).await.ok(),
        };
        let keeps = service.layer_storage();
        let unknown = DiskMarks::unknown(fs);
        let mut need = size.as_ref().map_or(unknown, |size| on_disk(size, keeps));
        if let Some(size) = &size
            && !self.comes(marks, fs, number, image, need)
            && let Ok(usage) = service.usage().await
        {
            // Layers that are there need no space.
            need = more_on_disk(size, &usage.blobs, keeps);
        }
        if self.comes(marks, fs, number, image, need) {
            return Some(Ok(()));
        }
        let others = self.coming(number);
        let marks = lock(marks);
        if others > 0 && !marks.is_yielding() {
            return None;
        }
        let left = marks.high(fs).saturating_sub(fs.used);
        Some(Err(Denied::Mark(format!(
            "over --disk-high-percent {}: needs about {}, {} left",
            marks.high_percent(),
            shown(need),
            shown(left)
        ))))
    }

    /// Counts the image among the pulls in progress if the marks admit it.
    fn comes(
        &self,
        marks: &Mutex<DiskMarks>,
        fs: ImageFs,
        number: usize,
        image: &Reference,
        need: u64,
    ) -> bool {
        let others = self.coming(number);
        let is_admitted = lock(marks).admits(fs, others, image.normalized(), need);
        if is_admitted {
            lock(&self.coming).insert(number, need);
        }
        is_admitted
    }

    /// The bytes of the other pulls in progress.
    fn coming(&self, number: usize) -> u64 {
        let coming = lock(&self.coming);
        let others = coming.iter().filter(|(other, _)| **other != number);
        others.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    async fn within_budget(
        &self,
        service: &impl ImageService,
        number: usize,
        image: &Reference,
        size: Option<&Size>,
    ) -> Option<Result<(), Denied>> {
        let Some(room) = &self.room else {
            return Some(Ok(()));
        };
        if lock(room).is_promised(number) {
            return Some(Ok(()));
        }
        let size = match size {
            Some(size) => size.clone(),
            None => match self.size(number, image).await {
                Ok(size) => size,
                Err(error) => return Some(Err(Denied::SizeUnknown(error))),
            },
        };
        let usage = service.usage().await;
        let mut room = lock(room);
        match usage {
            Ok(usage) if room.is_still() && self.is_counted() => room.recount(usage),
            Ok(usage) => room.observe(usage),
            Err(error) => warn!(
                "failed to get disk usage from the runtime, using harpoon's own count: {}",
                sanitize(&error.message)
            ),
        }
        match room.promise(number, &size) {
            Ok(_) => Some(Ok(())),
            Err(short) if room.is_still() => {
                Some(Err(Denied::Short(too_large(short, room.budget()))))
            }
            Err(_) => None,
        }
    }

    /// Size of an image that planning could not determine.
    async fn size(&self, number: usize, image: &Reference) -> Result<Size, RuntimeError> {
        let known = lock(&self.sizes).get(&number).cloned();
        if let Some(size) = known {
            return Ok(size);
        }
        let Some(probe) = self.probe else {
            let why = size_unknown("no registry was queried");
            return Err(RuntimeError::new(FailureKind::Other, why));
        };
        let size = probe.size(image).await.map_err(|unknown| RuntimeError {
            message: size_unknown(&unknown.message),
            retry_after: unknown.retry_after,
            source_failed: unknown.is_retryable,
            ..RuntimeError::new(unknown.kind, "")
        })?;
        lock(&self.sizes).insert(number, size.clone());
        Ok(size)
    }

    /// Resolves at the next change after it was enabled.
    pub(crate) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Records that the image was pulled, or failed.
    pub(crate) fn ended(&self, number: usize, came: bool) {
        if let Some(room) = &self.room {
            let mut room = lock(room);
            if came {
                room.kept(number);
            } else {
                room.broken(number);
            }
            if let Some(ended) = &self.ended {
                *lock(ended) = Instant::now();
            }
        }
        lock(&self.sizes).remove(&number);
        lock(&self.coming).remove(&number);
        self.changed.notify_waiters();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
