//! Gauges: exact in the caller's transaction; alerts once; usage over time.

use std::time::Duration;

use chrono::Utc;
use harness::Kit;
use sqlx::{Executor, PgConnection, Row};
use tenancy_core::quota::{Metric, Plan, Quota, QuotaPolicy, Window};
use tenancy_core::{ErrorKind, TenantContext};
use tenancy_sqlx::quota::{QuotaState, Resolution};

#[expect(clippy::disallowed_methods, reason = "a test is an edge")]
fn now() -> chrono::DateTime<Utc> {
    Utc::now()
}

async fn set(kit: &Kit, cx: &TenantContext, quota: &Quota) {
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(cx.tenant_id(), quota).await.expect("set");
    tx.commit().await.expect("commit");
}

async fn state(kit: &Kit, cx: &TenantContext, metric: Metric) -> QuotaState {
    let mut tx = kit.db.read(cx).await.expect("read");
    tx.quotas(now()).await.expect("quotas").into_iter().find(|state| state.metric == metric.name()).expect("the metric")
}

async fn grow(kit: &Kit, cx: &TenantContext, by: u64) -> Result<u64, ErrorKind> {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let level = tx.grow(Metric::USERS, by).await.map_err(|error| error.kind())?;
    tx.commit().await.expect("commit");
    Ok(level.used)
}

/// Topic, threshold, level: of every message in the outbox.
async fn outbox(eye: &mut PgConnection) -> Vec<(String, i64, i64)> {
    let sql = "select topic, (payload->>'threshold')::bigint, (payload->>'used')::bigint from tenancy.outbox order by id";
    sqlx::query(sql).fetch_all(eye).await.expect("outbox").iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test]
async fn two_hundred_at_once_and_exactly_the_limit_succeed() {
    let kit = Kit::with_options(|options| options.with_max_connections(16)).await;
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 25)).await;
    let tries = (0..200).map(|_| grow(&kit, &kit.acme, 1));
    let outcomes = futures_util::future::join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 25);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(1..=25) | Err(ErrorKind::QuotaExceeded))));
    assert_eq!(state(&kit, &kit.acme, Metric::USERS).await.used, 25);
    // And the other tenant has its own.
    assert_eq!(grow(&kit, &kit.globex, 1).await, Ok(1));
}

/// What everybody writes first: it counts, and then inserts. Eight at a time have counted before one of them inserts.
#[tokio::test]
async fn control_count_then_insert_passes_the_limit() {
    let kit = Kit::with_options(|options| options.with_max_connections(16)).await;
    let counted = tokio::sync::Barrier::new(8);
    let one = async || {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let count: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("count");
        counted.wait().await;
        if count < 25 {
            sqlx::query("insert into notes (body) values ('x')").execute(&mut tx).await.expect("insert");
            tx.commit().await.expect("commit");
        }
    };
    futures_util::future::join_all((0..200).map(|_| one())).await;
    assert!(kit.notes(&kit.acme).await.len() > 25, "the test above can't fail");
}

#[tokio::test]
async fn what_is_rolled_back_is_given_back_and_what_shrinks_always_may() {
    let kit = Kit::new().await;
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 10)).await;
    grow(&kit, &kit.acme, 10).await.expect("up to the limit");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.shrink(Metric::USERS, 5).await.expect("shrink");
    drop(tx);
    kit.db_settles().await;
    assert_eq!(state(&kit, &kit.acme, Metric::USERS).await.used, 10);
    // A lower limit deletes nothing, blocks growth, and lets the level fall.
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 4)).await;
    assert_eq!(grow(&kit, &kit.acme, 1).await, Err(ErrorKind::QuotaExceeded));
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(tx.shrink(Metric::USERS, 3).await.expect("still above").used, 7);
    let refused = tx.grow(Metric::USERS, 1).await.expect_err("still above");
    assert_eq!(refused.to_string(), "the quota of users allows 4 users: 7 are used, and 1 more were asked for");
    tx.commit().await.expect("a refusal does not end the transaction");
    assert_eq!(state(&kit, &kit.acme, Metric::USERS).await.used, 7);
}

