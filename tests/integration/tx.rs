//! What a transaction keeps, and what it says about it.

use futures_util::TryStreamExt;
use harness::{Kit, Route, drop_after, on_each_route};
use sqlx::Executor;
use tenancy_core::ErrorKind;
use tenancy_sqlx::{Isolation, from_sqlx};

on_each_route! {
    #[tokio::test]
    commit_keeps_and_drop_does_not;
    #[tokio::test]
    a_read_can_not_write;
    #[tokio::test]
    commit_is_honest_about_a_failed_statement;
    #[tokio::test]
    commit_is_honest_about_an_error_that_nobody_looked_at;
    #[tokio::test]
    a_transaction_ended_by_a_statement_can_not_be_committed;
    #[tokio::test]
    a_cancelled_statement_ends_the_transaction;
    #[tokio::test]
    a_stream_may_be_left_early;
    #[tokio::test]
    savepoints_nest_and_undo_only_their_part;
    #[tokio::test]
    a_cursor_with_hold_does_not_reach_the_next_tenant;
    #[tokio::test]
    a_failed_copy_does_not_shift_the_next_tenants_replies;
    #[tokio::test]
    a_session_setting_does_not_bind_the_next_tenant;
    #[tokio::test]
    serializable_conflicts_are_retry;
    #[tokio::test]
    prepared_statements_and_typed_queries_work;
}

async fn insert(executor: impl Executor<'_, Database = sqlx::Postgres>, body: &str) {
    sqlx::query("insert into notes (body) values ($1)").bind(body).execute(executor).await.expect("insert");
}

async fn commit_keeps_and_drop_does_not(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "kept").await;
    tx.commit().await.expect("commit");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "dropped").await;
    drop(tx);
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "rolled back").await;
    tx.rollback().await.expect("rollback");
    kit.db_settles().await;
    assert_eq!(kit.notes(&kit.acme).await, ["kept"]);
}

async fn a_read_can_not_write(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let error = sqlx::query("insert into notes (body) values ('x')").execute(&mut tx).await.expect_err("read-only");
    assert_eq!(from_sqlx(error).kind(), ErrorKind::Forbidden);
}

async fn commit_is_honest_about_a_failed_statement(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "lost").await;
    sqlx::query("select 1 / 0").execute(&mut tx).await.expect_err("division by zero");
    assert_eq!(tx.commit().await.expect_err("aborted").kind(), ErrorKind::TransactionAborted);
    assert!(kit.notes(&kit.acme).await.is_empty());
}

async fn commit_is_honest_about_an_error_that_nobody_looked_at(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "lost").await;
    // The first row arrives, and the stream is dropped before the error behind it.
    let one: Option<i32> =
        sqlx::query_scalar("select 1 / (2000 - g) from generate_series(1, 2000) g").fetch_optional(&mut tx).await.expect("a row");
    assert!(one.is_some());
    assert_ne!(tx.commit().await.expect_err("aborted").kind(), ErrorKind::OutcomeUnknown);
    assert!(kit.notes(&kit.acme).await.is_empty());
}

#[tokio::test]
async fn control_sqlx_says_ok_to_a_commit_that_kept_nothing() {
    let kit = Kit::new().await;
    let pool = sqlx::PgPool::connect(&kit.database.admin_url()).await.expect("connect");
    #[expect(clippy::disallowed_methods, reason = "the control")]
    let mut tx = pool.begin().await.expect("begin");
    sqlx::query("select 1 / 0").execute(&mut *tx).await.expect_err("division by zero");
    tx.commit().await.expect("if this fails, sqlx has become honest, and SAVEPOINT before COMMIT can go");
}

async fn a_transaction_ended_by_a_statement_can_not_be_committed(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    for sql in ["commit", "rollback", "end", "commit; select 1"] {
        kit.note(&kit.globex, "globex's").await;
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        sqlx::raw_sql(sql).execute(&mut tx).await.expect(sql);
        // Outside of a transaction a pooler may give each message of a statement to another server, which then knows nothing of it.
        let seen = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await;
        assert!(matches!(seen, Ok(0_i64)) || (route == Route::Pooled && seen.is_err()), "after {sql} no tenant is bound: {seen:?}");
        assert_eq!(tx.commit().await.expect_err(sql).kind(), ErrorKind::TransactionAborted);
    }
}

async fn a_cancelled_statement_ends_the_transaction(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "lost").await;
    let cancelled = drop_after(sqlx::query("select pg_sleep(0.05)").execute(&mut tx), 1).await;
    assert!(cancelled.is_none(), "the control: it was under way");
    let error = sqlx::query("select 1").execute(&mut tx).await.expect_err("refused");
    assert_eq!(from_sqlx(error).kind(), ErrorKind::TransactionAborted);
    assert_eq!(tx.commit().await.expect_err("refused").kind(), ErrorKind::TransactionAborted);
    kit.db_settles().await;
    assert!(kit.notes(&kit.acme).await.is_empty());
}

