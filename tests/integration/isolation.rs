//! Another tenant's rows can't be read, written, moved or guessed at, whatever the SQL.

use harness::{Kit, Route, on_each_route};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool, Row};
use tenancy_core::ErrorKind;
use tenancy_sqlx::{TenantTx, from_sqlx};
use uuid::Uuid;

on_each_route! {
    #[tokio::test]
    raw_sql_is_confined;
    #[tokio::test]
    control_without_the_fence_the_same_sql_shows_everything;
    #[tokio::test]
    without_a_tenant_nothing_is_seen_also_on_a_reused_connection;
    #[tokio::test]
    writes_to_another_tenants_rows_are_refused_or_reach_nothing;
    #[tokio::test]
    control_without_the_fence_the_same_writes_succeed;
    #[tokio::test]
    the_role_can_do_nothing_but_read_and_write_rows;
    #[tokio::test]
    keys_are_no_oracle;
    #[tokio::test]
    control_a_key_without_the_tenant_is_an_oracle;
    #[tokio::test]
    a_tenants_own_audit_log_is_all_it_sees;
    #[tokio::test]
    fifty_tenants_on_ten_workers_mix_no_row;
}

/// Statements that try to see a note of another tenant without a `where` on the tenant.
const READS: &[&str] = &[
    "select body from notes",
    "select body from notes where true or tenant_id is not null",
    "select body from only notes",
    "select n.body from notes n cross join notes m",
    "select max(body) from notes having max(body) is not null",
    "with all_notes as (select * from notes) select body from all_notes union all select body from all_notes",
    "select body from notes where tenant_id <> tenancy.current_tenant()",
    "table notes",
];

async fn kit_with_notes(route: Route) -> Option<Kit> {
    let kit = Kit::on(route).await?;
    kit.note(&kit.acme, "acme's").await;
    kit.note(&kit.globex, "globex's").await;
    Some(kit)
}

async fn bodies(tx: &mut TenantTx, sql: &'static str) -> String {
    let rows = sqlx::raw_sql(sql).fetch_all(tx).await.expect(sql);
    rows.iter()
        .map(|row| {
            format!("{:?}", (0..sqlx::Row::len(row)).filter_map(|i| sqlx::Row::try_get::<String, _>(row, i).ok()).collect::<Vec<_>>())
        })
        .collect()
}

async fn raw_sql_is_confined(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    for (cx, foreign) in [(&kit.acme, "globex's"), (&kit.globex, "acme's")] {
        let mut tx = kit.db.read(cx).await.expect("read");
        for sql in READS {
            let seen = bodies(&mut tx, sql).await;
            assert!(!seen.contains(foreign), "{sql} showed {seen}");
        }
    }
    assert_eq!(kit.notes(&kit.acme).await, ["acme's"]);
}

async fn control_without_the_fence_the_same_sql_shows_everything(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    kit.superuser().await.execute("alter table notes disable row level security").await.expect("switch the protection off");
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    for sql in READS.iter().filter(|sql| !sql.contains("max(")) {
        assert!(bodies(&mut tx, sql).await.contains("globex's"), "the detector is blind to {sql}");
    }
}

/// The application's role on a pool of one connection, as a careless host would have it.
async fn bare_pool(kit: &Kit) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect(&kit.app_url()).await.expect("connect")
}

async fn without_a_tenant_nothing_is_seen_also_on_a_reused_connection(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    let pool = bare_pool(&kit).await;
    let count = || async { sqlx::raw_sql("select count(*) from notes").fetch_one(&pool).await.expect("count").get::<i64, _>(0) };
    assert_eq!(count().await, 0, "a fresh connection");
    for end in ["commit", "rollback"] {
        let bind = format!("begin; set local tenancy.tenant_id = '{}'; select body from notes", kit.acme.tenant_id());
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(bind)).fetch_all(&pool).await.expect("bound");
        assert_eq!(rows.len(), 1, "bound, it sees its own");
        sqlx::raw_sql(end).execute(&pool).await.expect(end);
        assert_eq!(count().await, 0, "the same connection after {end}");
    }
    let insert = sqlx::query("insert into notes (body) values ('nobody''s')").execute(&pool).await;
    assert!(insert.is_err(), "a row of no tenant was written");
    let unknown = format!("begin; set local tenancy.tenant_id = '{}'; select body from notes", Uuid::new_v4());
    assert!(sqlx::raw_sql(sqlx::AssertSqlSafe(unknown)).fetch_all(&pool).await.expect("unknown tenant").is_empty());
}

