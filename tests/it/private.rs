//! Private images on real runtimes: their use of the credentials that they receive.
//!
//! These tests use the library's runtimes without the program: the choice of credentials is tested elsewhere.

use std::path::Path;
use std::time::Duration;

use harpoon::credentials::secret::{Credential, Login, Secret};
use harpoon::model::failure::FailureKind;
use harpoon::model::platform::Platform;
use harpoon::model::reference::Reference;
use harpoon::model::stored_image::StoredImage;
use harpoon::runtime::cri::Cri;
use harpoon::runtime::detect::Runtime;
use harpoon::runtime::docker::Docker;
use harpoon::runtime::image_service::{ImageService, Progress, RuntimeError};
use harpoon::runtime::oci;

use crate::bed::{self, PASSWORD, USER, block_on, token};

const LIMIT: Duration = Duration::from_secs(20);
const REFRESH_TOKEN: &str = "refresh/token+of=the bed";

fn password(user: &str, password: &str) -> Credential {
    credential(Login::Password {
        user: Secret::new(user),
        password: Secret::new(password),
    })
}

fn identity(token: &str) -> Credential {
    credential(Login::IdentityToken(Secret::new(token)))
}

fn credential(login: Login) -> Credential {
    Credential {
        login: login.into(),
        source: "test".into(),
        is_pull_secret: false,
    }
}

/// All kinds of runtime; the directory is the layout's.
fn runtimes(directory: &Path) -> Vec<Runtime> {
    let directory = directory.to_owned();
    let (containerd, docker) = (bed::containerd().socket(), bed::docker().socket());
    block_on(async move {
        let platform = Platform::parse("linux/amd64").unwrap();
        vec![
            Runtime::Cri(Cri::connect(containerd, LIMIT).await.unwrap()),
            Runtime::Docker(Docker::connect(&docker, LIMIT).await.unwrap()),
            Runtime::Oci(oci::open(&directory, platform).await.unwrap()),
        ]
    })
}

/// One attempt on each kind of runtime, which is passed to `check`.
fn on_each(
    image: &str,
    credential: Option<&Credential>,
    check: impl Fn(&str, Result<StoredImage, RuntimeError>),
) {
    let directory = bed::directory();
    for runtime in runtimes(directory.path()) {
        let image = Reference::parse(image).unwrap();
        let credential = credential.cloned();
        let name = runtime.info().name.clone();
        let pulled = block_on(async move {
            let progress = Progress::default();
            let pull = runtime.pull(&image, credential.as_ref(), &progress);
            tokio::time::timeout(LIMIT, pull).await.unwrap()
        });
        check(&name, pulled);
    }
}

fn comes(image: &str, credential: &Credential) {
    on_each(image, Some(credential), |runtime, pulled| {
        pulled.unwrap_or_else(|error| panic!("{runtime}: {error}"));
    });
}

/// Fails as `unauthorized`, without a secret in the message.
fn is_refused(image: &str, credential: Option<&Credential>, secrets: &[&str]) {
    on_each(image, credential, |runtime, pulled| {
        let error = pulled.expect_err(runtime);
        assert_eq!(error.kind, FailureKind::Unauthorized, "{runtime}: {error}");
        for secret in secrets {
            assert!(!error.message.contains(secret), "{runtime}: {error}");
        }
    });
}

#[test]
fn password_registry_requires_the_password() {
    let registry = bed::registry_with_password();
    let image = registry.push(&format!("{}:1", bed::unique("private")));
    is_refused(&image.reference, None, &[]);
    let wrong = password(USER, "not the password");
    is_refused(&image.reference, Some(&wrong), &["not the password"]);
    comes(&image.reference, &password(USER, PASSWORD));
}

/// Passwords whose `X-Registry-Auth` has in it what the two alphabets of base64 write differently.
#[test]
fn passwords_accept_all_characters() {
    for word in ["?>?>??>>~~~", "pässwörter 日本語"] {
        let registry = bed::Registry::with_password("me", word);
        let image = registry.push(&format!("{}:1", bed::unique("letters")));
        comes(&image.reference, &password("me", word));
    }
}

#[test]
fn token_service_requires_the_password() {
    let name = format!("{}:1", bed::unique("tokens"));
    bed::registry().push(&name);
    let users = [("me", "my password"), ("you", "your password")];
    let registry = token::Registry::start(bed::registry().url(), &users, &[REFRESH_TOKEN]);
    let image = registry.reference(&name);
    is_refused(&image, None, &[]);
    let wrong = password("me", "not my password");
    is_refused(&image, Some(&wrong), &["not my password"]);
    is_refused(&image, Some(&identity("run-out-token")), &["run-out-token"]);
    for (user, word) in users {
        comes(&image, &password(user, word));
    }
}

#[test]
fn identity_token_pulls_the_image() {
    let name = format!("{}:1", bed::unique("identity"));
    bed::registry().push(&name);
    let registry = token::Registry::start(bed::registry().url(), &[], &[REFRESH_TOKEN]);
    comes(&registry.reference(&name), &identity(REFRESH_TOKEN));
}

/// containerd sends a credential to the host that it is for, and to no mirror.
#[test]
fn mirror_gets_no_credential() {
    let name = format!("{}:1", bed::unique("mirrored"));
    bed::registry().push(&name);
    let mirror = token::Registry::start(bed::registry().url(), &[("me", "my password")], &[]);
    let host = format!("{}.example", bed::unique("mirrored"));
    bed::containerd().map_host(&host, &mirror.url());
    let image = Reference::parse(&format!("{host}/{name}")).unwrap();
    let error = block_on(async move {
        let cri = Cri::connect(bed::containerd().socket(), LIMIT)
            .await
            .unwrap();
        let (login, progress) = (password("me", "my password"), Progress::default());
        cri.pull(&image, Some(&login), &progress).await.unwrap_err()
    });
    assert_eq!(error.kind, FailureKind::Unauthorized, "{error}");
    let seen = mirror.seen();
    assert!(!seen.is_empty());
    for request in seen {
        let shown = request.headers.get("authorization");
        let shown = shown.map(|value| value.to_str().unwrap());
        assert!(shown.is_none_or(|s| !s.starts_with("Basic")), "{shown:?}");
        assert!(!String::from_utf8_lossy(&request.body).contains("password"));
    }
}

/// Tokens that are good for eight requests each, while a pull takes fourteen: `oci:` gets another in mid-pull. The second is enough
/// for all that may be under way. containerd 1.6 and Docker 20.10 get none, when a token runs out before the time that the service told.
#[test]
fn tokens_are_renewed_during_pull() {
    let name = format!("{}:1", bed::unique("expiring"));
    bed::registry().image(&name).layers(12).push();
    let registry = token::Registry::start(bed::registry().url(), &[("me", "my password")], &[]);
    registry.set_uses(8);
    let me = password("me", "my password");
    on_each(&registry.reference(&name), Some(&me), |runtime, pulled| {
        if runtime == "oci" {
            pulled.unwrap();
        }
    });
}

/// Tokens that run out between two pulls, unknown to the runtimes, which were told that they are good for minutes.
#[test]
fn tokens_are_renewed_between_pulls() {
    let registry = token::Registry::start(bed::registry().url(), &[("me", "my password")], &[]);
    let me = password("me", "my password");
    for _ in 0..2 {
        let name = format!("{}:1", bed::unique("later"));
        bed::registry().push(&name);
        comes(&registry.reference(&name), &me);
        registry.expire_tokens();
    }
}
