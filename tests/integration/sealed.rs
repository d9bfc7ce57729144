//! The sealed mode: SQL that an attacker wrote, run as the application's role, stays with the tenant of its transaction.
//!
//! On servers before PostgreSQL 15, which can't be sealed, the tests only see to it that sealing says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use harness::{Kit, MIGRATIONS, Route, drop_after, insist, on_each_route};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tenancy_core::{ErrorKind, TenantContext};
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, Refusal, Refused, Roles, Schema, SealKey, TenantDb};

on_each_route! {
    #[tokio::test]
    the_same_calls_work_and_confine;
    #[tokio::test]
    parallel_workers_serve_the_same_tenant;
    #[tokio::test]
    sql_of_an_attacker_stays_with_its_tenant;
    #[tokio::test]
    control_in_the_plain_mode_it_crosses;
    #[tokio::test]
    tokens_of_other_sessions_cannot_be_read;
    #[tokio::test]
    what_an_attacker_leaves_in_the_session_reaches_nobody;
    #[tokio::test]
    keys_rotate_while_tenants_are_served;
    #[tokio::test]
    a_key_and_a_seal_go_together;
    #[tokio::test]
    cancelled_at_any_await_the_next_tenant_is_apart;
}

const KEY: SealKey = SealKey::new([7; 32]);
const NEXT: SealKey = SealKey::new([8; 32]);

async fn schema(database: &TestDatabase) -> Schema {
    Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect")
}

/// A kit on a sealed database with a note of each tenant; `None` where the server can't be sealed, or nothing pools.
pub(crate) async fn sealed_kit(route: Route, change: impl FnOnce(Options) -> Options) -> Option<Kit> {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let sealed = schema(&database).await.seal(&KEY).await;
    let mut eye = database.superuser().await.expect("superuser");
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int").fetch_one(&mut eye).await.expect("version");
    if version < 150_000 {
        let refused = sealed.expect_err("too old to seal");
        assert!(refused.kind() == ErrorKind::Misconfigured && refused.to_string().contains("needs 15"), "{refused}");
        return None;
    }
    sealed.expect("seal");
    let kit = Kit::on_database(route, database, |options| change(options.with_seal_key(KEY))).await?;
    kit.note(&kit.acme, "acme's").await;
    kit.note(&kit.globex, "globex's").await;
    Some(kit)
}

/// The application's role on a bare connection: the attacker's SQL, with no kit around it.
async fn app(kit: &Kit) -> PgConnection {
    PgConnection::connect(&kit.app_url()).await.expect("connect")
}

/// A token as the kit makes them, or with one part changed. Made in SQL, so that a second reading of the format checks the first.
async fn token(kit: &Kit, tenant: &TenantContext, seconds: i64, key: &str) -> String {
    let pads = "select ipad, opad from tenancy_private.seal_keys where slot = $3";
    let sql = format!(
        "with k as ({pads}), m as (select $1 || '.' || floor(extract(epoch from now()) + $2)::bigint as m)
         select m || '.' || encode(sha256(opad || sha256(ipad || m::bytea)), 'hex') from k, m"
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(tenant.tenant_id().to_string())
        .bind(seconds)
        .bind(key)
        .fetch_one(&mut kit.superuser().await)
        .await
        .expect("token")
}

async fn refusals(options: Options) -> Vec<(Refusal, String)> {
    let Err(error) = TenantDb::open(options).await else { return Vec::new() };
    let refused = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Refused>()).expect("the refusals");
    refused.refusals().map(|(refusal, text)| (refusal, text.to_owned())).collect()
}

