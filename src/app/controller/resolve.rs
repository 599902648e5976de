//! Resolve: the images of one ImagePrefetch, with their pods and placements. Pure.
//!
//! The spec is validated here too: Kubernetes 1.20 ignores the CEL rules of the definition.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::core::{Selector, SelectorExt};

use crate::api::v1alpha1::{
    ImagePrefetchSpec, LabelSelector, Placement, RolloutType, WorkloadKindName, Workloads,
};
use crate::app::continuous::placement;
use crate::discovery::workloads::inventory::{Filter, Inventory};
use crate::model::candidate::{Candidate, Workload};
use crate::model::dns_name::is_label;
use crate::model::failure::FailureKind;
use crate::model::outcome::Reason;
use crate::model::reference::{Prefix, Reference};
use crate::model::text::{clip, sanitize};
use crate::model::workload_kind::WorkloadKind;
use crate::planning::plan::{self, Facts, Policy, Step};

/// Maximum number of images of a list.
const MAX_IMAGES: usize = 500;
/// Maximum number of malformed images that a message names.
const MAX_NAMED: usize = 5;
/// Characters of a text from outside in a message.
const QUOTED_MAX: usize = 100;
/// Maximum number of different placements of an image; with more, it goes to every node.
const MAX_PLACEMENTS: usize = 32;
/// Number of namespaces of a kind above which all namespaces are watched.
pub(super) const MAX_NAMESPACES: usize = 20;

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(8760 * 3600);

/// A valid spec.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    pub(super) source: Source,
    policy: Policy,
    /// The placement of all images; `None` for that of the workloads.
    target: Option<Placement>,
}

/// The source of the images.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Images(Vec<String>),
    Workloads {
        kinds: BTreeSet<WorkloadKind>,
        namespaces: Namespaces,
        selector: Selector,
    },
}

/// The namespaces of the workloads.
#[derive(Debug, Clone)]
pub(super) enum Namespaces {
    All,
    These(BTreeSet<String>),
    Selected(Selector),
}

/// The images of an ImagePrefetch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Resolved {
    /// By normalised reference.
    pub(super) images: BTreeMap<Arc<str>, Wanted>,
    /// The malformed images, for people; empty if there is none.
    pub(super) malformed: String,
}

/// An image of an ImagePrefetch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) pods: i64,
    /// Without any, all nodes.
    pub(super) placements: Vec<Placement>,
    pub(super) refresh: bool,
}

/// Validates a spec. The error says which field is wrong.
pub(super) fn validate(spec: &ImagePrefetchSpec) -> Result<Demand, String> {
    let source = match (&spec.source.images, &spec.source.workloads) {
        (Some(images), None) => {
            if images.is_empty() || images.len() > MAX_IMAGES {
                return Err(format!(
                    "spec.source.images: must have 1 to {MAX_IMAGES} entries"
                ));
            }
            Source::Images(images.clone())
        }
        (None, Some(workloads)) => of_workloads(workloads)?,
        _ => return Err("spec.source: exactly one of images and workloads is required".to_owned()),
    };
    let limit = match spec.limit {
        None => None,
        Some(limit) => match usize::try_from(limit) {
            Ok(limit @ 1..) => Some(limit),
            _ => return Err("spec.limit: must be at least 1".to_owned()),
        },
    };
    check_times(spec)?;
    if let Some(selector) = &spec.node_selector {
        selector_of(selector).map_err(|error| format!("spec.nodeSelector: {error}"))?;
    }
    Ok(Demand {
        source,
        policy: Policy {
            only: prefixes("only", &spec.only)?,
            ignore: prefixes("ignore", &spec.ignore)?,
            limit,
            short_names_apart: false,
        },
        target: spec.node_selector.as_ref().map(placement::of_selector),
    })
}

