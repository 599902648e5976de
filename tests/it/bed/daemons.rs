//! Registries with images in them, and the runtimes that pull these.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Daemon, parse, run, script};

/// A real registry (docker-registry) on loopback, over plain http when not said.
#[derive(Debug)]
pub struct Registry(Daemon);

/// An image to be pushed: what `testbed/image` makes.
#[derive(Debug)]
pub struct Image(Command);

/// An image in a registry.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `127.0.0.1:PORT/NAME:TAG`
    pub reference: String,
    /// `sha256:...` of what the tag names: a manifest, or an index where platforms were given.
    pub digest: String,
    /// Sum of the compressed layers.
    pub bytes: u64,
}

impl Registry {
    pub fn start() -> Self {
        Self(Daemon::start::<&str>("registry", &[]))
    }

    pub fn with_password(user: &str, password: &str) -> Self {
        Self(Daemon::start(
            "registry",
            &["--htpasswd".to_owned(), format!("{user}:{password}")],
        ))
    }

    /// One over https, whose certificate only [`Registry::ca`] vouches for.
    pub fn with_tls() -> Self {
        Self(Daemon::start("registry", &["--tls"]))
    }

    /// The certificate of its own authority; with TLS.
    pub fn ca(&self) -> &Path {
        Path::new(self.0.value("CA"))
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        self.0.value("ADDRESS")
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> &str {
        self.0.value("URL")
    }

    /// The full reference of `team/web:1` here, whether or not there is such an image.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// Makes and pushes a small image of its own content, in one layer: `push("team/web:1")`.
    #[track_caller]
    pub fn push(&self, name: &str) -> Pushed {
        self.image(name).push()
    }

    /// An image to be made to measure and then pushed.
    pub fn image(&self, name: &str) -> Image {
        let mut command = script("image");
        command.arg(self.reference(name));
        match self.0.value("CREDENTIALS") {
            "" => {}
            credentials => _ = command.args(["--user", credentials]),
        }
        Image(command)
    }

    pub fn kill(&self) {
        self.0.kill();
    }

    /// Starts it again on the same port.
    pub fn restart(&self) {
        self.0.restart();
    }

    /// Its log, one line a request among others.
    pub fn log(&self) -> String {
        self.0.log("registry")
    }
}

impl Image {
    /// By a command line of `testbed/image`, as far as the reference.
    pub(super) fn by(command: Command) -> Self {
        Self(command)
    }

    /// Bytes of all its layers together, nearly: 10,000 when not said.
    pub fn size(mut self, bytes: u64) -> Self {
        self.0.args(["--size", &bytes.to_string()]);
        self
    }

    pub fn layers(mut self, count: usize) -> Self {
        self.0.args(["--layers", &count.to_string()]);
        self
    }

    /// Layers that are not compressed, which takes long where they are large and is no smaller.
    pub fn uncompressed(mut self) -> Self {
        self.0.arg("--uncompressed");
        self
    }

    /// An index of these platforms (`linux/arm64`) instead of one manifest.
    pub fn platforms(mut self, platforms: &[&str]) -> Self {
        self.0.args(["--platform", &platforms.join(",")]);
        self
    }

    /// The content follows from the seed; when not said, from the reference.
    pub fn seed(mut self, seed: &str) -> Self {
        self.0.args(["--random", seed]);
        self
    }

    #[track_caller]
    pub fn push(mut self) -> Pushed {
        let mut values = parse(&run(&mut self.0));
        let mut take = |key| values.remove(key).unwrap();
        Pushed {
            reference: take("REFERENCE"),
            digest: take("DIGEST"),
            bytes: take("BYTES").parse().unwrap(),
        }
    }
}

/// What containerd and the Docker Engine have in common, for tests that must go the same with both.
pub trait Runtime: Sized + 'static {
    /// What it calls itself in reports.
    const NAME: &'static str;

    /// The shared instance.
    fn shared() -> &'static Self;

    fn start() -> Self;

    /// One that finds the registry `docker.io` at `url`.
    fn with_hub(url: &str) -> Self;

    /// One whose store holds at most so many bytes, and little less.
    fn with_space(bytes: u64) -> Self;

    /// `unix:///...`
    fn endpoint(&self) -> &str;

    fn socket(&self) -> PathBuf;

    /// The directory of its image store.
    fn store(&self) -> PathBuf;

    /// Whether it has an image under this name of a registry other than `docker.io`.
    fn has(&self, reference: &str) -> bool;

    fn kill(&self);

    /// Starts it again on the same socket, after killing it if it runs.
    fn restart(&self);
}

/// A real containerd with its CRI server.
#[derive(Debug)]
pub struct Containerd(Daemon);

impl Containerd {
    pub fn start() -> Self {
        Self(Daemon::start::<&str>("containerd", &[]))
    }

    /// One that drops layers when they are unpacked.
    pub fn discarding() -> Self {
        Self(Daemon::start("containerd", &["--discard"]))
    }

    /// `unix:///...`
    pub fn endpoint(&self) -> &str {
        self.0.value("ENDPOINT")
    }

    pub fn socket(&self) -> &Path {
        Path::new(self.0.value("SOCKET"))
    }

