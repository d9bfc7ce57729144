//! Malformed, oversized and mangled requests: a clear 4xx, never a 5xx, nothing written, nobody else's name in any byte.

use harness::actors::{Actor, Ask, Member, exchange};
use harness::app::TestApp;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::ABSENT;

/// Every operation that takes JSON, with a body that it would take.
async fn writers(app: &TestApp, acme: &Member) -> Vec<Ask> {
    let project = acme.project("mine").await;
    let document = acme.document(&project, "mine").await;
    vec![
        app.operator().post("/api/v1/tenants", &json!({ "slug": "fresh", "name": "x" })),
        app.operator().patch(&format!("/api/v1/tenants/{}", acme.tenant), &json!({ "name": "x" })),
        acme.post("/api/v1/projects", &json!({ "name": "x" })),
        acme.patch(&format!("/api/v1/projects/{project}"), &json!({ "name": "x" })),
        acme.post(&format!("/api/v1/projects/{project}/documents"), &json!({ "title": "x" })),
        acme.patch(&format!("/api/v1/documents/{document}"), &json!({ "title": "x" })),
    ]
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    globex.project("canary").await;
    let writers = writers(&app, &acme).await;
    let before = app.db_everything().await;
    let deep = |depth: usize| format!("{{\"name\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let not_json: [&[u8]; 21] = [
        b"",
        b" ",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"1",
        b"\"x\"",
        b"{} {}",
        b"{}x",
        b"{'name':'x'}",
        b"{\"name\":\"x\",}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{\"name\":\"\xff\"}",
        b"{\"name\":\"\\ud800\"}",
        b"{\"name\":\"x\",\"name\":\"y\"}",
        b"name=x",
        b"[\"fresh\",\"x\"]",
        b"[\"x\"]",
        b"[null]",
    ];
    for ask in &writers {
        for body in not_json.into_iter().map(<[u8]>::to_vec).chain([10, 1000, 30_000].map(|depth| deep(depth).into_bytes())) {
            let reply = ask.clone().body(body.clone()).await;
            assert_eq!(reply.status, 400, "{} with {}: {reply:?}", ask.target(), String::from_utf8_lossy(&body));
            reply.problem("invalid");
        }
        for unknown in ["tenant_id", "id", "__proto__", "name ", "NAME", ""] {
            ask.clone().json(&json!({ unknown: "x" })).await.problem("invalid");
        }
        for other in
            ["", "text/plain", "application/jsonx", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*"]
        {
            ask.clone().with("content-type", other).await.problem("unsupported-media-type");
        }
        ask.clone().without("content-type").await.problem("unsupported-media-type");
        ask.clone().and("content-type", "application/json").await.problem("unsupported-media-type");
        // The limit is 64 KiB: said in advance, found out, and said wrongly.
        ask.clone().body(vec![b' '; 65_537]).await.problem("too-large");
        ask.clone().body("{}").with("content-length", "99999999999").await.problem("too-large");
        let chunked = [format!("{:x}\r\n", 70_000).as_bytes(), &[b' '; 70_000], b"\r\n0\r\n\r\n"].concat();
        let unsaid = ask.clone().body(chunked).without("content-length").with("transfer-encoding", "chunked");
        unsaid.await.problem("too-large");
    }
    assert_eq!(app.db_everything().await, before);
    // The control: a type with parameters, whatever its case, is JSON.
    for ask in writers {
        let reply = ask.with("content-type", "Application/JSON; charset=utf-8").await;
        assert!(reply.status < 300, "{reply:?}");
    }
}

#[tokio::test]
async fn bodies_that_stop_short_write_nothing() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    globex.project("canary").await;
    let writers = writers(&app, &acme).await;
    let before = app.db_everything().await;
    for ask in writers {
        let bytes = ask.bytes();
        let mut connection = TcpStream::connect(app.node.address).await.expect("connect");
        connection.write_all(&bytes[..bytes.len() - 1]).await.expect("all but the last byte");
        drop(connection);
    }
    assert_eq!(app.audit().await, [""; 0]);
    assert_eq!(app.db_everything().await, before);
}

