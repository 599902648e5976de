//! Detection of the runtime, and the messages about unusable sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bed::{Containerd, Docker, Harpoon, Output, Runtime, containerd, directory, docker};

const CONTAINERD: &str = "/run/containerd/containerd.sock";
const DOCKER: &str = "/var/run/docker.sock";
const WELL_KNOWN: [&str; 8] = [
    CONTAINERD,
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/dockershim.sock",
    "/run/cri-dockerd.sock",
    DOCKER,
];

/// A run that requires a runtime but sends it no request: its one image is malformed.
fn find() -> Harpoon {
    Harpoon::new(["pull", "--output=json", "--fail-on=never", "UPPER/case"])
}

/// It found this runtime, here.
#[track_caller]
fn check_found<R: Runtime>(harpoon: &Harpoon, endpoint: &str) -> Output {
    let output = harpoon.run().expect(0);
    let runtime = &output.json()["runtime"];
    assert_eq!(runtime["name"], R::NAME, "{output}");
    assert_eq!(runtime["endpoint"], endpoint, "{output}");
    assert!(!runtime["version"].as_str().unwrap().is_empty(), "{output}");
    output
}

/// It found none, and says all of this about it in its error.
#[track_caller]
fn check_unusable(harpoon: &Harpoon, words: &[&str]) -> Output {
    let output = harpoon.run().expect(3);
    let error = output
        .stderr
        .lines()
        .rfind(|line| line.starts_with("error: "))
        .unwrap_or_default();
    assert!(error.contains("no usable container runtime"), "{output}");
    let missing = words.iter().find(|words| !error.contains(**words));
    assert!(missing.is_none(), "no {missing:?} in {error}\n{output}");
    assert_eq!(output.stdout, "", "{output}");
    output
}

fn at(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// A socket of a dead process.
fn stale(directory: &tempfile::TempDir) -> PathBuf {
    let path = directory.path().join("stale.sock");
    drop(UnixListener::bind(&path).unwrap());
    path
}

/// A socket whose server accepts every connection, and responds with these bytes or, without any, never.
fn listener(directory: &tempfile::TempDir, answer: Option<&'static [u8]>) -> PathBuf {
    let path = directory.path().join("listener.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(1..) = connection.read(&mut buffer) {
                    if let Some(answer) = answer {
                        let _ = connection.write_all(answer);
                        return;
                    }
                }
            });
        }
    });
    path
}

#[test]
fn each_runtime_is_found_by_default() {
    let pod = find().pod();
    check_found::<Containerd>(
        &pod.clone().bind(containerd().socket(), CONTAINERD),
        &at(CONTAINERD.as_ref()),
    );
    for path in [WELL_KNOWN[2], WELL_KNOWN[3]] {
        check_found::<Containerd>(
            &pod.clone().bind(containerd().socket(), path),
            &at(path.as_ref()),
        );
    }
    check_found::<Docker>(&pod.bind(docker().socket(), DOCKER), &at(DOCKER.as_ref()));
}

#[test]
fn first_responding_runtime_wins() {
    let with_docker = find().pod().bind(docker().socket(), DOCKER);
    let with_both = with_docker.clone().bind(containerd().socket(), CONTAINERD);
    let output = check_found::<Containerd>(&with_both, &at(CONTAINERD.as_ref()));
    assert!(
        !output.stderr.contains("WARN") || !output.stderr.contains(".sock:"),
        "{output}"
    );

    // dockerd's own containerd runs without its CRI plugin.
    let dockers_own = docker()
        .socket()
        .with_file_name("exec/containerd/containerd.sock");
    let place = directory();
    for (socket, why) in [
        (stale(&place), "no process listens"),
        (dockers_own, "the CRI plugin of containerd"),
        (place.path().to_owned(), "is not a unix socket"),
        (docker().socket(), "no CRI server at"),
    ] {
        let pod = with_docker.clone().bind(&socket, CONTAINERD);
        let output = check_found::<Docker>(&pod, &at(DOCKER.as_ref()));
        let named =
            |line: &str| line.contains("WARN") && line.contains(CONTAINERD) && line.contains(why);
        assert!(output.stderr.lines().any(named), "no {why:?}: {output}");
    }
}

