//! `tenancy-server tenant erase`: queues the erasure, and does it unless a running server has taken it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tenancy_core::{Error, ErrorKind, Result, TenantHint, TenantSlug};
use tenancy_sqlx::TenantDb;

use super::{say, tenant};
use crate::app::operations;
use crate::attachment_store;
use crate::config::Config;

const LOOK: Duration = Duration::from_millis(500);

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
    let worker = operations(db, &attachment_store::open(attachment_store::store(config)?)?, config)?;
    let mut tx = db.dangerous().begin_system("erase a tenant").await?;
    let id = tx.request_erasure(found.id, reason, None).await?.id;
    tx.commit().await?;
    let watch = async {
        let mut said = String::new();
        loop {
            let operation = db.dangerous().begin_system("watch an erasure").await?.operation(id).await?;
            if operation.state == "done" || operation.state == "failed" {
                return Ok::<_, Error>(operation);
            }
            let line = format!("{}: {} {}", operation.step, operation.done, operation.unit);
            if line != said && !operation.step.is_empty() {
                let _ = writeln!(std::io::stderr(), "{line}");
                said = line;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let operation = tokio::select! {
        operation = watch => operation?,
        () = worker.run(LOOK) => return Err(Error::new(ErrorKind::Internal, "the worker ended")),
    };
    if operation.state == "failed" {
        return Err(Error::new(ErrorKind::Conflict, operation.error.unwrap_or_default()));
    }
    if json {
        say(serde_json::json!(operation));
    } else {
        say(format_args!("{} is erased: operation {id} has the certificate", found.id));
    }
    Ok(ExitCode::SUCCESS)
}
