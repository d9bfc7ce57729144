//! What a node leases and reports: one statement for many tenants.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tenancy_core::quota::{Metric, Quota, Terms, Window};
use tenancy_core::{Result, TenantId};
use uuid::Uuid;

use super::run::TICK;
use super::{Inner, MeterOptions, Seat, locked, nanos};
use crate::error::from_sqlx;

/// Tenants in one statement.
const BATCH: usize = 200;
/// How long a used-up quota is believed to be so without asking again.
const RECHECK: u64 = 250_000_000;
/// A lease is at most this part of what is left.
const DIVISOR: u64 = 4;
const FIRST_LEASE: u64 = 32;
const MOST_LEASE: u64 = 1 << 20;
/// A slot without a request for so long gives its units back, and its book is closed.
const IDLE: u64 = 10_000_000_000;

/// What the database has told of a tenant, and what it was told.
#[derive(Debug)]
pub(super) struct Book {
    version: i64,
    pub(super) ceiling: Option<u64>,
    pub(super) window: Window,
    /// Seconds of the epoch.
    period_start: i64,
    /// Nanoseconds of the epoch.
    pub(super) period_end: u64,
    granted: u64,
    returned: u64,
    reported: u64,
    /// Units that the database still has.
    pub(super) rest: u64,
    last_want: u64,
    leased_at: u64,
    /// The terms are to be read again.
    pub(super) stale: bool,
    /// The totals are the lease's: the tenant may have been here before, and forgotten since.
    opened: bool,
}

/// One line of the statement that leases and reports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    tenant: TenantId,
    period_start: i64,
    want: u64,
    need: u64,
    used: u64,
    returned: u64,
}

impl Inner {
    fn time(&self, nanos: u64) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Leases for those that wait, and tells what they used.
    pub(super) async fn fetch(&self) -> Result<()> {
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
    pub(super) async fn report(&self, everything: bool) -> Result<()> {
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
}
