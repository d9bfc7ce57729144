//! `tenancy-server isolation …`: how a tenant could reach another's rows, for people, programs and code scanners.
//!
//! The exit code is 0 if nothing is found, 2 if something is, and 1 if it could not be looked for. Only the report goes to stdout.

use std::fmt::Display;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tenancy_core::{Clock as _, Error, ErrorKind, Result, SystemClock};
use tenancy_sqlx::Roles;
use tenancy_sqlx::isolation::{AllowList, Probed, Report, Severity, probe};

use super::say;
use crate::config::Config;
use crate::database::Database;

const FOUND: u8 = 2;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Read the catalogs of any migrated database, also one that can't be served: nothing is written
    Check {
        /// The role whose rights are judged [default: tenancy_app]
        #[arg(long, value_name = "NAME")]
        app_role: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Try to cross from one throw-away tenant to another, as the application, and remove all traces: on a copy of the production schema
    Probe {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print JSON
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// Print SARIF 2.1.0, for code scanners
    #[arg(long)]
    sarif: bool,
    /// Findings that are accepted: a JSON file, as docs/isolation/README.md describes it
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// The least severity that fails: info, warning, high or critical
    #[arg(long, value_name = "SEVERITY", default_value_t = Severity::Warning)]
    fail_on: Severity,
}

pub(super) async fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Check { app_role, output } => {
            let allow = output.allow_list()?;
            let database = Database::from_config(config).await?;
            let app = app_role.unwrap_or_else(|| {
                let app = Roles::default().app();
                warn_of_another(&database, &app);
                app
            });
            Ok(output.print(&Report::apply(database.inspect(&app).await?, &allow, SystemClock.now())))
        }
        Verb::Probe { output } => {
            let allow = output.allow_list()?;
            let database = Database::from_config(config).await?;
            let Probed { findings, unplanted, left, .. } = probe(&database.open_any(config).await?).await?;
            for table in unplanted {
                note(format_args!("little was tried in {table}"));
            }
            for table in left {
                note(format_args!("rows of the probe could not be removed from {table}"));
            }
            let mut report = Report::apply(findings, &allow, SystemClock.now());
            // What only the catalogs show has no finding here.
            report.findings.retain(|finding| finding.rule != "allow-unused");
            Ok(output.print(&report))
        }
    }
}

impl Output {
    /// Read first: a mistake in it must not wait for a database.
    fn allow_list(&self) -> Result<AllowList> {
        self.allow.as_deref().map_or_else(|| Ok(AllowList::default()), read)
    }

    fn print(&self, report: &Report) -> ExitCode {
        if self.json {
            say(report.to_json());
        } else if self.sarif {
            say(report.to_sarif());
        } else {
            say(report);
        }
        if report.worst() >= Some(self.fail_on) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
    }
}

fn read(path: &Path) -> Result<AllowList> {
    let about = |why: &str| Error::new(ErrorKind::Misconfigured, format!("--allow {}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| about("can't be read").with_source(e))?;
    text.parse().map_err(|e: Error| about(e.message()))
}

/// The role that is judged unless told otherwise may not be the one that is used.
fn warn_of_another(database: &Database, app: &str) {
    if let Some(login) = database.login().filter(|login| login != app) {
        note(format_args!("this judges {app}; DATABASE_URL logs in as {login}: to judge that, give --app-role {login}"));
    }
}

/// On stderr, for stdout holds only the report.
fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "note: {text}");
}
