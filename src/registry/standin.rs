//! A mock registry for the faults that a real one does not produce on demand. Uses raw HTTP/1.1 on loopback.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

pub(crate) use crate::fake_http::Asked;
use crate::fake_http::on_tcp;
use crate::model::digest::Digest;
use crate::registry::digest::sha256;
use crate::registry::manifest::OCI_INDEX;

/// The response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Whole,
    /// The connection is closed after this many bytes of the body.
    Cut(usize),
    /// The response stalls after this many bytes.
    Stall(usize),
    /// The body is repeated endlessly, in chunks.
    Endless,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            end: End::Whole,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(307, "").with("location", to)
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.end = End::Cut(after);
        self
    }

    pub(crate) fn stall(mut self, after: usize) -> Self {
        self.end = End::Stall(after);
        self
    }

    pub(crate) fn endless(mut self) -> Self {
        self.end = End::Endless;
        self
    }
}

/// The server; it stops when this is dropped.
pub(crate) struct StandIn {
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl StandIn {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let answer = Arc::new(answer);
        let (address, task) = on_tcp(move |stream| {
            let (answer, log) = (answer.clone(), log.clone());
            async move {
                let _ = serve(stream, &*answer, &log).await;
            }
        })
        .await;
        let host = address.to_string();
        Self { host, asked, task }
    }

    /// All requests, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Number of requests for a path that contains `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked()
            .iter()
            .filter(|a| a.path.contains(part))
            .count()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: &(dyn Fn(&Asked) -> Reply + Send + Sync),
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let asked = match Asked::read(&mut stream).await {
        // The response of Go's server over plain http.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            let told = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
            return stream.write_all(told).await;
        }
        asked => asked?,
    };
    let reply = answer(&asked);
    let is_head = asked.method == "HEAD";
    log.lock().unwrap().push(asked);
    let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &match reply.end {
        End::Endless => "transfer-encoding: chunked\r\n\r\n".to_owned(),
        _ => format!("content-length: {}\r\n\r\n", reply.body.len()),
    };
    stream.write_all(text.as_bytes()).await?;
    let body = if is_head { &[][..] } else { &reply.body };
    match reply.end {
        End::Whole => stream.write_all(body).await,
        End::Cut(after) => stream.write_all(&body[..after]).await,
        End::Stall(after) => {
            stream.write_all(&body[..after]).await?;
            std::future::pending().await
        }
        End::Endless => loop {
            let size = format!("{:x}\r\n", body.len());
            stream.write_all(size.as_bytes()).await?;
            stream.write_all(body).await?;
            stream.write_all(b"\r\n").await?;
        },
    }
}

/// The content of a registry, by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    content: HashMap<String, (String, Vec<u8>)>,
}

impl Shelf {
    pub(crate) fn blob(&mut self, repository: &str, content: &[u8]) -> Digest {
        let digest = sha256(content);
        let path = format!("/v2/{repository}/blobs/{digest}");
        let octets = "application/octet-stream".to_owned();
        self.content.insert(path, (octets, content.to_vec()));
        digest
    }

    pub(crate) fn manifest(
        &mut self,
        repository: &str,
        tag: &str,
        media_type: &str,
        content: &serde_json::Value,
    ) -> serde_json::Value {
        let text = serde_json::to_vec(content).unwrap();
        let digest = sha256(&text);
        for name in [tag, digest.as_str()] {
            let path = format!("/v2/{repository}/manifests/{name}");
            let kept = (media_type.to_owned(), text.clone());
            self.content.insert(path, kept);
        }
        serde_json::json!({ "mediaType": media_type, "digest": digest.as_str(), "size": text.len() })
    }

    pub(crate) fn index(
        &mut self,
        repository: &str,
        tag: &str,
        entries: &[serde_json::Value],
    ) -> serde_json::Value {
        let content =
            serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        self.manifest(repository, tag, OCI_INDEX, &content)
    }

    /// The response of a registry, including ranges.
    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        let Some((media_type, body)) = self.content.get(&asked.path) else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
            return Reply::new(404, body);
        };
        let reply = match range_from(asked) {
            Some(from) if from >= body.len() => Reply::new(416, ""),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                Reply::new(206, &body[from..]).with("content-range", &range)
            }
            None => Reply::new(200, body.as_slice()),
        };
        let digest = sha256(body);
        reply
            .with("content-type", media_type)
            .with("docker-content-digest", digest.as_str())
    }
}

/// The first requested byte of a range without an end.
fn range_from(asked: &Asked) -> Option<usize> {
    let range = asked.header("range")?.strip_prefix("bytes=")?;
    range.strip_suffix('-')?.parse().ok()
}