async fn writes_to_another_tenants_rows_are_refused_or_reach_nothing(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    let foreign: Uuid = kit.globex.tenant_id().as_uuid();
    let target = kit.note(&kit.globex, "target").await;
    let before = kit.notes(&kit.globex).await;

    // Statements that PostgreSQL refuses.
    let refused: &[&str] = &[
        "insert into notes (tenant_id, id, body) values ($1, $2, 'planted')",
        "insert into notes (tenant_id, id, body) values ($1, $2, 'planted') on conflict (tenant_id, id) do update set body = 'overwritten'",
        "insert into notes (tenant_id, id, body) values ($1, $2, 'planted') on conflict do nothing",
        "update notes set tenant_id = $1, id = $2",
        "insert into comments (tenant_id, note_id, body) values ($1, $2, 'planted')",
    ];
    for sql in refused {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let error = sqlx::query(*sql).bind(foreign).bind(target).execute(&mut tx).await.expect_err(sql);
        assert_eq!(from_sqlx(error).kind(), ErrorKind::Forbidden, "{sql}");
        assert_eq!(tx.commit().await.expect_err("nothing to keep").kind(), ErrorKind::TransactionAborted);
    }
    // Statements that find no row.
    let blind: &[&str] = &[
        "update notes set body = 'overwritten' where tenant_id = $1 and id = $2",
        "delete from notes where tenant_id = $1 and id = $2",
        "delete from notes n using comments c where n.tenant_id = $1 and n.id = $2",
        "merge into notes n using (values ($1::uuid, $2::uuid)) v(t, i) on n.tenant_id = v.t and n.id = v.i when matched then delete",
    ];
    for sql in blind {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let done = sqlx::query(*sql).bind(foreign).bind(target).execute(&mut tx).await.expect(sql);
        assert_eq!(done.rows_affected(), 0, "{sql}");
        tx.commit().await.expect("commit");
    }
    assert_eq!(kit.notes(&kit.globex).await, before);
}

async fn control_without_the_fence_the_same_writes_succeed(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    let target = kit.note(&kit.globex, "target").await;
    kit.superuser().await.execute("alter table notes disable row level security").await.expect("switch the protection off");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let done = sqlx::query("update notes set body = 'overwritten' where tenant_id = $1 and id = $2")
        .bind(kit.globex.tenant_id().as_uuid())
        .bind(target)
        .execute(&mut tx)
        .await
        .expect("update");
    assert_eq!(done.rows_affected(), 1, "the detector is blind");
}

async fn the_role_can_do_nothing_but_read_and_write_rows(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    let attempts: &[&str] = &[
        "truncate notes",
        "alter table notes disable row level security",
        "alter table notes no force row level security",
        "drop policy tenancy_fence on notes",
        "create policy open on notes using (true)",
        "create table loot (id int)",
        "create temp table loot as select * from notes",
        "create function public.f() returns int language sql as 'select 1'",
        "set role tenancy_owner",
        "set role tenancy_admin",
        "set session authorization postgres",
        "alter role tenancy_app bypassrls",
        "copy notes from stdin",
        "copy notes to '/tmp/loot'",
        "copy (select 1) to program 'true'",
        "select pg_read_file('/etc/passwd')",
        "select set_config('tenancy.tenant_id', '00000000-0000-0000-0000-000000000001', true)",
        "update tenancy.tenants set status = 'active'",
        "delete from tenancy.audit_events",
        "update tenancy.audit_events set action = 'x.y'",
        "insert into tenancy.audit_events (tenant_id, at, actor_kind, action, target, outcome) values (tenancy.current_tenant(), now(), 'system', 'a.b', '', 'done')",
        "call tenancy.protect_table('notes')",
        "alter function tenancy.current_tenant() owner to tenancy_app",
        "create or replace function tenancy.current_tenant() returns uuid language sql return null::uuid",
    ];
    for sql in attempts {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let outcome = sqlx::raw_sql(*sql).execute(&mut tx).await;
        assert!(outcome.is_err(), "{sql} was allowed");
    }
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let tenants: Vec<String> = sqlx::query_scalar("select slug from tenancy.tenants").fetch_all(&mut tx).await.expect("tenants");
    assert_eq!(tenants, ["acme"], "the list of customers");
}

