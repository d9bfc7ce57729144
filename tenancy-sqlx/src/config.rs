//! Settings of tenants and plans: kept with their history, and known to every node within a second without a query per request.
//!
//! A change counts up the version of the tenant's catalog row in its own transaction, and every node follows the catalog already. What a
//! node has worked out for a tenant therefore holds until the catalog shows a later version, or the platform's settings are others.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use moka::future::Cache;
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::config::{Config, Layer, Settings};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantContext, TenantId};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::{from_sqlx, from_tenant_row};
use crate::tx::{SystemTx, TenantTx, Tx};

const CAPACITY: u64 = 100_000;

/// What a tenant has set.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct TenantSettings {
    /// Counts the changes; 0 if there was none.
    pub version: u64,
    /// The values.
    pub layer: Layer,
}

/// One version of a tenant's settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConfigChange {
    /// Which one.
    pub version: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who, as `kind:subject`.
    pub actor: String,
    /// By which request.
    pub request_id: Option<Uuid>,
    /// What the keys that changed were before; one that is missing was not set.
    pub before: Layer,
    /// What they are since.
    pub after: Layer,
    /// The version whose values these are again, if it was a rollback.
    pub rolled_back_to: Option<u64>,
}

impl FromRow<'_, PgRow> for ConfigChange {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let (Json(before), Json(after)) = (row.try_get("before")?, row.try_get("after")?);
        Ok(Self {
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
            at: row.try_get("at")?,
            actor: row.try_get("actor")?,
            request_id: row.try_get("request_id")?,
            before,
            after,
            rolled_back_to: row.try_get::<Option<i64>, _>("rolled_back_to")?.map(i64::unsigned_abs),
        })
    }
}

/// What counts for one tenant, and what it was worked out from.
#[derive(Debug)]
struct Known {
    tenant_version: u64,
    platform_version: i64,
    version: u64,
    config: Arc<Config>,
}

/// The settings of a service, as they count for each tenant: one for the whole process, cheap to clone.
#[derive(Debug, Clone)]
pub struct Configs {
    db: TenantDb,
    settings: Arc<Settings>,
    known: Cache<TenantId, Arc<Known>>,
}

impl Configs {
    /// The values of `settings` in `db`.
    pub fn new(db: &TenantDb, settings: Settings) -> Self {
        let known = Cache::builder().max_capacity(CAPACITY).time_to_idle(Duration::from_secs(3600)).build();
        Self { db: db.clone(), settings: Arc::new(settings), known }
    }

    /// The settings that there are.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What counts for the tenant, with the version of its own settings. Without a query, unless something has changed.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable); [`TenantNotFound`](ErrorKind::TenantNotFound) or
    /// [`TenantInactive`](ErrorKind::TenantInactive) for a tenant that is not served any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn of(&self, cx: &TenantContext) -> Result<(Arc<Config>, u64)> {
        let catalog = &self.db.inner().catalog;
        let tenant = catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        let platform = catalog.platform().await?;
        if let Some(known) = self.known.get(&tenant.id).await
            && known.tenant_version >= tenant.version
            && known.platform_version == platform.version
        {
            return Ok((Arc::clone(&known.config), known.version));
        }
        // The version of the row and what is set come from one snapshot: what is kept is never newer in name than in content.
        let mut tx = self.db.read(cx).await?;
        let row = sqlx::query(
            "select t.version, t.plan, (select coalesce(max(h.version), 0) from tenancy.config_history h where h.tenant_id = t.id) as settings,
                    (select coalesce(jsonb_object_agg(c.key, c.value), '{}') from tenancy.tenant_configs c where c.tenant_id = t.id) as layer
               from tenancy.tenants t where t.id = $1",
        )
        .bind(tenant.id.as_uuid())
        .fetch_one(&mut tx)
        .await
        .map_err(from_sqlx)?;
        drop(tx);
        let read = |row: &PgRow| Ok((row.try_get::<i64, _>(0)?, row.try_get::<String, _>(1)?, row.try_get::<i64, _>(2)?, row.try_get(3)?));
        let (tenant_version, plan, version, Json(layer)): (_, _, _, Json<Layer>) = read(&row).map_err(from_sqlx)?;
        let known = Arc::new(Known {
            tenant_version: tenant_version.unsigned_abs(),
            platform_version: platform.version,
            version: version.unsigned_abs(),
            config: Arc::new(self.settings.effective(&platform.plan(&plan), &layer)),
        });
        self.known.insert(tenant.id, Arc::clone(&known)).await;
        Ok((Arc::clone(&known.config), known.version))
    }

    /// What the tenant's plan gives.
    ///
    /// # Errors
    /// As [`of`](Configs::of).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn plan(&self, cx: &TenantContext) -> Result<Layer> {
        let catalog = &self.db.inner().catalog;
        let tenant = catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        Ok(catalog.platform().await?.plan(&tenant.plan))
    }

    /// What counts for a tenant that an operator looks at, in the transaction of the look.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable), and as any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn look(&self, tx: &mut SystemTx, tenant: TenantId, plan: &str) -> Result<(Config, u64)> {
        let TenantSettings { version, layer } = tx.settings(tenant).await?;
        let of_plan = tx.plan_settings(plan).await?;
        Ok((self.settings.effective(&of_plan, &layer), version))
    }
}

