//! Clients hang up, backends die, the pool runs dry: no connection carries one tenant's transaction to the next borrower.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use harness::{Kit, Route, dirty_sessions, drop_after, on_each_route, unbalanced};
use rand::{Rng, SeedableRng};
use sqlx::Connection;
use sqlx::postgres::PgPoolOptions;
use tenancy_core::TenantContext;
use tenancy_sqlx::{Options, TenantDb};

on_each_route! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_storm_of_cancellations_leaves_no_foreign_row_and_no_dirty_connection;
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    control_without_the_scrub_the_storm_leaves_dirt;
    #[tokio::test]
    begin_dropped_at_every_await_leaves_nothing_behind;
    #[tokio::test]
    a_begin_that_fails_half_way_does_not_return_its_connection;
    #[tokio::test]
    begin_survives_a_restart_of_every_backend;
    #[tokio::test]
    a_lost_connection_during_commit_is_an_unknown_outcome;
}

/// One unit of work with many awaits: two rows that belong together, with a savepoint between, or a read.
async fn work(db: &TenantDb, cx: &TenantContext, id: i64, foreign: &AtomicI64) -> tenancy_core::Result<()> {
    let entry = "insert into entries (id, side) values ($1, $2)";
    if id % 3 == 0 {
        let mut tx = db.read(cx).await?;
        let seen: i64 = sqlx::query_scalar("select count(*) from entries where tenant_id <> $1")
            .bind(cx.tenant_id().as_uuid())
            .fetch_one(&mut tx)
            .await
            .map_err(tenancy_sqlx::from_sqlx)?;
        foreign.fetch_add(seen, Ordering::Relaxed);
        return Ok(());
    }
    let mut tx = db.begin(cx).await?;
    sqlx::query(entry).bind(id).bind("debit").execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
    {
        let mut part = tx.savepoint().await?;
        sqlx::query(entry).bind(-id).bind("debit").execute(&mut *part).await.map_err(tenancy_sqlx::from_sqlx)?;
    } // dropped: undone
    sqlx::query(entry).bind(id).bind("credit").execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
    tx.commit().await
}

