//! A restore over HTTP during which reads go on: every GET of the tenant is answered as before, everything else waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::actors::{Actor as _, Member, png};
use harness::app::TestApp;
use serde_json::{Value, json};
use sqlx::Executor as _;

use super::onboarding::until;

/// Every GET of a tenant's own that names nothing else, from the served document.
async fn lists(app: &TestApp) -> Vec<String> {
    let document = app.stranger().get("/openapi.json").await.expect(200).json();
    let paths = document["paths"].as_object().expect("paths").iter();
    let own = |security: &Value| security.to_string().contains("\"tenant\"");
    paths.filter(|(path, item)| !path.contains('{') && own(&item["get"]["security"])).map(|(path, _)| path.clone()).collect()
}

/// What the owner reads there.
async fn seen(of: &Member, paths: &[String]) -> BTreeMap<String, (u16, String)> {
    let mut all = BTreeMap::new();
    for path in paths {
        let reply = of.get(path).await;
        all.insert(path.clone(), (reply.status, String::from_utf8_lossy(&reply.body).into_owned()));
    }
    all
}

/// Those paths of which other things are seen.
fn differ(one: &BTreeMap<String, (u16, String)>, other: &BTreeMap<String, (u16, String)>) -> Vec<String> {
    one.iter().filter(|(path, seen)| other.get(*path) != Some(*seen)).map(|(path, _)| path.clone()).collect()
}

const NONE: [String; 0] = [];

