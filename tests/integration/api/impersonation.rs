//! Operators inside a tenant: what they can do there, what the tenant sees of it, and what ends it at the next request.

use std::time::{Duration, Instant};

use harness::actors::{Actor, Ask, Member, Operator};
use harness::app::TestApp;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::ABSENT;

/// A visit's token on the tenant's API: the member's requests with another credential.
struct Visit {
    member: Member,
    token: String,
    id: String,
}

impl Actor for Visit {
    fn ask(&self, method: &str, target: &str) -> Ask {
        self.member.ask(method, target).with("authorization", format!("Bearer {}", self.token))
    }
}

impl Visit {
    async fn wish(by: &Operator, of: &Member, wish: Value) -> Self {
        let made = by.post(&format!("/api/v1/tenants/{}/impersonate", of.tenant), &wish).await.expect(201);
        Self { member: of.clone(), token: made.text("token"), id: made.text("id") }
    }

    async fn start(by: &Operator, of: &Member) -> Self {
        Self::wish(by, of, json!({ "reason": "ticket 4711: the list is empty" })).await
    }
}

/// The tenant's events of visits, the oldest first: action, who and outcome.
async fn told(of: &Member) -> Vec<Value> {
    let log = of.role("owner").get("/api/v1/audit?limit=200").await.expect(200).json();
    let events = log["items"].as_array().expect("events").clone();
    events.into_iter().rev().filter(|event| event["action"].as_str().is_some_and(|action| action.starts_with("impersonation."))).collect()
}

/// The walk of `docs/operators.md`.
#[tokio::test]
async fn a_visit_reads_and_the_tenant_is_told_of_each_request() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (project, theirs) = (acme.project("acme's").await, globex.project("globex's").await);
    let (support, operator) = app.operator().add("sue", "support").await;
    let visit = Visit::start(&support, &acme).await;
    assert!(visit.token.starts_with("tni_"));

    let me = visit.get("/api/v1/me").await.expect(200).json();
    assert_eq!((&me["kind"], &me["subject"], &me["role"]), (&json!("operator"), &json!(operator), &json!("viewer")));
    assert_eq!(visit.get("/api/v1/projects").await.expect(200).json()["items"][0]["name"], "acme's");
    let request = "0196f0a0-0000-7000-8000-000000000001";
    visit.get(&format!("/api/v1/projects/{project}")).with("x-request-id", request).await.expect(200);
    visit.get(&format!("/api/v1/projects/{theirs}")).await.problem("not-found");
    let before = app.db_everything().await;
    visit.post("/api/v1/projects", &json!({ "name": "a secret name" })).await.problem("forbidden");
    visit.delete(&format!("/api/v1/projects/{project}")).await.problem("forbidden");
    for path in ["/api/v1/audit", "/api/v1/impersonations", "/api/v1/tenant/quotas", "/api/v1/impersonation-consent"] {
        visit.get(path).await.problem("forbidden"); // for the tenant's admins
    }
    visit.ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": true })).await.problem("forbidden");
    let after = app.db_everything().await;
    assert_eq!(before["projects"], after["projects"]);

    let events = told(&acme).await;
    let lines: Vec<String> = events
        .iter()
        .map(|e| format!("{} {} {} {}", e["action"].as_str().expect("text"), e["detail"]["method"], e["detail"]["route"], e["outcome"]))
        .collect();
    let line = |method: &str, route: &str, outcome: &str| format!("impersonation.request \"{method}\" \"{route}\" \"{outcome}\"");
    assert_eq!(
        lines[..7],
        [
            "impersonation.start null null \"done\"".to_owned(),
            line("GET", "/api/v1/me", "done"),
            line("GET", "/api/v1/projects", "done"),
            line("GET", "/api/v1/projects/{project}", "done"),
            line("GET", "/api/v1/projects/{project}", "denied"),
            line("POST", "/api/v1/projects", "denied"),
            line("DELETE", "/api/v1/projects/{project}", "denied"),
        ]
    );
    assert_eq!(lines.len(), 12);
    for event in &events {
        assert_eq!((&event["actor_kind"], &event["actor_id"], &event["target"]), (&json!("operator"), &json!(operator), &json!(visit.id)));
        assert_eq!(event["detail"]["reason"], "ticket 4711: the list is empty");
    }
    assert_eq!((&events[3]["request_id"], &events[3]["detail"]["status"]), (&json!(request), &json!(200)));
    let all = Value::Array(events).to_string();
    assert!(!all.contains("a secret name") && !all.contains(&theirs) && !all.contains(&visit.token[4..]), "{all}");
    assert!(told(&globex).await.is_empty());

    // Who, when and why, for the tenant's admins; and nobody keeps the token.
    acme.role("member").get("/api/v1/impersonations").await.problem("forbidden");
    let page = acme.role("admin").get("/api/v1/impersonations").await.expect(200).json();
    let seen = &page["items"][0];
    assert_eq!(
        (&seen["operator_name"], &seen["operator_id"], &seen["write"], &seen["ended_at"]),
        (&json!("sue"), &json!(operator), &json!(false), &Value::Null)
    );
    assert!(!after.values().flatten().any(|row| row.contains(&visit.token[4..])), "a token is kept");
    assert_eq!(globex.get("/api/v1/impersonations").await.expect(200).json()["items"], json!([]));
    let listed = support.get(&format!("/api/v1/tenants/{}/impersonations", acme.slug)).await.expect(200).json();
    assert_eq!(listed["items"][0], *seen);
}

