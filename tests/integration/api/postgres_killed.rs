//! PostgreSQL itself is killed (SIGKILL, with all its processes, and the server with it) while tenants are backed up, restored, cloned and
//! drilled: after its recovery the old rows stand or the new ones, and the next server completes all.

use std::process::Command;
use std::time::Duration;

use harness::app::Folder;
use harness::program::command;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy_sqlx::embedded;

use super::onboarding::until;
use super::operations::Serving;

/// What is asked for, and when everything is killed.
const KILLS: [(&str, When); 7] = [
    ("restore", When::After(150)),
    ("restore", When::After(400)),
    ("restore", When::After(700)),
    ("restore", When::Held("share")), // at its fence
    ("backup", When::Held("access exclusive")),
    ("clone", When::Held("share")), // with what it has written
    ("drill", When::Held("share")),
];

#[derive(Debug, Clone, Copy)]
enum When {
    /// So many milliseconds after it was asked for.
    After(u64),
    /// Once it waits for somebody who has such a lock on the documents.
    Held(&'static str),
}

/// The server's own PostgreSQL, held by the test as well.
async fn join(folder: &Folder) -> (embedded::Server, PgConnection) {
    let server = embedded::start(embedded::Options::new(folder.0.join("data/postgres"))).await.expect("the server's own");
    let eye = PgConnection::connect(&server.url("postgres", "tenancy_server")).await.expect("a superuser's connection");
    (server, eye)
}

/// Kills all processes of the PostgreSQL: its first one, so that none comes after, and then the others.
async fn kill(eye: &mut PgConnection) {
    let first: String =
        sqlx::query_scalar("select split_part(pg_read_file('postmaster.pid'), E'\n', 1)").fetch_one(eye).await.expect("a pid");
    let others = Command::new("ps").args(["-o", "pid=", "--ppid", &first]).output().expect("ps").stdout;
    let others = String::from_utf8(others).expect("numbers");
    assert!(others.split_whitespace().count() > 3, "its processes: {others}");
    let killed = Command::new("kill").arg("-9").arg(&first).args(others.split_whitespace()).output().expect("kill");
    assert!(String::from_utf8_lossy(&killed.stderr).lines().all(|line| line.contains("No such process")), "{killed:?}"); // one may have ended
}

async fn digest(eye: &mut PgConnection, tenant: &str) -> String {
    let sql = "select md5(string_agg(concat(d.id, d.project_id, d.title, d.content, d.created_at), '' order by d.id)) from documents d where tenant_id = $1::uuid";
    sqlx::query_scalar(sql).bind(tenant).fetch_one(eye).await.expect("a digest")
}

#[tokio::test]
async fn postgres_killed_with_the_server_leaves_no_mix_and_what_the_next_one_completes() {
    let folder = Folder::new();
    let serve = || {
        let mut serve = command(&folder, &["serve", "--listen", "127.0.0.1:0"]);
        serve.env("TENANCY_BACKUP_PACE", "0");
        Serving::start(serve)
    };
    let operator = harness::actors::OPERATOR_TOKEN;
    let mut serving = serve();
    let (mut server, mut eye) = join(&folder).await;
    let mut tenants = Vec::new();
    for n in 0..=KILLS.len() {
        let new = json!({ "slug": format!("tenant-{n}"), "name": "x" });
        let tenant = serving.post("/api/v1/tenants", operator, &new).await.expect(201).text("id");
        let fill = "with p as (insert into projects select $1::uuid, gen_random_uuid(), 'p', '', now(), now() returning id)
                    insert into documents select $1::uuid, gen_random_uuid(), p.id, 'd ' || g, repeat(md5(g::text), 8), now(), now() from p, generate_series(1, 3000) g";
        sqlx::query(fill).bind(&tenant).execute(&mut eye).await.expect("rows");
        let backup = serving.ask("POST", &format!("/api/v1/tenants/{tenant}/backup"), operator, None).await.expect(202).text("id");
        tenants.push((tenant, backup));
    }
    for (tenant, backup) in &tenants {
        until(&format!("no backup of {tenant}"), async || {
            let operation = serving.get(&format!("/api/v1/operations/{backup}"), operator).await.expect(200).json();
            (operation["state"] == "done").then_some(())
        })
        .await;
    }
    let (neighbour, _) = tenants.pop().expect("one with which nothing is done");
    let untouched = digest(&mut eye, &neighbour).await;
    let mut new = Vec::new();
    for (tenant, _) in &tenants {
        new.push(digest(&mut eye, tenant).await);
        let change = "update documents set content = 'changed' where tenant_id = $1::uuid and title like '%3%'";
        sqlx::query(change).bind(tenant).execute(&mut eye).await.expect("changed");
        sqlx::query("delete from documents where tenant_id = $1::uuid and title like '%7%'")
            .bind(tenant)
            .execute(&mut eye)
            .await
            .expect("deleted");
    }

    for (n, ((tenant, backup), (kind, when))) in tenants.iter().zip(KILLS).enumerate() {
        let old = digest(&mut eye, tenant).await;
        let path = format!("/api/v1/tenants/{tenant}/{kind}");
        let body = match kind {
            "restore" => Some(json!({ "backup": backup })),
            "clone" => Some(json!({ "backup": backup, "slug": "a-copy" })),
            _ => None,
        };
        let mut holder = PgConnection::connect(&server.url("postgres", "tenancy_server")).await.expect("a superuser's connection");
        if let When::Held(mode) = when {
            holder.execute(AssertSqlSafe(format!("begin; lock table documents in {mode} mode"))).await.expect("held");
        }
        let id = serving.ask("POST", &path, operator, body.as_ref()).await.expect(202).text("id");
        match when {
            When::After(delay) => tokio::time::sleep(Duration::from_millis(delay)).await,
            When::Held(_) => {
                let waits = "select exists (select from pg_locks where not granted) or exists
                    (select from tenancy.operations where id = $1::uuid and step = 'waiting for older transactions')";
                let waiting = async {
                    while !sqlx::query_scalar::<_, bool>(waits).bind(&id).fetch_one(&mut eye).await.expect("a look") {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{kind} waits for nobody"));
            }
        }
        kill(&mut eye).await;
        drop((serving, eye, server));
        serving = serve();
        (server, eye) = join(&folder).await;
        let now = digest(&mut eye, tenant).await;
        let may_be_new = kind == "restore" && now == new[n];
        assert!(now == old || may_be_new, "{kind}, killed {when:?}: a mix");
        assert_eq!(digest(&mut eye, &neighbour).await, untouched);
        // The dead server's claim, which would run out by itself.
        eye.execute("update tenancy.operations set claimed_until = clock_timestamp() where state = 'running'").await.expect("run out");
        until(&format!("{:?} is not completed", KILLS[n]), async || {
            let operation = serving.get(&format!("/api/v1/operations/{id}"), operator).await.expect(200).json();
            assert_ne!(operation["state"], "failed", "{operation}");
            (operation["state"] == "done").then_some(())
        })
        .await;
    }
    for (n, (tenant, _)) in tenants.iter().enumerate() {
        match KILLS[n].0 {
            "restore" => assert_eq!(digest(&mut eye, tenant).await, new[n]),
            "clone" => {
                let copy = serving.get("/api/v1/tenants/a-copy", operator).await.expect(200).text("id");
                assert_eq!(digest(&mut eye, &copy).await, new[n]);
            }
            _ => assert_ne!(digest(&mut eye, tenant).await, new[n], "it is as it was"),
        }
        assert_eq!(serving.get(&format!("/api/v1/tenants/{tenant}"), operator).await.expect(200).text("status"), "active");
    }
    assert_eq!(digest(&mut eye, &neighbour).await, untouched);
    // The control: they were killed at their work.
    let resumed: i64 =
        sqlx::query_scalar("select count(*) from tenancy.operations where attempts > 1").fetch_one(&mut eye).await.expect("count");
    assert!(resumed >= 4, "{resumed} were interrupted");
    drop((serving, eye, server));
}
