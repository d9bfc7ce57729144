//! A way to PostgreSQL on which replies get lost: the server has done what it was asked, and the client never hears of it.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// A running proxy, stopped when dropped.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    losses: Arc<Losses>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Losses {
    percent: AtomicU32,
    lost: AtomicU64,
}

impl Proxy {
    /// Starts one in front of the database at `url`, which is on a socket. It loses nothing yet.
    pub async fn start(url: &str) -> Self {
        let target = PgConnectOptions::from_str(url).expect("a URL");
        let socket = target.get_socket().expect("a socket").join(format!(".s.PGSQL.{}", target.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let losses = Arc::new(Losses::default());
        let accepting = tokio::spawn(accept(listener, socket, Arc::clone(&losses)));
        let database = target.get_database().expect("a database");
        Self { url: format!("postgres://{}@127.0.0.1:{port}/{database}", target.get_username()), losses, accepting }
    }

    /// The URL of the database through the proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on so many of a hundred replies are lost, and their connections with them.
    pub fn lose(&self, percent: u32) {
        self.losses.percent.store(percent, Ordering::Relaxed);
    }

    /// How many were lost.
    pub fn lost(&self) -> u64 {
        self.losses.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, socket: PathBuf, losses: Arc<Losses>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = UnixStream::connect(&socket).await else { continue };
        tokio::spawn(carry(client, server, Arc::clone(&losses)));
    }
}

/// Carries both ways, until one end closes or a reply gets lost.
async fn carry(mut client: TcpStream, mut server: UnixStream, losses: Arc<Losses>) -> std::io::Result<()> {
    let _ = client.set_nodelay(true);
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            n = client.read(&mut from_client) => match n? {
                0 => return Ok(()),
                n => server.write_all(&from_client[..n]).await?,
            },
            n = server.read(&mut from_server) => match n? {
                0 => return Ok(()),
                _ if rand::random_range(0..100) < losses.percent.load(Ordering::Relaxed) => {
                    losses.lost.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                n => client.write_all(&from_server[..n]).await?,
            },
        }
    }
}
