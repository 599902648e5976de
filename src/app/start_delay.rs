//! The start delay of a node, so that a thousand nodes do not query one registry in the same second. Pure.

use std::time::Duration;

use crate::registry::digest::sha256;

/// The delay of a node: constant for its name, between 0 and `longest`. It is zero for a node that is younger than `min_age`,
/// because new nodes need the images most; a node of unknown age counts as old.
pub fn delay(node: &str, longest: Duration, age: Option<Duration>, min_age: Duration) -> Duration {
    if age.is_some_and(|age| age < min_age) {
        return Duration::ZERO;
    }
    // SHA-256 spreads names that differ in their last digit alone; 32 bits are finer than any delay needs to be.
    let hash = sha256(node.as_bytes());
    let first = hash.as_str().split(':').nth(1).and_then(|hex| hex.get(..8));
    let part = first.and_then(|hex| u32::from_str_radix(hex, 16).ok());
    longest.mul_f64(f64::from(part.unwrap_or(0)) / 4_294_967_296.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(300);
    const MIN_AGE: Duration = Duration::from_secs(600);

    fn seconds(node: &str) -> f64 {
        delay(node, LONGEST, None, MIN_AGE).as_secs_f64()
    }

    #[test]
    fn delay_is_stable_per_node_name() {
        // Golden: a new version must not start all nodes at other times.
        for (node, expected) in [("node-1", 62.8), ("ip-10-0-0-1.ec2.internal", 291.6)] {
            assert!(
                (seconds(node) - expected).abs() < 0.1,
                "{node}: {}",
                seconds(node)
            );
        }
    }

    #[test]
    fn nodes_are_spread_evenly() {
        let mut tenths = [0_u32; 10];
        for number in 0..1000 {
            let at = seconds(&format!("pool-a-{number:04}"));
            assert!((0.0..300.0).contains(&at));
            tenths[(at / 30.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (60..=140).contains(n)), "{tenths:?}");
    }

    #[test]
    fn young_nodes_do_not_wait() {
        let age = |seconds| Some(Duration::from_secs(seconds));
        let wait = |age, min_age| delay("node-1", LONGEST, age, min_age);
        assert_eq!(wait(age(0), MIN_AGE), Duration::ZERO);
        assert_eq!(wait(age(599), MIN_AGE), Duration::ZERO);
        assert_eq!(wait(age(600), MIN_AGE), wait(None, MIN_AGE));
        assert_eq!(wait(age(0), Duration::ZERO), wait(None, MIN_AGE));
        assert!(wait(None, MIN_AGE) > Duration::ZERO);
        assert_eq!(
            delay("node-1", Duration::ZERO, None, MIN_AGE),
            Duration::ZERO
        );
    }
}