async fn the_same_calls_work_and_confine(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options.with_max_connections(1)).await else { return };
    for _ in 0..3 {
        assert_eq!(kit.notes(&kit.acme).await, ["acme's"]);
        assert_eq!(kit.notes(&kit.globex).await, ["globex's"]);
    }
    let mut tx = kit.db.begin_with(&kit.acme, tenancy_sqlx::Isolation::Serializable).await.expect("begin");
    let foreign = "insert into notes (tenant_id, body) values ($1, 'planted')";
    sqlx::query(foreign).bind(kit.globex.tenant_id().as_uuid()).execute(&mut tx).await.expect_err("another tenant's row");
    drop(tx);
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let mut part = tx.savepoint().await.expect("savepoint");
    sqlx::query("insert into notes (body) values ('undone')").execute(&mut *part).await.expect("insert");
    drop(part);
    sqlx::query("update notes set body = 'changed'").execute(&mut tx).await.expect("update");
    tx.commit().await.expect("commit");
    assert_eq!(kit.notes(&kit.acme).await, ["changed"]);
    assert_eq!(kit.notes(&kit.globex).await, ["globex's"]);
    // Work across tenants is as before.
    let mut tx = kit.db.dangerous().begin_system("count").await.expect("system");
    let all: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("count");
    assert_eq!(all, 2);
}

async fn parallel_workers_serve_the_same_tenant(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options).await else { return };
    let grow = "insert into notes (tenant_id, body) select tenant_id, repeat('x', 500) from notes, generate_series(1, 3000); analyze notes";
    kit.superuser().await.execute(grow).await.expect("grow");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let eager = "set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; set local min_parallel_table_scan_size = 0;
                 set local min_parallel_index_scan_size = 0; set local max_parallel_workers_per_gather = 2; set local enable_indexscan = off;
                 set local enable_bitmapscan = off; set local enable_indexonlyscan = off";
    tx.execute(eager).await.expect("eager");
    let count = "select count(*) from notes where tenancy.current_tenant() is not null and body <> ''";
    let plan: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("explain (analyze, costs off) {count}"))).fetch_all(&mut tx).await.expect("plan");
    assert!(plan.iter().any(|line| line.contains("Workers Launched")), "no workers: {plan:#?}");
    let seen: i64 = sqlx::query_scalar(count).fetch_one(&mut tx).await.expect("count");
    assert_eq!(seen, 3001);
}

/// What an attacker tries from inside a transaction of acme, to get at globex; `{acme}` and `{globex}` are ids, `{forged}` and its like
/// are tokens for globex.
const ATTEMPTS: &[&str] = &[
    "set local tenancy.tenant_id = '{globex}'",
    "set tenancy.tenant_id = '{globex}'",
    "set local backtrace_functions = 'tenancy_{globex}'",
    "set backtrace_functions = 'tenancy_{globex}'",
    "set session backtrace_functions to default",
    "reset backtrace_functions",
    "reset all",
    "reset all; select tenancy.enter('{forged}')",
    "reset all; select tenancy.enter('{expired}')",
    "reset all; select tenancy.enter('{flipped}')",
    "reset all; select tenancy.enter('{renamed}')",
    "reset all; select tenancy.enter('{prolonged}')",
    "select tenancy.enter('{own}')",
    "select tenancy.enter(null)",
    "select tenancy.enter('')",
    "select tenancy.enter('{globex}')",
    "select set_config('backtrace_functions', 'tenancy_{globex}', true)",
    "select set_config('tenancy.tenant_id', '{globex}', true)",
    "update pg_settings set setting = 'tenancy_{globex}' where name = 'backtrace_functions'",
    "do $$ begin set local backtrace_functions = 'tenancy_{globex}'; end $$",
    "do $$ begin perform set_config('backtrace_functions', 'tenancy_{globex}', true); end $$",
    "alter role tenancy_app set backtrace_functions = 'tenancy_{globex}'",
    "grant set on parameter backtrace_functions to tenancy_app",
    "set role tenancy_sealer",
    "set session authorization postgres",
    "select * from tenancy_private.seal_keys",
    "delete from tenancy_private.seal_keys",
    "alter function tenancy.enter(text) security invoker",
    "alter function tenancy.enter(text) set search_path = public",
    "alter function tenancy.current_tenant() owner to tenancy_app",
    "create or replace function tenancy.current_tenant() returns uuid language sql return '{globex}'::uuid",
    "create function pg_temp.current_tenant() returns uuid language sql return '{globex}'::uuid",
    "create function public.enter(text) returns void language sql as 'select'",
    "set local search_path = pg_temp, public; create temp table seal_keys (slot text)",
    "select pg_stat_get_activity(null)",
    "select query from pg_stat_activity",
    "select pg_stat_get_backend_activity(b) from pg_stat_get_backend_idset() b",
    "create operator public.= (leftarg = bytea, rightarg = bytea, function = byteane)",
];

