//! The first fill of a node: from the start of its first agent until every image that it needs is there or has failed. It
//! happens once in the life of a Node object. No I/O.

use std::time::Duration;

use tokio::time::Instant;

/// The state of the first fill.
#[derive(Debug, Default)]
pub(super) struct FirstFill {
    /// The start of this agent.
    began: Option<Instant>,
    /// An earlier agent of the node was asked about.
    is_known: bool,
    seconds: Option<f64>,
}

impl FirstFill {
    /// A fill that begins now, unless an earlier agent has made it.
    pub(super) fn begin() -> Self {
        Self {
            began: Some(Instant::now()),
            is_known: false,
            seconds: None,
        }
    }

    /// Takes over the report of an earlier agent of this node: the duration of its first fill, if that was complete.
    pub(super) fn earlier(&mut self, seconds: Option<f64>) {
        self.is_known = true;
        // What another process wrote is not trusted to be a number.
        self.seconds = seconds
            .filter(|s| s.is_finite() && *s >= 0.0)
            .or(self.seconds);
    }

    /// The node is another one now, which has not been filled.
    pub(super) fn restart(&mut self) {
        *self = Self::begin();
    }

    /// Returns whether it is known if an earlier agent has filled the node.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns whether it is complete.
    pub(super) fn is_over(&self) -> bool {
        self.seconds.is_some()
    }

    /// It is complete; only the first time counts.
    pub(super) fn end(&mut self) {
        let elapsed = self.began.map(|began| began.elapsed().as_secs_f64());
        self.seconds = self.seconds.or(elapsed);
    }

    /// Its duration, once it is complete.
    pub(super) fn duration(&self) -> Option<Duration> {
        let seconds = self.seconds?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_fill_happens_once() {
        let mut fill = FirstFill::begin();
        assert!(!fill.is_known());
        fill.earlier(None);
        assert!(fill.is_known() && !fill.is_over());
        tokio::time::advance(Duration::from_secs(7)).await;
        fill.end();
        tokio::time::advance(Duration::from_secs(7)).await;
        fill.end();
        assert_eq!(fill.duration(), Some(Duration::from_secs(7)));
        let mut again = FirstFill::begin();
        again.earlier(Some(7.5));
        again.end();
        assert_eq!(again.duration(), Some(Duration::from_millis(7500)));
        for broken in [f64::NAN, -1.0, f64::INFINITY] {
            let mut fill = FirstFill::begin();
            fill.earlier(Some(broken));
            assert!(!fill.is_over());
        }
    }
}