async fn a_stream_may_be_left_early(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    {
        let mut rows = sqlx::query("select g from generate_series(1, 10000) g").fetch(&mut tx);
        rows.try_next().await.expect("a row").expect("a row");
    }
    insert(&mut tx, "kept").await;
    tx.commit().await.expect("commit");
    assert_eq!(kit.notes(&kit.acme).await, ["kept"]);
}

async fn savepoints_nest_and_undo_only_their_part(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    insert(&mut tx, "1 before").await;
    let mut outer = tx.savepoint().await.expect("savepoint");
    insert(&mut *outer, "2 outer").await;
    {
        let mut inner = outer.savepoint().await.expect("savepoint");
        insert(&mut *inner, "inner, dropped").await;
        let mut innermost = inner.savepoint().await.expect("savepoint");
        insert(&mut *innermost, "innermost, released into a dropped one").await;
        innermost.release().await.expect("release");
    }
    {
        let mut failed = outer.savepoint().await.expect("savepoint");
        sqlx::query("select 1 / 0").execute(&mut *failed).await.expect_err("division by zero");
        assert_eq!(failed.release().await.expect_err("failed").kind(), ErrorKind::TransactionAborted);
    }
    insert(&mut *outer, "3 outer, after a failed part").await;
    outer.release().await.expect("release");
    let mut last = tx.savepoint().await.expect("savepoint");
    insert(&mut *last, "dropped just before the commit").await;
    drop(last);
    tx.commit().await.expect("commit");
    assert_eq!(kit.notes(&kit.acme).await, ["1 before", "2 outer", "3 outer, after a failed part"]);
}

async fn a_cursor_with_hold_does_not_reach_the_next_tenant(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(1)).await else { return };
    kit.note(&kit.acme, "acme's").await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    sqlx::raw_sql("declare loot cursor with hold for select body from notes").execute(&mut tx).await.expect("declare");
    tx.commit().await.expect("commit");
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    sqlx::raw_sql("fetch all from loot").fetch_all(&mut tx).await.expect_err("the cursor is gone");
}

async fn a_failed_copy_does_not_shift_the_next_tenants_replies(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(1)).await else { return };
    for n in 0..500 {
        kit.note(&kit.acme, &format!("acme's {n}")).await;
    }
    kit.note(&kit.globex, "globex's").await;
    for _ in 0..5 {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        sqlx::raw_sql("copy (select * from notes) to stdout").execute(&mut tx).await.expect_err("sqlx has no reply for it here");
        drop(tx);
        assert_eq!(kit.notes(&kit.globex).await, ["globex's"]);
    }
    kit.db_settles().await;
}

async fn a_session_setting_does_not_bind_the_next_tenant(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(1)).await else { return };
    kit.note(&kit.globex, "globex's").await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let session = format!("set tenancy.tenant_id = '{}'", kit.globex.tenant_id());
    sqlx::raw_sql(sqlx::AssertSqlSafe(session)).execute(&mut tx).await.expect("set");
    tx.commit().await.expect("commit");
    assert!(kit.notes(&kit.acme).await.is_empty(), "SET LOCAL of the next transaction comes after it");
}

async fn serializable_conflicts_are_retry(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let id = kit.note(&kit.acme, "0").await;
    let bump = "update notes set body = (body::int + 1)::text where id = $1";
    let mut one = kit.db.begin_with(&kit.acme, Isolation::RepeatableRead).await.expect("begin");
    let mut two = kit.db.begin_with(&kit.acme, Isolation::Serializable).await.expect("begin");
    for tx in [&mut one, &mut two] {
        sqlx::query("select body from notes").fetch_all(tx).await.expect("select");
    }
    sqlx::query(bump).bind(id).execute(&mut one).await.expect("update");
    one.commit().await.expect("commit");
    let error = sqlx::query(bump).bind(id).execute(&mut two).await.expect_err("conflict");
    let error = from_sqlx(error);
    assert!(error.kind() == ErrorKind::Retry && error.is_transient());
}

async fn prepared_statements_and_typed_queries_work(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let statement = (&mut tx).prepare(sqlx::SqlStr::from_static("select $1::int + 1")).await.expect("prepare");
    for n in 1..3 {
        let next: i32 = sqlx::Statement::query_scalar(&statement).bind(n).fetch_one(&mut tx).await.expect("query");
        assert_eq!(next, n + 1);
    }
}
