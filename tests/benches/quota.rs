//! What admission costs: `cargo bench -p tenancy-tests --bench quota`. CPU nanoseconds of one core, and ratios measured in the same run.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use harness::MIGRATIONS;
use http::{Request, Response};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tenancy_core::quota::{Admit as _, Ask, Metric, Node, Priority, Quota, Rate, Slot, Terms, Window};
use tenancy_core::{NewTenant, Principal, Tenant, TenantContext};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::quota::{Meter, MeterOptions};
use tenancy_sqlx::testing::TestDatabase;
use tenancy_tower::AdmitLayer;
use tokio::sync::Semaphore;
use tower::{Layer as _, Service, service_fn};
use tower_governor::GovernorLayer;
use tower_governor::errors::GovernorError;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::KeyExtractor;

const TENANTS: usize = 1000;

/// The least of seven rounds, in nanoseconds a call.
fn nanoseconds(calls: u32, mut work: impl FnMut(u32)) -> f64 {
    let mut round = || {
        let start = Instant::now();
        (0..calls).for_each(&mut work);
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    (0..7).map(|_| round()).fold(f64::MAX, f64::min)
}

fn line(what: &str, nanoseconds: f64, aim: &str) {
    println!("| {what} | {nanoseconds:.1} | {aim} |");
}

/// Polls once: nothing here waits.
fn ready<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

#[derive(Debug, Clone)]
struct ByTenant;

impl KeyExtractor for ByTenant {
    type Key = uuid::Uuid;

    fn extract<T>(&self, request: &Request<T>) -> Result<Self::Key, GovernorError> {
        request.extensions().get::<TenantContext>().map(|cx| cx.tenant_id().as_uuid()).ok_or(GovernorError::UnableToExtractKey)
    }
}

fn context(n: usize) -> TenantContext {
    let new = NewTenant::new(format!("tenant-{n}").parse().expect("slug"), "T").active();
    let tenant = std::sync::Arc::new(Tenant::new(new, chrono::DateTime::UNIX_EPOCH).expect("tenant"));
    TenantContext::establish(tenant.into_active().expect("active"), Principal::Visitor)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let database = TestDatabase::with_migrations(&MIGRATIONS).await?;
    let db = database.open().await?;
    println!("\n| | ns | aim |\n|---|---:|---|");
    let (word, started) = (AtomicU64::new(0), quanta::Instant::now());
    line(
        "for comparison: one atomic addition",
        nanoseconds(5_000_000, |_| drop(black_box(word.fetch_add(1, Relaxed) == u64::MAX).then_some(String::new()))),
        "",
    );
    line("for comparison: one reading of the clock", nanoseconds(2_000_000, |_| assert!(black_box(started.elapsed()).as_nanos() > 0)), "");
    slot();
    let meter = Meter::start(&db, MeterOptions::default().with_capacity(1_000_000)).await?;
    let tenants: Vec<TenantContext> = (0..TENANTS).map(context).collect();
    // Leases grow with demand: what follows is not to wait for one.
    for _ in 0..5 {
        futures_util::future::join_all(tenants.iter().map(|cx| meter.admit(cx, Ask::cost(20_000)))).await;
    }
    lookup(&meter, &tenants);
    layer(&meter, &tenants);
    store(&database, &db, &meter, &tenants).await?;
    neighbours(&db).await?;
    memory(&db).await?;
    Ok(())
}

/// With the handle in hand, and a clock.
fn slot() {
    let (node, slot, started) = (Node::new(1_000_000), Slot::new(), quanta::Instant::now());
    let mut terms = Terms::default();
    terms.rate = Some(Rate::new(1_000_000_000, 1_000_000_000, 1_000_000_000));
    terms.concurrency = Some(1000);
    slot.set_terms(terms);
    slot.add(u64::MAX / 2, 0, u64::MAX);
    let now = || u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let admit = nanoseconds(2_000_000, |_| {
        black_box(slot.admit(&node, Priority::Normal, 1, now())).expect("admitted");
        slot.release(&node);
    });
    line("slot: concurrency, node, rate, units, clock, release", admit, "≤ 20");
    slot.take_back(u64::MAX);
    slot.set_exhausted(u64::MAX);
    line(
        "slot: denied, used up",
        nanoseconds(2_000_000, |_| assert!(black_box(slot.admit(&node, Priority::Normal, 1, now())).is_err())),
        "no dearer",
    );
}

fn lookup(meter: &Meter, tenants: &[TenantContext]) {
    let mut rng = SmallRng::seed_from_u64(7);
    let order: Vec<usize> = (0..100_000).map(|_| rng.random_range(0..tenants.len())).collect();
    let admit = nanoseconds(1_000_000, |n| {
        let cx = &tenants[order[n as usize % order.len()]];
        drop(black_box(meter.try_admit(cx, Ask::default())));
    });
    line(&format!("meter: with the look-up, {TENANTS} tenants"), admit, "≤ 60");
}

fn layer(meter: &Meter, tenants: &[TenantContext]) {
    let inner = service_fn(|_: Request<String>| std::future::ready(Ok::<_, Infallible>(Response::new(axum::body::Body::empty()))));
    let request = |n: u32| {
        let mut request = Request::new(String::new());
        request.extensions_mut().insert(tenants[n as usize % tenants.len()].clone());
        request
    };
    let mut bare = inner;
    let base = nanoseconds(500_000, |n| drop(black_box(ready(bare.call(request(n))))));
    let mut ours = AdmitLayer::new(meter.clone()).layer(inner);
    let ours = nanoseconds(500_000, |n| drop(black_box(ready(ours.call(request(n)))))) - base;
    let config =
        GovernorConfigBuilder::default().key_extractor(ByTenant).per_nanosecond(1).burst_size(u32::MAX).finish().expect("a configuration");
    let mut theirs = GovernorLayer::new(config).layer(inner);
    let theirs = nanoseconds(500_000, |n| drop(black_box(ready(theirs.call(request(n)))))) - base;
    line("AdmitLayer, over a bare service", ours, "≤ tower_governor");
    line("tower_governor (a rate alone), over a bare service", theirs, "");
    println!("\nAdmitLayer / tower_governor: {:.2}", ours / theirs);
}

/// Against an UPDATE for each call, and how often the database is asked.
async fn store(database: &TestDatabase, db: &TenantDb, meter: &Meter, tenants: &[TenantContext]) -> Result<(), Box<dyn std::error::Error>> {
    let hot = database.tenant(db, "hot").await?;
    let mut tx = db.dangerous().begin_system("a benchmark").await?;
    tx.set_quota(hot.tenant_id(), &Quota::new(Metric::USERS, 1 << 40)).await?;
    tx.set_quota(hot.tenant_id(), &Quota::new(Metric::API, 1 << 40).per(Window::MONTH)).await?;
    tx.commit().await?;
    let second = Duration::from_secs(3);
    let (start, mut updates) = (Instant::now(), 0_u32);
    while start.elapsed() < second {
        let mut tx = db.begin(&hot).await?;
        tx.grow(Metric::USERS, 1).await?;
        tx.commit().await?;
        updates += 1;
    }
    let updates = f64::from(updates) / start.elapsed().as_secs_f64();
    meter.refresh(hot.tenant_id()).await?;
    let (start, mut admits) = (Instant::now(), 0_u32);
    while start.elapsed() < second {
        match meter.try_admit(&hot, Ask::default()) {
            Some(decision) => drop(decision?),
            None => drop(meter.admit(&hot, Ask::default()).await?),
        }
        admits += 1;
        if admits.is_multiple_of(4096) {
            tokio::task::yield_now().await;
        }
    }
    let admits = f64::from(admits) / start.elapsed().as_secs_f64();
    println!(
        "\none hot tenant: {admits:.0} admits/s, {updates:.0} synchronous updates/s: {:.0} times as many (aim 1000)",
        admits / updates
    );

    // Zipf over all tenants.
    let weights: Vec<f64> = (1..=tenants.len())
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        })
        .collect();
    let total = weights[weights.len() - 1];
    let mut rng = SmallRng::seed_from_u64(8);
    let (before, start) = (meter.stats().round_trips, Instant::now());
    for n in 0..3_000_000_u32 {
        let at = rng.random_range(0.0..total);
        let cx = &tenants[weights.partition_point(|weight| *weight < at).min(tenants.len() - 1)];
        if meter.try_admit(cx, Ask::default()).is_none() {
            drop(meter.admit(cx, Ask::default()).await?);
        }
        if n.is_multiple_of(4096) {
            tokio::task::yield_now().await;
        }
    }
    let trips = meter.stats().round_trips - before;
    println!("{TENANTS} tenants, zipf: {} round trips per million admits, in {:.1} s (aim 500)", trips / 3, start.elapsed().as_secs_f64());
    Ok(())
}

