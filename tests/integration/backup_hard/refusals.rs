//! What the database refuses to those who back up and restore, whatever they are told to do.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tenancy_core::TenantId;

use crate::backup::{World, as_owner};

/// What becomes of a statement in a transaction of its own, which begins so and is undone: how many rows it touched, or its SQLSTATE.
async fn outcome(eye: &mut PgConnection, begin: &[String], sql: &str) -> Result<u64, String> {
    let mut tx = eye.begin().await.expect("begin");
    for first in begin {
        sqlx::raw_sql(AssertSqlSafe(first.clone())).execute(&mut *tx).await.expect("set up");
    }
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *tx).await;
    let outcome = match done {
        Ok(done) => Ok(done.rows_affected()),
        Err(error) => Err(error.as_database_error().and_then(sqlx::error::DatabaseError::code).expect("an SQLSTATE").into_owned()),
    };
    tx.rollback().await.expect("rolled back");
    outcome
}

fn as_role(role: &str) -> Vec<String> {
    vec![format!("set local role {role}")]
}

/// Two tenants with a note and a counted thing each.
async fn world() -> World {
    let world = World::new().await;
    let things = "create table things (tenant_id uuid not null, id bigint generated always as identity, primary key (tenant_id, id)); call tenancy.protect_table('things')";
    as_owner(&world.kit, things).await;
    for cx in [&world.kit.acme, &world.kit.globex] {
        world.kit.note(cx, "a note").await;
    }
    world
}

#[tokio::test]
async fn the_backups_role_reads_and_nothing_else() {
    let world = world().await;
    let mut eye = world.kit.superuser().await;
    let acme = world.kit.acme.tenant_id();
    let read_only = ["set transaction read only".to_owned(), "set local role tenancy_backup".to_owned()];
    for sql in [
        format!("insert into notes (tenant_id, body) values ('{acme}', 'x')"),
        "update notes set body = 'x'".to_owned(),
        "delete from notes".to_owned(),
        "truncate notes cascade".to_owned(),
        "select nextval('things_id_seq')".to_owned(),
        "select from notes for update".to_owned(),
        "create table public.mine (id int)".to_owned(),
        "create schema mine".to_owned(),
        "create function public.mine() returns int language sql as 'select 1'".to_owned(),
        "create type public.mine as enum ('x')".to_owned(),
        "drop table notes cascade".to_owned(),
        "alter table notes disable row level security".to_owned(),
        "update tenancy.tenants set name = 'x'".to_owned(),
        "update tenancy.quota_gauges set used = 0".to_owned(),
        "insert into tenancy.backup_rules (rel, rule, reason) values ('notes', 'skip', 'not of interest')".to_owned(),
        "delete from tenancy.audit_events".to_owned(),
        "insert into tenancy.operations (id) values (gen_random_uuid())".to_owned(),
        "call tenancy.backup_rule('notes', 'skip', 'not of interest')".to_owned(),
        "select tenancy.restore_shares()".to_owned(),
    ] {
        assert_eq!(outcome(&mut eye, &as_role("tenancy_backup"), &sql).await, Err("42501".to_owned()), "{sql}");
        let refused = outcome(&mut eye, &read_only, &sql).await.expect_err(&sql);
        assert!(["42501", "25006"].contains(&refused.as_str()), "{sql}: {refused}");
    }
    // Nor does its transaction become another one, once it has its snapshot.
    let snapshot = [read_only.as_slice(), &["select from notes".to_owned()]].concat();
    assert_eq!(outcome(&mut eye, &snapshot, "set transaction read write").await, Err("25001".to_owned()));
    // Of the kit's own tables it reads what a backup has of them, and those that say what to take: nobody's members, secrets or tokens.
    let reads = "select relname::text from pg_class where relnamespace = 'tenancy'::regnamespace and relkind in ('r', 'p', 'v') and has_any_column_privilege('tenancy_backup', oid, 'select') order by 1";
    let reads: Vec<String> = sqlx::query_scalar(reads).fetch_all(&mut eye).await.expect("tables");
    assert_eq!(reads, ["backup_rules", "global_tables", "object_columns", "quota_gauges", "shared_tables", "tenant_configs", "tenants"]);
    assert_eq!(outcome(&mut eye, &as_role("tenancy_backup"), "select from tenancy.members").await, Err("42501".to_owned()));
    // The controls: it reads every tenant's rows, and a superuser's statements do what they say.
    assert_eq!(outcome(&mut eye, &as_role("tenancy_backup"), "select from notes").await, Ok(2));
    assert_eq!(outcome(&mut eye, &[], "update notes set body = 'x'").await, Ok(2));
    assert_eq!(outcome(&mut eye, &[], "create schema mine").await, Ok(0));
}

