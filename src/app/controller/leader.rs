//! Leader election by a Lease, as the Kubernetes components do it.
//!
//! Another controller's Lease is over when it did not change for its duration by this machine's own clock, so that the clocks of
//! two machines need not agree. Each change is made only to the version that was read, so that two cannot lead at once. A leader
//! that cannot renew its Lease stops leading before it is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use super::shown;
use crate::app::serve::{Check, Liveness};
use crate::model::text::{clip, sanitize};
use crate::retry::backoff;

/// The time after the last renewal at which others may take over.
const DURATION: Duration = Duration::from_secs(12);
/// The time after the start of the last renewal at which this one stops.
const DEADLINE: Duration = Duration::from_secs(8);
/// The time between two renewals or attempts to take over.
const RETRY: Duration = Duration::from_secs(2);
/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(4);
/// The longest duration of another's Lease that counts.
const LONGEST: Duration = Duration::from_secs(60);

/// A Lease and who wants to hold it.
pub(super) struct Election {
    api: Api<Lease>,
    name: String,
    /// Unique for each process.
    identity: String,
    /// Another's Lease as it was seen, and the time of its last change.
    seen: Option<(LeaseSpec, Instant)>,
    fence: Fence,
}

/// Tells for how long this process leads. Asked before each write, because a process that was stopped for a while may not have
/// noticed yet that another one leads.
#[derive(Debug, Clone, Default)]
pub(super) struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Returns whether this process leads.
    pub(super) fn is_leading(&self) -> bool {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_some_and(|end| Instant::now() < end)
    }

    fn set(&self, end: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

/// The outcome of an attempt to get or renew the Lease.
enum Attempt {
    Held,
    HeldByOther,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let host = if host.is_empty() { "controller" } else { &host };
        let identity = format!("{}_{:016x}", clip(&sanitize(host), 200), fastrand::u64(..));
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            seen: None,
            fence: Fence::default(),
        }
    }

    pub(super) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until this process leads.
    pub(super) async fn acquire(&mut self, liveness: &Liveness, ready: &Check) {
        let mut is_told = false;
        loop {
            liveness.beat();
            let started = Instant::now();
            match self.attempt().await {
                Ok(Attempt::Held) => {
                    self.fence.set(Some(started + DEADLINE));
                    return;
                }
                Ok(Attempt::HeldByOther) => {
                    // A controller that waits is ready to take over.
                    ready.pass();
                    is_told = false;
                }
                Err(error) if !is_told => {
                    tracing::warn!("failed to get the Lease {}: {error}; retrying", self.name);
                    is_told = true;
                }
                Err(error) => tracing::debug!("failed to get the Lease {}: {error}", self.name),
            }
            sleep(backoff::around(RETRY, 0.2)).await;
        }
    }

    /// Renews the Lease until that is no longer possible.
    pub(super) async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            if left.is_zero() {
                break;
            }
            sleep(RETRY.min(left)).await;
            let started = Instant::now();
            match self.attempt().await {
                Ok(Attempt::Held) => {
                    renewed = started;
                    self.fence.set(Some(renewed + DEADLINE));
                }
                Ok(Attempt::HeldByOther) => break,
                Err(error) => tracing::warn!("failed to renew the Lease {}: {error}", self.name),
            }
        }
        self.fence.set(None);
    }

    /// Gives the Lease up, so that another can take over at once.
    pub(super) async fn release(&mut self) {
        self.fence.set(None);
        let release = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(LIMIT, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                "failed to release the Lease {}: {}",
                self.name,
                shown(error)
            ),
            Err(_) => tracing::warn!("failed to release the Lease {} in time", self.name),
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, String> {
        match timeout(LIMIT, self.try_hold()).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => Err(shown(error)),
            Err(_) => Err("no response from the API server".to_owned()),
        }
    }

    async fn try_hold(&mut self) -> Result<Attempt, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.claim(&LeaseSpec::default())),
            };
            return outcome(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if !self.may_take(&spec) {
            return Ok(Attempt::HeldByOther);
        }
        lease.spec = Some(self.claim(&spec));
        outcome(
            self.api
                .replace(&self.name, &PostParams::default(), &lease)
                .await,
        )
    }

    /// Returns whether this process holds the Lease, or nobody does any more.
    fn may_take(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let seconds = spec.lease_duration_seconds.unwrap_or(0);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST);
        match &self.seen {
            Some((seen, at)) if seen == spec => at.elapsed() >= duration,
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    /// The spec of a Lease that this process holds from now on.
    fn claim(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_own = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: match is_own {
                true => before.acquire_time.clone(),
                false => Some(now.clone()),
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_own))),
            ..before.clone()
        }
    }
}

/// A conflict means that another one was faster.
fn outcome(written: Result<Lease, kube::Error>) -> Result<Attempt, kube::Error> {
    match written {
        Ok(_) => Ok(Attempt::Held),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::HeldByOther),
        Err(error) => Err(error),
    }
}
