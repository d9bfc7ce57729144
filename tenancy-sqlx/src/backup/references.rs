//! Foreign keys: looked after once all rows are written, since none is enforced meanwhile.

use sqlx::AssertSqlSafe;
use tenancy_core::{Error, ErrorKind, Result, TenantId};

use super::fit::Fit;
use super::session::{Changed, Restoring};
use super::tables::{Reference, Table, quoted};
use crate::error::from_sqlx;

/// A foreign key, and where the rows are that refer, and those that are referred to.
pub(super) struct Between<'a> {
    table: &'a Table,
    key: &'a Reference,
    from: Place,
    to: Place,
}

struct Place {
    sql: String,
    /// Whether the rows are all the tenant's: its column is not looked at, and need not be there.
    alone: bool,
}

impl<'a> Between<'a> {
    /// `staged` tells whether the values of a column of the `n`th table are all in what it is staged in.
    pub(super) fn new(table: &'a Table, key: &'a Reference, fits: &[Fit], staged: impl Fn(usize, &str) -> bool) -> Self {
        let place = |sql: &str, shared: String, has: &dyn Fn(usize, &(String, String)) -> bool| {
            let n = fits.iter().position(|fit| fit.table.sql == sql).filter(|n| key.pairs.iter().all(|pair| has(*n, pair)));
            n.map_or(Place { sql: shared, alone: false }, |n| Place { sql: format!("s{n}"), alone: true })
        };
        let own = |here: &str| here == table.tenant_column;
        let from = place(&table.sql, table.from(), &|n, (here, _)| own(here) || staged(n, here));
        let to = place(&key.to, key.to.clone(), &|n, (here, there)| {
            let theirs = *there == fits[n].table.tenant_column;
            own(here) == theirs && (theirs || staged(n, there))
        });
        Self { table, key, from, to }
    }

    /// Counts the rows that break it.
    fn broken(&self, tenant: TenantId) -> String {
        let (own, others): (Vec<_>, Vec<_>) = self.key.pairs.iter().partition(|(here, _)| *here == self.table.tenant_column);
        let all = |not: &str| others.iter().map(|(here, _)| format!("t.{} is {not}null", quoted(here))).collect::<Vec<_>>();
        let every = |conditions: Vec<String>| if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
        let mut same: Vec<String> = others.iter().map(|(here, there)| format!("u.{} = t.{}", quoted(there), quoted(here))).collect();
        if !self.to.alone {
            same.extend(own.iter().map(|(_, there)| format!("u.{} = '{tenant}'", quoted(there))));
        }
        let given = every(all("not "));
        // MATCH FULL: all columns or none.
        let none = if own.is_empty() { every(all("")) } else { "false".to_owned() };
        let half = if self.key.full { format!(" or not ({given}) and not ({none})") } else { String::new() };
        let bound = if self.from.alone { "true".to_owned() } else { format!("t.{} = '{tenant}'", quoted(&self.table.tenant_column)) };
        let (from, to, same) = (&self.from.sql, &self.to.sql, every(same));
        format!("select count(*) from {from} t where {bound} and (({given}) and not exists (select from {to} u where {same}){half})")
    }
}

impl Restoring<'_> {
    /// Looks after the foreign keys from and to the tables that changed. What was staged stands for what was made of it: that the two are the
    /// same is for the caller to verify.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict), naming those that some row breaks.
    pub(super) async fn check_references(&mut self, all: &[Table], fits: &[Fit], changed: &[Changed]) -> Result<()> {
        let touched = |sql: &str| fits.iter().zip(changed).any(|(fit, changed)| fit.table.sql == sql && !changed.is_none());
        let staged = |n: usize, name: &str| self.loaded.contains_key(&n) && fits[n].columns().any(|column| column.name == name);
        let mut keys = Vec::new();
        for table in all {
            let of = table.refers.iter().filter(|key| touched(&table.sql) || touched(&key.to));
            keys.extend(of.map(|key| Between::new(table, key, fits, staged)));
        }
        self.check_keys(&keys).await
    }

    /// Looks after foreign keys.
    pub(super) async fn check_keys(&mut self, keys: &[Between<'_>]) -> Result<()> {
        let mut broken = Vec::new();
        for between in keys {
            let Between { table, key, .. } = between;
            let query = sqlx::query_scalar(AssertSqlSafe(between.broken(self.tenant)));
            let rows: i64 = query.fetch_one(&mut self.tx).await.map_err(|error| {
                if error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() != Some("42501") {
                    return from_sqlx(error);
                }
                let why = format!("{}'s foreign key {} can't be looked after: let the application read {}", table.sql, key.name, key.to);
                Error::new(ErrorKind::Misconfigured, why).with_source(error)
            })?;
            if rows > 0 {
                broken.push(format!("{rows} of {} by {}", table.sql, key.name));
            }
        }
        if broken.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, format!("rows would refer to what is not there: {}", broken.join("; "))))
    }
}
