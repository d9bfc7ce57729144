//! Provisioning through the API and the command line: nothing serves before everything is made.

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