/// Runs `work` from `workers` tasks, each `rounds` times, dropping most of them at a random await. Returns (finished, cancelled).
async fn storm(kit: &Kit, workers: i64, rounds: i64, foreign: &Arc<AtomicI64>) -> (i64, i64) {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..workers {
        let (db, cx) = (kit.db.clone(), if worker % 2 == 0 { kit.acme.clone() } else { kit.globex.clone() });
        let foreign = Arc::clone(foreign);
        tasks.spawn(async move {
            let mut rng = rand::rngs::StdRng::seed_from_u64(worker.unsigned_abs());
            let (mut finished, mut cancelled) = (0, 0);
            for round in 0..rounds {
                let polls = rng.random_range(1..6);
                match drop_after(work(&db, &cx, 1 + worker * rounds + round, &foreign), polls).await {
                    Some(Ok(())) => finished += 1,
                    Some(Err(_)) => {}
                    None => cancelled += 1,
                }
            }
            (finished, cancelled)
        });
    }
    tasks.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

async fn a_storm_of_cancellations_leaves_no_foreign_row_and_no_dirty_connection(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(4).with_acquire_timeout(Duration::from_millis(200))).await
    else {
        return;
    };
    let foreign = Arc::new(AtomicI64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let killer = tokio::spawn(kill_backends(kit.superuser().await, Arc::clone(&stop)));
    let (finished, cancelled) = storm(&kit, 12, 400, &foreign).await;
    stop.store(true, Ordering::Relaxed);
    let killed = killer.await.expect("killer");
    kit.db_settles().await;
    assert!(
        cancelled > 1_000 && finished > 100 && killed > 5,
        "the storm was a breeze: {cancelled} cancelled, {finished} finished, {killed} killed"
    );
    assert_eq!(foreign.load(Ordering::Relaxed), 0, "foreign rows");
    assert_eq!(unbalanced(&mut kit.superuser().await).await, 0, "transactions kept in part");
    // The pool has all its connections.
    let held = futures_util::future::join_all((0..4).map(|_| kit.db.begin(&kit.acme))).await;
    assert!(held.iter().all(Result::is_ok), "a permit was lost");
}

async fn control_without_the_scrub_the_storm_leaves_dirt(route: Route) {
    let without =
        |options: Options| options.with_max_connections(4).with_acquire_timeout(Duration::from_millis(200)).danger_without_scrub();
    let Some(kit) = Kit::on_with(route, without).await else { return };
    storm(&kit, 12, 100, &Arc::default()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut eye = kit.superuser().await;
    let (dirty, partial) = (dirty_sessions(&mut eye).await, unbalanced(&mut eye).await);
    assert!(dirty > 0 || partial > 0, "the detectors are blind");
}

async fn kill_backends(mut eye: sqlx::PgConnection, stop: Arc<AtomicBool>) -> i64 {
    let mut killed = 0;
    while !stop.load(Ordering::Relaxed) {
        let victims = "select count(pg_terminate_backend(pid)) from
            (select pid from pg_stat_activity where usename = 'tenancy_app' and datname = current_database() order by random() limit 1) victim";
        killed += sqlx::query_scalar::<_, i64>(victims).fetch_one(&mut eye).await.expect("kill");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    killed
}

/// Drops `begin` after each number of polls up to its end, on a pool of one connection, which the next borrower gets.
async fn begin_dropped_at_every_await_leaves_nothing_behind(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(1)).await else { return };
    kit.note(&kit.acme, "acme's").await;
    let mut cut = 0;
    for polls in 1..40 {
        for _ in 0..3 {
            match drop_after(kit.db.begin(&kit.acme), polls).await {
                Some(done) => drop(done.expect("begin")),
                None => cut += 1,
            }
            assert!(kit.notes(&kit.globex).await.is_empty(), "after {polls} polls");
        }
    }
    assert!(cut >= 3, "begin was never cut");
    kit.db_settles().await;
}

/// What sqlx's own `begin_with` does there: why this crate has a scrub.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the control")]
async fn control_sqlx_hands_on_a_bound_connection() {
    let kit = Kit::new().await;
    kit.note(&kit.acme, "acme's").await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&kit.database.app_url()).await.expect("connect");
    let mut leaked = 0;
    // Where the cut must fall for it depends on the moment: try until it does.
    for polls in (1..6).cycle().take(5_000) {
        let bind = format!("BEGIN; SET LOCAL tenancy.tenant_id = '{}'", kit.acme.tenant_id());
        let _ = drop_after(pool.begin_with(sqlx::AssertSqlSafe(bind)), polls).await;
        leaked += sqlx::query_scalar::<_, i64>("select count(*) from notes").fetch_one(&pool).await.expect("count");
        if leaked > 0 {
            break;
        }
        sqlx::raw_sql("rollback").execute(&pool).await.expect("rollback");
    }
    assert!(leaked > 0, "if nothing leaks, sqlx has mended this");
}

async fn a_begin_that_fails_half_way_does_not_return_its_connection(route: Route) {
    // SET LOCAL ROLE fails after BEGIN: this login can't become the administrator.
    let Some(kit) = Kit::on(route).await else { return };
    let options = kit.options().with_admin_url(&kit.app_url()).expect("our own URL");
    let db = TenantDb::open(options).await.expect("open");
    for _ in 0..10 {
        let error = db.dangerous().begin_system("try").await.expect_err("not a member");
        assert_eq!(error.kind(), tenancy_core::ErrorKind::Misconfigured);
    }
    kit.db_settles().await;
}

async fn begin_survives_a_restart_of_every_backend(route: Route) {
    let Some(kit) = Kit::on_with(route, |options| options.with_max_connections(3)).await else { return };
    let held = futures_util::future::join_all((0..3).map(|_| kit.db.begin(&kit.acme))).await;
    drop(held);
    kit.db_settles().await;
    let mut eye = kit.superuser().await;
    let killed: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'tenancy_app' and datname = current_database()",
    )
    .fetch_one(&mut eye)
    .await
    .expect("kill");
    assert!(killed >= 3, "the control: there were idle connections to kill");
    kit.note(&kit.acme, "after the restart").await;
    assert_eq!(kit.notes(&kit.acme).await, ["after the restart"]);
}

async fn a_lost_connection_during_commit_is_an_unknown_outcome(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await.expect("pid");
    let mut eye = kit.superuser().await;
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&mut eye).await.expect("kill");
    eye.ping().await.expect("ping");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(tx.commit().await.expect_err("lost").kind(), tenancy_core::ErrorKind::OutcomeUnknown);
}
