//! Backups over HTTP: taken, compared, restored, held and deleted, while others are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::actors::{Actor as _, Member};
use harness::app::{Folder, TestApp};
use harness::program::{command, run};
use serde_json::{Value, json};
use tenancy_core::{Clock as _, SystemClock};
use tenancy_sqlx::testing::TestDatabase;

use super::ABSENT;
use super::onboarding::until;
use super::operations::Serving;

/// What a member sees of a tenant's documents and their attachments.
async fn seen(of: &Member) -> Vec<(Value, Vec<u8>)> {
    let mut all = Vec::new();
    for document in of.get("/api/v1/documents?limit=200").await.expect(200).json()["items"].as_array().expect("documents") {
        let at = format!("/api/v1/documents/{}", document["id"].as_str().expect("an id"));
        let content = of.get(&format!("{at}/attachments/a.bin")).await;
        all.push((of.get(&at).await.expect(200).json(), content.body));
    }
    all
}

async fn fill(of: &Member, seed: u8) -> Vec<String> {
    let project = of.project("Launch").await;
    let mut documents = Vec::new();
    for n in 0..6 {
        let document = of.document(&project, &format!("plan {n}")).await;
        of.attach(&document, "a.bin", &vec![seed + n; 2_000]).await.expect(201);
        documents.push(document);
    }
    documents
}

#[tokio::test]
async fn what_a_tenant_lost_is_back_and_another_tenants_traffic_went_on() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let documents = fill(&acme, 0).await;
    fill(&globex, 100).await;
    let (was, others) = (seen(&acme).await, seen(&globex).await);
    let storage = async |of: &Member| {
        let quotas = of.get("/api/v1/tenant/quotas").await.expect(200).json();
        quotas["items"].as_array().expect("items").iter().find(|quota| quota["metric"] == "storage").expect("storage")["used"].clone()
    };
    let level = storage(&acme).await;
    let backup = app.operator().back_up(&acme.slug).await;

    for document in &documents[..3] {
        acme.delete(&format!("/api/v1/documents/{document}")).await.expect(204);
    }
    acme.delete(&format!("/api/v1/documents/{}/attachments/a.bin", documents[3])).await.expect(204);
    let other_project = acme.project("Not in the backup").await;
    acme.document(&other_project, "Neither is this").await;
    let damaged = seen(&acme).await;

    let told = app.operator().work(&acme.slug, "restore", Some(&json!({ "backup": backup, "dry_run": true }))).await;
    let tables = &told["result"]["tables"];
    let counts = |table: &str| ["removed", "changed", "added"].map(|how| tables[table][how].as_i64().unwrap_or(-1));
    assert_eq!((counts("public.documents"), counts("public.attachments"), counts("public.projects")), ([1, 0, 3], [0, 0, 4], [1, 0, 0]));
    assert_eq!(told["result"]["objects"], json!({ "removed": 0, "changed": 0, "added": 4 }));
    assert_eq!(seen(&acme).await, damaged, "it only told");
    assert!(tables.get("public.idempotency_keys").is_none());

    // Another tenant works all the while.
    let over = Arc::new(AtomicBool::new(false));
    let traffic = {
        let (globex, over) = (globex.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                globex.get("/api/v1/documents").await.expect(200);
                asked += 1;
            }
            asked
        })
    };
    let done = app.operator().work(&acme.slug, "restore", Some(&json!({ "backup": backup }))).await;
    assert_eq!(done["state"], "done", "{done}");
    over.store(true, Ordering::Relaxed);
    assert!(traffic.await.expect("no request of the other tenant failed") > 10);
    assert_eq!(seen(&acme).await, was);
    assert_eq!(seen(&globex).await, others);
    assert_eq!((storage(&acme).await, level), (json!(12_000), json!(12_000)), "and so is what it measures");
    acme.document(&acme.project("after").await, "after").await;

    // The audit log tells it, and was not put back itself.
    let audit = app.operator().get(&format!("/api/v1/tenants/{}/audit?limit=200", acme.slug)).await.expect(200).json().to_string();
    for action in ["backup.take", "backup.restore", "operation.queue"] {
        assert!(audit.contains(action), "{action}");
    }
}