/// What a service does at once: as many requests as it has connections.
const AT_ONCE: u32 = 32;
const WORK: Duration = Duration::from_millis(5);

/// Twenty quiet tenants, alone, and beside one that has four hundred clients which never wait.
async fn neighbours(db: &TenantDb) -> Result<(), Box<dyn std::error::Error>> {
    let mut worst = Vec::new();
    for (hot, admission) in [(false, true), (true, true), (true, false)] {
        let meter = Meter::start(db, MeterOptions::default().with_capacity(AT_ONCE)).await?;
        let connections = Arc::new(Semaphore::new(AT_ONCE as usize));
        let serve = move |meter: Meter, connections: Arc<Semaphore>, cx: TenantContext| async move {
            let place = if admission { Some(meter.admit(&cx, Ask::default()).await.ok()?) } else { None };
            let connection = connections.acquire().await.ok()?;
            tokio::time::sleep(WORK).await;
            drop((connection, place));
            Some(())
        };
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..if hot { 400 } else { 0 } {
            let (meter, connections, cx) = (meter.clone(), Arc::clone(&connections), context(10_000));
            // One tenant for all: contexts of one name are of different tenants.
            let cx = HOT.get_or_init(|| cx).clone();
            clients.spawn(async move {
                loop {
                    if serve(meter.clone(), Arc::clone(&connections), cx.clone()).await.is_none() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        let quiet = (0..20).map(|n| {
            let (meter, connections, cx) = (meter.clone(), Arc::clone(&connections), context(20_000 + n));
            async move {
                let (mut took, mut denied) = (Vec::new(), 0);
                tokio::time::sleep(Duration::from_millis(5 * n as u64)).await;
                for _ in 0..60 {
                    let start = Instant::now();
                    match serve(meter.clone(), Arc::clone(&connections), cx.clone()).await {
                        Some(()) => took.push(start.elapsed()),
                        None => denied += 1,
                    }
                    tokio::time::sleep(Duration::from_millis(100).saturating_sub(start.elapsed())).await;
                }
                (took, denied)
            }
        });
        let done = futures_util::future::join_all(quiet).await;
        clients.shutdown().await;
        let mut took: Vec<Duration> = done.iter().flat_map(|(took, _)| took.iter().skip(2).copied()).collect();
        took.sort_unstable();
        let denied: u32 = done.iter().map(|(_, denied)| *denied).sum();
        worst.push((took[took.len() * 99 / 100].as_secs_f64() * 1000.0, denied));
        meter.shutdown().await?;
    }
    let [(alone, _), (beside, denied), (unprotected, _)] = worst[..] else { return Err("three cases".into()) };
    println!(
        "quiet tenants' p99: {alone:.1} ms alone, {beside:.1} ms beside a hot one ({:.2} times, aim 1.2; {denied} of 1200 denied), {unprotected:.1} ms without admission",
        beside / alone
    );
    Ok(())
}

static HOT: OnceLock<TenantContext> = OnceLock::new();

/// Of tenants that were met once and are idle.
async fn memory(db: &TenantDb) -> Result<(), Box<dyn std::error::Error>> {
    let resident = || -> Result<usize, Box<dyn std::error::Error>> {
        let pages: usize = std::fs::read_to_string("/proc/self/statm")?.split(' ').nth(1).ok_or("statm")?.parse()?;
        Ok(pages * 4096)
    };
    let meter = Meter::start(db, MeterOptions::default().with_capacity(1_000_000)).await?;
    let tenants: Vec<TenantContext> = (0..100_000).map(context).collect();
    let before = resident()?;
    // In ten turns: what the first give back when they are idle is there for the next.
    for turn in tenants.chunks(10_000) {
        for chunk in turn.chunks(1000) {
            futures_util::future::join_all(chunk.iter().map(|cx| meter.admit(cx, Ask::default()))).await;
        }
        tokio::time::sleep(Duration::from_secs(13)).await;
    }
    println!("100,000 idle tenants: {} bytes each, resident (aim 250)", (resident()? - before) / tenants.len());
    Ok(())
}
