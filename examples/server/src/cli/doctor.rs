//! `tenancy-server doctor`: what is right and what is wrong with the set-up. It fails if anything is.

use std::process::ExitCode;

use serde_json::json;
use tenancy_core::Result;

use super::{explain, say};
use crate::attachment_store;
use crate::config::Config;
use crate::credentials::token_resolver;
use crate::database::{Database, required_version};

/// One thing that was looked at.
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

pub(super) async fn run(config: &Config, json: bool) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let mut note = |check, outcome: Result<String>| {
        let ok = outcome.is_ok();
        findings.push(Finding { check, ok, detail: outcome.unwrap_or_else(|error| explain(&error)) });
        ok
    };
    let mut statements = Vec::new();

    note("settings", config.check().map(|()| "no contradictions".to_owned()));
    note("keys", token_resolver(config).await.map(|(_, notice)| notice.unwrap_or_else(|| "tokens can be verified".to_owned())));
    note("objects", attachment_store::probe(config).await.map(|()| "an object was written and deleted".to_owned()));
    match Database::from_config(config).await {
        Err(error) => {
            note("database", Err(error));
        }
        Ok(database) => {
            let reached =
                database.server_version().await.map(|version| database.notice().unwrap_or_else(|| format!("PostgreSQL {version}")));
            if note("database", reached) {
                let migrated = database.domain_version().await.map(|has| has == Some(required_version()));
                let opened = database.open(config).await;
                let opened = opened.map(|_| "the login is confined, every table is protected, and the schema is up to date".to_owned());
                let sound = note("isolation", opened);
                // Migrating what is up to date only looks at privileges, and tries again to revoke them.
                if sound && database.has_admin() && migrated.unwrap_or(false) {
                    let left = database.migrate().await;
                    note(
                        "privileges",
                        left.map(|left| {
                            statements = left;
                            if statements.is_empty() {
                                "nothing is left to revoke".to_owned()
                            } else {
                                "an administrator must still revoke some".to_owned()
                            }
                        }),
                    );
                }
            }
        }
    }

    let ok = findings.iter().all(|finding| finding.ok);
    if json {
        let checks: Vec<_> = findings.iter().map(|f| json!({ "check": f.check, "ok": f.ok, "detail": f.detail })).collect();
        say(json!({ "ok": ok, "version": env!("CARGO_PKG_VERSION"), "checks": checks, "statements": statements }));
    } else {
        say(format_args!("tenancy-server {}", env!("CARGO_PKG_VERSION")));
        for Finding { check, ok, detail } in &findings {
            say(format_args!("{}  {check}: {detail}", if *ok { "ok  " } else { "FAIL" }));
        }
        for statement in &statements {
            say(format_args!("      run as an administrator: {statement}"));
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
