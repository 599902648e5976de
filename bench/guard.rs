//! Instruction counts of CPU-bound code, compared with the committed ones: unlike time, they hardly depend on the machine.
//!
//! `make bench` fails if a count exceeds the one in `bench/guard.txt` by more than [`TOLERANCE`]. `GUARD=write` in the
//! environment writes the file instead, and the page shows the ratio to the counts that it replaced. Counts differ with
//! another compiler: write the file then.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::json;

use super::bed::large::deployment;
use super::bed::{directory, run as output};
use super::measure::{Row, harpoon, tool};
use super::page::{Part, column, said};
use super::planning::{image, plan};

const FILE: &str = "bench/guard.txt";
const TOLERANCE: f64 = 1.05;
const IMAGES: usize = 10_000;
const DEPLOYMENTS: usize = 200;

pub fn run(part: &mut Part, _: usize) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let committed: BTreeMap<String, f64> = std::fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
        .collect();
    let write =
        std::env::var_os("GUARD").is_some_and(|value| value == "write") || committed.is_empty();
    let files = directory();
    let list = |count: usize| {
        let file = files.path().join(count.to_string());
        std::fs::write(
            &file,
            (0..count).map(|n| image(n) + "\n").collect::<String>(),
        )
        .unwrap();
        file.to_str().unwrap().to_owned()
    };
    let layout = files.path().join("layout");
    let layout = layout.to_str().unwrap();
    let start = instructions(&plan(&list(1), layout));
    let config = |count: usize| {
        let file = files.path().join(format!("config-{count}"));
        let cluster = json!({"server": format!("http://{}", serve(count))});
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "it", "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {}}], "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]});
        std::fs::write(&file, config.to_string()).unwrap();
        file
    };
    let discovery = |count: usize| {
        let mut plan = harpoon([
            "plan",
            "--namespaces",
            "*",
            "--runtime-endpoint",
            &format!("oci:{layout}"),
            "--output",
            "json",
            "--log-level",
            "error",
        ]);
        plan.env("KUBECONFIG", config(count));
        instructions(&plan)
    };
    // The start of the program is included in neither.
    let counts = [
        (
            "planning",
            (instructions(&plan(&list(IMAGES), layout)) - start) / IMAGES as f64,
        ),
        (
            "discovery",
            (discovery(DEPLOYMENTS) - discovery(1)) / (DEPLOYMENTS - 1) as f64,
        ),
        ("start", start),
    ];
    part.say(&format!(
        "Instructions, counted by callgrind: planning per image of {IMAGES}, discovery per Deployment of 25 KB, and a start with one image. \
         *Committed* is the count in `{FILE}` before this measurement, *ratio* is to that count. `make bench ONLY=guard` fails if a ratio is above {TOLERANCE:.2}.{}",
        if write {
            " This measurement was made with `GUARD=write`: it accepts the ratios and replaces the committed counts."
        } else {
            ""
        }
    ));
    let rows = counts.map(|(name, count)| Row {
        name: name.to_owned(),
        columns: vec![
            vec![count],
            vec![committed.get(name).copied().unwrap_or(count)],
        ],
    });
    part.comparison(
        "guard",
        &[column("instructions", 0), column("committed", 0)],
        &rows,
    );
    part.say(&format!(
        "Command: `make bench ONLY=guard`. {}; {}.",
        said(Command::new("valgrind").arg("--version")),
        said(Command::new("rustc").arg("--version"))
    ));
    if write {
        let lines: String = counts
            .iter()
            .map(|(name, count)| format!("{name} {count:.0}\n"))
            .collect();
        std::fs::write(file, lines).unwrap();
        return;
    }
    for (name, count) in counts {
        let most = committed[name] * TOLERANCE;
        assert!(
            count <= most,
            "{name}: {count:.0} instructions, at most {most:.0} allowed: reduce them, or give the reason and write {FILE} with GUARD=write"
        );
    }
}

fn instructions(command: &Command) -> f64 {
    let mut valgrind = tool("valgrind");
    valgrind.args([
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--log-fd=1",
    ]);
    valgrind.arg(command.get_program()).args(command.get_args());
    valgrind.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let text = output(&mut valgrind);
    let line = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .expect("callgrind's sum");
    line.1.trim().parse().unwrap()
}

/// An API server with one fixed response, a page of Deployments: the count must not depend on the timing of a real one.
fn serve(count: usize) -> String {
    let items: Vec<_> = (0..count).map(deployment).collect();
    let page = json!({"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {"resourceVersion": "1"}, "items": items});
    let page = Arc::new(page.to_string());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let page = Arc::clone(&page);
            std::thread::spawn(move || answer(client, &page));
        }
    });
    address
}

fn answer(mut client: TcpStream, page: &str) {
    let lines = BufReader::new(client.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if line.is_empty() {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                page.len()
            );
            if client
                .write_all(head.as_bytes())
                .and_then(|()| client.write_all(page.as_bytes()))
                .is_err()
            {
                return;
            }
        }
    }
}
