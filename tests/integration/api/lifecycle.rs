//! Erasure through the API: what is refused, what is done, and that a server that is killed meanwhile loses nothing of it.

use std::time::Duration;

use harness::actors::{Actor, Member};
use harness::app::TestApp;
use serde_json::{Value, json};

async fn fill(of: &Member) -> String {
    let document = of.document(&of.project("p").await, "d").await;
    of.put(&format!("/api/v1/documents/{document}/attachments/a"), vec![7; 1000]).await.expect(201);
    document
}

pub(super) async fn ends(app: &TestApp, location: &str) -> Value {
    loop {
        let now = app.operator().get(location).await.expect(200).json();
        match now["state"].as_str() {
            Some("done") => return now,
            Some("queued" | "running") => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => panic!("{now}"),
        }
    }
}

#[tokio::test]
async fn an_operator_erases_an_archived_tenant_and_nothing_of_another() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    fill(&acme).await;
    let document = fill(&globex).await;
    let (at, sure) = (format!("/api/v1/tenants/{}/erase", acme.tenant), json!({ "confirm": acme.slug, "reason": "contract ended" }));
    app.operator().post(&at, &sure).await.problem("conflict");
    app.operator().delete(&format!("/api/v1/tenants/{}", acme.tenant)).await.expect(204);
    for wrong in [json!({ "confirm": globex.slug, "reason": "x" }), json!({ "confirm": acme.slug, "reason": "" })] {
        app.operator().post(&at, &wrong).await.problem("invalid");
    }
    acme.post(&at, &sure).await.problem("unauthenticated");

    let key = |ask: harness::actors::Ask| ask.with("idempotency-key", "once");
    let queued = key(app.operator().post(&at, &sure)).await.expect(202);
    let location = queued.header("location").to_owned();
    let done = ends(&app, &location).await;
    let again = key(app.operator().post(&at, &sure)).await.expect(202);
    assert_eq!((again.header("location"), again.header("idempotency-replayed")), (location.as_str(), "true"));
    let certificate = &done["result"]["certificate"];
    assert_eq!(
        (&certificate["tables"]["public.attachments"], &certificate["objects"]),
        (&json!(1), &json!({ "objects": 1, "bytes": 1000 }))
    );

    app.operator().get(&format!("/api/v1/tenants/{}", acme.tenant)).await.problem("not-found");
    app.operator().get(&format!("/api/v1/operations/{}", super::ABSENT)).await.problem("not-found");
    let kept = globex.get(&format!("/api/v1/documents/{document}/attachments/a")).await.expect(200);
    assert_eq!(kept.body.len(), 1000);
    app.operator().create(&acme.slug).await;
}
