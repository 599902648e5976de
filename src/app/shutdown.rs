//! The request to stop, as a value that is passed to everything that can be cancelled, and the signals that trigger it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio_util::sync::CancellationToken;

/// Time that a run has to report after a request to stop.
pub(crate) const GRACE: Duration = Duration::from_millis(1500);
/// A signal within this time of the first is part of the same request: `timeout` signals a program and then its group.
const SAME_REQUEST: Duration = Duration::from_millis(100);
/// Interval of checks for a second signal.
const POLL: Duration = Duration::from_millis(20);

/// The signal that ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT.
    Int,
    /// SIGTERM.
    Term,
}

impl Interrupt {
    /// The exit code of a program that this signal ended, as shells give it: 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Int => 130,
            Self::Term => 143,
        }
    }
}

/// The error of work that was interrupted by a signal.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted by {}", match .0 { Interrupt::Int => "SIGINT", Interrupt::Term => "SIGTERM" })]
pub(crate) struct Interrupted(pub(crate) Interrupt);

/// The deadline of a run passed before its images were known.
#[derive(Debug, thiserror::Error)]
#[error("the deadline of the run (--deadline) passed before images were discovered")]
pub(crate) struct DeadlinePassed;

/// The request to stop, shared by all clones. By default it never comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    token: CancellationToken,
    which: Arc<OnceLock<Interrupt>>,
}

impl Shutdown {
    /// Listens for signals from now on. The first is a request to stop; the second, or the end of `grace` after the first, ends
    /// the program at once. Without `grace` the program may take any time to stop.
    ///
    /// It listens on a thread of its own: if the reader of the output neither reads nor closes it, the report blocks, and with it
    /// the whole program.
    ///
    /// # Errors
    /// Those of installing the handlers and of starting the thread.
    pub(crate) fn on_signal(grace: Option<Duration>) -> std::io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let shutdown = Self::default();
        let told = shutdown.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let which = match signals.forever().next() {
                    Some(SIGINT) => Interrupt::Int,
                    _ => Interrupt::Term,
                };
                told.request(which);
                let end = grace.map(|grace| Instant::now() + grace);
                std::thread::sleep(SAME_REQUEST);
                signals.pending().for_each(drop);
                while end.is_none_or(|end| Instant::now() < end)
                    && signals.pending().next().is_none()
                {
                    std::thread::sleep(POLL);
                }
                abandon(which)
            })?;
        Ok(shutdown)
    }

    /// Requests the stop. Only the first request counts.
    pub(crate) fn request(&self, which: Interrupt) {
        self.which.get_or_init(|| which);
        self.token.cancel();
    }

    /// The token that is cancelled when the stop is requested.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The signal that was received, if any.
    pub(crate) fn interrupt(&self) -> Option<Interrupt> {
        self.which.get().copied()
    }

    /// The end of work that has this deadline, or none.
    pub(crate) fn or_deadline(&self, deadline: Option<tokio::time::Instant>) -> End<'_> {
        End {
            deadline,
            shutdown: self,
        }
    }
}

/// The end of work: the request to stop, or the deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    deadline: Option<tokio::time::Instant>,
    shutdown: &'a Shutdown,
}

impl End<'_> {
    /// Waits for work.
    ///
    /// # Errors
    /// [`Interrupted`] or [`DeadlinePassed`] if the end came first.
    pub(crate) async fn before<T>(self, work: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.shutdown.token.cancelled() => {
                let which = self.shutdown.interrupt().unwrap_or(Interrupt::Term);
                Err(Interrupted(which).into())
            }
            done = work => Ok(done),
            () = passed(self.deadline) => Err(DeadlinePassed.into()),
        }
    }
}

async fn passed(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Ends the program and discards its unwritten output.
#[expect(
    clippy::exit,
    reason = "the main thread is stuck in a write, so it cannot return"
)]
fn abandon(which: Interrupt) -> ! {
    std::process::exit(which.exit_code().into())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn first_request_cancels_every_clone() {
        let shutdown = Shutdown::default();
        let (told, end) = (shutdown.clone(), shutdown.or_deadline(None));
        assert_eq!(end.before(ready(7)).await.unwrap(), 7);
        let (cut, ()) = tokio::join!(end.before(pending::<()>()), async {
            told.request(Interrupt::Int);
            told.request(Interrupt::Term);
        });
        let error = cut.unwrap_err();
        let Interrupted(which) = error.downcast_ref().unwrap();
        assert_eq!(*which, Interrupt::Int);
        assert_eq!(shutdown.interrupt(), Some(Interrupt::Int));
        // No work begins after the end.
        let late = end.before(async { panic!("begun") });
        assert!(late.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_ends_work_without_request() {
        let shutdown = Shutdown::default();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let end = shutdown.or_deadline(Some(deadline));
        let error = end.before(pending::<()>()).await.unwrap_err();
        assert!(error.is::<DeadlinePassed>());
        assert_eq!(end.before(ready(7)).await.unwrap(), 7);
        assert!(!shutdown.token().is_cancelled());
    }
}
