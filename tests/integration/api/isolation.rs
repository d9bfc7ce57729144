//! Another tenant's things answer exactly as things that don't exist, on every route and with every verb.

use std::collections::BTreeSet;

use harness::actors::{Actor, Ask, Member};
use harness::app::TestApp;
use serde_json::json;
use sqlx::Executor;
use tenancy_core::ErrorKind;

use super::ABSENT;

/// What a tenant has, one of each.
struct Things {
    project: String,
    document: String,
    name: String,
}

async fn things(member: &Member) -> Things {
    let project = member.project(&format!("{}'s canary project", member.slug)).await;
    let document = member.document(&project, &format!("{}'s canary document", member.slug)).await;
    let name = format!("{}-canary.txt", member.slug);
    member.attach(&document, &name, format!("{}'s canary content", member.slug).as_bytes()).await.expect(201);
    Things { project, document, name }
}

/// Every word that tells of a tenant.
fn canaries(member: &Member, things: &Things) -> Vec<String> {
    let plain = |id: &str| id.replace('-', "");
    vec![
        member.tenant.clone(),
        plain(&member.tenant),
        member.slug.clone(),
        member.name.clone(),
        "canary".to_owned(),
        things.project.clone(),
        plain(&things.project),
        things.document.clone(),
        plain(&things.document),
        things.name.clone(),
    ]
}

/// Every request that names a thing, with the place for the names of another.
fn attempts(me: &Member, to: &Things) -> Vec<(String, Ask)> {
    let (project, document) = (format!("/api/v1/projects/{}", to.project), format!("/api/v1/documents/{}", to.document));
    let attachment = format!("{document}/attachments/{}", to.name);
    let mut all = Vec::new();
    for path in [project.clone(), document.clone(), attachment, format!("{project}/documents"), format!("{document}/attachments")] {
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "LINK"] {
            all.push((method, me.ask(method, &path)));
        }
        for method in ["POST", "PATCH", "PUT"] {
            // What each of them takes, so that it gets as far as it can.
            let body = match method {
                "POST" => json!({ "title": "planted" }),
                _ if path == project => json!({ "name": "planted", "description": "planted" }),
                _ => json!({ "title": "planted", "content": "planted" }),
            };
            all.push((method, me.ask(method, &path).json(&body)));
        }
        all.push(("GET if-none-match", me.get(&path).with("if-none-match", "*")));
        all.push(("DELETE if-match", me.delete(&path).with("if-match", "\"1\"")));
        all.push(("PATCH if-match", me.patch(&path, &json!({})).with("if-match", "\"7\"")));
        all.push(("POST once", me.post(&path, &json!({ "title": "planted" })).with("idempotency-key", "once")));
        all.push(("GET page", me.get(&format!("{path}?limit=1"))));
    }
    all.into_iter().enumerate().map(|(n, (what, ask))| (format!("{n} {what}"), ask)).collect()
}

/// How `me` can tell the `other`'s things from things that don't exist, and what was written.
async fn crossings(app: &TestApp, me: &Member, other: &Member, theirs: &Things) -> Vec<String> {
    let mut found = Vec::new();
    let absent = Things { project: ABSENT.to_owned(), document: ABSENT.to_owned(), name: theirs.name.clone() };
    let before = app.db_everything().await;
    let canaries = canaries(other, theirs);
    for ((what, foreign), (_, absent)) in attempts(me, theirs).into_iter().zip(attempts(me, &absent)) {
        let (foreign, absent) = (foreign.await, absent.await);
        if foreign.comparable() != absent.comparable() {
            found.push(format!("{what}: {foreign:?} is not {absent:?}"));
        }
        if !(400..500).contains(&foreign.status) {
            found.push(format!("{what} was done: {foreign:?}"));
        }
        let text = String::from_utf8_lossy(&foreign.bytes).to_lowercase();
        found.extend(canaries.iter().filter(|word| text.contains(&word.to_lowercase())).map(|word| format!("{what} tells {word}")));
    }
    for list in ["/api/v1/tenant", "/api/v1/projects"] {
        let text = String::from_utf8_lossy(&me.get(list).await.expect(200).bytes).to_lowercase();
        // The word `canary` is in each tenant's own things too.
        let theirs = canaries.iter().filter(|word| *word != "canary" && text.contains(&word.to_lowercase()));
        found.extend(theirs.map(|word| format!("{list} tells {word}")));
    }
    if app.db_everything().await != before {
        found.push("something was written".to_owned());
    }
    found
}

