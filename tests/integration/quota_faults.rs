//! Quotas stay exact when replies are lost, statements are sent again, clocks are wrong, and two servers create at once.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use harness::Kit;
use harness::actors::Actor as _;
use harness::app::TestApp;
use harness::proxy::Proxy;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgConnection, Row};
use tenancy_core::quota::{Admit as _, Ask, Metric, Quota, Reason, Window};
use tenancy_core::{Clock, ManualClock, SystemClock, TenantContext};
use tenancy_sqlx::quota::{Meter, MeterOptions};
use tenancy_sqlx::{Options, TenantDb};
use tokio::time::Instant;

const LIMIT: u64 = 4000;

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(kit.acme.tenant_id(), &Quota::new(Metric::API, LIMIT).per(Window::MONTH)).await.expect("set");
    tx.commit().await.expect("commit");
    kit
}

/// Asks until nothing is left, whatever fails meanwhile. Returns how many were admitted.
async fn spend_all(meter: &Meter, cx: &TenantContext) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut admitted, mut refused) = (0, 0);
    while refused < 20 {
        assert!(Instant::now() < deadline, "{admitted} admitted, and no end");
        let decision = match meter.try_admit(cx, Ask::default()) {
            Some(decision) => decision,
            None => meter.admit(cx, Ask::default()).await,
        };
        match decision {
            Ok(_) => (admitted, refused) = (admitted + 1, 0),
            // The other node may still give back: it is over when it is refused for a while.
            Err(denial) => {
                refused += u32::from(denial.reason == Reason::Exhausted);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    admitted
}

/// Granted, used, lost, and the usage that is charted; of all periods.
async fn books(eye: &mut PgConnection) -> (i64, i64, i64, i64) {
    let sql = "select sum(granted)::bigint, sum(used)::bigint, sum(lost)::bigint, (select sum(value)::bigint from tenancy.usage where metric = 'api')
                 from tenancy.quota_counters";
    let row = sqlx::query(sql).fetch_one(eye).await.expect("books");
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

async fn alerts(eye: &mut PgConnection) -> Vec<i64> {
    let sql = "select (payload->>'threshold')::bigint from tenancy.outbox order by 1";
    sqlx::query_scalar(sql).fetch_all(eye).await.expect("alerts")
}

#[tokio::test]
async fn lost_replies_cost_nothing_and_count_nothing_twice() {
    let kit = kit().await;
    let proxy = Proxy::start(&kit.app_url()).await;
    let behind = TenantDb::open(Options::new(proxy.url()).expect("a URL")).await.expect("open");
    let (far, near) = (
        Meter::start(&behind, MeterOptions::default()).await.expect("far"),
        Meter::start(&kit.db, MeterOptions::default()).await.expect("near"),
    );
    proxy.lose(30);
    let mut admitted = 0;
    while proxy.lost() < 10 {
        assert!(admitted < LIMIT, "{} replies were lost", proxy.lost());
        admitted += u64::from(far.admit(&kit.acme, Ask::default()).await.is_ok());
        // Whether it knows what came of it is what is lost.
        let _ = far.flush().await;
    }
    let (far_admitted, near_admitted) = tokio::join!(spend_all(&far, &kit.acme), spend_all(&near, &kit.acme));
    admitted += far_admitted + near_admitted;
    proxy.lose(0);
    far.shutdown().await.expect("shutdown");
    near.shutdown().await.expect("shutdown");
    let limit = i64::try_from(LIMIT).expect("small");
    let mut eye = kit.superuser().await;
    assert_eq!((admitted, books(&mut eye).await), (LIMIT, (limit, limit, 0, limit)));
    assert_eq!(alerts(&mut eye).await, [80, 100]);
}

/// What everybody writes first: take so many more, report so many more.
#[tokio::test]
async fn control_increments_strand_and_double() {
    let kit = kit().await;
    let mut eye = kit.superuser().await;
    let naive =
        "create table naive (granted bigint, used bigint); insert into naive values (0, 0); grant select, update on naive to tenancy_app";
    eye.execute(naive).await.expect("a table");
    let proxy = Proxy::start(&kit.app_url()).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(proxy.url()).await.expect("connect");
    proxy.lose(30);
    let (mut had, mut spent) = (0_i64, 0_i64);
    let again = async |sql: &'static str| {
        loop {
            if let Ok(row) = sqlx::query(sql).fetch_optional(&pool).await {
                return row.map(|row| row.get::<i64, _>(0));
            }
        }
    };
    while let Some(granted) = again("update naive set granted = granted + 100 where granted < 4000 returning 100::bigint").await {
        had += granted;
        spent += again("update naive set used = used + 100 returning 100::bigint").await.expect("a row");
    }
    let (granted, used): (i64, i64) = sqlx::query_as("select granted, used from naive").fetch_one(&mut eye).await.expect("naive");
    assert!(had < granted && used > spent, "the test above can't fail: {had} of {granted}, {used} for {spent}");
}

#[tokio::test]
async fn a_statement_that_is_sent_again_changes_nothing() {
    let kit = kit().await;
    let mut eye = kit.superuser().await;
    let node: uuid::Uuid =
        sqlx::query_scalar("select tenancy.quota_node_start('30 seconds', false)").fetch_one(&mut eye).await.expect("a node");
    async fn lease(eye: &mut PgConnection, (node, tenant): (uuid::Uuid, uuid::Uuid), [want, used, returned]: [i64; 3]) -> i64 {
        sqlx::query_scalar(
            "select granted from tenancy.quota_lease($1, array[$2], array['api'], array[date_trunc('month', now(), 'UTC')], array[$3], array[1::bigint], array[$4], array[$5], 8)",
        )
        .bind(node)
        .bind(tenant)
        .bind(want)
        .bind(used)
        .bind(returned)
        .fetch_one(eye)
        .await
        .expect("leased")
    }
    let who = (node, kit.acme.tenant_id().as_uuid());
    let granted = lease(&mut eye, who, [100, 0, 0]).await;
    // Reports and returns, three times over; and one that was overtaken by a later one.
    for (used, returned) in [(60, 10), (60, 10), (60, 10), (20, 0)] {
        assert_eq!(lease(&mut eye, who, [0, used, returned]).await, granted);
    }
    assert_eq!(books(&mut eye).await, (granted - 10, 60, 0, 60));
}

#[derive(Debug)]
struct Off(TimeDelta);

impl Clock for Off {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        SystemClock.now() + self.0
    }
}

/// Nodes count by the database's clock: theirs may be wrong, and may jump.
#[tokio::test]
async fn wrong_and_jumping_clocks_open_no_second_period() {
    let kit = kit().await;
    let url = kit.app_url();
    let open = async |clock: Arc<dyn Clock>| TenantDb::open(Options::new(&url).expect("a URL").with_clock(clock)).await.expect("open");
    let jumping = Arc::new(ManualClock::new(SystemClock.now() - TimeDelta::days(1)));
    let dbs = [
        open(Arc::new(Off(TimeDelta::days(400)))).await,
        open(Arc::new(Off(TimeDelta::days(-400)))).await,
        open(Arc::<ManualClock>::clone(&jumping)).await,
    ];
    // The control: by their own clocks, they are in different months.
    let months = [400, -400, 0].map(|days| Window::MONTH.period(SystemClock.now() + TimeDelta::days(days)).start);
    assert!(months[0] != months[1] && months[1] != months[2], "the clocks are not wrong enough to matter");

    let meters = join_all(dbs.iter().map(|db| Meter::start(db, MeterOptions::default()))).await;
    let meters: Vec<Meter> = meters.into_iter().map(|meter| meter.expect("a meter")).collect();
    let jump = async {
        for _ in 0..20 {
            jumping.advance(Duration::from_secs(3 * 86_400));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (admitted, ()) = tokio::join!(join_all(meters.iter().map(|meter| spend_all(meter, &kit.acme))), jump);
    for meter in &meters {
        meter.shutdown().await.expect("shutdown");
    }
    let limit = i64::try_from(LIMIT).expect("small");
    let mut eye = kit.superuser().await;
    assert_eq!((admitted.iter().sum::<u64>(), books(&mut eye).await), (LIMIT, (limit, limit, 0, limit)));
    let periods: i64 = sqlx::query_scalar("select count(*) from tenancy.quota_counters").fetch_one(&mut eye).await.expect("periods");
    assert_eq!((periods, alerts(&mut eye).await), (1, vec![80, 100]));
}

/// The same, through two servers: whole uploads race for the last bytes.
#[tokio::test]
async fn two_servers_create_exactly_as_many_as_there_is_room_for() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    // All at once: nothing but the storage refuses.
    let quota = json!({ "quotas": [{ "metric": "storage", "limit": 2500 }, { "metric": "api.concurrency", "limit": 1000 }] });
    app.operator().put("/api/v1/tenants/acme-works/quotas", "").json(&quota).await.expect(200);
    let document = acme.document(&acme.project("p").await, "d").await;
    let node = app.another_node().await;
    let there = acme.at(&node);
    let uploads = (0..200).map(|n| {
        let (actor, path) = (if n % 2 == 0 { &acme } else { &there }, format!("/api/v1/documents/{document}/attachments/a{n}"));
        async move { actor.put(&path, vec![7; 100]).await.status }
    });
    let statuses = join_all(uploads).await;
    let of = |status| statuses.iter().filter(|&&got| got == status).count();
    assert_eq!((of(201), of(403)), (25, 175), "{statuses:?}");
    // That files, rows and the level agree is what the application's books say, when it is dropped.
}