#[tokio::test]
async fn unknown_parameters_methods_and_paths() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let project = acme.project("mine").await;
    let document = acme.document(&project, "mine").await;
    acme.attach(&document, "a", b"x").await.expect(201);
    globex.project("canary").await;
    let before = app.db_everything().await;
    let (tenant, project, document) =
        (format!("/api/v1/tenants/{}", acme.tenant), format!("/api/v1/projects/{project}"), format!("/api/v1/documents/{document}"));
    let operator = app.operator();
    let asks = [
        operator.get("/api/v1/tenants"),
        operator.post("/api/v1/tenants", &json!({ "slug": "fresh", "name": "x" })),
        operator.get(&tenant),
        operator.patch(&tenant, &json!({ "name": "x" })),
        operator.delete(&tenant),
        operator.ask("POST", &format!("{tenant}/suspend")),
        operator.ask("POST", &format!("{tenant}/resume")),
        acme.get("/api/v1/tenant"),
        acme.get("/api/v1/projects"),
        acme.post("/api/v1/projects", &json!({ "name": "x" })),
        acme.get(&project),
        acme.patch(&project, &json!({ "name": "x" })),
        acme.delete(&project),
        acme.get(&format!("{project}/documents")),
        acme.post(&format!("{project}/documents"), &json!({ "title": "x" })),
        acme.get(&document),
        acme.patch(&document, &json!({ "title": "x" })),
        acme.delete(&document),
        acme.get(&format!("{document}/attachments")),
        acme.get(&format!("{document}/attachments/a")),
        acme.put(&format!("{document}/attachments/a"), "y"),
        acme.delete(&format!("{document}/attachments/a")),
    ];
    for ask in asks {
        for query in ["tenant_id=x", "Limit=1", "limit=1&limit=2", "cursor=a&cursor=b", "%00=1", "x", "=", "%ff=%ff", "a[]=1"] {
            let target = format!("{}?{query}", ask.target());
            ask.clone().to(&target).await.problem("invalid");
        }
    }
    for body in ["{}", "x"] {
        operator.ask("POST", &format!("{tenant}/suspend")).body(body).await.invalid("body");
    }
    for (method, path) in [
        ("PUT", "/api/v1/projects"),
        ("DELETE", "/api/v1/tenants"),
        ("POST", "/api/v1/tenant"),
        ("PATCH", "/healthz"),
        ("TRACE", "/api/v1/projects"),
        ("PROPFIND", "/api/v1/projects"),
        ("get", "/api/v1/projects"),
        ("OPTIONS", "/api/v1/projects"),
        ("GET", &format!("{tenant}/suspend")),
    ] {
        for reply in [acme.ask(method, path).await, operator.ask(method, path).await, app.stranger().ask(method, path).await] {
            reply.refused();
            assert!(
                reply.status == 401 || (reply.problem("method-not-allowed").is_object() && !reply.header("allow").is_empty()),
                "{reply:?}"
            );
        }
    }
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v1/projects/",
        "//api/v1/projects",
        "/api/v1//projects",
        "/API/v1/projects",
        "/api/v2/projects",
        "/api/v1/projects/../tenants",
        "/api/v1/%70rojects/x/y",
        "/api/v1/projects;x=1",
        "/healthz/",
        "/.env",
        "/openapi.json.bak",
        "*",
        "/%2e%2e/",
    ] {
        for actor_reply in [acme.get(path).await, app.stranger().get(path).await] {
            actor_reply.problem("no-such-path");
        }
    }
    assert_eq!(app.db_everything().await, before);
}

#[tokio::test]
async fn bytes_that_are_hardly_http() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    globex.project("canary").await;
    let before = app.db_everything().await;
    let token = String::from_utf8(acme.get("/api/v1/projects").bytes()).expect("ASCII");
    let with = |from: &str, to: &str| token.replace(from, to).into_bytes();
    let raw: Vec<Vec<u8>> = vec![
        b"\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        with("GET /api", "GET /\0api"),
        with("GET /api", "GET /\u{e9}api"),
        with("GET /api", "GET http://[::1/api"),
        with("GET ", "GET  "),
        with("HTTP/1.1", "HTTP/1.1 x"),
        with("host:", "host :"),
        with("host: ", "host: a\r\n b"),
        with("host: ", "ho\0st: "),
        with("host: ", "host: \0"),
        with("/api", &format!("/{}", "a".repeat(100_000))),
        with("host: ", &format!("x: {}\r\nhost: ", "a".repeat(600_000))),
        with("host: ", &format!("{}host: ", "x: y\r\n".repeat(500))),
        with("connection: close", "connection: close\r\ncontent-length: 1\r\ncontent-length: 2"),
        with("connection: close", "connection: close\r\ncontent-length: -1"),
        with("connection: close", "connection: close\r\ncontent-length: 99999999999999999999999"),
        with("connection: close", "connection: close\r\ntransfer-encoding: x"),
        with("GET", "POST").into_iter().chain(*b"x").collect(),
        // Two requests in one: the second must not be taken for part of the first.
        with("connection: close", "connection: close\r\ncontent-length: 5\r\ntransfer-encoding: chunked"),
    ];
    for bytes in raw {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        // Whoever sends no HTTP at all may be cut off without a word. The HTTP layer's own refusals have no body.
        let mut connection = TcpStream::connect(app.node.address).await.expect("connect");
        let mut heard = Vec::new();
        let _ = connection.write_all(&bytes).await;
        let _ = connection.shutdown().await;
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut heard).await;
        let heard = String::from_utf8_lossy(&heard).to_lowercase();
        assert!(heard.is_empty() || heard.starts_with("http/1.1 2") || heard.starts_with("http/1.1 4"), "{what}: {heard}");
        for word in ["canary", &globex.tenant, &globex.slug] {
            assert!(!heard.contains(word), "{what}: {heard}");
        }
    }
    assert_eq!(app.db_everything().await, before);
    app.stranger().get("/readyz").await.expect(200);
}

