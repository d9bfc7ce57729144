//! The steps of an erasure. Each can be stopped at any point, and done again.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tenancy_core::{Error, ErrorKind, Result, TenantId};

use super::plan::{Plan, Table, is_cyclic};
use super::scan::{self, quoted};
use super::{Erase, may_be_erased};
use crate::error::from_sqlx;
use crate::operations::{Handler, Operation, Progress};
use crate::settle::settle;
use crate::tx::SystemTx;

/// How often rows that come back while the others are deleted (by a trigger, say) are deleted again.
const PASSES: usize = 3;

#[async_trait]
impl Handler for Erase {
    async fn run(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let mut tx = progress.begin().await?;
        may_be_erased(&mut tx, tenant).await?;
        let plan = Plan::read(&mut tx).await?;
        tx.rollback().await?;
        self.settle(tenant, progress).await?;
        let mut left = self.rows(&plan, tenant, progress).await?;
        for _ in 1..PASSES {
            if left.is_empty() {
                break;
            }
            left = self.rows(&plan, tenant, progress).await?;
        }
        if !left.is_empty() {
            return Err(Error::new(ErrorKind::Conflict, format!("rows of the tenant stay in {}", left.join(", "))));
        }
        self.halted("rows").await;
        self.objects(tenant, progress).await?;
        let certificate = self.certificate(&plan, tenant, operation, progress).await?;
        let signed = self.key.sign(&certificate);
        self.halted("verified").await;
        let mut tx = progress.begin().await?;
        tx.bury_tenant(tenant, json!({ "tables": certificate["tables"], "objects": certificate["objects"] }), self.db.inner().clock.now())
            .await?;
        progress.tell(&mut tx, "done", 0, None, "").await?;
        progress.done(&mut tx, &signed).await?;
        tx.commit().await?;
        if let Err(error) = self.db.catalog().refresh().await {
            tracing::warn!(?error, "the catalog was not refreshed after an erasure");
        }
        Ok(signed)
    }
}

impl Erase {
    async fn halted(&self, step: &str) {
        if self.halt_after == Some(step) {
            std::future::pending::<()>().await;
        }
    }

    async fn settle(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        if progress.finished("settled").await?.is_none() {
            if self.settle {
                settle(tenant, progress).await?;
            }
            let mut tx = progress.begin().await?;
            progress.finish(&mut tx, "settled", &json!(true)).await?;
            tx.commit().await?;
        }
        self.halted("settled").await;
        Ok(())
    }

    async fn objects(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        let Some(objects) = &self.objects else { return Ok(()) };
        if progress.finished("objects_found").await?.is_none() {
            progress.at("counting objects", 0, None, "objects").await?;
            let found = objects.measure(tenant).await?; // before any is deleted: a rerun would find less
            let mut tx = progress.begin().await?;
            progress.finish(&mut tx, "objects_found", &json!(found)).await?;
            tx.commit().await?;
        }
        self.halted("objects_found").await;
        progress.at("deleting objects", 0, None, "objects").await?;
        objects.erase(tenant).await?;
        self.halted("objects").await;
        Ok(())
    }

    /// Deletes the tenant's rows, and gives the tables that have some afterwards.
    async fn rows(&self, plan: &Plan, tenant: TenantId, progress: &Progress) -> Result<Vec<String>> {
        let mut total = 0;
        for set in &plan.sets {
            let all = is_cyclic(set);
            loop {
                let mut tx = progress.begin().await?;
                let deleted = if set.len() > 1 {
                    delete_set(&mut tx, set, tenant).await?
                } else {
                    let most = (!all).then_some(i64::from(Self::MAX_BATCH));
                    vec![delete(&mut tx, &set[0], tenant, most).await?]
                };
                let now: i64 = deleted.iter().sum();
                if now > 0 {
                    // With the rows, so that the counts are right wherever it is killed.
                    add_counts(&mut tx, progress, set, &deleted).await?;
                    total += now.unsigned_abs();
                    progress.tell(&mut tx, &format!("deleting from {}", set[0].sql), total, None, "rows").await?;
                    tx.commit().await?;
                    self.halted("batch").await;
                }
                if all || now < i64::from(Self::MAX_BATCH) {
                    break;
                }
            }
        }
        let mut left = Vec::new();
        let mut tx = progress.read().await?;
        for table in plan.tables() {
            if scan::count(&mut tx, table, tenant).await? > 0 {
                left.push(table.sql.clone());
            }
        }
        Ok(left)
    }