fn of_workloads(workloads: &Workloads) -> Result<Source, String> {
    let kinds = BTreeSet::from_iter(workloads.kinds.iter().copied().map(kind_of));
    if kinds.is_empty() {
        return Err("spec.source.workloads.kinds: must have an entry".to_owned());
    }
    let selector = workloads.selector.clone().unwrap_or_default();
    let selector = selector_of(&selector)
        .map_err(|error| format!("spec.source.workloads.selector: {error}"))?;
    let namespaces = match (&workloads.namespaces, &workloads.namespace_selector) {
        (None, None) => Namespaces::All,
        (Some(names), None) => {
            if let Some(name) = names.iter().find(|name| !is_label(name)) {
                let name = quoted(name);
                return Err(format!(
                    "spec.source.workloads.namespaces: {name} is not the name of a namespace"
                ));
            }
            Namespaces::These(names.iter().cloned().collect())
        }
        (None, Some(selector)) => {
            let selector = selector_of(selector)
                .map_err(|error| format!("spec.source.workloads.namespaceSelector: {error}"))?;
            Namespaces::Selected(selector)
        }
        (Some(_), Some(_)) => {
            return Err(
                "spec.source.workloads: namespaces and namespaceSelector exclude each other"
                    .to_owned(),
            );
        }
    };
    Ok(Source::Workloads {
        kinds,
        namespaces,
        selector,
    })
}

/// The kind that a spec names.
fn kind_of(name: WorkloadKindName) -> WorkloadKind {
    match name {
        WorkloadKindName::Deployment => WorkloadKind::Deployments,
        WorkloadKindName::StatefulSet => WorkloadKind::StatefulSets,
        WorkloadKindName::DaemonSet => WorkloadKind::DaemonSets,
        WorkloadKindName::ReplicaSet => WorkloadKind::ReplicaSets,
        WorkloadKindName::Job => WorkloadKind::Jobs,
        WorkloadKindName::CronJob => WorkloadKind::CronJobs,
        WorkloadKindName::Pod => WorkloadKind::Pods,
    }
}

fn selector_of(selector: &LabelSelector) -> Result<Selector, String> {
    let requirements = selector.match_expressions.iter().map(|expression| {
        let needs_values = matches!(expression.operator.as_str(), "In" | "NotIn");
        if needs_values == expression.values.is_empty() {
            let operator = quoted(&expression.operator);
            return Err(format!(
                "wrong number of values for the operator {operator}"
            ));
        }
        Ok(meta::LabelSelectorRequirement {
            key: expression.key.clone(),
            operator: expression.operator.clone(),
            values: needs_values.then(|| expression.values.clone()),
        })
    });
    let selector = meta::LabelSelector {
        match_labels: Some(selector.match_labels.clone()),
        match_expressions: Some(requirements.collect::<Result<_, _>>()?),
    };
    Selector::try_from(selector).map_err(|_| "unknown operator".to_owned())
}

fn prefixes(field: &str, texts: &[String]) -> Result<Vec<Prefix>, String> {
    let parse = |text: &String| {
        Prefix::parse(text)
            .ok_or_else(|| format!("spec.{field}: {} is not an image prefix", quoted(text)))
    };
    texts.iter().map(parse).collect()
}

fn check_times(spec: &ImagePrefetchSpec) -> Result<(), String> {
    let rollout = &spec.rollout;
    let times = [
        ("rollout.window", rollout.window.as_deref(), DAY),
        (
            "rollout.doublingPeriod",
            rollout.doubling_period.as_deref(),
            Duration::from_secs(3600),
        ),
        (
            "retention.keepAfterUnused",
            Some(spec.retention.keep_after_unused.as_str()),
            YEAR,
        ),
        (
            "nodeGate.timeout",
            spec.node_gate.as_ref().map(|gate| gate.timeout.as_str()),
            DAY,
        ),
    ];
    for (field, text, most) in times {
        let Some(text) = text else { continue };
        match humantime::parse_duration(text) {
            Ok(time) if time <= most => {}
            Ok(_) => {
                let hours = most.as_secs() / 3600;
                return Err(format!("spec.{field}: must be at most {hours}h"));
            }
            Err(_) => return Err(format!("spec.{field}: {} is not a duration", quoted(text))),
        }
    }
    if rollout.kind == RolloutType::Doubling && rollout.start_nodes.is_some_and(|nodes| nodes < 1) {
        return Err("spec.rollout.startNodes: must be at least 1".to_owned());
    }
    Ok(())
}

/// A text from outside in a message.
fn quoted(text: &str) -> String {
    format!("\"{}\"", sanitize(&clip(text, QUOTED_MAX)))
}