#[tokio::test]
async fn headers_of_every_answer() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let id = "0198c0de-0000-7000-8000-0000000c0ffe";
    for ask in [
        app.stranger().get("/healthz"),
        app.stranger().get("/nowhere"),
        app.stranger().get("/api/v1/tenants"),
        app.operator().get("/api/v1/tenants"),
        acme.get("/api/v1/projects"),
        globex.get(&format!("/api/v1/projects/{ABSENT}")),
        globex.ask("PUT", "/api/v1/projects"),
    ] {
        let reply = ask.clone().with("x-request-id", id).await;
        assert_eq!((reply.header("x-request-id"), reply.header("cache-control")), (id, "no-store"), "{reply:?}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        for bad in ["", "x", "00000000-0000-0000-0000-000000000000", &id.replace('-', ""), "a\u{e9}", &"1".repeat(10_000)] {
            let reply = ask.clone().with("x-request-id", bad).await;
            assert!(reply.header("x-request-id").len() == 36 && reply.header("x-request-id") != bad, "{reply:?}");
        }
    }
}

const WORDS: &[&str] = &[
    "",
    "x",
    "..",
    "%2e%2e",
    "%2f",
    "%00",
    "%ff",
    "%25",
    "null",
    "0",
    "-1",
    "99999999999999999999",
    "true",
    "{}",
    "*",
    "'",
    "%27%20or%201=1--",
    "tenants",
    "projects",
    "documents",
    "attachments",
    "healthz",
    ABSENT,
    "00000000-0000-0000-0000-000000000000",
    "acme-works",
    "%F0%9F%98%80",
];

/// A piece of text that is legal where it is put, and nothing more.
fn word(rng: &mut StdRng) -> String {
    let word = WORDS.choose(rng).expect("words");
    if rng.random_ratio(1, 20) { word.repeat(rng.random_range(1..200)) } else { (*word).to_owned() }
}

fn mangled_json(rng: &mut StdRng) -> Vec<u8> {
    const VALUES: &[&str] = &[
        "null",
        "true",
        "-1",
        "1e999",
        "\"\"",
        "\"x\"",
        "\"\\u0000\"",
        "[]",
        "{}",
        "[[[[]]]]",
        "\"www\"",
        "\"fuzzed\"",
        "\"\u{202e}\"",
        "0.1",
    ];
    let fields =
        ["name", "slug", "title", "content", "description", "plan", "branding", "flags", "tenant_id", "id", "version", "status", ""];
    let members: Vec<String> = (0..rng.random_range(0..4))
        .map(|_| format!("\"{}\":{}", fields.choose(rng).expect("fields"), VALUES.choose(rng).expect("values")))
        .collect();
    let mut json = format!("{{{}}}", members.join(",")).into_bytes();
    if rng.random_ratio(1, 4) {
        let at = rng.random_range(0..=json.len());
        json.insert(at, rng.random());
    }
    json
}

