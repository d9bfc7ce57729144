//! One request to an address that was looked at: no redirects, no proxies, no kept connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tenancy_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use url::{Host, Url};

use super::address::{check_url, is_permitted};

/// How long it may take to find and reach the receiver, and how long all of it.
const CONNECT: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(15);
/// How much of an answer is read, if it makes no difference what it says.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may have one later.
    Away(&'static str),
    /// It must not be made.
    Forbidden(&'static str),
}

/// What a request says.
pub(super) struct Signed {
    pub(super) id: String,
    pub(super) timestamp: i64,
    pub(super) signatures: String,
    pub(super) body: Vec<u8>,
}

/// A request, and how much of its answer is wanted.
pub(crate) struct Message {
    pub(crate) method: Method,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) most: usize,
}

pub(crate) struct Client {
    tls: TlsConnector,
    pub(crate) loopback: bool,
}

impl Client {
    /// Trusts the certificates of the system, and `root`.
    pub(crate) fn new(root: Option<&[u8]>, loopback: bool) -> Result<Self> {
        let wrong = |what: &'static str| Error::new(ErrorKind::Misconfigured, what);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(pem) = root {
            let certificate =
                CertificateDer::from_pem_slice(pem).map_err(|e| wrong("the root certificate of webhooks is not PEM").with_source(e))?;
            roots.add(certificate).map_err(|e| wrong("the root certificate of webhooks is no certificate").with_source(e))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong("TLS can't be set up").with_source(e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), loopback })
    }

    /// The status of the answer.
    pub(super) async fn post(&self, url: &str, signed: Signed) -> Result<u16, Failure> {
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", concat!("tenancy-webhooks/", env!("CARGO_PKG_VERSION")).to_owned()),
            ("webhook-id", signed.id),
            ("webhook-timestamp", signed.timestamp.to_string()),
            ("webhook-signature", signed.signatures),
        ];
        // What it says, and whether it is too much, makes no difference.
        self.send(url, Message { method: Method::POST, headers, body: signed.body, most: MAX_ANSWER }).await.map(|(status, _)| status)
    }

    /// The status of the answer, and its body, unless that is longer than what is wanted.
    pub(crate) async fn send(&self, url: &str, message: Message) -> Result<(u16, Option<Bytes>), Failure> {
        // What was allowed when it was registered may not be by now.
        let url = check_url(url, self.loopback).map_err(|_| Failure::Forbidden("the URL is not allowed"))?;
        let work = async {
            let stream =
                tokio::time::timeout(CONNECT, self.connect(&url)).await.map_err(|_| Failure::Away("it could not be reached in time"))??;
            let most = message.most;
            let request = request(&url, message)?;
            if url.scheme() == "http" {
                return exchange(stream, request, most).await;
            }
            let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(name).map_err(|_| Failure::Forbidden("the URL names no host"))?;
            let secured = self.tls.connect(name, stream).await.map_err(|_| Failure::Away("no secure connection could be made"))?;
            exchange(secured, request, most).await
        };
        tokio::time::timeout(ALL, work).await.map_err(|_| Failure::Away("it did not answer in time"))?
    }

    /// Connects to an address that was checked, and not to a name: what the name leads to a moment later makes no difference.
    async fn connect(&self, url: &Url) -> Result<TcpStream, Failure> {
        let port = url.port_or_known_default().unwrap_or(443);
        let addresses: Vec<SocketAddr> = match url.host() {
            Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
            Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
            Some(Host::Domain(name)) => lookup_host((name, port)).await.map_err(|_| Failure::Away("the host was not found"))?.collect(),
            None => return Err(Failure::Forbidden("the URL names no host")),
        };
        // All of them: a name that leads inside as well is not tried at its other addresses.
        if !addresses.iter().all(|address| is_permitted(address.ip(), self.loopback)) {
            return Err(Failure::Forbidden("the host leads to an address that is not public"));
        }
        for address in addresses {
            if let Ok(stream) = TcpStream::connect(address).await {
                return Ok(stream);
            }
        }
        Err(Failure::Away("it could not be reached"))
    }
}

fn request(url: &Url, message: Message) -> Result<Request<Full<Bytes>>, Failure> {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let request = Request::builder().method(message.method).uri(target).header(HOST, authority);
    let request = message.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    request.body(Full::new(message.body.into())).map_err(|_| Failure::Forbidden("the URL can't be asked for"))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, most: usize) -> Result<(u16, Option<Bytes>), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let away = |_| Failure::Away("it did not answer as HTTP");
    let (mut sender, connection) = http1::Builder::new().max_buf_size(MAX_ANSWER).handshake(TokioIo::new(stream)).await.map_err(away)?;
    let mut driver = JoinSet::new(); // it ends with this
    driver.spawn(async move {
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(away)?;
    let status = response.status().as_u16();
    // Read in any case, so that the receiver is not cut off in the middle.
    let body = Limited::new(response.into_body(), most).collect().await;
    Ok((status, body.ok().map(http_body_util::Collected::to_bytes)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_address_is_looked_at_when_a_connection_is_made() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        // `localhost` stands for any name that leads inside by now.
        for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"] {
            let url = Url::parse(&format!("https://{host}:{port}/")).expect("a URL");
            let strict = Client::new(None, false).expect("a client").connect(&url).await;
            assert!(matches!(strict, Err(Failure::Forbidden(_))), "{host}");
        }
        let url = Url::parse(&format!("https://localhost:{port}/")).expect("a URL");
        assert!(Client::new(None, true).expect("a client").connect(&url).await.is_ok(), "the control");
    }
}
