//! Erasure: all of one tenant and nothing of another, from wherever it was killed, and refused where it could not be complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harness::Kit;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tenancy_core::objects::TenantObjects;
use tenancy_core::quota::{Metric, Quota};
use tenancy_core::{Actor, ErrorKind, TenantCatalog as _, TenantChange, TenantContext, TenantHint, TenantId, TenantStatus};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::operations::{Operation, Operations};
use uuid::Uuid;

fn key() -> CertificateKey {
    CertificateKey::new([7; 32])
}

fn worker(kit: &Kit, erase: Erase) -> Operations {
    Operations::new(&kit.db).with(Erase::KIND, erase).with_lease(Duration::from_millis(1_500))
}

async fn archive(kit: &Kit, cx: &TenantContext) {
    kit.db.catalog().update(cx.tenant_id(), TenantChange::status(TenantStatus::Archived), None, &Actor::System).await.expect("archived");
}

async fn request(kit: &Kit, cx: &TenantContext) -> tenancy_core::Result<Operation> {
    let mut tx = kit.db.dangerous().begin_system("a test erases a tenant").await?;
    let queued = tx.request_erasure(cx.tenant_id(), "the contract ended", None).await?;
    tx.commit().await?;
    Ok(queued)
}

async fn operation(kit: &Kit, id: Uuid) -> Operation {
    let mut tx = kit.db.dangerous().begin_system("a test looks").await.expect("system");
    tx.operation(id).await.expect("the operation")
}

