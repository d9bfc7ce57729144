//! `/api/v1/tenants`: the operator's view.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::actors::{Actor, Member, Operator, Reply};
use harness::app::TestApp;
use serde_json::{Value, json};
use tenancy_core::TenantSlug;

use super::ABSENT;

const TENANTS: &str = "/api/v1/tenants";

fn path(tenant: &Value) -> String {
    format!("{TENANTS}/{}", tenant["id"].as_str().expect("an id"))
}

/// Every item of a list, page by page.
async fn all_pages(operator: &Operator, query: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    for _ in 0..100 {
        let page = operator.get(&format!("{TENANTS}?{query}{cursor}")).await.expect(200).json();
        items.extend(page["items"].as_array().expect("items").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
    panic!("the pages never end");
}

#[tokio::test]
async fn a_tenant_is_made_shown_changed_and_archived() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let new = json!({ "slug": "acme", "name": "Acme", "plan": "unlimited", "branding": { "colour": "#fff" }, "flags": { "beta": true } });
    let made = operator.post(TENANTS, &new).await.expect(201);
    let tenant = made.json();
    assert_eq!((made.header("etag"), made.header("location")), ("\"1\"", path(&tenant).as_str()));
    assert_eq!((&tenant["status"], &tenant["version"]), (&json!("active"), &json!(1)));
    for field in ["slug", "name", "plan", "branding", "flags"] {
        assert_eq!(tenant[field], new[field], "{field}");
    }
    for by in [path(&tenant), format!("{TENANTS}/acme")] {
        let shown = operator.get(&by).await.expect(200);
        assert_eq!((shown.json(), shown.header("etag")), (tenant.clone(), "\"1\""));
    }

    let changed = operator.patch(&path(&tenant), &json!({ "name": "Acme Ltd", "flags": {} })).await.expect(200).json();
    assert_eq!((&changed["name"], &changed["flags"], &changed["version"]), (&json!("Acme Ltd"), &json!({}), &json!(2)));
    assert_eq!((&changed["slug"], &changed["plan"], &changed["branding"]), (&json!("acme"), &json!("unlimited"), &new["branding"]));
    let renamed = operator.patch(&path(&tenant), &json!({ "slug": "acme-ltd" })).await.expect(200).json();
    assert_eq!(renamed["version"], 3);
    operator.get(&format!("{TENANTS}/acme")).await.problem("not-found");

    let archived = operator.delete(&path(&tenant)).await.expect(204);
    assert!(archived.body.is_empty());
    operator.delete(&path(&tenant)).await.expect(204);
    let shown = operator.get(&path(&tenant)).await.expect(200).json();
    assert_eq!((&shown["status"], &shown["version"]), (&json!("archived"), &json!(4)), "kept, and archived once");
    assert!(all_pages(&operator, "").await.is_empty(), "a list leaves archived tenants out");
    assert_eq!(all_pages(&operator, "status=archived").await.len(), 1);
    operator.post(TENANTS, &json!({ "slug": "acme-ltd", "name": "x" })).await.problem("conflict");
    operator.ask("POST", &format!("{}/resume", path(&tenant))).await.problem("conflict");
    operator.ask("POST", &format!("{}/suspend", path(&tenant))).await.expect(200);
    operator.ask("POST", &format!("{}/resume", path(&tenant))).await.expect(200);
}

#[tokio::test]
async fn pages_are_complete_disjoint_and_newest_first() {
    let app = TestApp::start().await;
    let operator = app.operator();
    for n in 0..7 {
        operator.create(&format!("tenant-{n}")).await;
    }
    for limit in [1, 2, 3, 6, 7, 8, 200] {
        let slugs: Vec<_> = all_pages(&operator, &format!("limit={limit}")).await.iter().map(|t| t["slug"].clone()).collect();
        let expected: Vec<_> = (0..7).rev().map(|n| json!(format!("tenant-{n}"))).collect();
        assert_eq!(slugs, expected, "pages of {limit}");
    }
    let first = operator.get(&format!("{TENANTS}?limit=3")).await.json();
    let cursor = first["next_cursor"].as_str().expect("more").to_owned();
    operator.create("tenant-late").await;
    let second = operator.get(&format!("{TENANTS}?limit=3&cursor={cursor}")).await.json();
    assert_eq!(second["items"][0]["slug"], "tenant-3", "what is added meanwhile moves nothing");

    for bad in ["", "x", "null", "%00", "%FF", "..%2f", "'%20or%201=1--", &cursor[1..], &format!("{cursor}A"), &"A".repeat(3000), ABSENT] {
        operator.get(&format!("{TENANTS}?cursor={bad}")).await.invalid("cursor");
    }
    let acme = app.tenant("acme").await;
    acme.get(&format!("/api/v1/projects?cursor={cursor}")).await.invalid("cursor");
}

#[tokio::test]
async fn search_and_status_select() {
    let app = TestApp::start().await;
    let operator = app.operator();
    for (slug, name) in [("acme", "Roadrunner 100% traps"), ("globex", "Global EXports"), ("initech", "Initech")] {
        operator.post(TENANTS, &json!({ "slug": slug, "name": name })).await.expect(201);
    }
    let found = async |query: &str| {
        let slugs: BTreeSet<_> = all_pages(&operator, query).await.iter().map(|t| t["slug"].as_str().expect("slug").to_owned()).collect();
        slugs.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found("search=ROADRUNNER").await, "acme");
    assert_eq!(found("search=ex").await, "globex");
    assert_eq!(found("search=initech").await, "initech");
    // Wildcards and quotes stand for themselves.
    for (search, slugs) in [("%25", "acme"), ("_", ""), ("%27", ""), ("%5C", ""), ("100%25%20t", "acme"), ("nobody", "")] {
        assert_eq!(found(&format!("search={search}")).await, slugs, "{search}");
    }
    operator.ask("POST", &format!("{TENANTS}/globex/suspend")).await.expect(200);
    assert_eq!(found("status=suspended").await, "globex");
    assert_eq!(found("status=active").await, "acme initech");
    assert_eq!(found("status=active&search=e&limit=1").await, "acme initech");
    operator.get(&format!("{TENANTS}?status=gone")).await.invalid("status");
    operator.get(&format!("{TENANTS}?status=")).await.invalid("status");
    operator.get(&format!("{TENANTS}?search={}", "x".repeat(101))).await.invalid("search");
    operator.get(&format!("{TENANTS}?search=%00")).await.problem("invalid");
    for limit in ["0", "201", "-1", "x", "1.5", "", "99999999999999999999999"] {
        operator.get(&format!("{TENANTS}?limit={limit}")).await.invalid("limit");
    }
}

#[tokio::test]
async fn preconditions_are_kept() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let tenant = operator.create("acme").await;
    let (path, name) = (path(&tenant), |n: u32| json!({ "name": format!("Name {n}") }));
    let show = |tag: &'static str| operator.get(&path).with("if-none-match", tag);
    let unchanged = show("\"1\"").await.expect(304);
    assert!(unchanged.body.is_empty() && unchanged.header("etag") == "\"1\"");
    show("W/\"1\"").await.expect(304);
    show("\"7\", \"1\"").await.expect(304);
    show("*").await.expect(304);
    show("\"2\"").await.expect(200);
    show("1").await.invalid("if-none-match");

    operator.patch(&path, &name(1)).with("if-match", "\"1\"").await.expect(200);
    for stale in ["\"1\"", "\"3\"", "W/\"2\"", "\"two\"", "\"-1\"", "\"99999999999999999999\"", "\"1\", \"7\""] {
        operator.patch(&path, &name(2)).with("if-match", stale).await.problem("version-mismatch");
        operator.delete(&path).with("if-match", stale).await.problem("version-mismatch");
        operator.ask("POST", &format!("{path}/suspend")).with("if-match", stale).await.problem("version-mismatch");
    }
    for bad in ["2", "\"2", "", "\"2\" \"3\""] {
        operator.patch(&path, &name(2)).with("if-match", bad).await.invalid("if-match");
    }
    assert_eq!(operator.get(&path).await.json()["version"], 2);
    operator.patch(&path, &name(3)).with("if-match", "\"1\", \"2\"").await.expect(200);
    operator.patch(&path, &name(4)).with("if-match", "*").await.expect(200);

    // Of ten who have read the same version, one may write.
    let writers = (0..10).map(|n| operator.patch(&path, &name(n)).with("if-match", "\"4\"").into_future());
    let replies = join_all(writers).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1);
    for lost in replies.iter().filter(|reply| reply.status != 200) {
        lost.problem("version-mismatch");
    }
    operator.delete(&path).with("if-match", "\"5\"").await.expect(204);
    for method in ["GET", "DELETE"] {
        operator.ask(method, &format!("{TENANTS}/{ABSENT}")).with("if-match", "\"1\"").await.problem("not-found");
    }
}