#[tokio::test]
async fn mangled_requests_never_break_it() {
    const SEED: u64 = 20_261_125;
    let (app, acme, globex) = TestApp::with_tenants().await;
    let theirs = globex.project("canary").await;
    let document = globex.document(&theirs, "canary").await;
    globex.attach(&document, "theirs.txt", b"canary").await.expect(201);
    let mine = acme.project("mine").await;
    let my_document = acme.document(&mine, "mine").await;
    app.operator().allow_sharing().await;
    for tenant in [&acme, &globex] {
        tenant.allow_sharing().await;
    }
    let lender = app.tenant("the-lender").await;
    lender.allow_sharing().await;
    let lent = lender.document(&lender.project("lent").await, "lent").await;
    let (their_share, my_share) = (lender.share(&lent, &globex, "write").await, lender.share(&lent, &acme, "write").await);
    let ((their_link, _), (my_link, url)) = (globex.link(&document).await, acme.link(&my_document).await);
    let token = &url["/s/".len()..];
    let of_globex = async || {
        let mut rows = app.db_everything().await;
        rows.values_mut().for_each(|rows| rows.retain(|row| row.contains(&globex.tenant)));
        rows
    };
    let before = of_globex().await;
    let openapi = app.stranger().get("/openapi.json").await.json();
    let paths = openapi["paths"].as_object().expect("paths").iter();
    let operations: Vec<(String, &String)> =
        paths.flat_map(|(path, item)| item.as_object().expect("methods").keys().map(move |method| (method.to_uppercase(), path))).collect();
    let known: Vec<_> = operations.iter().filter(|(_, path)| path.contains("projects") || path.contains("documents")).cloned().collect();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut statuses = std::collections::BTreeMap::new();
    for n in 0..800 {
        // Often something whose names are known here, so that the requests get far.
        let (method, path) = if rng.random_ratio(1, 2) { known.choose(&mut rng) } else { operations.choose(&mut rng) }.expect("operations");
        let mut segments: Vec<String> = path[1..].split('/').map(str::to_owned).collect();
        for segment in &mut segments {
            // Mostly names of things that are there, so that the request gets far.
            let named = match segment.as_str() {
                "{tenant}" => Some([&globex.slug, &acme.slug, ABSENT]),
                "{project}" => Some([&theirs, &mine, ABSENT]),
                "{document}" => Some([&document, &my_document, ABSENT]),
                "{share}" => Some([&their_share, &my_share, ABSENT]),
                "{link}" => Some([&their_link, &my_link, ABSENT]),
                "{token}" => Some([token, token, "nobodys"]),
                "{name}" => Some(["theirs.txt", "mine.txt", "%C3%A9"]),
                _ => None,
            };
            if let Some(named) = named {
                (*named.choose(&mut rng).expect("names")).clone_into(segment);
            }
            if rng.random_ratio(1, 30) {
                *segment = word(&mut rng);
            }
        }
        if rng.random_ratio(1, 20) {
            let at = rng.random_range(0..=segments.len());
            segments.insert(at, word(&mut rng));
        }
        let mut target = format!("/{}", segments.join("/")).replace('{', "%7B").replace('}', "%7D");
        if rng.random_ratio(1, 4) {
            let name = ["limit", "cursor", "search", "status", "tenant_id", ""].choose(&mut rng).expect("names");
            target += &format!("?{name}={}", word(&mut rng).replace('{', "%7B").replace('}', "%7D"));
        }
        let others = ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"];
        let method = if rng.random_ratio(1, 10) { *others.choose(&mut rng).expect("methods") } else { method };
        let who = rng.random_range(0..10);
        let mut ask = match who {
            // What an operator legitimately does to a tenant would make the rest of the run dull.
            0..2 if method == "GET" => app.operator().ask(method, &target),
            0..3 => app.stranger().ask(method, &target),
            _ => acme.role(["viewer", "member", "admin", "owner"].choose(&mut rng).expect("roles")).ask(method, &target),
        };
        if matches!(method, "POST" | "PATCH" | "PUT") || rng.random_ratio(1, 10) {
            let fits = if path.contains("documents") { &b"{\"title\":\"x\"}"[..] } else { b"{\"name\":\"x\"}" };
            ask = ask.body(if rng.random() { fits.to_vec() } else { mangled_json(&mut rng) });
            if rng.random_ratio(9, 10) {
                ask = ask.with("content-type", "application/json");
            }
        }
        for name in
            ["if-match", "if-none-match", "idempotency-key", "x-request-id", "content-type", "host", "authorization", "accept", "range"]
        {
            if rng.random_ratio(1, 25) {
                let value: Vec<u8> =
                    (0..rng.random_range(0..20)).map(|_| rng.random_range(0x20..=0xff)).filter(|byte| *byte != 0x7f).collect();
                ask = if rng.random() { ask.with(name, value) } else { ask.and(name, value) };
            }
        }
        let what = format!("request {n} of seed {SEED}: {}", String::from_utf8_lossy(&ask.bytes()));
        let reply = exchange(app.node.address, &ask.bytes()).await.unwrap_or_else(|| panic!("{what} was not answered"));
        *statuses.entry(reply.status).or_insert(0) += 1;
        assert!(reply.status < 500, "{what}\n{reply:?}");
        if reply.status >= 400 && method != "HEAD" {
            assert_eq!(reply.header("content-type"), "application/problem+json", "{what}\n{reply:?}");
            reply.refused();
        }
        if who >= 2 {
            let text = String::from_utf8_lossy(&reply.bytes).to_lowercase();
            // `Location` and `Allow` say nothing of others either: all bytes are searched.
            for canary in ["canary", &globex.tenant, &globex.name.to_lowercase(), &theirs, &document] {
                assert!(!text.contains(canary), "{canary}: {what}\n{reply:?}");
            }
        }
    }
    assert_eq!(of_globex().await, before);
    assert!([200, 201, 400, 401, 403, 404, 405].iter().all(|status| statuses.contains_key(status)), "the fuzz is too tame: {statuses:?}");
}