#[tokio::test]
async fn a_policy_moves_the_ceiling_and_not_the_exactness() {
    let kit = Kit::new().await;
    for (policy, most) in [(QuotaPolicy::Hard, 10), (QuotaPolicy::Grace { percent: 20 }, 12), (QuotaPolicy::Overage { units: 5 }, 15)] {
        set(&kit, &kit.acme, &Quota::new(Metric::USERS, 10).with_policy(policy)).await;
        let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
        tx.set_level(kit.acme.tenant_id(), Metric::USERS, most - 1).await.expect("level");
        tx.commit().await.expect("commit");
        assert_eq!((grow(&kit, &kit.acme, 1).await, grow(&kit, &kit.acme, 1).await), (Ok(most), Err(ErrorKind::QuotaExceeded)), "{policy}");
    }
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 10).with_policy(QuotaPolicy::Soft)).await;
    assert_eq!(grow(&kit, &kit.acme, 1000).await, Ok(1015));
}

#[tokio::test]
async fn room_is_kept_until_it_is_settled_or_expires() {
    let kit = Kit::new().await;
    set(&kit, &kit.acme, &Quota::new(Metric::STORAGE, 100)).await;
    let reserve = async |amount, lasts| {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let reservation = tx.reserve(Metric::STORAGE, amount, lasts).await?;
        tx.commit().await.map(|()| reservation)
    };
    let settle = async |reservation, actual| {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        tx.settle(reservation, actual).await?;
        tx.commit().await
    };
    let long = Duration::from_secs(60);
    let kept = reserve(80, long).await.expect("room");
    let refused = reserve(21, long).await.expect_err("full");
    assert!(refused.to_string().contains("0 are used and 80 held for work under way"), "{refused}");
    settle(&kept, 30).await.expect("less than was kept");
    let after = state(&kit, &kit.acme, Metric::STORAGE).await;
    assert_eq!((after.used, after.reserved), (30, 0));
    assert_eq!(settle(&kept, 30).await.expect_err("twice").kind(), ErrorKind::Conflict);
    // Another tenant's is as none.
    let kept = reserve(10, long).await.expect("room");
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    assert_eq!(tx.settle(&kept, 0).await.expect_err("foreign").kind(), ErrorKind::Conflict);
    drop(tx);
    settle(&kept, 0).await.expect("failed work costs nothing");
    // Nobody settles this one.
    let lost = reserve(70, Duration::from_millis(1)).await.expect("room");
    let mut eye = kit.superuser().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let expired: i64 = sqlx::query_scalar("select tenancy.gauge_expire()").fetch_one(&mut eye).await.expect("expire");
    assert_eq!(expired, 1);
    assert_eq!(settle(&lost, 70).await.expect_err("expired").kind(), ErrorKind::Conflict);
    assert_eq!((state(&kit, &kit.acme, Metric::STORAGE).await.used, state(&kit, &kit.acme, Metric::STORAGE).await.reserved), (30, 0));
}