/// What is to change, and on which condition.
struct Wanted<'a> {
    change: &'a Layer,
    /// What is not named is unset.
    whole: bool,
    expected: Option<u64>,
    rolled_back_to: Option<u64>,
}

/// Runs the statement `call`, which says whose settings change.
async fn write<S: Send + fmt::Debug>(
    tx: &mut Tx<S>,
    call: &'static str,
    tenant: TenantId,
    wanted: Wanted<'_>,
    by: &Actor,
    request: Option<Uuid>,
) -> Result<(TenantSettings, Option<AuditEvent>)> {
    let signed = |version: Option<u64>| version.map(u64::cast_signed);
    let row = sqlx::query(AssertSqlSafe(call))
        .bind(tenant.as_uuid())
        .bind(Json(wanted.change))
        .bind(wanted.whole)
        .bind(signed(wanted.expected))
        .bind(by.to_string())
        .bind(request)
        .bind(signed(wanted.rolled_back_to))
        .fetch_one(tx)
        .await
        .map_err(from_tenant_row)?;
    let Some(version) = row.try_get::<Option<i64>, _>("version").map_err(from_sqlx)? else {
        return Err(Error::new(ErrorKind::VersionMismatch, "the settings have changed since they were read: read them again"));
    };
    let Json(layer) = row.try_get("layer").map_err(from_sqlx)?;
    let settings = TenantSettings { version: version.unsigned_abs(), layer };
    let Some(tenant_version) = row.try_get::<Option<i64>, _>("tenant_version").map_err(from_sqlx)? else { return Ok((settings, None)) };
    let (Json(before), Json(after)): (Json<Layer>, Json<Layer>) =
        (row.try_get("before").map_err(from_sqlx)?, row.try_get("after").map_err(from_sqlx)?);
    let detail = json!({ "version": tenant_version, "settings": version, "before": before, "after": after,
                         "rolled_back_to": wanted.rolled_back_to });
    let event = AuditEvent::new(by.clone(), "tenant.config", tenant.to_string()).with_tenant(tenant).with_detail(detail);
    Ok((settings, Some(event)))
}

async fn read<S: Send + fmt::Debug>(tx: &mut Tx<S>, tenant: TenantId) -> Result<TenantSettings> {
    let row = sqlx::query(
        "select (select coalesce(max(h.version), 0) from tenancy.config_history h where h.tenant_id = $1),
                (select coalesce(jsonb_object_agg(c.key, c.value), '{}') from tenancy.tenant_configs c where c.tenant_id = $1)",
    )
    .bind(tenant.as_uuid())
    .fetch_one(tx)
    .await
    .map_err(from_sqlx)?;
    let Json(layer) = row.try_get(1).map_err(from_sqlx)?;
    Ok(TenantSettings { version: row.try_get::<i64, _>(0).map_err(from_sqlx)?.unsigned_abs(), layer })
}