/// Works until nothing is left to do: claims of killed workers have to run out first.
async fn finish(kit: &Kit, id: Uuid, erase: Erase) -> Operation {
    let worker = worker(kit, erase);
    loop {
        worker.run_next().await.expect("it runs");
        let now = operation(kit, id).await;
        assert_ne!(now.state, "failed", "{:?}", now.error);
        if now.state == "done" {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rows of all kinds, in the host's tables and the kit's.
async fn fill(kit: &Kit, cx: &TenantContext, rows: i64) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let sql = "with n as (insert into notes (body) select 'x' || g from generate_series(1, $1) g returning id) insert into comments (note_id, body) select id, 'c' from n";
    sqlx::query(sql).bind(rows).execute(&mut tx).await.expect("rows");
    tx.grow(Metric::USERS, 3).await.expect("grown");
    tx.post(&tenancy_core::outbox::Message::new("note.made", "1", json!({ "n": 1 })).expect("a message")).await.expect("posted");
    tx.commit().await.expect("commit");
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(cx.tenant_id(), &Quota::new(Metric::USERS, 100)).await.expect("set");
    tx.commit().await.expect("commit");
}

/// A digest of the tenant's rows, or of everybody's, per table; empty tables are left out.
async fn digests(eye: &mut PgConnection, tenant: Option<TenantId>) -> BTreeMap<String, String> {
    let tables = "select attrelid::regclass::text from pg_attribute join pg_class c on c.oid = attrelid
                   where attname = 'tenant_id' and not attisdropped and relkind in ('r', 'p') and not relispartition
                     and relname not in ('audit_events', 'audit_seals', 'operations')";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *eye).await.expect("tables");
    let mut all = BTreeMap::new();
    for table in tables {
        let sql = format!(
            "select md5(string_agg(t::text, ',' order by t::text)) from {table} t where $1::uuid is null or tenant_id::text = $1::text"
        );
        let digest: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.map(TenantId::as_uuid)).fetch_one(&mut *eye).await.expect("digest");
        all.extend(digest.map(|digest| (table, digest)));
    }
    all
}

async fn as_owner(kit: &Kit, sql: &str) {
    let mut eye = kit.superuser().await;
    eye.execute("set role tenancy_owner").await.expect("owner");
    eye.execute(AssertSqlSafe(sql.to_owned())).await.expect("made");
}

/// The host's tables with what makes an order hard: a tree, and two that refer to each other; and one in partitions.
async fn hard_tables(kit: &Kit, cxs: &[&TenantContext]) {
    as_owner(
        kit,
        "create table tree (tenant_id uuid not null, id int not null, up int, primary key (tenant_id, id), foreign key (tenant_id, up) references tree (tenant_id, id));
         create table men (tenant_id uuid not null, id int not null, dog int, primary key (tenant_id, id));
         create table dogs (tenant_id uuid not null, id int not null, man int not null, primary key (tenant_id, id), foreign key (tenant_id, man) references men (tenant_id, id));
         alter table men add foreign key (tenant_id, dog) references dogs (tenant_id, id);
         create table events (tenant_id uuid not null, id int not null, primary key (tenant_id, id)) partition by range (id);
         create table events_1 partition of events for values from (0) to (10);
         create table events_2 partition of events for values from (10) to (20);
         call tenancy.protect_table('tree'); call tenancy.protect_table('men'); call tenancy.protect_table('dogs'); call tenancy.protect_table('events')",
    )
    .await;
    for cx in cxs {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        for sql in [
            "insert into tree (id, up) values (1, null), (2, 1), (3, 2)",
            "insert into men (id) values (1)",
            "insert into dogs (id, man) values (1, 1)",
            "update men set dog = 1",
            "insert into events (id) select generate_series(5, 14)",
        ] {
            sqlx::query(sql).execute(&mut tx).await.expect(sql);
        }
        tx.commit().await.expect("commit");
    }
}

#[tokio::test]
async fn all_of_one_tenant_goes_and_nothing_of_another() {
    let kit = Kit::new().await;
    hard_tables(&kit, &[&kit.acme, &kit.globex]).await;
    let objects = TenantObjects::prefixed(Arc::new(InMemory::new()), Path::from("tenants")).expect("objects");
    for cx in [&kit.acme, &kit.globex] {
        fill(&kit, cx, 40).await;
        objects.scope(cx).expect("scope").put(&Path::from("a/b"), "12345".into()).await.expect("put");
    }
    let mut eye = kit.superuser().await;
    let (globex, everybody) = (digests(&mut eye, Some(kit.globex.tenant_id())).await, digests(&mut eye, None).await);
    assert!(digests(&mut eye, Some(kit.acme.tenant_id())).await.len() >= 9);

    let active = request(&kit, &kit.acme).await.expect_err("it serves").to_string();
    assert!(active.contains("archive it first"), "{active}");
    archive(&kit, &kit.acme).await;
    let queued = request(&kit, &kit.acme).await.expect("queued");
    assert_eq!(request(&kit, &kit.acme).await.expect_err("one at a time").kind(), ErrorKind::Conflict);
    let back = kit.db.catalog().update(kit.acme.tenant_id(), TenantChange::status(TenantStatus::Suspended), None, &Actor::System).await;
    assert_eq!(back.expect_err("no way back").to_string(), "the tenant is being erased");
    let done = finish(&kit, queued.id, Erase::new(&kit.db, key()).with_objects(objects.clone())).await;
    assert_eq!((done.state.as_str(), &done.error), ("done", &None));

    assert_eq!(digests(&mut eye, Some(kit.acme.tenant_id())).await, BTreeMap::new());
    assert_eq!(digests(&mut eye, Some(kit.globex.tenant_id())).await, globex);
    assert_ne!(digests(&mut eye, None).await, everybody, "control: the digests see what goes");
    assert_eq!(objects.scope(&kit.globex).expect("scope").get(&Path::from("a/b")).await.expect("globex's").meta.size, 5);
    assert!(objects.scope(&kit.acme).expect("scope").get(&Path::from("a/b")).await.is_err());

    let signed = done.result.expect("a certificate");
    let certificate = key().verify(&signed).expect("signed");
    let (tables, acme) = (&certificate["tables"], kit.acme.tenant_id());
    assert_eq!((&certificate["tenant_id"], &certificate["reason"]), (&json!(acme), &json!("the contract ended")));
    assert_eq!((&tables["public.notes"], &tables["public.comments"], &tables["public.tree"]), (&json!(40), &json!(40), &json!(3)));
    assert_eq!((&tables["public.men"], &tables["public.dogs"], &tables["public.events"]), (&json!(1), &json!(1), &json!(10)));
    assert_eq!((&tables["tenancy.quota_gauges"], &tables["tenancy.outbox"]), (&json!(1), &json!(1)));
    assert_eq!((&certificate["objects"], &certificate["leftovers"]), (&json!({ "objects": 1, "bytes": 5 }), &json!({})));
    assert!(certificate["kept"]["tenancy.audit_events"]["rows"].as_i64() >= Some(3), "{certificate}");

    // The tombstone names nobody, the slug is free, and the event has its version.
    let row: Value = sqlx::query_scalar("select to_jsonb(t) from tenancy.tenants t where id = $1")
        .bind(acme.as_uuid())
        .fetch_one(&mut eye)
        .await
        .expect("row");
    assert!(row["status"] == "erased" && row["name"] == "erased" && !row.to_string().contains("acme"), "{row}");
    let hint: TenantHint = "acme".parse().expect("a slug");
    assert!(kit.db.catalog().find(&hint).await.expect("answered").is_none());
    kit.database.tenant(&kit.db, "acme").await.expect("the slug is free");
    let event: Value = sqlx::query_scalar("select detail from tenancy.audit_events where action = 'tenant.erase' and tenant_id = $1")
        .bind(acme.as_uuid())
        .fetch_one(&mut eye)
        .await
        .expect("one event");
    assert_eq!((&event["version"], &event["erased"]["tables"]), (&row["version"], tables));
    let again = sqlx::query("update tenancy.tenants set name = 'back', version = version + 1 where id = $1").bind(acme.as_uuid());
    assert!(again.execute(&mut eye).await.is_err(), "a tombstone stays as it is");
}

/// What the digests are for: the same statement without its tenant.
#[tokio::test]
async fn control_without_the_tenant_another_ones_digest_changes() {
    let kit = Kit::new().await;
    fill(&kit, &kit.acme, 2).await;
    fill(&kit, &kit.globex, 2).await;
    let mut eye = kit.superuser().await;
    let before = digests(&mut eye, Some(kit.globex.tenant_id())).await;
    eye.execute("delete from comments").await.expect("deleted");
    assert_ne!(digests(&mut eye, Some(kit.globex.tenant_id())).await, before);
}

#[tokio::test]
async fn killed_after_any_step_another_node_goes_on_and_counts_right() {
    let kit = Kit::new().await;
    let store = Arc::new(InMemory::new());
    let objects = TenantObjects::prefixed(store.clone(), Path::from("tenants")).expect("objects");
    let rows = i64::from(Erase::MAX_BATCH) + 7; // so that a table takes two batches
    fill(&kit, &kit.acme, rows).await;
    fill(&kit, &kit.globex, 3).await;
    objects.scope(&kit.acme).expect("scope").put(&Path::from("a"), "12345".into()).await.expect("put");
    let mut eye = kit.superuser().await;
    let globex = digests(&mut eye, Some(kit.globex.tenant_id())).await;
    archive(&kit, &kit.acme).await;
    let queued = request(&kit, &kit.acme).await.expect("queued");

    let steps = ["settled", "batch", "rows", "objects_found", "objects", "verified"];
    for (attempt, step) in steps.into_iter().enumerate() {
        let erase = Erase::new(&kit.db, key()).with_objects(objects.clone()).halting_after(step);
        let halting = worker(&kit, erase);
        let task = tokio::spawn(async move {
            loop {
                halting.run_next().await.expect("it runs");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        // It has claimed the operation, and has come to where it stands still: its row stops changing, but for the claim.
        let mut last = None;
        loop {
            tokio::time::sleep(Duration::from_millis(1100)).await; // longer than any of its waits
            let now = operation(&kit, queued.id).await;
            let mine = now.attempts == i64::try_from(attempt).expect("few") + 1;
            if mine && last.as_ref() == Some(&now.updated_at) {
                break;
            }
            assert_ne!(now.state, "done", "it did not halt after {step}");
            last = Some(now.updated_at);
        }
        task.abort();
        let _ = task.await;
    }
    let done = finish(&kit, queued.id, Erase::new(&kit.db, key()).with_objects(objects)).await;
    assert_eq!((done.state.as_str(), done.attempts), ("done", 7), "{:?}", done.error);
    let signed = done.result.expect("a certificate");
    let certificate = key().verify(&signed).expect("signed");
    assert_eq!((&certificate["tables"]["public.notes"], &certificate["tables"]["public.comments"]), (&json!(rows), &json!(rows)));
    assert_eq!(certificate["objects"], json!({ "objects": 1, "bytes": 5 }));
    assert_eq!(digests(&mut eye, Some(kit.acme.tenant_id())).await, BTreeMap::new());
    assert_eq!(digests(&mut eye, Some(kit.globex.tenant_id())).await, globex);
    assert!(futures_util::StreamExt::next(&mut store.list(None)).await.is_none());
}

#[tokio::test]
async fn what_cannot_be_handled_is_refused_by_name_before_anything_goes() {
    for (sql, says) in [
        ("create table bare (tenant_id uuid not null)", "public.bare has a tenant column, is not protected"),
        ("create table texts (tenant_id text not null)", "public.texts has a tenant column that is not a uuid"),
        (
            "create table ruled (id int); call tenancy.erase_rule('ruled', 'delete', 'it is the test''s')",
            "public.ruled has a rule and no tenant column",
        ),
        (
            "create table outer_ref (id int primary key, tenant uuid, note uuid, foreign key (tenant, note) references notes (tenant_id, id))",
            "public.outer_ref stays, and its foreign key",
        ),
        ("call tenancy.erase_rule('comments', 'keep', 'ten years, by law')", "public.comments stays, and its foreign key"),
        ("revoke delete on notes from tenancy_admin", "public.notes does not let the administrative role"),
        (
            "create table plain (id int); create table part (tenant_id uuid) inherits (plain)",
            "its part public.part has another tenant column",
        ),
    ] {
        let kit = Kit::new().await;
        fill(&kit, &kit.acme, 2).await;
        archive(&kit, &kit.acme).await;
        as_owner(&kit, sql).await;
        let refused = request(&kit, &kit.acme).await.expect_err(sql);
        assert!(refused.kind() == ErrorKind::Conflict && refused.to_string().contains(says), "{sql}: {refused}");
        let mut eye = kit.superuser().await;
        assert!(digests(&mut eye, Some(kit.acme.tenant_id())).await.contains_key("notes"));
    }
}

#[tokio::test]
async fn a_rule_keeps_rows_with_its_reason_and_leftovers_are_named() {
    let kit = Kit::new().await;
    fill(&kit, &kit.acme, 2).await;
    as_owner(
        &kit,
        "create table invoices (tenant_id uuid not null, id int not null, primary key (tenant_id, id)); call tenancy.protect_table('invoices');
         call tenancy.erase_rule('invoices', 'keep', 'legal: 10 years');
         create table logs (line text, about jsonb); grant select, insert on logs to tenancy_admin;
         create table hidden (line text)",
    )
    .await;
    let mut eye = kit.superuser().await;
    let acme = kit.acme.tenant_id();
    for sql in [
        "insert into invoices values ($1::uuid, 1)",
        "insert into logs values ('of ' || upper($1), null), ('x', jsonb_build_object('a', $1))",
    ] {
        sqlx::query(sql).bind(acme.to_string()).execute(&mut eye).await.expect(sql);
    }
    archive(&kit, &kit.acme).await;
    let queued = request(&kit, &kit.acme).await.expect("queued");
    let done = finish(&kit, queued.id, Erase::new(&kit.db, key())).await;
    let signed = done.result.expect("a certificate");
    let certificate = key().verify(&signed).expect("signed");
    assert_eq!(certificate["kept"]["public.invoices"], json!({ "rows": 1, "reason": "legal: 10 years" }));
    assert_eq!(certificate["leftovers"], json!({ "public.logs": 2 }));
    assert!(certificate["not_read"].to_string().contains("public.hidden") && certificate["objects"].is_null(), "{certificate}");
}

/// A writer that began while the tenant was active, and has written nothing yet: it has no transaction id to wait for.
async fn late_writer(kit: &Kit, erase: Erase) -> BTreeMap<String, String> {
    fill(kit, &kit.acme, 2).await;
    let mut late = kit.db.begin(&kit.acme).await.expect("begin");
    archive(kit, &kit.acme).await;
    let queued = request(kit, &kit.acme).await.expect("queued");
    let worker = worker(kit, erase);
    let work = tokio::spawn(async move { worker.run_next().await });
    loop {
        let now = operation(kit, queued.id).await;
        if now.state == "done" || now.step == "waiting for older transactions" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sqlx::query("insert into notes (body) values ('late')").execute(&mut late).await.expect("insert");
    late.commit().await.expect("commit");
    work.await.expect("no panic").expect("it runs");
    assert_eq!(operation(kit, queued.id).await.state, "done");
    digests(&mut kit.superuser().await, Some(kit.acme.tenant_id())).await
}

#[tokio::test]
async fn a_writer_that_began_before_leaves_no_row() {
    let kit = Kit::new().await;
    assert_eq!(late_writer(&kit, Erase::new(&kit.db, key())).await, BTreeMap::new());
}

#[tokio::test]
async fn control_without_waiting_the_late_row_stays() {
    let kit = Kit::new().await;
    let left = late_writer(&kit, Erase::new(&kit.db, key()).danger_without_waiting()).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), ["notes"]);
}

/// A node that reports what it spent for the tenant brings no row back.
#[tokio::test]
async fn a_nodes_late_report_leaves_no_row() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let node: Uuid = sqlx::query_scalar("select tenancy.quota_node_start('1 hour', false)").fetch_one(&mut eye).await.expect("a node");
    let report = async |eye: &mut PgConnection| {
        let sql = "select count(*) from tenancy.quota_lease($1, array[$2], array['requests'], array['2026-01-01Z'::timestamptz], array[5], array[1], array[0], array[0], 2)";
        sqlx::query_scalar::<_, i64>(sql).bind(node).bind(kit.acme.tenant_id().as_uuid()).fetch_one(eye).await.expect("reported")
    };
    assert_eq!(report(&mut eye).await, 1, "control: it leases while it is not erased");
    archive(&kit, &kit.acme).await;
    let queued = request(&kit, &kit.acme).await.expect("queued");
    finish(&kit, queued.id, Erase::new(&kit.db, key())).await;
    assert_eq!(report(&mut eye).await, 0);
    assert_eq!(digests(&mut eye, Some(kit.acme.tenant_id())).await, BTreeMap::new());
}

/// A table that a migration of the server adds, and that can't be erased, fails here.
#[tokio::test]
async fn the_servers_own_schema_can_be_erased() {
    let database = tenancy_sqlx::testing::TestDatabase::with_migrations(&tenancy_server::MIGRATIONS).await.expect("a database");
    let kit = Kit::on_database(harness::Route::Direct, database, |options| options).await.expect("a kit");
    archive(&kit, &kit.acme).await;
    let queued = request(&kit, &kit.acme).await.expect("every table is handled");
    let done = finish(&kit, queued.id, Erase::new(&kit.db, key())).await;
    let signed = done.result.expect("a certificate");
    let certificate = key().verify(&signed).expect("signed");
    assert!(certificate["tables"].get("public.attachments").is_some(), "{certificate}");
    as_owner(&kit, "create table bare (tenant_id uuid not null)").await;
    archive(&kit, &kit.globex).await;
    assert!(request(&kit, &kit.globex).await.is_err(), "control: a new table is noticed");
}