#[tokio::test]
async fn what_ends_a_visit_counts_at_its_next_request() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let root = app.operator();
    let node = app.another_node().await;
    let (mut sue, sues) = root.add("sue", "support").await;
    let sql = async |sql: &'static str, id: &str| {
        sqlx::query(sql).bind(id).execute(&mut app.db_eye().await).await.expect("done");
    };
    for how in
        ["the tenant", "an operator", "time", "disabled", "lowered", "another token", "the operator's time", "forbidden", "suspended"]
    {
        let visit = Visit::start(&sue, &acme).await;
        let elsewhere = Visit { member: acme.at(&node), token: visit.token.clone(), id: visit.id.clone() };
        let other = Visit::start(&root, &globex).await;
        for visit in [&visit, &elsewhere, &other] {
            visit.get("/api/v1/projects").await.expect(200); // the control
        }
        let at = format!("/api/v1/operators/{sues}");
        match how {
            "the tenant" => {
                globex.delete(&format!("/api/v1/impersonations/{}", visit.id)).await.problem("not-found");
                acme.role("member").delete(&format!("/api/v1/impersonations/{}", visit.id)).await.problem("forbidden");
                visit.get("/api/v1/projects").await.expect(200);
                acme.role("admin").delete(&format!("/api/v1/impersonations/{}", visit.id)).await.expect(204);
                acme.delete(&format!("/api/v1/impersonations/{}", visit.id)).await.problem("not-found");
            }
            "an operator" => {
                let of = |tenant: &Member| format!("/api/v1/tenants/{}/impersonations/{}", tenant.slug, visit.id);
                sue.delete(&of(&globex)).await.problem("not-found");
                sue.delete(&of(&acme)).await.expect(204);
                sue.delete(&of(&acme)).await.problem("not-found");
            }
            "time" => sql("update tenancy.impersonations set created_at = created_at - interval '1 hour', expires_at = clock_timestamp() where id = $1::uuid", &visit.id).await,
            "disabled" => drop(root.delete(&at).await.expect(204)),
            "lowered" => drop(root.patch(&at, &json!({ "role": "viewer" })).await.expect(200)),
            "another token" => drop(root.post(&format!("{at}/token"), &json!({})).await.expect(200)),
            "the operator's time" => sql("update tenancy.operators set expires_at = clock_timestamp() where id = $1::uuid", &sues).await,
            "forbidden" => drop(acme.ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": false })).await.expect(200)),
            _ => drop(root.ask("POST", &format!("/api/v1/tenants/{}/suspend", acme.tenant)).await.expect(200)),
        }
        let refused = if how == "suspended" { "tenant-inactive" } else { "unauthenticated" };
        visit.get("/api/v1/projects").await.problem(refused);
        if how != "suspended" {
            elsewhere.get("/api/v1/projects").await.problem(refused); // another node hears of a suspension within a second
            let never = Visit { token: format!("tni_{}", "0".repeat(43)), ..Visit::start(&root, &globex).await };
            assert_eq!(visit.get("/api/v1/me").await.comparable(), never.get("/api/v1/me").await.comparable(), "{how}");
        }
        other.get("/api/v1/projects").await.expect(200);
        // As before, for the next one.
        match how {
            "disabled" => drop(root.patch(&at, &json!({ "disabled": false })).await.expect(200)),
            "lowered" => drop(root.patch(&at, &json!({ "role": "support" })).await.expect(200)),
            "forbidden" => drop(acme.ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": true })).await.expect(200)),
            "suspended" => drop(root.ask("POST", &format!("/api/v1/tenants/{}/resume", acme.tenant)).await.expect(200)),
            _ => {}
        }
        if ["disabled", "another token", "the operator's time"].contains(&how) {
            let again = root.post(&format!("{at}/token"), &json!({})).await.expect(200).text("token");
            // What began before stays over.
            visit.get("/api/v1/projects").await.problem("unauthenticated");
            sue = root.with_token(&again);
        }
    }
    let ends: Vec<Value> = told(&acme).await.into_iter().filter(|event| event["action"] == "impersonation.end").collect();
    let who: Vec<(&Value, &Value)> = ends.iter().map(|event| (&event["actor_kind"], &event["actor_id"])).collect();
    assert_eq!(who, [(&json!("member"), &json!("the-admin")), (&json!("operator"), &json!(sues))]);
}

#[tokio::test]
async fn who_may_visit_and_for_how_long() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let root = app.operator();
    let at = format!("/api/v1/tenants/{}/impersonate", acme.tenant);
    let wish = |more: Value| {
        let mut wish = json!({ "reason": "ticket 4711" });
        wish.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        wish
    };
    let ((viewer, _), (support, _), (admin, _)) =
        (root.add("vi", "viewer").await, root.add("su", "support").await, root.add("ad", "admin").await);
    viewer.post(&at, &wish(json!({}))).await.problem("forbidden");
    support.post(&at, &wish(json!({ "write": true }))).await.problem("forbidden");
    for (field, bad) in [
        ("reason", json!({ "reason": "why" })),
        ("ttl_minutes", json!({ "ttl_minutes": 61 })),
        ("ttl_minutes", json!({ "ttl_minutes": 0 })),
        ("ttl_minutes", json!({ "ttl_minutes": null })),
        ("role", json!({ "role": "owner" })),
    ] {
        support.post(&at, &wish(bad)).await.invalid(field);
    }
    support.post(&format!("/api/v1/tenants/{ABSENT}/impersonate"), &wish(json!({}))).await.problem("not-found");
    let hour = support.post(&at, &wish(json!({ "ttl_minutes": 60 }))).with("idempotency-key", "once").await.expect(201);
    let again = support.post(&at, &wish(json!({ "ttl_minutes": 60 }))).with("idempotency-key", "once").await.expect(201);
    assert_eq!((again.text("id"), &again.json()["token"], again.header("idempotency-replayed")), (hour.text("id"), &Value::Null, "true"));
    let time = |field: &str| hour.text(field).parse::<chrono::DateTime<chrono::Utc>>().expect("a time");
    let lasts = (time("expires_at") - time("created_at")).num_seconds();
    assert!((3599..=3600).contains(&lasts), "{lasts}");

    // A tenant that forbids it is left alone, by everybody.
    acme.role("member").ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": false })).await.problem("forbidden");
    acme.role("admin").ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": false })).await.expect(200);
    assert_eq!(acme.get("/api/v1/impersonation-consent").await.expect(200).json(), json!({ "allowed": false }));
    for who in [&support, &admin, &root] {
        assert_eq!(who.post(&at, &wish(json!({}))).await.problem("forbidden")["detail"], "the tenant does not let operators in");
    }
    acme.ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": true })).await.expect(200);
    support.post(&at, &wish(json!({}))).await.expect(201);
    root.ask("POST", &format!("/api/v1/tenants/{}/suspend", acme.tenant)).await.expect(200);
    support.post(&at, &wish(json!({}))).await.problem("tenant-inactive");
}

