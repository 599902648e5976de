//! Settings of `harpoon status`. They are flags only, like those of kubectl: the command is for people, not for pods.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{Parsed, path, single, text, time_above_zero};
use crate::app::status::Subject;
use crate::kube_api::connect::ClusterChoice;
use crate::model::dns_name::is_subdomain;
use crate::report::status::text::Style;

/// The subject and the output of `harpoon status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// ImagePrefetch, or node/NAME for a node (default: all ImagePrefetches and nodes)
    #[arg(value_name = "PREFETCH | node/NAME", value_parser = single(subject))]
    subject: Option<Subject>,

    /// Follow the progress until everything is complete, then exit with 0
    #[arg(long, short = 'w')]
    pub(crate) watch: bool,

    /// Time after which --watch exits with 1, such as 90s or 10m (default: no limit)
    #[arg(long, value_name = "TIME", requires = "watch", value_parser = single(time_above_zero))]
    pub(crate) timeout: Option<Duration>,

    /// Format of the output: text, wide, json or yaml
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "text", value_parser = single(format))]
    pub(crate) output: StatusFormat,

    /// Print tables without their heads and the summary
    #[arg(long)]
    no_headers: bool,

    /// Context of the kubeconfig (default: its current context)
    #[arg(long, value_name = "NAME", help_heading = "Cluster", value_parser = single(text))]
    context: Option<String>,

    /// Kubeconfig file (default: as KUBECONFIG says)
    #[arg(long, value_name = "FILE", help_heading = "Cluster", value_parser = single(path))]
    kubeconfig: Option<PathBuf>,
}

/// The formats of `harpoon status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// Tables.
    Text,
    /// Tables with all rows and further columns.
    Wide,
    /// One line of JSON.
    Json,
    /// YAML.
    Yaml,
}

impl StatusArgs {
    pub(crate) fn subject(&self) -> Subject {
        self.subject.clone().unwrap_or(Subject::All)
    }

    /// The cluster that is asked.
    pub(crate) fn cluster(&self) -> ClusterChoice {
        ClusterChoice {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }

    /// The style of tables on an output that has colours or not.
    pub(crate) fn style(&self, colors: bool) -> Style {
        Style {
            wide: self.output == StatusFormat::Wide,
            headers: !self.no_headers,
            colors,
        }
    }
}

fn subject(text: &str) -> Parsed<Subject> {
    let expected = "expected the name of an ImagePrefetch, or node/NAME";
    let (kind, name) = match text.split_once('/') {
        None => (None, text),
        Some((kind, name)) => (Some(kind), name),
    };
    if !is_subdomain(name) {
        return Err(expected.into());
    }
    match kind {
        None | Some("ipf" | "imageprefetch" | "imageprefetches") => {
            Ok(Subject::Prefetch(name.to_owned()))
        }
        Some("node" | "nodes" | "no" | "npf" | "nodeprefetch" | "nodeprefetches") => {
            Ok(Subject::Node(name.to_owned()))
        }
        Some(_) => Err(expected.into()),
    }
}

fn format(text: &str) -> Parsed<StatusFormat> {
    match text {
        "text" => Ok(StatusFormat::Text),
        "wide" => Ok(StatusFormat::Wide),
        "json" => Ok(StatusFormat::Json),
        "yaml" => Ok(StatusFormat::Yaml),
        _ => Err("expected text, wide, json or yaml".into()),
    }
}