#[tokio::test]
async fn backups_are_listed_held_and_let_go() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    fill(&acme, 0).await;
    let (backup, theirs) = (app.operator().back_up(&acme.slug).await, app.operator().back_up(&globex.slug).await);
    let list = format!("/api/v1/tenants/{}/backups", acme.slug);
    let at = format!("{list}/{backup}");
    let items = app.operator().get(&list).await.expect(200).json()["items"].as_array().expect("items").clone();
    assert_eq!((items.len(), &items[0]["id"], &items[0]["objects"]), (1, &json!(backup), &json!(6)));
    assert_eq!(app.operator().get(&at).await.expect(200).json(), items[0]);
    acme.get(&list).await.problem("unauthenticated");

    let hold = |body: Value| app.operator().patch(&at, &body);
    assert_eq!(hold(json!({ "hold": "litigation 4711" })).await.expect(200).json()["hold"], "litigation 4711");
    app.operator().delete(&at).await.problem("conflict");
    for bad in [json!({}), json!({ "hold": "x" }), json!({ "hold": 1 }), json!({ "hold": "a\nb" })] {
        hold(bad).await.problem("invalid");
    }
    app.operator().delete(&format!("/api/v1/tenants/{}", acme.slug)).await.expect(204);
    let erase = json!({ "confirm": acme.slug, "reason": "the contract ended" });
    let refused = app.operator().post(&format!("/api/v1/tenants/{}/erase", acme.slug), &erase).await;
    assert!(refused.problem("conflict").to_string().contains("litigation 4711"), "a backup that is held holds the tenant");
    app.operator().post(&format!("/api/v1/tenants/{}/restore", acme.slug), &json!({ "backup": backup })).await.problem("conflict");
    hold(json!({ "hold": null })).await.expect(200);
    app.operator().delete(&at).await.expect(204);
    app.operator().get(&at).await.problem("not-found");

    for (method, path, body) in [
        ("GET", format!("{list}/{theirs}"), None),
        ("DELETE", format!("{list}/{theirs}"), None),
        ("GET", format!("{list}/{ABSENT}"), None),
        ("GET", format!("{list}/x"), None),
        ("POST", format!("/api/v1/tenants/{}/restore", globex.slug), Some(json!({ "backup": backup }))),
        ("POST", format!("/api/v1/tenants/{}/restore", globex.slug), Some(json!({ "backup": ABSENT }))),
    ] {
        let ask = app.operator().ask(method, &path);
        match body {
            Some(body) => ask.json(&body).await.problem("not-found"),
            None => ask.await.problem("not-found"),
        };
    }
    for bad in [json!({}), json!({ "backup": "x" }), json!({ "backup": theirs, "tables": [] }), json!({ "backup": theirs, "more": 1 })] {
        app.operator().post(&format!("/api/v1/tenants/{}/restore", globex.slug), &bad).await.problem("invalid");
    }
    // With the tenant its archives and keys are gone.
    let done = app.operator().work(&acme.slug, "erase", Some(&erase)).await;
    assert_eq!(done["state"], "done", "{done}");
    let left = app.config.data_dir.join("objects").join("backups").join(&acme.tenant);
    let files = |folder: &std::path::Path| -> usize {
        let mut todo = vec![folder.to_path_buf()];
        let mut files = 0;
        while let Some(at) = todo.pop() {
            for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
                if entry.path().is_dir() { todo.push(entry.path()) } else { files += 1 }
            }
        }
        files
    };
    assert_eq!(files(&left), 0);
    assert!(files(&left.with_file_name(&globex.tenant)) > 0);
}

