//! The cached answers of one plugin. Pure: the time is passed in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::Answer;

/// Maximum number of cached answers.
const MAX: usize = 1024;

/// The scope of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Image(String),
    Registry(String),
    Global,
}

/// Answers with their expiry times.
#[derive(Default)]
pub(super) struct Cache {
    answers: HashMap<Key, (Arc<Answer>, Instant)>,
}

impl Cache {
    /// The answer for the image, otherwise for its registry, otherwise for all.
    pub(super) fn get(&mut self, registry: &str, image: &str, now: Instant) -> Option<Arc<Answer>> {
        let keys = [
            Key::Image(image.to_owned()),
            Key::Registry(registry.to_owned()),
            Key::Global,
        ];
        keys.iter()
            .filter_map(|key| self.answers.get(key))
            .find(|(_, expires)| *expires > now)
            .map(|(answer, _)| Arc::clone(answer))
    }

    /// Caches an answer. Removes expired answers and, if the cache is full, the one that expires next.
    pub(super) fn put(&mut self, key: Key, answer: &Arc<Answer>, keep: Duration, now: Instant) {
        self.answers.retain(|_, (_, expires)| *expires > now);
        if keep.is_zero() {
            return;
        }
        if self.answers.len() >= MAX && !self.answers.contains_key(&key) {
            let next = self.answers.iter().min_by_key(|(_, (_, expires))| *expires);
            if let Some(next) = next.map(|(key, _)| key.clone()) {
                self.answers.remove(&next);
            }
        }
        self.answers.insert(key, (Arc::clone(answer), now + keep));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::provider::answer::KeyType;

    fn answer() -> Arc<Answer> {
        Arc::new(Answer {
            entries: Vec::new(),
            problems: Vec::new(),
            key_type: KeyType::Image,
            keep: None,
        })
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn answers_are_cached_by_key_type() {
        let now = Instant::now();
        let mut cache = Cache::default();
        let mut put = |key| {
            let answer = answer();
            cache.put(key, &answer, MINUTE, now);
            answer
        };
        let image = put(Key::Image("r/a".to_owned()));
        let registry = put(Key::Registry("r".to_owned()));
        let all = put(Key::Global);
        for (of, name, wanted) in [
            ("r", "r/a", &image),
            ("r", "r/b", &registry),
            ("s", "s/a", &all),
        ] {
            let got = cache.get(of, name, now).unwrap();
            assert!(Arc::ptr_eq(&got, wanted), "{name}");
            assert!(cache.get(of, name, now + MINUTE).is_none(), "{name}");
        }
    }

    #[test]
    fn cache_drops_zero_durations_and_overflow() {
        let now = Instant::now();
        let mut cache = Cache::default();
        cache.put(Key::Global, &answer(), Duration::ZERO, now);
        assert!(cache.get("r", "r/a", now).is_none());
        for i in 0..=MAX as u64 {
            let key = Key::Registry(i.to_string());
            cache.put(key, &answer(), Duration::from_secs(60 + i), now);
        }
        assert_eq!(cache.answers.len(), MAX);
        assert!(cache.get("0", "0/a", now).is_none());
        assert!(cache.get("1", "1/a", now).is_some());
    }
}