/// Resolves a demand. `namespaces` are the labels of the namespaces, which only a demand with a selector of namespaces needs.
pub(super) fn resolve(
    demand: &Demand,
    inventory: &Inventory,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
) -> Resolved {
    let candidates = match &demand.source {
        Source::Images(images) => {
            let listed = images.iter().map(|image| Candidate::listed(image.as_str()));
            return resolved(demand, listed.collect(), |_| None);
        }
        Source::Workloads {
            kinds,
            namespaces: wanted,
            selector,
        } => inventory.select(&Filter {
            kinds: kinds.clone(),
            namespaces: match wanted {
                Namespaces::All => None,
                Namespaces::These(names) => Some(names.clone()),
                Namespaces::Selected(selector) => {
                    let selected = namespaces
                        .iter()
                        .filter(|(_, labels)| selector.matches(labels));
                    Some(selected.map(|(name, _)| name.clone()).collect())
                }
            },
            selector: selector.clone(),
        }),
    };
    let mut known: HashMap<Workload, Option<Placement>> = HashMap::new();
    let mut resolved = resolved(demand, candidates.candidates, |workload| {
        if let Some(known) = known.get(workload) {
            return known.clone();
        }
        let placement = inventory.requirements(workload);
        let placement = placement.map(|own| placement::of_requirements(&own));
        known.insert(workload.clone(), placement.clone());
        placement
    });
    if let Some(workload) = candidates.oversized.first() {
        let more = format!("the image of {workload} is longer than 4096 characters");
        add(&mut resolved.malformed, &more);
    }
    resolved
}

/// Selects by the rules of the plan: spellings of an image are merged, the most used images come first.
fn resolved(
    demand: &Demand,
    candidates: Vec<Candidate>,
    mut placement_of: impl FnMut(&Workload) -> Option<Placement>,
) -> Resolved {
    let always = always_pulled(&candidates);
    let plan = plan::select(candidates, &demand.policy).against(Facts::default());
    let mut resolved = Resolved::default();
    let mut malformed = 0_usize;
    for image in plan.images() {
        let reference = match &image.step {
            Step::Pull(reference) => reference,
            Step::Skip(Reason::Failure(FailureKind::InvalidReference), why) => {
                malformed += 1;
                if malformed <= MAX_NAMED {
                    let why = sanitize(&clip(why, QUOTED_MAX));
                    add(
                        &mut resolved.malformed,
                        &format!("image {}: {why}", quoted(&image.image)),
                    );
                }
                continue;
            }
            _ => continue,
        };
        let normalized: Arc<str> = reference.normalized().into();
        let tag = reference.tag();
        let wanted = Wanted {
            pods: image.pods.unwrap_or(0).try_into().unwrap_or(i64::MAX),
            refresh: tag == Some("latest") || (tag.is_some() && always.contains(&*normalized)),
            placements: match &demand.target {
                Some(target) => vec![target.clone()],
                None => placements(&image.workloads, &mut placement_of),
            },
        };
        resolved.images.insert(normalized, wanted);
    }
    if malformed > MAX_NAMED {
        let more = format!("and {} more", malformed - MAX_NAMED);
        add(&mut resolved.malformed, &more);
    }
    resolved
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str("; ");
    }
    text.push_str(more);
}

/// The normalised references that a workload has with the pull policy `Always`.
fn always_pulled(candidates: &[Candidate]) -> HashSet<String> {
    let always = candidates.iter().filter(|candidate| {
        let mut uses = candidate.uses.iter().flatten();
        uses.any(|used| used.always)
    });
    always
        .filter_map(|candidate| Reference::of(&candidate.image).ok())
        .map(|reference| reference.normalized().to_owned())
        .collect()
}

/// The placements of the workloads, each once; none, which means all nodes, if one of them is unknown or there are too many.
fn placements(
    workloads: &[Arc<Workload>],
    placement_of: &mut impl FnMut(&Workload) -> Option<Placement>,
) -> Vec<Placement> {
    let mut found: Vec<Placement> = Vec::new();
    for workload in workloads {
        let Some(placement) = placement_of(workload) else {
            return Vec::new();
        };
        if !found.contains(&placement) {
            found.push(placement);
        }
        if found.len() > MAX_PLACEMENTS {
            return Vec::new();
        }
    }
    found
}
