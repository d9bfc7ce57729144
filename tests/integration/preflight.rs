//! A login or database that could not keep tenants apart is refused by name, before anything is served.

use harness::MIGRATIONS;
use sqlx::{AssertSqlSafe, Executor};
use tenancy_core::ErrorKind;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, Refusal, Refused, TenantDb};

/// What `open` refuses for the login of `url`.
async fn refusals(url: &str) -> Vec<(Refusal, String)> {
    match TenantDb::open(Options::new(url).expect("a URL")).await {
        Ok(_) => Vec::new(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error:?}");
            let refused = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Refused>()).expect("the refusals");
            refused.refusals().map(|(refusal, text)| (refusal, text.to_owned())).collect()
        }
    }
}

/// What is refused after the superuser ran `sql`; `{login}` is a fresh login like the application's.
async fn refusals_after(sql: &str) -> Vec<(Refusal, String)> {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    let login = format!("login_{:08x}", rand::random::<u32>());
    let setup = format!(
        "create role {login} login noinherit; grant usage on schema tenancy to {login}; grant select on tenancy.migrations to {login}; grant execute on all functions in schema tenancy to {login};"
    );
    eye.execute(AssertSqlSafe(setup)).await.expect("a login");
    eye.execute(AssertSqlSafe(sql.replace("{login}", &login))).await.expect(sql);
    let found = refusals(&database.app_url().replace("tenancy_app", &login)).await;
    let dropped = format!("reassign owned by {login} to postgres; drop owned by {login}; drop role {login}");
    eye.execute(AssertSqlSafe(dropped)).await.expect("drop the login");
    found
}

#[tokio::test]
async fn a_clean_database_is_accepted() {
    assert_eq!(refusals_after("select 1").await, []);
}

#[tokio::test]
async fn every_refusal_has_its_cause_and_its_remedy() {
    for (sql, refusal, remedy) in [
        ("alter role {login} superuser", Refusal::Superuser, "connect as tenancy_app"),
        ("alter role {login} bypassrls", Refusal::BypassRls, "connect as tenancy_app"),
        ("alter role {login} createrole", Refusal::CreateRole, "connect as tenancy_app"),
        ("alter role {login} replication", Refusal::Replication, "connect as tenancy_app"),
        ("grant tenancy_owner to {login}", Refusal::Member, "REVOKE tenancy_owner"),
        ("grant pg_read_all_data to {login}", Refusal::Member, "REVOKE pg_read_all_data"),
        ("alter table notes owner to {login}", Refusal::Owner, "OWNER TO tenancy_owner"),
        ("alter function tenancy.current_tenant() owner to {login}", Refusal::Owner, "OWNER TO tenancy_owner"),
        ("create schema s authorization {login}", Refusal::Owner, "OWNER TO tenancy_owner"),
        (
            "alter role {login} set tenancy.tenant_id = '00000000-0000-0000-0000-000000000001'",
            Refusal::DefaultTenant,
            "RESET tenancy.tenant_id",
        ),
        (
            "grant select on notes to {login}; alter table notes disable row level security",
            Refusal::UnprotectedTable,
            "protect_table('public.notes'",
        ),
        (
            "grant select on notes to {login}; alter table notes no force row level security",
            Refusal::UnprotectedTable,
            "FORCE ROW LEVEL SECURITY",
        ),
        ("grant select on notes to {login}; drop policy tenancy_fence on notes", Refusal::UnprotectedTable, "protect_table('public.notes'"),
        ("create table bare (tenant_id uuid); grant select on bare to {login}", Refusal::UnprotectedTable, "protect_table('public.bare'"),
        ("delete from tenancy.migrations", Refusal::SchemaVersion, "migrate first"),
        // What only the checker knows.
        ("alter function tenancy.current_tenant() immutable", Refusal::Leak("tenant-function-immutable"), "STABLE"),
        ("grant truncate on notes to {login}", Refusal::Leak("grant-truncate"), "REVOKE TRUNCATE"),
        ("create view v as select * from notes; grant select on v to {login}", Refusal::Leak("view-bypasses"), "security_invoker"),
        ("alter table tenancy.tenants disable row level security", Refusal::Leak("catalog-open"), "ENABLE ROW LEVEL SECURITY"),
    ] {
        let found = refusals_after(sql).await;
        assert!(found.iter().any(|(found, text)| *found == refusal && text.contains(remedy)), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn a_superuser_is_refused_even_by_the_kits_own_url() {
    let database = TestDatabase::new().await.expect("database");
    let found = refusals(&database.admin_url()).await;
    assert!(found.iter().any(|(refusal, _)| *refusal == Refusal::Superuser), "{found:?}");
}

#[tokio::test]
async fn a_database_without_the_schema_is_refused() {
    let database = TestDatabase::new().await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute("drop schema tenancy, tenancy_views cascade").await.expect("drop");
    let found = refusals(&database.app_url()).await;
    assert_eq!(found.iter().map(|(refusal, _)| *refusal).collect::<Vec<_>>(), [Refusal::SchemaVersion]);
}

#[tokio::test]
async fn bad_urls_and_absent_servers_are_clear() {
    for (url, kind) in [("nonsense", ErrorKind::Misconfigured), ("postgres://tenancy_app@127.0.0.1:1/none", ErrorKind::Unavailable)] {
        let opened = match Options::new(url) {
            Ok(options) => TenantDb::open(options).await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(opened.expect_err(url).kind(), kind, "{url}");
    }
}