#[tokio::test]
async fn with_write_an_admin_is_a_member_and_never_more() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let (admin, operator) = app.operator().add("ada", "admin").await;
    let visit = Visit::wish(&admin, &acme, json!({ "reason": "ticket 4711", "write": true, "ttl_minutes": 5 })).await;
    assert_eq!(visit.get("/api/v1/me").await.expect(200).text("role"), "member");
    let project = visit.post("/api/v1/projects", &json!({ "name": "mended" })).await.expect(201).text("id");
    visit.patch(&format!("/api/v1/projects/{project}"), &json!({ "name": "mended again" })).await.expect(200);
    let body = json!({ "email": "eve@example.com", "name": "Eve", "role": "owner" });
    visit.post("/api/v1/members", &body).await.problem("forbidden");
    visit.ask("PUT", "/api/v1/impersonation-consent").json(&json!({ "allowed": true })).await.problem("forbidden");
    // Not an admin any more, not a writer any more.
    visit.get("/api/v1/projects").await.expect(200);
    app.operator().add("bob", "admin").await;
    app.operator().patch(&format!("/api/v1/operators/{operator}"), &json!({ "role": "support" })).await.expect(200);
    visit.get("/api/v1/projects").await.problem("unauthenticated");
}

/// Each kind of token on each kind of route.
#[tokio::test]
async fn the_token_of_a_visit_is_neither_an_operators_nor_another_tenants() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let visit = Visit::start(&app.operator(), &acme).await;
    let (operator, document) = (app.operator().with_token(&visit.token), app.stranger().get("/openapi.json").await.expect(200).json());
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in
            item.as_object().expect("methods").iter().filter(|(_, o)| o["security"] == json!([{ "operator": [] }])).map(|(m, _)| m)
        {
            let path = path.split('/').map(|part| if part.starts_with('{') { &acme.tenant } else { part }).collect::<Vec<_>>().join("/");
            operator.ask(&method.to_uppercase(), &path).json(&json!({})).await.problem("unauthenticated");
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
    let own = visit.get("/api/v1/tenant").await.expect(200);
    assert_eq!(own.json()["id"], acme.tenant.as_str());
    for header in ["x-tenant-id", "x-tenant", "x-forwarded-host"] {
        assert_eq!(visit.get("/api/v1/tenant").with(header, globex.slug.as_str()).await.comparable(), own.comparable());
    }
    // Two credentials are none.
    visit.get("/api/v1/tenant").and("authorization", format!("Bearer {}", visit.token)).await.problem("unauthenticated");
    visit.get("/api/v1/tenant").with("authorization", format!("Bearer {}x", visit.token)).await.problem("unauthenticated");
}

