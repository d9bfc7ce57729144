//! Asks the catalogs each rule's question.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tenancy_core::{Error, ErrorKind, Result};

use super::{Finding, RULES, Rule};
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
    inspect_by(conn, roles, app, |_| true).await
}

/// The findings of some rules.
pub(crate) async fn inspect_by(conn: &mut PgConnection, roles: &Roles, app: &str, asked: fn(&Rule) -> bool) -> Result<Vec<Finding>> {
    let mut tx = conn.begin().await.map_err(from_sqlx)?;
    // Expressions print with their schemas, whatever search_path the login has.
    tx.execute("set transaction isolation level repeatable read, read only; set local search_path = pg_catalog")
        .await
        .map_err(from_sqlx)?;
    let server = server(&mut tx).await?;
    let mut findings = Vec::new();
    for theme in RULES {
        let rules: Vec<&'static Rule> = theme.iter().filter(|rule| rule.since <= server && asked(rule)).collect();
        if !rules.is_empty() {
            findings.extend(ask(&mut tx, &rules, roles, app).await.map_err(from_sqlx)?);
        }
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

/// Asks a theme's rules in one statement, so that the facts are gathered once.
async fn ask(conn: &mut PgConnection, rules: &[&'static Rule], roles: &Roles, app: &str) -> sqlx::Result<Vec<Finding>> {
    let questions: Vec<String> =
        rules.iter().enumerate().map(|(n, rule)| format!("select {n} as rule, q.* from ({}) q", rule.sql)).collect();
    let sql = format!("{FACTS}\n{}", questions.join("\nunion all\n"));
    let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(app).bind(roles.owner()).bind(roles.admin()).fetch_all(conn).await?;
    let found = |row: sqlx::postgres::PgRow| {
        let number: i32 = row.try_get("rule")?;
        let rule = usize::try_from(number).ok().and_then(|number| rules.get(number)).ok_or_else(|| sqlx::Error::RowNotFound)?;
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
    rows.into_iter().map(found).collect()
}