async fn history<S: Send + fmt::Debug>(tx: &mut Tx<S>, tenant: TenantId, before: Option<u64>, limit: i64) -> Result<Vec<ConfigChange>> {
    sqlx::query_as(
        "select version, at, actor, request_id, before, after, rolled_back_to from tenancy.config_history
          where tenant_id = $1 and ($2::bigint is null or version < $2) order by version desc limit $3",
    )
    .bind(tenant.as_uuid())
    .bind(before.map(u64::cast_signed))
    .bind(limit)
    .fetch_all(tx)
    .await
    .map_err(from_sqlx)
}

/// All that was set in `version`: nothing in version 0.
async fn layer_of<S: Send + fmt::Debug>(tx: &mut Tx<S>, tenant: TenantId, version: u64) -> Result<Layer> {
    if version == 0 {
        return Ok(Layer::new());
    }
    let query = sqlx::query_scalar("select layer from tenancy.config_history where tenant_id = $1 and version = $2");
    let found: Option<Json<Layer>> =
        query.bind(tenant.as_uuid()).bind(version.cast_signed()).fetch_optional(tx).await.map_err(from_sqlx)?;
    found.map(|Json(layer)| layer).ok_or_else(|| Error::invalid("version", "must be one of the history, or 0 for none of the settings"))
}

const OWN: &str = "select * from tenancy.change_own_config($2, $3, $4, $5, $6, $7) where $1 = tenancy.current_tenant()";
const ANY: &str = "select * from tenancy.change_config($1, $2, $3, $4, $5, $6, $7)";

/// A tenant's settings, for itself.
impl TenantTx {
    /// What the tenant has set.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn settings(&mut self) -> Result<TenantSettings> {
        let tenant = self.tenant_id();
        read(self, tenant).await
    }

    /// Sets what `change` names, or unsets it where it says `null`, with its audit event. Who may do so is the caller's to decide. After the
    /// commit, [`PgCatalog::refresh`](crate::PgCatalog::refresh) makes this node see it at once.
    ///
    /// # Errors
    /// Those of [`Settings::check`]; [`VersionMismatch`](ErrorKind::VersionMismatch) if the settings are of another version than `expected`;
    /// [`Conflict`](ErrorKind::Conflict) for a tenant that is being erased.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn change_settings(
        &mut self,
        by: &TenantContext,
        settings: &Settings,
        change: &Layer,
        expected: Option<u64>,
    ) -> Result<TenantSettings> {
        settings.check(change)?;
        self.write_settings(by, Wanted { change, whole: false, expected, rolled_back_to: None }).await
    }

    /// Sets all that was set in `version` of the history, as a new version; in version 0 nothing was.
    ///
    /// # Errors
    /// As [`change_settings`](TenantTx::change_settings); [`Invalid`](ErrorKind::Invalid) at `version` if there is no such version, and at a
    /// key whose value of then is not allowed now.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn roll_settings_back(
        &mut self,
        by: &TenantContext,
        settings: &Settings,
        version: u64,
        expected: Option<u64>,
    ) -> Result<TenantSettings> {
        let tenant = self.tenant_id();
        let layer = layer_of(self, tenant, version).await?;
        settings.check(&layer)?;
        self.write_settings(by, Wanted { change: &layer, whole: true, expected, rolled_back_to: Some(version) }).await
    }

    /// At most `limit` versions before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn settings_history(&mut self, before: Option<u64>, limit: i64) -> Result<Vec<ConfigChange>> {
        let tenant = self.tenant_id();
        history(self, tenant, before, limit).await
    }

    async fn write_settings(&mut self, by: &TenantContext, wanted: Wanted<'_>) -> Result<TenantSettings> {
        let tenant = self.tenant_id();
        if by.tenant_id() != tenant {
            return Err(Error::not_found());
        }
        let (settings, event) = write(self, OWN, tenant, wanted, &by.principal().actor(), Some(by.request_id())).await?;
        if let Some(event) = event {
            self.audit(event).await?;
        }
        Ok(settings)
    }
}