#[tokio::test]
async fn the_role_that_stages_can_neither_read_nor_write_anybodys_rows() {
    let world = world().await;
    let mut eye = world.kit.superuser().await;
    let staging = [as_role("tenancy_restore"), vec!["set local session_replication_role = replica".to_owned()]].concat();
    for sql in [
        "select from notes",
        "insert into notes (tenant_id, body) values (gen_random_uuid(), 'x')",
        "update notes set body = 'x'",
        "delete from notes",
        "truncate notes cascade",
        "copy notes to stdout",
        "create table public.mine (id int)",
        "create schema mine",
        "select from tenancy.tenants",
        "update tenancy.tenants set name = 'x'",
        "select from tenancy.members",
        "select from tenancy.backup_keys",
        "delete from tenancy.audit_events",
        "select tenancy.restore_sequence('things', 'id', 100)",
    ] {
        assert_eq!(outcome(&mut eye, &staging, sql).await, Err("42501".to_owned()), "{sql}");
    }
    assert_eq!(outcome(&mut eye, &staging, "create temp table s (id int) on commit drop").await, Ok(0), "the control: it stages");
    assert_eq!(outcome(&mut eye, &[], "delete from notes").await, Ok(2), "the control: a superuser deletes");
}

/// As a restore's, once its rows are staged: the application's role, bound to one tenant, and no trigger fires.
fn restoring(tenant: TenantId) -> Vec<String> {
    let begin = format!(
        "set local role tenancy_app; set local tenancy.tenant_id = '{tenant}'; set local role tenancy_restore; set local session_replication_role = replica; set local role tenancy_app"
    );
    vec![begin]
}

#[tokio::test]
async fn a_restores_transaction_can_not_touch_another_tenants_row() {
    let world = world().await;
    let mut eye = world.kit.superuser().await;
    let (acme, globex) = (world.kit.acme.tenant_id(), world.kit.globex.tenant_id());
    let as_acme = restoring(acme);
    let theirs: uuid::Uuid =
        sqlx::query_scalar("select id from notes where tenant_id = $1").bind(globex.as_uuid()).fetch_one(&mut eye).await.expect("a note");
    let insert = |tenant: TenantId| format!("insert into notes (tenant_id, body) values ('{tenant}', 'x')");
    assert_eq!(outcome(&mut eye, &as_acme, &insert(globex)).await, Err("42501".to_owned()));
    assert_eq!(outcome(&mut eye, &as_acme, &insert(acme)).await, Ok(1), "the control: its own");
    let moved = format!("update notes set tenant_id = '{globex}'");
    assert_eq!(outcome(&mut eye, &as_acme, &moved).await, Err("42501".to_owned()));
    for (sql, others) in [
        (format!("update notes set body = 'x' where tenant_id = '{globex}'"), 1),
        (format!("update notes set body = 'x' where id = '{theirs}'"), 1),
        (format!("delete from notes where tenant_id <> '{acme}'"), 1),
        (format!("select from notes where tenant_id = '{globex}'"), 1),
    ] {
        assert_eq!(outcome(&mut eye, &as_acme, &sql).await, Ok(0), "{sql}");
        assert_eq!(outcome(&mut eye, &[], &sql).await, Ok(others), "the control: {sql}");
    }
    assert_eq!(outcome(&mut eye, &as_acme, "delete from notes").await, Ok(1), "its own alone");
    let over = format!(
        "insert into notes (tenant_id, id, body) values ('{globex}', '{theirs}', 'x') on conflict (tenant_id, id) do update set body = 'x'"
    );
    assert_eq!(outcome(&mut eye, &as_acme, &over).await, Err("42501".to_owned()));
    assert_eq!(outcome(&mut eye, &[], &over).await, Ok(1), "the control");
    assert_eq!(outcome(&mut eye, &as_acme, "truncate notes cascade").await, Err("42501".to_owned()));
}
