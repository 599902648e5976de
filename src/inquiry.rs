//! What planning asks of registries: what images weigh, and whether a tag still stands for what is here.
//!
//! Only manifests are read. Each question is asked with the credentials that the pull would be made with, and once more where
//! that can help. A registry that wants to be left alone, or is not there, is asked nothing more. Knows no runtime and
//! no Kubernetes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use crate::disk::{Blob, Size};
use crate::failure::FailureKind;
use crate::image::{Platform, Reference, StoredImage};
use crate::plan::{Moved, Unknown};
use crate::printable::chain;
use crate::pull::backoff;
use crate::pull::turns::Turns;
use crate::registry::credential::Credential;
use crate::registry::keyring::Keyring;
use crate::registry::{self, Access, Client};

/// Questions to all registries that are under way at once.
const AT_ONCE: usize = 8;
/// How long one question may take, its second try included.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// The longest wait before the second try.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Asks registries about images.
pub struct Inquiry<'a> {
    /// Made when the first question is asked: most runs ask none.
    client: OnceLock<Result<Client, Unknown>>,
    keyring: &'a Keyring,
    platform: Platform,
    turns: Turns,
    /// Registries that are asked nothing more, and why.
    left_alone: Mutex<HashMap<String, Unknown>>,
}

impl<'a> Inquiry<'a> {
    /// Asks about images for this platform, with at most so many questions to one registry at once.
    pub fn new(keyring: &'a Keyring, platform: Platform, of_one: usize) -> Self {
        Self {
            client: OnceLock::new(),
            keyring,
            platform,
            turns: Turns::new(of_one),
            left_alone: Mutex::default(),
        }
    }

    /// How many requests the registries have been sent so far, those for tokens included.
    pub fn requests(&self) -> u64 {
        match self.client.get() {
            Some(Ok(client)) => client.requests(),
            _ => 0,
        }
    }

    /// Registries that said that they were asked too much.
    pub fn rate_limited(&self) -> Vec<String> {
        let left_alone = self.left_alone();
        let limited = left_alone.iter();
        let limited = limited.filter(|(_, unknown)| unknown.kind == FailureKind::RateLimited);
        limited.map(|(registry, _)| registry.clone()).collect()
    }

    fn client(&self) -> Result<&Client, Unknown> {
        let new = || {
            Client::new().map_err(|error| Unknown {
                kind: FailureKind::Other,
                message: chain(&error),
            })
        };
        self.client.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// What each of the images weighs, by normalised reference. An image that is not made for the platform is
    /// `platform_mismatch`.
    pub async fn sizes(
        &self,
        images: impl IntoIterator<Item = &Reference>,
    ) -> HashMap<String, Result<Size, Unknown>> {
        let questions = images
            .into_iter()
            .map(|image| async move { (image.normalized().to_owned(), self.size(image).await) });
        futures_util::stream::iter(questions)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// What the image weighs.
    ///
    /// # Errors
    /// Why the registry did not tell.
    pub async fn size(&self, image: &Reference) -> Result<Size, Unknown> {
        let client = self.client()?;
        let chosen = self
            .ask(image, async |credential| {
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

    /// Whether each of the images that are here has moved in its registry, by normalised reference.
    pub async fn moved<'i>(
        &self,
        images: impl IntoIterator<Item = (&'i Reference, &'i StoredImage)>,
    ) -> HashMap<String, Moved> {
        let questions = images.into_iter().map(|(image, stored)| async move {
            let moved = match self.digest(image).await {
                Ok(digest) if stored.known.contains(&digest) => Moved::No,
                Ok(digest) => Moved::Yes(match &stored.digest {
                    Some(here) => format!("its tag has moved from {here} to {digest}"),
                    None => format!("its tag stands for {digest}, which is not here"),
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

    /// What the tag stands for now.
    async fn digest(&self, image: &Reference) -> Result<String, Unknown> {
        let client = self.client()?;
        self.ask(image, async |credential| {
            let access = Access { image, credential };
            Ok(client.resolve(access).await?.to_string())
        })
        .await
    }

    /// Asks with each credential, and all over again where another try can help.
    async fn ask<T>(
        &self,
        image: &Reference,
        question: impl AsyncFn(Option<&Credential>) -> Result<T, registry::Error>,
    ) -> Result<T, Unknown> {
        let registry = image.registry();
        let turns = self.turns.at(registry);
        let _turn = turns.acquire().await;
        if let Some(unknown) = self.left_alone().get(registry) {
            return Err(unknown.clone());
        }
        let mut tried = 0;
        let work = async {
            loop {
                let asked = self
                    .keyring
                    .with_each(image, registry::Error::kind, &question);
                let refused = match asked.await {
                    Ok((answer, _)) => return Ok(answer),
                    Err(refused) => refused,
                };
                let kind = refused.error.kind();
                tried += 1;
                if tried > 1 || !kind.is_retryable() {
                    return Err(Unknown {
                        kind,
                        message: refused.error.chain() + &refused.tried,
                    });
                }
                let wait = backoff::wait(kind, tried, refused.error.retry_after());
                tokio::time::sleep(wait.min(WAIT_MAX)).await;
            }
        };
        let answer = tokio::time::timeout(TIME_LIMIT, work).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Unknown {
                kind: FailureKind::Timeout,
                message: format!(
                    "{registry} did not answer within {} s",
                    TIME_LIMIT.as_secs()
                ),
            })
        });
        if let Err(unknown) = &answer
            && matches!(
                unknown.kind,
                FailureKind::RateLimited | FailureKind::Unavailable | FailureKind::Timeout
            )
        {
            self.left_alone()
                .insert(registry.to_owned(), unknown.clone());
        }
        answer
    }

    fn left_alone(&self) -> MutexGuard<'_, HashMap<String, Unknown>> {
        self.left_alone
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
