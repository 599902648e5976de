//! The DaemonSet: `harpoon run` as init container, which alone sees the runtime and the API server, then `harpoon pause`.

use serde_json::{Value, json};

use super::{Access, Cloud, Images, Options, Priority};

/// Nobody on any distribution: the number that distroless images use.
const NOBODY: u32 = 65532;
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const REGISTRY: &str = "/registry";

/// A volume, and where the init container finds it.
struct Mount {
    name: &'static str,
    path: String,
    volume: Value,
}

impl Mount {
    fn host(name: &'static str, path: &str, kind: &str) -> Self {
        Self {
            name,
            path: path.to_owned(),
            volume: json!({"hostPath": {"path": path, "type": kind}}),
        }
    }
}

pub(super) fn daemon_set(options: &Options) -> Value {
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "initContainers": [run(options)],
        "containers": [pause(options)],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": {"runAsNonRoot": true, "runAsUser": NOBODY, "runAsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [{"operator": "Exists"}],
        "volumes": mounts(options).into_iter().map(volume).collect::<Vec<_>>(),
    });
    if let Images::Cluster { .. } = options.images {
        spec["serviceAccountName"] = json!(options.name);
    }
    match &options.priority {
        Priority::Own => spec["priorityClassName"] = json!(options.name),
        Priority::Named(name) => spec["priorityClassName"] = json!(name),
        Priority::Unset => {}
    }
    if let Some(secret) = &options.image_pull_secret {
        spec["imagePullSecrets"] = json!([{"name": secret}]);
    }
    if options.cloud.is_some() {
        // The plugins ask the node's metadata service, which tells a pod's own network nothing, or less.
        spec["hostNetwork"] = json!(true);
    }
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
    "metadata": options.metadata(&options.name, Some(&options.namespace)),
    "spec": {
        "selector": {"matchLabels": options.labels()},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
        "template": {"metadata": {"labels": options.labels()}, "spec": spec},
    }})
}

fn volume(mount: Mount) -> Value {
    let mut volume = mount.volume;
    volume["name"] = json!(mount.name);
    volume
}

fn run(options: &Options) -> Value {
    let mounts = mounts(options);
    let mounts = mounts
        .iter()
        .map(|m| json!({"name": m.name, "mountPath": m.path, "readOnly": true}));
    let mut security = hardened();
    let access = match options.cloud {
        // The plugin reads azure.json, which is root's alone.
        Some(Cloud::Aks) => Access::Root,
        _ => options.socket.access,
    };
    match access {
        Access::Group(group) => security["runAsGroup"] = json!(group),
        Access::Root => {
            security["runAsNonRoot"] = json!(false);
            security["runAsUser"] = json!(0);
            security["runAsGroup"] = json!(0);
        }
    }
    // A plugin is a program of its own, and counts as this container's.
    let limit = match options.cloud {
        Some(_) => "256Mi",
        None => "64Mi",
    };
    let mut container = json!({"name": "harpoon", "image": options.image, "args": ["run"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": limit}},
        "securityContext": security, "volumeMounts": mounts.collect::<Vec<_>>()});
    let variables = environment(options);
    if !variables.is_empty() {
        container["env"] = json!(variables);
    }
    container
}

fn pause(options: &Options) -> Value {
    json!({"name": "pause", "image": options.image, "args": ["pause"],
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "16Mi"}},
        "securityContext": hardened()})
}

fn hardened() -> Value {
    json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})
}

fn environment(options: &Options) -> Vec<Value> {
    let mut variables = Vec::new();
    // With a list nobody asks for the Node, and its name is for the report.
    if options.node_relevance || matches!(options.images, Images::Listed(_)) {
        let field = json!({"fieldRef": {"fieldPath": "spec.nodeName"}});
        variables.push(json!({"name": "NODE_NAME", "valueFrom": field}));
    }
    for (variable, value) in &options.settings {
        variables.push(json!({"name": variable, "value": value}));
        if *variable == "PRIVATE_REGISTRY" {
            let key =
                json!({"secretKeyRef": {"name": options.private_registry_name(), "key": "auth"}});
            variables.push(json!({"name": "PRIVATE_REGISTRY_AUTH", "valueFrom": key}));
        }
    }
    if options.registry_secret.is_some() {
        let value = format!("{REGISTRY}/config.json");
        variables.push(json!({"name": "REGISTRY_CONFIG", "value": value}));
    }
    if let Some(cloud) = options.cloud {
        variables.push(json!({"name": "CREDENTIAL_PROVIDER_CONFIG", "value": cloud.config()}));
        variables.push(json!({"name": "CREDENTIAL_PROVIDER_BIN_DIR", "value": cloud.bin_dir()}));
    }
    variables
}

fn mounts(options: &Options) -> Vec<Mount> {
    let mut mounts = vec![socket(&options.socket.path)];
    mounts.push(match &options.images {
        Images::Listed(_) => Mount {
            name: "images",
            path: "/config".to_owned(),
            volume: json!({"configMap": {"name": options.images_name()}}),
        },
        Images::Cluster { .. } => token(),
    });
    if let Some(secret) = &options.registry_secret {
        let items = json!([{"key": ".dockerconfigjson", "path": "config.json"}]);
        mounts.push(Mount {
            name: "registry",
            path: REGISTRY.to_owned(),
            volume: json!({"secret": {"secretName": secret, "items": items}}),
        });
    }
    mounts.extend(options.cloud.into_iter().flat_map(Cloud::mounts));
    mounts
}

/// The directory of the runtime's socket, so that a runtime that starts anew is found; the socket itself where its directory is that of
/// everybody's sockets.
fn socket(path: &str) -> Mount {
    match path.rsplit_once('/').map(|(directory, _)| directory) {
        None | Some("" | "/run" | "/var/run") => Mount::host("runtime", path, "Socket"),
        Some(directory) => Mount::host("runtime", directory, "Directory"),
    }
}

/// What the kubelet would mount by itself into every container: the token, here a short-lived one, the CA and the namespace.
fn token() -> Mount {
    let namespace = json!([{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]);
    let certificate =
        json!({"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]});
    Mount {
        name: "token",
        path: TOKEN.to_owned(),
        volume: json!({"projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": certificate},
            {"downwardAPI": {"items": namespace}},
        ]}}),
    }
}

impl Cloud {
    fn config(self) -> &'static str {
        match self {
            Self::Eks => "/etc/eks/image-credential-provider/config.json",
            Self::Gke => "/etc/srv/kubernetes/cri_auth_config.yaml",
            Self::Aks => "/var/lib/kubelet/credential-provider-config.yaml",
        }
    }

    fn bin_dir(self) -> &'static str {
        match self {
            Self::Eks => "/etc/eks/image-credential-provider",
            Self::Gke => "/home/kubernetes/bin",
            Self::Aks => "/var/lib/kubelet/credential-provider",
        }
    }

    /// The plugins, their configuration and what they read: TLS roots, and on AKS what tells the node's identity.
    fn mounts(self) -> Vec<Mount> {
        let mut mounts = vec![Mount::host("provider", self.bin_dir(), "Directory")];
        if !self.config().starts_with(self.bin_dir()) || self == Self::Aks {
            mounts.push(Mount::host("provider-config", self.config(), "File"));
        }
        if self == Self::Aks {
            mounts.push(Mount::host("azure", "/etc/kubernetes/azure.json", "File"));
        }
        mounts.push(Mount::host("certificates", "/etc/ssl/certs", "Directory"));
        mounts
    }
}
