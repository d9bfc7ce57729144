//! `tenancy-server tenant provision`: queues the provisioning, and sees it done.

use std::process::ExitCode;

use serde_json::Value;
use tenancy_core::{Result, TenantHint};
use tenancy_sqlx::TenantDb;

use super::{tenant, work};
use crate::app::operations;
use crate::attachment_store;
use crate::config::Config;
use crate::plans::plans;

pub(super) async fn run(config: &Config, db: &TenantDb, hint: &TenantHint, json: bool) -> Result<ExitCode> {
    let found = tenant::find(&db.catalog(), hint).await?;
    let worker = operations(db, &attachment_store::store(config)?, config)?;
    let mut tx = db.dangerous().begin_system("provision a tenant").await?;
    let id = tx.request_provisioning(found.id, plans(), Value::Null, None).await?.id;
    tx.commit().await?;
    work::finish(db, worker, id, json, |_| format!("{} is active", found.slug)).await
}
