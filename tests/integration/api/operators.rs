//! Operators over HTTP: what each role may do on every route of the served document, and that a change of an operator counts at once.

use harness::actors::{Actor, Ask, Operator};
use harness::app::{Folder, TestApp};
use harness::program::{command, run};
use serde_json::{Value, json};

use super::ABSENT;

const ROLES: [&str; 3] = ["viewer", "support", "admin"];

/// Every operation for operators: method, path with names of nothing, and the role that it needs.
async fn operations(app: &TestApp) -> Vec<(String, String, String)> {
    let document = app.stranger().get("/openapi.json").await.expect(200).json();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods").iter().filter(|(_, o)| o["security"] == json!([{ "operator": [] }])) {
            let path = path.split('/').map(|part| if part.starts_with('{') { ABSENT } else { part }).collect::<Vec<_>>().join("/");
            all.push((method.to_uppercase(), path, operation["x-operator-role"].as_str().expect("a role").to_owned()));
        }
    }
    all
}

#[tokio::test]
async fn each_role_may_call_what_the_table_says_and_nothing_else() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let (mut allowed, mut refused) = (0, 0);
    for (n, role) in ROLES.iter().enumerate() {
        let (who, _) = app.operator().add(&format!("the-{role}"), role).await;
        for (method, path, needed) in operations(&app).await {
            let reply = who.ask(&method, &path).json(&json!({})).await;
            if n < ROLES.iter().position(|role| *role == needed).expect("a role") {
                let problem = reply.problem("forbidden");
                assert_eq!(problem["detail"], format!("this needs the operators' role {needed}"), "{role}: {method} {path}");
                refused += 1;
            } else {
                assert!(!matches!(reply.status, 401 | 403 | 405) && reply.status < 500, "{role}: {method} {path}: {reply:?}");
                allowed += 1;
            }
            // Neither a tenant's token nor none is any operator's.
            acme.ask(&method, &path).json(&json!({})).await.problem("unauthenticated");
            app.stranger().ask(&method, &path).json(&json!({})).await.problem("unauthenticated");
        }
    }
    eprintln!("{allowed} allowed, {refused} refused");
    assert!(allowed > 30 && refused > 20, "{allowed} {refused}");
}

#[tokio::test]
async fn each_route_of_the_tenants_refuses_operators_tokens() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let (admin, _) = app.operator().add("ada", "admin").await;
    for path in ["/api/v1/tenant", "/api/v1/projects", "/api/v1/members", "/api/v1/audit", "/api/v1/me"] {
        admin.get(path).await.problem("unauthenticated");
        admin.get(path).with("x-tenant-id", acme.tenant.as_str()).await.problem("unauthenticated");
        acme.get(path).await.expect(200); // the control
    }
}

/// The walk of `docs/operators.md`.
#[tokio::test]
async fn add_show_change_rotate_and_disable() {
    let (app, _, _) = TestApp::with_tenants().await;
    let root = app.operator();
    let body = json!({ "name": "Ada", "email": "Ada@Example.com", "role": "support", "expires_in_days": 7 });
    let key = |ask: Ask| ask.with("idempotency-key", "once");
    let made = key(root.post("/api/v1/operators", &body)).await.expect(201);
    let (path, token) = (made.header("location").to_owned(), made.text("token"));
    assert!(token.starts_with("tno_") && made.text("email") == "ada@example.com", "{made:?}");
    // A second answer is the first one without the token, which nobody has kept.
    let again = key(root.post("/api/v1/operators", &body)).await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), &again.json()["token"], again.text("id")), ("true", &Value::Null, made.text("id")));
    let everything = app.db_everything().await;
    assert!(!everything.values().flatten().any(|row| row.contains(&token[4..])), "a token is kept");
    assert!(everything.values().flatten().any(|row| row.contains("ada@example.com")), "the control: what is kept is seen");
    root.post("/api/v1/operators", &body).await.problem("conflict");

    let ada = root.with_token(&token);
    ada.get("/api/v1/tenants").await.expect(200);
    ada.get(&path).await.problem("forbidden");
    let shown = root.get(&path).await.expect(200);
    assert!(shown.header("etag") == "\"1\"" && shown.json()["last_used_at"].is_string() && shown.json().get("token").is_none());
    root.get(&path).with("if-none-match", "\"1\"").await.expect(304);
    root.get(&format!("/api/v1/operators/{ABSENT}")).await.problem("not-found");

    // A role counts at the next request.
    let raised = root.patch(&path, &json!({ "role": "admin" })).with("if-match", "\"1\"").await.expect(200);
    assert_eq!((raised.header("etag"), raised.text("role").as_str()), ("\"2\"", "admin"));
    ada.get(&path).await.expect(200);
    root.patch(&path, &json!({ "role": "viewer" })).with("if-match", "\"1\"").await.problem("version-mismatch");
    root.patch(&path, &json!({ "role": "viewer" })).await.expect(200);
    ada.get(&path).await.problem("forbidden");

    // Another token, and the first one is none any more.
    let rotated = root.post(&format!("{path}/token"), &json!({})).await.expect(200);
    ada.get("/api/v1/tenants").await.problem("unauthenticated");
    let ada = root.with_token(&rotated.text("token"));
    ada.get("/api/v1/tenants").await.expect(200);

    for _ in 0..2 {
        root.delete(&path).await.expect(204);
        ada.get("/api/v1/tenants").await.problem("unauthenticated");
    }
    root.post(&format!("{path}/token"), &json!({})).await.problem("conflict");
    // Enabled again, the old token stays dead.
    root.patch(&path, &json!({ "disabled": false })).await.expect(200);
    ada.get("/api/v1/tenants").await.problem("unauthenticated");
    let back = root.post(&format!("{path}/token"), &json!({ "expires_in_days": 1 })).await.expect(200);
    root.with_token(&back.text("token")).get("/api/v1/tenants").await.expect(200);
}

