//! The command line.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tenancy_core::{Error, ErrorKind, Result};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::app::Running;
use crate::config::Config;
use crate::database::Database;

mod audit;
mod backup;
mod certificate;
mod doctor;
mod erase;
mod export;
mod isolation;
mod operator;
mod provision;
mod tenant;
mod token;
mod work;

/// A multi-tenant API on PostgreSQL.
///
/// Without a verb it serves. Without DATABASE_URL it runs a PostgreSQL of its own, in the data folder.
/// Logs go to stderr; RUST_LOG says how much (`info`, `debug`, `tenancy_server=debug,sqlx=warn`).
#[derive(Debug, Parser)]
#[command(name = "tenancy-server", version, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the API (the default)
    Serve,
    /// Bring the database up to date
    Migrate {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create, provision, list, show, suspend, resume, export, archive and erase tenants
    #[command(subcommand)]
    Tenant(tenant::Verb),
    /// Check the set-up: database, schema, privileges, object store, keys
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for ways in which a tenant could reach another's rows
    #[command(subcommand)]
    Isolation(isolation::Verb),
    /// Verify the seals of the audit log
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Print a token for development, signed with the HS256 secret
    Token(token::Token),
    /// Verify certificates of erasure
    #[command(subcommand)]
    Certificate(certificate::Verb),
    /// Take, list and restore backups of tenants
    #[command(subcommand)]
    Backup(backup::Verb),
    /// Create, list and disable operators
    #[command(subcommand)]
    Operator(operator::Verb),
}

/// Runs the verb of the command line. Errors are printed once, on stderr.
pub async fn run() -> ExitCode {
    let Cli { config, verb } = match Cli::try_parse() {
        Ok(cli) => cli,
        // Not clap's 2, which says of `isolation` that there are findings.
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match act(&config, verb.unwrap_or(Verb::Serve)).await {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn act(config: &Config, verb: Verb) -> Result<ExitCode> {
    log(&verb)?;
    match verb {
        Verb::Serve => serve(config).await,
        Verb::Migrate { json } => migrate(config, json).await,
        Verb::Tenant(verb) => tenant::run(config, verb).await,
        Verb::Doctor { json } => doctor::run(config, json).await,
        Verb::Isolation(verb) => isolation::run(config, verb).await,
        Verb::Audit(verb) => audit::run(config, verb).await,
        Verb::Token(token) => token::run(config, token).await,
        Verb::Certificate(verb) => certificate::run(config, verb),
        Verb::Backup(verb) => backup::run(config, verb).await,
        Verb::Operator(verb) => operator::run(config, verb).await,
    }
}

fn log(verb: &Verb) -> Result<()> {
    use tracing::Level;
    let invalid = |source| Error::new(ErrorKind::Misconfigured, "RUST_LOG must be such as info,sqlx=warn").with_source(source);
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = wanted.map(|text| text.parse::<Targets>().map_err(invalid)).transpose()?.unwrap_or_else(|| match verb {
        Verb::Serve => Targets::new().with_default(Level::INFO).with_target("sqlx", Level::WARN),
        Verb::Doctor { .. } => Targets::new().with_default(Level::WARN),
        // The probe's statements make the server warn, as they should.
        Verb::Isolation(_) => {
            Targets::new().with_default(Level::WARN).with_target("sqlx", Level::ERROR).with_target("tenancy_sqlx::preflight", Level::ERROR)
        }
        // What goes wrong in a short command is its error; the rest would be said at each of them.
        _ => Targets::new().with_default(Level::WARN).with_target("tenancy_sqlx::preflight", Level::ERROR),
    });
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(())
}

/// The message, and for what the caller can't mend by asking otherwise also its causes, each said once.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::NotFound) {
        return text;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let why = source.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = source.source();
    }
    text
}

/// Prints a line. A reader that went away is no failure of the work.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn serve(config: &Config) -> Result<ExitCode> {
    // Before anything is started, so that no signal is missed.
    let mut stop = Stop::listen()?;
    let running = tokio::select! {
        running = Running::start(config) => running?,
        () = stop.asked() => return Ok(ExitCode::SUCCESS),
    };
    for notice in running.notices() {
        say(notice);
    }
    if let Some(token) = running.new_operator_token() {
        say(format_args!("operator token (shown once): {}", token.expose()));
    }
    say(format_args!("listening on http://{}", running.address()));
    stop.asked().await;
    tracing::info!("stopping; a second signal stops at once");
    tokio::select! {
        done = running.shutdown() => done.map(|()| ExitCode::SUCCESS),
        () = stop.asked() => Err(Error::new(ErrorKind::Unavailable, "stopped at once, as asked")),
    }
}

/// SIGINT and SIGTERM; Ctrl-C elsewhere.
struct Stop {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

impl Stop {
    fn listen() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let failed = |source| Error::new(ErrorKind::Unavailable, "can't listen for signals").with_source(source);
            Ok(Self { signals: [signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?] })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn asked(&mut self) {
        #[cfg(unix)]
        {
            let [interrupt, terminate] = &mut self.signals;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

async fn migrate(config: &Config, json: bool) -> Result<ExitCode> {
    let database = Database::from_config(config).await?;
    let statements = database.migrate().await?;
    if json {
        say(serde_json::json!({ "migrated": true, "statements": statements }));
    } else {
        database.notice().into_iter().for_each(say);
        say("the database is up to date");
        for statement in statements {
            say(format_args!("an administrator must still run: {statement}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_verb() {
        let parse = |args: &[&str]| Cli::try_parse_from(args).expect("valid").config.listen;
        assert_eq!(parse(&["tenancy-server", "--listen", "127.0.0.1:0"]), "127.0.0.1:0");
        assert_eq!(parse(&["tenancy-server", "serve", "--listen", "127.0.0.1:0"]), "127.0.0.1:0");
    }

    #[test]
    fn help_prints_every_default_and_no_secret() {
        let help = Cli::command().render_long_help().to_string();
        for default in ["127.0.0.1:8080", ".tenancy", "tenancy-server", "65536", "26214400", "30s", "5m", "1s"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default}");
        }
        for arg in Cli::command().get_arguments().filter(|arg| arg.get_env().is_some()) {
            let (flag, env) = (arg.get_long().unwrap_or_default(), arg.get_env().and_then(|env| env.to_str()).unwrap_or_default());
            assert_eq!(flag.replace('-', "_").to_uppercase(), env.trim_start_matches("TENANCY_"), "the flag has the variable's name");
        }
    }

    #[test]
    fn causes_are_said_once() {
        let inner = Error::new(ErrorKind::Unavailable, "away").with_source("connection refused");
        let outer = Error::new(ErrorKind::Unavailable, "DATABASE_URL: away").with_source(inner);
        assert_eq!(explain(&outer), "DATABASE_URL: away: connection refused");
        assert_eq!(explain(&Error::new(ErrorKind::Conflict, "the slug is taken").with_source("duplicate key")), "the slug is taken");
    }
}
