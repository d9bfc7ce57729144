//! Who talks to the server, and what they hear. Every byte of a request is the test's to choose, so that hostile ones can be sent too.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::Node;

/// The operators' token of every test server.
pub const OPERATOR_TOKEN: &str = "the-operators-token-of-the-tests";
/// The secret that signs tenants' tokens.
pub const SECRET: &[u8] = b"the secret of the tests' tokens, of more than 32 bytes";
/// Both `iss` and `aud` of tokens: the server's default.
pub const ISSUER: &str = "tenancy-server";

/// The changes of tenants that the server has confirmed: each must have its audit event.
pub(crate) type Confirmed = Arc<Mutex<BTreeSet<(String, u64)>>>;

/// Somebody who can ask the server.
pub trait Actor {
    /// A request with this actor's credentials.
    fn ask(&self, method: &str, target: &str) -> Ask;

    /// GET.
    fn get(&self, target: &str) -> Ask {
        self.ask("GET", target)
    }

    /// DELETE.
    fn delete(&self, target: &str) -> Ask {
        self.ask("DELETE", target)
    }

    /// POST, of JSON.
    fn post(&self, target: &str, body: &Value) -> Ask {
        self.ask("POST", target).json(body)
    }

    /// PATCH, of JSON.
    fn patch(&self, target: &str, body: &Value) -> Ask {
        self.ask("PATCH", target).json(body)
    }

    /// PUT, of anything.
    fn put(&self, target: &str, body: impl Into<Vec<u8>>) -> Ask {
        self.ask("PUT", target).body(body)
    }
}

/// Has the bootstrap credential, or an operator's own token.
#[derive(Debug, Clone)]
pub struct Operator {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) confirmed: Confirmed,
}

impl Operator {
    /// The same operator at another node.
    pub fn at(&self, node: &Node) -> Self {
        Self { address: node.address, ..self.clone() }
    }

    /// Whoever has this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Adds an operator, with their token; and their id.
    pub async fn add(&self, name: &str, role: &str) -> (Self, String) {
        let body = json!({ "name": name, "email": format!("{name}@example.com"), "role": role });
        let made = self.post("/api/v1/operators", &body).await.expect(201);
        (self.with_token(&made.text("token")), made.text("id"))
    }

