//! Erasure through the API: what is refused, what is done, and that a server that is killed meanwhile loses nothing of it.

use std::time::Duration;

use harness::actors::{Actor, Member};
use harness::app::{Folder, TestApp};
use harness::pgbouncer::PgBouncer;
use harness::program::{command, run};
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

#[tokio::test]
async fn an_operator_exports_a_tenant_and_downloads_its_files() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    fill(&acme).await;
    fill(&globex).await;
    let at = format!("/api/v1/tenants/{}/export", acme.tenant);
    acme.ask("POST", &at).await.problem("unauthenticated");
    let queued = app.operator().ask("POST", &at).with("idempotency-key", "once").await.expect(202);
    let location = queued.header("location").to_owned();
    ends(&app, &location).await;
    assert_eq!(app.operator().ask("POST", &at).with("idempotency-key", "once").await.expect(202).header("location"), location);

    let manifest = app.operator().get(&format!("{location}/files/manifest.json")).await.expect(200).json();
    let table = |name: &str| {
        let tables = manifest["tables"].as_array().expect("tables").iter();
        tables.clone().find(|table| table["table"] == name).unwrap_or_else(|| panic!("{manifest}")).clone()
    };
    assert_eq!((&table("public.attachments")["rows"], &manifest["objects"]["objects"]), (&json!(1), &json!(1)));
    let file = table("public.projects")["file"].as_str().expect("a name").to_owned();
    let projects = app.operator().get(&format!("{location}/files/{file}")).await.expect(200);
    assert_eq!(projects.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(projects.body.clone()).expect("UTF-8");
    assert!(text.contains(&acme.tenant) && !text.contains(&globex.tenant), "{text}");
    let listed = app.operator().get(&format!("{location}/files/objects.ndjson")).await.expect(200);
    let object: Value = serde_json::from_slice(&listed.body).expect("one line");
    let name = object["file"].as_str().expect("a name").replace('/', "%2F");
    assert_eq!(app.operator().get(&format!("{location}/files/{name}")).await.expect(200).body, vec![7; 1000]);

    for absent in ["nothing", "..%2F1%2Fmanifest.json", "%2Fetc%2Fpasswd", "objects"] {
        app.operator().get(&format!("{location}/files/{absent}")).await.problem("not-found");
    }
    acme.get(&format!("{location}/files/manifest.json")).await.problem("unauthenticated");

    // As CSV, if the body says so; the key of another request is not for this one.
    let csv = json!({ "format": "csv" });
    app.operator().ask("POST", &at).json(&csv).with("idempotency-key", "once").await.problem("conflict");
    let queued = app.operator().post(&at, &csv).await.expect(202);
    let location = queued.header("location").to_owned();
    ends(&app, &location).await;
    let manifest = app.operator().get(&format!("{location}/files/manifest.json")).await.expect(200).json();
    let tables = manifest["tables"].as_array().expect("tables").iter();
    let projects =
        tables.clone().find(|table| table["table"] == "public.projects").expect("projects")["file"].as_str().expect("a name").to_owned();
    let projects = app.operator().get(&format!("{location}/files/{projects}")).await.expect(200);
    assert_eq!((&manifest["format"], projects.header("content-type")), (&json!("csv"), "text/csv; charset=utf-8; header=present"));
    let text = String::from_utf8(projects.body.clone()).expect("UTF-8");
    assert!(text.starts_with("tenant_id,id,name,") && text.contains(&acme.tenant) && !text.contains(&globex.tenant), "{text}");
    for bad in [json!({ "format": "xls" }), json!({ "format": null }), json!({ "more": 1 }), json!([])] {
        app.operator().post(&at, &bad).await.problem("invalid");
    }
    app.operator().ask("POST", &at).body("{}").with("content-type", "text/plain").await.problem("unsupported-media-type");
    let erasure = super::operations::failed_operation(&app, &acme.tenant).await;
    app.operator().get(&format!("/api/v1/operations/{erasure}/files/manifest.json")).await.problem("not-found");
}

