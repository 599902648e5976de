//! A real API server, and helpers that create its objects.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Daemon, block_on, block_on_runtime, client, directory, eventually, unique};

/// A real Kubernetes API server (1.20, RBAC) with its etcd. There are no controllers: Deployments create no ReplicaSets.
#[derive(Debug)]
pub struct Kubernetes {
    daemon: Daemon,
    client: reqwest::Client,
    /// What its requests run on where it is in a network of its own.
    inside: Option<Runtime>,
}

impl Kubernetes {
    pub fn start() -> Self {
        Self::reached_by(Daemon::start::<&str>("kubernetes", &[]), None)
    }

    /// An API server on the libraries of current Kubernetes: CEL, streamed lists, admission policies, no service account tokens.
    pub fn start_newer() -> Self {
        Self::reached_by(Daemon::start::<&str>("apiserver", &[]), None)
    }

    /// Installs harpoon's CustomResourceDefinitions and waits until they are served.
    pub fn install_definitions(&self) {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds.yaml"));
        let definitions: Vec<Value> = serde_saphyr::from_multiple(&text.unwrap()).unwrap();
        for definition in definitions.into_iter().filter(|d| !d.is_null()) {
            let plural = definition["spec"]["names"]["plural"]
                .as_str()
                .unwrap()
                .to_owned();
            self.create(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
                definition,
            );
            let path = format!("/apis/harpoon.dev/v1alpha1/{plural}");
            eventually(&path, Duration::from_secs(30), || {
                self.status(&path, self.token()) == 200
            });
        }
    }

    /// The one that `daemon` has in it.
    pub(super) fn reached_by(daemon: Daemon, inside: Option<Runtime>) -> Self {
        let client = client(Some(Path::new(daemon.value("CA"))));
        Self {
            daemon,
            client,
            inside,
        }
    }

    /// `https://127.0.0.1:PORT`
    pub fn server(&self) -> &str {
        self.daemon.value("SERVER")
    }

    /// The PEM file of the CA that signed its certificate.
    pub fn ca(&self) -> &Path {
        Path::new(self.daemon.value("CA"))
    }

    /// The token of a user who may do everything.
    pub fn token(&self) -> &str {
        self.daemon.value("TOKEN")
    }

    /// The token of a user who may do nothing.
    pub fn nobody(&self) -> &str {
        self.daemon.value("NOBODY_TOKEN")
    }

    /// A kubeconfig of the user who may do everything, in the namespace `default`.
    pub fn kubeconfig(&self) -> &Path {
        Path::new(self.daemon.value("KUBECONFIG"))
    }

    /// Writes a kubeconfig to `file`, for a server (this one, or a [`super::faulty::Proxy`] in front of it), a token and
    /// the context's namespace.
    pub fn write_kubeconfig(&self, file: &Path, server: &str, token: &str, namespace: &str) {
        let mut cluster = json!({"server": server});
        if server.starts_with("https") {
            cluster["certificate-authority"] = json!(self.ca());
        }
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": namespace}}]});
        std::fs::write(file, config.to_string()).unwrap();
    }

    /// Makes the directory of a pod's service account (`token`, `ca.crt`, `namespace`), for [`super::Harpoon::bind`] at
    /// `/var/run/secrets/kubernetes.io/serviceaccount`; the variables to go with it are [`Kubernetes::service`].
    pub fn account_directory(&self, namespace: &str, token: &str) -> tempfile::TempDir {
        let account = directory();
        let path = |name: &str| -> PathBuf { account.path().join(name) };
        std::fs::copy(self.ca(), path("ca.crt")).unwrap();
        std::fs::write(path("token"), token).unwrap();
        std::fs::write(path("namespace"), namespace).unwrap();
        account
    }

