//! Projects, for two tenants side by side.

use harness::actors::{Actor, Member};
use harness::app::TestApp;
use serde_json::{Value, json};

const PROJECTS: &str = "/api/v1/projects";

pub(super) async fn ids(member: &Member, list: &str) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = member.get(&format!("{list}?limit=2{cursor}")).await.expect(200).json();
        all.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].as_str().expect("id").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test]
async fn each_tenant_has_its_own() {
    let (_app, acme, globex) = TestApp::with_tenants().await;
    let (mut of_acme, mut of_globex) = (Vec::new(), Vec::new());
    for n in 0..5 {
        of_acme.insert(0, acme.project(&format!("acme's {n}")).await);
        of_globex.insert(0, globex.project(&format!("globex's {n}")).await);
    }
    assert_eq!(ids(&acme, PROJECTS).await, of_acme);
    assert_eq!(ids(&globex, PROJECTS).await, of_globex);

    for (member, mine, theirs) in [(&acme, &of_acme[0], &of_globex), (&globex, &of_globex[0], &of_acme)] {
        let path = format!("{PROJECTS}/{mine}");
        let shown = member.get(&path).await.expect(200);
        assert_eq!(shown.header("etag"), "\"1\"");
        member.get(&path).with("if-none-match", "\"1\"").await.expect(304);
        let changed = member.patch(&path, &json!({ "description": "lines\nare fine" })).with("if-match", "\"1\"").await.expect(200).json();
        assert_eq!((&changed["version"], &changed["name"]), (&json!(2), &shown.json()["name"]));
        member.patch(&path, &json!({ "name": "late" })).with("if-match", "\"1\"").await.problem("version-mismatch");
        member.delete(&path).with("if-match", "\"1\"").await.problem("version-mismatch");
        // The cursor of the other's list opens nothing: it is only a place in one's own.
        let page = member.get(&format!("{PROJECTS}?limit=1")).await.json();
        let cursor = page["next_cursor"].as_str().expect("more");
        member.get(&format!("{PROJECTS}?cursor={cursor}")).await.expect(200).is_silent_about(theirs);
        member.delete(&path).with("if-match", "\"2\"").await.expect(204);
        member.delete(&path).await.problem("not-found");
        member.get(&path).await.problem("not-found");
    }
    assert_eq!((ids(&acme, PROJECTS).await.len(), ids(&globex, PROJECTS).await.len()), (4, 4));
}

#[tokio::test]
async fn keys_of_two_tenants_and_of_two_members_never_meet() {
    let (_app, acme, globex) = TestApp::with_tenants().await;
    let make = |member: &Member, name: &str| member.post(PROJECTS, &json!({ "name": name })).with("idempotency-key", "the-same");
    let first = make(&acme, "one").await.expect(201);
    let other = make(&globex, "one").await.expect(201);
    let colleague = make(&acme.role("admin"), "two").await.expect(201);
    assert_eq!((other.header("idempotency-replayed"), colleague.header("idempotency-replayed")), ("", ""));
    assert_ne!(first.text("id"), other.text("id"));
    let again = make(&acme, "one").await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), &again.body), ("true", &first.body));
    make(&acme, "another").await.problem("conflict").to_string().contains("Idempotency-Key").then_some(()).expect("it says why");
    again.is_silent_about([&globex.tenant, &globex.slug]);
}

#[tokio::test]
async fn bounds_are_kept() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let project = globex.project("plain").await;
    acme.project("plain").await;
    let before = app.db_everything().await;
    let bad = [
        ("name", json!("")),
        ("name", json!("x".repeat(201))),
        ("name", json!("a\tb")),
        ("name", json!(" a")),
        ("name", json!({})),
        ("name", Value::Null),
        ("description", json!("x".repeat(4001))),
        ("description", json!("\u{0}")),
        ("description", json!(1)),
        ("description", Value::Null),
        ("id", json!(project)),
        ("tenant_id", json!(acme.tenant)),
        ("version", json!(9)),
        ("created_at", json!("now")),
    ];
    for (field, value) in bad {
        let mut new = json!({ "name": "x" });
        new[field] = value.clone();
        globex.post(PROJECTS, &new).await.invalid(field);
        globex.patch(&format!("{PROJECTS}/{project}"), &json!({ field: value })).await.invalid(field);
    }
    globex.post(PROJECTS, &json!({})).await.invalid("body");
    assert_eq!(app.db_everything().await, before);
    globex.post(PROJECTS, &json!({ "name": "é".repeat(200), "description": "é".repeat(4000) })).await.expect(201);
    let sql = json!({ "name": "'); drop table projects; --", "description": "$1 %s {{x}} <script>" });
    let made = globex.post(PROJECTS, &sql).await.expect(201);
    assert_eq!((&made.json()["name"], &made.json()["description"]), (&sql["name"], &sql["description"]));
}
