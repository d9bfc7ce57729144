//! A node's run: what it does once a second, until it ends or is given up.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::Row as _;
use tenancy_core::{Error, Result, TenantId};
use uuid::Uuid;

use super::options::Settlement;
use super::{Inner, away, locked, nanos};
use crate::error::from_sqlx;

/// How often a node reports, tells that it lives, and asks what changed.
pub(super) const TICK: Duration = Duration::from_secs(1);

impl Inner {
    /// Begins a run: nothing is leased.
    pub(super) async fn register(&self) -> Result<()> {
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
    pub(super) fn patience(&self) -> u64 {
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
        use crate::quota::labels::OTHERS;

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

/// Serves those who wait as they come, and everybody once a second, until the meter is gone.
pub(super) async fn run(meter: Weak<Inner>) {
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
