//! Backs tenants up by themselves, holds drills, and lets go what is kept no longer.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use tenancy_core::backup::{Keep, Reason, Schedule};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId, TenantStatus};
use uuid::Uuid;

use super::Backups;
use crate::dangerous::begin_admin;
use crate::error::from_sqlx;
use crate::operations::Operation;
use crate::settle::BYSTANDER;
use crate::tx::SystemTx;

/// The schedule of a tenant, and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Standing {
    /// Its own, or that of all who have none.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Whether it is its own.
    pub own: bool,
    /// When its newest backup was taken.
    pub backed_up_at: Option<DateTime<Utc>>,
    /// When the last backup that was begun failed or was called off, if no later one ended well.
    pub backup_failed_at: Option<DateTime<Utc>>,
    /// When the last drill ended well.
    pub drilled_at: Option<DateTime<Utc>>,
    /// When the last drill failed or was called off, if no later one ended well.
    pub drill_failed_at: Option<DateTime<Utc>>,
}

impl Standing {
    fn is_due(&self, kind: &str, now: DateTime<Utc>) -> bool {
        match kind {
            Backups::TAKE => self.schedule.is_backup_due(self.backed_up_at, self.backup_failed_at, now),
            _ => self.backed_up_at.is_some() && self.schedule.is_drill_due(self.drilled_at, self.drill_failed_at, now),
        }
    }
}

#[derive(Debug, FromRow)]
struct Row {
    every_hours: Option<i16>,
    drill_days: Option<i16>,
    keep_last: i16,
    keep_daily: i16,
    keep_weekly: i16,
    keep_monthly: i16,
}

impl From<Row> for Schedule {
    fn from(row: Row) -> Self {
        let number = i16::cast_unsigned; // the table lets none below zero in
        let mut schedule = Self::NONE;
        (schedule.every_hours, schedule.drill_days) = (row.every_hours.map(number), row.drill_days.map(number));
        schedule.keep = Keep::new(number(row.keep_last), number(row.keep_daily), number(row.keep_weekly), number(row.keep_monthly));
        schedule
    }
}

impl SystemTx {
    /// The tenant's own schedule, if it has one.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn backup_schedule(&mut self, tenant: TenantId) -> Result<Option<Schedule>> {
        let query = sqlx::query_as::<_, Row>(
            "select every_hours, drill_days, keep_last, keep_daily, keep_weekly, keep_monthly from tenancy.backup_schedules where tenant_id = $1",
        );
        Ok(query.bind(tenant.as_uuid()).fetch_optional(self).await.map_err(from_sqlx)?.map(Schedule::from))
    }

    /// Gives a tenant a schedule of its own, or with `None` that of all who have none.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid), with the field.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn set_backup_schedule(&mut self, tenant: TenantId, schedule: Option<&Schedule>) -> Result<()> {
        if self.lock_tenant(tenant).await?.status == TenantStatus::Erased {
            return Err(Error::not_found());
        }
        let by = self.actor().clone();
        let done = match schedule {
            None => {
                let query = sqlx::query("delete from tenancy.backup_schedules where tenant_id = $1");
                query.bind(tenant.as_uuid()).execute(&mut *self).await
            }
            Some(schedule) => {
                schedule.check()?;
                let number = |n: u16| i16::try_from(n).unwrap_or(i16::MAX); // checked: they are all small
                let query = sqlx::query(
                    "insert into tenancy.backup_schedules (tenant_id, every_hours, drill_days, keep_last, keep_daily, keep_weekly, keep_monthly, set_by)
                     values ($1, $2, $3, $4, $5, $6, $7, $8)
                     on conflict (tenant_id) do update set every_hours = excluded.every_hours, drill_days = excluded.drill_days, keep_last = excluded.keep_last,
                       keep_daily = excluded.keep_daily, keep_weekly = excluded.keep_weekly, keep_monthly = excluded.keep_monthly,
                       set_by = excluded.set_by, set_at = clock_timestamp()",
                );
                let query = query.bind(tenant.as_uuid()).bind(schedule.every_hours.map(number)).bind(schedule.drill_days.map(number));
                let keep = schedule.keep;
                let query = query.bind(number(keep.last)).bind(number(keep.daily)).bind(number(keep.weekly)).bind(number(keep.monthly));
                query.bind(by.to_string()).execute(&mut *self).await
            }
        };
        done.map_err(from_sqlx)?;
        let event = AuditEvent::new(by, "backup.schedule", tenant.to_string()).with_tenant(tenant);
        self.audit(&event.with_detail(serde_json::json!({ "schedule": schedule }))).await
    }

    /// The latest drills of a tenant, the newest first, at most a hundred: `result` is the report, `error` why one failed.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn drills(&mut self, tenant: TenantId) -> Result<Vec<Operation>> {
        self.operations_of(tenant, Backups::DRILL).await
    }
}

