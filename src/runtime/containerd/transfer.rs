//! Pulls by containerd's Transfer service, which makes no name when it is given none: what came is held by a lease alone.
//!
//! The service then ends with the error that it found no name; all content and snapshots are there before that. The kubelet
//! and the CRI plugin learn nothing of such a pull.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future;

use containerd_client::services::v1::{StreamInit, TransferOptions, TransferRequest};
use containerd_client::to_any;
use containerd_client::types::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry, Progress as Event,
    RegistryResolver, UnpackConfiguration,
};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::config::Config;
use super::{Client, leased, request};
use crate::credentials::secret::{Credential, Login};
use crate::model::digest::Digest;
use crate::model::reference::{Reference, served_at};
use crate::runtime::image_service::Progress;

/// Error of the service at the end of a pull without a name.
const NO_NAME: &str = "no image name found";
/// Blobs of one pull whose progress is followed.
const BLOBS_MAX: usize = 2048;
/// Answers that may wait for containerd to take them.
const ANSWERS_MAX: usize = 4;

/// The end of a pull.
#[derive(Debug)]
pub(super) struct Pulled {
    /// The manifest or index, where containerd told.
    pub(super) digest: Option<Digest>,
}

/// Returns whether the credential can be sent to the service, whose texts are UTF-8.
pub(super) fn can_send(credential: Option<&Credential>) -> bool {
    credential.is_none_or(|c| !matches!(&*c.login, Login::Bytes(_)))
}

/// Pulls the image, held by the lease. The credential is for the image's own registry alone.
pub(super) async fn pull(
    client: &Client,
    config: &Config,
    image: &Reference,
    credential: Option<&Credential>,
    lease: &str,
    progress: &Progress,
) -> Result<Pulled, Status> {
    let events = Stream::open(client).await?;
    let auth = match credential {
        Some(credential) => Some((Stream::open(client).await?, credential)),
        None => None,
    };
    let asked = TransferRequest {
        source: Some(to_any(&OciRegistry {
            reference: image.normalized().to_owned(),
            resolver: Some(RegistryResolver {
                auth_stream: auth.as_ref().map_or("", |(s, _)| &s.id).to_owned(),
                host_dir: config.hosts.path.clone(),
                ..RegistryResolver::default()
            }),
        })),
        destination: Some(to_any(&ImageStore {
            platforms: vec![config.platform.clone()],
            manifest_limit: 1,
            unpacks: vec![UnpackConfiguration {
                platform: Some(config.platform.clone()),
                snapshotter: config.snapshotter.clone(),
            }],
            ..ImageStore::default()
        })),
        options: Some(TransferOptions {
            progress_stream: events.id.clone(),
        }),
    };
    let mut transfer = client.transfer();
    let transfer = transfer.transfer(leased(asked, lease)?);
    let mut tally = Tally::new(image, progress);
    let ended = tokio::select! {
        biased;
        never = answer_all(auth, image) => match never {},
        never = tally.follow(events) => match never {},
        ended = transfer => ended,
    };
    match ended {
        Ok(_) => {}
        Err(status) if status.code() == Code::NotFound && status.message().contains(NO_NAME) => {}
        Err(status) => return Err(status),
    }
    Ok(Pulled { digest: tally.root })
}

/// A stream that containerd finds by its ID.
struct Stream {
    id: String,
    answers: mpsc::Sender<Any>,
    messages: Streaming<Any>,
}

impl Stream {
    async fn open(client: &Client) -> Result<Self, Status> {
        let id = format!("harpoon-{:016x}", fastrand::u64(..));
        let (answers, open) = mpsc::channel(ANSWERS_MAX);
        let first = to_any(&StreamInit { id: id.clone() });
        let outgoing =
            futures_util::stream::unfold((Some(first), open), |(first, mut open)| async {
                let next = match first {
                    Some(first) => Some(first),
                    None => open.recv().await,
                };
                Some((next?, (None, open)))
            });
        let mut streaming = client.streaming();
        let messages = streaming.stream(request(outgoing)).await?.into_inner();
        let mut stream = Self {
            id,
            answers,
            messages,
        };
        // The first message says that the stream can be found.
        match stream.messages.message().await? {
            Some(_) => Ok(stream),
            None => Err(Status::unavailable("containerd closed a stream")),
        }
    }

    /// The next message of this type; waits for ever after the last.
    async fn next<M: Message + Name + Default>(&mut self) -> M {
        loop {
            let Ok(Some(message)) = self.messages.message().await else {
                return future::pending().await;
            };
            if message.type_url.rsplit('/').next() == Some(&M::full_name())
                && let Ok(message) = M::decode(&*message.value)
            {
                return message;
            }
        }
    }
}

/// Answers containerd's questions for a credential.
async fn answer_all(auth: Option<(Stream, &Credential)>, image: &Reference) -> Infallible {
    let Some((mut stream, credential)) = auth else {
        return future::pending().await;
    };
    loop {
        let asked: AuthRequest = stream.next().await;
        let answer = auth_response(&asked.host, credential, image);
        if stream.answers.send(to_any(&answer)).await.is_err() {
            return future::pending().await;
        }
    }
}

