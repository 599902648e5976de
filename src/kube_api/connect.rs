//! Finds the cluster and creates its client.
//!
//! A kubeconfig that is named, or `KUBECONFIG`, if set, is an explicit choice and takes precedence. Otherwise a pod (`KUBERNETES_SERVICE_HOST` is set) uses its
//! service account, and any other process `~/.kube/config`. This module sends no request.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::runtime::Handle;

use super::counted::RequestCounts;
use super::error::{ConnectError, KubeconfigProblem, TransportError};
use crate::model::failure::FailureKind;
use crate::retry::backoff;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without any byte after which a connection counts as lost. Watches receive a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(180);
/// Time limit for a credential plugin, which may wait for a login in a browser.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster's API server and the time limits for it.
pub struct Cluster {
    client: Client,
    pub(crate) default_namespace: String,
    /// Scheme, host and port.
    pub(crate) server: String,
    pub(crate) patience: Patience,
    requests: RequestCounts,
}

/// Time limits for an API server, and the pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The longest time without receiving a byte.
    pub(crate) idle: Duration,
    /// The pauses between attempts, as a fraction of those of [`backoff::wait`].
    pub(crate) pace: f64,
    /// The longest pause that the API server can request.
    pub(crate) longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            pace: 1.0,
            longest_pause: Duration::from_secs(30),
        }
    }
}

impl Patience {
    /// Sleeps before another attempt, of which the first is 1: the pause that the API server requested, plus a random part of a
    /// time that doubles.
    pub(crate) async fn pause(&self, tried: u32, asked: Option<Duration>) {
        let asked = asked.unwrap_or_default().min(self.longest_pause);
        let wait = backoff::wait(FailureKind::Other, tried, None);
        tokio::time::sleep(asked + wait.mul_f64(self.pace)).await;
    }
}

impl Cluster {
    /// The pod's own namespace, or that of the kubeconfig's context.
    pub fn default_namespace(&self) -> &str {
        &self.default_namespace
    }

    /// The API server: scheme, host and port.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The client, for requests of other modules. It exposes no credential and cannot be printed.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The number of requests that the client has sent.
    pub(crate) fn requests(&self) -> &RequestCounts {
        &self.requests
    }

    /// Creates the client. Requires a tokio runtime. May run a credential plugin, so it may block.
    pub(crate) fn from_config(mut config: Config) -> Result<Self, ConnectError> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        // Retries are made in one place only, which handles pages.
        config.default_retry = false;
        config.headers.push((
            http::header::USER_AGENT,
            http::HeaderValue::from_static(concat!("harpoon/", env!("CARGO_PKG_VERSION"))),
        ));
        let server = server_name(&config.cluster_url);
        let default_namespace = config.default_namespace.trim().to_owned();
        let requests = RequestCounts::default();
        let client = ClientBuilder::try_from(config)
            .map_err(|error| ConnectError::Client(TransportError(error)))?
            .with_layer(&requests)
            .build();
        Ok(Self {
            client,
            default_namespace,
            server,
            patience: Patience::default(),
            requests,
        })
    }
}

/// The cluster that a user names. By default, it is found.
#[derive(Debug, Clone, Default)]
pub struct ClusterChoice {
    /// A kubeconfig file instead of the one that is found.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig instead of its current one; a service account has none.
    pub context: Option<String>,
}

/// Finds the cluster and its credentials, and creates the client.
///
/// # Errors
/// If no cluster is configured, or its configuration cannot be used. The connection is not tested.
pub async fn connect() -> Result<Cluster, ConnectError> {
    connect_to(ClusterChoice::default()).await
}

/// Creates the client of the cluster that a user names.
///
/// # Errors
/// Those of [`connect`], and if the file or the context does not exist.
pub async fn connect_to(choice: ClusterChoice) -> Result<Cluster, ConnectError> {
    // Reading certificates and running a credential plugin block.
    let made = tokio::task::spawn_blocking(move || Cluster::from_config(find_config(&choice)?));
    match tokio::time::timeout(PLUGIN_TIMEOUT, made).await {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(ended)) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ConnectError::Plugin(PLUGIN_TIMEOUT)),
        },
        Err(_) => Err(ConnectError::Plugin(PLUGIN_TIMEOUT)),
    }
}

