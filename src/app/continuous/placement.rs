//! Placements of PlannedImages to and from the requirements that `node_match` compares with a node. Pure.

use crate::api::v1alpha1::{
    AffinityTerm, Expression, LabelSelector, Placement, SelectorExpression, Toleration,
};
use crate::planning::node_match;

/// The placement of pods with these requirements.
pub(crate) fn of_requirements(requirements: &node_match::Requirements) -> Placement {
    // A selector may have a key twice, from the template and from its RuntimeClass. If the values differ, no node matches, which a
    // map cannot say; an affinity can.
    let mut placement = Placement {
        node_name: requirements.node_name.clone(),
        os: requirements.os.clone(),
        resources: requirements.extended_resources.iter().cloned().collect(),
        tolerations: requirements.tolerations.iter().map(toleration).collect(),
        affinity: requirements
            .affinity
            .as_ref()
            .map(|terms| terms.iter().map(term).collect()),
        ..Placement::default()
    };
    for (key, value) in &requirements.node_selector {
        let known = placement.node_selector.entry(key.clone());
        let known = known.or_insert_with(|| value.clone());
        if known != value {
            placement.affinity = Some(Vec::new());
        }
    }
    placement.tolerations.sort_by(|a, b| {
        let key = |t: &Toleration| {
            (
                t.key.clone(),
                t.operator.clone(),
                t.value.clone(),
                t.effect.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    placement.tolerations.dedup();
    placement
}

/// The requirements that a placement stands for.
pub(crate) fn requirements(placement: &Placement) -> node_match::Requirements {
    node_match::Requirements {
        node_name: placement.node_name.clone(),
        node_selector: placement.node_selector.clone().into_iter().collect(),
        affinity: placement.affinity.as_ref().map(|terms| {
            let terms = terms.iter().map(|term| node_match::Term {
                labels: term.match_expressions.iter().map(plain).collect(),
                fields: term.match_fields.iter().map(plain).collect(),
            });
            terms.collect()
        }),
        tolerations: placement.tolerations.iter().map(plain_toleration).collect(),
        os: placement.os.clone(),
        extended_resources: placement.resources.iter().cloned().collect(),
    }
}

/// The placement of an explicit selector of nodes: their taints do not matter.
pub(crate) fn of_selector(selector: &LabelSelector) -> Placement {
    let expression = |wanted: &SelectorExpression| Expression {
        key: wanted.key.clone(),
        operator: wanted.operator.clone(),
        values: wanted.values.clone(),
    };
    let expressions: Vec<_> = selector.match_expressions.iter().map(expression).collect();
    // A term without any expression would match no node.
    let affinity = (!expressions.is_empty()).then(|| {
        vec![AffinityTerm {
            match_expressions: expressions,
            match_fields: Vec::new(),
        }]
    });
    Placement {
        node_selector: selector.match_labels.clone(),
        affinity,
        tolerations: vec![Toleration {
            operator: "Exists".to_owned(),
            ..Toleration::default()
        }],
        ..Placement::default()
    }
}

fn term(term: &node_match::Term) -> AffinityTerm {
    AffinityTerm {
        match_expressions: term.labels.iter().map(expression).collect(),
        match_fields: term.fields.iter().map(expression).collect(),
    }
}

fn expression(expression: &node_match::Expression) -> Expression {
    Expression {
        key: expression.key.clone(),
        operator: expression.operator.clone(),
        values: expression.values.clone(),
    }
}

fn plain(expression: &Expression) -> node_match::Expression {
    node_match::Expression {
        key: expression.key.clone(),
        operator: expression.operator.clone(),
        values: expression.values.clone(),
    }
}

fn toleration(toleration: &node_match::Toleration) -> Toleration {
    Toleration {
        key: toleration.key.clone(),
        operator: toleration.operator.clone(),
        value: toleration.value.clone(),
        effect: toleration.effect.clone(),
    }
}

fn plain_toleration(toleration: &Toleration) -> node_match::Toleration {
    node_match::Toleration {
        key: toleration.key.clone(),
        operator: toleration.operator.clone(),
        value: toleration.value.clone(),
        effect: toleration.effect.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::planning::node_match::{Node, Requirements, Taint, mismatch};

    fn node(labels: &[(&str, &str)]) -> Node {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Node {
            name: "node-1".to_owned(),
            labels: labels.collect(),
            taints: vec![Taint {
                key: "dedicated".to_owned(),
                value: "gpu".to_owned(),
                effect: "NoSchedule".to_owned(),
            }],
            ..Node::default()
        }
    }

    #[test]
    fn requirements_survive_the_round_trip() {
        let own = Requirements {
            node_name: "node-1".to_owned(),
            node_selector: vec![("zone".to_owned(), "a".to_owned())],
            affinity: Some(vec![node_match::Term {
                labels: vec![node_match::Expression {
                    key: "gpu".to_owned(),
                    operator: "In".to_owned(),
                    values: vec!["a100".to_owned()],
                }],
                fields: Vec::new(),
            }]),
            tolerations: vec![node_match::Toleration {
                key: "dedicated".to_owned(),
                operator: "Exists".to_owned(),
                ..node_match::Toleration::default()
            }],
            os: "linux".to_owned(),
            extended_resources: ["nvidia.com/gpu".to_owned()].into(),
        };
        let placement = of_requirements(&own);
        assert_eq!(requirements(&placement), own);
        let json = serde_json::to_value(&placement).unwrap();
        assert_eq!(
            serde_json::from_value::<Placement>(json).unwrap(),
            placement
        );
    }

    #[test]
    fn contradicting_selectors_match_no_node() {
        let pair = |value: &str| ("zone".to_owned(), value.to_owned());
        let mut own = Requirements {
            node_selector: vec![pair("a"), pair("a")],
            tolerations: vec![plain_toleration(&Toleration {
                operator: "Exists".to_owned(),
                ..Toleration::default()
            })],
            ..Requirements::default()
        };
        let here = node(&[("zone", "a")]);
        let fits =
            |own: &Requirements| mismatch(&requirements(&of_requirements(own)), &here).is_none();
        assert!(fits(&own));
        own.node_selector.push(pair("b"));
        assert!(!fits(&own));
    }

    #[test]
    fn selector_ignores_taints() {
        let selector = LabelSelector {
            match_labels: BTreeMap::from([("pool".to_owned(), "gpu".to_owned())]),
            match_expressions: vec![SelectorExpression {
                key: "old".to_owned(),
                operator: "DoesNotExist".to_owned(),
                values: Vec::new(),
            }],
        };
        let fits = |labels: &[(&str, &str)]| {
            let requirements = requirements(&of_selector(&selector));
            mismatch(&requirements, &node(labels)).is_none()
        };
        assert!(fits(&[("pool", "gpu")]));
        assert!(!fits(&[("pool", "cpu")]));
        assert!(!fits(&[("pool", "gpu"), ("old", "")]));
        let all = of_selector(&LabelSelector::default());
        assert!(mismatch(&requirements(&all), &node(&[])).is_none());
    }
}
