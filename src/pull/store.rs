//! The disk budget while a plan is run: asks the runtime before each pull what its store holds now, since the kubelet and
//! others fill it too.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::warn;

use crate::disk::{Room, Size};
use crate::plan::too_large;
use crate::printable::printable;
use crate::runtime::ImageService;

/// The room that is left for the pulls of one run.
pub(super) struct Store {
    room: Option<Mutex<Room>>,
    /// Something has come, or does not come after all.
    changed: Notify,
}

impl Store {
    /// With a budget where there is room.
    pub(super) fn new(room: Option<Room>) -> Self {
        Self {
            room: room.map(Mutex::new),
            changed: Notify::new(),
        }
    }

    /// Whether the image may be pulled now; `None` where that depends on what becomes of those under way.
    ///
    /// # Errors
    /// Says why it does not fit, and nothing that is under way can change that.
    pub(super) async fn admit(
        &self,
        service: &impl ImageService,
        number: usize,
        size: Option<&Size>,
    ) -> Option<Result<(), String>> {
        let (Some(room), Some(size)) = (&self.room, size) else {
            return Some(Ok(()));
        };
        if lock(room).is_promised(number) {
            return Some(Ok(()));
        }
        let usage = service.usage().await;
        let mut room = lock(room);
        match usage {
            Ok(usage) => room.observe(usage),
            Err(error) => warn!(
                "failed to ask the runtime what its store holds, going on by our own count: {}",
                printable(&error.message)
            ),
        }
        match room.promise(number, size) {
            Ok(_) => Some(Ok(())),
            Err(short) if room.is_still() => Some(Err(too_large(short, room.budget()))),
            Err(_) => None,
        }
    }

    /// Resolves at the next change after it was enabled.
    pub(super) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The image has come, or not.
    pub(super) fn ended(&self, number: usize, came: bool) {
        if let Some(room) = &self.room {
            let mut room = lock(room);
            if came {
                room.kept(number);
            } else {
                room.broken(number);
            }
            self.changed.notify_waiters();
        }
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}
