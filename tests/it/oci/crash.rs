//! Runs that are killed at random moments, two at a time in one directory: the content on disk is always valid, and the next run
//! completes it.
#![expect(
    clippy::print_stderr,
    reason = "the seed, for who has to find a failure again"
)]

use std::time::Duration;

use rustix::process::Signal;

use super::{Bundle, sha256, told};
use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{registry, unique};

const SEED: u64 = 20_261_125;
/// Number of directories, and number of killed runs in each, two at a time.
const PLACES: u64 = 5;
const ENDED: usize = 10;
/// Maximum number of rounds without catching a run.
const ROUNDS_MOST: usize = 100;
/// Approximate duration of a run of all images over the throttled link.
const WHOLE: Duration = Duration::from_millis(900);

/// Every blob under its digest, and skopeo reads whatever the index names. The index may not be there yet.
fn is_sound(bundle: &Bundle) -> usize {
    let blobs = bundle.path().join("blobs/sha256");
    for blob in std::fs::read_dir(&blobs).into_iter().flatten() {
        let path = blob.unwrap().path();
        assert_eq!(sha256(&path), path.file_name().unwrap().to_str().unwrap());
    }
    if !bundle.path().join("oci-layout").exists() {
        return 0;
    }
    let names = bundle.names();
    for name in &names {
        assert!(bundle.inspect(name)["Layers"].is_array(), "{name}");
    }
    names.len()
}

#[test]
fn layout_survives_killed_writers() {
    eprintln!("seed {SEED}");
    // They share layers, so that the runs are in one another's way.
    let seed = unique("seed");
    let names: Vec<String> = (1..=4)
        .map(|n| format!("{}:{n}", unique("crash")))
        .collect();
    for (n, name) in names.iter().enumerate() {
        let layers = n + 1;
        registry()
            .image(name)
            .size(60_000 * layers as u64)
            .layers(layers)
            .seed(&seed)
            .push();
    }
    let proxy = Proxy::start(registry().url(), |seen| {
        if seen.is_blob() {
            Fault::Throttle(300_000)
        } else {
            Fault::Pass
        }
    });
    let images: Vec<String> = names.iter().map(|name| proxy.reference(name)).collect();
    std::thread::scope(|scope| {
        let places = (0..PLACES).map(|place| {
            let images = &images;
            scope.spawn(move || in_one_place(fastrand::Rng::with_seed(SEED + place), images))
        });
        let places: Vec<_> = places.collect();
        places.into_iter().for_each(|place| place.join().unwrap());
    });
}

fn in_one_place(mut random: fastrand::Rng, images: &[String]) {
    let (mut ended, mut bundle) = (0, Bundle::new());
    for round in 0.. {
        if ended >= ENDED {
            break;
        }
        assert!(round < ROUNDS_MOST, "{ended} runs were ended");
        let runs = [images, &images[..3]].map(|images| bundle.pull(images).start());
        for run in runs {
            std::thread::sleep(WHOLE.mul_f64(random.f64() / 2.0));
            let signal = *random
                .choice(
                    [
                        Signal::KILL,
                        Signal::KILL,
                        Signal::KILL,
                        Signal::TERM,
                        Signal::INT,
                    ]
                    .iter(),
                )
                .unwrap();
            run.try_signal(signal);
            let output = run.wait();
            // One that had ended by itself was not ended by us.
            ended += usize::from(
                output.signal == Some(9) || [Some(143), Some(130)].contains(&output.code),
            );
            assert!(
                output.signal.is_some() || [Some(0), Some(143), Some(130)].contains(&output.code),
                "{output}"
            );
        }
        if is_sound(&bundle) == images.len() {
            finish(&bundle, images);
            bundle = Bundle::new();
        }
    }
    finish(&bundle, images);
}

/// A run that nobody ends completes what there is, and leaves nothing half done.
fn finish(bundle: &Bundle, images: &[String]) {
    let output = bundle.pull(images).run().expect(0);
    for image in images {
        let outcome = &told(&output, image)[0];
        assert!(outcome == "pulled" || outcome == "present", "{output}");
    }
    assert_eq!(is_sound(bundle), images.len());
    assert_eq!(bundle.begun(), 0, "downloads that were left");
}