#[tokio::test]
async fn an_idempotency_key_does_a_request_once() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let make = |slug: &str, key: &str| operator.post(TENANTS, &json!({ "slug": slug, "name": "x" })).with("idempotency-key", key);
    let first = make("acme", "one").await.expect(201);
    let again = make("acme", "one").await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), first.header("idempotency-replayed")), ("true", ""));
    assert_eq!(
        (&first.body, first.header("etag"), first.header("location")),
        (&again.body, again.header("etag"), again.header("location"))
    );
    make("other", "one").await.problem("conflict");
    make("acme", "two").await.problem("conflict"); // the slug is taken
    make("beta", "two").await.expect(201); // and a refusal was not remembered

    let suspend = || operator.ask("POST", &format!("{TENANTS}/acme/suspend")).with("idempotency-key", "three");
    suspend().await.expect(200);
    operator.ask("POST", &format!("{TENANTS}/acme/resume")).await.expect(200);
    assert_eq!(suspend().await.expect(200).header("idempotency-replayed"), "true");
    assert_eq!(operator.get(&format!("{TENANTS}/acme")).await.text("status"), "active", "a replay does nothing");
    operator.ask("POST", &format!("{TENANTS}/beta/suspend")).with("idempotency-key", "three").await.problem("conflict");

    for bad in ["", "a b", "é", &"k".repeat(256)] {
        make("gamma", bad).await.invalid("idempotency-key");
    }
    make("gamma", "a").and("idempotency-key", "b").await.invalid("idempotency-key");
    make("gamma", &"k".repeat(255)).await.expect(201);
}

