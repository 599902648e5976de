//! Registries and repositories that are not queried for now, and the reasons. Pure: the time is passed in.
//!
//! One image's failure never blocks the requests for others. A registry or repository is paused if it is unreachable, if it
//! requests a pause, or if requests for several of its parts failed. The pause is always limited.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::planning::plan::Unknown;

/// Number of different repositories of a registry, or images of a repository, that must fail without a success in between.
const SEVERAL: usize = 3;
/// Duration of a pause, and of the memory of a failure.
const PAUSE: Duration = Duration::from_secs(30);

/// The extent of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything in the registry, for this duration.
    Registry(Duration),
    /// The image, and others only if several fail.
    Image,
}

impl Scope {
    /// The whole registry, for the default duration.
    pub(super) const UNREACHABLE: Self = Self::Registry(PAUSE);
}

/// Recent failures, by registry and by repository.
#[derive(Debug, Default)]
pub(super) struct LeftAlone {
    places: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    /// Its parts that failed, at most [`SEVERAL`].
    failed: Vec<String>,
    /// The reason of the pause, if it is paused.
    why: Option<Unknown>,
    /// The time when this entry is dropped.
    until: Instant,
}

impl Place {
    fn is_limited(&self) -> bool {
        let kind = self.why.as_ref().map(|unknown| unknown.kind);
        kind == Some(FailureKind::RateLimited)
    }
}

impl LeftAlone {
    /// The reason why the image is not queried now, if any.
    pub(super) fn why(&self, image: &Reference, now: Instant) -> Option<&Unknown> {
        let places = [image.registry().to_owned(), repository(image)];
        let places = places.iter().filter_map(|name| self.places.get(name));
        places
            .filter(|place| place.until > now)
            .find_map(|place| place.why.as_ref())
    }

    /// Registries that limited the rate of requests.
    pub(super) fn rate_limited(&self, now: Instant) -> Vec<String> {
        let limited = self.places.iter();
        let limited = limited.filter(|(_, place)| place.until > now && place.is_limited());
        limited.map(|(registry, _)| registry.clone()).collect()
    }

    /// Records a response about the image, including that it does not exist.
    pub(super) fn answered(&mut self, image: &Reference) {
        self.places.remove(&repository(image));
        // A response to an earlier request does not cancel a pause that the registry requested.
        if !self
            .places
            .get(image.registry())
            .is_some_and(Place::is_limited)
        {
            self.places.remove(image.registry());
        }
    }

    /// Records a failed request about the image.
    pub(super) fn failed(
        &mut self,
        image: &Reference,
        scope: Scope,
        unknown: &Unknown,
        now: Instant,
    ) {
        self.places.retain(|_, place| place.until > now);
        let registry = image.registry().to_owned();
        match scope {
            Scope::Registry(pause) => {
                let place = self.place(registry, now + pause);
                place.why = Some(unknown.clone());
            }
            Scope::Image => {
                let (until, repository) = (now + PAUSE, repository(image));
                let parts = [
                    (registry, repository.clone()),
                    (repository, image.normalized().to_owned()),
                ];
                for (place, part) in parts {
                    self.place(place, until).add(part, unknown);
                }
            }
        }
    }

    /// The entry, kept at least until then.
    fn place(&mut self, name: String, until: Instant) -> &mut Place {
        let place = self.places.entry(name).or_insert(Place {
            failed: Vec::new(),
            why: None,
            until,
        });
        place.until = place.until.max(until);
        place
    }
}

impl Place {
    fn add(&mut self, part: String, unknown: &Unknown) {
        if self.failed.len() < SEVERAL && !self.failed.contains(&part) {
            self.failed.push(part);
        }
        if self.failed.len() == SEVERAL && self.why.is_none() {
            self.why = Some(unknown.clone());
        }
    }
}

/// The repository's full name, which differs from any registry's name.
fn repository(image: &Reference) -> String {
    format!("{}/{}", image.registry(), image.repository())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    fn unknown(kind: FailureKind) -> Unknown {
        Unknown::new(kind, "scripted")
    }

    /// The given images fail one after the other.
    fn after(images: &[&str], now: Instant) -> LeftAlone {
        let mut places = LeftAlone::default();
        for name in images {
            let unknown = unknown(FailureKind::Unavailable);
            places.failed(&image(name), Scope::Image, &unknown, now);
        }
        places
    }

    #[test]
    fn one_repository_never_silences_registry() {
        let now = Instant::now();
        let places = after(&["r.example/a:1", "r.example/a:2", "r.example/b:1"], now);
        for name in ["r.example/a:3", "r.example/b:1", "r.example/c:1"] {
            assert_eq!(places.why(&image(name), now), None, "{name}");
        }
        // Several tags of one repository pause only that repository.
        let places = after(&["r.example/a:1", "r.example/a:2", "r.example/a:3"], now);
        assert!(places.why(&image("r.example/a:4"), now).is_some());
        assert_eq!(places.why(&image("r.example/b:1"), now), None);
    }

    #[test]
    fn several_repositories_silence_registry_briefly() {
        let now = Instant::now();
        let names = ["r.example/a", "r.example/b", "r.example/c"];
        let (mut places, next) = (after(&names, now), image("r.example/d"));
        assert!(places.why(&next, now).is_some());
        assert_eq!(places.why(&image("s.example/d"), now), None);
        assert_eq!(places.why(&next, now + PAUSE), None);
        // One response cancels the pause.
        places.answered(&image("r.example/e"));
        assert_eq!(places.why(&next, now), None);
        places.failed(&next, Scope::Image, &unknown(FailureKind::Unavailable), now);
        assert_eq!(places.why(&next, now), None);
    }

    #[test]
    fn unreachable_registry_is_silenced_at_once() {
        let now = Instant::now();
        let (mut places, one) = (LeftAlone::default(), image("r.example/a"));
        let unknown = unknown(FailureKind::Unavailable);
        places.failed(&one, Scope::UNREACHABLE, &unknown, now);
        let next = image("r.example/b");
        assert_eq!(places.why(&next, now), Some(&unknown));
        assert_eq!(places.why(&next, now + PAUSE), None);
        assert!(places.rate_limited(now).is_empty());
    }

    #[test]
    fn rate_limit_outlasts_earlier_answers() {
        let now = Instant::now();
        let (mut places, one) = (LeftAlone::default(), image("r.example/a"));
        let minute = Duration::from_secs(60);
        let unknown = unknown(FailureKind::RateLimited);
        places.failed(&one, Scope::Registry(minute), &unknown, now);
        places.answered(&one);
        assert_eq!(places.rate_limited(now), ["r.example"]);
        assert!(places.rate_limited(now + minute).is_empty());
        assert_eq!(places.why(&one, now + minute), None);
    }

    #[test]
    fn forgotten_places_take_no_memory() {
        let now = Instant::now();
        let mut places = after(&["r.example/a", "s.example/a"], now);
        let unknown = unknown(FailureKind::Unavailable);
        let later = now + PAUSE;
        places.failed(&image("t.example/a"), Scope::UNREACHABLE, &unknown, later);
        assert_eq!(places.places.len(), 1);
    }
}