fn find_config(choice: &ClusterChoice) -> Result<Config, ConnectError> {
    let problem = |error| ConnectError::Kubeconfig(KubeconfigProblem(error));
    let context = choice.context.as_deref();
    let named = match &choice.kubeconfig {
        Some(file) => Some(Kubeconfig::read_from(file).map_err(problem)?),
        None => Kubeconfig::from_env().map_err(problem)?,
    };
    if let Some(kubeconfig) = named {
        return from_kubeconfig(kubeconfig, context).map_err(problem);
    }
    if context.is_none()
        && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
    {
        return Config::incluster().map_err(ConnectError::ServiceAccount);
    }
    let file = std::env::home_dir().map(|home| home.join(".kube/config"));
    match file {
        Some(file) if file.exists() => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(problem)?;
            from_kubeconfig(kubeconfig, context).map_err(problem)
        }
        file => {
            let file = file.unwrap_or_else(|| PathBuf::from("~/.kube/config"));
            Err(ConnectError::NoCluster(file.display().to_string()))
        }
    }
}

fn from_kubeconfig(
    kubeconfig: Kubeconfig,
    context: Option<&str>,
) -> Result<Config, KubeconfigError> {
    let context = context.or(kubeconfig.current_context.as_deref());
    let explicit_proxy = has_proxy(&kubeconfig, context.unwrap_or_default());
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let made = Config::from_custom_kubeconfig(kubeconfig, &options);
    let mut config = Handle::current().block_on(made)?;
    // kube uses HTTPS_PROXY for any server. As in kubectl, loopback addresses and the hosts in NO_PROXY are connected to
    // directly.
    if !explicit_proxy && !proxied(&config.cluster_url, &Matcher::from_env()) {
        config.proxy_url = None;
    }
    Ok(config)
}

/// Returns whether the context's cluster has a proxy of its own.
fn has_proxy(kubeconfig: &Kubeconfig, context: &str) -> bool {
    let context = kubeconfig
        .contexts
        .iter()
        .find(|known| known.name == context);
    let Some(context) = context.and_then(|known| known.context.as_ref()) else {
        return false;
    };
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|known| known.name == context.cluster);
    let cluster = cluster.and_then(|known| known.cluster.as_ref());
    cluster.is_some_and(|cluster| {
        cluster
            .proxy_url
            .as_ref()
            .is_some_and(|url| !url.is_empty())
    })
}

fn proxied(server: &http::Uri, environment: &Matcher) -> bool {
    let host = server.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !loopback && environment.intercept(server).is_some()
}

/// Scheme, host and port only: a URL may contain a password.
fn server_name(url: &http::Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("https");
    let host = url.host().unwrap_or("?");
    match url.port_u16() {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_name_omits_password() {
        let url = "https://user:secret@api.example:6443/k8s/clusters/c-1"
            .parse()
            .unwrap();
        assert_eq!(server_name(&url), "https://api.example:6443");
    }

    #[test]
    fn loopback_and_no_proxy_bypass_proxy() {
        let environment = Matcher::builder()
            .https("http://proxy:3128")
            .no(".internal,10.0.0.0/8")
            .build();
        let asked = |url: &str| proxied(&url.parse().unwrap(), &environment);
        assert!(asked("https://api.example:6443"));
        for direct in [
            "https://127.0.0.1:6443",
            "https://[::1]:6443",
            "https://localhost:6443",
            "https://api.internal",
            "https://10.1.2.3",
            "http://api.example",
        ] {
            assert!(!asked(direct), "{direct}");
        }
    }

    #[test]
    fn broken_kubeconfig_is_not_quoted() {
        let text = "users:\n- name: a\n  user: {token: s3cr3t, password: [s3cr3t]}\n";
        let error = Kubeconfig::from_yaml(text).unwrap_err();
        let said = ConnectError::Kubeconfig(KubeconfigProblem(error)).to_string();
        assert!(!said.contains("s3cr3t"), "{said}");
        assert!(said.contains("line 3"), "{said}");
    }
}
