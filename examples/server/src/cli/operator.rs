//! `tenancy-server operator …`: the first operators, and those that nobody else can reach any more.

use std::process::ExitCode;

use chrono::SubsecRound as _;
use clap::Subcommand;
use serde_json::json;
use tenancy_core::{
    Clock as _, Email, Error, ErrorKind, NewOperator, Operator, OperatorChange, OperatorRole, Result, SystemClock, TokenDays,
};
use tenancy_sqlx::TenantDb;
use uuid::Uuid;

use super::say;
use crate::config::Config;
use crate::database::Database;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add an operator, and print their token: it is shown once
    Create {
        /// Their address
        email: Email,
        /// Who it is, for people [default: the address]
        #[arg(long)]
        name: Option<String>,
        /// What they may do: viewer, support or admin
        #[arg(long)]
        role: OperatorRole,
        /// For how many days the token lasts
        #[arg(long, default_value_t = 90)]
        days: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List operators, the newest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Disable an operator: their token is refused from now on
    Disable {
        /// Their id
        operator: Uuid,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    let database = Database::from_config(config).await?;
    if !database.has_admin() {
        return Err(Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: set TENANCY_ADMIN_DATABASE_URL"));
    }
    if database.is_embedded() {
        database.migrate().await?;
    }
    database.with(config, async |db| act(db, verb).await).await
}

async fn act(db: &TenantDb, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Create { email, name, role, days, json } => {
            let name = name.unwrap_or_else(|| email.as_str().to_owned());
            let new = NewOperator::new(name, email, role).with_token_for(TokenDays::new(days)?);
            let mut tx = db.dangerous().begin_system("add an operator").await?;
            let (operator, token) = tx.create_operator(&new, SystemClock.now().trunc_subsecs(6)).await?;
            tx.commit().await?;
            if json {
                say(json!({ "operator": operator, "token": token.expose() }));
            } else {
                say(line(&operator));
                say(format_args!("token (shown once): {}", token.expose()));
            }
        }
        Verb::List { json } => {
            let all = db.dangerous().begin_system("list operators").await?.operators(Uuid::max(), 1000).await?;
            if json {
                say(json!({ "items": all }));
            } else {
                all.iter().for_each(|operator| say(line(operator)));
            }
        }
        Verb::Disable { operator, json } => {
            let mut tx = db.dangerous().begin_system("disable an operator").await?;
            // Whoever has the database can always add another admin.
            let operator = tx.update_operator(operator, &OperatorChange::disable(), None, true).await?;
            tx.commit().await?;
            if json {
                say(json!({ "operator": operator }));
            } else {
                say(line(&operator));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(operator: &Operator) -> String {
    let state = if operator.disabled_at.is_some() { "disabled" } else { operator.role.as_str() };
    format!("{}  {state:<8}  until {}  {}  {}", operator.id, operator.expires_at.format("%Y-%m-%d"), operator.email, operator.name)
}
