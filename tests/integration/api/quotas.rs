//! Quotas and usage, from setting one to reading the series.

use std::time::Duration;

use futures_util::future::join_all;
use harness::actors::{Actor, Member, Operator};
use harness::app::TestApp;
use serde_json::{Value, json};

/// Sets a quota, as the operator does.
async fn set(operator: &Operator, tenant: &str, quota: Value) -> Value {
    let path = format!("/api/v1/tenants/{tenant}/quotas");
    operator.put(&path, "").json(&json!({ "quotas": [quota] })).await.expect(200).json()
}

fn of<'a>(quotas: &'a Value, metric: &str) -> &'a Value {
    quotas["items"].as_array().expect("items").iter().find(|quota| quota["metric"] == metric).expect("the metric")
}

/// The walk of `docs/quotas.md`.
#[tokio::test]
async fn set_use_up_be_refused_be_told_raise_and_read() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    set(&operator, "acme-works", json!({ "metric": "api", "limit": 20 })).await;
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(acme.get("/api/v1/projects").await);
    }
    let admitted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(admitted, 20);
    let refused = answers.pop().expect("the last").expect(429);
    assert_eq!(refused.problem("exhausted")["violated-policies"], json!(["api"]));
    assert_eq!(refused.header("ratelimit-policy"), "\"api\";q=20;w=2592000");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!(wait > 0 && refused.header("ratelimit") == format!("\"api\";r=0;t={wait}"), "{}", refused.header("ratelimit"));

    // It was told once for each threshold.
    let mut eye = app.db_eye().await;
    let told: Vec<(String, i64)> = sqlx::query_as("select topic, (payload->>'threshold')::bigint from tenancy.outbox order by 2")
        .fetch_all(&mut eye)
        .await
        .expect("outbox");
    let mut waited = 0;
    let mut seen = told;
    while seen.len() < 2 && waited < 40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waited += 1;
        seen = sqlx::query_as("select topic, (payload->>'threshold')::bigint from tenancy.outbox order by 2")
            .fetch_all(&mut eye)
            .await
            .expect("outbox");
    }
    assert_eq!(seen, [("quota.threshold".to_owned(), 80), ("quota.threshold".to_owned(), 100)]);

    let quotas = set(&operator, "acme-works", json!({ "metric": "api", "limit": 1000 })).await;
    assert_eq!((&of(&quotas, "api")["limit"], &of(&quotas, "api")["from_plan"]), (&json!(1000), &json!(false)));
    acme.get("/api/v1/projects").await.expect(200);

    tokio::time::sleep(Duration::from_millis(1200)).await;
    let usage = acme.get("/api/v1/tenant/usage?metric=api&resolution=minute").await.expect(200).json();
    let total: u64 = usage["items"].as_array().expect("points").iter().map(|point| point["value"].as_u64().expect("a number")).sum();
    assert!((21..=22).contains(&total), "{usage}");
    assert_eq!((&usage["unit"], &usage["quota"]["limit"]), (&json!("calls"), &json!(1000)));
    let csv = operator.get("/api/v1/tenants/acme-works/usage?metric=api&resolution=hour&format=csv").await.expect(200);
    assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8");
    let text = String::from_utf8(csv.body.clone()).expect("text");
    assert!(text.starts_with("at,calls\r\n2") && text.ends_with("\r\n") && text.lines().count() == 2, "{text}");
}

#[tokio::test]
async fn storage_is_reserved_before_a_byte_is_kept() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    set(&operator, "acme-works", json!({ "metric": "storage", "limit": 1000, "policy": "hard" })).await;
    let document = acme.document(&acme.project("p").await, "d").await;
    let path = |name: &str| format!("/api/v1/documents/{document}/attachments/{name}");
    acme.put(&path("a"), vec![1; 600]).await.expect(201);
    let refused = acme.put(&path("b"), vec![1; 401]).await.expect(403);
    assert_eq!(
        refused.problem("quota-exceeded")["detail"],
        "the quota of storage allows 1000 bytes: 600 are used, and 401 more were asked for"
    );
    // At once: exactly what fits.
    let statuses = join_all((0..12).map(|n| acme.put(&path(&format!("c{n}")), vec![1; 100]).into_future())).await;
    assert_eq!(statuses.iter().filter(|reply| reply.status == 201).count(), 4);
    // A smaller one in its place gives room; so does a deletion, also of what is above.
    acme.delete(&path("a")).await.expect(204);
    acme.put(&path("a"), vec![1; 500]).await.expect(201);
    set(&operator, "acme-works", json!({ "metric": "storage", "limit": 10 })).await;
    acme.put(&path("d"), vec![1; 1]).await.expect(403);
    acme.get(&path("a")).await.expect(200);
    acme.delete(&format!("/api/v1/documents/{document}")).await.expect(204);
    let quotas = acme.get("/api/v1/tenant/quotas").await.expect(200).json();
    assert_eq!((&of(&quotas, "storage")["used"], &of(&quotas, "storage")["reserved"]), (&json!(0), &json!(0)));
    // The other tenant has its own.
    let document = globex.document(&globex.project("p").await, "d").await;
    globex.attach(&document, "a", &[1; 5000]).await;
    assert_eq!(app.audit().await, [""; 0]);
}

