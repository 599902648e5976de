//! SIGTERM and SIGINT, as a value that is passed in where something can be cancelled.

use std::sync::OnceLock;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio_util::sync::CancellationToken;

/// How long a run that was told to stop may take to say what became of it.
const GRACE: Duration = Duration::from_millis(1500);

/// Which signal ended the run.
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

/// The error of what was cut off by a signal.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted by {}", match .0 { Interrupt::Int => "SIGINT", Interrupt::Term => "SIGTERM" })]
pub(crate) struct Interrupted(pub(crate) Interrupt);

/// Whether a signal has come.
#[derive(Clone, Default)]
pub(crate) struct Signals {
    stop: CancellationToken,
    which: std::sync::Arc<OnceLock<Interrupt>>,
}

impl Signals {
    /// Listens from now on, on a thread of its own: a reader that neither reads nor closes the output would hold up
    /// the report, and with it the whole program, for ever.
    ///
    /// # Errors
    /// Those of installing the handlers and of starting the thread.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let mut arriving = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let signals = Self::default();
        let told = signals.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let which = match arriving.forever().next() {
                    Some(SIGINT) => Interrupt::Int,
                    _ => Interrupt::Term,
                };
                told.which.get_or_init(|| which);
                told.stop.cancel();
                std::thread::sleep(GRACE);
                abandon(which)
            })?;
        Ok(signals)
    }

    /// Cancelled when a signal comes.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The signal that came, if one did.
    pub(crate) fn which(&self) -> Option<Interrupt> {
        self.which.get().copied()
    }

    /// Waits for what is under way, or for a signal.
    ///
    /// # Errors
    /// [`Interrupted`] where the signal came first.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Interrupted(self.which().unwrap_or(Interrupt::Term))),
            result = work => Ok(result),
        }
    }
}

/// Ends the program with what it has not said unsaid.
#[expect(
    clippy::exit,
    reason = "the main thread is stuck in a write, so it cannot return"
)]
fn abandon(which: Interrupt) -> ! {
    std::process::exit(which.exit_code().into())
}
