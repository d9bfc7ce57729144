//! Provisioning through the API and the command line: nothing serves before everything is made.

use std::time::Duration;

use futures_util::future::join_all;
use harness::actors::{Actor as _, Member};
use harness::app::{Folder, TestApp};
use harness::program::{command, run};
use serde_json::json;

use super::lifecycle::ends;

async fn created(app: &TestApp, slug: &str) -> Member {
    let body = json!({ "slug": slug, "name": slug, "status": "provisioning" });
    let made = app.operator().post("/api/v1/tenants", &body).await.expect(201);
    assert_eq!(made.text("status"), "provisioning");
    app.tenant("somebody").await.of(&made.text("id"))
}

#[tokio::test]
async fn a_tenant_that_is_provisioned_serves_when_everything_is_made() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let newco = created(&app, "newco").await;
    let at = format!("/api/v1/tenants/{}", newco.tenant);
    for ask in [newco.get("/api/v1/projects"), newco.get("/api/v1/tenant"), newco.post("/api/v1/projects", &json!({ "name": "x" }))] {
        ask.await.problem("tenant-inactive");
    }
    app.operator().ask("POST", &format!("{at}/resume")).await.problem("conflict");
    acme.ask("POST", &format!("{at}/provision")).await.problem("unauthenticated");

    let provision = || app.operator().ask("POST", &format!("{at}/provision")).with("idempotency-key", "once");
    let asked = join_all((0..4).map(|_| provision().into_future())).await;
    let location = asked[0].header("location").to_owned();
    assert!(asked.iter().all(|reply| (reply.status, reply.header("location")) == (202, &location)), "{asked:?}");
    let done = ends(&app, &location).await;
    assert_eq!(done["result"]["steps"], json!(["preflight", "quotas", "storage", "welcome", "activate"]));
    assert_eq!(provision().await.expect(202).header("idempotency-replayed"), "true");
    app.operator().ask("POST", &format!("{at}/provision")).await.problem("conflict");
    app.operator().ask("POST", &format!("/api/v1/tenants/{}/provision", super::ABSENT)).await.problem("not-found");

    let projects = newco.get("/api/v1/projects").await.expect(200).json();
    assert_eq!((projects["items"][0]["name"].as_str(), projects["items"].as_array().map(Vec::len)), (Some("Welcome"), Some(1)));
    assert_eq!(acme.get("/api/v1/projects").await.expect(200).json()["items"], json!([]));
    let quotas = app.operator().get(&format!("{at}/quotas")).await.expect(200).json();
    assert_eq!(quotas["items"].as_array().map(Vec::len), Some(4), "{quotas}");
}

#[tokio::test]
async fn of_requests_that_race_for_a_slug_one_wins() {
    let app = TestApp::start().await;
    let body = json!({ "slug": "newco", "name": "newco", "status": "provisioning" });
    let made = join_all((0..4).map(|_| app.operator().post("/api/v1/tenants", &body).into_future())).await;
    assert_eq!(made.iter().filter(|reply| reply.status == 201).count(), 1);
    for reply in made.iter().filter(|reply| reply.status != 201) {
        reply.problem("conflict");
    }
    for (field, wrong) in [("status", json!("suspended")), ("plan", json!("gold"))] {
        let mut body = json!({ "slug": "other", "name": "other", "status": "provisioning" });
        body[field] = wrong;
        app.operator().post("/api/v1/tenants", &body).await.invalid(field);
    }
}

#[tokio::test]
async fn the_command_line_provisions() {
    let (app, folder) = (TestApp::start().await, Folder::new());
    let verb = |args: &[&str]| {
        let mut command = command(&folder, args);
        command.env("DATABASE_URL", app.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", app.database.admin_url());
        run(command)
    };
    let (made, out, err) = verb(&["tenant", "create", "newco", "--provisioning"]);
    assert!(made.status.success() && out.contains("provisioning"), "{out} {err}");
    let (resumed, _, err) = verb(&["tenant", "resume", "newco"]);
    assert!(!resumed.status.success() && err.contains("provision it"), "{err}");
    let (provisioned, out, err) = verb(&["tenant", "provision", "newco"]);
    assert!(provisioned.status.success() && out.contains("newco is active"), "{out} {err}");
    let (again, _, err) = verb(&["tenant", "provision", "newco"]);
    assert!(!again.status.success() && err.contains("can't be provisioned"), "{err}");
}

#[tokio::test]
async fn a_tenant_that_was_made_ahead_is_taken_in_the_request() {
    let app = TestApp::with(|config| config.warm_tenants = 1).await;
    let done = "select count(*) from tenancy.operations where kind = 'provision' and state = 'done'";
    let mut eye = app.db_eye().await;
    while sqlx::query_scalar::<_, i64>(done).fetch_one(&mut eye).await.expect("operations") == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let body = json!({ "slug": "newco", "name": "New Co", "plan": "free", "provision": true });
    let made = app.operator().post("/api/v1/tenants", &body).with("idempotency-key", "once").await.expect(201);
    assert_eq!([made.text("slug"), made.text("name"), made.text("plan"), made.text("status")], ["newco", "New Co", "free", "active"]);
    let again = app.operator().post("/api/v1/tenants", &body).with("idempotency-key", "once").await.expect(201);
    assert_eq!(again.text("id"), made.text("id"));
    let newco = app.tenant("somebody").await.of(&made.text("id"));
    assert_eq!(newco.get("/api/v1/projects").await.expect(200).json()["items"][0]["name"], "Welcome");
    let mut both = body.clone();
    both["status"] = json!("active");
    app.operator().post("/api/v1/tenants", &both).await.invalid("status");
}

#[tokio::test]
async fn without_one_that_was_made_ahead_it_is_made_now() {
    let app = TestApp::start().await;
    let made = app.operator().post("/api/v1/tenants", &json!({ "slug": "newco", "name": "x", "provision": true })).await.expect(201);
    assert_eq!(made.text("status"), "provisioning");
    let newco = app.tenant("somebody").await.of(&made.text("id"));
    while newco.get("/api/v1/projects").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(newco.get("/api/v1/projects").await.expect(200).json()["items"][0]["name"], "Welcome");
}
