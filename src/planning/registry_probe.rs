//! Queries registries for planning: image sizes, and whether a tag has moved.
//!
//! It reads only manifests. Each request uses the credentials that the pull would use, and is retried once where that may help. A
//! registry that is unreachable or requests a pause is not queried for a while (`left_alone`). It knows neither runtimes nor
//! Kubernetes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::credentials::keyring::{self, Found, Keyring, SOURCE_PAUSE};
use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{Blob, Size};
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::chain;
use crate::planning::plan::{Moved, Unknown};
use crate::registry::{self, Access, Client};
use crate::retry::backoff;
use crate::retry::limiter::RegistryLimiter;

mod left_alone;
use left_alone::{LeftAlone, Scope};

/// Maximum number of concurrent requests to all registries.
const AT_ONCE: usize = 8;
/// Time limit for one request, including its retry.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Maximum wait before the retry.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Minimum pause for a registry that limits the rate of requests.
const PAUSE_MIN: Duration = Duration::from_secs(8);

/// Queries registries about images.
pub struct RegistryProbe<'a> {
    /// Created for the first request: most runs send none.
    client: OnceLock<Result<Client, Unknown>>,
    keyring: &'a Keyring,
    platform: Platform,
    turns: RegistryLimiter,
    /// Registries and repositories that are not queried for now.
    left_alone: Mutex<LeftAlone>,
}