#[tokio::test]
async fn ten_at_once_with_one_key_have_one_effect() {
    let app = TestApp::start().await;
    let (operator, acme) = (app.operator(), app.tenant("acme").await);
    let new = operator.post(TENANTS, &json!({ "slug": "storm", "name": "x" }));
    for ask in [new, acme.post("/api/v1/projects", &json!({ "name": "storm" }))] {
        let ask = ask.with("idempotency-key", "storm");
        let replies: Vec<Reply> = join_all((0..10).map(|_| ask.clone().into_future())).await;
        let bodies: BTreeSet<_> = replies.iter().map(|reply| reply.clone().expect(201).body).collect();
        let replayed = replies.iter().filter(|reply| reply.header("idempotency-replayed") == "true").count();
        assert_eq!((bodies.len(), replayed), (1, 9), "{}", ask.target());
    }
    assert_eq!(all_pages(&operator, "search=storm").await.len(), 1);
    assert_eq!(acme.get("/api/v1/projects").await.json()["items"].as_array().map(Vec::len), Some(1));
}

/// How long `member` is still served at its node.
async fn time_to_refusal(member: &Member) -> Duration {
    let since = Instant::now();
    loop {
        let reply = member.get("/api/v1/projects").await;
        if reply.status != 200 {
            reply.problem("tenant-inactive");
            return since.elapsed();
        }
        assert!(since.elapsed() < Duration::from_secs(10), "the suspension never bites");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_suspension_bites_here_at_once_and_elsewhere_within_a_second() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (operator, node) = (app.operator(), app.another_node().await);
    let there = acme.at(&node);
    let project = acme.project("before").await;
    for member in [&acme, &there, &globex, &globex.at(&node)] {
        member.get("/api/v1/projects").await.expect(200); // warm
    }
    let suspended = operator.ask("POST", &format!("{TENANTS}/{}/suspend", acme.tenant)).await.expect(200);
    assert_eq!(suspended.text("status"), "suspended");
    for ask in [acme.get("/api/v1/tenant"), acme.get(&format!("/api/v1/projects/{project}")), acme.post("/api/v1/projects", &json!({}))] {
        ask.await.problem("tenant-inactive");
    }
    let took = time_to_refusal(&there).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    globex.get("/api/v1/projects").await.expect(200);

    // No operation on the other node brings it back, until it is resumed.
    operator.at(&node).get(&format!("{TENANTS}/{}", acme.tenant)).await.expect(200);
    there.get("/api/v1/projects").await.problem("tenant-inactive");
    operator.at(&node).ask("POST", &format!("{TENANTS}/{}/resume", acme.slug)).await.expect(200);
    there.get(&format!("/api/v1/projects/{project}")).await.expect(200);
    let since = Instant::now();
    while acme.get("/api/v1/projects").await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(1), "it is resumed everywhere within a second");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_archived_tenant_is_refused_and_its_data_kept() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let project = acme.project("kept").await;
    app.operator().delete(&format!("{TENANTS}/{}", acme.tenant)).await.expect(204);
    acme.get("/api/v1/projects").await.problem("tenant-inactive");
    globex.get("/api/v1/projects").await.expect(200);
    for verb in ["suspend", "resume"] {
        app.operator().ask("POST", &format!("{TENANTS}/{}/{verb}", acme.tenant)).await.expect(200);
    }
    acme.get(&format!("/api/v1/projects/{project}")).await.expect(200);
}

