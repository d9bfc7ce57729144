//! Feature flags: defined by operators, and evaluated on every node without a query, within a second of their last change.
//!
//! A tenant's own values are in its catalog row: [`SystemTx::update_tenant`] sets them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use tenancy_core::flags::{Evaluation, FlagDefinition, MAX_DEFINITIONS, check_name};
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantContext, TenantId};

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// What the flags are for each tenant: cheap to clone.
#[derive(Debug, Clone)]
pub struct Flags {
    db: TenantDb,
}

impl Flags {
    /// The flags that are defined in `db`.
    pub fn new(db: &TenantDb) -> Self {
        Self { db: db.clone() }
    }

    /// What `flag` is for the context's tenant; `None` if it is not defined.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable); [`TenantNotFound`](ErrorKind::TenantNotFound) for a tenant that is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn evaluate(&self, cx: &TenantContext, flag: &str) -> Result<Option<Evaluation>> {
        let catalog = &self.db.inner().catalog;
        let tenant = catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        Ok(catalog.platform().await?.flag(flag).map(|flag| flag.evaluate(&tenant)))
    }

    /// What each flag is for the context's tenant.
    ///
    /// # Errors
    /// As [`evaluate`](Flags::evaluate).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn all(&self, cx: &TenantContext) -> Result<BTreeMap<String, Evaluation>> {
        let catalog = &self.db.inner().catalog;
        let tenant = catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        let platform = catalog.platform().await?;
        Ok(platform.flags().map(|flag| (flag.name().to_owned(), flag.evaluate(&tenant))).collect())
    }
}

/// A definition as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DefinedFlag {
    /// The flag's name.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub definition: FlagDefinition,
    /// Counts the changes, from 1.
    pub version: u64,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl FromRow<'_, PgRow> for DefinedFlag {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let Json(definition) = row.try_get("definition")?;
        Ok(Self {
            name: row.try_get("name")?,
            definition,
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
            updated_at: row.try_get("updated_at")?,
        })
    }
}

const SELECT: &str = "select name, version, updated_at, jsonb_build_object('description', description, 'kind', kind, 'variants', variants,
        'default', default_value, 'on', on_value, 'rollout', rollout, 'plans', plans, 'tenants', tenants, 'killed', killed) as definition
   from tenancy.flag_definitions";

/// The definitions. After the commit, [`PgCatalog::refresh`](crate::PgCatalog::refresh) makes this node follow at once.
impl SystemTx {
    /// All definitions, by their names.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn flags(&mut self) -> Result<Vec<DefinedFlag>> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} order by name"))).fetch_all(self).await.map_err(from_sqlx)
    }

    /// One definition.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn flag(&mut self, name: &str) -> Result<Option<DefinedFlag>> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let query = sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} where name = $1"))).bind(name);
        query.fetch_optional(self).await.map_err(from_sqlx)
    }

    /// [`flag`](SystemTx::flag), which nobody else defines, changes or removes until this transaction ends.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn lock_flag(&mut self, name: &str) -> Result<Option<DefinedFlag>> {
        sqlx::query("lock table tenancy.flag_definitions in share row exclusive mode").execute(&mut *self).await.map_err(from_sqlx)?;
        self.flag(name).await
    }

    /// Defines the flag `name`, in the place of what it was if it was defined, with its audit event.
    ///
    /// # Errors
    /// Those of [`FlagDefinition::check`] and [`check_name`]; [`Conflict`](ErrorKind::Conflict) if there are [`MAX_DEFINITIONS`] others.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn define_flag(&mut self, name: &str, definition: &FlagDefinition) -> Result<DefinedFlag> {
        check_name(name)?;
        definition.check()?;
        let before = self.lock_flag(name).await?;
        sqlx::query(
            "insert into tenancy.flag_definitions as f (name, description, kind, variants, default_value, on_value, rollout, plans, tenants, killed)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             on conflict on constraint flag_definitions_pkey do update set description = excluded.description, kind = excluded.kind,
               variants = excluded.variants, default_value = excluded.default_value, on_value = excluded.on_value, rollout = excluded.rollout,
               plans = excluded.plans, tenants = excluded.tenants, killed = excluded.killed, version = f.version + 1, updated_at = now()",
        )
        .bind(name)
        .bind(&definition.description)
        .bind(definition.kind.as_str())
        .bind(&definition.variants)
        .bind(Json(&definition.default))
        .bind(Json(&definition.on))
        .bind(i64::from(definition.rollout))
        .bind(&definition.plans)
        .bind(definition.tenants.iter().map(|tenant: &TenantId| tenant.as_uuid()).collect::<Vec<_>>())
        .bind(definition.killed)
        .execute(&mut *self)
        .await
        .map_err(from_sqlx)?;
        let count: i64 =
            sqlx::query_scalar("select count(*) from tenancy.flag_definitions").fetch_one(&mut *self).await.map_err(from_sqlx)?;
        if count > i64::try_from(MAX_DEFINITIONS).unwrap_or(i64::MAX) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("there are {MAX_DEFINITIONS} flags already: remove one that nobody asks for"),
            ));
        }
        let after = self.flag(name).await?.ok_or_else(Error::not_found)?;
        let detail = json!({ "before": before.map(|flag| flag.definition), "after": after.definition });
        self.audit(&AuditEvent::new(self.actor().clone(), "flag.define", name).with_detail(detail)).await?;
        Ok(after)
    }

    /// Removes a definition, with its audit event: the flag is not defined any more, also where tenants have values of their own.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn remove_flag(&mut self, name: &str) -> Result<()> {
        let before = self.lock_flag(name).await?.ok_or_else(Error::not_found)?;
        let query = sqlx::query("delete from tenancy.flag_definitions where name = $1").bind(name);
        query.execute(&mut *self).await.map_err(from_sqlx)?;
        let detail = json!({ "before": before.definition, "after": null });
        self.audit(&AuditEvent::new(self.actor().clone(), "flag.remove", name).with_detail(detail)).await
    }
}
