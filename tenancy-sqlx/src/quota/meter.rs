//! Leased counters: units are debited from the database ahead of time, spent from memory, and reported in batches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use dashmap::DashMap;
use foldhash::fast::RandomState;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tenancy_core::quota::{
    Admit, Admitted, Ask, Denial, Metric, MetricKind, Node, Place, Quota, Reason, Refusal, Slot, Standing, Terms, Window,
};
use tenancy_core::{Error, ErrorKind, Result, TenantContext, TenantId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;

/// How often a node reports, tells that it lives, and asks what changed.
const TICK: Duration = Duration::from_secs(1);
/// Tenants in one statement.
const BATCH: usize = 200;
/// How long a used-up quota is believed to be so without asking again.
const RECHECK: u64 = 250_000_000;
/// How long a request waits for units.
const PATIENCE: Duration = Duration::from_secs(5);
/// A lease is at most this part of what is left.
const DIVISOR: u64 = 4;
const FIRST_LEASE: u64 = 32;
const MOST_LEASE: u64 = 1 << 20;
/// A slot without a request for so long gives its units back, and its book is closed.
const IDLE: u64 = 10_000_000_000;

/// What is decided where the database can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenAway {
    /// 503: nothing is used that nobody counts.
    #[default]
    Deny,
    /// It is admitted, and not counted.
    Admit,
}

/// What becomes of the units that a dead node had leased and not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settlement {
    /// They are lost until the period ends: they may have been spent. Never over the ceiling.
    #[default]
    Forfeit,
    /// They can be leased again: what the node had spent of them and not reported, at most about a second's worth, is spent twice.
    Release,
}

/// How a [`Meter`] works.
#[derive(Debug, Clone)]
#[must_use]
pub struct MeterOptions {
    counter: Metric,
    rate: Metric,
    concurrency: Metric,
    capacity: u32,
    when_away: WhenAway,
    settlement: Settlement,
    silent: Duration,
    idle: Duration,
    keep: (Duration, Duration),
}

impl Default for MeterOptions {
    /// Meters [`Metric::API`], [`Metric::API_RATE`] and [`Metric::API_CONCURRENCY`].
    fn default() -> Self {
        Self::new(Metric::API, Metric::API_RATE, Metric::API_CONCURRENCY)
    }
}

impl MeterOptions {
    /// Meters these.
    pub fn new(counter: Metric, rate: Metric, concurrency: Metric) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            counter,
            rate,
            concurrency,
            capacity: 512,
            when_away: WhenAway::default(),
            settlement: Settlement::default(),
            silent: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            keep: (day * 90, day * 365 * 3),
        }
    }

    /// What this node does at once, over all tenants: 512 unless said. From half of it on, each tenant has its fair share.
    pub fn with_capacity(mut self, capacity: u32) -> Self {
        self.capacity = capacity.max(1);
        self
    }

    /// Whether counted requests pass while the database can't be asked. Rates and concurrency are decided without it, and are not
    /// enforced for tenants that this node has not met yet.
    pub fn with_quota_when_away(mut self, when_away: WhenAway) -> Self {
        self.when_away = when_away;
        self
    }

    /// What becomes of this node's units if it dies.
    pub fn with_crash_settlement(mut self, settlement: Settlement) -> Self {
        self.settlement = settlement;
        self
    }

    /// After so long without a word this node is given up, and stops to spend its units by itself: 30 s unless said, 3 s to a day.
    pub fn with_silence(mut self, silent: Duration) -> Self {
        self.silent = silent.clamp(Duration::from_secs(3), Duration::from_secs(86_400));
        self
    }

    /// A tenant without a request for so long is forgotten: 5 minutes unless said. Its units went back long before; its next request costs
    /// two round trips.
    pub fn with_idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// How long usage is kept by the minute (in whole months; 90 days unless said) and by the hour (3 years). Days are kept for ever.
    pub fn with_retention(mut self, minutes: Duration, hours: Duration) -> Self {
        self.keep = (minutes, hours);
        self
    }
}

/// What a meter has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MeterStats {
    /// Statements that leased or reported.
    pub round_trips: u64,
    /// Tenants that it remembers.
    pub tenants: usize,
    /// Requests in flight.
    pub in_flight: u32,
}