    /// The variables by which a pod finds the API server.
    pub fn service(&self) -> [(&'static str, String); 2] {
        let (_, port) = self.server().rsplit_once(':').unwrap();
        [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1".into()),
            ("KUBERNETES_SERVICE_PORT", port.into()),
        ]
    }

    /// Creates a namespace of the test's own and returns its name.
    pub fn namespace(&self) -> String {
        let name = unique("ns");
        self.create("/api/v1/namespaces", json!({"metadata": {"name": name}}));
        name
    }

    /// Creates a namespace unless it exists.
    pub fn ensure_namespace(&self, name: &str) {
        // Tests that share an API server may ask for the same one at once.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let namespaces = "/api/v1/namespaces";
        if self.get(namespaces)["items"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|namespace| namespace["metadata"]["name"] != name)
        {
            self.create(namespaces, json!({"metadata": {"name": name}}));
        }
    }

    /// Creates a service account without rights, and returns a token of it.
    pub fn service_account(&self, namespace: &str, name: &str) -> String {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&accounts, json!({"metadata": {"name": name}}));
        let request = json!({"spec": {"expirationSeconds": 86400, "audiences": ["https://kubernetes.default.svc"]}});
        let answer = self.create(&format!("{accounts}/{name}/token"), request);
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Grants a service account (`NAMESPACE`, `NAME`) rights in one namespace, or everywhere when `within` is none:
    /// `rules` as in a Role, such as `[{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]`.
    pub fn grant(&self, (namespace, account): (&str, &str), within: Option<&str>, rules: &Value) {
        let name = unique("grant");
        let (base, kind) = match within {
            Some(within) => (
                format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{within}/"),
                "Role",
            ),
            None => (
                "/apis/rbac.authorization.k8s.io/v1/cluster".to_owned(),
                "ClusterRole",
            ),
        };
        self.create(
            &format!("{base}roles"),
            json!({"metadata": {"name": name}, "rules": rules}),
        );
        let binding = json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": account}]});
        self.create(&format!("{base}rolebindings"), binding);
    }

    /// Makes a service account in `namespace` that may do just this everywhere `within` says, as [`Kubernetes::grant`]
    /// takes it, and returns a token of it once the API server's authoriser knows: then a GET of `proof` is allowed.
    pub fn account_with(
        &self,
        namespace: &str,
        within: Option<&str>,
        rules: &Value,
        proof: &str,
    ) -> String {
        let name = unique("account");
        let token = self.service_account(namespace, &name);
        self.grant((namespace, &name), within, rules);
        self.wait_until_allowed(proof, &token);
        token
    }

    /// Waits until the API server's authoriser knows a grant: a GET of `proof` is allowed then.
    pub fn wait_until_allowed(&self, proof: &str, token: &str) {
        eventually("the grant is known", Duration::from_secs(20), || {
            self.status(proof, token) == 200
        });
    }

    /// The HTTP status of a GET of `path` for the user of this token.
    pub fn status(&self, path: &str, token: &str) -> u16 {
        let request = self.client.get(format!("{}{path}", self.server()));
        let request = request.bearer_auth(token).send();
        self.block_on(async move { request.await.unwrap().status().as_u16() })
    }

    /// Makes a Node as old as this. The API server sets the time of creation itself, so it is written to etcd.
    pub fn age_node(&self, name: &str, age: Duration) {
        let mut node = self.get(&format!("/api/v1/nodes/{name}"));
        let created = humantime::format_rfc3339_seconds(SystemTime::now() - age);
        node["metadata"]["creationTimestamp"] = json!(created.to_string());
        node["metadata"]["resourceVersion"].take();
        let encoded = |text: &str| STANDARD.encode(text);
        let pair = json!({"key": encoded(&format!("/registry/minions/{name}")), "value": encoded(&node.to_string())});
        let etcd = self.daemon.value("ETCD");
        let request = client(None).post(format!("{etcd}/v3/kv/put"));
        block_on(async move {
            let answer = request.body(pair.to_string()).send().await.unwrap();
            assert!(answer.status().is_success(), "{answer:?}");
        });
    }

    /// Compacts etcd to the current revision, so that a paginated list in progress expires.
    pub fn compact(&self) {
        let etcd = self.daemon.value("ETCD").to_owned();
        let ask = move |path: &str, body: Value| {
            let request = client(None).post(format!("{etcd}{path}"));
            async move { request.body(body.to_string()).send().await?.text().await }
        };
        block_on(async move {
            let range = ask("/v3/kv/range", json!({"key": "AA==", "count_only": true}));
            let range: Value = serde_json::from_str(&range.await.unwrap()).unwrap();
            let now = &range["header"]["revision"];
            let done = ask(
                "/v3/kv/compaction",
                json!({"revision": now, "physical": true}),
            );
            let done = done.await.unwrap();
            assert!(!done.contains("error"), "{done}");
        });
    }

    /// Makes a Deployment of one image.
    pub fn deployment(&self, namespace: &str, name: &str, replicas: u32, image: &str) {
        let labels = json!({"app": name});
        let spec = json!({"containers": [{"name": "main", "image": image}]});
        let deployment = json!({"metadata": {"name": name, "labels": labels}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}});
        self.create(
            &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
            deployment,
        );
    }

