//! The recipients of credentials: which hosts receive which credential, and which do not.

use super::*;
use crate::credentials::secret::Secret;

const PASSWORD: &str = "open sesame";
/// Base64 of `Aladdin:open sesame`.
const BASIC: &str = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
const TOKEN: &str = "identity/token+1";
/// Base64 of `:identity/token+1`.
const BASIC_TOKEN: &str = "Basic OmlkZW50aXR5L3Rva2VuKzE=";

fn with_password(password: &str) -> Credential {
    Credential {
        login: Arc::new(Login::Password {
            user: Secret::new("Aladdin"),
            password: Secret::new(password),
        }),
        source: "test".into(),
        is_pull_secret: false,
    }
}

fn aladdin() -> Credential {
    with_password(PASSWORD)
}

fn identity() -> Credential {
    Credential {
        login: Arc::new(Login::IdentityToken(Secret::new(TOKEN))),
        source: "test".into(),
        is_pull_secret: false,
    }
}

async fn ask(
    client: &Client,
    registry: &StandIn,
    credential: Option<&Credential>,
) -> Result<Manifest, Error> {
    let image = image(registry);
    let access = Access {
        image: &image,
        credential,
    };
    client.manifest(access, None).await
}

/// The error of one pull, which shows no secret of any of these tests.
async fn refused(registry: &StandIn, credential: &Credential) -> Error {
    let error = ask(&client(), registry, Some(credential))
        .await
        .unwrap_err();
    let shown = format!("{} {error:?}", error.chain());
    for secret in [PASSWORD, TOKEN, &BASIC[6..], &BASIC_TOKEN[6..], "issued"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    error
}

fn authorizations(server: &StandIn) -> Vec<Option<String>> {
    let asked = server.asked();
    let all = asked.iter().map(|a| a.header("authorization"));
    all.map(|a| a.map(str::to_owned)).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A registry that accepts this authorization, and sends this challenge for all others.
async fn registry(good: &'static str, challenge: String) -> StandIn {
    let shelf = shelf();
    StandIn::start(move |asked| {
        if asked.header("authorization") == Some(good) {
            return shelf.answer(asked);
        }
        let shown = asked.header("authorization").unwrap_or_default();
        let body = format!(r#"{{"errors":[{{"code":"UNAUTHORIZED","message":"not {shown}"}}]}}"#);
        Reply::new(401, body).with("www-authenticate", &challenge)
    })
    .await
}

async fn basic_registry() -> StandIn {
    registry(BASIC, r#"Basic realm="Cave""#.to_owned()).await
}

/// A registry with a token service that sends this response.
async fn with_service(
    answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (StandIn, StandIn) {
    let service = StandIn::start(answer).await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="cave",scope="repository:a/b:pull""#,
        service.host
    );
    (registry("Bearer issued", challenge).await, service)
}

fn issue(_: &Asked) -> Reply {
    Reply::new(200, r#"{"access_token":"issued"}"#)
}

#[tokio::test]
async fn password_is_sent_after_first_challenge() {
    let registry = basic_registry().await;
    let client = client();
    for _ in 0..2 {
        ask(&client, &registry, Some(&aladdin())).await.unwrap();
    }
    let shown = authorizations(&registry);
    assert_eq!(shown, [None, some(BASIC), some(BASIC)]);
    let error = ask(&client, &registry, None).await.unwrap_err();
    assert!(matches!(error, Error::NoCredentials { .. }), "{error}");
    assert_eq!(authorizations(&registry)[3..], [None]);
}

#[tokio::test]
async fn open_registry_gets_no_credential() {
    let shelf = shelf();
    let open = StandIn::start(move |asked| shelf.answer(asked)).await;
    ask(&client(), &open, Some(&aladdin())).await.unwrap();
    assert_eq!(authorizations(&open), [None]);
}

#[tokio::test]
async fn wrong_password_is_not_retried() {
    let registry = basic_registry().await;
    let client = client();
    let wrong = with_password("wrong password");
    for requests in [2, 3] {
        let error = ask(&client, &registry, Some(&wrong)).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Unauthorized);
        // The mock server quotes the credential, as no server should.
        let expected = format!(
            "{} returned 401 Unauthorized: UNAUTHORIZED: not Basic [secret]",
            registry.host
        );
        assert_eq!(error.chain(), expected);
        assert_eq!(registry.asked().len(), requests);
    }
    ask(&client, &registry, Some(&aladdin())).await.unwrap();
}

#[tokio::test]
async fn forbidden_is_unauthorized_and_not_retried() {
    let forbidden = |asked: &Asked| match asked.header("authorization") {
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        Some(_) => Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
    };
    let registry = StandIn::start(forbidden).await;
    let error = refused(&registry, &aladdin()).await;
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert_eq!(registry.asked().len(), 2);
}

#[tokio::test]
async fn password_goes_only_to_token_service() {
    let (registry, service) = with_service(|asked| match asked.header("authorization") {
        Some(BASIC) => issue(asked),
        Some(_) => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
        None => Reply::new(200, r#"{"token":"anonymous"}"#),
    })
    .await;
    let client = client();
    for _ in 0..2 {
        ask(&client, &registry, Some(&aladdin())).await.unwrap();
    }
    let asked = service.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/token?service=cave&scope=repository%3Aa%2Fb%3Apull&account=Aladdin"
    );
    let issued = some("Bearer issued");
    assert_eq!(authorizations(&registry), [None, issued.clone(), issued]);

    let error = ask(&client, &registry, None).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert_eq!(
        authorizations(&registry)[3..],
        [None, some("Bearer anonymous")]
    );

    let wrong = with_password("wrong");
    let error = ask(&client, &registry, Some(&wrong)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    let expected = format!(
        "{} returned 401 Unauthorized: incorrect username or password",
        service.host
    );
    assert_eq!(error.chain(), expected);
    assert_eq!(authorizations(&registry)[5..], [None]);
    assert_eq!(service.asked().len(), 3);
}

#[tokio::test]
async fn refused_token_is_renewed_with_password() {
    let good = Arc::new(AtomicUsize::new(0));
    let (registry, service) = with_tokens("", good.clone()).await;
    let client = client();
    ask(&client, &registry, Some(&aladdin())).await.unwrap();
    good.store(1, Ordering::SeqCst);
    ask(&client, &registry, Some(&aladdin())).await.unwrap();
    assert_eq!(authorizations(&service), [some(BASIC), some(BASIC)]);
    good.store(99, Ordering::SeqCst);
    let before = registry.asked().len();
    let error = ask(&client, &registry, Some(&aladdin())).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert!(error.chain().starts_with(&registry.host), "{error}");
    assert_eq!(registry.asked().len(), before + 2);
}

#[tokio::test]
async fn identity_token_is_posted() {
    let (registry, service) = with_service(issue).await;
    ask(&client(), &registry, Some(&identity())).await.unwrap();
    let asked = service.asked();
    assert_eq!(asked.len(), 1);
    let request = (asked[0].method.as_str(), asked[0].path.as_str());
    assert_eq!(request, ("POST", "/token"));
    assert_eq!(
        asked[0].header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(asked[0].header("authorization"), None);
    assert_eq!(
        asked[0].body,
        "grant_type=refresh_token&refresh_token=identity%2Ftoken%2B1&service=cave\
         &scope=repository%3Aa%2Fb%3Apull&client_id=harpoon"
    );
}

#[tokio::test]
async fn identity_token_falls_back_to_get() {
    for status in [404, 405] {
        let (registry, service) = with_service(move |asked| match asked.header("authorization") {
            Some(BASIC_TOKEN) if asked.method == "GET" => issue(asked),
            _ => Reply::new(status, ""),
        })
        .await;
        ask(&client(), &registry, Some(&identity())).await.unwrap();
        assert_eq!(service.asked().len(), 2);
    }
    let (registry, _service) = with_service(|_| Reply::new(404, "")).await;
    for credential in [identity(), aladdin()] {
        let error = refused(&registry, &credential).await;
        assert!(matches!(error, Error::Token { .. }), "{error}");
    }
}

#[tokio::test]
async fn expired_identity_token_is_refused() {
    for (status, body) in [
        (
            400,
            r#"{"error":"invalid_grant","error_description":"identity/token+1 ran out"}"#,
        ),
        (
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"identity/token+1"}]}"#,
        ),
        (403, ""),
    ] {
        let (registry, service) = with_service(move |_| Reply::new(status, body)).await;
        let error = refused(&registry, &identity()).await;
        assert_eq!(error.kind(), FailureKind::Unauthorized, "{error}");
        assert!(error.chain().starts_with(&service.host), "{error}");
        assert_eq!(service.asked().len(), 1);
    }
    let (registry, _service) = with_service(|_| Reply::new(400, "{}")).await;
    let error = refused(&registry, &identity()).await;
    assert_eq!(error.kind(), FailureKind::Other);
}

#[tokio::test]
async fn identity_token_never_goes_to_registry() {
    let registry = basic_registry().await;
    let error = refused(&registry, &identity()).await;
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert_eq!(authorizations(&registry), [None]);
    let odd = super::registry_with_challenge("Negotiate").await;
    let error = refused(&odd, &aladdin()).await;
    assert!(matches!(error, Error::Scheme { .. }), "{error}");
    assert_eq!(authorizations(&odd), [None]);
}

#[tokio::test]
async fn bearer_is_preferred_to_basic() {
    let service = StandIn::start(issue).await;
    let both = format!(
        r#"Basic realm="x", Bearer realm="http://{}/""#,
        service.host
    );
    let registry = registry("Bearer issued", both).await;
    ask(&client(), &registry, Some(&aladdin())).await.unwrap();
    assert_eq!(authorizations(&service), [some(BASIC)]);
}

#[tokio::test]
async fn redirected_token_request_carries_no_credential() {
    let thief = StandIn::start(|_| Reply::new(200, r#"{"token":"issued"}"#)).await;
    let to = format!("http://{}/", thief.host);
    let (registry, _service) = with_service(move |_| Reply::redirect(&to)).await;
    // A token that was issued anonymously.
    ask(&client(), &registry, Some(&aladdin())).await.unwrap();
    assert_eq!(authorizations(&thief), [None]);
    let error = refused(&registry, &identity()).await;
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert_eq!(thief.asked().len(), 1);

    let to = format!("http://{}/", thief.host);
    let registry = StandIn::start(move |asked| match asked.header("authorization") {
        None => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        Some(_) => Reply::redirect(&to),
    })
    .await;
    let _ = ask(&client(), &registry, Some(&aladdin())).await;
    assert_eq!(authorizations(&thief), [None, None]);
}

#[tokio::test]
async fn redirect_target_challenge_gets_no_credential() {
    let thief =
        StandIn::start(|_| Reply::new(401, "").with("www-authenticate", "Basic realm=x")).await;
    let to = format!("http://{}/", thief.host);
    let registry = StandIn::start(move |_| Reply::redirect(&to)).await;
    let error = refused(&registry, &aladdin()).await;
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert_eq!(authorizations(&thief), [None]);
    assert_eq!(authorizations(&registry), [None]);
}

#[tokio::test]
async fn remote_plaintext_realm_gets_no_credential() {
    let realm = r#"Bearer realm="http://auth.invalid/token""#;
    let registry = super::registry_with_challenge(realm).await;
    for credential in [aladdin(), identity()] {
        let error = refused(&registry, &credential).await;
        assert!(error.chain().contains("is not https"), "{error}");
    }
}