/// Runs each attempt in a transaction of acme, then looks for globex's note both in that transaction and afterwards. Returns those
/// attempts after which it was seen.
async fn crossings(kit: &Kit, bind: impl AsyncFn() -> String) -> Vec<String> {
    let (acme, globex) = (kit.acme.tenant_id().to_string(), kit.globex.tenant_id().to_string());
    let sealed = kit.superuser().await.fetch_one("select from tenancy_private.seal_keys").await.is_ok();
    let mut tokens = Vec::new();
    if sealed {
        let theirs = token(kit, &kit.globex, 30, "current").await;
        let own = token(kit, &kit.acme, 30, "current").await;
        let flip = if theirs.ends_with('0') { "1" } else { "0" };
        tokens = vec![
            ("{forged}", format!("{}{}", &theirs[..48], "0".repeat(64))),
            ("{expired}", token(kit, &kit.globex, -1, "current").await),
            ("{flipped}", format!("{}{flip}", &theirs[..111])),
            ("{renamed}", format!("{globex}{}", &own[36..])),
            ("{prolonged}", format!("{globex}.9999999999{}", &theirs[47..])),
            ("{own}", own),
        ];
        // The control for all of these: unchanged, the token is good.
        let mut conn = app(kit).await;
        let enter = format!("begin; select tenancy.enter('{theirs}'); select body from notes");
        assert_eq!(sqlx::raw_sql(AssertSqlSafe(enter)).fetch_all(&mut conn).await.expect("a good token").len(), 2);
    }
    let mut crossed = Vec::new();
    for attempt in ATTEMPTS {
        let mut sql =
            attempt.replace("{acme}", &acme).replace("backtrace_functions = 'tenancy_{globex}", "backtrace_functions = 'tenancy_{plain}");
        sql = sql.replace("{plain}", &globex.replace('-', "")).replace("{globex}", &globex);
        for (name, token) in &tokens {
            sql = sql.replace(name, token);
        }
        let mut conn = app(kit).await;
        conn.execute(AssertSqlSafe(bind().await)).await.expect("bind");
        // One message, as an injected statement would be; an error ends the transaction.
        let look = "select body from public.notes where body like 'globex%'";
        let seen = async |conn: &mut PgConnection, sql: String| {
            sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await.is_ok_and(|rows| {
                rows.iter().any(|row| sqlx::Row::try_get::<String, _>(row, 0).is_ok_and(|body| body.starts_with("globex")))
            })
        };
        let inside = seen(&mut conn, format!("{sql}; {look}")).await;
        let after = seen(&mut conn, format!("commit; {look}")).await;
        if inside || after {
            crossed.push(sql);
        }
    }
    crossed
}

async fn sql_of_an_attacker_stays_with_its_tenant(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options).await else { return };
    let crossed = crossings(&kit, async || format!("begin; select tenancy.enter('{}')", token(&kit, &kit.acme, 30, "current").await)).await;
    assert_eq!(crossed, [] as [String; 0]);
    let mut eye = kit.superuser().await;
    eye.execute("alter role tenancy_app reset all").await.expect("reset");
}

async fn control_in_the_plain_mode_it_crosses(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    kit.note(&kit.globex, "globex's").await;
    let crossed = crossings(&kit, async || format!("begin; set local tenancy.tenant_id = '{}'", kit.acme.tenant_id())).await;
    assert!(crossed.iter().any(|sql| sql.starts_with("set local tenancy.tenant_id")), "the detector is blind: {crossed:?}");
    assert!(crossed.len() < ATTEMPTS.len() / 2, "{crossed:?}");
}

