//! Leased counters: units are debited from the database ahead of time, spent from memory, and reported in batches.

mod lease;
mod options;
mod run;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use sqlx::postgres::PgRow;
use tenancy_core::quota::{Admit, Admitted, Ask, Denial, MetricKind, Node, Place, Reason, Refusal, Slot, Standing};
use tenancy_core::{Error, ErrorKind, Result, TenantContext, TenantId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::lease::{Book, Line};
pub use self::options::{MeterOptions, MeterStats, Settlement, WhenAway};
use crate::db::TenantDb;

/// How long a request waits for units.
const PATIENCE: Duration = Duration::from_secs(5);

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
    busiest: Mutex<crate::quota::labels::Busiest>,
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
        let task = tokio::spawn(run::run(Arc::downgrade(&inner)));
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
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "the quotas can't be asked now")
}
