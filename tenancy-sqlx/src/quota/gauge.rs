//! Levels, changed in the transaction that changes what they measure.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use tenancy_core::quota::{Metric, MetricKind};
use tenancy_core::{Error, ErrorKind, Result};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::TenantTx;

/// How much of something a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Level {
    /// In units of the metric.
    pub used: u64,
    /// Held for work under way.
    pub reserved: u64,
    /// The most that should be used; `None` is unlimited.
    pub limit: Option<u64>,
    /// The most that can be used.
    pub ceiling: Option<u64>,
}

/// Room that is kept for work under way, until it is [settled](TenantTx::settle) or expires.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "settle it, or the room is kept until it expires"]
pub struct Reservation {
    id: Uuid,
    amount: u64,
}

impl Reservation {
    /// How many units are kept.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

fn unsigned(row: &PgRow, column: &str) -> sqlx::Result<Option<u64>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(|units| u64::try_from(units).unwrap_or_default()))
}

fn level(row: &PgRow) -> sqlx::Result<Level> {
    let known = |units: Option<u64>| units.unwrap_or_default();
    Ok(Level {
        used: known(unsigned(row, "used")?),
        reserved: known(unsigned(row, "reserved")?),
        limit: unsigned(row, "limit")?,
        ceiling: unsigned(row, "ceiling")?,
    })
}

fn units(amount: u64) -> Result<i64> {
    i64::try_from(amount).map_err(|_| Error::invalid("amount", "must be at most 2^63-1"))
}

fn gauge(metric: Metric) -> Result<&'static str> {
    if metric.kind() != MetricKind::Gauge {
        return Err(Error::invalid("metric", format!("must be a gauge, and {metric} is not one")));
    }
    Ok(metric.name())
}

fn exceeded(metric: Metric, level: Level, asked: u64) -> Error {
    let Level { used, reserved, ceiling, .. } = level;
    let (unit, most) = (metric.unit(), ceiling.unwrap_or_default());
    let held = if reserved > 0 { format!(" and {reserved} held for work under way") } else { String::new() };
    Error::new(
        ErrorKind::QuotaExceeded,
        format!("the quota of {metric} allows {most} {unit}: {used} are used{held}, and {asked} more were asked for"),
    )
}

impl TenantTx {
    /// Adds `amount` to the tenant's level of `metric`, or refuses. Rolling back gives it back. Call it last before the commit: the level
    /// stays locked until then.
    ///
    /// # Errors
    /// - [`QuotaExceeded`](ErrorKind::QuotaExceeded): it would pass the ceiling; nothing was added, and the transaction can go on.
    /// - [`Invalid`](ErrorKind::Invalid): `metric` is no gauge.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn grow(&mut self, metric: Metric, amount: u64) -> Result<Level> {
        self.change(metric, amount, units(amount)?).await
    }

    /// Takes `amount` from the tenant's level of `metric`. It is never refused, so that a tenant above its limit can delete its way out.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid): `metric` is no gauge.
    ///
    /// # Cancel safety
    /// As [`grow`](TenantTx::grow).
    pub async fn shrink(&mut self, metric: Metric, amount: u64) -> Result<Level> {
        self.change(metric, amount, -units(amount)?).await
    }

    async fn change(&mut self, metric: Metric, amount: u64, delta: i64) -> Result<Level> {
        let query = sqlx::query("select * from tenancy.gauge_add($1, $2)").bind(gauge(metric)?).bind(delta);
        let row = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let level = level(&row).map_err(from_sqlx)?;
        if row.try_get("done").map_err(from_sqlx)? { Ok(level) } else { Err(exceeded(metric, level, amount)) }
    }

    /// Keeps room for `amount` for at most so long: for an upload, say, that is counted once it is there. Commit this transaction before
    /// the work begins, and [settle](TenantTx::settle) in another when it is done.
    ///
    /// # Errors
    /// As [`grow`](TenantTx::grow).
    ///
    /// # Cancel safety
    /// As [`grow`](TenantTx::grow).
    pub async fn reserve(&mut self, metric: Metric, amount: u64, lasts: Duration) -> Result<Reservation> {
        if amount == 0 {
            return Err(Error::invalid("amount", "must be at least 1"));
        }
        let microseconds = i64::try_from(lasts.as_micros()).unwrap_or(i64::MAX);
        let query = sqlx::query("select * from tenancy.gauge_reserve($1, $2, $3)").bind(gauge(metric)?).bind(units(amount)?);
        let row = query.bind(PgInterval { months: 0, days: 0, microseconds }).fetch_one(&mut *self).await.map_err(from_sqlx)?;
        match row.try_get::<Option<Uuid>, _>("id").map_err(from_sqlx)? {
            Some(id) => Ok(Reservation { id, amount }),
            None => Err(exceeded(metric, level(&row).map_err(from_sqlx)?, amount)),
        }
    }

    /// Ends a reservation: `actual` units of it are used, the rest is free again. With 0 the work has failed, and costs nothing.
    ///
    /// # Errors
    /// - [`Conflict`](ErrorKind::Conflict): it has expired, or was settled before.
    /// - [`Invalid`](ErrorKind::Invalid): `actual` is more than was reserved.
    ///
    /// # Cancel safety
    /// As [`grow`](TenantTx::grow).
    pub async fn settle(&mut self, reservation: &Reservation, actual: u64) -> Result<()> {
        if actual > reservation.amount {
            return Err(Error::invalid("actual", format!("must be at most the {} that were reserved", reservation.amount)));
        }
        let query = sqlx::query_scalar("select tenancy.gauge_settle($1, $2)").bind(reservation.id).bind(units(actual)?);
        let settled: bool = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        if settled { Ok(()) } else { Err(Error::new(ErrorKind::Conflict, "the reservation has expired: begin anew")) }
    }
}