/// The credential, if the host is the image's own registry.
fn auth_response(host: &str, credential: &Credential, image: &Reference) -> AuthResponse {
    let nothing = AuthResponse {
        auth_type: AuthType::None.into(),
        ..AuthResponse::default()
    };
    if host != served_at(image.registry()) {
        return nothing;
    }
    match &*credential.login {
        Login::Password { user, password } if !user.expose().is_empty() => AuthResponse {
            auth_type: AuthType::Credentials.into(),
            username: user.expose().to_owned(),
            secret: password.expose().to_owned(),
            ..AuthResponse::default()
        },
        // containerd takes a secret without a user for an identity token, over the CRI too.
        Login::Password {
            password: secret, ..
        }
        | Login::IdentityToken(secret) => AuthResponse {
            auth_type: AuthType::Refresh.into(),
            secret: secret.expose().to_owned(),
            ..AuthResponse::default()
        },
        Login::Bytes(_) => nothing,
    }
}

/// Bytes of all blobs of one pull.
struct Tally<'a> {
    image: &'a Reference,
    progress: &'a Progress,
    /// Done and total, by the name that containerd gives the blob.
    blobs: HashMap<String, (u64, u64)>,
    root: Option<Digest>,
}

impl<'a> Tally<'a> {
    fn new(image: &'a Reference, progress: &'a Progress) -> Self {
        Self {
            image,
            progress,
            blobs: HashMap::new(),
            root: None,
        }
    }

    async fn follow(&mut self, mut events: Stream) -> Infallible {
        loop {
            let event: Event = events.next().await;
            self.add(event);
        }
    }

    fn add(&mut self, event: Event) {
        // Before there is a blob of it, the registry may not have let the pull in.
        let Some(parent) = event.parents.first() else {
            return;
        };
        self.progress.set_came();
        if parent == self.image.normalized() {
            // `manifest-sha256:…` or `index-sha256:…`
            let digest = event.name.split_once('-').map_or("", |(_, digest)| digest);
            self.root = Digest::parse(digest).ok().or(self.root.take());
        }
        let is_known = self.blobs.contains_key(&event.name);
        if !is_known && self.blobs.len() >= BLOBS_MAX {
            return;
        }
        let size = event.desc.map_or(0, |desc| desc.size).max(event.total);
        let (done, total) = self.blobs.entry(event.name).or_default();
        *total = u64::try_from(size).unwrap_or(0).max(*total);
        *done = match &*event.event {
            "complete" | "already exists" | "extracting" | "extracted" => *total,
            _ => u64::try_from(event.progress).unwrap_or(0).max(*done),
        };
        let sum = self.blobs.values().fold((0_u64, 0_u64), |sum, blob| {
            (sum.0.saturating_add(blob.0), sum.1.saturating_add(blob.1))
        });
        self.progress.set(sum.0, sum.1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::credentials::secret::Secret;
    use containerd_client::types::Descriptor;

    fn credential(login: Login) -> Credential {
        Credential {
            login: login.into(),
            source: "test".into(),
            is_pull_secret: false,
        }
    }

    #[test]
    fn credential_is_for_own_registry() {
        let image = Reference::parse("registry.example:5000/team/web:1").unwrap();
        let hub = Reference::parse("team/web:1").unwrap();
        let login = credential(Login::Password {
            user: Secret::new("me"),
            password: Secret::new("word"),
        });
        for (image, host, is_own) in [
            (&image, "registry.example:5000", true),
            (&image, "registry.example", false),
            (&image, "mirror.example", false),
            (&hub, "registry-1.docker.io", true),
            (&hub, "docker.io", false),
        ] {
            let answer = auth_response(host, &login, image);
            assert_eq!(answer.secret == "word", is_own, "{host}");
            assert_eq!(answer.username == "me", is_own, "{host}");
        }
    }

    #[test]
    fn token_is_sent_as_refresh_token() {
        let image = Reference::parse("registry.example/web").unwrap();
        let token = credential(Login::IdentityToken(Secret::new("token")));
        let answer = auth_response("registry.example", &token, &image);
        assert_eq!(answer.auth_type, i32::from(AuthType::Refresh));
        assert_eq!((&*answer.username, &*answer.secret), ("", "token"));
        assert!(!can_send(Some(&credential(Login::Bytes(Secret::new("x"))))));
        assert!(can_send(Some(&token)) && can_send(None));
    }

    #[test]
    fn progress_is_summed_over_blobs() {
        let progress = Progress::default();
        let image = Reference::parse("registry.example/web:1").unwrap();
        let mut tally = Tally::new(&image, &progress);
        let digest = format!("sha256:{:064x}", 1);
        let event = |name: &str, event: &str, done, size, parents: &[&str]| Event {
            event: event.to_owned(),
            name: name.to_owned(),
            parents: parents.iter().map(|p| (*p).to_owned()).collect(),
            progress: done,
            total: size,
            desc: Some(Descriptor {
                digest: digest.clone(),
                size,
                ..Descriptor::default()
            }),
        };
        tally.add(event(
            "registry.example/web:1",
            "fetching image content",
            0,
            5,
            &[],
        ));
        assert!(tally.root.is_none() && !progress.came());
        tally.add(event("a", "waiting", 0, 100, &["image"]));
        tally.add(event("b", "downloading", 7, 10, &["image"]));
        assert_eq!(progress.get(), (7, 110));
        tally.add(event("a", "complete", 0, -1, &["image"]));
        tally.add(event("b", "already exists", -5, 10, &["image"]));
        assert_eq!(progress.get(), (110, 110));
        assert!(tally.root.is_none() && progress.came());
        let root = format!("index-{digest}");
        tally.add(event(&root, "complete", 3, 3, &[image.normalized()]));
        assert_eq!(tally.root.as_ref().unwrap().as_str(), digest);
        assert_eq!(progress.get(), (113, 113));
    }
}