/// Any tenant's settings, and those of plans.
impl SystemTx {
    /// See [`TenantTx::settings`].
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn settings(&mut self, tenant: TenantId) -> Result<TenantSettings> {
        read(self, tenant).await
    }

    /// See [`TenantTx::change_settings`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn change_settings(
        &mut self,
        tenant: TenantId,
        settings: &Settings,
        change: &Layer,
        expected: Option<u64>,
    ) -> Result<TenantSettings> {
        settings.check(change)?;
        self.write_settings(tenant, Wanted { change, whole: false, expected, rolled_back_to: None }).await
    }

    /// See [`TenantTx::roll_settings_back`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn roll_settings_back(
        &mut self,
        tenant: TenantId,
        settings: &Settings,
        version: u64,
        expected: Option<u64>,
    ) -> Result<TenantSettings> {
        let layer = layer_of(self, tenant, version).await?;
        settings.check(&layer)?;
        self.write_settings(tenant, Wanted { change: &layer, whole: true, expected, rolled_back_to: Some(version) }).await
    }

    /// See [`TenantTx::settings_history`].
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn settings_history(&mut self, tenant: TenantId, before: Option<u64>, limit: i64) -> Result<Vec<ConfigChange>> {
        history(self, tenant, before, limit).await
    }

    /// Sets all that a backup had, as it was then.
    #[cfg(feature = "backup")]
    pub(crate) async fn restore_settings(&mut self, tenant: TenantId, layer: &Layer) -> Result<TenantSettings> {
        self.write_settings(tenant, Wanted { change: layer, whole: true, expected: None, rolled_back_to: None }).await
    }

    async fn write_settings(&mut self, tenant: TenantId, wanted: Wanted<'_>) -> Result<TenantSettings> {
        let by = self.actor().clone();
        let (settings, event) = write(self, ANY, tenant, wanted, &by, None).await?;
        if let Some(event) = event {
            self.audit(&event).await?;
        }
        Ok(settings)
    }

    /// What a plan gives.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn plan_settings(&mut self, plan: &str) -> Result<Layer> {
        let query = sqlx::query_scalar("select coalesce(jsonb_object_agg(key, value), '{}') from tenancy.plan_configs where plan = $1");
        let Json(layer) = query.bind(plan).fetch_one(self).await.map_err(from_sqlx)?;
        Ok(layer)
    }

    /// Changes what a plan gives to all its tenants, with its audit event.
    ///
    /// # Errors
    /// Those of [`Settings::check`]; [`Invalid`](ErrorKind::Invalid) for a name that no plan can have.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn change_plan_settings(&mut self, plan: &str, settings: &Settings, change: &Layer) -> Result<Layer> {
        settings.check(change)?;
        // The lock of the platform's settings: what was before is what this change finds.
        sqlx::query("lock table tenancy.plan_configs in share row exclusive mode").execute(&mut *self).await.map_err(from_sqlx)?;
        let before = self.plan_settings(plan).await?;
        for (key, value) in change.iter().filter(|(key, value)| before.get(*key).unwrap_or(&serde_json::Value::Null) != *value) {
            let query = if value.is_null() {
                sqlx::query("delete from tenancy.plan_configs where plan = $1 and key = $2").bind(plan).bind(key)
            } else {
                sqlx::query(
                    "insert into tenancy.plan_configs (plan, key, value) values ($1, $2, $3)
                     on conflict on constraint plan_configs_pkey do update set value = excluded.value, updated_at = now()",
                )
                .bind(plan)
                .bind(key)
                .bind(value)
            };
            query.execute(&mut *self).await.map_err(from_sqlx)?;
        }
        let after = self.plan_settings(plan).await?;
        if after != before {
            let detail = json!({ "before": before, "after": after });
            self.audit(&AuditEvent::new(self.actor().clone(), "plan.config", plan).with_detail(detail)).await?;
        }
        Ok(after)
    }
}