    /// Creates an object: a POST to the path of its collection, without `apiVersion` and `kind`, which that tells.
    #[track_caller]
    pub fn create(&self, collection: &str, object: Value) -> Value {
        self.request(&Method::POST, collection, Some(object))
    }

    /// Creates many objects in one collection.
    pub fn create_all(&self, collection: &str, objects: Vec<Value>) {
        let objects = objects.into_iter();
        self.create_each(objects.map(|object| (collection.to_owned(), object)));
    }

    /// Creates many objects, each in its collection, many at a time.
    pub fn create_each(&self, objects: impl IntoIterator<Item = (String, Value)>) {
        self.send_each(&Method::POST, "application/json", objects);
    }

    /// Merge patches of many paths, many at a time.
    pub fn patch_each(&self, patches: impl IntoIterator<Item = (String, Value)>) {
        self.send_each(&Method::PATCH, "application/merge-patch+json", patches);
    }

    fn send_each(
        &self,
        method: &Method,
        kind: &str,
        objects: impl IntoIterator<Item = (String, Value)>,
    ) {
        use futures_util::StreamExt;
        let posts = objects.into_iter().map(|(path, object)| {
            let url = format!("{}{path}", self.server());
            let request = self.client.request(method.clone(), url);
            let request = request.bearer_auth(self.token());
            let request = request.header("content-type", kind);
            request.body(object.to_string()).send()
        });
        let posts: Vec<_> = posts.collect();
        self.block_on(async move {
            let mut answers = futures_util::stream::iter(posts).buffer_unordered(64);
            while let Some(answer) = answers.next().await {
                let answer = answer.unwrap();
                assert!(
                    answer.status().is_success(),
                    "{}: {}",
                    answer.status(),
                    answer.text().await.unwrap()
                );
            }
        });
    }

    /// The response to a GET of `path`, unchanged.
    pub fn text(&self, path: &str) -> String {
        let request = self.client.get(format!("{}{path}", self.server()));
        let request = request.bearer_auth(self.token()).send();
        block_on(async move { request.await.unwrap().text().await.unwrap() })
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.request(&Method::GET, path, None)
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Value {
        self.request(&Method::DELETE, path, None)
    }

    /// A merge patch; that of an object's `/status` sets what a controller would.
    #[track_caller]
    pub fn patch(&self, path: &str, patch: Value) -> Value {
        self.request(&Method::PATCH, path, Some(patch))
    }

    /// The status and the answer to a request with further headers, such as those that impersonate a user. A body is applied on the
    /// server's side if the path names a field manager, and else merged.
    pub fn request_as(
        &self,
        headers: &[(String, String)],
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, String) {
        let kind = match path.contains("fieldManager=") {
            true => "application/apply-patch+yaml",
            false => "application/merge-patch+json",
        };
        let url = format!("{}{path}", self.server());
        let mut request = self.client.request(method.clone(), url);
        request = request
            .bearer_auth(self.token())
            .header("content-type", kind);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        self.block_on(async move {
            let answer = request.send().await.expect("the API server answers");
            (answer.status().as_u16(), answer.text().await.unwrap())
        })
    }

    /// A file of its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.daemon.directory.join(name)
    }

    /// The processes of the API server and of its etcd.
    pub fn pids(&self) -> [u32; 2] {
        ["apiserver", "etcd"].map(|name| self.daemon.pid(name))
    }

    pub fn kill(&self) {
        self.daemon.kill();
    }

    /// Restarts it on the same port, with the previous data of etcd.
    pub fn restart(&self) {
        self.daemon.restart();
    }

    pub fn log(&self) -> String {
        self.daemon.log("apiserver")
    }

    fn block_on<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        match &self.inside {
            Some(runtime) => block_on_runtime(runtime, future),
            None => block_on(future),
        }
    }

    #[track_caller]
    fn request(&self, method: &Method, path: &str, body: Option<Value>) -> Value {
        let kind = if *method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let mut request = self
            .client
            .request(method.clone(), format!("{}{path}", self.server()));
        request = request
            .bearer_auth(self.token())
            .header("content-type", kind);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let (status, text) = self.block_on(async move {
            let answer = request.send().await.expect("the API server answers");
            (answer.status(), answer.text().await.unwrap())
        });
        assert!(status.is_success(), "{method} {path}: {status}: {text}");
        serde_json::from_str(&text).unwrap()
    }
}