#[tokio::test]
async fn a_token_that_has_ended_is_none_and_events_name_who_it_was_of() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let (ada, id) = app.operator().add("ada", "admin").await;
    let at = format!("/api/v1/tenants/{}", acme.tenant);
    ada.patch(&at, &json!({ "name": "Acme & Co" })).await.expect(200);
    app.operator().patch(&at, &json!({ "name": "Acme" })).await.expect(200);
    let log = app.operator().get(&format!("{at}/audit?action=tenant.update")).await.expect(200).json();
    let who: Vec<&Value> = log["items"].as_array().expect("events").iter().map(|event| &event["actor_id"]).collect();
    assert_eq!(who, [&json!("operator"), &json!(id)]);
    // Every event that she has caused has her id: not one is the system's.
    let sql = "select string_agg(distinct action || ' ' || actor_kind, ', ' order by action || ' ' || actor_kind) from tenancy.audit_events where actor_id = $1";
    let caused: Option<String> = sqlx::query_scalar(sql).bind(&id).fetch_one(&mut app.db_eye().await).await.expect("events");
    assert_eq!(caused.as_deref(), Some("system.access operator, tenant.update operator"));

    let end = "update tenancy.operators set expires_at = now() where id = $1::uuid";
    sqlx::query(end).bind(&id).execute(&mut app.db_eye().await).await.expect("ended");
    let ended = ada.get(&at).await;
    ended.problem("unauthenticated");
    // It answers as a token that never was one.
    let never = ada.with_token(&format!("tno_{}", "0".repeat(43))).get(&at).await;
    assert_eq!(ended.comparable(), never.comparable());
}

#[tokio::test]
async fn bad_operators_are_refused_by_field_and_an_admin_is_left() {
    let app = TestApp::start().await;
    let root = app.operator();
    let good = json!({ "name": "Ada", "email": "ada@example.com", "role": "admin" });
    for (field, value) in [
        ("name", json!(" ")),
        ("email", json!("ada@b")),
        ("role", json!("owner")),
        ("expires_in_days", json!(0)),
        ("expires_in_days", json!(367)),
        ("expires_in_days", Value::Null),
        ("token", json!("tno_mine")),
    ] {
        let mut body = good.clone();
        body[field] = value;
        root.post("/api/v1/operators", &body).await.invalid(field);
    }
    let (ada, id) = root.add("ada", "admin").await;
    let path = format!("/api/v1/operators/{id}");
    ada.delete(&path).await.problem("conflict");
    ada.patch(&path, &json!({ "role": "support" })).await.problem("conflict");
    let (bob, bobs) = ada.add("bob", "admin").await;
    ada.patch(&path, &json!({ "role": "support" })).await.expect(200);
    ada.get(&path).await.problem("forbidden");
    bob.delete(&format!("/api/v1/operators/{bobs}")).await.problem("conflict");
    // Whoever has the bootstrap credential can always make another one.
    root.delete(&format!("/api/v1/operators/{bobs}")).await.expect(204);
    let page = root.get("/api/v1/operators?limit=1").await.expect(200).json();
    let rest = root.get(&format!("/api/v1/operators?cursor={}", page["next_cursor"].as_str().expect("more"))).await.expect(200).json();
    assert_eq!(
        (&page["items"][0]["name"], &rest["items"][0]["name"], rest["items"].as_array().map(Vec::len)),
        (&json!("bob"), &json!("ada"), Some(1))
    );
}

/// An operator is found by the digest alone, at any node, and one without administrative credentials has no such routes.
#[tokio::test]
async fn a_disabled_operator_is_refused_at_every_node_at_once() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let (ada, id) = app.operator().add("ada", "viewer").await;
    let at = |who: &Operator| who.at(&node).get("/api/v1/tenants");
    at(&ada).await.expect(200);
    app.operator().delete(&format!("/api/v1/operators/{id}")).await.expect(204);
    at(&ada).await.problem("unauthenticated");
}

#[tokio::test]
async fn the_command_line_adds_lists_and_disables() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let verb = |args: &[&str]| {
        let mut command = command(&folder, args);
        command.env("DATABASE_URL", app.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", app.database.admin_url());
        run(command)
    };
    let (made, out, err) = verb(&["operator", "create", "ada@example.com", "--role", "admin", "--days", "1", "--json"]);
    assert!(made.status.success(), "{err}");
    let made: Value = serde_json::from_str(&out).expect("JSON");
    let (ada, id) = (app.operator().with_token(made["token"].as_str().expect("a token")), made["operator"]["id"].as_str().expect("an id"));
    ada.get(&format!("/api/v1/operators/{id}")).await.expect(200);
    let (listed, out, _) = verb(&["operator", "list"]);
    assert!(listed.status.success() && out.contains(id) && !out.contains("tno_"), "{out}");
    let (disabled, out, err) = verb(&["operator", "disable", id]);
    assert!(disabled.status.success() && out.contains("disabled"), "{out} {err}");
    ada.get("/api/v1/tenants").await.problem("unauthenticated");
    for (args, says) in [
        (&["operator", "create", "eve@example.com", "--role", "owner"][..], "viewer, support or admin"),
        (&["operator", "create", "eve@example.com", "--role", "viewer", "--days", "0"], "1 to 366"),
        (&["operator", "disable", ABSENT], "no such"),
    ] {
        let (failed, out, err) = verb(args);
        assert!(!failed.status.success() && out.is_empty() && err.contains(says), "{args:?}: {out} {err}");
    }
}
