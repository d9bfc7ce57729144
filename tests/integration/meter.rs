//! The meter: never over the ceiling, on any number of nodes, whatever crashes.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harness::Kit;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use tenancy_core::TenantContext;
use tenancy_core::quota::{Admit as _, Admitted, Ask, Denial, Metric, Quota, Reason, Window};
use tenancy_sqlx::quota::{Meter, MeterOptions, Settlement, WhenAway};
use tenancy_sqlx::{Options, TenantDb};

async fn set(kit: &Kit, quota: Quota) {
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(kit.acme.tenant_id(), &quota).await.expect("set");
    tx.commit().await.expect("commit");
}

/// A kit with so many calls a month.
async fn kit(limit: u64) -> Kit {
    let kit = Kit::new().await;
    set(&kit, Quota::new(Metric::API, limit).per(Window::MONTH)).await;
    kit
}

async fn meter(kit: &Kit) -> Meter {
    Meter::start(&kit.db, MeterOptions::default()).await.expect("a meter")
}

async fn admit(meter: &Meter, cx: &TenantContext) -> Result<Admitted, Denial> {
    match meter.try_admit(cx, Ask::default()) {
        Some(decision) => decision,
        None => meter.admit(cx, Ask::default()).await,
    }
}

/// How many of `tries` are admitted.
async fn count(meter: &Meter, cx: &TenantContext, tries: usize) -> u64 {
    let mut admitted = 0;
    for _ in 0..tries {
        admitted += u64::from(admit(meter, cx).await.is_ok());
    }
    admitted
}

