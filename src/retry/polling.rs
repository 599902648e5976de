//! Repeats a request after a temporary failure, such as a restart.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff;

/// The pauses between requests: each twice the one before, less up to half of it as jitter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Polling {
    /// The first pause.
    pub(crate) first: Duration,
    /// The longest pause.
    pub(crate) longest: Duration,
}

impl Polling {
    /// Repeats a request until it succeeds, fails permanently, or the deadline is over; returns the last result. Before each
    /// pause, `on_pause` receives the failure and the pause.
    pub(crate) async fn ask<T, E, F>(
        self,
        deadline: Option<Instant>,
        mut ask: impl FnMut() -> F,
        passes: impl Fn(&E) -> bool,
        mut on_pause: impl FnMut(&E, Duration),
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut pause = self.first;
        loop {
            let error = match ask().await {
                Err(error) if passes(&error) => error,
                answer => return answer,
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(error);
            }
            let jittered = backoff::shortened(pause, 0.5);
            on_pause(&error, jittered);
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(self.longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    const POLLING: Polling = Polling {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(4),
    };

    #[tokio::test(start_paused = true)]
    async fn polling_ends_with_final_failure() {
        let mut asked = 0;
        let mut pauses = Vec::new();
        let ask = || {
            asked += 1;
            ready(Err::<(), _>(asked))
        };
        let passes = |error: &i32| *error < 5;
        let on_pause = |_: &i32, pause| pauses.push(pause);
        assert_eq!(POLLING.ask(None, ask, passes, on_pause).await, Err(5));
        for (pause, longest) in pauses.iter().zip([1, 2, 4, 4]) {
            let longest = Duration::from_secs(longest);
            assert!(*pause >= longest / 2 && *pause <= longest, "{pauses:?}");
        }
        assert_eq!(pauses.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_ends_with_last_failure() {
        let began = Instant::now();
        let deadline = began + Duration::from_secs(60);
        let ask = || ready(Err::<(), _>("away"));
        let answer = POLLING.ask(Some(deadline), ask, |_| true, |_, _| {}).await;
        assert_eq!(answer, Err("away"));
        assert!(Instant::now() >= deadline && began.elapsed() <= Duration::from_secs(64));
    }
}
