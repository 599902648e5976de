//! A throttled link with a latency and a rate limit per connection, like object stores and remote registries; it counts its
//! traffic.
//!
//! It forwards TCP connections without reading them, so that TLS passes unchanged. Requests pass immediately; responses are
//! delayed by the latency and limited to the rate.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Size of one read in bytes.
const PIECE: usize = 64 << 10;
/// Maximum number of chunks in flight: the capacity of a long fat pipe.
const PIECES: usize = 256;

/// The parameters of the link.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub latency: Duration,
    /// Bytes per second of one connection.
    pub rate: Option<u64>,
}

impl Shape {
    /// A link that only counts.
    pub const PLAIN: Self = Self {
        latency: Duration::ZERO,
        rate: None,
    };
}

/// The link, which lasts as long as this program.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Wire {
    /// A link to `127.0.0.1:PORT`.
    pub fn start(upstream: &str, shape: Shape) -> Self {
        let upstream: SocketAddr = upstream.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(upstream) else {
                    continue;
                };
                let counted = Arc::clone(&counted);
                let (from_client, to_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                for end in [&client, &server] {
                    end.set_nodelay(true).unwrap();
                }
                std::thread::spawn(move || {
                    carry(from_client, to_server, Shape::PLAIN, &AtomicU64::new(0))
                });
                std::thread::spawn(move || carry(server, client, shape, &counted));
            }
        });
        Self { address, bytes }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Bytes sent by the server so far, including TLS and HTTP.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Forwards one direction of a connection to its end.
fn carry(mut from: TcpStream, mut to: TcpStream, shape: Shape, counted: &AtomicU64) {
    let (send, receive) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    let writer = std::thread::spawn(move || {
        let mut free = Instant::now();
        for (due, piece) in receive {
            sleep_until(due.max(free));
            if let Some(rate) = shape.rate {
                free = free.max(due) + Duration::from_secs_f64(piece.len() as f64 / rate as f64);
            }
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        counted.fetch_add(count as u64, Ordering::Relaxed);
        if send
            .send((Instant::now() + shape.latency, piece[..count].to_vec()))
            .is_err()
        {
            break;
        }
    }
    drop(send);
    let _ = writer.join();
}

fn sleep_until(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()));
}