    /// Asks for long work on a tenant, and gives the operation once it is over.
    pub async fn work(&self, tenant: &str, verb: &str, body: Option<&Value>) -> Value {
        let path = format!("/api/v1/tenants/{tenant}/{verb}");
        let asked = match body {
            Some(body) => self.post(&path, body).await,
            None => self.ask("POST", &path).await,
        };
        let at = asked.expect(202).header("location").to_owned();
        for _ in 0..600 {
            let operation = self.get(&at).await.expect(200).json();
            if !["queued", "running"].contains(&operation["state"].as_str().unwrap_or_default()) {
                return operation;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{verb} of {tenant} takes for ever");
    }

    /// Takes a backup of a tenant, and gives its id.
    pub async fn back_up(&self, tenant: &str) -> String {
        let done = self.work(tenant, "backup", None).await;
        assert_eq!(done["state"], "done", "{done}");
        done["id"].as_str().expect("an id").to_owned()
    }

    /// Makes a link to the archive of a backup, and gives where it leads on this server.
    pub async fn link_to_backup(&self, tenant: &str, backup: &str) -> String {
        let made = self.ask("POST", &format!("/api/v1/tenants/{tenant}/backups/{backup}/download")).await.expect(201).text("url");
        let at = made.find("/downloads/").expect("a link");
        made[at..].to_owned()
    }

    /// Lets tenants share on this platform.
    pub async fn allow_sharing(&self) {
        self.put("/api/v1/sharing-platform", "").json(&json!({ "enabled": true, "links": true })).await.expect(200);
    }

    /// Adds the installation at `origin` as a peer, with this key; its id.
    pub async fn add_peer(&self, origin: &str, key: &str) -> String {
        self.post("/api/v1/federation/peers", &json!({ "origin": origin, "key": key })).await.expect(201).text("id")
    }

    /// Creates a tenant, or stops the test.
    pub async fn create(&self, slug: &str) -> Value {
        let made = self.post("/api/v1/tenants", &json!({ "slug": slug, "name": format!("The {slug} company") })).await;
        made.expect(201).json()
    }
}

impl Actor for Operator {
    fn ask(&self, method: &str, target: &str) -> Ask {
        let ask = Ask::new(self.address, method, target).with("authorization", format!("Bearer {}", self.token));
        Ask { confirmed: Some(Arc::clone(&self.confirmed)), ..ask }
    }
}

/// Has no credentials.
#[derive(Debug, Clone)]
pub struct Stranger {
    pub(crate) address: SocketAddr,
}

impl Actor for Stranger {
    fn ask(&self, method: &str, target: &str) -> Ask {
        Ask::new(self.address, method, target)
    }
}

/// Somebody of a tenant, who signs their own tokens.
#[derive(Debug, Clone)]
pub struct Member {
    pub(crate) address: SocketAddr,
    /// The tenant's id.
    pub tenant: String,
    /// The tenant's slug.
    pub slug: String,
    /// The tenant's name.
    pub name: String,
    /// `viewer`, `member`, `admin` or `owner`.
    pub role: String,
}

impl Member {
    /// A colleague with another role.
    #[must_use]
    pub fn role(&self, role: &str) -> Self {
        Self { role: role.to_owned(), ..self.clone() }
    }

    /// The same member, with tokens that name `tenant`.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Self {
        Self { tenant: tenant.to_owned(), ..self.clone() }
    }

    /// The same member at another node.
    pub fn at(&self, node: &Node) -> Self {
        Self { address: node.address, ..self.clone() }
    }

    /// The claims of a token that is valid for an hour.
    pub fn claims(&self) -> Value {
        let now = now();
        json!({ "iss": ISSUER, "aud": ISSUER, "sub": format!("the-{}", self.role), "tenant_id": self.tenant, "role": self.role,
                "iat": now, "exp": now + 3600 })
    }

    /// A request with a token of these claims.
    pub fn ask_with(&self, claims: &Value, method: &str, target: &str) -> Ask {
        Ask::new(self.address, method, target).with("authorization", format!("Bearer {}", sign(claims)))
    }

    /// Adds a project; its id.
    pub async fn project(&self, name: &str) -> String {
        self.post("/api/v1/projects", &json!({ "name": name })).await.expect(201).text("id")
    }

    /// Adds a member with the role of a viewer; their id.
    pub async fn member(&self, name: &str) -> String {
        let body = json!({ "email": format!("{name}@example.com"), "name": name, "role": "viewer" });
        self.post("/api/v1/members", &body).await.expect(201).text("id")
    }

    /// Invites `name`; the invite's id.
    pub async fn invite(&self, name: &str) -> String {
        let body = json!({ "email": format!("{name}@example.com"), "role": "viewer" });
        self.post("/api/v1/invites", &body).await.expect(201).text("id")
    }

    /// Makes an API token of the member with this id; its id and its text.
    pub async fn api_token(&self, member: &str) -> (String, String) {
        let mut claims = self.role("viewer").claims();
        claims["sub"] = json!(member);
        let body = json!({ "name": "canary", "ttl_seconds": 3600 });
        let made = self.ask_with(&claims, "POST", "/api/v1/api-tokens").json(&body).await.expect(201);
        (made.text("id"), made.text("token"))
    }

    /// An operator's visit to the tenant; its id.
    pub async fn visit(&self) -> String {
        let ask = Ask::new(self.address, "POST", &format!("/api/v1/tenants/{}/impersonate", self.tenant));
        let ask = ask.with("authorization", format!("Bearer {OPERATOR_TOKEN}")).json(&json!({ "reason": "the test wants it" }));
        ask.await.expect(201).text("id")
    }

    /// Claims a domain; its name.
    pub async fn domain(&self, name: &str) -> String {
        self.post("/api/v1/domains", &json!({ "domain": name })).await.expect(201).text("domain")
    }

    /// Registers an endpoint for alerts; its id.
    pub async fn webhook(&self, url: &str) -> String {
        self.post("/api/v1/webhooks", &json!({ "url": url, "topics": ["quota.threshold"] })).await.expect(201).text("id")
    }

    /// Adds a document; its id.
    pub async fn document(&self, project: &str, title: &str) -> String {
        let made = self.post(&format!("/api/v1/projects/{project}/documents"), &json!({ "title": title, "content": "text" })).await;
        made.expect(201).text("id")
    }

    /// Adds or replaces an attachment.
    pub async fn attach(&self, document: &str, name: &str, content: &[u8]) -> Reply {
        self.put(&format!("/api/v1/documents/{document}/attachments/{name}"), content).await
    }

    /// Lets the tenant share documents, with whoever accepts them and by links, and accept others'.
    pub async fn allow_sharing(&self) {
        let policy = json!({ "offers": true, "accepts": true, "links": true, "types": ["document"] });
        self.put("/api/v1/sharing", "").json(&policy).await.expect(200);
    }

    /// Offers a document to another tenant; the share's id.
    pub async fn offer(&self, document: &str, to: &Self, perms: &str) -> String {
        let body = json!({ "resource": format!("document:{document}"), "target": to.slug, "perms": perms });
        self.post("/api/v1/shares", &body).await.expect(201).text("id")
    }

    /// Offers a document to another tenant, which accepts it; the share's id.
    pub async fn share(&self, document: &str, to: &Self, perms: &str) -> String {
        let share = self.offer(document, to, perms).await;
        to.ask("POST", &format!("/api/v1/shares/{share}/accept")).await.expect(200);
        share
    }

    /// Offers a document to a tenant elsewhere; the share's id and its document.
    pub async fn offer_elsewhere(&self, document: &str, peer: &str, target: &str) -> (String, String) {
        let body = json!({ "resource": format!("document:{document}"), "peer": peer, "target": target });
        let made = self.post("/api/v1/federated-shares", &body).await.expect(201);
        (made.text("id"), made.text("document"))
    }

    /// Accepts an offer from elsewhere; its id here.
    pub async fn accept_from_elsewhere(&self, document: &str) -> String {
        self.post("/api/v1/federated-shares/accept", &json!({ "document": document })).await.expect(200).text("id")
    }

    /// Makes a link to a document; its id and its path.
    pub async fn link(&self, document: &str) -> (String, String) {
        let made = self.post("/api/v1/links", &json!({ "resource": format!("document:{document}") })).await.expect(201);
        (made.text("id"), made.text("url"))
    }
}

impl Actor for Member {
    fn ask(&self, method: &str, target: &str) -> Ask {
        self.ask_with(&self.claims(), method, target)
    }
}

/// A small picture, of this shade.
pub fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbaImage::from_pixel(4, 3, image::Rgba([shade, 1, 2, 255]));
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("a picture");
    bytes.into_inner()
}

