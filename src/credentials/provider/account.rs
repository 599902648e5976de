//! The service account whose token a plugin exchanges for a credential (`tokenAttributes`, KEP-4412).
//!
//! The kubelet creates a token for each pod. harpoon uses its own pod's: a projected volume at [`DIRECTORY`] holds a token for
//! the plugin's audience, in a file of any name, and the pod's annotations in the file `annotations` replace those of the service
//! account. The token is only parsed to find its audience; the registry validates it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::config::{text, texts};
use crate::credentials::docker_config::read_bounded;
use crate::credentials::secret::Secret;
use crate::model::text::excerpt;

/// Mount path of the volume.
pub const DIRECTORY: &str = "/var/run/secrets/harpoon.dev/tokens";
/// The file of the downward API with the pod's annotations.
const ANNOTATIONS: &str = "annotations";
/// Maximum number of files of the directory that are read, far more than a volume projects.
const FILES_MAX: usize = 64;

/// The service account as the plugin's request describes it.
#[derive(Debug)]
pub(super) struct Account {
    directory: PathBuf,
    audience: String,
    is_required: bool,
    /// True if a credential may be used after the token that it was obtained with has expired.
    outlives_token: bool,
    annotations: BTreeMap<String, String>,
}

impl Account {
    /// Reads a provider's `tokenAttributes`.
    ///
    /// # Errors
    /// The reason why the plugin cannot be used from this pod.
    pub(super) fn parse(attributes: &Value, directory: &Path) -> Result<Self, String> {
        let fields = attributes
            .as_object()
            .ok_or("tokenAttributes must be an object")?;
        known(fields)?;
        let audience = text(fields, "serviceAccountTokenAudience")?.unwrap_or_default();
        if audience.is_empty() {
            return Err("tokenAttributes has no serviceAccountTokenAudience".to_owned());
        }
        let outlives_token = match text(fields, "cacheType")? {
            Some("ServiceAccount") => true,
            // Kubernetes 1.33 had no such field.
            Some("Token") | None => false,
            Some(_) => {
                return Err("unsupported cacheType of tokenAttributes".to_owned());
            }
        };
        let is_required = match fields.get("requireServiceAccount") {
            Some(Value::Bool(required)) => *required,
            _ => {
                return Err(
                    "requireServiceAccount of tokenAttributes must be true or false".to_owned(),
                );
            }
        };
        let mut account = Self {
            directory: directory.to_owned(),
            audience: audience.to_owned(),
            is_required,
            outlives_token,
            annotations: BTreeMap::new(),
        };
        if account.token().is_some() {
            account.take_annotations(fields)?;
        } else if is_required {
            return Err(format!(
                "its plugin needs a service account token for the audience {}, and {} holds none",
                excerpt(audience),
                directory.display()
            ));
        }
        Ok(account)
    }

    /// Reads the annotations that the plugin requires.
    fn take_annotations(&mut self, fields: &Map<String, Value>) -> Result<(), String> {
        let mut has = self.read_annotations();
        for key in texts(fields, "requiredServiceAccountAnnotationKeys")? {
            let Some(value) = has.remove(&key) else {
                return Err(format!(
                    "its plugin needs the annotation {}, and {} has none",
                    excerpt(&key),
                    self.directory.join(ANNOTATIONS).display()
                ));
            };
            self.annotations.insert(key, value);
        }
        for key in texts(fields, "optionalServiceAccountAnnotationKeys")? {
            if let Some(value) = has.remove(&key) {
                self.annotations.insert(key, value);
            }
        }
        Ok(())
    }

    /// The paths below the volume's directory that [`Account::parse`] reads.
    pub(super) fn files(directory: &Path) -> [PathBuf; 2] {
        [directory.to_owned(), directory.join(ANNOTATIONS)]
    }

    /// The current token, since the kubelet renews it; `None` if there is none for the audience.
    pub(super) fn token(&self) -> Option<Secret> {
        let files = fs::read_dir(&self.directory).ok()?;
        let mut paths: Vec<PathBuf> = files.flatten().map(|f| f.path()).take(FILES_MAX).collect();
        paths.sort();
        paths.iter().filter(|path| path.is_file()).find_map(|path| {
            let token = String::from_utf8(read_bounded(path).ok()??).ok()?;
            let token = token.trim();
            is_for(token, &self.audience).then(|| Secret::new(token))
        })
    }

    /// Returns whether the plugin requires a token.
    pub(super) fn is_required(&self) -> bool {
        self.is_required
    }

    /// Returns whether a credential may be used after the token that it was obtained with has expired.
    pub(super) fn outlives_token(&self) -> bool {
        self.outlives_token
    }