#[tokio::test]
async fn slugs_are_unique_labels_and_no_reserved_words() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let make = |slug: &str| operator.post(TENANTS, &json!({ "slug": slug, "name": "x" }));
    for good in ["abc", "a-b", "a1b2", &"a".repeat(40)] {
        make(good).await.expect(201);
        make(good).await.problem("conflict");
    }
    operator.create("other").await;
    operator.patch(&format!("{TENANTS}/other"), &json!({ "slug": "abc" })).await.problem("conflict");
    let before = app.db_everything().await;
    let long = "a".repeat(41);
    let bad = ["", "ab", &long, "Acme", "-ab", "ab-", "1ab", "a_b", "a.b", "a b", "xn--abc", "ab--c", "äbc", "a\0b", "../x", "a'; --"];
    for slug in bad.iter().chain(TenantSlug::RESERVED) {
        make(slug).await.invalid("slug");
        operator.patch(&format!("{TENANTS}/other"), &json!({ "slug": slug })).await.invalid("slug");
        operator.get(&format!("{TENANTS}/{}", slug.replace([' ', '\0', '\'', 'ä'], "%20"))).await;
    }
    assert_eq!(app.db_everything().await, before);
    for gone in ["nobody", ABSENT, "%20", "www", "0198c0de00007000800000000000dead"] {
        operator.get(&format!("{TENANTS}/{gone}")).await.problem("not-found");
    }
}

#[tokio::test]
async fn every_bound_of_a_tenant_is_kept() {
    let app = TestApp::start().await;
    let operator = app.operator();
    operator.create("acme").await;
    let big = |bytes: usize| json!({ "text": "x".repeat(bytes - br#"{"text":""}"#.len()) });
    let before = app.db_everything().await;
    let bad = [
        ("name", json!("")),
        ("name", json!("x".repeat(201))),
        ("name", json!(" x")),
        ("name", json!("a\nb")),
        ("name", json!("a\u{0}")),
        ("name", json!(7)),
        ("name", Value::Null),
        ("slug", json!(["acme"])),
        ("slug", Value::Null),
        ("plan", json!("")),
        ("plan", json!("Gold")),
        ("plan", json!("x".repeat(65))),
        ("plan", Value::Null),
        ("branding", json!([])),
        ("branding", json!("x")),
        ("branding", Value::Null),
        ("branding", big(16 * 1024 + 1)),
        ("branding", json!({ "a": { "b": "\u{0}" } })),
        ("flags", json!(true)),
        ("flags", Value::Null),
        ("flags", big(16 * 1024 + 1)),
        ("flags", json!({ "\u{0}": 1 })),
        ("status", json!("suspended")),
        ("status", Value::Null),
        ("provision", json!("yes")),
        ("id", json!(ABSENT)),
        ("version", json!(1)),
        ("tenant_id", json!(ABSENT)),
        ("created_at", json!("2020-01-01T00:00:00Z")),
    ];
    for (field, value) in bad {
        let mut new = json!({ "slug": "fresh", "name": "x" });
        new[field] = value.clone();
        operator.post(TENANTS, &new).await.invalid(field);
        operator.patch(&format!("{TENANTS}/acme"), &json!({ field: value })).await.invalid(field);
    }
    for missing in [json!({}), json!({ "slug": "fresh" }), json!({ "name": "x" })] {
        operator.post(TENANTS, &missing).await.invalid("body");
    }
    assert_eq!(app.db_everything().await, before);
    let most = json!({ "slug": "fresh", "name": "é".repeat(200), "plan": "free", "branding": big(16 * 1024), "flags": big(16 * 1024) });
    let made = operator.post(TENANTS, &most).await.expect(201).json();
    assert_eq!((&made["name"], &made["branding"], &made["plan"]), (&most["name"], &most["branding"], &most["plan"]));
}
