use super::*;

#[test]
fn only_refused_nodes_are_given_up() {
    for status in [401, 403, 404] {
        assert!(is_given_up(false, Some(status)), "{status}");
        assert!(!is_given_up(true, Some(status)), "{status}");
    }
    for status in [None, Some(410), Some(429), Some(500)] {
        assert!(!is_given_up(false, status), "{status:?}");
    }
}
