//! A small mail server that speaks real SMTP, and does at the test's word what goes wrong in the world.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The password that the server takes.
pub const PASSWORD: &str = "p@ss word";

/// What goes wrong, once, with the next mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// 451 after the mail.
    Busy,
    /// 550 at the receiver.
    NoSuchUser,
    /// The mail is taken, and the connection ends before the answer.
    HangUp,
    /// 535 at the login.
    BadLogin,
}

/// A mail that was taken.
#[derive(Debug, Clone)]
pub struct Received {
    /// The envelope's sender.
    pub from: String,
    /// The envelope's receivers.
    pub to: Vec<String>,
    /// Who logged in.
    pub user: Option<String>,
    /// Whether it came by TLS.
    pub encrypted: bool,
    /// The mail.
    pub data: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    received: Vec<Received>,
    mishaps: VecDeque<Mishap>,
    /// Every line that came before TLS.
    clear: Vec<String>,
}

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct SmtpServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that it shows, for `localhost`.
    pub root: String,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl SmtpServer {
    /// A server with STARTTLS, or one that has never heard of it.
    pub async fn start(starttls: bool) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
            .expect("our own certificate is valid");
        let tls = starttls.then(|| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let state = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that goes away is the test's business.
                tokio::spawn(greet(stream, tls.clone(), Arc::clone(&state)));
            }
        });
        Self { address, root: made.cert.pem(), shared, task }
    }

    /// What goes wrong next.
    pub fn next(&self, mishaps: &[Mishap]) {
        locked(&self.shared).mishaps.extend(mishaps);
    }

    /// The mails that were taken.
    pub fn received(&self) -> Vec<Received> {
        locked(&self.shared).received.clone()
    }

    /// Every line that came in clear.
    pub fn clear(&self) -> Vec<String> {
        locked(&self.shared).clear.clone()
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn greet(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Mutex<Shared>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 localhost ESMTP\r\n").await?;
    let upgrade = talk(&mut stream, tls.is_some(), false, &shared).await?;
    if let (true, Some(tls)) = (upgrade, tls) {
        let mut stream = BufReader::new(tls.accept(stream.into_inner()).await?);
        talk(&mut stream, false, true, &shared).await?;
    }
    Ok(())
}

/// Answers until the client leaves; `true` if it wants TLS.
async fn talk<S>(stream: &mut BufReader<S>, starttls: bool, encrypted: bool, shared: &Mutex<Shared>) -> std::io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from, mut to, mut user) = (String::new(), Vec::new(), None);
    let mishap = |wanted: Mishap| {
        let mishaps = &mut locked(shared).mishaps;
        let now = mishaps.front() == Some(&wanted);
        if now {
            mishaps.pop_front();
        }
        now
    };
    loop {
        let Some(line) = read_line(stream).await? else { return Ok(false) };
        let line = String::from_utf8_lossy(&line).into_owned();
        if !encrypted {
            locked(shared).clear.push(line.clone());
        }
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let in_brackets = || line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(address, _)| address.to_owned());
        let answer = match verb.as_str() {
            "EHLO" if starttls => "250-localhost\r\n250-STARTTLS\r\n250 AUTH PLAIN",
            "EHLO" => "250-localhost\r\n250 AUTH PLAIN",
            "STARTTLS" if starttls => {
                stream.write_all(b"220 go ahead\r\n").await?;
                return Ok(true);
            }
            "AUTH" if mishap(Mishap::BadLogin) => "535 no",
            "AUTH" => {
                let told = line.rsplit(' ').next().and_then(|text| BASE64_STANDARD.decode(text).ok()).unwrap_or_default();
                let told = String::from_utf8_lossy(&told).into_owned();
                let mut parts = told.split('\0').skip(1);
                user = parts.next().map(str::to_owned);
                if parts.next() == Some(PASSWORD) { "235 welcome" } else { "535 no" }
            }
            "MAIL" => {
                from = in_brackets().unwrap_or_default();
                "250 ok"
            }
            "RCPT" if mishap(Mishap::NoSuchUser) => "550 no such user",
            "RCPT" => {
                to.extend(in_brackets());
                "250 ok"
            }
            "DATA" => {
                stream.write_all(b"354 go ahead\r\n").await?;
                let Some(data) = read_mail(stream).await? else { return Ok(false) };
                if mishap(Mishap::Busy) {
                    "451 busy"
                } else {
                    let mail = Received { from: from.clone(), to: std::mem::take(&mut to), user: user.clone(), encrypted, data };
                    locked(shared).received.push(mail);
                    if mishap(Mishap::HangUp) {
                        return Ok(false);
                    }
                    "250 taken"
                }
            }
            "RSET" | "NOOP" => "250 ok",
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(false);
            }
            _ => "502 what?",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// A line without its end; nothing when the client has left.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    while line.last().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
        line.pop();
    }
    Ok(Some(line))
}

/// A mail up to the lone point, with the points that were doubled made single.
async fn read_mail<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<Vec<u8>>> {
    let mut mail = Vec::new();
    loop {
        let Some(line) = read_line(stream).await? else { return Ok(None) };
        if line == b"." {
            return Ok(Some(mail));
        }
        mail.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        mail.extend_from_slice(b"\r\n");
    }
}