#[tokio::test]
async fn a_plan_gives_quotas_and_a_change_of_plan_others() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let made = operator.post("/api/v1/tenants", &json!({ "slug": "initech", "name": "Initech", "plan": "free" })).await.expect(201);
    let id = made.text("id");
    let path = format!("/api/v1/tenants/{id}/quotas");
    let quotas = operator.get(&path).await.expect(200).json();
    assert_eq!(
        (&of(&quotas, "users")["limit"], &of(&quotas, "api.rate")["burst"], &of(&quotas, "api")["window"]),
        (&json!(3), &json!(50), &json!("month@UTC"))
    );
    set(&operator, "initech", json!({ "metric": "users", "limit": 7, "policy": "grace:50", "alert_at": [50] })).await;
    operator.patch(&format!("/api/v1/tenants/{id}"), &json!({ "plan": "unlimited" })).await.expect(200);
    let quotas = operator.get(&path).await.expect(200).json();
    let users = of(&quotas, "users");
    assert_eq!(
        (&users["limit"], &users["ceiling"], &users["policy"], &users["alert_at"], &users["from_plan"]),
        (&json!(7), &json!(10), &json!("grace:50"), &json!([50]), &json!(false))
    );
    assert_eq!((&of(&quotas, "storage")["limit"], &of(&quotas, "api.rate")["limit"]), (&json!(null), &json!(null)));
    let back = set(&operator, "initech", json!({ "metric": "users", "from_plan": true })).await;
    assert_eq!((&of(&back, "users")["limit"], &of(&back, "users")["from_plan"]), (&json!(null), &json!(true)));
    operator.post("/api/v1/tenants", &json!({ "slug": "other", "name": "Other", "plan": "gold" })).await.invalid("plan");
    operator.patch(&format!("/api/v1/tenants/{id}"), &json!({ "plan": "gold" })).await.invalid("plan");
}

#[tokio::test]
async fn bad_quotas_are_refused_by_field_and_nothing_is_set() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let operator = app.operator();
    let path = "/api/v1/tenants/acme-works/quotas";
    let before = operator.get(path).await.expect(200).json();
    for (quota, field) in [
        (json!({ "metric": "seats", "limit": 1 }), "quotas[1].metric"),
        (json!({ "metric": "users" }), "quotas[1].limit"),
        (json!({ "metric": "users", "limit": -1 }), "quotas[1].limit"),
        (json!({ "metric": "users", "limit": 9_223_372_036_854_775_807_u64 }), "quotas[1].limit"),
        (json!({ "metric": "users", "limit": 1, "window": "month@UTC" }), "quotas[1].window"),
        (json!({ "metric": "api", "limit": 1, "window": "fortnight" }), "quotas[1].window"),
        (json!({ "metric": "api", "limit": 1, "policy": "grace:0" }), "quotas[1].policy"),
        (json!({ "metric": "users", "limit": 1, "alert_at": [100, 80] }), "quotas[1].alert_at"),
        (json!({ "metric": "users", "limit": 1, "burst": 5 }), "quotas[1].burst"),
        (json!({ "metric": "users", "limit": 1, "from_plan": true }), "quotas[1].limit"),
    ] {
        let body = json!({ "quotas": [{ "metric": "storage", "limit": 77 }, quota] });
        operator.put(path, "").json(&body).await.invalid(field);
    }
    assert_eq!(operator.get(path).await.expect(200).json(), before);
    for (query, field) in [
        ("metric=seats", "metric"),
        ("metric=api.rate", "metric"),
        ("metric=api&from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
    ] {
        operator.get(&format!("/api/v1/tenants/acme-works/usage?{query}")).await.invalid(field);
        acme.get(&format!("/api/v1/tenant/usage?{query}")).await.invalid(field);
    }
    // Members who are no admins read neither.
    let viewer: Member = acme.role("member");
    viewer.get("/api/v1/tenant/quotas").await.expect(403);
    viewer.get("/api/v1/tenant/usage?metric=api").await.expect(403);
    operator.get("/api/v1/tenants/nobody/quotas").await.expect(404);
}

#[tokio::test]
async fn metrics_are_for_operators_and_name_the_busiest() {
    let (app, acme, _) = TestApp::with_tenants().await;
    for _ in 0..5 {
        acme.get("/api/v1/projects").await.expect(200);
    }
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let text = String::from_utf8(app.operator().get("/metrics").await.expect(200).body.clone()).expect("text");
    // Other tests of this process are measured as well, and may be busier.
    let named = text.contains(&format!("tenant_requests{{tenant=\"{}\",outcome=\"admitted\"}} 5", acme.tenant));
    assert!(named || text.contains("tenant_requests{tenant=\"other\""), "{text}");
    assert!(text.contains("quota_round_trips") && text.contains("quota_in_flight"), "{text}");
    acme.get("/metrics").await.expect(401);
}