async fn tokens_of_other_sessions_cannot_be_read(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options).await else { return };
    // Another session, busy with a statement that has a token in it.
    let busy = format!("begin; select tenancy.enter('{}'), pg_sleep(30)", token(&kit, &kit.globex, 30, "current").await);
    let (mut other, mut eye) = (app(&kit).await, kit.superuser().await);
    let other = tokio::spawn(async move { other.execute(AssertSqlSafe(busy)).await.map(drop) });
    let find =
        "select count(*) from pg_stat_get_backend_idset() b where pg_stat_get_backend_activity(b) like '%tenancy.enter%pg_sleep(30)'";
    for _ in 0..100 {
        let seen: i64 = sqlx::query_scalar(find).fetch_one(&mut eye).await.expect("the control: a superuser sees it");
        if seen > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut conn = app(&kit).await;
    for sql in [find, "select query from pg_stat_activity", "select query from pg_stat_get_activity(null)"] {
        let error = conn.execute(sql).await.expect_err(sql);
        assert!(error.to_string().contains("permission denied"), "{sql}: {error}");
    }
    // Without the revocation it is there to read, and to use.
    eye.execute("grant execute on function pg_stat_get_backend_activity(integer) to tenancy_app").await.expect("grant");
    let seen: i64 = sqlx::query_scalar(find).fetch_one(&mut conn).await.expect("control");
    assert!(seen > 0, "the detector is blind");
    let found = refusals(kit.options().with_seal_key(KEY)).await;
    assert!(found.iter().any(|(refusal, text)| *refusal == Refusal::Seal && text.contains("REVOKE EXECUTE")), "{found:?}");
    other.abort();
}

/// SQL of an attacker may leave a statement under the name that sqlx gives to the next tenant's: it must not run as that tenant.
async fn what_an_attacker_leaves_in_the_session_reaches_nobody(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options.with_max_connections(1)).await else { return };
    let pid = async |cx: &TenantContext| {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await.expect("pid");
        tx.commit().await.expect("commit");
        pid
    };
    for (poison, same_session) in [
        ("set search_path = tenancy, pg_catalog", true),
        ("set default_transaction_read_only = on", true),
        ("deallocate all; prepare sqlx_s_1 as insert into notes (body) values ('ran as another tenant')", false),
    ] {
        let first = pid(&kit.acme).await;
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        tx.execute(poison).await.expect(poison);
        tx.commit().await.expect("commit");
        assert_eq!(kit.notes(&kit.globex).await, ["globex's"], "{poison}");
        // A pooler gives whichever server connection it likes.
        assert!(matches!(route, Route::Pooled) || (pid(&kit.globex).await == first) == same_session, "{poison}");
    }
    kit.note(&kit.globex, "still writable").await;
}

async fn keys_rotate_while_tenants_are_served(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options).await else { return };
    let mut schema = schema(&kit.database).await;
    schema.rotate_seal_key(&NEXT).await.expect("rotate");
    schema.rotate_seal_key(&NEXT).await.expect("again: nothing to do");
    assert_eq!(kit.notes(&kit.acme).await, ["acme's"], "a node with the key before");
    let next = TenantDb::open(kit.options().with_seal_key(NEXT)).await.expect("a node with the next key");
    drop(next.begin(&kit.acme).await.expect("begin"));
    schema.retire_seal_key().await.expect("retire");
    kit.db.begin(&kit.acme).await.expect_err("the old key is refused");
    drop(next.begin(&kit.acme).await.expect("the new one is not"));
    // Back in the plain mode, which the node with a key notices: it fails, and reads nothing.
    schema.unseal().await.expect("unseal");
    next.begin(&kit.acme).await.expect_err("there is nothing to enter");
    let plain = TenantDb::open(kit.options()).await.expect("open");
    drop(plain.begin(&kit.acme).await.expect("begin"));
}

