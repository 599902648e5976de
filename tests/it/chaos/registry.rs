//! The registry behind a proxy whose behaviour changes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::schedule::Mood;
use super::world::IMAGES;
use crate::bed::faulty::{Fault, Gate, Proxy, Seen};
use crate::bed::{Registry, unique};

/// The size of a layer in bytes.
const LAYER: u64 = 150_000;

/// The registry of the images.
pub(super) struct Store {
    registry: Registry,
    proxy: Proxy,
    behaviour: Arc<Mutex<Behaviour>>,
    images: Vec<String>,
}

struct Behaviour {
    mood: Mood,
    /// Holds what waits until the mood changes.
    gate: Gate,
    random: fastrand::Rng,
}

impl Store {
    /// One with all images. Some layers are those of other images too.
    pub(super) fn start(seed: u64) -> Self {
        let registry = Registry::start();
        let behaviour = Arc::new(Mutex::new(Behaviour {
            mood: Mood::Good,
            gate: Gate::new(),
            random: fastrand::Rng::with_seed(seed),
        }));
        let shared = Arc::clone(&behaviour);
        let proxy = Proxy::start(registry.url(), move |seen| {
            shared.lock().unwrap().decide(seen)
        });
        let run = unique("chaos");
        let names: Vec<String> = (0..IMAGES).map(|n| format!("{run}/image-{n}:1")).collect();
        for (number, name) in names.iter().enumerate() {
            let layers = 1 + number % 4;
            let image = registry.image(name).layers(layers);
            let image = image.size(LAYER * layers as u64);
            image.seed(&format!("chaos-{}", number / 2)).push();
        }
        let images = names.iter().map(|name| proxy.reference(name)).collect();
        Self {
            registry,
            proxy,
            behaviour,
            images,
        }
    }

    /// The references of the images.
    pub(super) fn images(&self) -> &[String] {
        &self.images
    }

    pub(super) fn set(&self, mood: Mood) {
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.mood = mood;
        std::mem::replace(&mut behaviour.gate, Gate::new()).open();
    }

    /// Number of requests so far.
    pub(super) fn requests(&self) -> usize {
        self.proxy.count(|_| true)
    }

    /// The log of the registry itself.
    pub(super) fn log(&self) -> String {
        self.registry.log()
    }
}

impl Behaviour {
    fn decide(&mut self, seen: &Seen) -> Fault {
        match self.mood {
            Mood::Good => Fault::Pass,
            Mood::Flaky => self.any_fault(),
            Mood::Away => Fault::Close,
            Mood::Limiting if seen.is_manifest() => Fault::too_many(1),
            Mood::Limiting => Fault::Pass,
            Mood::Slow => Fault::Throttle(60_000),
            Mood::Silent if seen.is_blob() => Fault::Hold(self.gate.clone()),
            Mood::Silent => Fault::Pass,
        }
    }

    /// A fault that passes by itself, in half of the cases.
    fn any_fault(&mut self) -> Fault {
        let random = &mut self.random;
        match random.u8(..16) {
            0 => Fault::Close,
            1 => Fault::status(500),
            2 => Fault::status(503),
            3 | 4 => Fault::CutAfter(random.usize(..40_000)),
            5 => Fault::Throttle(random.usize(20_000..400_000)),
            6 => Fault::Delay(Duration::from_millis(random.u64(..2000))),
            7 => Fault::Hold(self.gate.clone()),
            _ => Fault::Pass,
        }
    }
}
