use std::time::Duration;

use super::challenge::{Challenge, parse_challenges};
use super::*;
use crate::credentials::secret::{Credential, Secret};
use crate::model::reference::Reference;

fn challenge(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    parse_challenges(header)
        .into_iter()
        .map(|c| (c.scheme, c.parameters))
        .collect()
}

fn bearer(parameters: &[(&str, &str)]) -> Challenge {
    Challenge {
        scheme: "bearer".to_owned(),
        parameters: parameters
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    }
}

#[test]
fn challenges_with_quotes_and_schemes_parse() {
    let pairs = |list: &[(&str, &str)]| bearer(list).parameters;
    for (header, expected) in [
        (
            r#"Bearer realm="https://a.example/t",service="s",scope="repository:a/b:pull,push""#,
            vec![(
                "bearer",
                pairs(&[
                    ("realm", "https://a.example/t"),
                    ("service", "s"),
                    ("scope", "repository:a/b:pull,push"),
                ]),
            )],
        ),
        (
            r#"BASIC Realm = "a \"b\", c=d" , bearer realm=x"#,
            vec![
                ("basic", pairs(&[("realm", r#"a "b", c=d"#)])),
                ("bearer", pairs(&[("realm", "x")])),
            ],
        ),
        (
            "Negotiate abc==, Basic realm=\"\"",
            vec![
                ("negotiate", pairs(&[("abc", "=")])),
                ("basic", pairs(&[("realm", "")])),
            ],
        ),
        (
            r#"Bearer realm="never ends \"#,
            vec![("bearer", pairs(&[("realm", "never ends ")]))],
        ),
        ("", vec![]),
        (", ,= \u{1},\"\"", vec![]),
        ("=x, Basic", vec![("basic", vec![])]),
    ] {
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(s, p)| (s.to_owned(), p))
            .collect();
        assert_eq!(challenge(header), expected, "{header}");
    }
}

proptest::proptest! {
    #[test]
    fn header_parser_never_panics_or_hangs(header in "[ -~]{0,200}") {
        parse_challenges(&header);
    }
}

#[test]
fn tokens_come_only_from_safe_realms() {
    let image = Reference::parse("r.example/a/b:1").unwrap();
    let anonymous = Access::anonymous(&image);
    let url = |realm: &str, plain: bool| {
        let challenge = bearer(&[("realm", realm), ("service", "a&b c")]);
        TokenRequest::new(&challenge, anonymous, "r.example", plain)
            .map(|request| String::from(request.url(None)))
    };
    let query = "service=a%26b+c&scope=repository%3Aa%2Fb%3Apull";
    assert_eq!(
        url("https://u:p@auth.example/t?x=1#f", false).unwrap(),
        format!("https://auth.example/t?x=1&{query}")
    );
    assert_eq!(
        url("http://127.0.0.1:1/t", true).unwrap(),
        format!("http://127.0.0.1:1/t?{query}")
    );
    for realm in ["http://auth.example/t", "file:///etc/passwd", "auth", ""] {
        assert!(url(realm, false).is_err(), "{realm}");
    }
    assert!(TokenRequest::new(&bearer(&[]), anonymous, "r.example", false).is_err());
    let both = bearer(&[("realm", "https://auth.example/t"), ("scope", "aws")]);
    let both = TokenRequest::new(&both, anonymous, "r.example", false).unwrap();
    assert_eq!(
        both.url(Some("me+you")).as_str(),
        "https://auth.example/t?scope=repository%3Aa%2Fb%3Apull&scope=aws&account=me%2Byou"
    );
}

#[test]
fn plaintext_credentials_stay_on_loopback() {
    let image = Reference::parse("127.0.0.1:1/a").unwrap();
    let credential = credential("me", "secret");
    let named = Access {
        image: &image,
        credential: Some(&credential),
    };
    for (realm, plain, named_too) in [
        ("https://auth.example/t", false, true),
        ("https://auth.example/t", true, true),
        ("http://127.0.0.1:2/t", true, true),
        ("http://[::1]:2/t", true, true),
        ("http://localhost/t", true, true),
        ("http://auth.example/t", true, false),
        ("http://127.0.0.1.example/t", true, false),
    ] {
        let challenge = bearer(&[("realm", realm)]);
        let asked = |access| TokenRequest::new(&challenge, access, "r", plain).is_ok();
        assert!(asked(Access::anonymous(&image)), "{realm}");
        assert_eq!(asked(named), named_too, "{realm}");
    }
    let in_clear = bearer(&[("realm", "http://127.0.0.1:2/t")]);
    assert!(TokenRequest::new(&in_clear, named, "r", false).is_err());
}

fn credential(user: &str, password: &str) -> Credential {
    Credential {
        login: Arc::new(Login::Password {
            user: Secret::new(user),
            password: Secret::new(password),
        }),
        source: "test".into(),
        is_pull_secret: false,
    }
}

#[test]
fn basic_header_is_base64_and_sensitive() {
    let header = basic(&credential("Aladdin", "open sesame").login).unwrap();
    // RFC 7617, section 2.
    assert_eq!(header, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    assert_eq!(format!("{header:?}"), "Sensitive");
    assert!(basic(&Login::IdentityToken(Secret::new("x"))).is_none());
    let header = basic(&Login::Bytes(Secret::new("dXNlcjrp"))).unwrap();
    assert_eq!(header, "Basic dXNlcjrp");
    assert_eq!(format!("{header:?}"), "Sensitive");
}

#[tokio::test]
async fn token_cache_is_bounded() {
    let tokens = Tokens::default();
    for n in 0..TOKENS_MAX * 3 {
        let image = Reference::parse(&format!("r.example/a{n}")).unwrap();
        let access = Access::anonymous(&image);
        assert!(tokens.current(access).await.is_none());
        let token = Token {
            header: header_of("token"),
            until: Instant::now() + Duration::from_secs(60),
        };
        tokens.keep(Key::of(access), token);
        assert!(tokens.current(access).await.is_some());
    }
    assert!(tokens.at_hand.lock().unwrap().len() <= TOKENS_MAX);
    for n in 0..TOKENS_MAX * 3 {
        tokens.remember_basic(&format!("r{n}"), &credential("a", "b").login);
    }
    assert!(tokens.basic.lock().unwrap().len() <= TOKENS_MAX);
}
