//! `tenancy-server tenant erase`: queues the erasure, and sees it done.

use std::process::ExitCode;

use tenancy_core::{Error, Result, TenantHint, TenantSlug};
use tenancy_sqlx::TenantDb;

use super::{tenant, work};
use crate::app::operations;
use crate::attachment_store;
use crate::config::Config;

pub(super) async fn run(
    config: &Config,
    db: &TenantDb,
    hint: &TenantHint,
    confirm: &TenantSlug,
    reason: &str,
    json: bool,
) -> Result<ExitCode> {
    let found = tenant::find(&db.catalog(), hint).await?;
    if found.slug != *confirm {
        return Err(Error::invalid("--confirm", "must be the slug of the tenant that is to be erased"));
    }
    let worker = operations(db, &attachment_store::store(config)?, config)?;
    let mut tx = db.dangerous().begin_system("erase a tenant").await?;
    let id = tx.request_erasure(found.id, reason, None).await?.id;
    tx.commit().await?;
    work::finish(db, worker, id, json, |_| format!("{} is erased: operation {id} has the certificate", found.id)).await
}
