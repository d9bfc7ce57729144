//! Webhooks over HTTP: registering, secrets that are seen once, and a message from a change of a member to a real receiver.

use std::time::{Duration, Instant};

use harness::actors::Actor;
use harness::app::TestApp;
use harness::receiver::{Hook, Receiver};
use serde_json::{Value, json};

async fn wait_for(receiver: &Receiver, count: usize) -> Vec<Hook> {
    let since = Instant::now();
    while receiver.hooks().len() < count {
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", receiver.hooks());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    receiver.hooks()
}

/// The walk of `docs/webhooks.md`.
#[tokio::test]
async fn register_test_hear_rotate_and_remove() {
    let app = TestApp::with(|config| config.webhooks_loopback = true).await;
    let (acme, globex) = app.two_tenants().await;
    let (receiver, others) = (Receiver::start(false).await, Receiver::start(false).await);
    let body = |receiver: &Receiver| json!({ "url": receiver.url("/hooks"), "topics": ["member.added", "member.removed"] });
    globex.post("/api/v1/webhooks", &body(&others)).await.expect(201);
    let made = acme.post("/api/v1/webhooks", &body(&receiver)).with("idempotency-key", "once").await.expect(201);
    let (path, secret) = (made.header("location").to_owned(), made.text("secret"));
    assert_eq!(made.header("etag"), "\"1\"");
    // A replay is the same endpoint, and knows no secret; nor does any other answer.
    let again = acme.post("/api/v1/webhooks", &body(&receiver)).with("idempotency-key", "once").await.expect(201);
    assert_eq!((again.json()["id"].clone(), &again.json()["secret"]), (made.json()["id"].clone(), &Value::Null));
    acme.get("/api/v1/webhooks").await.expect(200).is_silent_about(["whsec_", &secret]);

    let delivery = acme.ask("POST", &format!("{path}/test")).await.expect(202).text("delivery");
    let hook = wait_for(&receiver, 1).await.remove(0);
    hook.verify(&secret).expect("it is signed");
    assert_eq!(
        (hook.json()["type"].as_str(), hook.header("webhook-id")),
        (Some("webhook.test"), &*format!("msg_{}", delivery.replace('-', "")))
    );
    let member = acme.member("ada").await;
    let hook = wait_for(&receiver, 2).await.remove(1);
    assert_eq!((&hook.json()["type"], &hook.json()["data"]["member"]), (&json!("member.added"), &json!(member)));
    assert!(!String::from_utf8_lossy(&hook.body).contains("ada@"), "who they are is to be asked for");
    let since = Instant::now();
    let listed = loop {
        let listed = acme.get(&format!("{path}/deliveries")).await.expect(200).json();
        if listed["items"].as_array().expect("items").iter().all(|delivery| delivery["state"] == "delivered") {
            break listed;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{listed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (&listed["items"][0]["topic"], &listed["items"][1]["id"], &listed["items"][1]["status_code"]),
        (&json!("member.added"), &json!(delivery), &json!(204))
    );

    let rotated = acme.ask("POST", &format!("{path}/rotate")).await.expect(200).text("secret");
    acme.ask("POST", &format!("{path}/test")).await.expect(202);
    let hook = wait_for(&receiver, 3).await.remove(2);
    assert!(hook.verify(&secret).is_ok() && hook.verify(&rotated).is_ok());
    assert_eq!(others.hooks().len(), 0, "another tenant's members are nobody's business");

    let changed =
        acme.patch(&path, &json!({ "topics": ["quota.threshold"], "enabled": false })).with("if-match", "\"1\"").await.expect(200);
    assert_eq!((changed.header("etag"), &changed.json()["enabled"]), ("\"2\"", &json!(false)));
    acme.patch(&path, &json!({ "enabled": true })).with("if-match", "\"1\"").await.problem("version-mismatch");
    for ask in [
        globex.patch(&path, &json!({})),
        globex.delete(&path),
        globex.get(&format!("{path}/deliveries")),
        globex.ask("POST", &format!("{path}/rotate")),
    ] {
        ask.await.problem("not-found");
    }
    acme.delete(&path).with("if-match", "\"2\"").await.expect(204);
    acme.get(&format!("{path}/deliveries")).await.problem("not-found");
}

#[tokio::test]
async fn bad_endpoints_are_refused_by_field_and_only_admins_have_any() {
    let (_app, acme, _) = TestApp::with_tenants().await;
    let body = |url: &str, topics: Value| json!({ "url": url, "topics": topics });
    let good = body("https://hooks.example.com/x", json!(["quota.threshold"]));
    for (body, field) in [
        (body("http://hooks.example.com/", json!(["quota.threshold"])), "url"),
        (body("http://127.0.0.1:8080/", json!(["quota.threshold"])), "url"),
        (body("https://127.0.0.1/", json!(["quota.threshold"])), "url"),
        (body("https://169.254.169.254/latest/meta-data", json!(["quota.threshold"])), "url"),
        (body("https://localhost/", json!(["quota.threshold"])), "url"),
        (body("https://user:password@example.com/", json!(["quota.threshold"])), "url"),
        (body("https://hooks.example.com/", json!([])), "topics"),
        (body("https://hooks.example.com/", json!(["member.sign_in"])), "topics"),
        (body("https://hooks.example.com/", json!(["quota.threshold", "quota.threshold"])), "topics"),
        (json!({ "url": "https://hooks.example.com/", "topics": ["quota.threshold"], "secret": "whsec_x" }), "secret"),
    ] {
        acme.post("/api/v1/webhooks", &body).await.invalid(field);
    }
    let path = format!("/api/v1/webhooks/{}", acme.webhook("https://hooks.example.com/").await);
    acme.patch(&path, &json!({ "url": "https://10.0.0.1/" })).await.invalid("url");
    for role in ["viewer", "member"] {
        let who = acme.role(role);
        let asks = [
            who.get("/api/v1/webhooks"),
            who.post("/api/v1/webhooks", &good),
            who.patch(&path, &json!({})),
            who.delete(&path),
            who.ask("POST", &format!("{path}/rotate")),
            who.ask("POST", &format!("{path}/test")),
            who.get(&format!("{path}/deliveries")),
        ];
        for ask in asks {
            ask.await.problem("forbidden");
        }
    }
    for _ in 0..9 {
        acme.role("admin").post("/api/v1/webhooks", &good).await.expect(201);
    }
    acme.post("/api/v1/webhooks", &good).await.problem("conflict");
}
