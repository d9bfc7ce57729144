//! Under a read-only context nothing changes, and it is PostgreSQL that says so: no check of the application is in the way here.

use harness::{Kit, MIGRATIONS, Route};
use sqlx::Executor as _;
use tenancy_core::quota::{Metric, Quota};
use tenancy_core::{
    AuditEvent, Clock as _, ErrorKind, NewImpersonation, NewMember, NewOperator, Operator, OperatorRole, Role, SystemClock, TenantContext,
    TokenDays,
};
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Isolation, Roles, Schema, SealKey, TenantDb, TenantTx, from_sqlx};

harness::on_each_route! {
    #[tokio::test]
    no_statement_writes_under_a_read_only_context;
    #[tokio::test]
    sealed_it_is_the_same;
}

/// An owner, who may do everything as far as the application is concerned.
fn looking(cx: &TenantContext) -> TenantContext {
    cx.clone().read_only()
}

/// What writes, as one statement. Each of them is done in a context that is not read-only.
const WRITES: [&str; 13] = [
    "insert into notes (body) values ('x')",
    "update notes set body = 'x'",
    "delete from notes",
    "select body from notes for update",
    "with gone as (delete from notes returning 1) select count(*) from gone",
    "merge into notes n using (select 1) one on false when not matched then insert (body) values ('x')",
    "select tenancy.gauge_add('users', 1)",
    "select tenancy.outbox_post('test.topic', 'key', '{}'::jsonb, null)",
    "select tenancy.impersonation_end(gen_random_uuid(), 'x')",
    "insert into tenancy.audit_events (tenant_id, actor_kind, action, target, outcome) values (tenancy.current_tenant(), 'system', 'a.b', 'x', 'done')",
    "select public.writes_for_its_owner()",
    "select nextval('public.numbers')",
    "do $$ begin insert into notes (body) values ('x'); end $$",
];

/// What would make the transaction one that writes.
pub(crate) const WAYS_OUT: [&str; 9] = [
    "set transaction read write",
    "set local transaction_read_only = off",
    "set transaction_read_only = off",
    "set session characteristics as transaction read write",
    "set local default_transaction_read_only = off",
    "reset transaction_read_only",
    "set transaction_read_only to default",
    "begin read write",
    "do $$ begin perform pg_catalog.set_config('transaction_read_only', 'off', true); end $$",
];

/// Those of them that PostgreSQL refuses from version 16 on.
const RESETS: [&str; 2] = ["reset transaction_read_only", "set transaction_read_only to default"];

async fn prepare(kit: &Kit) {
    let sql = "create sequence public.numbers;
               grant usage on sequence public.numbers to tenancy_app;
               create table public.owned (tenant_id uuid, body text);
               create function public.writes_for_its_owner() returns void language sql security definer
                 as $$ insert into public.owned values (null, 'x') $$;
               grant execute on function public.writes_for_its_owner() to tenancy_app";
    kit.superuser().await.execute(sql).await.expect("prepared");
    kit.note(&kit.acme, "kept").await;
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(kit.acme.tenant_id(), &Quota::new(Metric::USERS, 1000)).await.expect("set");
    tx.commit().await.expect("commit");
}

/// Every way to begin, under this context.
async fn begun(db: &TenantDb, cx: &TenantContext) -> Vec<TenantTx> {
    let mut all = vec![db.begin(cx).await.expect("begin"), db.read(cx).await.expect("read")];
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        all.push(db.begin_with(cx, isolation).await.expect("begin"));
    }
    all
}

async fn no_statement_writes_under_a_read_only_context(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    nothing_writes(kit).await;
}

async fn sealed_it_is_the_same(route: Route) {
    let key = SealKey::new([7; 32]);
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("a database");
    let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
    if schema.seal(&key).await.is_err_and(|refused| refused.to_string().contains("needs 15")) {
        return;
    }
    let Some(kit) = Kit::on_database(route, database, |options| options.with_seal_key(key)).await else { return };
    nothing_writes(kit).await;
}