impl Backups {
    /// When the tenant is backed up by itself, and where that stands.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn standing(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Standing> {
        let own = tx.backup_schedule(tenant).await?;
        let backed_up_at = tx.backups(tenant, None, 1).await?.first().map(|backup| backup.taken_at);
        let last = async |tx: &mut SystemTx, kind: &str| {
            let query = sqlx::query_as::<_, (Option<DateTime<Utc>>, Option<DateTime<Utc>>)>(
                "select (select updated_at from tenancy.operations where tenant_id = $1 and kind = $2 and state = 'done' order by updated_at desc limit 1),
                        (select updated_at from tenancy.operations where tenant_id = $1 and kind = $2 and state in ('failed', 'cancelled') order by updated_at desc limit 1)",
            );
            let (done, failed) = query.bind(tenant.as_uuid()).bind(kind).fetch_one(tx).await.map_err(from_sqlx)?;
            Ok::<_, Error>((done, failed.filter(|failed| done.is_none_or(|done| done < *failed))))
        };
        let (_, backup_failed_at) = last(tx, Self::TAKE).await?;
        let (drilled_at, drill_failed_at) = last(tx, Self::DRILL).await?;
        let schedule = own.unwrap_or(self.schedule);
        Ok(Standing { schedule, own: own.is_some(), backed_up_at, backup_failed_at, drilled_at, drill_failed_at })
    }

    /// Queues the backup or drill that has been due for longest, unless one that was due is still under way: one at a time in a database,
    /// so that what somebody asks for never waits behind all tenants' own. Gives whose.
    ///
    /// Tenants that are active are backed up. Which ones are due is the [kit's clock](tenancy_core::Clock)'s to say.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn queue_due(&self) -> Result<Option<TenantId>> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let queued = self.queue_next(&mut tx).await?;
        // Not left to its end: the next call must not find its lock.
        match queued {
            Some(_) => tx.commit().await?,
            None => tx.rollback().await?,
        }
        Ok(queued)
    }

    async fn queue_next(&self, tx: &mut SystemTx) -> Result<Option<TenantId>> {
        let now = self.db.inner().clock.now();
        let alone = sqlx::query_scalar("select pg_try_advisory_xact_lock($1, 3)").bind(BYSTANDER);
        if !alone.fetch_one(&mut *tx).await.map_err(from_sqlx)? {
            return Ok(None); // another node is about to
        }
        let busy = sqlx::query_scalar(
            "select exists (select from tenancy.operations o where o.state in ('queued', 'running') and o.kind in ('backup', 'drill') and o.input ->> 'reason' = 'scheduled')",
        );
        if busy.fetch_one(&mut *tx).await.map_err(from_sqlx)? {
            return Ok(None);
        }
        for kind in [Self::TAKE, Self::DRILL] {
            if let Some(tenant) = self.most_due(tx, kind, now).await? {
                return self.queue_if_due(tx, tenant, kind, now).await;
            }
        }
        Ok(None)
    }

    async fn most_due(&self, tx: &mut SystemTx, kind: &str, now: DateTime<Utc>) -> Result<Option<TenantId>> {
        let (every, column, unit, last, there) = match kind {
            Self::TAKE => (
                self.schedule.every_hours,
                "every_hours",
                "hour",
                "select b.taken_at as at from tenancy.backups b where b.tenant_id = t.id and b.deleted_at is null order by b.taken_at desc limit 1",
                "",
            ),
            _ => (
                self.schedule.drill_days,
                "drill_days",
                "day",
                "select o.updated_at as at from tenancy.operations o where o.tenant_id = t.id and o.kind = 'drill' and o.state = 'done' order by o.updated_at desc limit 1",
                "and exists (select from tenancy.backups b where b.tenant_id = t.id and b.deleted_at is null)",
            ),
        };
        let sql = format!(
            "select t.id, count(*) over () from tenancy.tenants t left join tenancy.backup_schedules s on s.tenant_id = t.id left join lateral ({last}) l on true
              where t.status = 'active' and case when s.tenant_id is null then $1 else s.{column} end > 0
                and (l.at is null or l.at <= $2 - case when s.tenant_id is null then $1 else s.{column} end * interval '1 {unit}') {there}
                and not exists (select from tenancy.operations o where o.tenant_id = t.id and o.state in ('queued', 'running'))
                and not exists (select from tenancy.operations o where o.tenant_id = t.id and o.kind = $3 and o.state in ('failed', 'cancelled') and o.updated_at > $4)
              order by l.at nulls first, t.id limit 1"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(every.map(i32::from)).bind(now).bind(kind).bind(now - Schedule::RETRY);
        let found: Option<(Uuid, i64)> = query.fetch_optional(tx).await.map_err(from_sqlx)?;
        #[cfg(feature = "metrics")]
        metrics::gauge!("backup.due", "kind" => kind.to_owned()).set(found.map_or(0, |(_, due)| u32::try_from(due).unwrap_or(u32::MAX)));
        found.map(|(id, _)| TenantId::from_uuid(id)).transpose()
    }

    /// Looks again, now that nobody else can change the tenant.
    async fn queue_if_due(&self, tx: &mut SystemTx, tenant: TenantId, kind: &str, now: DateTime<Utc>) -> Result<Option<TenantId>> {
        if tx.lock_tenant(tenant).await?.status != TenantStatus::Active || !self.standing(tx, tenant).await?.is_due(kind, now) {
            return Ok(None);
        }
        let mut input = serde_json::json!({ "reason": Reason::Scheduled.as_str() });
        if kind == Self::DRILL {
            let Some(newest) = tx.backups(tenant, None, 1).await?.into_iter().next() else { return Ok(None) };
            input["backup"] = serde_json::json!(newest.id);
        }
        match tx.queue_operation(tenant, kind, input, None).await {
            Ok(_) => Ok(Some(tenant)),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(None), // something else is done with it now
            Err(error) => Err(error),
        }
    }

    /// Lets go the backups that are kept no longer, as part of the transaction that adds one. Those that are held stay.
    pub(super) async fn thin_out(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
        let keep = tx.backup_schedule(tenant).await?.unwrap_or(self.schedule).keep;
        let backups = tx.backups(tenant, None, i64::MAX).await?;
        let taken = backups.iter().map(|backup| Ok((backup.taken_at, backup.reason.parse()?))).collect::<Result<Vec<_>>>()?;
        let outdated: Vec<Uuid> = keep.outdated(&taken, self.db.inner().clock.now()).into_iter().map(|n| backups[n].id).collect();
        let query = sqlx::query_scalar(
            "update tenancy.backups set deleted_at = clock_timestamp() where tenant_id = $1 and id = any($2) and hold is null and deleted_at is null returning id",
        );
        let gone: Vec<Uuid> = query.bind(tenant.as_uuid()).bind(outdated).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
        for id in gone {
            tx.tell_of_backup(tenant, id, "backup.delete", serde_json::json!({ "reason": "retention" })).await?;
        }
        Ok(())
    }
}
