//! What the server does with messages: mail, the mailbox of a developer, and what operators see of failures.

use std::time::Duration;

use harness::actors::{Actor as _, Reply};
use harness::app::TestApp;
use harness::smtp::{Mishap, SmtpServer};
use serde_json::{Value, json};

/// Has the tenant told of its storage, by the statement that a crossed threshold runs.
async fn alert(app: &TestApp, tenant: &str, key: &str) {
    let mut eye = app.db_eye().await;
    let payload = json!({ "metric": "storage", "threshold": 80, "used": 8, "limit": 10 });
    sqlx::query("select tenancy.outbox_post_for($1::text::uuid, 'quota.threshold', $2, $3, null)")
        .bind(tenant)
        .bind(key)
        .bind(payload)
        .execute(&mut eye)
        .await
        .expect("posted");
}

fn said(reply: &Reply) -> String {
    String::from_utf8(reply.body.clone()).expect("text")
}

async fn until(app: &TestApp, target: &str, what: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..500 {
        let seen = app.operator().get(target).await.expect(200).json();
        if what(&seen) {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{target} never came to that");
}

#[tokio::test]
async fn an_alert_comes_into_the_mailbox_of_the_developer_alone() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let branding = json!({ "branding": { "product_name": "<b>Rocket</b> Ünder", "support_email": "help@acme.example" } });
    app.operator().patch(&format!("/api/v1/tenants/{}", acme.tenant), &branding).await.expect(200);
    let local = || app.stranger().get("/dev/mailbox").with("host", "localhost:8080");
    assert!(!said(&local().await.expect(200)).contains("<li>"));
    alert(&app, &acme.tenant, "one").await;
    until(&app, "/api/v1/outbox", |seen| seen["items"] == json!([])).await;
    let page = local().await.expect(200);
    assert_eq!(page.headers["content-security-policy"], "default-src 'none'");
    let body = said(&page);
    let link = body.split_once("href=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(link, _)| link).expect("a link").to_owned();
    let mail = app.stranger().get(&link).with("host", "127.0.0.1").await.expect(200);
    assert_eq!(mail.headers["content-type"], "text/plain; charset=utf-8");
    let text = said(&mail);
    assert!(text.starts_with("To: help@acme.example\nSubject: <b>Rocket</b> Ünder: 80 % of storage used\n\n80 percent"), "{text}");

    for host in ["evil.example", "localhost.evil.example", "evil.example:80", ""] {
        app.stranger().get(&link).with("host", host).await.expect(404);
    }
    for header in ["x-forwarded-for", "forwarded", "via"] {
        app.stranger().get(&link).with("host", "localhost").with(header, "x").await.expect(404);
    }
    for id in ["..%2f..%2fjwt-secret", "x", &"0".repeat(32)] {
        app.stranger().get(&format!("/dev/mailbox/{id}")).with("host", "localhost").await.expect(404);
    }
}

#[tokio::test]
async fn there_is_no_mailbox_where_others_could_reach_it_or_mail_is_sent() {
    let smtp = SmtpServer::start(true).await;
    let url = format!("smtp://localhost:{}?tls=none", smtp.address.port());
    let sending = TestApp::with(|config| config.smtp = Some(url.as_str().into())).await;
    let open = TestApp::with(|config| config.listen = "0.0.0.0:0".to_owned()).await;
    for app in [&sending, &open] {
        app.stranger().get("/dev/mailbox").with("host", "localhost").await.expect(404);
    }
}

#[tokio::test]
async fn operators_see_what_was_given_up_and_have_it_tried_again() {
    let smtp = SmtpServer::start(true).await;
    let url = format!("smtp://localhost:{}?tls=none", smtp.address.port());
    let app = TestApp::with(|config| config.smtp = Some(url.as_str().into())).await;
    let acme = app.tenant("acme-works").await;
    let branding = json!({ "branding": { "support_email": "help@acme.example" } });
    app.operator().patch(&format!("/api/v1/tenants/{}", acme.tenant), &branding).await.expect(200);
    smtp.next(&[Mishap::NoSuchUser]);
    alert(&app, &acme.tenant, "one").await;
    let dead = until(&app, "/api/v1/outbox?state=dead", |seen| seen["items"][0].is_object()).await;
    let message = &dead["items"][0];
    assert_eq!((&message["last_error"], &message["tenant_id"]), (&json!("the mail server said 550"), &json!(acme.tenant)));
    assert!(message.get("payload").is_none() && dead["next_cursor"].is_null());

    let target = format!("/api/v1/outbox/{}/redeliver", message["id"]);
    for actor in [acme.ask("POST", &target), app.stranger().ask("POST", &target)] {
        actor.await.expect(401);
    }
    assert!(smtp.received().is_empty());
    let again = || app.operator().ask("POST", &target).with("idempotency-key", "again");
    assert_eq!(again().await.expect(200).json()["attempts"], 0);
    until(&app, "/api/v1/outbox?state=dead", |seen| seen["items"] == json!([])).await;
    until(&app, "/api/v1/outbox", |seen| seen["items"] == json!([])).await;
    assert_eq!(again().await.expect(200).headers["idempotency-replayed"], "true");
    app.operator().ask("POST", &target).await.expect(409);
    assert_eq!(smtp.received().iter().map(|mail| mail.to.join(",")).collect::<Vec<_>>(), ["help@acme.example"]);
    app.operator().ask("POST", "/api/v1/outbox/999999/redeliver").await.expect(404);
    app.operator().ask("POST", "/api/v1/outbox/x/redeliver").await.expect(404);
    app.operator().get("/api/v1/outbox?state=sent").await.expect(400);
}