/// What can't be written into the tenant's log is not shown; and whatever is shown was written before.
#[tokio::test]
async fn without_its_event_there_is_no_answer() {
    use sqlx::Executor as _;
    let (app, acme, _) = TestApp::with_tenants().await;
    acme.project("canary").await;
    let visit = Visit::start(&app.operator(), &acme).await;
    visit.get("/api/v1/projects").await.expect(200);
    let mut eye = app.db_eye().await;
    let fail = "create function public.fails() returns trigger language plpgsql as $$ begin raise 'full' using errcode = '53100'; end $$;
                create trigger fails before insert on tenancy.audit_events for each row when (new.action = 'impersonation.request') execute function public.fails()";
    eye.execute(fail).await.expect("a log that is full");
    let refused = visit.get("/api/v1/projects").await;
    refused.problem("unavailable");
    refused.is_silent_about(["canary"]);
    acme.get("/api/v1/projects").await.expect(200);
    eye.execute("drop trigger fails on tenancy.audit_events; drop function public.fails()").await.expect("room");
    visit.get("/api/v1/projects").await.expect(200);
    assert_eq!(told(&acme).await.len(), 3);
}

/// Whoever hangs up has perhaps heard the answer: the event is written all the same.
#[tokio::test]
async fn a_client_that_hangs_up_is_told_of_as_well() {
    use sqlx::{Connection as _, Executor as _};
    let (app, acme, _) = TestApp::with_tenants().await;
    let visit = Visit::start(&app.operator(), &acme).await;
    let (mut eye, mut lock) = (app.db_eye().await, app.db_eye().await);
    let mut held = lock.begin().await.expect("begin");
    held.execute("lock table projects in access exclusive mode").await.expect("locked");
    let mut connection = TcpStream::connect(app.node.address).await.expect("connect");
    connection.write_all(&visit.get("/api/v1/projects").bytes()).await.expect("sent");
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let since = Instant::now();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut eye).await.expect("activity") == 0 {
        assert!(since.elapsed() < Duration::from_secs(20), "the handler does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(connection);
    held.rollback().await.expect("free");
    let since = Instant::now();
    while told(&acme).await.len() < 2 {
        assert!(since.elapsed() < Duration::from_secs(20), "nobody was told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every operation of a tenant's API under a visit: what reads is answered, and nothing that writes is done.
#[tokio::test]
async fn each_read_works_and_each_write_is_refused() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let project = acme.project("p").await;
    let document = acme.document(&project, "d").await;
    acme.attach(&document, "a", b"kept").await.expect(201);
    let (member, other) = (acme.member("m").await, acme.visit().await);
    let visit = Visit::start(&app.operator(), &acme).await;
    let names = [
        ("{project}", &project),
        ("{document}", &document),
        ("{member}", &member),
        ("{impersonation}", &other),
        ("{name}", &"a".to_owned()),
    ];
    let kept = async || {
        let mut rows = app.db_everything().await;
        rows.retain(|table, _| !["audit", "usage", "quota_", "nodes"].iter().any(|part| table.contains(part)));
        (rows, app.kept_files())
    };
    let before = kept().await;
    let document = app.stranger().get("/openapi.json").await.expect(200).json();
    let (mut read, mut refused, mut forbidden) = (Vec::new(), 0, 0);
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods").iter().filter(|(_, o)| o["security"] == json!([{ "tenant": [] }])) {
            let target = names.iter().fold(path.clone(), |target, (name, value)| target.replace(name, value));
            let target = if path == "/api/v1/tenant/usage" { format!("{target}?metric=users") } else { target };
            let mut ask = visit.ask(&method.to_uppercase(), &target).with("idempotency-key", "once");
            if operation.get("requestBody").is_some() {
                let kind = if path.ends_with("{name}") { "text/plain" } else { "application/json" };
                let body = json!({ "name": "x", "title": "x", "content": "x" });
                let body = match path.as_str() {
                    "/api/v1/projects" | "/api/v1/projects/{project}" => json!({ "name": "x" }),
                    "/api/v1/impersonation-consent" => json!({ "allowed": false }),
                    "/api/v1/members" => json!({ "email": "x@example.com", "name": "x", "role": "viewer" }),
                    "/api/v1/members/{member}" => json!({ "name": "x" }),
                    _ if path.contains("documents") => json!({ "title": "x" }),
                    _ => body,
                };
                ask = ask.body(body.to_string()).with("content-type", kind);
            }
            let reply = ask.await;
            if method == "get" && reply.status == 200 {
                read.push(path.clone());
            } else if path == "/api/v1/sessions" && reply.status == 204 {
                read.push(path.clone()); // a visit has no sessions: none was ended
            } else {
                // What has no sensible body or name here is refused for that; that nothing was done is shown below.
                assert!((400..500).contains(&reply.status), "{method} {path}: {reply:?}");
                refused += 1;
                forbidden += usize::from(reply.status == 403);
            }
        }
    }
    assert!(read.len() >= 9 && forbidden >= 14, "{forbidden} {read:?}");
    assert_eq!(kept().await, before);
    assert_eq!(told(&acme).await.len(), 2 + read.len() + refused);
}