#[tokio::test]
async fn a_clone_with_new_ids_serves_the_same_documents_under_others() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    fill(&acme, 0).await;
    fill(&globex, 100).await;
    let (was, others) = (seen(&acme).await, seen(&globex).await);
    let backup = app.operator().back_up(&acme.slug).await;
    let ask = json!({ "backup": backup, "slug": "acme-copy", "name": "A copy", "new_ids": true });
    let done = app.operator().work(&acme.slug, "clone", Some(&ask)).await;
    assert_eq!((&done["state"], &done["result"]["left"]), (&json!("done"), &json!({})), "{done}");
    let mut copy = acme.of(done["result"]["tenant_id"].as_str().expect("an id"));
    (copy.slug, copy.name) = ("acme-copy".to_owned(), "A copy".to_owned());
    let ours = seen(&copy).await;
    let all = |seen: &[(Value, Vec<u8>)]| -> Vec<(Value, Vec<u8>)> {
        seen.iter().map(|(document, content)| (document["title"].clone(), content.clone())).collect()
    };
    let ids = |seen: &[(Value, Vec<u8>)]| -> Vec<String> {
        seen.iter().flat_map(|(document, _)| [document["id"].to_string(), document["project_id"].to_string()]).collect()
    };
    // In the same order, since ids with a time keep it.
    assert_eq!((ours.len(), all(&ours)), (6, all(&was)));
    assert!(ids(&ours).iter().all(|id| !ids(&was).contains(id)));
    for (document, _) in &was {
        copy.get(&format!("/api/v1/documents/{}", document["id"].as_str().expect("an id"))).await.problem("not-found");
    }
    let first = format!("/api/v1/documents/{}", ours[0].0["id"].as_str().expect("an id"));
    acme.get(&first).await.problem("not-found");
    copy.delete(&first).await.expect(204);
    assert_eq!((seen(&acme).await, seen(&globex).await), (was, others));
    let bad = json!({ "backup": backup, "slug": "acme-copy-2", "new_ids": "yes" });
    app.operator().post(&format!("/api/v1/tenants/{}/clone", acme.slug), &bad).await.problem("invalid");
}

#[tokio::test]
async fn the_command_line_clones_with_new_ids_and_says_what_is_left() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let document = fill(&acme, 0).await[0].clone();
    let naming = json!({ "content": format!("see {document}") });
    let at = format!("/api/v1/documents/{document}");
    let etag = acme.get(&at).await.expect(200).header("etag").to_owned();
    acme.patch(&at, &naming).with("if-match", etag).await.expect(200);
    let backup = app.operator().back_up(&acme.slug).await;
    let folder = Folder::new();
    let verb = |args: &[&str]| {
        let mut command = command(&folder, args);
        command.env("DATABASE_URL", app.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", app.database.admin_url());
        for (name, key) in [("TENANCY_BACKUP_KEY", &app.config.backup_key), ("TENANCY_CERTIFICATE_KEY", &app.config.certificate_key)] {
            command.env(name, key.as_ref().expect("a key").expose());
        }
        command.env("TENANCY_DATA_DIR", &app.config.data_dir);
        run(command)
    };
    let (done, out, err) = verb(&["backup", "clone", &acme.slug, &backup, "acme-copy", "--new-ids"]);
    assert!(done.status.success() && out.ends_with("still with old ids: public.documents.content (1)"), "{out} {err}");
    assert!(out.starts_with("acme-copy is active: "), "{out}");
}

