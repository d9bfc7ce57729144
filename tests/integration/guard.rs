//! The guard: new tables are confined as they are made, and what would open a table again is refused.

use harness::{Kit, MIGRATIONS};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Executor, PgConnection, SqlSafeStr};
use tenancy_core::ErrorKind;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Roles, Schema};

async fn schema(database: &TestDatabase) -> Schema {
    Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect")
}

async fn guarded(database: &TestDatabase) -> PgConnection {
    schema(database).await.install_guard().await.expect("install");
    database.superuser().await.expect("superuser")
}

/// As a migration would: in one transaction, as the owner.
async fn as_owner(eye: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    let done = eye.execute(AssertSqlSafe(format!("begin; set local role tenancy_owner; {sql}; commit"))).await.map(drop);
    eye.execute("rollback").await.expect("rollback");
    done
}

/// Each makes a table `t` with one row of each tenant in it; `{acme}` and `{globex}` are ids.
const NEW_TABLES: &[&str] = &[
    "create table t (tenant_id uuid not null, body text); grant all on t to tenancy_app",
    "create table t (tenant_id uuid, body text); alter table t alter tenant_id set not null; grant all on t to tenancy_app",
    "create table t (body text); alter table t add tenant_id uuid not null default '{acme}'; grant all on t to tenancy_app",
    "create table t as select tenant_id, body from notes; grant all on t to tenancy_app",
    "select tenant_id, body into t from notes; grant all on t to tenancy_app",
    "create table t (body text); grant all on t to tenancy_app",
    "create table p (tenant_id uuid not null, body text) partition by list (tenant_id); create table t partition of p default; grant all on t to tenancy_app",
    "create table t () inherits (notes); grant all on t to tenancy_app",
    "create table p (tenant_id uuid not null, body text) partition by list (tenant_id); create table t (tenant_id uuid not null, body text);
     alter table p attach partition t default; grant all on t to tenancy_app",
    "create table t (like notes including all); grant all on t to tenancy_app",
];

/// How many rows of anybody else acme sees in each new table.
async fn leaks(install: bool) -> Vec<(&'static str, i64)> {
    let mut found = Vec::new();
    for ddl in NEW_TABLES {
        let kit = Kit::new().await;
        let mut eye = kit.superuser().await;
        if install {
            schema(&kit.database).await.install_guard().await.expect("install");
        }
        let (acme, globex) = (kit.acme.tenant_id().to_string(), kit.globex.tenant_id().to_string());
        as_owner(&mut eye, &ddl.replace("{acme}", &acme)).await.expect(ddl);
        let with_tenant = format!("insert into t (tenant_id, body) values ('{acme}', 'acme''s'), ('{globex}', 'globex''s')");
        if eye.execute(AssertSqlSafe(with_tenant)).await.is_err() {
            eye.execute("insert into t (body) values ('globex''s')").await.expect("insert");
        }
        let mut tx = kit.db.read(&kit.acme).await.expect("read");
        let seen: i64 =
            sqlx::query_scalar("select count(*) from t where body like 'globex%'").fetch_one(&mut tx).await.expect("the table is granted");
        found.push((*ddl, seen));
    }
    found
}

#[tokio::test]
async fn a_new_table_shows_nobody_elses_rows() {
    for (ddl, seen) in leaks(true).await {
        assert_eq!(seen, 0, "{ddl}");
    }
}

#[tokio::test]
async fn control_without_the_guard_it_does() {
    for (ddl, seen) in leaks(false).await {
        assert!(seen > 0, "the detector is blind to {ddl}");
    }
}

/// What would open `notes` again.
const OPENERS: &[&str] = &[
    "alter table notes disable row level security",
    "alter table notes no force row level security",
    "drop policy tenancy_fence on notes",
    "drop policy if exists tenancy_rows on notes",
    "alter policy tenancy_rows on notes to public",
    "alter policy tenancy_fence on notes using (true)",
    "alter policy tenancy_fence on notes rename to x",
    "alter table comments rename tenant_id to owner_id",
    "alter table entries drop column tenant_id cascade",
    "drop function tenancy.current_tenant() cascade",
    "reset role; alter table notes owner to tenancy_app",
    "do $$ begin execute 'alter table notes disable row level security'; end $$",
];

