//! A cluster's images: the registries of its node, what was asked of them, and what the node's containerd has.

use std::path::Path;

pub use k8s_cri::v1::Image as Listed;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use super::Cluster;
use crate::bed::{Image, PASSWORD, Pushed, USER, block_on, program, run, script, unique};

/// A request to the node's registry with a password, as its log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// `HEAD`
    pub method: String,
    /// `/v2/team/web/manifests/1`
    pub path: String,
    pub status: u16,
}

impl Logged {
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// From a line of the log, where it is one of a request:
    /// `127.0.0.1 - - [27/Nov/2026:08:58:25 +0000] "GET /v2/ HTTP/1.1" 401 87 "" "curl/7.88.1"`
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = request.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let status = rest.split(' ').next()?.parse().ok()?;
        Some(Self {
            method,
            path,
            status,
        })
    }
}

impl Cluster {
    /// An image to be made and pushed to the node's registry that asks for [`USER`] and [`PASSWORD`].
    pub fn private_image(&self, name: &str) -> Image {
        let mut command = self.inside(script("image").get_program().to_str().unwrap());
        command.arg(format!("{}/{name}", self.private));
        command.args(["--user", &format!("{USER}:{PASSWORD}")]);
        Image::by(command)
    }

    /// The requests to the registry with a password so far.
    pub fn requests(&self) -> Vec<Logged> {
        let log = std::fs::read(self.api.file("private.log")).unwrap();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter_map(Logged::parse).collect()
    }

    /// The Docker config file that has the password.
    fn docker_config(&self) -> Value {
        json!({"auths": {&self.private: {"username": USER, "password": PASSWORD}}})
    }

    /// Makes a pull secret for the registry with a password and returns its name.
    pub fn pull_secret(&self, namespace: &str) -> String {
        let name = unique("registry");
        let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": self.docker_config().to_string()}});
        let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
        self.api.create(&secrets, secret);
        name
    }

    /// The program on the node, with the password.
    pub fn program(&self, home: &Path, arguments: &[&str]) -> std::process::Command {
        let config = home.join("config.json");
        std::fs::write(&config, self.docker_config().to_string()).unwrap();
        let mut command = self.inside(program());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("DOCKER_CONFIG", home).args(arguments);
        command
    }

    /// Runs the program on the node, with the password, and returns what it prints.
    #[track_caller]
    pub fn harpoon_runs(&self, arguments: &[&str]) -> String {
        let home = crate::bed::directory();
        run(&mut self.program(home.path(), arguments))
    }

    /// All names and IDs of images that the text is part of, those that only containerd lists too.
    pub fn names(&self, text: &str) -> Vec<String> {
        let names = self.ctr(&["images", "list"]);
        let names = names.lines().skip(1).filter(|line| line.contains(text));
        names
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    }

    /// The images that the kubelet sees.
    pub fn listed(&self) -> Vec<Listed> {
        let mut images = self.image_service();
        block_on(async move {
            let asked = images.list_images(ListImagesRequest::default()).await;
            asked.unwrap().into_inner().images
        })
    }

    /// Returns whether the kubelet sees the image under this reference, or by its digest.
    pub fn lists(&self, image: &Pushed) -> bool {
        self.listed().iter().any(|listed| is(listed, image))
    }

    /// Removes an image as the kubelet's garbage collection does: all its names, by the image's ID.
    pub fn collect(&self, image: &Pushed) {
        let listed = self.listed();
        let ids = listed.into_iter().filter(|listed| is(listed, image));
        let ids: Vec<_> = ids.map(|listed| listed.id).collect();
        assert!(!ids.is_empty(), "{image:?}");
        ids.iter().for_each(|id| self.collect_id(id));
    }

    /// Removes all names of the image with this ID.
    pub(super) fn collect_id(&self, id: &str) {
        let mut images = self.image_service();
        let image = Some(ImageSpec {
            image: id.to_owned(),
            ..ImageSpec::default()
        });
        let asked = async move { images.remove_image(RemoveImageRequest { image }).await };
        block_on(asked).unwrap();
    }

    fn image_service(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.containerd())
    }

    pub(super) fn containerd(&self) -> Channel {
        let socket = format!("/proc/{}/root/run/containerd/containerd.sock", self.node);
        block_on(async move {
            let endpoint = Endpoint::from_shared(format!("unix:{socket}")).unwrap();
            endpoint.connect().await.unwrap()
        })
    }
}

fn is(listed: &Listed, image: &Pushed) -> bool {
    listed.repo_tags.contains(&image.reference)
        || listed
            .repo_digests
            .iter()
            .any(|name| name.ends_with(&image.digest))
}