#[test]
fn error_names_every_path_tried() {
    let output = check_unusable(&find().pod(), &WELL_KNOWN);
    let counted = output.stderr.matches("does not exist").count();
    assert_eq!(counted, WELL_KNOWN.len(), "{output}");
    // A stale socket is distinguished from missing ones.
    let place = directory();
    let pod = find().pod().bind(stale(&place), WELL_KNOWN[1]);
    check_unusable(
        &pod,
        &[
            &format!("{}: connection refused: no process listens", WELL_KNOWN[1]),
            "--runtime-endpoint",
        ],
    );
}

#[test]
fn explicit_endpoint_precedes_detection() {
    let pod = find().pod().bind(containerd().socket(), CONTAINERD);
    let explicit = docker().endpoint();
    check_found::<Docker>(&pod.clone().env("RUNTIME_ENDPOINT", explicit), explicit);
    // It is not silently replaced by another one either.
    let place = directory();
    let missing = at(&place.path().join("none.sock"));
    check_unusable(
        &pod.env("RUNTIME_ENDPOINT", &missing),
        &[&missing, "does not exist"],
    );
}

#[test]
fn endpoint_flag_precedes_both_variables() {
    let (right, wrong) = (containerd().endpoint(), "unix:///nonexistent/wrong.sock");
    let (name, shared) = ("RUNTIME_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT");
    check_found::<Containerd>(&find().env(shared, right), right);
    check_found::<Containerd>(&find().env(name, right).env(shared, wrong), right);
    let flag = |endpoint: &str| find().args(["--runtime-endpoint", endpoint]);
    check_found::<Containerd>(&flag(right).env(name, wrong).env(shared, wrong), right);
    check_unusable(&flag(wrong).env(name, right).env(shared, right), &[wrong]);
    check_unusable(&find().env(name, wrong).env(shared, right), &[wrong]);
    // An empty variable counts as not set.
    check_found::<Containerd>(&find().env(name, "").env(shared, right), right);
}

#[test]
fn endpoint_accepts_bare_socket_path() {
    check_found::<Containerd>(
        &find().env("RUNTIME_ENDPOINT", containerd().socket()),
        containerd().endpoint(),
    );
    check_found::<Docker>(
        &find().env("RUNTIME_ENDPOINT", docker().socket()),
        docker().endpoint(),
    );
    // The name of the socket is only a hint.
    let place = directory();
    for (real, link) in [
        (containerd().socket().to_owned(), "docker.sock"),
        (docker().socket(), "containerd.sock"),
    ] {
        let path = place.path().join(link);
        std::os::unix::fs::symlink(&real, &path).unwrap();
        let harpoon = find().env("RUNTIME_ENDPOINT", &path);
        if link == "docker.sock" {
            check_found::<Containerd>(&harpoon, &at(&path));
        } else {
            check_found::<Docker>(&harpoon, &at(&path));
        }
    }
}

#[test]
fn malformed_endpoint_is_a_bad_setting() {
    for bad in [
        "tcp://127.0.0.1:2375",
        "run/containerd.sock",
        "npipe:////./pipe/docker",
        "unix://host/path",
    ] {
        let output = find()
            .env("CONTAINER_RUNTIME_ENDPOINT", bad)
            .run()
            .expect(2);
        for words in ["RUNTIME_ENDPOINT", bad, "unix:///"] {
            assert!(output.stderr.contains(words), "no {words:?}: {output}");
        }
    }
}