#[tokio::test]
async fn an_alert_is_told_once_and_again_after_it_was_resolved() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 10)).await;
    for by in [7, 1, 1, 1] {
        grow(&kit, &kit.acme, by).await.expect("grow");
    }
    let threshold = "quota.threshold".to_owned();
    assert_eq!(outbox(&mut eye).await, [(threshold.clone(), 80, 8), (threshold.clone(), 100, 10)]);
    let change = async |by: i64| {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        if by < 0 { tx.shrink(Metric::USERS, by.unsigned_abs()).await } else { tx.grow(Metric::USERS, by.unsigned_abs()).await }
            .expect("change");
        tx.commit().await.expect("commit");
    };
    // Around the threshold nothing is said again: it has to fall well below.
    for by in [-1, 1, -3, 3] {
        change(by).await;
    }
    assert_eq!(outbox(&mut eye).await.len(), 2 + 2, "100 was resolved at 7 and reached again, 80 was not");
    change(-4).await;
    change(2).await;
    let told = outbox(&mut eye).await;
    assert_eq!(
        told[2..],
        [
            ("quota.resolved".to_owned(), 100, 7),
            (threshold.clone(), 100, 10),
            ("quota.resolved".to_owned(), 100, 6),
            ("quota.resolved".to_owned(), 80, 6),
            (threshold.clone(), 80, 8)
        ]
    );
    // What is rolled back is not told.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.grow(Metric::USERS, 2).await.expect("grow");
    drop(tx);
    kit.db_settles().await;
    assert_eq!(outbox(&mut eye).await.len(), told.len());
    // A limit that is lowered under the level is a crossing as well.
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 8)).await;
    assert_eq!(outbox(&mut eye).await.last(), Some(&(threshold, 100, 8)));
}

#[tokio::test]
async fn a_plan_entitles_and_the_tenants_own_quota_stays() {
    let kit = Kit::new().await;
    let free = Plan::new("free").with(Quota::new(Metric::USERS, 3)).with(Quota::new(Metric::STORAGE, 100));
    let pro = Plan::new("pro").with(Quota::new(Metric::USERS, 50)).with(Quota::new(Metric::API, 1000).per(Window::MONTH));
    let entitle = async |plan: &Plan| {
        let mut tx = kit.db.dangerous().begin_system("a test changes the plan").await.expect("system");
        tx.entitle(kit.acme.tenant_id(), plan).await.expect("entitle");
        tx.commit().await.expect("commit");
    };
    entitle(&free).await;
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 7)).await;
    entitle(&pro).await;
    let limit = async |metric| state(&kit, &kit.acme, metric).await.limit;
    assert_eq!((limit(Metric::USERS).await, limit(Metric::STORAGE).await, limit(Metric::API).await), (Some(7), None, Some(1000)));
    let mut tx = kit.db.dangerous().begin_system("a test reverts").await.expect("system");
    tx.revert_quota(kit.acme.tenant_id(), Metric::USERS).await.expect("revert");
    tx.entitle(kit.acme.tenant_id(), &pro).await.expect("entitle");
    tx.commit().await.expect("commit");
    assert_eq!(limit(Metric::USERS).await, Some(50));
    // It was audited, for the tenant to see.
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let actions: Vec<String> = sqlx::query_scalar("select action from tenancy.audit_events where action like 'quota.%' order by at")
        .fetch_all(&mut tx)
        .await
        .expect("audit");
    assert_eq!(actions, ["quota.set", "quota.revert"]);
}