/// Admits the requests of tenants by their quotas; one for the process. Cheap to clone.
///
/// # Metrics
/// With the feature `metrics`, once a second through the `metrics` facade: `tenant.requests` (by `tenant`, `outcome`), `quota.usage` (the part of the
/// counter's ceiling that is spent or with other nodes, by `tenant`), `quota.denied` (by `reason`), `quota.round_trips`, `quota.in_flight`, `quota.tenants`. The
/// label `tenant` names the twenty busiest; the others are `other`.
///
/// # Guarantees
/// - Over all nodes, in a period, no more is admitted than the largest ceiling in force in it, whatever crashes.
/// - A denial has consumed nothing.
/// - A changed quota is followed within about a second; units leased under a larger one are given back then.
/// - [`shutdown`](Meter::shutdown) gives back every unit that was not spent.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: TenantDb,
    options: MeterOptions,
    here: Arc<Here>,
    id: Mutex<Uuid>,
    seats: DashMap<TenantId, Arc<Seat>, RandomState>,
    /// Tenants that need units, and how many at least.
    wanted: Mutex<HashMap<TenantId, u64>>,
    wake: Notify,
    /// Counts the answers of the database.
    answers: watch::Sender<u64>,
    /// What is still to be told of periods that are over and tenants that are forgotten.
    last_words: Mutex<Vec<Line>>,
    /// After this the node has been silent for too long to spend what it leased.
    valid_until: AtomicU64,
    /// Where the next question "what changed since?" starts; 0: never asked.
    horizon: AtomicU64,
    round_trips: AtomicU64,
    failing: AtomicBool,
    #[cfg(feature = "metrics")]
    busiest: Mutex<super::labels::Busiest>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// One tenant on this node.
#[derive(Debug)]
struct Seat {
    slot: Slot,
    here: Arc<Here>,
    /// When the last request came.
    seen: AtomicU64,
    queued: AtomicBool,
    book: Mutex<Option<Box<Book>>>,
    #[cfg(feature = "metrics")]
    told: Told,
}

/// What was not told to the metrics yet.
#[cfg(feature = "metrics")]
#[derive(Debug, Default)]
struct Told {
    admitted: std::sync::atomic::AtomicU32,
    denied: std::sync::atomic::AtomicU32,
}

impl Place for Seat {
    fn release(&self) {
        self.slot.release(&self.here.node);
    }

    fn standing(&self) -> Option<Standing> {
        // Held for a few instructions at most, never over a wait.
        let book = locked(&self.book);
        let book = book.as_ref()?;
        let ceiling = book.ceiling?;
        let remaining = self.slot.left().saturating_add(book.rest);
        let reset = (book.period_end < u64::MAX).then(|| book.period_end.saturating_sub(self.here.now()).div_ceil(1_000_000_000));
        Some(Standing::new(self.here.counter, ceiling, book.window.seconds(), remaining, reset))
    }
}

/// What all seats of this node share.
#[derive(Debug)]
struct Here {
    node: Node,
    counter: &'static str,
    started: quanta::Instant,
    /// The database's clock when this node started, in nanoseconds of the epoch. It is carried on by a clock that never jumps, and that is
    /// read in a few nanoseconds where the processor allows.
    epoch: AtomicU64,
}

impl Here {
    fn now(&self) -> u64 {
        self.epoch.load(Relaxed).saturating_add(nanos(self.started.elapsed()))
    }
}

/// What the database has told of a tenant, and what it was told.
#[derive(Debug)]
struct Book {
    version: i64,
    ceiling: Option<u64>,
    window: Window,
    /// Seconds of the epoch.
    period_start: i64,
    /// Nanoseconds of the epoch.
    period_end: u64,
    granted: u64,
    returned: u64,
    reported: u64,
    /// Units that the database still has.
    rest: u64,
    last_want: u64,
    leased_at: u64,
    /// The terms are to be read again.
    stale: bool,
    /// The totals are the lease's: the tenant may have been here before, and forgotten since.
    opened: bool,
}

