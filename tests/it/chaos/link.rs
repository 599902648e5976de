//! A connection to the API server that can be cut off. It passes bytes and knows nothing of TLS.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::schedule::Cut;
use crate::bed::block_on;

/// A port that leads to a server. When dropped, it closes all connections.
#[derive(Debug)]
pub(super) struct Link {
    address: SocketAddr,
    cut: watch::Sender<Option<Cut>>,
    task: JoinHandle<()>,
}

impl Link {
    /// One to the server at this address, `HOST:PORT`.
    pub(super) fn to(server: &str) -> Self {
        let server = server.to_owned();
        let (cut, cuts) = watch::channel(None);
        let (address, task) = block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            (address, tokio::spawn(accept(listener, server, cuts)))
        });
        Self { address, cut, task }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts it off, or mends it.
    pub(super) fn set(&self, cut: Option<Cut>) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: String, cuts: watch::Receiver<Option<Cut>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (server, mut closing) = (server.clone(), cuts.clone());
        let cuts = cuts.clone();
        connections.spawn(async move {
            let is_closed = |cut: &Option<Cut>| *cut == Some(Cut::Closed);
            tokio::select! {
                biased;
                _ = closing.wait_for(is_closed) => {}
                () = pass(client, &server, cuts) => {}
            }
        });
    }
}

async fn pass(client: TcpStream, server: &str, mut cuts: watch::Receiver<Option<Cut>>) {
    if cuts.wait_for(is_open).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, cuts.clone()) => {}
        () = pump(from_server, to_client, cuts) => {}
    }
}

fn is_open(cut: &Option<Cut>) -> bool {
    *cut != Some(Cut::Silent)
}

/// Passes bytes in one direction while nothing is cut off.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cuts: watch::Receiver<Option<Cut>>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if cuts.wait_for(is_open).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
