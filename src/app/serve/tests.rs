use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Running {
    address: SocketAddr,
    served: Served,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn running(limit: Duration) -> Running {
    running_at("127.0.0.1:0", limit).await
}

async fn running_at(address: &str, limit: Duration) -> Running {
    let mut registry = Registry::default();
    let counter = Counter::<u64>::default();
    registry.register("harpoon_test", "A test", counter.clone());
    counter.inc();
    let served = Served {
        metrics: Arc::new(registry),
        readiness: Readiness::default(),
        liveness: Liveness::new(limit),
    };
    let server = Server::bind(address.parse().unwrap()).await.unwrap();
    let address = server.address().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.run(served.clone(), stop.clone()));
    Running {
        address,
        served,
        stop,
        task,
    }
}

async fn request(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn fetch(address: SocketAddr, path: &str) -> String {
    request(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn readyz_names_failing_check() {
    let running = running(LONG).await;
    let ready = running
        .served
        .readiness
        .check("first-fill", "not finished\nyet");
    running.served.readiness.check("runtime", "").pass();
    let answer = fetch(running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("[-]first-fill failed: not finished yet\n[+]runtime ok\n"));
    assert!(!running.served.readiness.is_ready());
    ready.pass();
    assert!(running.served.readiness.is_ready());
    let answer = fetch(running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Liveness does not follow readiness.
    ready.fail("the runtime is away");
    let answer = fetch(running.address, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn healthz_fails_without_progress() {
    let running = running(Duration::from_millis(300)).await;
    assert!(
        fetch(running.address, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    tokio::time::sleep(Duration::from_millis(350)).await;
    let answer = fetch(running.address, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("no progress"), "{answer}");
    running.served.liveness.beat();
    assert!(
        fetch(running.address, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let running = running(LONG).await;
    let answer = fetch(running.address, "/metrics").await;
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.contains("\nharpoon_test_total 1\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn other_requests_are_refused() {
    let running = running(LONG).await;
    for (request_line, status) in [("GET /", "404"), ("POST /metrics", "405")] {
        let text = format!("{request_line} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        let answer = request(running.address, &text).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    let long = format!(
        "GET /metrics HTTP/1.1\r\nhost: a\r\na: {}\r\n\r\n",
        "a".repeat(15_000)
    );
    assert!(
        request(running.address, &long)
            .await
            .starts_with("HTTP/1.1 200")
    );
    let address = running.address;
    let text = format!("GET /{} HTTP/1.1\r\n", "a".repeat(64_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_fail_no_probe() {
    let running = running(LONG).await;
    let mut idle = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        idle.push(TcpStream::connect(running.address).await.unwrap());
    }
    let answer = timeout(HEADER_TIMEOUT / 2, fetch(running.address, "/healthz")).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
    // The oldest ones were closed, the last ones by their time limit.
    let mut byte = [0];
    for stream in [&mut idle[0]] {
        let read = timeout(Duration::from_secs(1), stream.read(&mut byte)).await;
        assert!(!matches!(read.unwrap(), Ok(1..)));
    }
    let last = idle.last_mut().unwrap();
    let read = timeout(CONNECTION_TIMEOUT, last.read(&mut byte)).await;
    assert!(!matches!(read.unwrap(), Ok(1..)));
}

#[tokio::test]
async fn used_address_names_the_flag() {
    let running = running(LONG).await;
    let error = Server::bind(running.address).await.unwrap_err().to_string();
    let expected = format!(
        "failed to listen on {} (--metrics-address): the address is in use; choose another port, such as 0.0.0.0:9465",
        running.address
    );
    assert_eq!(error, expected);
}

#[tokio::test]
async fn cancelled_server_frees_the_address() {
    // On an address of its own, where no other test gets the port when it is free.
    let running = running_at("127.0.0.3:0", LONG).await;
    let mut open = TcpStream::connect(running.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    running.stop.cancel();
    running.task.await.unwrap();
    let mut byte = [0];
    let read = timeout(Duration::from_secs(1), open.read(&mut byte)).await;
    assert!(!matches!(read.unwrap(), Ok(1..)));
    assert!(Server::bind(running.address).await.is_ok());
}