#[tokio::test]
async fn the_applications_role_can_change_no_quota_and_read_no_other_tenants() {
    let kit = Kit::new().await;
    set(&kit, &kit.acme, &Quota::new(Metric::USERS, 10)).await;
    grow(&kit, &kit.acme, 8).await.expect("grow");
    for sql in [
        "update tenancy.quotas set ceiling = 1000",
        "update tenancy.quota_gauges set used = 0",
        "delete from tenancy.quota_alerts",
        "insert into tenancy.usage values (tenancy.current_tenant(), 'users', now(), 1)",
        "select * from tenancy.outbox",
        "select * from tenancy.quota_leases",
        "select * from tenancy.usage_default",
        "select tenancy.quota_set(tenancy.current_tenant(), 'users', 'gauge', 99, 99, 'lifetime', null, 'hard', '{}', false)",
        "select tenancy.gauge_set(tenancy.current_tenant(), 'users', 0)",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = sqlx::raw_sql(sql).execute(&mut tx).await.expect_err(sql);
        assert!(refused.as_database_error().is_some_and(|db| db.code().as_deref() == Some("42501")), "{sql}: {refused}");
    }
    let mut tx = kit.db.read(&kit.globex).await.expect("read");
    for table in ["quotas", "quota_gauges", "quota_alerts", "usage"] {
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from tenancy.{table}")))
            .fetch_one(&mut tx)
            .await
            .expect("count");
        assert_eq!(rows, 0, "{table}");
    }
    // The owner of the rows sees them, so the test above can fail.
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let rows: i64 = sqlx::query_scalar("select count(*) from tenancy.quota_alerts").fetch_one(&mut tx).await.expect("count");
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn usage_is_kept_by_the_minute_and_rolled_up() {
    let kit = Kit::new().await;
    let (mut eye, tenant) = (kit.superuser().await, kit.acme.tenant_id());
    eye.execute("update tenancy.usage_rolled set until = '-infinity'").await.expect("nothing is rolled up");
    // 50 days of a call each minute in the first hour of a day, and a gauge that rises by one a day.
    let fill = "insert into tenancy.usage select $1, 'api', d + m * interval '1 minute', 2 from generate_series(date_trunc('day', now(), 'UTC') - interval '50 days', date_trunc('day', now(), 'UTC') - interval '1 day', '1 day') d, generate_series(0, 59) m
         union all select $1, 'storage', d + interval '5 hours', row_number() over (order by d) from generate_series(date_trunc('day', now(), 'UTC') - interval '50 days', date_trunc('day', now(), 'UTC') - interval '1 day', '1 day') d";
    sqlx::query(fill).bind(tenant.as_uuid()).execute(&mut eye).await.expect("fill");
    sqlx::query("insert into tenancy.quota_gauges values ($1, 'storage', 50)")
        .bind(tenant.as_uuid())
        .execute(&mut eye)
        .await
        .expect("gauge");
    let series = async |metric, by| {
        let mut tx = kit.db.read(&kit.acme).await.expect("read");
        let points = tx.usage(metric, now() - chrono::Days::new(60), now(), by).await.expect("usage");
        (points.len(), points.iter().map(|point| point.value).sum::<u64>(), points.last().map(|point| point.value))
    };
    let before = (
        series(Metric::API, Resolution::Minute).await,
        series(Metric::API, Resolution::Hour).await,
        series(Metric::API, Resolution::Day).await,
    );
    assert_eq!(before, ((3000, 6000, Some(2)), (50, 6000, Some(120)), (50, 6000, Some(120))));
    let maintain = "select tenancy.usage_maintain('20 days', '30 days')";
    for _ in 0..2 {
        let done: bool = sqlx::query_scalar(maintain).fetch_one(&mut eye).await.expect("maintain");
        assert!(done);
    }
    // Days are kept for ever; hours for 30 days; minutes for 20.
    assert_eq!(series(Metric::API, Resolution::Day).await, (50, 6000, Some(120)));
    let (hours, total, _) = series(Metric::API, Resolution::Hour).await;
    assert!((29..=31).contains(&hours) && total == hours as u64 * 120, "{hours} {total}");
    assert_eq!(series(Metric::STORAGE, Resolution::Day).await.2, Some(50), "a gauge's last level, not a sum");
    let partitions: i64 = sqlx::query_scalar("select count(*) from pg_inherits where inhparent = 'tenancy.usage'::regclass")
        .fetch_one(&mut eye)
        .await
        .expect("partitions");
    assert_eq!(partitions, 4, "three months ahead, and the default");
    // What comes now falls into a month's partition, not the default one.
    eye.execute("insert into tenancy.usage values (gen_random_uuid(), 'api', now(), 1)").await.expect("insert");
    let stray: i64 = sqlx::query_scalar("select count(*) from tenancy.usage_default where at > now() - interval '1 minute'")
        .fetch_one(&mut eye)
        .await
        .expect("stray");
    assert_eq!(stray, 0);
}