async fn nothing_writes(kit: Kit) {
    prepare(&kit).await;
    for sql in WRITES {
        for mut tx in begun(&kit.db, &looking(&kit.acme)).await {
            let error = (&mut tx).execute(sql).await.expect_err(sql);
            let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned);
            assert_eq!(state.as_deref(), Some("25006"), "{sql}: {error}");
            let ours = from_sqlx(error);
            assert_eq!((ours.kind(), ours.message()), (ErrorKind::Forbidden, "this is read-only: nothing can be changed here"));
        }
    }
    // A way out is refused or has no effect. PostgreSQL before 16 lets itself be RESET: what is written then is undone, and commit says so.
    let (mut closed, mut undone) = (0, 0);
    for way in WAYS_OUT {
        for sql in ["insert into notes (body) values ('out')", "select public.writes_for_its_owner()"] {
            for mut tx in begun(&kit.db, &looking(&kit.acme)).await {
                if (&mut tx).execute(way).await.is_err() {
                    closed += 1; // the transaction is over
                } else if let Err(error) = (&mut tx).execute(sql).await {
                    assert_eq!(from_sqlx(error).kind(), ErrorKind::Forbidden, "{way}; {sql}");
                    closed += 1;
                } else {
                    assert!(RESETS.contains(&way), "{way}; {sql}: it writes");
                    assert_eq!(tx.commit().await.expect_err(way).kind(), ErrorKind::Forbidden, "{way}; {sql}");
                    undone += 1;
                }
            }
        }
    }
    let mut eye = kit.superuser().await;
    let version: i32 =
        sqlx::query_scalar("select current_setting('server_version_num')::int / 10000").fetch_one(&mut eye).await.expect("a version");
    assert_eq!((closed, undone), if version < 16 { (56, 16) } else { (72, 0) });
    assert_eq!(kit.notes(&looking(&kit.acme)).await, ["kept"]);
    let written: i64 = sqlx::query_scalar("select (select count(*) from public.owned) + (select count(*) from notes where body <> 'kept')")
        .fetch_one(&mut eye)
        .await
        .expect("count");
    let numbers: bool = sqlx::query_scalar("select is_called from public.numbers").fetch_one(&mut eye).await.expect("numbers");
    assert_eq!((written, numbers), (0, false));

    // The control: each is done in a context that is not read-only, whose connection is one of those that were.
    for sql in WRITES {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        (&mut tx).execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        tx.commit().await.expect("commit");
    }
}

/// A transaction that took no snapshot yet can be made one that writes: what `begin` does about it is not for show.
#[tokio::test]
async fn control_without_a_snapshot_a_read_only_transaction_is_made_one_that_writes() {
    let kit = Kit::new().await;
    let mut conn = kit.superuser().await;
    conn.execute("begin read only").await.expect("begin");
    conn.execute("set transaction read write").await.expect("nothing is in the way");
    conn.execute("insert into notes (tenant_id, body) values (gen_random_uuid(), 'out')").await.expect("it writes");
    conn.execute("rollback; begin read only; select").await.expect("begin");
    let refused = conn.execute("set transaction read write").await.expect_err("a snapshot is");
    assert_eq!(refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("25001"));
}

#[tokio::test]
async fn the_kits_own_writes_are_refused_and_commit_stays_honest() {
    let kit = Kit::new().await;
    let cx = looking(&kit.acme);
    let mut tx = kit.db.begin(&cx).await.expect("begin");
    let audit = tx.audit(AuditEvent::new(cx.principal().actor(), "test.audit", "x")).await.expect_err("a write");
    assert_eq!(audit.kind(), ErrorKind::Forbidden);
    // The write failed, so nothing was kept, and commit says so, also to who did not look.
    assert_eq!(tx.commit().await.expect_err("aborted").kind(), ErrorKind::TransactionAborted);

    let mut tx = kit.db.begin(&cx).await.expect("begin");
    let new = NewMember::new("ada@example.com".parse().expect("an address"), "Ada", Role::Viewer);
    assert_eq!(tx.add_member(&cx, &new).await.expect_err("a write").kind(), ErrorKind::Forbidden);
    drop(tx);
    let mut tx = kit.db.begin(&cx).await.expect("begin");
    assert_eq!(tx.grow(Metric::USERS, 1).await.expect_err("a write").kind(), ErrorKind::Forbidden);
    drop(tx);

    // A transaction that a statement has ended is no success.
    let mut tx = kit.db.begin(&cx).await.expect("begin");
    (&mut tx).execute("rollback").await.expect("ended");
    assert_eq!(tx.commit().await.expect_err("over").kind(), ErrorKind::TransactionAborted);

    // Reads go on, with all guards; a part that failed can be undone, and the rest goes on.
    let mut tx = kit.db.begin(&cx).await.expect("begin");
    {
        let mut part = tx.savepoint().await.expect("a savepoint");
        let insert = sqlx::query("insert into notes (body) values ('x')").execute(&mut *part).await.expect_err("a write");
        assert_eq!(from_sqlx(insert).kind(), ErrorKind::Forbidden);
    }
    // Inside a savepoint there is no way out either.
    {
        let mut part = tx.savepoint().await.expect("a savepoint");
        sqlx::query("set transaction read write").execute(&mut *part).await.expect_err("refused");
    }
    let seen: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("a read");
    assert_eq!(seen, 0);
    tx.commit().await.expect("nothing failed");
    // The next one on the same connection writes again.
    kit.note(&kit.acme, "after").await;
}