    /// The annotations that the plugin requires.
    pub(super) fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    fn read_annotations(&self) -> BTreeMap<String, String> {
        let bytes = read_bounded(&self.directory.join(ANNOTATIONS));
        let text = bytes.ok().flatten().map(String::from_utf8);
        let text = text.and_then(Result::ok).unwrap_or_default();
        let line = |line: &str| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), unquoted(value)?))
        };
        text.lines().filter_map(line).collect()
    }
}

fn known(fields: &Map<String, Value>) -> Result<(), String> {
    const KNOWN: &[&str] = &[
        "serviceAccountTokenAudience",
        "cacheType",
        "requireServiceAccount",
        "requiredServiceAccountAnnotationKeys",
        "optionalServiceAccountAnnotationKeys",
    ];
    match fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) => Err(format!(
            "unsupported field {} of tokenAttributes",
            excerpt(key)
        )),
        None => Ok(()),
    }
}

/// Returns whether a JSON Web Token names this audience.
fn is_for(token: &str, audience: &str) -> bool {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&payload).unwrap_or_default();
    match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|one| one == audience),
        _ => false,
    }
}

/// A text as the downward API quotes it: Go's `%q`.
fn unquoted(text: &str) -> Option<String> {
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut plain = String::new();
    while let Some(c) = rest.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        let digits = match rest.next()? {
            'n' => {
                plain.push('\n');
                continue;
            }
            'r' => {
                plain.push('\r');
                continue;
            }
            't' => {
                plain.push('\t');
                continue;
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c @ ('\\' | '"') => {
                plain.push(c);
                continue;
            }
            _ => return None,
        };
        let code: String = rest.by_ref().take(digits).collect();
        let code = u32::from_str_radix(&code, 16).ok()?;
        plain.push(char::from_u32(code)?);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(aud: &Value) -> String {
        let payload = URL_SAFE_NO_PAD.encode(json!({ "aud": aud }).to_string());
        format!("e30.{payload}.c2ln")
    }

    fn volume(tokens: &[Value], annotations: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (place, aud) in tokens.iter().enumerate() {
            fs::write(dir.path().join(format!("t{place}")), token(aud)).unwrap();
        }
        fs::write(dir.path().join(ANNOTATIONS), annotations).unwrap();
        dir
    }

    #[test]
    fn token_is_found_by_audience() {
        let dir = volume(&[json!("a"), json!(["b", "https://quay.example"])], "");
        for (audience, found) in [("a", true), ("https://quay.example", true), ("c", false)] {
            let attributes = json!({"serviceAccountTokenAudience": audience, "cacheType": "Token",
                "requireServiceAccount": false});
            let account = Account::parse(&attributes, dir.path()).unwrap();
            assert_eq!(account.token().is_some(), found, "{audience}");
            let required = json!({"serviceAccountTokenAudience": audience, "cacheType": "Token",
                "requireServiceAccount": true});
            assert_eq!(Account::parse(&required, dir.path()).is_ok(), found);
        }
    }

    #[test]
    fn annotations_come_from_the_pod() {
        let dir = volume(
            &[json!("a")],
            "example.com/role=\"arn:\\\"x\\\"\\n\u{e9}\"\nother=\"y\"\nbroken\n",
        );
        let attributes = json!({"serviceAccountTokenAudience": "a", "cacheType": "ServiceAccount",
            "requireServiceAccount": true, "requiredServiceAccountAnnotationKeys": ["example.com/role"],
            "optionalServiceAccountAnnotationKeys": ["example.com/none"]});
        let account = Account::parse(&attributes, dir.path()).unwrap();
        assert_eq!(account.annotations().len(), 1);
        assert_eq!(
            account.annotations()["example.com/role"],
            "arn:\"x\"\n\u{e9}"
        );
        assert!(account.outlives_token());
    }

    #[test]
    fn unusable_attributes_name_the_reason() {
        let dir = volume(&[json!("a")], "");
        for (attributes, wanted) in [
            (json!("x"), "must be an object"),
            (
                json!({"requireServiceAccount": true}),
                "no serviceAccountTokenAudience",
            ),
            (
                json!({"serviceAccountTokenAudience": "a"}),
                "requireServiceAccount",
            ),
            (
                json!({"serviceAccountTokenAudience": "a", "requireServiceAccount": true, "cacheType": "Pod"}),
                "cacheType",
            ),
            (
                json!({"serviceAccountTokenAudience": "a", "requireServiceAccount": true, "new": 1}),
                "unsupported field new",
            ),
            (
                json!({"serviceAccountTokenAudience": "a", "requireServiceAccount": true,
                "requiredServiceAccountAnnotationKeys": ["k"]}),
                "needs the annotation k",
            ),
            (
                json!({"serviceAccountTokenAudience": "b", "requireServiceAccount": true}),
                "for the audience b",
            ),
        ] {
            let error = Account::parse(&attributes, dir.path()).unwrap_err();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