/// One line of the statement that leases and reports.
#[derive(Debug, Clone, Copy)]
struct Line {
    tenant: TenantId,
    period_start: i64,
    want: u64,
    need: u64,
    used: u64,
    returned: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Meter {
    /// Registers this node and starts to meter.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable); [`Invalid`](ErrorKind::Invalid) if a metric is of the wrong kind.
    ///
    /// # Cancel safety
    /// Safe; a node that nobody uses may stay registered until it is given up.
    pub async fn start(db: &TenantDb, options: MeterOptions) -> Result<Self> {
        let kinds =
            [(options.counter, MetricKind::Counter), (options.rate, MetricKind::Rate), (options.concurrency, MetricKind::Concurrency)];
        for (metric, kind) in kinds {
            if metric.kind() != kind {
                return Err(Error::invalid("metric", format!("{metric} must be a {}", kind.as_str())));
            }
        }
        let inner = Arc::new(Inner {
            db: db.clone(),
            here: Arc::new(Here {
                node: Node::new(options.capacity),
                counter: options.counter.name(),
                started: quanta::Instant::now(),
                epoch: AtomicU64::new(0),
            }),
            options,
            id: Mutex::new(Uuid::nil()),
            seats: DashMap::default(),
            wanted: Mutex::default(),
            wake: Notify::new(),
            answers: watch::Sender::new(0),
            last_words: Mutex::default(),
            valid_until: AtomicU64::new(0),
            horizon: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            #[cfg(feature = "metrics")]
            busiest: Mutex::default(),
            task: Mutex::default(),
        });
        inner.register().await?;
        let task = tokio::spawn(run(Arc::downgrade(&inner)));
        *locked(&inner.task) = Some(task);
        Ok(Self(inner))
    }

    /// Reads a tenant's quotas again now, rather than within a second: after they were changed through this process.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn refresh(&self, tenant: TenantId) -> Result<()> {
        let Some(seat) = self.0.seats.get(&tenant).map(|seat| Arc::clone(&seat)) else { return Ok(()) };
        if let Some(book) = locked(&seat.book).as_mut() {
            book.stale = true;
        }
        seat.slot.set_exhausted(0);
        self.0.ask_for(tenant, &seat, 0);
        self.0.answered().await
    }

    /// Reports what was used, now rather than within a second.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: what was not told is told later.
    pub async fn flush(&self) -> Result<()> {
        self.0.report(false).await
    }

    /// What it has done.
    pub fn stats(&self) -> MeterStats {
        MeterStats { round_trips: self.0.round_trips.load(Relaxed), tenants: self.0.seats.len(), in_flight: self.0.here.node.in_flight() }
    }

    /// Reports what was used, gives back what was not, and ends this node's run. Requests are denied from here on.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable): the node is given up later, with its units lost or released as the options say.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn shutdown(&self) -> Result<()> {
        if let Some(task) = locked(&self.0.task).take() {
            task.abort();
        }
        self.0.valid_until.store(0, Relaxed);
        self.0.report(true).await?;
        let id = *locked(&self.0.id);
        self.0.ask(format!("select tenancy.quota_node_end('{id}')")).await.map(drop)
    }
}

#[async_trait]
impl Admit for Meter {
    fn try_admit(&self, cx: &TenantContext, ask: Ask) -> Option<Result<Admitted, Denial>> {
        let seat = self.0.seats.get(&cx.tenant_id()).map(|seat| Arc::clone(&seat))?;
        self.0.decide(cx.tenant_id(), seat, ask)
    }

    async fn admit(&self, cx: &TenantContext, ask: Ask) -> Result<Admitted, Denial> {
        let tenant = cx.tenant_id();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut answers = self.0.answers.subscribe();
        loop {
            let seat = self.0.seat(tenant);
            if let Some(decision) = self.0.decide(tenant, Arc::clone(&seat), ask) {
                return decision;
            }
            answers.mark_unchanged();
            self.0.ask_for(tenant, &seat, ask.cost);
            let answered = tokio::time::timeout_at(deadline, answers.changed()).await;
            if !matches!(answered, Ok(Ok(()))) || self.0.failing.load(Relaxed) {
                return self.0.away(&seat, ask);
            }
        }
    }
}

impl Inner {
    /// Nanoseconds of the epoch by the database's clock, which never jump with this machine's.
    fn now(&self) -> u64 {
        self.here.now()
    }

    fn time(&self, nanos: u64) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    fn seat(&self, tenant: TenantId) -> Arc<Seat> {
        let seat = self.seats.entry(tenant).or_insert_with(|| {
            Arc::new(Seat {
                slot: Slot::new(),
                here: Arc::clone(&self.here),
                seen: AtomicU64::new(self.now()),
                queued: AtomicBool::new(false),
                book: Mutex::new(None),
                #[cfg(feature = "metrics")]
                told: Told::default(),
            })
        });
        Arc::clone(&seat)
    }

