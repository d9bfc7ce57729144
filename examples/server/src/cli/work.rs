//! Long work that was asked for on the command line: done here, unless a running server has taken it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::operations::{Operation, Operations};
use uuid::Uuid;

use super::say;

const LOOK: Duration = Duration::from_millis(500);

/// Waits until the operation is done, and says meanwhile what it is at; then says `done`, or the operation as JSON.
pub(super) async fn finish(
    db: &TenantDb,
    worker: Operations,
    id: Uuid,
    json: bool,
    done: impl FnOnce(&Operation) -> String,
) -> Result<ExitCode> {
    let watch = async {
        let mut said = String::new();
        loop {
            let operation = db.dangerous().begin_system("watch an operation").await?.operation(id).await?;
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
        say(done(&operation));
    }
    Ok(ExitCode::SUCCESS)
}
