//! A receiver of webhooks on loopback: real HTTP, with or without TLS, that answers as the test says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde_json::Value;
use tenancy_core::webhook::{Secret, verify};
use tenancy_core::{Clock as _, Result, SystemClock};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Hook {
    /// The path and the query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Hook {
    /// A header, or the empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Verifies it as a receiver does, now.
    ///
    /// # Errors
    /// Those of [`verify`].
    pub fn verify(&self, secret: &str) -> Result<()> {
        let (id, timestamp, signatures) = (self.header("webhook-id"), self.header("webhook-timestamp"), self.header("webhook-signature"));
        let secret: Secret = secret.parse().expect("a secret");
        verify(&[secret], id, timestamp, signatures, &self.body, SystemClock.now())
    }
}

#[derive(Debug, Default)]
struct Shared {
    hooks: Vec<Hook>,
    answers: VecDeque<String>,
}

/// The receiver. It ends when this is dropped.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that it shows, for `localhost`.
    pub root: String,
    tls: bool,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// A receiver that answers 204, by http or by https.
    pub async fn start(tls: bool) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
            .expect("our own certificate is valid");
        let acceptor = tls.then(|| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let state = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
                // A sender that goes away is the test's business.
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => serve(acceptor.accept(stream).await?, &state).await,
                        None => serve(stream, &state).await,
                    }
                });
            }
        });
        Self { address, root: made.cert.pem(), tls, shared, task }
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        if self.tls { format!("https://localhost:{}{path}", self.address.port()) } else { format!("http://{}{path}", self.address) }
    }

    /// What it answers next, each once: the status, and further lines of the head.
    pub fn next(&self, answers: &[&str]) {
        self.locked().answers.extend(answers.iter().map(|&answer| answer.to_owned()));
    }

    /// What has come.
    pub fn hooks(&self) -> Vec<Hook> {
        self.locked().hooks.clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let hook = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        if let Some(hook) = parse(&bytes) {
            break hook;
        }
    };
    let answer = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.hooks.push(hook);
        shared.answers.pop_front().unwrap_or_else(|| "204 No Content".to_owned())
    };
    stream.write_all(format!("HTTP/1.1 {answer}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    stream.shutdown().await
}

/// The message, once all of it is there.
fn parse(bytes: &[u8]) -> Option<Hook> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes).expect("HTTP") else { return None };
    let field = |field: &httparse::Header<'_>| {
        (HeaderName::from_bytes(field.name.as_bytes()).expect("a name"), HeaderValue::from_bytes(field.value).expect("a value"))
    };
    let headers: HeaderMap = request.headers.iter().map(field).collect();
    let body: usize = headers.get("content-length")?.to_str().ok()?.parse().ok()?;
    assert_eq!(request.method, Some("POST"));
    Some(Hook { target: request.path?.to_owned(), headers, body: bytes.get(length..length + body)?.to_vec() })
}
