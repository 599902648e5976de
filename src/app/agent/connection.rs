//! The connection to the container runtime: waits for it, notices when it goes away, and waits again.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use super::{Agent, fill};
use crate::app::node_run;
use crate::model::failure::FailureKind;
use crate::model::text::sanitize;
use crate::retry::backoff;
use crate::retry::polling::Polling;
use crate::runtime::detect::{FindError, Runtime};
use crate::runtime::image_service::{ImageService, RuntimeError};

/// The pauses between attempts to find the runtime.
const POLLING: Polling = Polling {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(10),
};
/// The shortest time between two log lines about a runtime that is away.
const QUIET: Duration = Duration::from_secs(60);
/// The time between two checks whether the runtime responds, less up to half of it as jitter.
const PING: Duration = Duration::from_secs(6);
/// The time limit for its response.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// The pause before the check is repeated that decides.
const PING_AGAIN: Duration = Duration::from_millis(500);

/// Fills the node with whatever runtime responds, without end.
pub(super) async fn keep(agent: &Agent) -> Infallible {
    loop {
        let runtime = tokio::select! {
            runtime = find(agent) => runtime,
            never = decide(agent) => match never {},
        };
        let info = runtime.info().clone();
        agent.state().found_runtime(info);
        agent.told.notify_one();
        let lost = Box::pin(fill::fill(agent, runtime)).await;
        warn!("lost the container runtime: {}", sanitize(&lost.0));
        agent
            .checks
            .runtime
            .fail("the container runtime does not respond");
        agent.state().lost_runtime();
        agent.told.notify_one();
    }
}

/// The reason why the runtime counts as lost.
#[derive(Debug)]
pub(super) struct Lost(pub(super) String);

/// Decides what the node needs, so that it can be reported, while no runtime responds.
async fn decide(agent: &Agent) -> Infallible {
    loop {
        agent.planned.notified().await;
        let mut state = agent.state();
        if state.can_decide() {
            state.decide();
        }
        drop(state);
        agent.told.notify_one();
    }
}

async fn find(agent: &Agent) -> Runtime {
    let mut said: Option<Instant> = None;
    let mut tell = |problem: &FindError, _: Duration| {
        if said.is_none_or(|at| at.elapsed() >= QUIET) {
            error!("{}; waiting for it", sanitize(&problem.to_string()));
            said = Some(Instant::now());
        }
    };
    let ask = || node_run::find_runtime(&agent.settings.runtime);
    loop {
        if let Ok(runtime) = POLLING.ask(None, ask, |_| true, &mut tell).await {
            return runtime;
        }
    }
}

/// Waits until the runtime does not respond, or another one does.
pub(super) async fn until_lost(runtime: &Runtime) -> Lost {
    loop {
        sleep(backoff::shortened(PING, 0.5)).await;
        if check(runtime).await.is_err() {
            sleep(PING_AGAIN).await;
            if let Err(lost) = check(runtime).await {
                return lost;
            }
        }
    }
}

async fn check(runtime: &Runtime) -> Result<(), Lost> {
    let answer = tokio::time::timeout(PING_LIMIT, runtime.is_same()).await;
    let silent = |_| RuntimeError::new(FailureKind::Timeout, "no response");
    match answer.unwrap_or_else(|elapsed| Err(silent(elapsed))) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Lost("another version responds".to_owned())),
        Err(error) => Err(Lost(error.message)),
    }
}
