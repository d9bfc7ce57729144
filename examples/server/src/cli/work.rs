//! Long work that was asked for on the command line: done here, unless a running server has taken it.

use std::fmt::{Display, Write};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressState, ProgressStyle};
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
    let operation = ended(db, worker, id).await?;
    let said = done(&operation);
    report(&operation, json, said)
}

/// Waits until the operation is done, and says meanwhile what it is at.
pub(super) async fn ended(db: &TenantDb, worker: Operations, id: Uuid) -> Result<Operation> {
    let watch = async {
        let mut said = Said::new();
        loop {
            let operation = db.dangerous().begin_system("watch an operation").await?.operation(id).await?;
            if operation.is_over() {
                said.end();
                return Ok::<_, Error>(operation);
            }
            said.say(&operation);
            tokio::time::sleep(LOOK).await;
        }
    };
    let operation = tokio::select! {
        operation = watch => operation?,
        () = worker.run(LOOK) => return Err(Error::new(ErrorKind::Internal, "the worker ended")),
    };
    if operation.state != "done" {
        return Err(Error::new(ErrorKind::Conflict, operation.error.unwrap_or_else(|| format!("the operation is {}", operation.state))));
    }
    Ok(operation)
}

/// Says what was done, or the operation as JSON.
pub(super) fn report(operation: &Operation, json: bool, done: impl Display) -> Result<ExitCode> {
    if json {
        say(serde_json::json!(operation));
    } else {
        say(done);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was said of an operation: a bar that moves on a terminal, else a line for each change.
enum Said {
    Bar(ProgressBar),
    Lines(String),
}

impl Said {
    fn new() -> Self {
        if std::io::stderr().is_terminal() { Self::Bar(ProgressBar::new_spinner()) } else { Self::Lines(String::new()) }
    }

    fn say(&mut self, operation: &Operation) {
        let step = if operation.step.is_empty() { &operation.state } else { &operation.step };
        let (done, unit, bytes) = (operation.done.unsigned_abs(), &operation.unit, HumanBytes(operation.bytes.unsigned_abs()));
        match (self, operation.total.map(i64::unsigned_abs).filter(|total| *total > 0)) {
            (Self::Bar(bar), total) => {
                let (template, text) = match total {
                    Some(total) => ("{spinner} {step} {wide_bar} {text} {eta}", format!("{done}/{total} {unit}, {bytes}")),
                    None if unit.is_empty() => ("{spinner} {step}", String::new()),
                    None => ("{spinner} {step} {text}", format!("{done} {unit}, {bytes}")),
                };
                let (step, style) = (step.clone(), ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
                let style = style.with_key("step", move |_: &ProgressState, to: &mut dyn Write| _ = to.write_str(&step));
                bar.set_style(style.with_key("text", move |_: &ProgressState, to: &mut dyn Write| _ = to.write_str(&text)));
                // All at once: what is set one by one is drawn one by one.
                bar.update(|state| {
                    state.set_len(total.unwrap_or_default());
                    state.set_pos(done);
                });
            }
            (Self::Lines(said), total) => {
                let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
                let line = if unit.is_empty() { step.clone() } else { format!("{step}: {done}{of} {unit}, {bytes}") };
                if line != *said && !operation.step.is_empty() {
                    let _ = writeln!(std::io::stderr(), "{line}");
                    *said = line;
                }
            }
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