async fn a_key_and_a_seal_go_together(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options).await else { return };
    let seal = async |options: Options, says: &str| {
        let found = refusals(options).await;
        assert!(found.iter().any(|(refusal, text)| *refusal == Refusal::Seal && text.contains(says)), "{says}: {found:?}");
    };
    let options = || kit.options();
    seal(options(), "give its key with Options::with_seal_key").await;
    seal(options().with_seal_key(NEXT), "does not take this seal key").await;
    let mut schema = schema(&kit.database).await;
    schema.seal(&KEY).await.expect("again: nothing to do");
    assert!(schema.seal(&NEXT).await.expect_err("another key").to_string().contains("rotate_seal_key"));
    let mut eye = kit.superuser().await;
    eye.execute("grant usage on schema tenancy_private to tenancy_app").await.expect("grant");
    seal(options().with_seal_key(KEY), "REVOKE USAGE").await;
    eye.execute("revoke usage on schema tenancy_private from tenancy_app").await.expect("revoke");
    schema.unseal().await.expect("unseal");
    seal(options().with_seal_key(KEY), "is not sealed").await;
    let error = schema.rotate_seal_key(&NEXT).await.expect_err("nothing to rotate");
    assert!(error.kind() == ErrorKind::Misconfigured && error.to_string().contains("not sealed"), "{error}");
    // A node that knows no key and is connected already reads nothing once the database is sealed.
    let plain = TenantDb::open(kit.options()).await.expect("open");
    schema.seal(&KEY).await.expect("seal");
    let mut tx = plain.begin(&kit.acme).await.expect("begin");
    let seen: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("count");
    assert_eq!(seen, 0);
}

/// Rights on parameters are the whole server's: a login of the test's own has this one, which all other tests would be refused with.
#[tokio::test]
async fn a_login_that_can_set_the_tenant_itself_is_refused() {
    let Some(kit) = sealed_kit(Route::Direct, |options| options).await else { return };
    let login = format!("login_{:08x}", rand::random::<u32>());
    let mut eye = kit.superuser().await;
    eye.execute(AssertSqlSafe(format!("create role {login} login in role tenancy_app"))).await.expect("a login");
    let url = kit.database.app_url().replace("tenancy_app", &login);
    let of_parameter = async || {
        let found = refusals(Options::new(&url).expect("a URL").with_seal_key(KEY)).await;
        found.iter().any(|(refusal, text)| *refusal == Refusal::Seal && text.contains("REVOKE SET ON PARAMETER"))
    };
    assert!(!of_parameter().await, "the control: refused before it has the right");
    insist(&mut eye, &format!("grant set on parameter backtrace_functions to {login}")).await;
    let refused = of_parameter().await;
    insist(&mut eye, &format!("drop owned by {login}; drop role {login}")).await;
    assert!(refused);
}

async fn cancelled_at_any_await_the_next_tenant_is_apart(route: Route) {
    let Some(kit) = sealed_kit(route, |options| options.with_max_connections(2)).await else { return };
    let (foreign, cut) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..6 {
        let (db, cx) = (kit.db.clone(), if worker % 2 == 0 { kit.acme.clone() } else { kit.globex.clone() });
        let (foreign, cut) = (Arc::clone(&foreign), Arc::clone(&cut));
        tasks.spawn(async move {
            for round in 0..150_u32 {
                let work = async {
                    let mut tx = db.begin(&cx).await?;
                    let seen: i64 = sqlx::query_scalar("select count(*) from notes where tenant_id <> $1")
                        .bind(cx.tenant_id().as_uuid())
                        .fetch_one(&mut tx)
                        .await
                        .map_err(tenancy_sqlx::from_sqlx)?;
                    foreign.fetch_add(seen, Ordering::Relaxed);
                    sqlx::query("select pg_sleep(0.0005)").execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
                    tx.commit().await
                };
                if drop_after(work, 1 + (round + worker) % 8).await.is_none() {
                    cut.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    tasks.join_all().await;
    kit.db_settles().await;
    assert!(cut.load(Ordering::Relaxed) > 300, "the storm was a breeze: {cut:?}");
    assert_eq!(foreign.load(Ordering::Relaxed), 0);
    assert_eq!((kit.notes(&kit.acme).await, kit.notes(&kit.globex).await), (vec!["acme's".to_owned()], vec!["globex's".to_owned()]));
}
