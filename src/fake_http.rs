//! Common code of the unit tests' fake servers: connections and their requests. HTTP/1.1, one request per connection.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// The first byte of a TLS greeting.
const TLS_GREETING: u8 = 0x16;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// The request line and the header lines, unchanged.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Asked {
    /// Reads a request. For a client that uses TLS the error is [`io::ErrorKind::Unsupported`].
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
            if head[0] == TLS_GREETING {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ').map(str::to_owned);
        let mut asked = Self {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            body: String::new(),
            head,
        };
        if let Some(length) = asked.header("content-length") {
            let mut body = vec![0; length.parse().unwrap_or_default()];
            stream.read_exact(&mut body).await?;
            asked.body = String::from_utf8_lossy(&body).into_owned();
        }
        Ok(asked)
    }

    /// The request line.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.head.lines().filter_map(|line| line.split_once(": "));
        all.find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

/// Serves each connection to a port of loopback in a task of its own.
pub(crate) async fn on_tcp<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    (address, task)
}

/// Serves each connection to a unix socket in a task of its own.
pub(crate) fn on_unix<F: Future<Output = ()> + Send + 'static>(
    path: &Path,
    serve: impl Fn(UnixStream) -> F + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    })
}