/// Each server is killed (SIGKILL) a little later in a restore than the one before: the old rows stand or the new ones, and the next one
/// completes it.
#[tokio::test]
async fn servers_that_are_killed_in_a_restore_leave_no_mix_and_what_the_next_one_completes() {
    let folder = Folder::new();
    let database = TestDatabase::with_migrations(&tenancy_server::MIGRATIONS).await.expect("a database");
    let serve = || {
        let mut serve = command(&folder, &["serve", "--listen", "127.0.0.1:0"]);
        serve.env("DATABASE_URL", database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", database.admin_url());
        serve.env("TENANCY_JWT_SECRET", "a secret of the tests, of more than 32 bytes").env("TENANCY_BACKUP_PACE", "0");
        Serving::start(serve)
    };
    let operator = harness::actors::OPERATOR_TOKEN;
    let mut eye = database.superuser().await.expect("superuser");
    let delays = [30, 200, 500, 900, 1_200, 1_500, 1_800];
    let serving = serve();
    let mut backups = Vec::new();
    for n in 0..=delays.len() {
        let tenant =
            serving.post("/api/v1/tenants", operator, &json!({ "slug": format!("tenant-{n}"), "name": "x" })).await.expect(201).text("id");
        let fill = "with p as (insert into projects select $1::uuid, gen_random_uuid(), 'p', '', now(), now() returning id)
                    insert into documents select $1::uuid, gen_random_uuid(), p.id, 'd ' || g, repeat(md5(g::text), 8), now(), now() from p, generate_series(1, 2000) g";
        sqlx::query(fill).bind(&tenant).execute(&mut eye).await.expect("rows");
        let at = serving
            .ask("POST", &format!("/api/v1/tenants/{tenant}/backup"), operator, None)
            .await
            .expect(202)
            .header("location")
            .to_owned();
        let done = async || {
            let operation = serving.get(&at, operator).await.expect(200).json();
            (operation["state"] == "done").then(|| operation["id"].as_str().expect("an id").to_owned())
        };
        backups.push((until("a backup is not taken", done).await, tenant));
    }
    drop(serving);
    let mut digest = async |tenant: &str| -> String {
        let sql = "select md5(string_agg(d::text, '' order by d.id)) from documents d where tenant_id = $1::uuid";
        sqlx::query_scalar(sql).bind(tenant).fetch_one(&mut eye).await.expect("a digest")
    };
    let (_, untouched) = backups.pop().expect("one that nobody restores");
    let neighbour = digest(&untouched).await;
    let mut new = Vec::new();
    for (_, tenant) in &backups {
        new.push(digest(tenant).await);
    }
    let mut vandal = database.superuser().await.expect("superuser");
    for (_, tenant) in &backups {
        let sql = "delete from documents where tenant_id = $1::uuid and title like '%7%'";
        sqlx::query(sql).bind(tenant).execute(&mut vandal).await.expect("deleted");
        let sql = "update documents set content = 'changed' where tenant_id = $1::uuid and title like '%3%'";
        sqlx::query(sql).bind(tenant).execute(&mut vandal).await.expect("changed");
    }
    for (n, (backup, tenant)) in backups.iter().enumerate() {
        let old = digest(tenant).await;
        let serving = serve();
        serving.post(&format!("/api/v1/tenants/{tenant}/restore"), operator, &json!({ "backup": backup })).await.expect(202);
        tokio::time::sleep(Duration::from_millis(delays[n])).await;
        drop(serving);
        let now = digest(tenant).await;
        assert!(now == old || now == new[n], "killed after {} ms: a mix", delays[n]);
    }
    let serving = serve();
    for (n, (_, tenant)) in backups.iter().enumerate() {
        until("a restore is not completed", async || {
            let operations = serving.get(&format!("/api/v1/tenants/{tenant}/operations"), operator).await.expect(200).json();
            operations["items"].as_array().expect("items").iter().all(|operation| operation["state"] == "done").then_some(())
        })
        .await;
        assert_eq!(digest(tenant).await, new[n]);
        assert_eq!(serving.get(&format!("/api/v1/tenants/{tenant}"), operator).await.expect(200).text("status"), "active");
    }
    assert_eq!(digest(&untouched).await, neighbour);
    // The control: they were killed at their work, and not all before or after it.
    let resumed = "select count(*) from tenancy.operations where kind = 'restore' and attempts > 1";
    assert!(sqlx::query_scalar::<_, i64>(resumed).fetch_one(&mut vandal).await.expect("count") > 0);
}

#[tokio::test]
async fn a_link_opens_the_archive_for_a_while_and_nothing_else() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    fill(&acme, 0).await;
    let operator = app.operator();
    let backup = operator.back_up(&acme.slug).await;
    let at = format!("/api/v1/tenants/{}/backups/{backup}", acme.slug);
    let record = operator.get(&at).await.expect(200).json();
    let path = operator.link_to_backup(&acme.slug, &backup).await;

    // Whoever has it: no credentials at all.
    let visitor = app.stranger();
    let archive = visitor.get(&path).await.expect(200);
    assert_eq!(archive.body.len() as u64, record["bytes"].as_u64().expect("a size"));
    assert_eq!(archive.header("etag"), format!("\"{}\"", record["hash"].as_str().expect("a hash")));
    let kept = app.config.data_dir.join(format!("objects/backups/{}/archives/{backup}/1", record["tenant_id"].as_str().expect("an id")));
    assert_eq!(archive.body, std::fs::read(kept).expect("the archive"));
    assert!(archive.header("content-disposition").starts_with("attachment"));
    let mut eye = app.database.superuser().await.expect("superuser");
    let told = "select count(*) from tenancy.audit_events where action in ('backup.link', 'backup.download')";
    assert_eq!(sqlx::query_scalar::<_, i64>(told).fetch_one(&mut eye).await.expect("events"), 2);

    operator.ask("POST", &format!("/api/v1/tenants/{}/backups/{backup}/download", globex.slug)).await.expect(404);
    visitor.get(&format!("{path}x")).await.expect(404);
    visitor.get("/downloads/tnb_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await.expect(404);
    sqlx::query("update tenancy.backup_links set expires_at = now() - interval '1 second'").execute(&mut eye).await.expect("expired");
    visitor.get(&path).await.expect(404);
    sqlx::query("update tenancy.backup_links set expires_at = now() + interval '1 minute'").execute(&mut eye).await.expect("not expired");
    visitor.get(&path).await.expect(200);
    operator.delete(&at).await.expect(204);
    visitor.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_tenant_gets_a_schedule_and_is_backed_up_by_itself() {
    let app = TestApp::with(|config| (config.backup_every, config.drill_every) = (24, 91)).await;
    let acme = app.tenant("acme").await;
    let operator = app.operator();
    let at = "/api/v1/tenants/acme/backup-schedule";
    let standing = until("no backup and drill by itself", async || {
        let standing = operator.get(at).await.expect(200).json();
        (standing["backed_up_at"].is_string() && standing["drilled_at"].is_string()).then_some(standing)
    })
    .await;
    assert_eq!((&standing["every_hours"], &standing["drill_days"], &standing["own"]), (&json!(24), &json!(91), &json!(false)));
    let listed = operator.get("/api/v1/tenants/acme/backups").await.expect(200).json();
    assert_eq!((&listed["items"][0]["reason"], &listed["items"][1]), (&json!("scheduled"), &Value::Null));
    let drills = operator.get("/api/v1/tenants/acme/drills").await.expect(200).json();
    assert_eq!((&drills["items"][0]["result"]["backup"], &drills["items"][1]), (&listed["items"][0]["id"], &Value::Null));

    until("what was done is not counted", async || {
        let shown = operator.get("/metrics").await.expect(200).body;
        let shown = String::from_utf8(shown).expect("text");
        ["operations_ended{kind=\"drill\",state=\"done\"}", "operations_bytes{kind=\"backup\"}", "backup_due{kind=\"backup\"}"]
            .iter()
            .all(|series| shown.contains(series))
            .then_some(())
    })
    .await;
    let taken = operator.get("/api/v1/tenants/acme/operations").await.expect(200).json();
    let taken = taken["items"].as_array().expect("items").iter().find(|operation| operation["kind"] == "backup").expect("it").clone();
    assert!(taken["bytes"].as_i64() > Some(0), "{taken}");

    let own = operator.put(at, "").json(&json!({ "every_hours": 6, "keep": { "daily": 3 } })).await.expect(200).json();
    assert_eq!(
        (&own["own"], &own["every_hours"], &own["keep"]["daily"], &own["keep"]["weekly"]),
        (&json!(true), &json!(6), &json!(3), &json!(8))
    );
    let refused = operator.put(at, "").json(&json!({ "keep": { "last": 0 } })).await.expect(400).json();
    assert!(refused.to_string().contains("keep.last"), "{refused}");
    operator.put(at, "").json(&json!({ "every": 6 })).await.expect(400);
    assert_eq!(operator.delete(at).await.expect(200).json()["own"], false);
    let done = operator.get("/api/v1/tenants/acme/operations").await.expect(200).json()["items"][0]["id"].clone();
    let late = operator.ask("POST", &format!("/api/v1/operations/{}/cancel", done.as_str().expect("an id"))).await.expect(409).json();
    assert!(late["detail"].as_str().is_some_and(|why| why.contains("it is done")), "{late}");
    acme.get("/api/v1/documents").await.expect(200);
}

#[tokio::test]
async fn a_tenant_is_as_it_was_in_a_moment_between_two_backups() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let documents = fill(&acme, 0).await;
    fill(&globex, 100).await;
    let journal = format!("/api/v1/tenants/{}/journal", acme.slug);
    let restore = format!("/api/v1/tenants/{}/restore", acme.slug);
    for bad in [
        json!({}),
        json!({ "window_days": 0 }),
        json!({ "window_days": 367 }),
        json!({ "window_days": "x" }),
        json!({ "window_days": 7, "more": 1 }),
    ] {
        app.operator().put(&journal, "").json(&bad).await.problem("invalid");
    }
    acme.put(&journal, "").json(&json!({ "window_days": 7 })).await.problem("unauthenticated");
    app.operator().put(&format!("/api/v1/tenants/{ABSENT}/journal"), "").json(&json!({ "window_days": 7 })).await.problem("not-found");
    app.operator().delete(&journal).await.problem("not-found");
    app.operator().post(&restore, &json!({ "as_of": SystemClock.now() })).await.problem("conflict");
    for _ in 0..2 {
        app.operator().put(&journal, "").json(&json!({ "window_days": 7 })).await.expect(204);
    }
    app.operator().back_up(&acme.slug).await;
    acme.document(&acme.project("Since the backup").await, "This as well").await;
    let (was, others) = (seen(&acme).await, seen(&globex).await);
    let at = SystemClock.now(); // of the database's machine
    for document in &documents[..3] {
        acme.delete(&format!("/api/v1/documents/{document}")).await.expect(204);
    }
    assert_ne!(seen(&acme).await, was);
    app.operator().post(&restore, &json!({ "as_of": at + chrono::TimeDelta::hours(1) })).await.problem("invalid");
    app.operator().post(&restore, &json!({ "as_of": "yesterday" })).await.problem("invalid");
    let told = app.operator().work(&acme.slug, "restore", Some(&json!({ "as_of": at, "dry_run": true }))).await;
    assert_eq!(told["result"]["tables"]["public.documents"]["added"], 3, "{told}");
    let done = app.operator().work(&acme.slug, "restore", Some(&json!({ "as_of": at }))).await;
    assert_eq!((&done["state"], &done["result"]["objects_missing"]), (&json!("done"), &json!([])), "{done}");
    assert_eq!((seen(&acme).await, seen(&globex).await), (was, others));
    app.operator().delete(&journal).await.expect(204);
    let audit = app.operator().get(&format!("/api/v1/tenants/{}/audit?limit=200", acme.slug)).await.expect(200).json().to_string();
    assert!(audit.contains("\"backup.journal\"") && audit.contains("\"backup.journal_end\""));
}
