//! Pulls of private images: each request of one carries the credential's token, and nothing is logged of either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::credentials::secret::{Login, Secret};
use crate::registry::capture::Capture;

const USER: &str = "oci-user";
const PASSWORD: &str = "oci-password";
const IDENTITY: &str = "oci-identity-token";

fn login(login: Login) -> Credential {
    Credential {
        login: login.into(),
        source: "test".into(),
        is_pull_secret: false,
    }
}

fn password(password: &str) -> Credential {
    login(Login::Password {
        user: Secret::new(USER),
        password: Secret::new(password),
    })
}

fn basic(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// A token service for [`PASSWORD`] and [`IDENTITY`], each of whose tokens is good for six requests: as
/// many as there are layers at once, since each of them gets one new token.
async fn private(shelf: Shelf) -> (Bed, StandIn) {
    let issued = Arc::new(AtomicUsize::new(0));
    let used = Arc::new(AtomicUsize::new(0));
    let counting = (issued.clone(), used.clone());
    let good = format!("Basic {}", basic(USER, PASSWORD));
    let service = StandIn::start(move |asked| {
        let posted = asked.body.contains(&format!("refresh_token={IDENTITY}"));
        if asked.header("authorization") != Some(&good) && !posted {
            return Reply::new(401, r#"{"details":"incorrect username or password"}"#);
        }
        counting.1.store(0, Ordering::SeqCst);
        let n = counting.0.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::new(
            200,
            format!(r#"{{"token":"oci-bearer-{n}-","expires_in":300}}"#),
        )
    })
    .await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="oci""#,
        service.host
    );
    let bed = Bed::new(move |asked| {
        let token = format!("Bearer oci-bearer-{}-", issued.load(Ordering::SeqCst));
        let good = asked.header("authorization") == Some(&token);
        if good && used.fetch_add(1, Ordering::SeqCst) < 6 {
            shelf.answer(asked)
        } else {
            Reply::new(401, "{}").with("www-authenticate", &challenge)
        }
    })
    .await;
    (bed, service)
}

async fn pull(bed: &Bed, credential: &Credential) -> Result<StoredImage, RuntimeError> {
    let progress = Progress::default();
    let image = bed.image("1");
    bed.layout.pull(&image, Some(credential), &progress).await
}

fn shelf() -> Shelf {
    let mut shelf = Shelf::default();
    let layers: Vec<_> = (0..16).map(|n| layer(n, 1000)).collect();
    put(&mut shelf, "1", "amd64", &layers);
    shelf
}

#[tokio::test]
async fn pull_renews_tokens_and_logs_none() {
    let logs = Capture::start();
    let identity = login(Login::IdentityToken(Secret::new(IDENTITY)));
    for credential in [password(PASSWORD), identity] {
        let (bed, service) = private(shelf()).await;
        pull(&bed, &credential).await.unwrap();
        assert_eq!(bed.blobs().len(), 18);
        assert!(service.asked().len() >= 3);
        let shown = format!("{credential:?}");
        assert!(!shown.contains("oci-"), "{shown}");
    }
    assert!(logs.text().contains("asking"), "nothing was captured");
    let encoded = [basic(USER, PASSWORD), basic("", IDENTITY)];
    logs.lacks(&[
        PASSWORD,
        IDENTITY,
        USER,
        "oci-bearer",
        &encoded[0],
        &encoded[1],
    ]);
}

#[tokio::test]
async fn wrong_password_error_names_the_host() {
    let logs = Capture::start();
    let (bed, service) = private(shelf()).await;
    let error = pull(&bed, &password("oci-wrong-password"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, FailureKind::Unauthorized);
    let expected = format!(
        "{} returned 401 Unauthorized: incorrect username or password",
        service.host
    );
    assert_eq!(error.message, expected);
    assert_eq!(service.asked().len(), 1);
    logs.lacks(&["oci-wrong-password", &basic(USER, "oci-wrong-password")]);
}
