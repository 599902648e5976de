//! The pull configuration of containerd's CRI plugin: hosts, snapshotter and platform. Requested once.

use std::path::PathBuf;

use containerd_client::services::v1::{DeprecationWarning, PluginsRequest};
use containerd_client::types::Platform as ContainerdPlatform;
use k8s_cri::v1::{ImageFsInfoRequest, StatusRequest};
use serde_json::Value;

use super::{Client, answer, request};
use crate::model::platform::Platform;
use crate::runtime::image_service::RuntimeError;

const TRANSFER: &str = "io.containerd.transfer.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const CONTENT: &str = "io.containerd.content.v1";
const REGISTRIES_DEPRECATED: &str = "io.containerd.deprecation/cri-registry-";
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
const DEFAULT_HOST_DIR: &str = "/etc/containerd/certs.d";

/// Pull configuration of the CRI plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The Transfer service is there, and can be given all that the CRI plugin is configured with.
    pub(super) has_transfer: bool,
    /// Registries are configured in the CRI plugin itself, rather than in a directory.
    pub has_own_registries: bool,
    /// Layers are not kept compressed once they are unpacked. containerd 2 does not tell.
    pub discards_layers: bool,
    /// The directory with registries' configuration.
    pub hosts: HostDir,
    /// The snapshotter for pods without a runtime class.
    pub snapshotter: String,
    /// The snapshotter's directory on the node, where it tells.
    pub snapshotter_root: Option<PathBuf>,
    /// The content store's directory on the node, where it tells.
    pub content_root: Option<PathBuf>,
    pub(super) platform: ContainerdPlatform,
}

impl Config {
    /// The platform of the images that the CRI plugin pulls.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.platform.os.clone(),
            architecture: self.platform.architecture.clone(),
            variant: Some(self.platform.variant.clone()).filter(|v| !v.is_empty()),
        }
    }
}

/// The directory with registries' host configuration (mirrors, certificates), on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDir {
    /// Empty for none.
    pub path: String,
    /// It is the one that the CRI plugin has. containerd 2 does not tell.
    pub is_certain: bool,
    /// The CRI plugin reads further directories after it.
    pub has_more: bool,
}

impl HostDir {
    /// The one that the CRI plugin tells, else the usual one of a distribution whose containerd keeps its data below `root`.
    fn of(config: &Value) -> Self {
        if let Some(told) = config
            .pointer("/registry/configPath")
            .and_then(Value::as_str)
        {
            // The Transfer service takes one directory.
            let mut paths = told.split(':');
            let path = paths.next().unwrap_or_default().to_owned();
            let has_more = paths.next().is_some();
            return Self {
                path,
                is_certain: !has_more,
                has_more,
            };
        }
        let root = config.get("containerdRootDir").and_then(Value::as_str);
        let root = root.unwrap_or_default();
        let usual = if let Some(agent) = root.strip_suffix("/agent/containerd") {
            // k3s and RKE2.
            format!("{agent}/agent/etc/containerd/certs.d")
        } else if root.starts_with("/var/snap/microk8s/") {
            "/var/snap/microk8s/current/args/certs.d".to_owned()
        } else {
            DEFAULT_HOST_DIR.to_owned()
        };
        Self {
            path: usual,
            is_certain: false,
            has_more: false,
        }
    }
}

/// Returns whether registries are configured in the CRI plugin itself, which the Transfer service does not read.
fn has_own_registries(config: &Value) -> bool {
    let is_set = |key: &str| {
        let value = config.pointer(&format!("/registry/{key}"));
        value
            .and_then(Value::as_object)
            .is_some_and(|table| !table.is_empty())
    };
    ["mirrors", "configs", "auths", "headers"]
        .into_iter()
        .any(is_set)
}

/// Returns whether a warning of containerd is about registries that are configured in the CRI plugin. containerd 2 does not tell the
/// configuration itself.
fn is_of_registries(warning: &DeprecationWarning) -> bool {
    warning.id.starts_with(REGISTRIES_DEPRECATED)
}

