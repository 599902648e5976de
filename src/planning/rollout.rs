//! Rollout slots: when a node starts to pull a newly planned image.
//!
//! Pure. A slot is a hash of the node and the image, so that nodes spread over the time without any coordination, in another
//! order for each image.

use std::time::Duration;

use crate::registry::digest::sha256;

/// The start of a pull is never later than this after the image was planned, whatever an object says.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The spread of a new image over the nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rollout {
    /// All nodes start at once.
    Immediate,
    /// The nodes start evenly within this time.
    Linear(Duration),
    /// A few nodes start first; twice as many have started after each period.
    Doubling {
        /// Number of nodes of the cluster.
        nodes: u32,
        /// Number of nodes that start first; at least 1.
        start_nodes: u32,
        /// The time after which twice as many nodes have started.
        period: Duration,
    },
}

impl Rollout {
    /// The time between the planning of the image and the start of its pull on the node.
    pub fn delay(self, node: &str, image: &str) -> Duration {
        self.delay_of(slot(node, image))
    }

    /// The time after which every node has started.
    pub fn length(self) -> Duration {
        self.delay_of(1.0)
    }

    /// The delay of the slot `u` in [0, 1].
    fn delay_of(self, u: f64) -> Duration {
        match self {
            Self::Immediate => Duration::ZERO,
            Self::Linear(window) => window.min(LONGEST).mul_f64(u),
            Self::Doubling {
                nodes,
                start_nodes,
                period,
            } => {
                let doublings = (u * f64::from(nodes) / f64::from(start_nodes.max(1))).log2();
                // The logarithm of 0 is negative infinity: such a node is one of the first.
                let delay = period.as_secs_f64() * doublings.max(0.0);
                Duration::from_secs_f64(delay.min(LONGEST.as_secs_f64()))
            }
        }
    }
}

/// The slot of a node for an image, uniform in [0, 1).
fn slot(node: &str, image: &str) -> f64 {
    // Neither a node's name nor an image contains the separator.
    let hash = sha256(format!("{node}\0{image}").as_bytes());
    let hex = hash.as_str().split(':').nth(1);
    // 52 bits, because a float holds no more of them.
    let first = hex.and_then(|hex| u64::from_str_radix(hex.get(..13)?, 16).ok());
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit into a float")]
    let part = first.unwrap_or(0) as f64;
    part / (1_u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "registry.example/shop/web:7";

    /// The delays of the nodes of a cluster, in seconds.
    fn delays(rollout: Rollout, nodes: u32, image: &str) -> Vec<f64> {
        let delay = |node| rollout.delay(&format!("node-{node}"), image).as_secs_f64();
        (0..nodes).map(delay).collect()
    }

    /// Asserts that about `expected` of the delays are over at a time: within five standard deviations of a binomial
    /// distribution.
    fn assert_started(delays: &[f64], at: f64, expected: f64) {
        let count = delays.len() as f64;
        let part = (expected / count).clamp(0.0, 1.0);
        let noise = 5.0 * (count * part * (1.0 - part)).sqrt() + 1.0;
        let started = delays.iter().filter(|delay| **delay <= at).count() as f64;
        assert!(
            (started - part * count).abs() <= noise,
            "{started} of {count} nodes started after {at} s, expected {expected} ± {noise}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn linear_starts_nodes_evenly(
            nodes in 1_u32..3000, window in 1_u64..86400, part in 0.0_f64..=1.0, image in "[a-z]{1,20}"
        ) {
            let window = Duration::from_secs(window);
            let at = window.as_secs_f64() * part;
            let delays = delays(Rollout::Linear(window), nodes, &image);
            assert!(delays.iter().all(|delay| *delay < window.as_secs_f64()));
            assert_started(&delays, at, f64::from(nodes) * part);
        }

        #[test]
        fn doubling_doubles_each_period(
            nodes in 1_u32..3000, start_nodes in 1_u32..500, period in 1_u64..3600, periods in 0.0_f64..12.0,
            image in "[a-z]{1,20}"
        ) {
            let period = Duration::from_secs(period);
            let rollout = Rollout::Doubling { nodes, start_nodes, period };
            let at = period.as_secs_f64() * periods;
            let expected = f64::from(start_nodes) * periods.exp2();
            assert_started(&delays(rollout, nodes, &image), at, expected);
        }
    }

    #[test]
    fn doubling_covers_cluster_in_time() {
        let period = Duration::from_secs(15);
        let rollout = Rollout::Doubling {
            nodes: 5000,
            start_nodes: 5,
            period,
        };
        let delays = delays(rollout, 5000, IMAGE);
        // log2(5000 / 5) is 9.97 periods.
        assert!(delays.iter().all(|delay| *delay < 150.0));
        assert_started(&delays, 0.0, 5.0);
    }

    #[test]
    fn immediate_never_waits() {
        assert!(
            delays(Rollout::Immediate, 100, IMAGE)
                .iter()
                .all(|d| *d == 0.0)
        );
    }

    #[test]
    fn extreme_values_are_bounded() {
        for rollout in [
            Rollout::Linear(Duration::MAX),
            Rollout::Doubling {
                nodes: u32::MAX,
                start_nodes: 0,
                period: Duration::MAX,
            },
        ] {
            for u in [0.0, 0.5, 0.999_999_999] {
                assert!(rollout.delay_of(u) <= LONGEST);
            }
        }
    }

    #[test]
    fn slots_are_stable() {
        // Golden: a new version must not start all nodes at other times.
        let minute = Rollout::Linear(Duration::from_secs(60));
        let delay = minute.delay("node-1", IMAGE).as_secs_f64();
        assert!((delay - 30.9396).abs() < 0.001, "{delay}");
        assert_ne!(slot("node-1", IMAGE), slot("node-1", "another"));
        assert_ne!(slot("node-1", IMAGE), slot("node-2", IMAGE));
    }
}
