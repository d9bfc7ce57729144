//! The audit log over HTTP: one's own, page by page and as a stream; and the seals that the server sets and anchors by itself.

use std::time::{Duration, Instant};

use harness::actors::{Actor, Reply};
use harness::app::{Folder, TestApp, files};
use harness::program::{command, run};
use serde_json::{Value, json};

fn items(reply: &Reply) -> Vec<Value> {
    reply.json()["items"].as_array().expect("items").clone()
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let text = std::str::from_utf8(&reply.body).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn a_tenants_admins_see_what_was_done_to_it_and_by_whom_and_nothing_else() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    for (member, name) in [(&acme, "Acme Renamed"), (&globex, "Globex Renamed")] {
        operator.patch(&format!("/api/v1/tenants/{}", member.tenant), &json!({ "name": name })).await.expect(200);
        operator.get(&format!("/api/v1/tenants/{}/quotas", member.slug)).await.expect(200);
    }
    let own = acme.get("/api/v1/audit").await.expect(200);
    let actions: Vec<_> = items(&own).iter().map(|event| event["action"].as_str().expect("an action").to_owned()).collect();
    for action in ["tenant.create", "tenant.update", "system.access"] {
        assert!(actions.iter().any(|had| had == action), "{action} is not in {actions:?}");
    }
    own.is_silent_about([&globex.tenant, &globex.slug, &globex.name, &"Globex Renamed".to_owned()]);

    let changed = acme.get("/api/v1/audit?action=tenant.update&outcome=done").await.expect(200);
    let [event] = items(&changed).try_into().expect("one change");
    assert_eq!(event["detail"]["before"], json!({ "name": acme.name }));
    assert_eq!(event["detail"]["after"], json!({ "name": "Acme Renamed" }));
    assert_eq!((&event["actor_kind"], &event["detail"]["version"]), (&json!("operator"), &json!(2)));
    // A bound in time: the event itself is the first moment, and not before it.
    let at = event["at"].as_str().expect("a time");
    let before = acme.get(&format!("/api/v1/audit?until={at}&action=tenant.update")).await.expect(200);
    assert_eq!(items(&before).len(), 0);
    assert_eq!(items(&acme.get(&format!("/api/v1/audit?since={at}&action=tenant.update")).await.expect(200)).len(), 1);
    assert_eq!(items(&acme.get("/api/v1/audit?outcome=denied&action=tenant.update").await.expect(200)).len(), 0);

    // The control: the operator sees each tenant's, and the other's is not empty.
    let other = operator.get(&format!("/api/v1/tenants/{}/audit?action=tenant.update", globex.slug)).await.expect(200);
    assert_eq!(items(&other)[0]["detail"]["after"], json!({ "name": "Globex Renamed" }));
    for role in ["viewer", "member"] {
        acme.role(role).get("/api/v1/audit").await.problem("forbidden");
    }
    acme.get("/api/v1/tenants/globex-corp/audit").await.refused();
    app.stranger().get("/api/v1/audit").await.problem("unauthenticated");
    operator.get("/api/v1/tenants/nobody/audit").await.problem("not-found");
}

#[tokio::test]
async fn pages_and_the_stream_have_each_event_once_the_newest_first() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let mut eye = app.db_eye().await;
    // Some at the same moment, so that the id decides.
    for member in [&acme, &globex] {
        sqlx::query(
            "insert into tenancy.audit_events (tenant_id, at, actor_kind, action, target, outcome)
             select $1::uuid, timestamptz '2026-01-01' + (n / 3) * interval '1 s', 'system', 'note.write', n::text, 'done' from generate_series(1, 450) n",
        )
        .bind(&member.tenant)
        .execute(&mut eye)
        .await
        .expect("planted");
    }
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = acme.get(&format!("/api/v1/audit?action=note.write&limit=100{cursor}")).await.expect(200);
        paged.extend(items(&page));
        match page.json()["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut targets: Vec<u32> = paged.iter().map(|event| event["target"].as_str().expect("text").parse().expect("a number")).collect();
    assert!(paged.is_sorted_by(|a, b| a["at"].as_str() >= b["at"].as_str()));
    targets.sort_unstable();
    assert_eq!(targets, (1..=450).collect::<Vec<_>>());

    let accept = |path: &str| acme.get(path).with("accept", "application/x-ndjson");
    assert_eq!(lines(&accept("/api/v1/audit?action=note.write").await.expect(200)), paged);
    let of_operator = app.operator().get("/api/v1/tenants/acme-works/audit?action=note.write").with("accept", "application/x-ndjson");
    assert_eq!(lines(&of_operator.await.expect(200)), paged);

    // A cursor at another tenant's event is a cursor at nothing.
    let theirs = globex.get("/api/v1/audit?action=note.write&limit=1").await.expect(200).text("next_cursor");
    assert_eq!(items(&acme.get(&format!("/api/v1/audit?cursor={theirs}")).await.expect(200)), Vec::<Value>::new());
    for (query, field) in [
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("action=Robert'", "action"),
        ("outcome=x", "outcome"),
        ("since=yesterday", "since"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
        ("tenant_id=x", "tenant_id"),
    ] {
        acme.get(&format!("/api/v1/audit?{query}")).await.invalid(field);
    }
    accept("/api/v1/audit?limit=1").await.invalid("limit");
}

#[tokio::test]
async fn the_server_seals_and_anchors_and_the_command_finds_what_was_changed_since() {
    let mut app = TestApp::start().await;
    let (acme, _globex) = app.two_tenants().await;
    let anchors = app.config.data_dir.join("objects/audit-anchors").join(&acme.tenant);
    let since = Instant::now();
    while files(&anchors).is_empty() {
        assert!(since.elapsed() < Duration::from_secs(60), "nothing is anchored");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let folder = Folder::new();
    let verify = || {
        let mut command = command(&folder, &["audit", "verify", "--tenant", "acme-works", "--json"]);
        command.env("DATABASE_URL", app.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", app.database.admin_url());
        command.env("TENANCY_OBJECTS", format!("file://{}", app.config.data_dir.join("objects").display()));
        let (output, out, err) = run(command);
        (output.status.code(), serde_json::from_str::<Value>(&out).unwrap_or_else(|_| panic!("{out}{err}")))
    };
    let (code, report) = verify();
    assert_eq!((code, &report["findings"]), (Some(0), &json!([])), "{report}");
    let mut eye = app.db_eye().await;
    sqlx::query("delete from tenancy.audit_seals where tenant_id = $1::uuid").bind(&acme.tenant).execute(&mut eye).await.expect("deleted");
    sqlx::query("delete from tenancy.audit_events where tenant_id = $1::uuid").bind(&acme.tenant).execute(&mut eye).await.expect("deleted");
    let (code, report) = verify();
    assert_eq!((code, &report["findings"][0]["kind"]), (Some(2), &json!("truncated")), "{report}");
    app.will_not_balance("a tenant's events were deleted by hand");
}
