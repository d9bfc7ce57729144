//! `tenancy-server audit …`: whether the audit log is what was written.
//!
//! The exit code is 0 if nothing is found, 2 if something is, and 1 if it could not be looked for.

use std::process::ExitCode;

use clap::Subcommand;
use tenancy_core::{Error, ErrorKind, Result, TenantCatalog as _, TenantHint};
use tenancy_sqlx::TenantDb;

use super::say;
use crate::config::Config;
use crate::database::Database;
use crate::{anchors, attachment_store};

const FOUND: u8 = 2;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Walk the chains, and compare them with the anchors in the object store
    Verify {
        /// Only this tenant's chain: slug or id
        #[arg(long)]
        tenant: Option<TenantHint>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    let Verb::Verify { tenant, json } = verb;
    let database = Database::from_config(config).await?;
    if !database.has_admin() {
        return Err(Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: set TENANCY_ADMIN_DATABASE_URL"));
    }
    let anchors = anchors::read(attachment_store::store(config)?.as_ref()).await?;
    let verify = async |db: &TenantDb| {
        let tenant = match tenant {
            None => None,
            Some(hint) => Some(db.catalog().find(&hint).await?.ok_or_else(Error::not_found)?.id),
        };
        db.dangerous().begin_system("verify the audit log").await?.verify_audit(tenant, &anchors).await
    };
    let seen = database.with(config, verify).await?;
    if json {
        say(serde_json::json!({
            "events": seen.events, "unsealed": seen.unsealed, "anchors": anchors.len(), "heads": seen.heads, "findings": seen.findings,
        }));
    } else {
        for finding in &seen.findings {
            say(finding);
        }
        say(format_args!(
            "{} events in {} chains hold; {} wait to be sealed; {} anchors; {} findings",
            seen.events,
            seen.heads.len(),
            seen.unsealed,
            anchors.len(),
            seen.findings.len()
        ));
    }
    Ok(if seen.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