/// What the database says of the tenant's counter: granted, used, lost; and what leases hold besides.
async fn books(eye: &mut PgConnection) -> (i64, i64, i64, i64) {
    let sql = "select coalesce(sum(granted), 0)::bigint, coalesce(sum(used), 0)::bigint, coalesce(sum(lost), 0)::bigint,
                 (select coalesce(sum(granted - returned - used), 0)::bigint from tenancy.quota_leases) from tenancy.quota_counters";
    let row = sqlx::query(sql).fetch_one(eye).await.expect("books");
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

#[tokio::test]
async fn three_nodes_admit_exactly_the_limit_and_strand_nothing() {
    let kit = kit(1000).await;
    let meters = futures_util::future::join_all((0..3).map(|_| meter(&kit))).await;
    let admitted: u64 = futures_util::future::join_all(meters.iter().map(|meter| count(meter, &kit.acme, 700))).await.iter().sum();
    assert_eq!(admitted, 1000);
    let denial = admit(&meters[0], &kit.acme).await.expect_err("used up");
    assert_eq!((denial.reason, denial.metric, denial.limit, denial.window), (Reason::Exhausted, "api", Some(1000), Some(30 * 86_400)));
    assert!(denial.retry_after_seconds().is_some_and(|wait| wait > 0 && wait <= 31 * 86_400), "{denial:?}");
    for meter in &meters {
        meter.shutdown().await.expect("shutdown");
    }
    let mut eye = kit.superuser().await;
    assert_eq!(books(&mut eye).await, (1000, 1000, 0, 0));
    // The usage is the sum of what was admitted, and its alerts were told once.
    let usage: i64 = sqlx::query_scalar("select sum(value)::bigint from tenancy.usage").fetch_one(&mut eye).await.expect("usage");
    assert_eq!(usage, 1000);
    let alerts: Vec<i64> = sqlx::query_scalar("select (payload->>'threshold')::bigint from tenancy.outbox order by 1")
        .fetch_all(&mut eye)
        .await
        .expect("alerts");
    assert_eq!(alerts, [80, 100]);
}

/// What everybody writes first: nodes count for themselves and tell the database now and then.
#[tokio::test]
async fn control_batched_counts_pass_the_limit() {
    let total = AtomicU64::new(0);
    let node = async || {
        let (mut known, mut mine, mut admitted) = (0, 0, 0_u64);
        for n in 0..700 {
            if known + mine < 1000 {
                (mine, admitted) = (mine + 1, admitted + 1);
            }
            if n % 50 == 0 {
                known = total.fetch_add(mine, Ordering::Relaxed) + mine;
                mine = 0;
                tokio::task::yield_now().await;
            }
        }
        admitted
    };
    let admitted: u64 = futures_util::future::join_all((0..3).map(|_| node())).await.iter().sum();
    assert!(admitted > 1000, "the test above can't fail");
}

#[tokio::test]
async fn a_shutdown_returns_what_was_not_spent_and_the_next_node_spends_it() {
    let kit = kit(100).await;
    let first = meter(&kit).await;
    assert_eq!(count(&first, &kit.acme, 10).await, 10);
    first.shutdown().await.expect("shutdown");
    assert_eq!(admit(&first, &kit.acme).await.expect_err("it is over").reason, Reason::StoreAway);
    let mut eye = kit.superuser().await;
    assert_eq!(books(&mut eye).await, (10, 10, 0, 0));
    let second = meter(&kit).await;
    assert_eq!(count(&second, &kit.acme, 200).await, 90);
    second.shutdown().await.expect("shutdown");
}

#[tokio::test]
async fn a_changed_limit_is_followed_both_ways() {
    let kit = kit(5).await;
    let (here, there) = (meter(&kit).await, meter(&kit).await);
    assert_eq!(count(&here, &kit.acme, 10).await + count(&there, &kit.acme, 10).await, 5);
    set(&kit, Quota::new(Metric::API, 1000).per(Window::MONTH)).await;
    here.refresh(kit.acme.tenant_id()).await.expect("refresh");
    assert!(admit(&here, &kit.acme).await.is_ok(), "at once where it was changed");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(admit(&there, &kit.acme).await.is_ok(), "soon elsewhere");
    // Lower than what is used: what was leased is given back, and nothing more is admitted.
    set(&kit, Quota::new(Metric::API, 6).per(Window::MONTH)).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(count(&here, &kit.acme, 20).await + count(&there, &kit.acme, 20).await, 0);
    // Unlimited is counted all the same.
    set(&kit, Quota::unlimited(Metric::API).per(Window::MONTH)).await;
    here.refresh(kit.acme.tenant_id()).await.expect("refresh");
    assert_eq!(count(&here, &kit.acme, 500).await, 500);
    here.shutdown().await.expect("shutdown");
    there.shutdown().await.expect("shutdown");
    assert_eq!(books(&mut kit.superuser().await).await, (507, 507, 0, 0));
}

#[tokio::test]
async fn rate_and_concurrency_are_kept_and_a_denial_spends_no_unit() {
    let kit = kit(1000).await;
    set(&kit, Quota::new(Metric::API_RATE, 60).per(Window::Fixed { seconds: 60 }).with_burst(5)).await;
    set(&kit, Quota::new(Metric::API_CONCURRENCY, 3)).await;
    let meter = meter(&kit).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(admit(&meter, &kit.acme).await.expect("admitted"));
    }
    let denial = admit(&meter, &kit.acme).await.expect_err("a fourth at once");
    assert_eq!((denial.reason, denial.metric), (Reason::Concurrency, "api.concurrency"));
    drop(held);
    assert_eq!(count(&meter, &kit.acme, 5).await, 2, "the burst was five");
    let denial = admit(&meter, &kit.acme).await.expect_err("too fast");
    assert_eq!((denial.reason, denial.retry_after_seconds(), denial.limit), (Reason::Rate, Some(1), Some(5)));
    meter.shutdown().await.expect("shutdown");
    assert_eq!(books(&mut kit.superuser().await).await, (5, 5, 0, 0));
}

