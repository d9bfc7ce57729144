//! Asks the catalogs each rule's question.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tenancy_core::{Error, ErrorKind, Result};

use super::{Finding, RULES, Rule, Severity};
use crate::error::from_sqlx;
use crate::schema::Roles;

/// What every rule may select from.
const FACTS: &str = include_str!("facts.sql");

/// All findings for the application's role `app`, worst first. Reads the catalogs only, in one read-only transaction, and needs no
/// privilege: what a login may not see of a catalog is asked through PostgreSQL's own functions.
///
/// # Errors
/// [`Unavailable`](tenancy_core::ErrorKind::Unavailable), [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if the schema `tenancy` is missing, or if
/// this login may not use it.
///
/// # Cancel safety
/// The connection may be left inside a read-only transaction: drop it.
pub async fn inspect(conn: &mut PgConnection, roles: &Roles, app: &str) -> Result<Vec<Finding>> {
    inspect_from(conn, roles, app, Severity::Info).await
}

/// The findings of rules that are at least as severe.
pub(crate) async fn inspect_from(conn: &mut PgConnection, roles: &Roles, app: &str, least: Severity) -> Result<Vec<Finding>> {
    let mut tx = conn.begin().await.map_err(from_sqlx)?;
    // Expressions print with their schemas, whatever search_path the login has.
    tx.execute("set transaction isolation level repeatable read, read only; set local search_path = pg_catalog")
        .await
        .map_err(from_sqlx)?;
    let server = server(&mut tx).await?;
    let mut findings = Vec::new();
    let asked = |rule: &&Rule| rule.severity >= least && i64::from(rule.since) <= i64::from(server);
    for rule in RULES.iter().flat_map(|theme| theme.iter()).filter(asked) {
        findings.extend(ask(&mut tx, rule, roles, app).await?);
    }
    tx.rollback().await.map_err(from_sqlx)?;
    findings.sort_by(|a, b| (b.severity, a.rule, &a.schema, &a.object).cmp(&(a.severity, b.rule, &b.schema, &b.object)));
    Ok(findings)
}

/// The server's major version, if the rules' questions can be asked by this login in this database.
async fn server(conn: &mut PgConnection) -> Result<i32> {
    let (server, migrated, usable): (i32, bool, bool) = sqlx::query_as(
        "select current_setting('server_version_num')::int / 10000, c.oid is not null, coalesce(has_schema_privilege(n.oid, 'usage'), false)
           from (select) one left join pg_namespace n on n.nspname = 'tenancy'
           left join pg_class c on c.relnamespace = n.oid and c.relname = 'global_tables'",
    )
    .persistent(false)
    .fetch_one(conn)
    .await
    .map_err(from_sqlx)?;
    let why = match (migrated, usable) {
        (true, true) => return Ok(server),
        (false, _) => "this database has no schema tenancy, or that of an older version: migrate it first",
        (true, false) => "this login may not use the schema tenancy: inspect as the application's role, or as an administrator",
    };
    Err(Error::new(ErrorKind::Misconfigured, why))
}

async fn ask(conn: &mut PgConnection, rule: &Rule, roles: &Roles, app: &str) -> Result<Vec<Finding>> {
    let sql = format!("{FACTS}\n{}", rule.sql);
    let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(app).bind(roles.owner()).bind(roles.admin()).fetch_all(conn).await;
    let found = |row: sqlx::postgres::PgRow| {
        Ok(Finding {
            rule: rule.id,
            severity: rule.severity,
            schema: row.try_get("schema")?,
            object: row.try_get("object")?,
            explanation: row.try_get("explanation")?,
            mend: row.try_get("mend")?,
            demonstrate: row.try_get("demonstrate")?,
        })
    };
    rows.and_then(|rows| rows.into_iter().map(found).collect()).map_err(|e| {
        let error = from_sqlx(e);
        Error::new(error.kind(), format!("the rule {} could not be asked: {}", rule.id, error.message())).with_source(error)
    })
}
