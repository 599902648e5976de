//! The pull secrets that the planned images name: reads those and no others, and gives each to the keyring for its images only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::api::v1alpha1::PullSecret;
use crate::credentials::docker_config::DockerConfig;
use crate::credentials::keyring::Keyring;
use crate::discovery::workloads::{NamedSecret, SecretError, SecretWarning, named_secret};
use crate::kube_api::connect::Cluster;
use crate::model::digest::Digest;
use crate::model::text::sanitize;
use crate::retry::backoff;

/// The time between two reads of all secrets, less up to a fifth of it as jitter.
const PERIOD: Duration = Duration::from_secs(300);
/// The shortest time between two reads of all secrets after a refusal.
const AFTER_REFUSAL: Duration = Duration::from_secs(30);
/// The time limit for one secret: planning waits for it.
const LIMIT: Duration = Duration::from_secs(5);
/// The most concurrent requests.
const AT_ONCE: usize = 4;

/// The secrets that are in use.
#[derive(Debug)]
pub(super) struct Secrets {
    known: HashMap<PullSecret, Known>,
    /// The time of the last read of all.
    read: Instant,
    /// The time of the next read of all.
    next: Instant,
}

#[derive(Debug, Default)]
struct Known {
    config: Option<(Arc<DockerConfig>, Digest)>,
    problem: Option<String>,
}

/// Pull secrets with the images that each is for.
pub(super) type Wanted = BTreeMap<PullSecret, Vec<Arc<str>>>;

impl Secrets {
    /// None yet.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            known: HashMap::new(),
            read: now,
            next: now,
        }
    }

    /// The time of the next read of all secrets, if there are any.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.known.is_empty()).then_some(self.next)
    }

    /// A pull was refused: the secrets may have changed, and are read again soon.
    pub(super) fn refused(&mut self) {
        self.next = self.next.min(self.read + AFTER_REFUSAL);
    }

    /// Reads what is wanted and not known yet, everything when that is due, and forgets what is not wanted. Returns the images
    /// whose credentials have changed.
    pub(super) async fn follow(
        &mut self,
        cluster: &Cluster,
        keyring: &Keyring,
        wanted: &Wanted,
    ) -> Vec<Arc<str>> {
        self.known.retain(|secret, _| wanted.contains_key(secret));
        let is_due = Instant::now() >= self.next;
        let asked = wanted
            .keys()
            .filter(|s| is_due || !self.known.contains_key(s));
        let answers: Vec<_> = futures_util::stream::iter(asked.cloned())
            .map(|secret| async {
                let read = named_secret(cluster, &secret.namespace, &secret.name);
                (timeout(LIMIT, read).await, secret)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        if is_due {
            self.read = Instant::now();
            self.next = self.read + backoff::shortened(PERIOD, 0.2);
        }
        let mut changed = Vec::new();
        for (answer, secret) in answers {
            // Without an answer, it is asked again with the next plan.
            let Ok(answer) = answer else { continue };
            let known = self.known.entry(secret.clone()).or_default();
            let is_changed = match answer {
                Ok(read) => known.take_over(read),
                Err(problem) => known.complain(&problem),
            };
            if is_changed {
                changed.extend(wanted.get(&secret).into_iter().flatten().cloned());
            }
        }
        keyring.set_scoped(wanted.iter().flat_map(|(secret, images)| {
            let config = self
                .known
                .get(secret)
                .and_then(|known| known.config.as_ref());
            let pairs = images.iter().zip(std::iter::repeat(config));
            pairs.filter_map(|(image, config)| Some((image.to_string(), Arc::clone(&config?.0))))
        }));
        changed
    }

    /// The secrets that cannot be used, each with the reason.
    pub(super) fn problems(&self) -> HashMap<PullSecret, String> {
        let problems = self.known.iter();
        let problems = problems.filter_map(|(s, known)| Some((s.clone(), known.problem.clone()?)));
        problems.collect()
    }
}

impl Known {
    /// Takes over what was read; returns whether it is something new.
    fn take_over(&mut self, read: NamedSecret) -> bool {
        let before = self.config.as_ref().map(|(_, digest)| digest);
        let is_changed = before != Some(&read.digest);
        if self.problem.take().is_some() {
            info!("{}: can be read now", read.config.name());
        }
        if is_changed {
            for problem in read.config.problems() {
                warn!("{}", sanitize(problem));
            }
            self.config = Some((read.config, read.digest));
        }
        is_changed
    }

    /// Tells a problem, once. The content stays in use where the API server only failed to answer.
    fn complain(&mut self, problem: &SecretWarning) -> bool {
        let text = sanitize(&problem.to_string());
        if self.problem.as_ref() != Some(&text) {
            warn!("{text}");
        }
        self.problem = Some(text);
        let passes = matches!(
            problem,
            SecretWarning::Unread {
                error: SecretError::Failed(_) | SecretError::Unauthorized,
                ..
            }
        );
        !passes && self.config.take().is_some()
    }
}