#[tokio::test]
async fn another_tenants_things_are_absent_things() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (of_acme, of_globex) = (things(&acme).await, things(&globex).await);
    for role in ["owner", "viewer"] {
        assert_eq!(crossings(&app, &acme.role(role), &globex, &of_globex).await, [""; 0]);
        assert_eq!(crossings(&app, &globex.role(role), &acme, &of_acme).await, [""; 0]);
    }
    // Things of one's own and of another in one path.
    let mixed = format!("/api/v1/documents/{}/attachments/{}", of_acme.document, of_globex.name);
    acme.get(&mixed).await.problem("not-found");
    acme.put(&format!("/api/v1/documents/{}/attachments/{}", of_globex.document, of_acme.name), "x").await.problem("not-found");
}

#[tokio::test]
async fn control_a_thing_that_crosses_is_seen() {
    let (mut app, acme, globex) = TestApp::with_tenants().await;
    app.will_not_balance("the crossing requests write");
    let of_globex = things(&globex).await;
    // What a missing `where` and a missing policy would do: the row is there for the other tenant.
    let mut eye = app.db_eye().await;
    let give = format!(
        "insert into projects select '{}', id, name, description, created_at, updated_at, version from projects where id = '{}'",
        acme.tenant, of_globex.project
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(give)).execute(&mut eye).await.expect("crossed");
    let found = crossings(&app, &acme, &globex, &of_globex).await.join("\n");
    for expected in ["is not", "was done", "tells", "something was written"] {
        assert!(found.contains(expected), "the detector is blind to {expected:?}: {found}");
    }
}

const WITHOUT_FENCE: &str = "alter table projects disable row level security; alter table documents disable row level security;
     alter table attachments disable row level security; alter table idempotency_keys disable row level security";

/// What each of two tenants made under the same key, and what each of them gets when it asks again.
async fn same_key_of_two_tenants(acme: &Member, globex: &Member) -> ([String; 2], [String; 2]) {
    let make = async |member: &Member| {
        let ask = member.post("/api/v1/projects", &json!({ "name": "same" })).with("idempotency-key", "same");
        ask.await.expect(201).text("id")
    };
    ([make(globex).await, make(acme).await], [make(globex).await, make(acme).await])
}

#[tokio::test]
async fn a_key_recalls_ones_own_answer() {
    let (_app, acme, globex) = TestApp::with_tenants().await;
    let (made, recalled) = same_key_of_two_tenants(&acme, &globex).await;
    assert_eq!(recalled, made);
}

#[tokio::test]
async fn control_without_the_fence_what_relies_on_it_leaks_and_what_names_the_tenant_does_not() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let of_globex = things(&globex).await;
    app.db_eye().await.execute(WITHOUT_FENCE).await.expect("switch the protection off");
    // The queries of projects, documents and attachments name the tenant themselves: two locks, and one is enough.
    assert_eq!(crossings(&app, &acme, &globex, &of_globex).await, [""; 0]);
    // Those that keep and recall the answer of a key rely on the fence alone.
    let (made, recalled) = same_key_of_two_tenants(&acme, &globex).await;
    assert_ne!(recalled, made, "the detector is blind");
    // And no server starts on such a database.
    let refused = tenancy_server::Running::start(&app.config).await.expect_err("an unprotected table");
    assert_eq!(refused.kind(), ErrorKind::Misconfigured, "{refused}");
}