    /// From now on the registry `name` (`docker.io`, `registry.example`, `127.0.0.1:PORT`) is found at `url`.
    pub fn map_host(&self, name: &str, url: &str) {
        let directory = Path::new(self.0.value("CERTS")).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let hosts = format!(
            "server = \"{url}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        std::fs::write(directory.join("hosts.toml"), hosts).unwrap();
    }

    /// The names of all images that CRI has, as containerd lists them: full references, digests too.
    pub fn images(&self) -> Vec<String> {
        self.ctr(&["images", "list", "-q"])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Whether it has the image under just this full reference, such as `docker.io/library/nginx:1.27`.
    pub fn has(&self, reference: &str) -> bool {
        self.images().iter().any(|image| image == reference)
    }

    /// What is being downloaded now or was left half done, one line each.
    pub fn downloads(&self) -> Vec<String> {
        self.ctr(&["content", "active"])
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect()
    }

    /// The leases that are held: what keeps content from being cleared away.
    pub fn leases(&self) -> Vec<String> {
        self.ctr(&["leases", "list", "--quiet"])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        let file = self.0.directory.join("containerd.pid");
        std::fs::read_to_string(file)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Removes the image under this full reference.
    pub fn remove(&self, reference: &str) {
        self.ctr(&["images", "remove", "--sync", reference]);
    }

    /// Runs containerd's own client in CRI's namespace.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> String {
        run(Command::new(self.0.value("CTR"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"])
            .args(arguments))
    }

    pub fn kill(&self) {
        self.0.kill();
    }

    /// Starts it again on the same socket, after killing it if it runs.
    pub fn restart(&self) {
        self.0.restart();
    }

    pub fn log(&self) -> String {
        self.0.log("containerd")
    }
}

impl Runtime for Containerd {
    const NAME: &'static str = "containerd";

    fn shared() -> &'static Self {
        super::containerd()
    }

    fn start() -> Self {
        Self::start()
    }

    fn with_hub(url: &str) -> Self {
        Self(Daemon::start(
            "containerd",
            &["--hosts".to_owned(), format!("docker.io={url}")],
        ))
    }

    fn with_space(bytes: u64) -> Self {
        Self(Daemon::start(
            "containerd",
            &["--space".to_owned(), bytes.to_string()],
        ))
    }

    fn endpoint(&self) -> &str {
        self.endpoint()
    }

    fn socket(&self) -> PathBuf {
        self.socket().to_owned()
    }

    fn store(&self) -> PathBuf {
        self.0.directory.join("root")
    }

    fn has(&self, reference: &str) -> bool {
        self.has(reference)
    }

    fn kill(&self) {
        self.kill();
    }

    fn restart(&self) {
        self.restart();
    }
}

/// A real Docker Engine.
#[derive(Debug)]
pub struct Docker(Daemon);

impl Docker {
    pub fn start() -> Self {
        Self(Daemon::start::<&str>("docker", &[]))
    }

    /// One that asks the registry at `url` first for images of docker.io.
    pub fn with_mirror(url: &str) -> Self {
        Self(Daemon::start("docker", &["--mirror", url]))
    }

    /// `unix:///...`
    pub fn endpoint(&self) -> &str {
        self.0.value("ENDPOINT")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.value("SOCKET").into()
    }

    /// The tags of all its images, in Docker's short form (`nginx:1.27`, `127.0.0.1:PORT/team/web:1`).
    pub fn images(&self) -> Vec<String> {
        let images: Vec<Value> = serde_json::from_str(&self.ask("GET", "/images/json")).unwrap();
        let tags = images
            .iter()
            .filter_map(|image| image["RepoTags"].as_array())
            .flatten();
        tags.map(|tag| tag.as_str().unwrap().to_owned()).collect()
    }

    /// Whether it has the image under just this name, in Docker's short form.
    pub fn has(&self, reference: &str) -> bool {
        self.images().iter().any(|image| image == reference)
    }

    /// Removes the image of this name.
    pub fn remove(&self, reference: &str) {
        self.ask("DELETE", &format!("/images/{reference}"));
    }

    /// Asks the Engine API and returns its answer; panics on an error.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--request",
            method,
            "--unix-socket",
        ]);
        run(curl.arg(self.socket()).arg(format!("http://docker{path}")))
    }

    pub fn kill(&self) {
        self.0.kill();
    }

    /// Starts it again on the same socket, after killing it if it runs.
    pub fn restart(&self) {
        self.0.restart();
    }

    pub fn log(&self) -> String {
        self.0.log("docker")
    }
}

impl Runtime for Docker {
    const NAME: &'static str = "docker";

    fn shared() -> &'static Self {
        super::docker()
    }

    fn start() -> Self {
        Self::start()
    }

    fn with_hub(url: &str) -> Self {
        Self::with_mirror(url)
    }

    fn with_space(bytes: u64) -> Self {
        Self(Daemon::start(
            "docker",
            &["--space".to_owned(), bytes.to_string()],
        ))
    }

    fn endpoint(&self) -> &str {
        self.endpoint()
    }

    fn socket(&self) -> PathBuf {
        self.socket()
    }

    fn store(&self) -> PathBuf {
        self.0.directory.join("data")
    }

    fn has(&self, reference: &str) -> bool {
        self.has(reference)
    }

    fn kill(&self) {
        self.kill();
    }

    fn restart(&self) {
        self.restart();
    }
}