    /// Looks once more at everything, and says what was found.
    async fn certificate(&self, plan: &Plan, tenant: TenantId, operation: &Operation, progress: &Progress) -> Result<Value> {
        progress.at("verifying", 0, None, "").await?;
        let objects = match &self.objects {
            None => Value::Null,
            Some(store) => {
                let left = store.measure(tenant).await?;
                if left.objects > 0 {
                    return Err(Error::new(ErrorKind::Unavailable, format!("{} objects of the tenant are still there", left.objects)));
                }
                progress.finished("objects_found").await?.unwrap_or_default()
            }
        };
        let counts = progress.finished("rows").await?.unwrap_or_default();
        let mut tx = progress.read().await?;
        let mut tables: BTreeMap<&str, i64> = BTreeMap::new();
        for table in plan.tables() {
            tables.insert(&table.sql, counts[&table.sql].as_i64().unwrap_or_default());
        }
        let mut kept = BTreeMap::new();
        for table in &plan.kept {
            kept.insert(&table.sql, json!({ "rows": scan::count(&mut tx, table, tenant).await?, "reason": table.reason }));
        }
        let left = scan::leftovers(&mut tx, plan, tenant).await?;
        Ok(json!({
            "tenant_id": tenant,
            "operation_id": operation.id,
            "reason": operation.input["reason"],
            "requested_by": operation.created_by,
            "requested_at": operation.created_at,
            "verified_at": self.db.inner().clock.now(),
            "tables": tables,
            "objects": objects,
            "kept": kept,
            "leftovers": left.rows,
            "not_read": left.unread,
            "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}

/// Deletes at most so many rows of one table.
async fn delete(tx: &mut SystemTx, table: &Table, tenant: TenantId, most: Option<i64>) -> Result<i64> {
    if table.by_function() {
        let query =
            sqlx::query_scalar("select tenancy.erase_rows($1::regclass, $2, $3)").bind(&table.sql).bind(tenant.as_uuid()).bind(most);
        return query.fetch_one(tx).await.map_err(from_sqlx);
    }
    let (sql, col) = (&table.sql, quoted(table.col.as_deref().unwrap_or_default()));
    let query = format!(
        "delete from {sql} t using (select tableoid, ctid from {sql} where {col} = $1 limit $2) d
          where t.tableoid = d.tableoid and t.ctid = d.ctid and t.{col} = $1"
    );
    let done = sqlx::query(AssertSqlSafe(query)).bind(tenant.as_uuid()).bind(most).execute(tx).await.map_err(from_sqlx)?;
    Ok(done.rows_affected().cast_signed())
}

/// Deletes all rows of tables that refer to each other: their keys are checked when the one statement is done.
async fn delete_set(tx: &mut SystemTx, set: &[Table], tenant: TenantId) -> Result<Vec<i64>> {
    let parts: Vec<String> = set
        .iter()
        .enumerate()
        .map(|(i, table)| {
            format!("d{i} as (delete from {} where {} = $1 returning 1)", table.sql, quoted(table.col.as_deref().unwrap_or_default()))
        })
        .collect();
    let counts: Vec<String> = (0..set.len()).map(|i| format!("(select count(*) from d{i})")).collect();
    let query = format!("with {} select array[{}]", parts.join(", "), counts.join(", "));
    sqlx::query_scalar(AssertSqlSafe(query)).bind(tenant.as_uuid()).fetch_one(tx).await.map_err(from_sqlx)
}

async fn add_counts(tx: &mut SystemTx, progress: &Progress, set: &[Table], deleted: &[i64]) -> Result<()> {
    let mut counts = progress.finished_in(tx, "rows").await?.unwrap_or_else(|| json!({}));
    for (table, n) in set.iter().zip(deleted) {
        counts[&table.sql] = json!(counts[&table.sql].as_i64().unwrap_or_default() + n);
    }
    progress.finish(tx, "rows", &counts).await
}
