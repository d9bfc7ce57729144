//! Setting up: safe from many nodes at once, and clear about what a table lacks.

use harness::MIGRATIONS;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Executor, SqlSafeStr};
use tenancy_core::ErrorKind;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, Roles, Schema, TenantDb};

#[tokio::test]
async fn many_nodes_migrate_at_once() {
    let database = TestDatabase::new().await.expect("database");
    database.superuser().await.expect("superuser").execute("drop schema tenancy, tenancy_views cascade").await.expect("drop");
    let nodes = (0..6).map(|_| async {
        let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
        let left = schema.migrate().await.expect("migrate");
        schema.apply(&MIGRATIONS).await.expect("apply");
        left
    });
    for left in futures_util::future::join_all(nodes).await {
        assert!(left.is_empty(), "{left:?}");
    }
    database.open().await.expect("open");
}

#[tokio::test]
async fn roles_can_have_another_prefix() {
    let database = TestDatabase::new().await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute("drop schema tenancy, tenancy_views cascade").await.expect("drop");
    let roles = Roles::new("acme_eu").expect("a prefix");
    let mut schema = Schema::connect(&database.admin_url(), roles.clone()).await.expect("connect");
    schema.migrate().await.expect("migrate");
    schema.apply(&MIGRATIONS).await.expect("apply");
    let url = database.app_url().replace("tenancy_app", &roles.app());
    let options = Options::new(&url).and_then(|options| options.with_admin_url(&database.admin_url())).expect("URLs");
    let db = TenantDb::open(options.with_roles(roles)).await.expect("open");
    let cx = database.tenant(&db, "acme").await.expect("tenant");
    let mut tx = db.begin(&cx).await.expect("begin");
    sqlx::query("insert into notes (body) values ('x')").execute(&mut tx).await.expect("insert");
    tx.commit().await.expect("commit");
    // The default role has nothing here.
    let refused = TenantDb::open(database.options()).await.expect_err("another kit's login");
    assert_eq!(refused.kind(), ErrorKind::Misconfigured);
}

async fn protect(ddl: &str) -> Result<TestDatabase, String> {
    let database = TestDatabase::new().await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute(sqlx::AssertSqlSafe(format!("set role tenancy_owner; {ddl}"))).await.expect("ddl");
    match eye.execute("call tenancy.protect_table('t')").await {
        Ok(_) => Ok(database),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn protect_table_says_what_a_table_lacks() {
    for (ddl, says) in [
        ("create table t (id uuid)", "add \"tenant_id uuid not null\""),
        ("create table t (tenant_id text not null)", "must be of type uuid"),
        ("create table t (tenant_id uuid)", "must be NOT NULL"),
        ("create view t as select gen_random_uuid() as tenant_id", "is not a table"),
    ] {
        let error = protect(ddl).await.expect_err(ddl);
        assert!(error.contains(says), "{ddl}: {error}");
    }
}

#[tokio::test]
async fn partitions_and_children_are_protected_too() {
    let ddl = "create table t (tenant_id uuid not null, at int not null, primary key (tenant_id, at)) partition by range (at);
               create table t1 partition of t for values from (0) to (10);
               create table t2 partition of t for values from (10) to (20) partition by range (at);
               create table t21 partition of t2 for values from (10) to (20)";
    let database = protect(ddl).await.expect("protect");
    database
        .superuser()
        .await
        .expect("superuser")
        .execute("insert into t (tenant_id, at) select gen_random_uuid(), g from generate_series(0, 19) g")
        .await
        .expect("rows");
    let db = database.open().await.expect("open");
    let cx = database.tenant(&db, "acme").await.expect("tenant");
    let mut tx = db.read(&cx).await.expect("read");
    for table in ["t", "t1", "t2", "t21"] {
        let seen: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}"))).fetch_one(&mut tx).await.expect(table);
        assert_eq!(seen, 0, "{table} named directly");
    }
}

#[tokio::test]
async fn protect_table_can_run_again_and_mends() {
    let database = protect("create table t (tenant_id uuid not null)").await.expect("protect");
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute("drop policy tenancy_fence on t; alter policy tenancy_rows on t to public using (true) with check (true)")
        .await
        .expect("damage");
    assert_eq!(database.open().await.expect_err("unprotected").kind(), ErrorKind::Misconfigured);
    eye.execute("call tenancy.protect_table('t')").await.expect("again");
    database.open().await.expect("mended");
}

fn migration(sql: &'static str) -> Migrator {
    Migrator::with_migrations(vec![Migration::new(1, "host".into(), MigrationType::Simple, sql.into_sql_str(), false)])
}

#[tokio::test]
async fn a_failing_or_edited_host_migration_is_named() {
    let database = TestDatabase::new().await.expect("database");
    let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
    let failed = schema.apply(&migration("create table t (id nonsense)")).await.expect_err("fails");
    assert!(failed.kind() == ErrorKind::Misconfigured && failed.to_string().contains("nonsense"), "{failed}");
    schema.apply(&migration("create table t (id int)")).await.expect("mended");
    let edited = schema.apply(&migration("create table t (id bigint)")).await.expect_err("edited");
    assert!(edited.to_string().contains("changed after it was applied"), "{edited}");
}

#[tokio::test]
async fn host_tables_belong_to_the_owner() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let owner: String = sqlx::query_scalar("select relowner::regrole::text from pg_class where relname = 'notes'")
        .fetch_one(&mut database.superuser().await.expect("superuser"))
        .await
        .expect("owner");
    assert_eq!(owner, "tenancy_owner");
}
