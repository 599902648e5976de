//! The cost of something for the API server: requests and bytes by its own metrics, CPU and memory by the kernel.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::bed::Kubernetes;
use super::super::measure::{cpu_of, forget_peak, peak_of};

/// The counters of the API server at one moment.
pub struct Counters {
    at: Instant,
    cpu: [f64; 2],
    memory: f64,
    /// Number of requests by verb and resource.
    requests: BTreeMap<(String, String), f64>,
    watch_bytes: f64,
    watch_events: f64,
    other_bytes: f64,
}

/// The cost to the API server between two moments.
#[derive(Debug)]
pub struct Cost {
    pub seconds: f64,
    /// Seconds of CPU of the API server and of etcd.
    pub cpu: [f64; 2],
    /// The most resident memory of the API server, and how much more that was than at the start, in MiB.
    pub memory: f64,
    pub more_memory: f64,
    requests: BTreeMap<(String, String), f64>,
    /// Events that were sent to watches.
    pub watch_events: f64,
    /// Bytes of events and of other responses, before compression and TLS.
    pub bytes: f64,
}

impl Counters {
    /// Reads them, and forgets the peak of the memory.
    pub fn read(cluster: &Kubernetes) -> Self {
        let [server, etcd] = cluster.pids();
        forget_peak(server);
        let metrics = cluster.text("/metrics");
        let mut requests = BTreeMap::new();
        for (labels, value) in series(&metrics, "apiserver_request_total") {
            let key = (label(labels, "verb"), label(labels, "resource"));
            *requests.entry(key).or_default() += value;
        }
        let sum = |name| series(&metrics, name).map(|(_, value)| value).sum();
        Self {
            at: Instant::now(),
            cpu: [server, etcd].map(cpu_of),
            memory: peak_of(server),
            requests,
            watch_bytes: sum("apiserver_watch_events_sizes_sum"),
            watch_events: sum("apiserver_watch_events_total"),
            other_bytes: sum("apiserver_response_sizes_sum"),
        }
    }

    /// The cost since then.
    pub fn cost(&self, cluster: &Kubernetes) -> Cost {
        let memory = peak_of(cluster.pids()[0]);
        let seconds = self.at.elapsed().as_secs_f64();
        let now = Self::read(cluster);
        let requests = now.requests.into_iter().map(|(key, count)| {
            let before = self.requests.get(&key).copied().unwrap_or_default();
            (key, count - before)
        });
        Cost {
            seconds,
            cpu: [0, 1].map(|n| now.cpu[n] - self.cpu[n]),
            memory,
            more_memory: memory - self.memory,
            requests: requests.filter(|(_, count)| *count > 0.0).collect(),
            watch_events: now.watch_events - self.watch_events,
            bytes: now.watch_bytes + now.other_bytes - self.watch_bytes - self.other_bytes,
        }
    }
}

impl Cost {
    /// Number of requests that changed objects of a resource.
    pub fn writes(&self, resource: &str) -> f64 {
        let writes = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
        let of = self
            .requests
            .iter()
            .filter(|((verb, of), _)| of == resource && writes.contains(&verb.as_str()));
        // The sum of nothing would be shown as -0.
        of.fold(0.0, |sum, (_, count)| sum + count)
    }

    /// Number of all requests that changed objects of these resources.
    pub fn writes_of(&self, resources: &[&str]) -> f64 {
        resources.iter().map(|resource| self.writes(resource)).sum()
    }

    /// Number of requests of all kinds, of clients of the server.
    pub fn requests(&self) -> f64 {
        self.requests.values().sum()
    }

    /// The requests by verb and resource, for a log.
    pub fn shown(&self) -> String {
        let mut shown: Vec<_> = self.requests.iter().collect();
        shown.sort_by(|a, b| b.1.total_cmp(a.1));
        let shown = shown.iter().take(12);
        let shown = shown.map(|((verb, resource), count)| format!("{verb} {resource} {count}"));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// The series of a metric: the labels and the value.
fn series<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_whole = labels.is_empty() || labels.starts_with('{');
        Some((labels, value.parse().ok()?)).filter(|_| is_whole)
    })
}

fn label(labels: &str, name: &str) -> String {
    let start = format!("{name}=\"");
    let rest = labels.split_once(&start).map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap_or_default().to_owned()
}