    /// `None`: the database must be asked.
    fn decide(&self, tenant: TenantId, seat: Arc<Seat>, ask: Ask) -> Option<Result<Admitted, Denial>> {
        let now = self.now();
        let valid = now < self.valid_until.load(Relaxed);
        let admitted = if valid { seat.slot.admit(&self.here.node, ask.priority, ask.cost, now) } else { Err(Refusal::Short) };
        match admitted {
            Ok(low) => {
                seat.seen.store(now, Relaxed);
                if low {
                    self.ask_for(tenant, &seat, 0);
                }
                #[cfg(feature = "metrics")]
                seat.told.admitted.fetch_add(1, Relaxed);
                Some(Ok(Admitted::new(seat)))
            }
            Err(Refusal::Short) => None,
            Err(refusal) => {
                let denial = self.denial(&seat, refusal, now);
                #[cfg(feature = "metrics")]
                {
                    seat.told.denied.fetch_add(1, Relaxed);
                    metrics::counter!("quota.denied", "reason" => denial.reason.code()).increment(1);
                }
                Some(Err(denial))
            }
        }
    }

    fn denial(&self, seat: &Seat, refusal: Refusal, now: u64) -> Denial {
        let soon = Some(Duration::from_secs(1));
        match refusal {
            Refusal::Concurrency => Denial::new(Reason::Concurrency, self.options.concurrency.name()).with_retry_after(soon),
            Refusal::Rate(wait) => {
                let (left, burst) = seat.slot.rate_left(now).unwrap_or_default();
                let denial = Denial::new(Reason::Rate, self.options.rate.name()).with_limit(Some(burst), None).with_remaining(left);
                denial.with_retry_after(wait.map(Duration::from_nanos))
            }
            Refusal::Exhausted => {
                let denial = Denial::new(Reason::Exhausted, self.options.counter.name()).with_remaining(seat.slot.left());
                let book = locked(&seat.book);
                let Some(book) = book.as_ref() else { return denial };
                let wait = (book.period_end < u64::MAX).then(|| Duration::from_nanos(book.period_end.saturating_sub(now)));
                denial.with_limit(book.ceiling, book.window.seconds()).with_retry_after(wait)
            }
            // Full, or something that a later version of the core refuses by.
            _ => Denial::new(Reason::Shed, "node.capacity").with_retry_after(soon),
        }
    }

    /// Where the database can't be asked.
    fn away(&self, seat: &Arc<Seat>, ask: Ask) -> Result<Admitted, Denial> {
        if self.options.when_away == WhenAway::Deny {
            return Err(Denial::new(Reason::StoreAway, self.options.counter.name()).with_retry_after(Some(Duration::from_secs(1))));
        }
        // Rate, concurrency and capacity hold all the same: they cost no unit.
        let now = self.now();
        seat.slot.admit_unmetered(&self.here.node, ask.priority, ask.cost, now).map_err(|refusal| self.denial(seat, refusal, now))?;
        Ok(Admitted::new(Arc::clone(seat) as Arc<dyn Place>))
    }

    fn ask_for(&self, tenant: TenantId, seat: &Seat, need: u64) {
        if need == 0 && seat.queued.swap(true, Relaxed) {
            return;
        }
        seat.queued.store(true, Relaxed);
        let mut wanted = locked(&self.wanted);
        let most = wanted.entry(tenant).or_default();
        *most = need.max(*most);
        drop(wanted);
        self.wake.notify_one();
    }

    /// Waits for the next answer of the database.
    async fn answered(&self) -> Result<()> {
        let mut answers = self.answers.subscribe();
        answers.mark_unchanged();
        let answered = tokio::time::timeout(PATIENCE, answers.changed()).await;
        if matches!(answered, Ok(Ok(()))) && !self.failing.load(Relaxed) { Ok(()) } else { Err(away()) }
    }

    async fn ask(&self, sql: String) -> Result<Vec<PgRow>> {
        self.db.inner().catalog.ask(sql).await
    }

    /// Begins a run: nothing is leased.
    async fn register(&self) -> Result<()> {
        let before = self.here.started.elapsed();
        let (silent, release) = (self.options.silent.as_secs_f64(), self.options.settlement == Settlement::Release);
        let start = format!(
            "select tenancy.quota_node_start(make_interval(secs => {silent}), {release}), (extract(epoch from clock_timestamp()) * 1e9)::bigint"
        );
        let rows = self.ask(start).await?;
        let row = rows.first().ok_or_else(away)?;
        let id: Uuid = row.try_get(0).map_err(from_sqlx)?;
        let epoch: i64 = row.try_get(1).map_err(from_sqlx)?;
        *locked(&self.id) = id;
        self.set_clock(u64::try_from(epoch).unwrap_or_default(), before);
        self.valid_until.store(self.now() + self.patience(), Relaxed);
        Ok(())
    }