async fn keys_are_no_oracle(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    let theirs = kit.note(&kit.globex, "target").await;
    // The same id in another tenant is no conflict: the key says nothing about it.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    sqlx::query("insert into notes (id, body) values ($1, 'mine')").bind(theirs).execute(&mut tx).await.expect("their id is free here");
    tx.commit().await.expect("commit");
    // A reference to their row answers exactly as one to a row that doesn't exist.
    let mut answers = Vec::new();
    kit.superuser().await.execute("delete from notes where body = 'mine'").await.expect("clean up");
    for id in [theirs, Uuid::new_v4()] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let error =
            sqlx::query("insert into comments (note_id, body) values ($1, 'x')").bind(id).execute(&mut tx).await.expect_err("no such note");
        let text = format!("{error:?}").replace(&id.to_string(), "<id>");
        assert!(!text.contains("target") && !text.contains(&kit.globex.tenant_id().to_string()), "{text}");
        answers.push(text);
    }
    assert_eq!(answers[0], answers[1]);
}

async fn control_a_key_without_the_tenant_is_an_oracle(route: Route) {
    let Some(kit) = kit_with_notes(route).await else { return };
    kit.superuser().await.execute("create unique index notes_body on notes (body)").await.expect("a key without the tenant");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let error = sqlx::query("insert into notes (body) values ($1)").bind("globex's").execute(&mut tx).await.expect_err("it shows");
    assert_eq!(from_sqlx(error).kind(), ErrorKind::Conflict, "the detector is blind");
}

async fn a_tenants_own_audit_log_is_all_it_sees(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    for cx in [&kit.acme, &kit.globex] {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        let event = tenancy_core::AuditEvent::new(cx.principal().actor(), "note.read", "x").with_tenant(kit.globex.tenant_id());
        tx.audit(event).await.expect("audit");
        tx.commit().await.expect("commit");
    }
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let tenants: Vec<Uuid> = sqlx::query_scalar("select tenant_id from tenancy.audit_events").fetch_all(&mut tx).await.expect("audit");
    assert!(!tenants.is_empty() && tenants.iter().all(|id| *id == kit.acme.tenant_id().as_uuid()), "{tenants:?}");
}

async fn fifty_tenants_on_ten_workers_mix_no_row(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(5)).await else { return };
    let mut tenants = Vec::new();
    for n in 0..50 {
        tenants.push(kit.database.tenant(&kit.db, &format!("tenant-{n}")).await.expect("tenant"));
    }
    let tenants = std::sync::Arc::new(tenants);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..10 {
        let (db, tenants) = (kit.db.clone(), std::sync::Arc::clone(&tenants));
        workers.spawn(async move {
            for step in 0..50 {
                let cx = &tenants[(worker * 7 + step * 13) % tenants.len()];
                let mut tx = db.begin(cx).await.expect("begin");
                sqlx::query("insert into notes (body) values ($1)")
                    .bind(cx.tenant_id().to_string())
                    .execute(&mut tx)
                    .await
                    .expect("insert");
                tx.commit().await.expect("commit");
                let mut tx = db.read(cx).await.expect("read");
                let rows: Vec<(Uuid, String)> =
                    sqlx::query_as("select tenant_id, body from notes").fetch_all(&mut tx).await.expect("select");
                let own = cx.tenant_id();
                assert!(!rows.is_empty() && rows.iter().all(|(id, body)| *id == own.as_uuid() && *body == own.to_string()));
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("worker");
    }
    let mut eye = kit.superuser().await;
    let (rows, mixed): (i64, i64) = sqlx::query_as("select count(*), count(*) filter (where tenant_id::text <> body) from notes")
        .fetch_one(&mut eye)
        .await
        .expect("count");
    assert_eq!((rows, mixed), (500, 0));
}
