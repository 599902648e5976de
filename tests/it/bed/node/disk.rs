//! A cluster's disk: what containerd's file system has, a neighbour that fills it, and what its kubelets make of that.

use std::fs::OpenOptions;
use std::path::PathBuf;

use k8s_cri::v1::ListContainersRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use serde_json::Value;

use super::{Cluster, text};
use crate::bed::block_on;

impl Cluster {
    fn store(&self) -> PathBuf {
        format!("/proc/{}/root/var/lib/containerd", self.node).into()
    }

    /// The usage of containerd's file system in percent, as the kubelet rounds it: what a user cannot have counts as used.
    pub fn used_percent(&self) -> u64 {
        let fs = statvfs(self.store()).unwrap();
        100 - fs.f_bavail * 100 / fs.f_blocks
    }

    /// Has a neighbour's file fill containerd's file system up to this percentage; with 0 the file is empty.
    pub fn fill(&self, percent: u64) {
        let path = self.store().join("neighbour");
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.unwrap();
        // Not the file's length: the file system has blocks for the file's extents too.
        file.set_len(0).unwrap();
        let fs = statvfs(self.store()).unwrap();
        let used = fs.f_blocks - fs.f_bavail;
        let blocks = (fs.f_blocks * percent / 100).saturating_sub(used);
        if blocks > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, blocks * fs.f_frsize).unwrap();
        }
    }

    /// The log of the kubelet so far.
    pub fn kubelet_log(&self) -> String {
        std::fs::read_to_string(self.api.file("kubelet.log")).unwrap()
    }

    /// The pods that the kubelet has evicted, as `NAMESPACE/NAME`.
    pub fn evicted(&self) -> Vec<String> {
        let path = "/api/v1/events?fieldSelector=reason%3DEvicted,involvedObject.kind%3DPod";
        let events = self.api.get(path);
        let events = events["items"].as_array().unwrap().iter();
        let pod = |event: &Value| {
            let pod = &event["involvedObject"];
            format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]))
        };
        events.map(pod).collect()
    }

    /// Removes all images that are neither pinned nor used by a container, and returns their IDs: in place of a kubelet that respects
    /// pins (1.29 and later), because the cluster's own is older.
    pub fn collect_unpinned(&self) -> Vec<String> {
        let channel = self.containerd();
        let used = block_on(async move {
            let mut runtime = RuntimeServiceClient::new(channel);
            let asked = runtime.list_containers(ListContainersRequest::default());
            asked.await.unwrap().into_inner().containers
        });
        let mut unused = self.listed();
        unused.retain(|image| {
            let is_used = used.iter().any(|container| container.image_ref == image.id);
            let is_sandbox = image.repo_tags.iter().any(|tag| tag.contains("/pause:"));
            !image.pinned && !is_used && !is_sandbox
        });
        let ids = unused.into_iter().map(|image| image.id);
        ids.inspect(|id| self.collect_id(id)).collect()
    }
}