/// The snapshotter for pods without a runtime class: the default handler's own, else the plugin's. containerd 2 tells the last
/// only by the directories that it counts.
fn snapshotter(config: &Value, mountpoints: &[String]) -> String {
    let containerd = config.get("containerd");
    let text = |value: Option<&Value>| {
        let text = value.and_then(Value::as_str).unwrap_or_default();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let handlers = containerd.and_then(|c| c.get("runtimes"));
    let handler = || {
        let name = containerd?.get("defaultRuntimeName")?.as_str()?;
        text(handlers?.get(name)?.get("snapshotter"))
    };
    let counted = || {
        let names = mountpoints.iter().filter_map(|path| {
            let (_, name) = path.rsplit_once('/')?;
            name.strip_prefix(SNAPSHOTTER)?.strip_prefix('.')
        });
        let is_handlers = |name: &&str| {
            let all = handlers.and_then(Value::as_object);
            let mut all = all.into_iter().flatten();
            all.any(|(_, handler)| handler.get("snapshotter").and_then(Value::as_str) == Some(name))
        };
        let mut names: Vec<_> = names.collect();
        names.sort_by_key(is_handlers);
        names.first().map(|name| (*name).to_owned())
    };
    handler()
        .or_else(|| text(containerd.and_then(|c| c.get("snapshotter"))))
        .or_else(counted)
        .unwrap_or_else(|| DEFAULT_SNAPSHOTTER.to_owned())
}

impl Client {
    /// Asks how the CRI plugin pulls.
    pub(super) async fn config(&self) -> Result<Config, RuntimeError> {
        let mut cri = self.cri_runtime();
        let status = cri.status(StatusRequest { verbose: true });
        let told = answer(status, "Status").await?.info;
        let config = told.get("config").map(|text| serde_json::from_str(text));
        let config: Value = config.and_then(Result::ok).unwrap_or_default();
        let mut images = self.cri_images();
        let counted = images.image_fs_info(ImageFsInfoRequest::default());
        let counted = answer(counted, "ImageFsInfo").await?.image_filesystems;
        let paths = counted
            .into_iter()
            .filter_map(|fs| Some(fs.fs_id?.mountpoint));
        let snapshotter = snapshotter(&config, &paths.collect::<Vec<_>>());
        let mut introspection = self.introspection();
        let plugins = introspection.plugins(request(PluginsRequest {
            filters: vec![
                format!("type=={TRANSFER}"),
                format!("type=={SNAPSHOTTER},id=={snapshotter}"),
                format!("type=={CONTENT},id==content"),
            ],
        }));
        let plugins = answer(plugins, "plugins").await?.plugins;
        let working = |plugin_type: &str| {
            let mut all = plugins.iter().filter(|p| p.init_err.is_none());
            let of_type = plugin_type.to_owned();
            all.find(move |plugin| plugin.r#type == of_type)
        };
        let platform = working(SNAPSHOTTER).and_then(|plugin| plugin.platforms.first().cloned());
        let root = |plugin_type: &str| {
            let root = working(plugin_type)?.exports.get("root")?;
            Some(PathBuf::from(root))
        };
        let server = answer(introspection.server(()), "server").await?;
        let has_own_registries =
            has_own_registries(&config) || server.deprecations.iter().any(is_of_registries);
        let discards = config.pointer("/containerd/discardUnpackedLayers");
        Ok(Config {
            has_transfer: working(TRANSFER).is_some() && !has_own_registries,
            has_own_registries,
            discards_layers: discards.and_then(Value::as_bool).unwrap_or_default(),
            hosts: HostDir::of(&config),
            snapshotter_root: root(SNAPSHOTTER),
            content_root: root(CONTENT),
            snapshotter,
            platform: platform.unwrap_or_else(current_platform),
        })
    }
}

fn current_platform() -> ContainerdPlatform {
    let current = Platform::current();
    ContainerdPlatform {
        os: current.os,
        architecture: current.architecture,
        variant: current.variant.unwrap_or_default(),
        ..ContainerdPlatform::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn told_directory_is_used() {
        for (config, path, is_certain) in [
            (
                json!({"registry": {"configPath": "/x/certs.d"}}),
                "/x/certs.d",
                true,
            ),
            (json!({"registry": {"configPath": ""}}), "", true),
            (json!({"registry": {"configPath": "/a:/b"}}), "/a", false),
            (
                json!({"containerdRootDir": "/var/lib/containerd"}),
                DEFAULT_HOST_DIR,
                false,
            ),
            (
                json!({"containerdRootDir": "/var/lib/rancher/k3s/agent/containerd"}),
                "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
                false,
            ),
            (Value::Null, DEFAULT_HOST_DIR, false),
        ] {
            let hosts = HostDir::of(&config);
            assert_eq!(
                (&*hosts.path, hosts.is_certain),
                (path, is_certain),
                "{config}"
            );
        }
    }

    #[test]
    fn registries_of_cri_need_cri() {
        let own = json!({"registry": {"mirrors": {"docker.io": {"endpoint": ["x"]}}}});
        assert!(has_own_registries(&own));
        assert!(!has_own_registries(
            &json!({"registry": {"mirrors": null, "auths": {}}})
        ));
        assert!(!has_own_registries(&Value::Null));
    }

    #[test]
    fn snapshotter_of_default_handler_wins() {
        let path = |name: &str| format!("/root/io.containerd.snapshotter.v1.{name}");
        let kata = json!({"snapshotter": "devmapper"});
        let told = json!({"containerd": {"snapshotter": "native"}});
        let handler = json!({"containerd": {"snapshotter": "native", "defaultRuntimeName": "kata", "runtimes": {"kata": kata}}});
        let other = json!({"containerd": {"defaultRuntimeName": "runc", "runtimes": {"kata": kata, "runc": {"snapshotter": ""}}}});
        for (config, paths, expected) in [
            (&told, vec![], "native"),
            (&handler, vec![], "devmapper"),
            (&other, vec![path("devmapper"), path("stargz")], "stargz"),
            (&other, vec![path("devmapper")], "devmapper"),
            (&Value::Null, vec![path("zfs")], "zfs"),
            (&Value::Null, vec!["/".to_owned()], "overlayfs"),
        ] {
            assert_eq!(snapshotter(config, &paths), expected, "{config} {paths:?}");
        }
    }
}
