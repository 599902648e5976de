//! A real Prometheus.

use std::path::Path;

use serde_json::Value;

use super::{Daemon, block_on, client};

/// A Prometheus with a configuration of the test's own.
#[derive(Debug)]
pub struct Prometheus(Daemon);

impl Prometheus {
    pub fn start(configuration: &Path) -> Self {
        let path = configuration.to_str().unwrap();
        Self(Daemon::start("prometheus", &["--config", path]))
    }

    /// The first value of a query; none if it has no result.
    pub fn value(&self, query: &str) -> Option<f64> {
        let query = form_urlencoded::byte_serialize(query.as_bytes()).collect::<String>();
        let answer = self.get(&format!("/api/v1/query?query={query}"));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let values = answer["data"]["result"].as_array().unwrap().iter();
        let values = values.map(|result| result["value"][1].as_str().unwrap().parse().unwrap());
        // A result that is not a number counts only if there is no other.
        values.reduce(|one: f64, other| if one.is_nan() { other } else { one })
    }

    /// The series of a query between two times in seconds: labels, and times with values.
    pub fn range(
        &self,
        query: &str,
        (from, to): (f64, f64),
        step: f64,
    ) -> Vec<(Value, Vec<(f64, f64)>)> {
        let query = form_urlencoded::byte_serialize(query.as_bytes()).collect::<String>();
        let answer = self.get(&format!(
            "/api/v1/query_range?query={query}&start={from}&end={to}&step={step}"
        ));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap().iter();
        let series = series.map(|series| {
            let values = series["values"].as_array().unwrap().iter();
            let point = |value: &Value| {
                let text = value[1].as_str().unwrap();
                (value[0].as_f64().unwrap(), text.parse().unwrap())
            };
            (series["metric"].clone(), values.map(point).collect())
        });
        series.collect()
    }

    /// The names of the alerts that fire, sorted.
    pub fn firing(&self) -> Vec<String> {
        let answer = self.get("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().unwrap().iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        let names = firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        names
    }

    fn get(&self, path: &str) -> Value {
        let request = client(None).get(format!("{}{path}", self.0.value("URL")));
        let text = block_on(async move { request.send().await.unwrap().text().await.unwrap() });
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}
