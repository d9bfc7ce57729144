//! Hostile tokens and hosts: a clear refusal, the same for all that are wrong, and never a default tenant.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::actors::{Actor, ISSUER, Member, OPERATOR_TOKEN, SECRET, exchange, now, sign};
use harness::app::TestApp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tenancy_core::{TenantCatalog as _, TenantChange, TenantStatus};

use super::ABSENT;

const PROJECTS: &str = "/api/v1/projects";

/// A token with any header and any claims, signed with `secret` by HMAC-SHA256.
fn forge(header: &Value, claims: &[u8], secret: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    format!("{message}.{signature}")
}

fn with(member: &Member, claim: &str, value: Value) -> Value {
    let mut claims = member.claims();
    claims[claim] = value;
    claims
}

fn without(member: &Member, claim: &str) -> Value {
    let mut claims = member.claims();
    claims.as_object_mut().expect("claims").remove(claim);
    claims
}

/// Tokens that prove nothing, each with what is wrong with it.
fn bad_tokens(acme: &Member, globex: &Member) -> Vec<(String, String)> {
    let (claims, now, hs256) = (acme.claims().to_string(), now(), json!({ "alg": "HS256", "typ": "JWT" }));
    let good = sign(&acme.claims());
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    let (head, body) = message.split_once('.').expect("three parts");
    let other_body = URL_SAFE_NO_PAD.encode(globex.claims().to_string());
    let mut bad = vec![
        ("another secret", forge(&hs256, claims.as_bytes(), b"another secret, which is also more than 32 bytes")),
        ("the empty secret", forge(&hs256, claims.as_bytes(), b"")),
        ("another tenant under the same signature", format!("{head}.{other_body}.{signature}")),
        ("no signature", format!("{message}.")),
        ("no third part", message.to_owned()),
        ("a fourth part", format!("{good}.{signature}")),
        ("half of a signature", format!("{message}.{}", &signature[..20])),
        ("padding", format!("{good}=")),
        ("not base64", format!("{head}.!.{signature}")),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
        ("the operators' token", OPERATOR_TOKEN.to_owned()),
        ("two tokens", format!("{good} {good}")),
        ("a list", format!("{good},{good}")),
        ("no JSON", forge(&hs256, b"claims", SECRET)),
        ("an array of claims", forge(&hs256, format!("[{claims}]").as_bytes(), SECRET)),
        ("no UTF-8", forge(&hs256, b"{\"iss\":\"\xff\"}", SECRET)),
        ("another HMAC", {
            let key = EncodingKey::from_secret(SECRET);
            jsonwebtoken::encode(&Header::new(Algorithm::HS512), &acme.claims(), &key).expect("a token")
        }),
        ("none, unsigned", format!("{}.{body}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#))),
    ];
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!("hs256"),
        json!("RS256"),
        json!("ES256"),
        json!("EdDSA"),
        json!(""),
        json!(null),
        json!(["HS256"]),
    ] {
        bad.push(("another algorithm", forge(&json!({ "alg": alg, "typ": "JWT" }), claims.as_bytes(), SECRET)));
    }
    for header in [
        json!({ "alg": "HS256", "crit": ["exp"] }),
        json!({ "alg": "HS256", "typ": "secevent+jwt" }),
        json!({ "alg": "HS256", "kid": 7 }),
        json!({ "typ": "JWT" }),
        json!(["HS256"]),
    ] {
        bad.push(("another header", forge(&header, claims.as_bytes(), SECRET)));
    }
    let hostile = [
        (
            "exp",
            vec![json!(now - 31), json!(now - 86_400), json!(0), json!(-1), json!("2999999999"), json!(null), json!([now + 60]), json!({})],
        ),
        ("nbf", vec![json!(now + 60), json!(4_000_000_000_u64), json!("0"), json!(null)]),
        ("iss", vec![json!("another"), json!(""), json!([ISSUER]), json!(null), json!(7), json!(format!("{ISSUER}/"))]),
        ("aud", vec![json!("another"), json!([]), json!(["another"]), json!({ ISSUER: 1 }), json!(null)]),
        (
            "sub",
            vec![
                json!(""),
                json!(null),
                json!(7),
                json!("a b"),
                json!("x".repeat(300)),
                json!({ "$ne": 1 }),
                json!("'; drop table projects; --"),
            ],
        ),
        (
            "role",
            vec![json!("root"), json!("Owner"), json!(""), json!(null), json!(["owner"]), json!({ "owner": true }), json!("operator")],
        ),
        ("scope", vec![json!(7), json!(["a"]), json!("s ".repeat(65)), json!("x".repeat(129))]),
        (
            "tenant_id",
            vec![
                json!(null),
                json!(7),
                json!(true),
                json!([acme.tenant]),
                json!([acme.tenant, globex.tenant]),
                json!({ "id": acme.tenant }),
                json!({ "$ne": null }),
                json!(""),
                json!("*"),
                json!("%"),
                json!("' or '1'='1"),
                json!("x'; drop table tenancy.tenants; --"),
                json!(format!("{}' or true", acme.tenant)),
                json!(format!("{},{}", acme.tenant, globex.tenant)),
                json!(format!("{}\u{0}{}", acme.tenant, globex.tenant)),
                json!(format!(" {}", acme.tenant)),
                json!("../globex-corp"),
                json!("x".repeat(10_000)),
                json!(vec!["x"; 2000]),
                json!("www"),
                json!("00000000-0000-0000-0000-000000000000"),
            ],
        ),
    ];
    for (claim, values) in hostile {
        bad.extend(values.into_iter().map(|value| (claim, sign(&with(acme, claim, value)))));
    }
    for claim in ["exp", "iss", "aud", "sub", "tenant_id"] {
        bad.push(("one is missing", sign(&without(acme, claim))));
    }
    bad.into_iter().map(|(why, token)| (format!("{why}: {token}"), token)).collect()
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_refused_alike() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let project = acme.project("mine").await;
    let before = app.db_everything().await;
    let mut answers = BTreeSet::new();
    for (why, token) in bad_tokens(&acme, &globex) {
        let ask = |method: &str, path: &str| app.stranger().ask(method, path).with("authorization", format!("Bearer {token}"));
        for (method, path) in [("GET", PROJECTS.to_owned()), ("DELETE", format!("{PROJECTS}/{project}"))] {
            let reply = ask(method, &path).await;
            assert_eq!(reply.status, 401, "{why}: {reply:?}");
            reply.problem("unauthenticated");
            reply.is_silent_about([&acme.slug, &globex.slug, &acme.tenant, &globex.tenant]);
            answers.insert(reply.comparable());
        }
        ask("POST", PROJECTS).json(&json!({ "name": "planted" })).await.problem("unauthenticated");
    }
    assert_eq!(answers.len(), 1, "the answer says what is wrong: {answers:#?}");
    assert_eq!(app.db_everything().await, before);

    // The control: what is on the right side of each bound is taken.
    let now = now();
    for claims in [
        with(&acme, "exp", json!(now - 25)),
        with(&acme, "nbf", json!(now + 25)),
        with(&acme, "aud", json!(["another", ISSUER])),
        with(&acme, "tenant_id", json!(acme.slug)),
        with(&acme, "tenant_id", json!(acme.tenant.to_uppercase())),
        with(&acme, "sub", json!("';drop--table/*<b>")),
        with(&acme, "sub", json!("x".repeat(255))),
        with(&acme, "unknown", json!({ "deep": [1, 2, { "x": null }] })),
    ] {
        let reply = acme.ask_with(&claims, "POST", PROJECTS).json(&json!({ "name": "x" })).with("idempotency-key", "one").await;
        assert_eq!(reply.status, 201, "{claims}: {reply:?}");
    }
    assert_eq!(globex.get(PROJECTS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn one_authorization_header_of_the_bearer_scheme() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (mine, theirs) = (sign(&acme.claims()), sign(&globex.claims()));
    let ask = |value: &str| app.stranger().get("/api/v1/tenant").with("authorization", value);
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(ask(&format!("{scheme} {mine}")).await.expect(200).text("id"), acme.tenant);
    }
    for (first, second) in [(&mine, &theirs), (&theirs, &mine), (&mine, &mine)] {
        let reply = ask(&format!("Bearer {first}")).and("authorization", format!("Bearer {second}")).await;
        reply.problem("unauthenticated");
        reply.is_silent_about([&acme.slug, &globex.slug]);
    }
    ask(&format!("Bearer {mine}")).and("authorization", "Basic dXNlcjpwYXNz").await.problem("unauthenticated");
    for bad in
        ["", "Bearer", "Bearer ", &format!("Bearer  {mine}"), &format!("Bearer\t{mine}"), &mine, "Basic dXNlcjpwYXNz", "Bearer \u{e9}"]
    {
        ask(bad).await.problem("unauthenticated");
    }
    // A token anywhere else is none.
    app.stranger().get("/api/v1/tenant").with("cookie", format!("token={mine}")).await.problem("unauthenticated");
    app.stranger().get(&format!("/api/v1/tenant?access_token={mine}")).await.problem("unauthenticated");

    // The same for the operators' token.
    let ask = |value: &str| app.stranger().get("/api/v1/tenants").with("authorization", value);
    ask(&format!("bearer {OPERATOR_TOKEN}")).await.expect(200);
    ask(&format!("Bearer {OPERATOR_TOKEN}")).and("authorization", format!("Bearer {OPERATOR_TOKEN}")).await.problem("unauthenticated");
    let short = &OPERATOR_TOKEN[..OPERATOR_TOKEN.len() - 1];
    for bad in [short, &format!("{OPERATOR_TOKEN}x"), &OPERATOR_TOKEN.to_uppercase(), "", " ", &format!(" {OPERATOR_TOKEN}"), &mine] {
        ask(&format!("Bearer {bad}")).await.problem("unauthenticated");
    }
    ask(OPERATOR_TOKEN).await.problem("unauthenticated");
    ask(&format!("Basic {OPERATOR_TOKEN}")).await.problem("unauthenticated");
}

#[tokio::test]
async fn unknown_and_erased_tenants_are_alike_and_a_suspended_one_says_so() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let gone = app.tenant("initech").await;
    gone.project("lost").await;
    app.operator().delete(&format!("/api/v1/tenants/{}", gone.tenant)).await.expect(204);
    gone.get(PROJECTS).await.problem("tenant-inactive");
    let db = app.database.open().await.expect("open");
    let id = gone.tenant.parse().expect("an id");
    db.catalog().update(id, TenantChange::status(TenantStatus::Erased), None, &tenancy_core::Actor::System).await.expect("erased");
    db.close().await;
    app.operator().ask("POST", &format!("/api/v1/tenants/{}/suspend", globex.tenant)).await.expect(200);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await; // the bound on staleness
    let unknown = acme.of(ABSENT);
    let misnamed = acme.of("nobody");
    let old_slug = gone.of(&gone.slug);
    let mut answers = BTreeSet::new();
    for member in [&unknown, &misnamed, &gone, &old_slug] {
        for ask in [member.get(PROJECTS), member.post(PROJECTS, &json!({ "name": "x" })), member.get("/api/v1/tenant")] {
            let reply = ask.await;
            reply.problem("tenant-not-found");
            answers.insert(reply.comparable());
        }
    }
    assert_eq!(answers.len(), 1);
    globex.get(PROJECTS).await.problem("tenant-inactive");
    acme.get(PROJECTS).await.expect(200);
    // An erased tenant's slug is free again, and its tokens don't open the new tenant.
    let new = app.tenant("initech").await;
    gone.get(PROJECTS).await.problem("tenant-not-found");
    assert_eq!(new.get(PROJECTS).await.expect(200).json()["items"], json!([]));
}

#[tokio::test]
async fn with_a_base_domain_the_host_must_name_the_tokens_tenant() {
    let app = TestApp::with(|config| config.base_domain = Some("example.test".to_owned())).await;
    let (acme, globex) = app.two_tenants().await;
    let before = app.db_everything().await;
    let at = |host: &str| acme.get("/api/v1/tenant").with("host", host);
    for good in ["acme-works.example.test", "ACME-Works.Example.TEST", "acme-works.example.test.", "acme-works.example.test:8080"] {
        let reply = at(good).await.expect(200);
        assert_eq!(reply.text("id"), acme.tenant);
    }
    let mut answers = BTreeSet::new();
    for bad in [
        "globex-corp.example.test",
        "GLOBEX-corp.example.test.:80",
        "nobody.example.test",
        "www.example.test",
        "example.test",
        "example.test.",
        "acme-works.example.test.evil.test",
        "acme-works.evil.test",
        "xacme-works.example.test",
        "a.acme-works.example.test",
        "acme-works",
        "acme_works.example.test",
        "xn--acme.example.test",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:80",
        "[::1",
        "localhost",
        "",
        "acme-works.example.test:http",
        "acme-works.example.test:80:80",
        "acme-works.example.test, globex-corp.example.test",
        "acme-works.example.test\u{e9}",
        "acme-works.example.test/",
        "user@acme-works.example.test",
        "..example.test",
        "*.example.test",
    ] {
        let reply = at(bad).await;
        reply.problem("tenant-not-found");
        reply.is_silent_about([&acme.slug, &globex.slug, &globex.tenant]);
        answers.insert(reply.comparable());
        at(bad).to(PROJECTS).await.problem("tenant-not-found");
    }
    for ask in [
        at("acme-works.example.test").and("host", "acme-works.example.test"),
        at("acme-works.example.test").and("host", "globex-corp.example.test"),
        at("acme-works.example.test").to("http://globex-corp.example.test/api/v1/tenant"),
        acme.get("/api/v1/tenant").without("host"),
    ] {
        let reply = ask.await;
        reply.problem("tenant-not-found");
        answers.insert(reply.comparable());
    }
    assert_eq!(answers.len(), 1, "the answer says whether a tenant exists: {answers:#?}");
    // A host alone proves nothing, whoever it names.
    let mut answers = BTreeSet::new();
    for host in ["acme-works.example.test", "nobody.example.test"] {
        let reply = app.stranger().get("/api/v1/tenant").with("host", host).await;
        reply.problem("unauthenticated");
        answers.insert(reply.comparable());
    }
    assert_eq!(answers.len(), 1);
    // Operators and probes are not at a tenant's host.
    app.operator().get("/api/v1/tenants").with("host", "globex-corp.example.test").await.expect(200);
    app.stranger().get("/readyz").with("host", "[::1").await.expect(200);
    assert_eq!(app.db_everything().await, before);
}

#[tokio::test]
async fn without_a_base_domain_no_host_matters() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    for host in ["globex-corp.example.com", "127.0.0.1", "", "localhost:1", "[::1"] {
        assert_eq!(acme.get("/api/v1/tenant").with("host", host).await.expect(200).text("id"), acme.tenant);
    }
    // Bytes that no parser of hosts sees.
    let mut raw = b"GET /api/v1/tenant HTTP/1.1\r\nconnection: close\r\nhost: \xff\xfe".to_vec();
    raw.extend(format!("{}\r\nauthorization: Bearer {}\r\n\r\n", globex.slug, sign(&acme.claims())).bytes());
    let reply = exchange(app.node.address, &raw).await.expect("an answer");
    assert_eq!(reply.text("id"), acme.tenant);
}