#[tokio::test]
async fn a_tenant_is_read_while_it_is_restored_and_what_writes_waits() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    app.operator().allow_sharing().await;
    acme.allow_sharing().await;
    globex.allow_sharing().await;
    let document = acme.document(&acme.project("Launch").await, "plan").await;
    acme.attach(&document, "a.bin", b"as it was").await.expect(201);
    acme.put("/api/v1/branding/logo", png(1)).with("content-type", "image/png").await.expect(200);
    let token = acme.api_token(&acme.member("ada").await).await.1;
    let theirs = globex.document(&globex.project("theirs").await, "theirs").await;
    let to_acme = globex.share(&theirs, &acme, "read").await;
    let to_globex = acme.share(&document, &globex, "read").await;
    let (_, link) = acme.link(&document).await;
    let link = &link[link.find("/s/").expect("a link")..];
    let wish = json!({ "reason": "ticket 4711: the list is empty" });
    let visit = app.operator().post(&format!("/api/v1/tenants/{}/impersonate", acme.tenant), &wish).await.expect(201).text("token");
    let mut paths = lists(&app).await;
    assert!(paths.len() > 20, "{paths:?}");
    paths.extend(["", "/attachments", "/attachments/a.bin", "/comments"].map(|rest| format!("/api/v1/documents/{document}{rest}")));
    // What changes by itself, and what has others' things in it, is looked at otherwise.
    const MOVING: [&str; 6] =
        ["/api/v1/tenant/usage", "/api/v1/tenant/quotas", "/api/v1/tenant", "/api/v1/audit", "/api/v1/documents", "/api/v1/api-tokens"];
    paths.retain(|path| !MOVING.contains(&path.as_str()));
    let listed = async |of: &Member| {
        let items = of.get("/api/v1/documents").await.expect(200).json()["items"].as_array().expect("items").clone();
        items.into_iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&acme).await.len(), 2, "its own and a shared one");

    let backup = app.operator().back_up(&acme.slug).await;
    let backed_up = seen(&acme, &paths).await;
    let late = acme.document(&acme.project("Since the backup").await, "gone soon").await;
    acme.attach(&document, "a.bin", b"not as it was").await.expect(200);
    let damaged = seen(&acme, &paths).await;
    assert_ne!(differ(&damaged, &backed_up), NONE);
    let refused: Vec<_> = damaged.iter().filter(|(_, (status, _))| *status != 200).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let other = app.another_node().await;

    // A transaction of before holds the restore up at its fence, and one that has a row of the tenant's in its hands at its merge.
    let mut older = app.db_eye().await;
    older.execute("begin; select 1").await.expect("begin");
    let restore = json!({ "backup": backup, "reads": true, "without_backup": true });
    let asked = app.operator().post(&format!("/api/v1/tenants/{}/restore", acme.slug), &restore).await.expect(202);
    let at = asked.header("location").to_owned();
    let step = async |wanted: &str| {
        until(wanted, async || (app.operator().get(&at).await.expect(200).json()["step"] == wanted).then_some(())).await;
    };
    step("waiting for older transactions").await;
    let shown = app.operator().get(&format!("/api/v1/tenants/{}", acme.slug)).await.expect(200).json();
    assert_eq!((&shown["status"], &shown["reads"]), (&json!("restoring"), &json!(true)));
    let mut holding = app.db_eye().await;
    let hold = format!("begin; select from documents where id = '{late}' for update");
    holding.execute(sqlx::AssertSqlSafe(hold)).await.expect("held");

    let behind_the_fence = async || {
        for owner in [acme.clone(), acme.at(&other)] {
            assert_eq!(differ(&seen(&owner, &paths).await, &damaged), NONE);
            for path in MOVING {
                let path = if path.ends_with("usage") { format!("{path}?metric=api") } else { path.to_owned() };
                owner.get(&path).await.expect(200);
            }
            assert_eq!(listed(&owner).await, [late.clone(), document.clone()], "its own, and none of others");
            owner.ask("HEAD", &format!("/api/v1/documents/{document}")).await.expect(200);
            for waits in [
                owner.post("/api/v1/projects", &json!({ "name": "x" })),
                owner.patch(&format!("/api/v1/documents/{document}"), &json!({ "title": "x" })),
                owner.delete(&format!("/api/v1/documents/{document}")),
                owner.put(&format!("/api/v1/documents/{document}/attachments/b.bin"), "x"),
                owner.patch("/api/v1/config", &json!({})),
                // These read, and are told to somebody first.
                owner.get(&format!("/api/v1/shares/{to_acme}/document")),
                owner.get("/api/v1/me").with("authorization", format!("Bearer {visit}")),
            ] {
                let reply = waits.await;
                reply.problem("unavailable");
                assert!(!reply.header("retry-after").is_empty());
            }
            let program = |method: &str, path: &str| owner.ask(method, path).with("authorization", format!("Bearer {token}"));
            assert_eq!(program("GET", "/api/v1/me").await.expect(200).json()["role"], "viewer");
            program("POST", "/api/v1/projects").json(&json!({ "name": "x" })).await.problem("unavailable");
        }
        // To others it shows nothing meanwhile, as if there were nothing.
        app.stranger().get(link).await.expect(404);
        globex.get(&format!("/api/v1/shares/{to_globex}/document")).await.problem("not-found");
        globex.project("meanwhile").await;
    };
    behind_the_fence().await;
    older.execute("rollback").await.expect("ended");
    step("restoring rows").await;
    behind_the_fence().await;
    // A node that says nothing is waited for once the rows are new, and before objects are.
    let silent =
        "insert into tenancy.catalog_nodes values (gen_random_uuid(), '3:3:', interval '1 second', clock_timestamp() + interval '1 hour')";
    app.db_eye().await.execute(silent).await.expect("another node");
    holding.execute("rollback").await.expect("ended");

    // It ends for readers, too, when the rows are new, and then all is served.
    let (since, mut waited) = (Instant::now(), false);
    loop {
        let reply = acme.get(&format!("/api/v1/documents/{document}")).await;
        let state = app.operator().get(&at).await.expect(200).json()["state"].clone();
        waited |= reply.status == 503 && !reply.header("retry-after").is_empty();
        if state == "done" {
            break;
        }
        assert!(state == "running" && since.elapsed() < Duration::from_secs(30), "{state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waited, "nobody reads while objects are replaced");
    until("the other node serves", async || (acme.at(&other).get("/api/v1/me").await.status == 200).then_some(())).await;
    for owner in [acme.clone(), acme.at(&other)] {
        assert_eq!(differ(&seen(&owner, &paths).await, &backed_up), NONE);
        owner.post("/api/v1/projects", &json!({ "name": "after" })).await.expect(201).text("id");
        let made = owner.get("/api/v1/projects").await.expect(200).json()["items"][0]["id"].as_str().expect("an id").to_owned();
        owner.delete(&format!("/api/v1/projects/{made}")).await.expect(204);
    }
    acme.get(&format!("/api/v1/shares/{to_acme}/document")).await.expect(200);
    app.stranger().get(link).await.expect(200);

    let contradicts = json!({ "backup": backup, "reads": true, "dry_run": true });
    let refused = app.operator().post(&format!("/api/v1/tenants/{}/restore", acme.slug), &contradicts).await;
    assert!(refused.problem("invalid").to_string().contains("reads"));
}

/// The control: unless it is asked for, a GET waits as everything does.
#[tokio::test]
async fn control_without_the_option_a_tenant_that_is_restored_is_not_read() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    acme.project("Launch").await;
    let backup = app.operator().back_up(&acme.slug).await;
    let mut older = app.db_eye().await;
    older.execute("begin; select 1").await.expect("begin");
    let restore = json!({ "backup": backup, "without_backup": true });
    let asked = app.operator().post(&format!("/api/v1/tenants/{}/restore", acme.slug), &restore).await.expect(202);
    let at = asked.header("location").to_owned();
    until("it waits", async || {
        (app.operator().get(&at).await.expect(200).json()["step"] == "waiting for older transactions").then_some(())
    })
    .await;
    for ask in [acme.get("/api/v1/projects"), acme.post("/api/v1/projects", &json!({ "name": "x" }))] {
        let reply = ask.await;
        reply.problem("unavailable");
        assert!(!reply.header("retry-after").is_empty());
    }
    let shown = app.operator().get(&format!("/api/v1/tenants/{}", acme.slug)).await.expect(200).json();
    assert_eq!((&shown["status"], shown.get("reads")), (&json!("restoring"), None));
    globex.get("/api/v1/projects").await.expect(200);
    older.execute("rollback").await.expect("ended");
    until("it is done", async || (app.operator().get(&at).await.expect(200).json()["state"] == "done").then_some(())).await;
    acme.get("/api/v1/projects").await.expect(200);
}