/// The app's role sees visits of its own tenant, without tokens; it begins none, and takes back no end.
#[tokio::test]
async fn the_applications_role_reads_its_own_visits_and_writes_none() {
    let kit = Kit::new().await;
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let (visit, token) =
        tx.start_impersonation(kit.acme.tenant_id(), None, &NewImpersonation::new("the test wants it")).await.expect("a visit");
    tx.commit().await.expect("commit");
    assert_eq!(kit.db.impersonation_by_token(token.expose()).await.expect("a look-up"), Some(visit.clone()));
    for sql in [
        "select token_sha256 from tenancy.impersonations",
        "update tenancy.impersonations set ended_at = null, ended_by = null",
        "update tenancy.impersonations set expires_at = now() + interval '1 day'",
        "delete from tenancy.impersonations",
        "insert into tenancy.impersonations (tenant_id, id, operator_name, reason, write, token_sha256, expires_at)
           values (tenancy.current_tenant(), gen_random_uuid(), 'x', 'a good reason', true, sha256('x'), now() + interval '1 minute')",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = (&mut tx).execute(sql).await.expect_err(sql);
        assert_eq!(from_sqlx(refused).kind(), ErrorKind::Forbidden, "{sql}");
    }
    let of = async |cx: &TenantContext| kit.db.read(cx).await.expect("read").impersonations(uuid::Uuid::max(), 10).await.expect("visits");
    assert_eq!((of(&kit.acme).await, of(&kit.globex).await), (vec![visit.clone()], vec![]));
    // Another tenant neither ends it nor decides on it.
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    assert_eq!(tx.end_impersonation(&kit.globex, visit.id).await.expect_err("not theirs").kind(), ErrorKind::NotFound);
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    tx.allow_impersonation(&kit.globex, false).await.expect("their own");
    let other = "insert into tenancy.impersonation_consent (tenant_id, allowed) values ($1, false)";
    let refused = sqlx::query(other).bind(kit.acme.tenant_id().as_uuid()).execute(&mut tx).await.expect_err("another tenant's");
    assert_eq!(from_sqlx(refused).kind(), ErrorKind::Forbidden);
    drop(tx);
    assert!(kit.db.impersonation_by_token(token.expose()).await.expect("a look-up").is_some());
    // The control: its own tenant does.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.end_impersonation(&kit.acme, visit.id).await.expect("ended");
    tx.commit().await.expect("commit");
    assert_eq!(kit.db.impersonation_by_token(token.expose()).await.expect("a look-up"), None);
}

/// Between the look-up of an operator's token and the visit lies the time in which they may be changed.
#[tokio::test]
async fn an_operator_who_was_changed_meanwhile_begins_no_visit() {
    let kit = Kit::new().await;
    let new = NewOperator::new("Sue", "sue@example.com".parse().expect("an address"), OperatorRole::Support);
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let (seen, _) = tx.create_operator(&new, SystemClock.now()).await.expect("an operator");
    tx.commit().await.expect("commit");
    let wish = NewImpersonation::new("the test wants it");
    let visit = async |by: &Operator| {
        let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
        tx.start_impersonation(kit.acme.tenant_id(), Some(by), &wish).await.map(drop)
    };
    visit(&seen).await.expect("the control");
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let (now, _) = tx.rotate_operator_token(seen.id, TokenDays::default(), None, SystemClock.now()).await.expect("another token");
    tx.commit().await.expect("commit");
    assert_eq!(visit(&seen).await.expect_err("changed").kind(), ErrorKind::Retry);
    visit(&now).await.expect("as they are now");
}