#[test]
fn other_servers_are_not_a_runtime() {
    let place = directory();
    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (ssh, web) = (directory(), directory());
    let ssh = listener(&ssh, Some(b"SSH-2.0-OpenSSH_9.2\r\n"));
    let web = listener(
        &web,
        Some(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"),
    );
    for (path, why) in [
        (place.path(), &["is not a unix socket"][..]),
        (&file, &["is not a unix socket"]),
        (&place.path().join("none"), &["does not exist"]),
        (&stale(&place), &["no process listens"]),
        (&ssh, &["no CRI server at", "not a Docker Engine"]),
        (&web, &["no CRI server at", "not a Docker Engine"]),
    ] {
        let endpoint = at(path);
        let words = [&[endpoint.as_str()], why].concat();
        check_unusable(&find().env("RUNTIME_ENDPOINT", &endpoint), &words);
    }
}

#[test]
fn hanging_socket_yields_to_the_next() {
    let place = directory();
    let hanging = listener(&place, None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let explicit = find().env("RUNTIME_ENDPOINT", &hanging);
            let output = check_unusable(&explicit, &["no response within 5s"]);
            assert!(output.elapsed < Duration::from_secs(30), "{output}");
        });
        scope.spawn(|| {
            let pod = find()
                .pod()
                .bind(&hanging, CONTAINERD)
                .bind(docker().socket(), DOCKER);
            let output = check_found::<Docker>(&pod, &at(DOCKER.as_ref()));
            assert!(output.stderr.contains("no response within 5s"), "{output}");
        });
        scope.spawn(|| {
            // The deadline does not wait for it.
            let output = find()
                .env("RUNTIME_ENDPOINT", &hanging)
                .env("DEADLINE", "1s")
                .run()
                .expect(1);
            assert!(
                output
                    .stderr
                    .contains("the deadline of the run (--deadline) passed"),
                "{output}"
            );
        });
    });
}

#[test]
fn signal_interrupts_hanging_socket() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let place = directory();
        let path = place.path().join("hanging.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let running = find().env("RUNTIME_ENDPOINT", &path).start();
        let _taken = listener.accept().unwrap();
        let told = Instant::now();
        running.signal(signal);
        let output = running.wait().expect(code);
        assert!(told.elapsed() < Duration::from_secs(4), "{output}");
        assert!(output.stderr.contains("interrupted by SIG"), "{output}");
    }
}

#[test]
fn permission_denied_is_reported() {
    let nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let pod = find()
        .pod()
        .bind(containerd().socket(), CONTAINERD)
        .bind(docker().socket(), DOCKER);
    let words = [CONTAINERD, DOCKER].map(|path| format!("{path}: permission denied: run as root"));
    let pod = pod.under(nobody);
    check_unusable(&pod, &[&words[0], &words[1]]);
    check_unusable(
        &pod.env("RUNTIME_ENDPOINT", CONTAINERD),
        &[CONTAINERD, "permission denied: run as root"],
    );
}

#[test]
fn two_runtimes_report_the_choice() {
    let pod = find()
        .pod()
        .bind(containerd().socket(), CONTAINERD)
        .bind(docker().socket(), DOCKER);
    let output = check_found::<Containerd>(&pod, &at(CONTAINERD.as_ref()));
    let named = |line: &str| {
        ["WARN", "containerd", "docker", "--runtime-endpoint"]
            .iter()
            .all(|word| line.contains(word))
    };
    assert!(output.stderr.lines().any(named), "{output}");

    // With an explicit endpoint, or only one response, there is no warning.
    let asked = pod.env("RUNTIME_ENDPOINT", CONTAINERD);
    let place = directory();
    let alone = find()
        .pod()
        .bind(containerd().socket(), CONTAINERD)
        .bind(stale(&place), DOCKER);
    // The same socket under two names is one runtime.
    let twice = find()
        .pod()
        .bind(containerd().socket(), CONTAINERD)
        .bind(containerd().socket(), WELL_KNOWN[2]);
    for pod in [asked, alone, twice] {
        let output = check_found::<Containerd>(&pod, &at(CONTAINERD.as_ref()));
        assert!(!output.stderr.lines().any(named), "{output}");
    }
}