#[tokio::test]
async fn what_opens_a_table_is_refused() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut eye = guarded(&database).await;
    for sql in OPENERS {
        let error = as_owner(&mut eye, sql).await.expect_err(sql);
        assert!(error.to_string().contains("tenancy guard"), "{sql}: {error}");
    }
    // What doesn't is not.
    for sql in [
        "call tenancy.protect_table('notes')",
        "alter table notes add extra text, alter body drop not null",
        "alter table notes rename body to text; alter table notes rename to memos; alter table memos rename to notes",
        "create policy narrower on notes as restrictive using (length(text) < 1000)",
        "drop table comments",
        "create table seeded (name text); insert into seeded values ('a'); drop table seeded",
    ] {
        as_owner(&mut eye, sql).await.expect(sql);
    }
    database.open().await.expect("open");
}

#[tokio::test]
async fn control_without_the_guard_all_of_it_succeeds() {
    for sql in OPENERS {
        let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
        let mut schema = schema(&database).await;
        schema.install_guard().await.expect("install");
        schema.remove_guard().await.expect("remove");
        as_owner(&mut database.superuser().await.expect("superuser"), sql).await.expect(sql);
    }
}

#[tokio::test]
async fn a_migration_may_lift_it_and_the_application_may_not() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut eye = guarded(&database).await;
    as_owner(&mut eye, "create table plans (name text)").await.expect("closed");
    as_owner(&mut eye, "alter table plans disable row level security").await.expect_err("stays closed");
    as_owner(&mut eye, "call tenancy.declare_global('plans', 'why')").await.expect_err("a reason is a sentence");
    let declared = "call tenancy.declare_global('plans', 'the price list'); alter table plans disable row level security";
    as_owner(&mut eye, declared).await.expect("declared global");
    as_owner(&mut eye, "call tenancy.declare_global('notes', 'public anyway')").await.expect_err("notes has tenants");
    as_owner(&mut eye, "drop table plans; create table plans (name text)").await.expect("another one");
    as_owner(&mut eye, "set local tenancy.guard = 'off'; alter table plans disable row level security").await.expect("lifted");
    as_owner(&mut eye, "alter table plans add price int").await.expect("and forgotten about");
    as_owner(&mut eye, "alter table notes disable row level security").await.expect_err("for one transaction only");
    // A login that owns a table by mistake, but is no member of the owner's role.
    let login = format!("login_{:08x}", rand::random::<u32>());
    let setup = format!(
        "create role {login} login; grant usage on schema public to {login}; set tenancy.guard = 'off'; alter table notes owner to {login}; reset tenancy.guard"
    );
    eye.execute(AssertSqlSafe(setup)).await.expect("a login");
    let url = database.app_url().replace("tenancy_app", &login);
    let mut conn = <PgConnection as sqlx::Connection>::connect(&url).await.expect("connect");
    let error = conn.execute("set tenancy.guard = 'off'; alter table notes disable row level security").await.expect_err("no member");
    assert!(error.to_string().contains("tenancy guard"), "{error}");
    drop(conn);
    let dropped =
        format!("set tenancy.guard = 'off'; reassign owned by {login} to tenancy_owner; drop owned by {login}; drop role {login}");
    eye.execute(AssertSqlSafe(dropped)).await.expect("drop the login");
}

#[tokio::test]
async fn migrations_run_under_it_and_it_can_be_installed_twice() {
    let database = TestDatabase::new().await.expect("database");
    let mut schema = schema(&database).await;
    schema.install_guard().await.expect("install");
    schema.install_guard().await.expect("again");
    schema.migrate().await.expect("the kit's own");
    schema.apply(&MIGRATIONS).await.expect("the host's");
    database.open().await.expect("open");
    let opens =
        Migration::new(2, "opens".into(), MigrationType::Simple, "alter table notes disable row level security".into_sql_str(), false);
    let migrations = Migrator::with_migrations(MIGRATIONS.iter().cloned().chain([opens]).collect());
    let error = schema.apply(&migrations).await.expect_err("refused");
    assert!(error.kind() == ErrorKind::Misconfigured && error.to_string().contains("tenancy guard"), "{error}");
}