/// Seconds since 1970.
pub fn now() -> i64 {
    use tenancy_core::Clock as _;
    tenancy_core::SystemClock.now().timestamp()
}

/// An HS256 token of `claims`, signed as the server expects.
pub fn sign(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).expect("a token")
}

/// A request; awaiting it sends it.
#[derive(Debug, Clone)]
#[must_use = "a request is sent when it is awaited"]
pub struct Ask {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    confirmed: Option<Confirmed>,
}

impl Ask {
    fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        let ask = Self { address, method: method.to_owned(), target: target.to_owned(), headers: vec![], body: vec![], confirmed: None };
        ask.with("host", address.to_string()).with("connection", "close")
    }

    /// Sets a header.
    pub fn with(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.without(name).and(name, value)
    }

    /// Adds a header beside those of the same name.
    pub fn and(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Takes a header away.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    /// Sets the body, with its length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.with("content-length", length)
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string()).with("content-type", "application/json")
    }

    /// The path and the query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Goes to another path.
    pub fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// The request as it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

impl IntoFuture for Ask {
    type Output = Reply;
    type IntoFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let reply = exchange(self.address, &self.bytes()).await;
            let reply = reply.unwrap_or_else(|| panic!("{} {} was not answered", self.method, self.target));
            if let Some(confirmed) = &self.confirmed
                && self.method != "GET"
                && let Ok(Value::Object(tenant)) = serde_json::from_slice(&reply.body)
                && tenant.contains_key("slug")
                && let (Some(id), Some(version)) = (tenant.get("id").and_then(Value::as_str), tenant.get("version").and_then(Value::as_u64))
            {
                confirmed.lock().unwrap_or_else(PoisonError::into_inner).insert((id.to_owned(), version));
            }
            reply
        })
    }
}

