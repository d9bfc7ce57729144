//! Documents, and who may do what with them.

use harness::actors::{Actor, Ask, Member};
use harness::app::TestApp;
use serde_json::{Value, json};

use super::ABSENT;
use super::projects::ids;

#[tokio::test]
async fn each_tenant_has_its_own() {
    let (_app, acme, globex) = TestApp::with_tenants().await;
    for (member, other) in [(&acme, &globex), (&globex, &acme)] {
        let (project, empty) = (member.project("full").await, member.project("empty").await);
        let mut made = Vec::new();
        for n in 0..3 {
            made.insert(0, member.document(&project, &format!("{}'s {n}", member.slug)).await);
        }
        let list = format!("/api/v1/projects/{project}/documents");
        assert_eq!(ids(member, &list).await, made);
        assert!(ids(member, &format!("/api/v1/projects/{empty}/documents")).await.is_empty());
        let page = member.get(&list).await.expect(200);
        assert!(page.json()["items"][0].get("content").is_none(), "a list leaves contents out");
        page.is_silent_about([&other.tenant, &other.slug, &other.name]);

        let path = format!("/api/v1/documents/{}", made[0]);
        let shown = member.get(&path).await.expect(200);
        assert_eq!((shown.text("content").as_str(), shown.text("project_id")), ("text", project.clone()));
        member.get(&path).with("if-none-match", shown.header("etag")).await.expect(304);
        let changed = member.patch(&path, &json!({ "content": "" })).with("if-match", "\"1\"").await.expect(200).json();
        assert_eq!((&changed["content"], &changed["version"]), (&json!(""), &json!(2)));
        member.patch(&path, &json!({ "title": "late" })).with("if-match", "\"1\"").await.problem("version-mismatch");
        member.delete(&path).with("if-match", "\"1\"").await.problem("version-mismatch");
        member.delete(&path).with("if-match", "\"2\"").await.expect(204);
        member.get(&path).await.problem("not-found");

        // With the project goes all that is in it.
        member.attach(&made[1], "a.txt", b"content").await.expect(201);
        member.delete(&format!("/api/v1/projects/{project}")).await.expect(204);
        member.get(&format!("/api/v1/documents/{}", made[1])).await.problem("not-found");
        member.get(&format!("/api/v1/documents/{}/attachments/a.txt", made[1])).await.problem("not-found");
        member.get(&list).await.problem("not-found");
        member.post(&format!("/api/v1/projects/{ABSENT}/documents"), &json!({ "title": "x" })).await.problem("not-found");
    }
}

#[tokio::test]
async fn bounds_are_kept() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (project, theirs) = (acme.project("mine").await, globex.project("theirs").await);
    let document = acme.document(&project, "plain").await;
    let before = app.db_everything().await;
    let bad = [
        ("title", json!("")),
        ("title", json!("x".repeat(201))),
        ("title", json!("a\u{7f}")),
        ("title", json!(false)),
        ("title", Value::Null),
        ("content", json!("x".repeat(50_001))),
        ("content", json!("\u{0}")),
        ("content", json!([])),
        ("content", Value::Null),
        ("project_id", json!(theirs)),
        ("tenant_id", json!(globex.tenant)),
        ("id", json!(ABSENT)),
    ];
    for (field, value) in bad {
        let mut new = json!({ "title": "x" });
        new[field] = value.clone();
        acme.post(&format!("/api/v1/projects/{project}/documents"), &new).await.invalid(field);
        acme.patch(&format!("/api/v1/documents/{document}"), &json!({ field: value })).await.invalid(field);
    }
    assert_eq!(app.db_everything().await, before);
    let most = json!({ "title": "é".repeat(200), "content": "x".repeat(50_000) });
    acme.post(&format!("/api/v1/projects/{project}/documents"), &most).await.expect(201);
}

/// Every operation of a member, and the least role that may do it.
fn operations(member: &Member, project: &str, document: &str) -> Vec<(&'static str, Ask)> {
    let (project, document) = (format!("/api/v1/projects/{project}"), format!("/api/v1/documents/{document}"));
    let attachment = format!("{document}/attachments/a.txt");
    vec![
        ("viewer", member.get("/api/v1/tenant")),
        ("viewer", member.get("/api/v1/projects")),
        ("viewer", member.get(&project)),
        ("viewer", member.get(&format!("{project}/documents"))),
        ("viewer", member.get(&document)),
        ("viewer", member.get(&format!("{document}/attachments"))),
        ("viewer", member.get(&attachment)),
        ("member", member.post("/api/v1/projects", &json!({ "name": "x" }))),
        ("member", member.patch(&project, &json!({ "name": "x" }))),
        ("member", member.post(&format!("{project}/documents"), &json!({ "title": "x" }))),
        ("member", member.patch(&document, &json!({ "title": "x" }))),
        ("member", member.put(&attachment, "x")),
        ("member", member.delete(&attachment)),
        ("member", member.delete(&document)),
        ("admin", member.delete(&project)),
    ]
}

#[tokio::test]
async fn each_role_may_do_its_own_and_no_more() {
    const ROLES: [&str; 4] = ["viewer", "member", "admin", "owner"];
    let (app, acme, globex) = TestApp::with_tenants().await;
    for role in ROLES {
        for owner in [&acme, &globex] {
            let project = owner.project("mine").await;
            let document = owner.document(&project, "mine").await;
            owner.attach(&document, "a.txt", b"x").await.expect(201);
            let rank = |role: &str| ROLES.iter().position(|other| *other == role);
            let before = app.db_everything().await;
            let (allowed, refused): (Vec<_>, Vec<_>) =
                operations(&owner.role(role), &project, &document).into_iter().partition(|(least, _)| rank(least) <= rank(role));
            for (_, ask) in refused {
                ask.await.problem("forbidden");
            }
            assert_eq!(app.db_everything().await, before, "{role} wrote something");
            for (_, ask) in allowed {
                let reply = ask.await;
                assert!(reply.status < 300, "{role}: {reply:?}");
            }
        }
    }
    // A token without a role is a service's: it has scopes, and here none is enough.
    let mut claims = acme.claims();
    claims.as_object_mut().expect("claims").remove("role");
    acme.ask_with(&claims, "GET", "/api/v1/projects").await.problem("forbidden");
    acme.ask_with(&claims, "DELETE", &format!("/api/v1/projects/{ABSENT}")).await.problem("forbidden");
}

#[tokio::test]
async fn deletions_are_in_the_audit_log_of_their_tenant() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    for member in [&acme, &globex] {
        let project = member.project("gone").await;
        let document = member.document(&project, "gone").await;
        member.attach(&document, "gone.txt", b"x").await.expect(201);
        for path in [format!("documents/{document}/attachments/gone.txt"), format!("documents/{document}"), format!("projects/{project}")] {
            let id = uuid::Uuid::now_v7().to_string();
            member.delete(&format!("/api/v1/{path}")).with("x-request-id", id.as_str()).await.expect(204);
            let events: Vec<(String, String, Option<String>)> =
                sqlx::query_as("select tenant_id::text, action, actor_id from tenancy.audit_events where request_id = $1::uuid")
                    .bind(&id)
                    .fetch_all(&mut app.db_eye().await)
                    .await
                    .expect("events");
            assert_eq!(events.len(), 1, "{path}");
            let (tenant, action, actor) = &events[0];
            assert_eq!((tenant, actor.as_deref()), (&member.tenant, Some("the-owner")));
            assert!(action.ends_with(".delete"), "{action}");
        }
    }
}