    /// Sets the clock by the database's, as it was asked for `asked` after the start. Clocks drift apart by seconds a week: small
    /// differences are left alone, since they are mostly the way there.
    fn set_clock(&self, clock: u64, asked: Duration) {
        let epoch = clock.saturating_sub(nanos(asked));
        if self.here.epoch.load(Relaxed).abs_diff(epoch) > 500_000_000 {
            self.here.epoch.store(epoch, Relaxed);
        }
    }

    /// For how long after its last word a node may spend: well before the others give it up.
    fn patience(&self) -> u64 {
        nanos(self.options.silent) * 2 / 3
    }

    /// The run was given up by the others: what it had leased is settled, so nothing of it may be spent any more.
    async fn start_anew(&self) -> Result<()> {
        self.valid_until.store(0, Relaxed);
        locked(&self.last_words).clear();
        for seat in &self.seats {
            seat.slot.take_back(u64::MAX);
            *locked(&seat.book) = None;
        }
        self.register().await
    }

    /// Leases for those that wait, and tells what they used.
    async fn fetch(&self) -> Result<()> {
        loop {
            let batch: Vec<(TenantId, u64)> = {
                let mut wanted = locked(&self.wanted);
                let tenants: Vec<TenantId> = wanted.keys().take(BATCH).copied().collect();
                tenants.into_iter().filter_map(|tenant| wanted.remove(&tenant).map(|need| (tenant, need))).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            let seats: Vec<(TenantId, u64, Arc<Seat>)> =
                batch.into_iter().map(|(tenant, need)| (tenant, need, self.seat(tenant))).collect();
            seats.iter().for_each(|(_, _, seat)| seat.queued.store(false, Relaxed));
            self.read_terms(&seats).await?;
            let lines = seats.iter().filter_map(|(tenant, need, seat)| self.line(*tenant, seat, Some(*need))).collect();
            self.exchange(lines).await?;
        }
    }

    /// Reads the quotas of those that were not met before, or whose quotas have changed.
    async fn read_terms(&self, seats: &[(TenantId, u64, Arc<Seat>)]) -> Result<()> {
        let unknown = |seat: &Seat| locked(&seat.book).as_ref().is_none_or(|book| book.stale);
        let unknown: Vec<_> = seats.iter().filter(|(_, _, seat)| unknown(seat)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = unknown.iter().map(|(tenant, ..)| tenant.to_string()).collect();
        let rows = self.ask(format!("select * from tenancy.quota_terms('{{{}}}')", ids.join(","))).await?;
        let mut quotas: HashMap<TenantId, Vec<(i64, Quota)>> = HashMap::new();
        for row in &rows {
            let tenant = TenantId::try_from(row.try_get::<Uuid, _>("tenant_id").map_err(from_sqlx)?)?;
            if let Some(quota) = self.quota(row)? {
                quotas.entry(tenant).or_default().push(quota);
            }
        }
        for (tenant, _, seat) in unknown {
            self.set_terms(seat, quotas.get(tenant).map_or(&[][..], Vec::as_slice));
        }
        Ok(())
    }

    /// One of the three that are metered here.
    fn quota(&self, row: &PgRow) -> Result<Option<(i64, Quota)>> {
        let MeterOptions { counter, rate, concurrency, .. } = self.options;
        let name: &str = row.try_get("metric").map_err(from_sqlx)?;
        let Some(metric) = [counter, rate, concurrency].into_iter().find(|metric| metric.name() == name) else { return Ok(None) };
        let number = |column: &str| row.try_get::<Option<i64>, _>(column).map(|units| units.and_then(|units| u64::try_from(units).ok()));
        let mut quota = Quota::unlimited(metric).with_policy(row.try_get::<&str, _>("policy").map_err(from_sqlx)?.parse()?);
        quota.limit = number("limit").map_err(from_sqlx)?;
        quota.burst = number("burst").map_err(from_sqlx)?;
        quota.window = row.try_get::<&str, _>("window").map_err(from_sqlx)?.parse()?;
        Ok(Some((row.try_get("version").map_err(from_sqlx)?, quota)))
    }

    fn set_terms(&self, seat: &Seat, quotas: &[(i64, Quota)]) {
        let of = |metric: Metric| quotas.iter().find(|(_, quota)| quota.metric == metric);
        let mut terms = Terms::default();
        terms.rate = of(self.options.rate).and_then(|(_, quota)| Quota::rate(quota));
        let at_once = of(self.options.concurrency).and_then(|(_, quota)| quota.ceiling());
        terms.concurrency = at_once.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
        seat.slot.set_terms(terms);
        let unlimited = (0, Quota::unlimited(self.options.counter).per(Window::MONTH));
        let (version, quota) = of(self.options.counter).unwrap_or(&unlimited);
        let now = self.now();
        let mut book = locked(&seat.book);
        match book.as_mut() {
            Some(book) if book.window == quota.window => {
                // Units of a larger quota go back at once, so that the smaller one holds.
                let smaller = quota.ceiling().unwrap_or(u64::MAX) < book.ceiling.unwrap_or(u64::MAX);
                if smaller {
                    book.returned += seat.slot.take_back(u64::MAX);
                }
                (book.version, book.ceiling, book.stale) = (*version, quota.ceiling(), false);
            }
            _ => {
                let period = quota.window.period(self.time(now));
                *book = Some(Box::new(Book {
                    version: *version,
                    ceiling: quota.ceiling(),
                    window: quota.window.clone(),
                    period_start: period.start.timestamp(),
                    period_end: period.end.and_then(|end| u64::try_from(end.timestamp_nanos_opt()?).ok()).unwrap_or(u64::MAX),
                    granted: 0,
                    returned: 0,
                    reported: 0,
                    rest: 0,
                    last_want: 0,
                    leased_at: 0,
                    stale: false,
                    opened: false,
                }));
            }
        }
        seat.slot.set_exhausted(0);
    }

    /// What to say of a tenant. Without `need`, nothing is asked for.
    fn line(&self, tenant: TenantId, seat: &Seat, need: Option<u64>) -> Option<Line> {
        let now = self.now();
        let mut guard = locked(&seat.book);
        let book = guard.as_mut()?;
        if now >= book.period_end {
            // The period is over: what is left of it goes back, and the next one begins.
            book.returned += seat.slot.take_back(u64::MAX);
            let used = book.granted - book.returned;
            locked(&self.last_words).push(Line {
                tenant,
                period_start: book.period_start,
                want: 0,
                need: 0,
                used,
                returned: book.returned,
            });
            let period = book.window.period(self.time(now));
            book.period_start = period.start.timestamp();
            book.period_end = period.end.and_then(|end| u64::try_from(end.timestamp_nanos_opt()?).ok()).unwrap_or(u64::MAX);
            (book.granted, book.returned, book.reported, book.rest, book.opened) = (0, 0, 0, 0, false);
        }
        let used = book.granted - book.returned - seat.slot.left();
        let want = need.map_or(0, |need| {
            let hurried = now.saturating_sub(book.leased_at) < nanos(TICK);
            let want = if hurried { book.last_want * 2 } else { book.last_want / 2 };
            book.last_want = want.clamp(FIRST_LEASE, MOST_LEASE).max(need);
            book.leased_at = now;
            book.last_want
        });
        Some(Line { tenant, period_start: book.period_start, want, need: need.unwrap_or_default().max(1), used, returned: book.returned })
    }

    /// Tells and asks in one statement, and hands out what was granted.
    async fn exchange(&self, mut lines: Vec<Line>) -> Result<()> {
        let told: Vec<Line> = std::mem::take(&mut *locked(&self.last_words));
        let outcome = self.send(&told, &lines).await;
        if outcome.is_err() {
            locked(&self.last_words).extend(told);
        }
        let rows = outcome?;
        lines.sort_by_key(|line| line.tenant);
        let now = self.now();
        for row in rows {
            let tenant = TenantId::try_from(row.try_get::<Uuid, _>("tenant_id").map_err(from_sqlx)?)?;
            let number = |column: &str| Ok(u64::try_from(row.try_get::<i64, _>(column).map_err(from_sqlx)?).unwrap_or_default());
            let Ok(at) = lines.binary_search_by_key(&tenant, |line| line.tenant) else { continue };
            let (line, start): (_, i64) = (lines[at], row.try_get("start").map_err(from_sqlx)?);
            let Some(seat) = self.seats.get(&tenant).map(|seat| Arc::clone(&seat)) else { continue };
            let mut guard = locked(&seat.book);
            let Some(book) = guard.as_mut().filter(|book| book.period_start == start && line.period_start == start) else { continue };
            let granted = number("granted")?;
            let more = if book.opened {
                granted.saturating_sub(book.granted)
            } else {
                (book.returned, book.reported, book.opened) = (number("returned")?, number("used")?, true);
                granted.saturating_sub(book.returned + book.reported)
            };
            book.granted = granted.max(book.granted);
            book.reported = line.used.max(book.reported);
            book.rest = number("rest")?;
            seat.slot.add(more, more / 4, book.period_end);
            if line.want > 0 && more == 0 {
                seat.slot.set_exhausted(now + RECHECK);
            }
            let version: i64 = row.try_get("version").map_err(from_sqlx)?;
            book.stale |= version != book.version;
        }
        Ok(())
    }

    async fn send(&self, told: &[Line], asked: &[Line]) -> Result<Vec<PgRow>> {
        let id = *locked(&self.id);
        let lines = || told.iter().chain(asked);
        let list = |of: &dyn Fn(&Line) -> String| lines().map(of).collect::<Vec<_>>().join(",");
        let sql = format!(
            "select tenant_id, extract(epoch from period_start)::bigint as start, granted, returned, used, rest, version from tenancy.quota_lease('{id}', array[{}]::uuid[], array[{}]::text[],
                array[{}]::timestamptz[], array[{}]::bigint[], array[{}]::bigint[], array[{}]::bigint[], array[{}]::bigint[], {DIVISOR})",
            list(&|line| format!("'{}'", line.tenant)),
            list(&|_| format!("'{}'", self.options.counter)),
            list(&|line| format!("to_timestamp({})", line.period_start)),
            list(&|line| line.want.to_string()),
            list(&|line| line.need.to_string()),
            list(&|line| line.used.to_string()),
            list(&|line| line.returned.to_string()),
        );
        self.round_trips.fetch_add(1, Relaxed);
        let rows = self.ask(sql).await?;
        self.valid_until.store(self.now() + self.patience(), Relaxed);
        Ok(rows)
    }

    /// Tells what was used by everybody; and gives back what idle slots hold, or all do.
    async fn report(&self, everything: bool) -> Result<()> {
        let now = self.now();
        let mut lines = Vec::new();
        let mut gone = Vec::new();
        for entry in &self.seats {
            let (tenant, seat) = (*entry.key(), entry.value());
            let idle = now.saturating_sub(seat.seen.load(Relaxed));
            let forgotten = idle > nanos(self.options.idle) && seat.slot.in_flight() == 0;
            let quiet = {
                let mut guard = locked(&seat.book);
                let Some(book) = guard.as_mut() else {
                    gone.extend(forgotten.then_some(tenant));
                    continue;
                };
                let before = book.returned;
                // The last units don't stay where nobody asks for them.
                if everything || forgotten || idle > IDLE || (book.rest == 0 && idle > 1_000_000_000) {
                    book.returned += seat.slot.take_back(u64::MAX);
                }
                let used = book.granted - book.returned - seat.slot.left();
                let quiet = used == book.reported && book.returned == before && now < book.period_end;
                // All was told: what the lease's totals are is known to the database.
                if quiet && (idle > IDLE || forgotten) && seat.slot.left() == 0 && !seat.queued.load(Relaxed) {
                    *guard = None;
                }
                quiet
            };
            if !quiet {
                lines.extend(self.line(tenant, seat, None));
            }
        }
        let mut batches = lines.chunks(BATCH);
        // Also without lines, the statement tells that the node lives.
        self.exchange(batches.next().unwrap_or_default().to_vec()).await?;
        for batch in batches {
            self.exchange(batch.to_vec()).await?;
        }
        for tenant in gone {
            self.seats.remove_if(&tenant, |_, seat| seat.slot.in_flight() == 0 && seat.slot.left() == 0 && Arc::strong_count(seat) == 1);
        }
        Ok(())
    }

    /// Marks the tenants whose quotas changed, to be read again.
    async fn follow(&self) -> Result<()> {
        let since = self.horizon.load(Relaxed);
        let asked = self.here.started.elapsed();
        let changes = format!(
            "select horizon::text::bigint, tenant_id, (extract(epoch from clock_timestamp()) * 1e9)::bigint from tenancy.quota_changes('{}')",
            since.max(3)
        );
        let rows = self.ask(changes).await?;
        if let Some(row) = rows.first() {
            let clock: i64 = row.try_get(2).map_err(from_sqlx)?;
            self.set_clock(u64::try_from(clock).unwrap_or_default(), asked);
        }
        for row in &rows {
            let horizon: i64 = row.try_get(0).map_err(from_sqlx)?;
            self.horizon.store(u64::try_from(horizon).unwrap_or_default(), Relaxed);
            let Some(tenant) = row.try_get::<Option<Uuid>, _>(1).map_err(from_sqlx)? else { continue };
            let tenant = TenantId::try_from(tenant)?;
            // At the first question every quota is new.
            let Some(seat) = self.seats.get(&tenant).filter(|_| since > 0).map(|seat| Arc::clone(&seat)) else { continue };
            if let Some(book) = locked(&seat.book).as_mut() {
                book.stale = true;
            }
            self.ask_for(tenant, &seat, 0);
        }
        Ok(())
    }

    async fn maintain(&self) -> Result<()> {
        self.ask("select tenancy.quota_reap(), tenancy.gauge_expire()".to_owned()).await.map(drop)
    }

    async fn roll_up(&self) -> Result<()> {
        let (minutes, hours) = self.options.keep;
        let keep = |kept: Duration| format!("make_interval(secs => {})", kept.as_secs());
        self.ask(format!("select tenancy.usage_maintain({}, {})", keep(minutes), keep(hours))).await.map(drop)
    }

    /// Tells the metrics what was done since the last time.
    #[cfg(feature = "metrics")]
    fn tell(&self) {
        use super::labels::OTHERS;

        let take = |count: &std::sync::atomic::AtomicU32| u64::from(count.swap(0, Relaxed));
        let mut done = Vec::new();
        for entry in &self.seats {
            let told = &entry.value().told;
            let (admitted, denied) = (take(&told.admitted), take(&told.denied));
            if admitted + denied > 0 {
                done.push((*entry.key(), admitted, denied));
            }
        }
        let named = locked(&self.busiest).note(done.iter().map(|(tenant, admitted, denied)| (*tenant, admitted + denied)));
        for (tenant, admitted, denied) in done {
            let label = if named.contains(&tenant) { tenant.to_string() } else { OTHERS.to_owned() };
            metrics::counter!("tenant.requests", "tenant" => label.clone(), "outcome" => "admitted").increment(admitted);
            metrics::counter!("tenant.requests", "tenant" => label, "outcome" => "denied").increment(denied);
        }
        for tenant in named {
            let Some(seat) = self.seats.get(&tenant).map(|seat| Arc::clone(&seat)) else { continue };
            let book = locked(&seat.book);
            let Some((book, ceiling)) = book.as_ref().and_then(|book| Some((book, book.ceiling.filter(|most| *most > 0)?))) else {
                continue;
            };
            #[expect(clippy::cast_precision_loss, reason = "a part of a whole, for a chart")]
            let used = 1.0 - (book.rest + seat.slot.left()).min(ceiling) as f64 / ceiling as f64;
            metrics::gauge!("quota.usage", "tenant" => tenant.to_string(), "metric" => self.options.counter.name()).set(used);
        }
        metrics::counter!("quota.round_trips").absolute(self.round_trips.load(Relaxed));
        metrics::gauge!("quota.in_flight").set(self.here.node.in_flight());
        metrics::gauge!("quota.tenants").set(u32::try_from(self.seats.len()).unwrap_or(u32::MAX));
    }

    /// What is done every second.
    async fn tick(&self, number: u64) -> Result<()> {
        #[cfg(feature = "metrics")]
        self.tell();
        self.report(false).await?;
        self.follow().await?;
        if number.is_multiple_of(5) {
            self.maintain().await?;
        }
        if number.is_multiple_of(300) {
            self.roll_up().await?;
        }
        self.fetch().await
    }

    /// Logs the first failure of a row of them, and its end; and tells those who wait.
    async fn settle(&self, outcome: Result<()>) {
        if let Err(error) = &outcome
            && was_given_up(error)
            && self.start_anew().await.is_ok()
        {
            tracing::warn!("this node was silent for too long: its leased units are settled, and it begins anew");
            self.answers.send_modify(|count| *count += 1);
            return;
        }
        let failing = outcome.is_err();
        if self.failing.swap(failing, Relaxed) != failing {
            match outcome {
                Err(error) => {
                    tracing::error!(?error, "quotas can't be leased: leased units are spent, then requests are answered as configured");
                }
                Ok(()) => tracing::info!("quotas are leased again"),
            }
        }
        self.answers.send_modify(|count| *count += 1);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Serves those who wait as they come, and everybody once a second, until the meter is gone.
async fn run(meter: Weak<Inner>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        let Some(inner) = meter.upgrade() else { return };
        let woken = tokio::select! {
            _ = ticks.tick() => false,
            () = inner.wake.notified() => true,
        };
        let outcome = if woken { inner.fetch().await } else { inner.tick(number).await };
        number += u64::from(!woken);
        inner.settle(outcome).await;
    }
}

/// Whether the others took this node for dead.
fn was_given_up(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<sqlx::Error>());
    source.and_then(sqlx::Error::as_database_error).is_some_and(|db| db.code().as_deref() == Some("TN001"))
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "the quotas can't be asked now")
}