impl<'a> RegistryProbe<'a> {
    /// The credentials that it asks with.
    pub fn keyring(&self) -> &'a Keyring {
        self.keyring
    }

    /// Creates a probe for images of this platform, with at most `of_one` concurrent requests to one registry.
    pub fn new(keyring: &'a Keyring, platform: Platform, of_one: usize) -> Self {
        Self {
            client: OnceLock::new(),
            keyring,
            platform,
            turns: RegistryLimiter::new(of_one),
            left_alone: Mutex::default(),
        }
    }

    /// Number of requests sent to the registries so far, including those for tokens.
    pub fn requests(&self) -> u64 {
        match self.client.get() {
            Some(Ok(client)) => client.requests(),
            _ => 0,
        }
    }

    /// Registries that limited the rate of requests.
    pub fn rate_limited(&self) -> Vec<String> {
        self.left_alone().rate_limited(Instant::now())
    }

    fn client(&self) -> Result<&Client, Unknown> {
        let new = || Client::new().map_err(|error| Unknown::new(FailureKind::Other, chain(&error)));
        self.client.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// The size of each image, by normalised reference. An image that does not exist for the platform is a `platform_mismatch`.
    pub async fn sizes(
        &self,
        images: impl IntoIterator<Item = &Reference>,
    ) -> HashMap<String, Result<Size, Unknown>> {
        let questions = images.into_iter().map(|image| async move {
            let size = self.weigh(image, Pace::Plan).await;
            (image.normalized().to_owned(), size)
        });
        futures_util::stream::iter(questions)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// The image's size, for its pull: the registry is queried once, regardless of earlier responses.
    ///
    /// # Errors
    /// The reason why the registry did not provide the size.
    pub async fn size(&self, image: &Reference) -> Result<Size, Unknown> {
        self.weigh(image, Pace::Pull).await
    }

    async fn weigh(&self, image: &Reference, pace: Pace) -> Result<Size, Unknown> {
        let client = self.client()?;
        let chosen = self
            .ask(image, pace, async |credential| {
                let access = Access { image, credential };
                client.choose(access, &self.platform).await
            })
            .await?;
        let blobs = chosen.image.blobs().into_iter().map(|blob| Blob {
            digest: blob.digest,
            bytes: blob.size,
        });
        Ok(Size::Blobs(blobs.collect()))
    }

    /// Compares each present image with its registry, by normalised reference.
    pub async fn moved<'i>(
        &self,
        images: impl IntoIterator<Item = (&'i Reference, &'i StoredImage)>,
    ) -> HashMap<String, Moved> {
        let questions = images.into_iter().map(|(image, stored)| async move {
            let moved = match self.digest(image).await {
                Ok(digest) if stored.known.contains(&digest) => Moved::No,
                Ok(digest) => Moved::Yes(match &stored.digest {
                    Some(here) => format!("its tag has moved from {here} to {digest}"),
                    None => format!("its tag resolves to {digest}, which is not present"),
                }),
                Err(unknown) => Moved::Unknown(unknown),
            };
            (image.normalized().to_owned(), moved)
        });
        futures_util::stream::iter(questions)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// The current digest of the tag.
    async fn digest(&self, image: &Reference) -> Result<String, Unknown> {
        let client = self.client()?;
        self.ask(image, Pace::Plan, async |credential| {
            let access = Access { image, credential };
            Ok(client.resolve(access).await?.to_string())
        })
        .await
    }

    /// Sends a request with each credential, and retries them all where that may help.
    async fn ask<T>(
        &self,
        image: &Reference,
        pace: Pace,
        question: impl AsyncFn(Option<&Credential>) -> Result<T, registry::Error>,
    ) -> Result<T, Unknown> {
        let registry = image.registry();
        let turns = self.turns.at(registry);
        let _turn = turns.acquire().await;
        if pace == Pace::Plan
            && let Some(unknown) = self.left_alone().why(image, Instant::now())
        {
            return Err(unknown.clone());
        }
        let work = async {
            let mut tried = 0;
            loop {
                let (unknown, scope) = match self.ask_once(image, &question).await {
                    Ok(answer) => return Ok(answer),
                    Err(failed) => failed,
                };
                tried += 1;
                if tried == pace.tries() || !unknown.is_retryable {
                    return Err((unknown, scope));
                }
                let wait = backoff::wait(unknown.kind, tried, unknown.retry_after);
                tokio::time::sleep(wait.min(WAIT_MAX)).await;
            }
        };
        let answer = tokio::time::timeout(TIME_LIMIT, work).await;
        let answer = answer.unwrap_or_else(|_| {
            let why = format!(
                "no response from {registry} within {} s",
                TIME_LIMIT.as_secs()
            );
            Err((Unknown::new(FailureKind::Timeout, why), Some(Scope::Image)))
        });
        let mut left_alone = self.left_alone();
        match &answer {
            Err((unknown, Some(scope))) => {
                left_alone.failed(image, *scope, unknown, Instant::now());
            }
            Ok(_) | Err((_, None)) => left_alone.answered(image),
        }
        answer.map_err(|(unknown, _)| unknown)
    }

    /// Sends a request with each credential for the image in turn, last anonymously, until one is accepted.
    async fn ask_once<T>(
        &self,
        image: &Reference,
        question: impl AsyncFn(Option<&Credential>) -> Result<T, registry::Error>,
    ) -> Result<T, (Unknown, Option<Scope>)> {
        let found = self.keyring.lookup(image).await;
        let mut credentials = found.credentials.iter();
        let mut refusal = None;
        loop {
            let credential = credentials.next();
            let error = match question(credential).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !keyring::is_refusal(error.kind()) {
                return Err((unknown(&error, None), scope(&error)));
            }
            let error = keyring::more_telling(refusal, error, registry::Error::kind);
            if credential.is_none() {
                return Err((unknown(&error, Some(&found)), scope(&error)));
            }
            refusal = Some(error);
        }
    }

    fn left_alone(&self) -> MutexGuard<'_, LeftAlone> {
        self.left_alone
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The retries of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// One retry, unless the registry is paused: the plan is made only once.
    Plan,
    /// No retry: a pull has retries of its own.
    Pull,
}

impl Pace {
    fn tries(self) -> u32 {
        match self {
            Self::Plan => 2,
            Self::Pull => 1,
        }
    }
}

/// The reason why a registry provided no fact; with the credentials that were tried, if none was accepted.
fn unknown(error: &registry::Error, refused: Option<&Found>) -> Unknown {
    let kind = error.kind();
    let source_failed = refused.is_some_and(|found| found.is_incomplete);
    let pause = source_failed.then_some(SOURCE_PAUSE);
    Unknown {
        kind,
        message: error.chain() + &refused.map(Found::tried).unwrap_or_default(),
        retry_after: error.retry_after().max(pause),
        is_retryable: kind.is_retryable() || source_failed,
    }
}

/// The extent of the failure; `None` if the registry answered and refused only this image.
fn scope(error: &registry::Error) -> Option<Scope> {
    match error.kind() {
        FailureKind::RateLimited => {
            let wait = backoff::wait(FailureKind::RateLimited, 1, error.retry_after());
            Some(Scope::Registry(wait.max(PAUSE_MIN)))
        }
        FailureKind::Unavailable if error.is_unreachable() => Some(Scope::UNREACHABLE),
        FailureKind::Unavailable | FailureKind::Timeout => Some(Scope::Image),
        _ => None,
    }
}