#[tokio::test]
async fn hints_beside_the_token_change_nothing() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (of_acme, of_globex) = (things(&acme).await, things(&globex).await);
    let before = app.db_everything().await;
    let plain = acme.get("/api/v1/projects").await.expect(200);
    assert!(plain.json()["items"][0]["id"] == of_acme.project);
    for header in ["x-tenant-id", "x-tenant", "tenant-id", "x-forwarded-host", "forwarded", "x-original-url", "x-forwarded-user", "cookie"]
    {
        for value in [&globex.tenant, &globex.slug, &format!("tenant_id={}", globex.tenant), &format!("host={}.example.com", globex.slug)] {
            let hinted = acme.get("/api/v1/projects").with(header, value.as_str()).await;
            assert_eq!(hinted.comparable(), plain.comparable(), "{header}: {value}");
        }
    }
    for query in ["tenant_id", "tenant", "tenantId"] {
        acme.get(&format!("/api/v1/projects?{query}={}", globex.tenant)).await.invalid(query);
    }
    acme.get(&format!("/api/v1/tenants/{}/projects", globex.tenant)).await.problem("no-such-path");
    acme.post("/api/v1/projects", &json!({ "name": "x", "tenant_id": globex.tenant })).await.invalid("tenant_id");
    acme.get("/api/v1/projects").await.is_silent_about(canaries(&globex, &of_globex).iter().filter(|word| *word != "canary"));
    assert_eq!(app.db_everything().await, before);
}

#[tokio::test]
async fn operators_and_members_keep_to_their_own_side() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let of_acme = things(&acme).await;
    let before = app.db_everything().await;
    let absent = Things { project: ABSENT.to_owned(), document: ABSENT.to_owned(), name: "x".to_owned() };
    let operator = app.operator();
    let mut answers = BTreeSet::new();
    // The operator's token proves no tenant.
    for to in [&of_acme, &absent] {
        for path in [
            "/api/v1/tenant".to_owned(),
            "/api/v1/projects".to_owned(),
            format!("/api/v1/projects/{}", to.project),
            format!("/api/v1/documents/{}", to.document),
            format!("/api/v1/documents/{}/attachments/{}", to.document, to.name),
        ] {
            let reply = operator.get(&path).await;
            reply.problem("unauthenticated");
            answers.insert(reply.comparable());
        }
    }
    assert_eq!(answers.len(), 1);
    operator.post("/api/v1/projects", &json!({ "name": "x" })).await.problem("unauthenticated");
    // A member's token proves no operator, and the answer doesn't say which tenants there are.
    let mut answers = BTreeSet::new();
    for role in ["viewer", "member", "admin", "owner"] {
        for tenant in [acme.tenant.as_str(), &globex.tenant, &globex.slug, ABSENT, "nobody"] {
            let (member, path) = (acme.role(role), format!("/api/v1/tenants/{tenant}"));
            for ask in [
                member.get("/api/v1/tenants"),
                member.get(&format!("/api/v1/tenants?search={tenant}")),
                member.post("/api/v1/tenants", &json!({ "slug": "mine", "name": "x" })),
                member.get(&path),
                member.patch(&path, &json!({ "name": "x" })),
                member.delete(&path),
                member.ask("POST", &format!("{path}/suspend")),
                member.ask("POST", &format!("{path}/resume")),
            ] {
                let reply = ask.await;
                reply.problem("unauthenticated");
                assert_eq!(reply.header("www-authenticate"), "Bearer error=\"invalid_token\"");
                answers.insert(reply.comparable());
            }
        }
    }
    assert_eq!(answers.len(), 1);
    // A stranger's answer is the same whatever they ask for.
    let mut answers = BTreeSet::new();
    for path in [format!("/api/v1/projects/{}", of_acme.project), format!("/api/v1/projects/{ABSENT}"), "/api/v1/tenant".to_owned()] {
        let reply = app.stranger().get(&path).await;
        reply.problem("unauthenticated");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        answers.insert(reply.comparable());
    }
    assert_eq!(answers.len(), 1);
    app.stranger().get("/api/v1/tenants").await.problem("unauthenticated");
    assert_eq!(app.db_everything().await, before);
}
