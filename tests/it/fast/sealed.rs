//! Sealed images by fast fill: no name exists at any moment.

use super::*;
use crate::bed::{PASSWORD, USER, registry_with_password};
use crate::credentials::docker_config;

#[test]
fn sealed_image_is_filled_without_a_name() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("sealed-fast"));
    registry_with_password().image(&name).layers(3).push();
    let proxy = Proxy::start(registry_with_password().url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let harpoon = fast(&containerd, &[&image]);
    let file = harpoon.home().join("config.json");
    let config = docker_config(&[(&proxy.address(), USER, PASSWORD)]);
    std::fs::write(&file, config).unwrap();
    let harpoon = harpoon.env("REGISTRY_CONFIG", file).env("SEAL", "always");
    let events = Events::of(&containerd);
    let output = harpoon.run().expect(0);
    filled(&output);
    assert_eq!(events.of_names(), [""; 0]);
    assert_eq!(entry(&output.json(), &image)["sealed"], true, "{output}");
    assert_eq!(containerd.images(), [""; 0]);
    assert_eq!(containerd.leases().len(), 1);
    assert_eq!(snapshots(&containerd).len(), 3);
    assert_eq!(proxy.count(Seen::is_by_containerd), 0);

    // One that may pull it has it at once.
    let before = proxy.count(|seen| seen.is_blob());
    let harpoon = harpoon.env("SEAL", "never").env("FILL", "runtime");
    harpoon.run().expect(0);
    assert_eq!(proxy.count(|seen| seen.is_blob()), before);
}
