//! Registries that share content, one of them slow.

use std::time::Duration;

use super::{Bundle, pulled, told};
use crate::bed::faulty::{Fault, Gate, Proxy, Seen};
use crate::bed::{self, registry, unique};

const LIMITS: [&str; 2] = ["--pull-timeout=45s", "--retries=0"];

const AT_MOST: Duration = Duration::from_secs(180);

/// A registry whose images begin once the gate is open.
fn behind(gate: &Gate, blobs: Fault) -> Proxy {
    let gate = gate.clone();
    Proxy::start(registry().url(), move |seen| match seen {
        seen if seen.is_manifest() => Fault::Hold(gate.clone()),
        seen if seen.is_blob() => blobs.clone(),
        _ => Fault::Pass,
    })
}

#[test]
fn trickling_registry_delays_no_other_registry() {
    let name = format!("{}:1", unique("shared"));
    registry().image(&name).size(600_000).push();
    // The layer takes 60 s.
    let slow = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(10_000),
        false => Fault::Pass,
    });
    let gate = Gate::new();
    let fast = behind(&gate, Fault::Pass);
    let images = [&slow, &fast].map(|proxy| proxy.reference(&name));
    let bundle = Bundle::new();
    let running = bundle.pull(&images).args(LIMITS).limit(AT_MOST).start();
    let begun = || slow.count(Seen::is_blob) == 2;
    bed::eventually("the slow download", Duration::from_secs(40), begun);
    gate.open();
    let output = running.wait().expect(0);
    for image in &images {
        assert_eq!(told(&output, image), pulled(1), "{output}");
    }
    assert_eq!(bundle.entries().len(), 2);
    assert_eq!(bundle.begun(), 0, "a download that nobody needs");
}

#[test]
fn trickling_parts_leave_others_their_connections() {
    let [one, two] = ["one", "two"].map(|kind| {
        let name = format!("{}:1", unique(kind));
        let image = registry().image(&name).size(40_000_000);
        image.uncompressed().push();
        name
    });
    // Slow enough for parts, which then hardly come.
    let slow = Proxy::start(registry().url(), |seen| {
        match seen.headers.contains_key("range") {
            true => Fault::Throttle(1000),
            false => Fault::Throttle(2_000_000),
        }
    });
    let gate = Gate::new();
    let fair = behind(&gate, Fault::Throttle(1_500_000));
    let [slow_image, fair_image] = [slow.reference(&one), fair.reference(&two)];
    let bundle = Bundle::new();
    let pull = bundle.pull(&[&slow_image, &fair_image]);
    let running = pull.args(LIMITS).limit(AT_MOST).start();
    let begun = || slow.count(|seen| seen.headers.contains_key("range")) >= 10;
    bed::eventually("the slow parts", Duration::from_secs(40), begun);
    gate.open();
    let output = running.wait().expect(1);
    assert_eq!(told(&output, &fair_image), pulled(1), "{output}");
    assert_eq!(told(&output, &slow_image)[0], "failed", "{output}");
}