/// On another node than the one that was asked.
#[tokio::test]
async fn the_command_line_exports_into_a_folder() {
    let (app, folder) = (TestApp::start().await, Folder::new());
    let (acme, globex) = (app.tenant("acme").await, app.tenant("globex").await);
    let (document, theirs) = (fill(&acme).await, fill(&globex).await);
    let verb = |args: &[&str]| {
        let mut command = command(&folder, args);
        command.env("DATABASE_URL", app.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", app.database.admin_url());
        command.env("TENANCY_OBJECTS", format!("file://{}", app.config.data_dir.join("objects").display()));
        run(command)
    };
    for (format, kind) in [(None, ".ndjson"), (Some("--csv"), ".csv")] {
        let into = folder.0.join(kind);
        let args: Vec<&str> = ["tenant", "export", "acme", into.to_str().expect("UTF-8")].into_iter().chain(format).collect();
        let (done, out, err) = verb(&args);
        assert!(done.status.success() && out.contains("acme is exported"), "{out} {err}");
        let manifest: Value = serde_json::from_slice(&std::fs::read(into.join("manifest.json")).expect("a manifest")).expect("JSON");
        assert_eq!(manifest["objects"]["objects"], 1);
        let mut tables = manifest["tables"].as_array().expect("tables").iter();
        let file = tables.find(|table| table["table"] == "public.attachments").and_then(|table| table["file"].as_str()).expect("a file");
        let rows = std::fs::read_to_string(into.join(file)).expect("rows");
        assert!(file.ends_with(kind), "{file}");
        assert!(rows.contains(&document), "{rows}");
        let list = std::fs::read_to_string(into.join("objects.ndjson")).expect("a list");
        let object: Value = serde_json::from_str(list.trim()).expect("one line");
        assert_eq!(std::fs::read(into.join(object["file"].as_str().expect("a name"))).expect("content"), vec![7; 1000]);
        assert!(!rows.contains(&theirs) && !list.contains(&theirs), "nothing of another");

        let (again, _, err) = verb(&args);
        assert!(!again.status.success() && err.contains("must be a folder that is empty"), "{err}");
    }
}

#[tokio::test]
async fn an_archived_tenant_is_refused_elsewhere_within_a_second() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let node = app.another_node().await;
    let (there, other) = (acme.at(&node), globex.at(&node));
    for member in [&there, &other] {
        member.get("/api/v1/projects").await.expect(200); // warm
    }
    app.operator().delete(&format!("/api/v1/tenants/{}", acme.tenant)).await.expect(204);
    let since = std::time::Instant::now();
    while there.get("/api/v1/projects").await.status == 200 {
        assert!(since.elapsed() < Duration::from_secs(1), "it is refused everywhere within a second");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    there.get("/api/v1/projects").await.problem("tenant-inactive");
    other.get("/api/v1/projects").await.expect(200);
}

/// Behind a pooler, which brings no notification, a node hears of a change a quarter of a second later; whoever reads there that an
/// operation is over is served there at once.
#[tokio::test]
async fn who_reads_that_it_is_over_is_served_what_it_left() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let Some(bouncer) = PgBouncer::start(&app.database.app_url()).await else { return };
    let other = app.another_node_with(|config| config.database_url = Some(bouncer.url().into())).await;
    let backup = app.operator().back_up(&acme.slug).await;
    let (acme, restore) = (acme.at(&other), json!({ "backup": backup, "without_backup": true }));
    for _ in 0..8 {
        // Requests meanwhile have the node remember that the tenant is being restored.
        let asks = async {
            loop {
                acme.get("/api/v1/projects").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let operator = app.operator().at(&other);
        let done = tokio::select! {
            done = operator.work(&acme.slug, "restore", Some(&restore)) => done,
            () = asks => unreachable!("it asks until then"),
        };
        assert_eq!(done["state"], "done", "{done}");
        acme.get("/api/v1/projects").await.expect(200);
    }
}
