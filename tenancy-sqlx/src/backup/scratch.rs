//! Tables like the real ones, of this session alone: where a drill has rows loaded and proved without a trace in tables that others use.

use futures_core::stream::BoxStream;
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, Row as _};
use tenancy_core::{Error, ErrorKind, Result};

use super::fit::Fit;
use super::session::{Restoring, conflicting, does_not_fit};
use super::tables::quoted;
use crate::error::from_sqlx;

/// How a table is made again.
#[derive(Debug, FromRow)]
pub(super) struct Shape {
    name: String,
    /// Its rows go into the real one: it has partitions, or is worked out by functions that the role which loads may not call.
    apart: bool,
    /// What is looked at for a row may be other rows, or written for it: a policy or a constraint asks, or a trigger fires.
    entangled: bool,
    columns: Json<Vec<ShapeColumn>>,
    checks: Json<Vec<String>>,
    /// Name and statement.
    indexes: Json<Vec<(String, String)>>,
    /// What row-level security asks of a row that the application writes, and of one that it reads.
    writes: String,
    reads: String,
    secured: bool,
}

#[derive(Debug, Deserialize)]
struct ShapeColumn {
    name: String,
    kind: String,
    /// What its value is unless it is given.
    rule: Option<String>,
    always: Option<String>,
    required: bool,
}

impl Shape {
    /// Where the rows of the `n`th table are.
    pub(super) fn place(&self, n: usize, fit: &Fit) -> String {
        if self.apart { fit.table.from() } else { format!("s{n}") }
    }

    pub(super) const fn is_apart(&self) -> bool {
        self.apart
    }

    fn make(&self, n: usize, fit: &Fit, tenant: &str) -> String {
        let mut parts: Vec<String> = Vec::new();
        for column in &self.columns.0 {
            let rule = if column.name == fit.table.tenant_column {
                format!("default '{tenant}'")
            } else if fit.columns().any(|there| there.name == column.name) {
                String::new()
            } else {
                column.always.as_ref().or(column.rule.as_ref()).cloned().unwrap_or_default()
            };
            let required = if column.required { "not null" } else { "" };
            parts.push(format!("{} {} {rule} {required}", quoted(&column.name), column.kind));
        }
        parts.extend(self.checks.0.iter().cloned());
        format!("create temp table s{n} ({}) on commit drop", parts.join(", "))
    }
}

impl Restoring<'_> {
    /// How the tables are made again: all names with their schemas.
    pub(super) async fn shapes(&mut self, fits: &[Fit]) -> Result<Vec<Shape>> {
        let (app, restore) = (self.inner.roles.app(), self.inner.roles.restore());
        self.become_role(&restore).await?;
        self.tx.control("savepoint shapes; set local search_path = pg_catalog").await.map_err(from_sqlx)?;
        let tables: Vec<&str> = fits.iter().map(|fit| fit.table.sql.as_str()).collect();
        let tenants: Vec<&str> = fits.iter().map(|fit| fit.table.tenant_column.as_str()).collect();
        let shapes = sqlx::query_as(include_str!("scratch.sql")).bind(&tables).bind(&tenants).bind(app).fetch_all(&mut self.tx).await;
        let mut shapes: Vec<Shape> = shapes.map_err(from_sqlx)?;
        self.tx.control("rollback to savepoint shapes; release savepoint shapes").await.map_err(from_sqlx)?;
        if shapes.len() != fits.len() {
            return Err(Error::new(ErrorKind::Unavailable, "a table was dropped meanwhile"));
        }
        if shapes.iter().any(|shape| shape.entangled) {
            // What is asked of one row may be the others: all are put where they belong.
            shapes.iter_mut().for_each(|shape| shape.apart = true);
        }
        Ok(shapes)
    }

    /// Loads the rows of one table as the application would write them, and gives how many there are.
    pub(super) async fn rehearse(
        &mut self,
        n: usize,
        (fit, shape): (&Fit, &Shape),
        rows: BoxStream<'_, Result<bytes::Bytes>>,
    ) -> Result<u64> {
        if shape.apart {
            self.stage(n, fit, rows).await?;
            self.as_app().await?;
            let added = sqlx::query(AssertSqlSafe(fit.add(n, true))).bind(self.tenant.as_uuid()).execute(&mut self.tx).await;
            return Ok(added.map_err(|error| conflicting(fit, error))?.rows_affected());
        }
        let (app, restore) = (self.inner.roles.app(), self.inner.roles.restore());
        let (made, raw) = (shape.make(n, fit, &self.tenant.to_string()), fit.raw(n));
        let raws = raw.as_ref().map(|raw| format!("; {raw}; grant select, insert on r{n} to {app}")).unwrap_or_default();
        let make = format!("set local role {restore}; {made}; grant select, insert on s{n} to {app}{raws}; set local role {app}");
        self.tx.control(&make).await.map_err(|error| does_not_fit(fit, error))?;
        let mut count = self.tx.copy_in(&fit.copy(n), rows).await.map_err(|error| breaking(fit, error))?;
        if let Some(spread) = fit.spread(n) {
            let spread = sqlx::query(AssertSqlSafe(spread)).execute(&mut self.tx).await;
            count = spread.map_err(|error| conflicting(fit, error))?.rows_affected();
        }
        self.become_role(&restore).await?;
        for (name, sql) in &shape.indexes.0 {
            self.tx.control(sql).await.map_err(|error| match error.as_database_error().and_then(|db| db.code()) {
                Some(code) if code.starts_with("23") => broken(fit, name).with_source(error),
                _ => does_not_fit(fit, error),
            })?;
        }
        self.as_app().await?;
        Ok(count)
    }

    /// Makes sure that row-level security lets the application write each row, and read it.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict), naming the table.
    pub(super) async fn check_policies(&mut self, n: usize, (fit, shape): (&Fit, &Shape)) -> Result<()> {
        if shape.apart || !shape.secured {
            return Ok(()); // asked of each row already, or of none
        }
        // Under its own name: a subquery in a policy says whose column it means.
        let sql = format!(
            "select count(*) filter (where ({}) is not true), count(*) filter (where ({}) is not true) from s{n} as {}",
            shape.writes,
            shape.reads,
            quoted(&shape.name)
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.tx).await.map_err(|error| does_not_fit(fit, error))?;
        let (does, rows) = match (row.get::<i64, _>(0), row.get::<i64, _>(1)) {
            (0, 0) => return Ok(()),
            (0, hidden) => ("hides", hidden),
            (refused, _) => ("refuses", refused),
        };
        let why = format!("the row-level security of {} {does} {rows} of its rows", fit.table.sql);
        Err(Error::new(ErrorKind::Conflict, why))
    }
}

fn broken(fit: &Fit, rule: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the backup does not fit {}: its rows break {rule}", fit.table.sql))
}

/// Of what COPY says, which constraint it was.
fn breaking(fit: &Fit, error: Error) -> Error {
    let said = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<sqlx::Error>());
    let said = said.and_then(sqlx::Error::as_database_error);
    match said.and_then(|db| Some((db, db.code()?))) {
        Some((db, code)) if code.starts_with("23") => broken(fit, db.constraint().unwrap_or("a constraint")).with_source(error),
        Some((db, code)) if code.starts_with("22") => {
            let why = format!("the backup does not fit {}: {}", fit.table.sql, db.message());
            Error::new(ErrorKind::Conflict, why).with_source(error)
        }
        _ => error,
    }
}
