//! `docs/api.md`: the reference of the three kinds, made from their definitions.

use serde_json::Value;

use super::super::parse;
use super::check;
use crate::bed::Harpoon;

const PAGE: &str = "../docs/api.md";

const HEAD: &str = "# API reference

The kinds of [continuous mode](continuous.md): group `harpoon.dev`, version `v1alpha1`. All are cluster-scoped and in the category `harpoon`:
`kubectl get harpoon` lists them. `harpoon crds` prints their definitions, which are `deploy/crds.yaml` and the chart's `crds/`.

`make generate` writes this page from the definitions. A field without a default is optional unless it says *required*. Durations are
text such as `90s`, `2m` or `1h30m`.
";

#[test]
fn api_reference_matches_the_definitions() {
    let printed = Harpoon::new(["crds"]).run().expect(0).stdout;
    let mut page = HEAD.to_owned();
    for definition in parse(&printed) {
        page.push_str(&kind(&definition["spec"]));
    }
    check(PAGE, &page);
}

/// The section of one kind.
fn kind(spec: &Value) -> String {
    let (names, version) = (&spec["names"], &spec["versions"][0]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut section = format!(
        "\n## {}\n\n{}\n\nNames for kubectl: `{}`, `{}`.\n",
        text(&names["kind"]),
        text(&schema["description"]),
        text(&names["plural"]),
        text(&names["shortNames"][0])
    );
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    section.push_str("\n| column | shows |\n| --- | --- |\n");
    for column in columns {
        let wide = match column["priority"] == 1 {
            true => ", with `-o wide`",
            false => "",
        };
        let (name, path) = (text(&column["name"]), text(&column["jsonPath"]));
        section.push_str(&format!("| `{}` | `{path}`{wide} |\n", name.to_uppercase()));
    }
    for part in ["spec", "status"] {
        let schema = &schema["properties"][part];
        if schema["properties"].is_object() {
            section.push_str(&format!("\n### {} {part}\n\n", text(&names["kind"])));
            section
                .push_str("| field | type | default | description |\n| --- | --- | --- | --- |\n");
            fields(schema, "", &mut section);
        }
    }
    section
}

/// The rows of an object's fields and of those below them.
fn fields(schema: &Value, path: &str, rows: &mut String) {
    let required = schema["required"].as_array().into_iter().flatten();
    let required: Vec<_> = required.filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}{name}");
        let default = match &field["default"] {
            Value::Null | Value::Object(_) => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let mut description = field["description"].as_str().unwrap_or_default().to_owned();
        for limit in limits(field) {
            if description.to_lowercase().contains(&limit.to_lowercase()) {
                continue;
            }
            description = format!("{description} {limit}.");
        }
        if required.contains(&name.as_str()) {
            description.push_str(" *Required.*");
        }
        let description = description.replace('\n', " ").replace('|', "\\|");
        rows.push_str(&format!(
            "| `{path}` | {} | {default} | {} |\n",
            type_of(field),
            description.trim()
        ));
        if is_selector(field) {
            continue;
        }
        match field["items"]["properties"].is_object() {
            true => fields(&field["items"], &format!("{path}[]."), rows),
            false => fields(field, &format!("{path}."), rows),
        }
    }
}

/// Returns whether a field is a label selector, whose fields every reader of Kubernetes' own objects knows.
fn is_selector(field: &Value) -> bool {
    let fields = field["properties"].as_object();
    fields.is_some_and(|f| f.contains_key("matchLabels") && f.contains_key("matchExpressions"))
}

fn type_of(field: &Value) -> String {
    if is_selector(field) {
        return "label selector".to_owned();
    }
    let name = field["type"].as_str().unwrap_or("any");
    match name {
        "array" => format!("list of {}s", type_of(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map of strings".to_owned(),
        name => name.to_owned(),
    }
}

/// The limits of a field, as sentences without their full stops.
fn limits(field: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    let number = |value: &Value| value.as_f64().map(|number| format!("{number:.0}"));
    let schemas = [field, &field["items"]];
    if let Some(values) = schemas.iter().find_map(|schema| schema["enum"].as_array()) {
        let values = values.iter().filter_map(Value::as_str);
        let values: Vec<_> = values.map(|value| format!("`{value}`")).collect();
        limits.push(format!("Values: {}", values.join(", ")));
    }
    if let (Some(least), Some(most)) = (number(&field["minimum"]), number(&field["maximum"])) {
        limits.push(format!("From {least} to {most}"));
    }
    if let Some(most) = number(&field["maxItems"]) {
        limits.push(format!("At most {most} entries"));
    }
    let rules = field["x-kubernetes-validations"].as_array().into_iter();
    for message in rules.flatten().filter_map(|rule| rule["message"].as_str()) {
        let (first, rest) = message.split_at(1);
        limits.push(format!("{}{rest}", first.to_uppercase()).replace(" is required", ""));
    }
    limits
}