/// Sends `bytes` as they are; `None` if the server closes the connection without a word.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let talk = async {
        let (mut from, mut to) = TcpStream::connect(address).await.expect("the server listens").into_split();
        let mut heard = Vec::new();
        // A server that refuses early does not read the rest, so neither direction waits for the other or fails because of it.
        let _ = tokio::join!(to.write_all(bytes), from.read_to_end(&mut heard));
        heard
    };
    let heard = tokio::time::timeout(Duration::from_secs(30), talk).await.expect("an answer within thirty seconds");
    (!heard.is_empty()).then(|| Reply::parse(heard, bytes.starts_with(b"HEAD ")))
}

/// An answer.
#[derive(Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// All of it, as it came.
    pub bytes: Vec<u8>,
}

/// What chunks hold, down to the last, empty one.
fn unchunked(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(chunks) else { panic!("a chunk was cut off") };
        let size = usize::try_from(size).expect("a size");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunks[at..at + size]);
        chunks = &chunks[at + size + 2..];
    }
}

impl Reply {
    fn parse(bytes: Vec<u8>, head: bool) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = parsed.parse(&bytes) else {
            panic!("this is no HTTP: {}", String::from_utf8_lossy(&bytes))
        };
        let headers: HeaderMap = (parsed.headers.iter())
            .map(|field| {
                let value = HeaderValue::from_bytes(field.value).expect("a header's value");
                (HeaderName::from_bytes(field.name.as_bytes()).expect("a header's name"), value)
            })
            .collect();
        let status = parsed.code.expect("a status");
        let mut body = bytes[length..].to_vec();
        if headers.contains_key("transfer-encoding") && !head {
            let streamed = headers.get("content-type").is_some_and(|kind| kind == "application/x-ndjson");
            assert!(streamed, "the server knows the length of all it sends, but for a stream");
            body = unchunked(&body);
        }
        if let Some(length) = headers.get("content-length").filter(|_| !head && status != 304) {
            assert_eq!(length.to_str().expect("a number"), body.len().to_string(), "the body is whole");
        }
        Self { status, headers, body, bytes }
    }

    /// Stops the test unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A text of the JSON body.
    #[track_caller]
    pub fn text(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("no {field}: {self:?}")).to_owned()
    }

    /// A header, or the empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Stops the test unless this is the problem document `code`, with its status.
    #[track_caller]
    pub fn problem(&self, code: &str) -> Value {
        let status = match code {
            "invalid" => 400,
            "unauthenticated" => 401,
            "forbidden" | "tenant-inactive" | "quota-exceeded" => 403,
            "not-found" | "tenant-not-found" | "no-such-path" => 404,
            "method-not-allowed" => 405,
            "conflict" => 409,
            "version-mismatch" => 412,
            "too-large" => 413,
            "unsupported-media-type" => 415,
            "exhausted" | "rate" | "concurrency" => 429,
            "unavailable" | "shed" | "store-away" => 503,
            other => panic!("{other} is no problem of this API"),
        };
        assert_eq!((self.status, self.header("content-type")), (status, "application/problem+json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["type"], format!("urn:tenancy:problem:{code}"), "{self:?}");
        assert_eq!(document["status"], status, "{self:?}");
        assert!(document["title"].is_string() && document["detail"].is_string(), "{self:?}");
        document
    }

    /// Stops the test unless this is a 4xx, with a problem document.
    #[track_caller]
    pub fn refused(&self) {
        assert!((400..500).contains(&self.status), "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.json()["status"], self.status, "{self:?}");
    }

    /// Stops the test unless this is a problem with `field`.
    #[track_caller]
    pub fn invalid(&self, field: &str) {
        assert_eq!(self.problem("invalid")["field"], field, "{self:?}");
    }

    /// The whole answer, without what differs from one answer to the next: its request id, its date, and how many calls are left.
    pub fn comparable(&self) -> String {
        let varies = |line: &str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            ["x-request-id", "date", "ratelimit"].contains(&name.as_str())
        };
        let text = String::from_utf8_lossy(&self.bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        head.split("\r\n").filter(|line| !varies(line)).collect::<Vec<_>>().join("\n") + "\n\n" + body
    }

    /// Stops the test if any of these words is anywhere in the answer, whatever its case.
    #[track_caller]
    pub fn is_silent_about<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) {
        let text = String::from_utf8_lossy(&self.bytes).to_lowercase();
        for word in words {
            assert!(!text.contains(&word.as_ref().to_lowercase()), "{} is in {self:?}", word.as_ref());
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(2000)]))
    }
}