#[tokio::test]
async fn a_new_period_begins_anew_and_the_old_one_is_settled() {
    let kit = Kit::new().await;
    set(&kit, Quota::new(Metric::API, 50).per(Window::Fixed { seconds: 2 })).await;
    let meter = meter(&kit).await;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(5200);
    let mut admitted = 0;
    while tokio::time::Instant::now() < deadline {
        admitted += count(&meter, &kit.acme, 20).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    meter.shutdown().await.expect("shutdown");
    let mut eye = kit.superuser().await;
    let periods: Vec<(i64, i64)> = sqlx::query_as("select granted, used from tenancy.quota_counters order by period_start")
        .fetch_all(&mut eye)
        .await
        .expect("periods");
    assert!((3..=4).contains(&periods.len()), "{periods:?}");
    assert!(periods.iter().all(|(granted, used)| granted == used && *used <= 50), "{periods:?}");
    assert_eq!(periods.iter().map(|(_, used)| *used).sum::<i64>(), i64::try_from(admitted).expect("small"));
    assert!(admitted >= 100, "{admitted}");
}

#[tokio::test]
async fn without_the_database_leased_units_are_spent_and_then_it_is_as_configured() {
    let kit = kit(1_000_000).await;
    let strict = meter(&kit).await;
    let lax = Meter::start(&kit.db, MeterOptions::default().with_quota_when_away(WhenAway::Admit)).await.expect("a meter");
    assert!(admit(&strict, &kit.acme).await.is_ok() && admit(&lax, &kit.acme).await.is_ok());
    let mut eye = kit.superuser().await;
    let lease = "function tenancy.quota_lease(uuid, uuid[], text[], timestamptz[], bigint[], bigint[], bigint[], bigint[], bigint)";
    eye.execute(AssertSqlSafe(format!("revoke execute on {lease} from tenancy_app"))).await.expect("take it away");
    let tries = 40;
    let spent = count(&strict, &kit.acme, tries).await;
    assert!((20..40).contains(&spent), "{spent} of the leased units, and then it is closed");
    let denial = admit(&strict, &kit.acme).await.expect_err("closed");
    assert_eq!((denial.reason, denial.retry_after_seconds()), (Reason::StoreAway, Some(1)));
    assert_eq!(count(&lax, &kit.acme, tries).await, 40, "open, as configured");
    eye.execute(AssertSqlSafe(format!("grant execute on {lease} to tenancy_app"))).await.expect("give it back");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(admit(&strict, &kit.acme).await.is_ok(), "and open again");
    strict.shutdown().await.expect("shutdown");
}

#[tokio::test]
async fn a_silent_node_is_given_up_and_begins_anew() {
    for (settlement, lost) in [(Settlement::Forfeit, true), (Settlement::Release, false)] {
        let kit = kit(1000).await;
        let meter = Meter::start(&kit.db, MeterOptions::default().with_crash_settlement(settlement)).await.expect("a meter");
        assert_eq!(count(&meter, &kit.acme, 10).await, 10);
        meter.flush().await.expect("flush");
        let mut eye = kit.superuser().await;
        let (granted, used, ..) = books(&mut eye).await;
        assert!(granted > used && used == 10, "{granted} {used}");
        eye.execute("update tenancy.quota_nodes set heartbeat_at = now() - interval '1 hour'; select tenancy.quota_reap()")
            .await
            .expect("reap");
        assert_eq!(books(&mut eye).await, if lost { (granted, 10, granted - 10, 0) } else { (10, 10, 0, 0) });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // It noticed, and what it had is not spent a second time.
        let more = count(&meter, &kit.acme, 2000).await;
        meter.shutdown().await.expect("shutdown");
        let (granted, used, lost, open) = books(&mut eye).await;
        assert_eq!((granted, open, used), (1000, 0, 1000 - lost));
        assert_eq!(i64::try_from(more).expect("small") + 10 + lost, 1000);
    }
}

/// SQL of an attacker, as the application's role: it can't name another node, and what it says of silence and settlement is its own.
#[tokio::test]
async fn nobody_ends_another_nodes_run() {
    let kit = kit(1000).await;
    let meter = meter(&kit).await;
    assert_eq!(count(&meter, &kit.acme, 10).await, 10);
    meter.flush().await.expect("flush");
    let mut eye = kit.superuser().await;
    let before = books(&mut eye).await;
    assert!(before.3 > 0, "{before:?}");
    for attempt in [
        "select tenancy.quota_reap()",
        "select tenancy.quota_node_start('1 second', true), tenancy.quota_reap()",
        "select tenancy.quota_node_end(id) from tenancy.quota_nodes",
        "select tenancy.quota_node_settle(node_id, true) from tenancy.quota_leases",
        "select tenancy.quota_reap('0 seconds', true)",
        "select tenancy.quota_node_end(gen_random_uuid())",
        "update tenancy.quota_nodes set released = true",
    ] {
        let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
        if sqlx::query(attempt).execute(&mut tx).await.is_ok() {
            tx.commit().await.expect("commit");
        }
        assert_eq!(books(&mut eye).await, before, "{attempt}");
    }
    // The control: whoever knows its id does end it.
    let known = "select tenancy.quota_node_end(node_id) from tenancy.quota_leases";
    eye.execute(known).await.expect("ended");
    assert_eq!(books(&mut eye).await.3, 0);
}

/// A tenant that was forgotten comes back to the lease that it had: its totals go on.
#[tokio::test]
async fn a_forgotten_tenant_spends_nothing_twice() {
    let kit = kit(100).await;
    let meter = Meter::start(&kit.db, MeterOptions::default().with_idle(Duration::from_millis(1))).await.expect("a meter");
    let mut admitted = 0;
    for _ in 0..4 {
        admitted += count(&meter, &kit.acme, 15).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while meter.stats().tenants > 0 {
            assert!(tokio::time::Instant::now() < deadline, "it is not forgotten");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let outcome = books(&mut kit.superuser().await).await;
        assert_eq!(outcome, (i64::try_from(admitted).expect("small"), i64::try_from(admitted).expect("small"), 0, 0));
    }
    admitted += count(&meter, &kit.acme, 100).await;
    meter.shutdown().await.expect("shutdown");
    assert_eq!((admitted, books(&mut kit.superuser().await).await), (100, (100, 100, 0, 0)));
}

/// The other end of `killed_and_stopped_processes_never_pass_the_limit`: admits until it is killed, and writes a byte for each.
#[tokio::test]
async fn worker_process() {
    let Ok(url) = std::env::var("TENANCY_METER_WORKER") else { return };
    let (slug, path) = (std::env::var("TENANCY_METER_TENANT").expect("tenant"), std::env::var("TENANCY_METER_FILE").expect("file"));
    let db = TenantDb::open(Options::new(&url).expect("url")).await.expect("open");
    let hint = slug.parse().expect("slug");
    let tenant = tenancy_core::TenantCatalog::find(&db.catalog(), &hint).await.expect("find").expect("the tenant");
    let cx = TenantContext::establish(tenant.into_active().expect("active"), tenancy_core::Principal::Visitor);
    let meter = Meter::start(&db, MeterOptions::default().with_silence(Duration::from_secs(3))).await.expect("a meter");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("file");
    for n in 0_u64.. {
        // Slowly enough to be killed in the middle of it, on any machine.
        if n.is_multiple_of(5) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match admit(&meter, &cx).await {
            Ok(_) => file.write_all(b"x").expect("write"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn spawn(kit: &Kit, file: &std::path::Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "meter::worker_process", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("TENANCY_METER_WORKER", kit.database.app_url()).env("TENANCY_METER_TENANT", "acme").env("TENANCY_METER_FILE", file);
    command.spawn().expect("a process")
}

#[tokio::test]
async fn killed_and_stopped_processes_never_pass_the_limit() {
    let limit = 60_000;
    let kit = kit(limit).await;
    let file = std::env::temp_dir().join(format!("tenancy-meter-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    let admitted = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
    let mut workers: Vec<Child> = (0..4).map(|_| spawn(&kit, &file)).collect();
    let mut eye = kit.superuser().await;
    let signal = |signal: &str, process: &Child| {
        let done = Command::new("kill").args([signal, &process.id().to_string()]).status().expect("kill");
        assert!(done.success(), "kill {signal}");
    };
    tokio::time::sleep(Duration::from_millis(800)).await;
    // One is only stopped, with units in its hands, until the others have given it up.
    signal("-STOP", &workers[3]);
    let mut killed = 0;
    for round in 0..12 {
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        if round % 3 == 1 {
            // Also backends are lost, in the middle of whatever they do.
            eye.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenancy_app' and datname = current_database()",
            )
            .await
            .expect("kill");
        }
        let victim = usize::try_from(round % 3).expect("small");
        workers[victim].kill().expect("kill -9");
        workers[victim].wait().expect("reaped");
        workers[victim] = spawn(&kit, &file);
        killed += 1;
    }
    // Until the dead are given up, and what is left is used.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut stopped = true;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let silent: i64 =
            sqlx::query_scalar("select count(*) from tenancy.quota_nodes where ended_at is null").fetch_one(&mut eye).await.expect("nodes");
        if stopped && silent <= 3 {
            signal("-CONT", &workers[3]);
            stopped = false;
            tokio::time::sleep(Duration::from_secs(2)).await;
            continue;
        }
        let (granted, _, _, open) = books(&mut eye).await;
        if !stopped && silent <= 4 && granted == i64::try_from(limit).expect("small") && open == 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{silent} nodes, {:?}, {} admitted", books(&mut eye).await, admitted());
    }
    for worker in &mut workers {
        worker.kill().expect("kill -9");
        worker.wait().expect("reaped");
    }
    let (granted, used, lost, open) = books(&mut eye).await;
    let admitted = i64::try_from(admitted()).expect("small");
    std::fs::remove_file(&file).expect("remove");
    assert_eq!(killed, 12);
    assert_eq!((granted, open), (used + lost, 0));
    // What was used and not reported before a kill is among the lost.
    assert!(
        used <= admitted + killed && admitted <= used + lost && used + lost == i64::try_from(limit).expect("small"),
        "{admitted} {used} {lost}"
    );
    let alerts: i64 = sqlx::query_scalar("select count(*) from tenancy.outbox").fetch_one(&mut eye).await.expect("alerts");
    assert!(alerts <= 2, "{alerts}");
    let usage: i64 = sqlx::query_scalar("select sum(value)::bigint from tenancy.usage").fetch_one(&mut eye).await.expect("usage");
    assert_eq!(usage, used);
}
