//! Which tables hold a tenant's rows, and what is to be known of each: read from the catalog each time, so that none can be forgotten.

use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use sqlx::types::Json;
use tenancy_core::{Error, ErrorKind, Result};

use crate::error::from_sqlx;
use crate::tx::Tx;

/// A table with rows of tenants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Table {
    /// Its name, quoted.
    pub(super) sql: String,
    /// No partitions: named with ONLY, so that what inherits from it is not taken twice.
    pub(super) plain: bool,
    pub(super) tenant_column: String,
    /// All but the tenant's.
    pub(super) columns: Vec<Column>,
    /// The columns of the primary key, but for the tenant's. Empty where there is no such key.
    pub(super) key: Vec<String>,
    pub(super) refers: Vec<Reference>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    /// As `format_type` says it.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Whether its binary form means the same in another database.
    pub(super) binary: bool,
    /// Whether its order depends on a collation.
    pub(super) text: bool,
    pub(super) generated: bool,
    pub(super) identity: bool,
    /// Whether a row can't be without a value for it.
    pub(super) required: bool,
    /// Whether its default counts.
    pub(super) sequence: bool,
    pub(super) uuid: bool,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) to: String,
    /// Column here, column there.
    pub(super) pairs: Vec<(String, String)>,
    /// MATCH FULL.
    pub(super) full: bool,
}

#[derive(Debug, FromRow)]
struct Found {
    sql: String,
    plain: bool,
    readable: bool,
    tenant_column: String,
    is_uuid: bool,
    fenced: bool,
    skipped: bool,
    columns: Option<Json<Vec<Column>>>,
    key: Option<Json<Vec<String>>>,
    refers: Json<Vec<Reference>>,
}

impl Found {
    fn refusal(&self) -> Option<String> {
        let why = if !self.is_uuid {
            "has a tenant column that is not a uuid"
        } else if !self.fenced {
            "has a tenant column and is not protected: protect it, declare it global, or say with tenancy.backup_rule why it is left out"
        } else if !self.readable {
            "can't be read by the backup's role: call tenancy.protect_table again, and grant usage on its schema"
        } else {
            return None;
        };
        Some(format!("{} {why}", self.sql))
    }
}

/// The tables that a backup takes.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict), naming every table that can't be handled.
pub(super) async fn read<S: Send + std::fmt::Debug>(tx: &mut Tx<S>) -> Result<Vec<Table>> {
    let found: Vec<Found> = sqlx::query_as(include_str!("facts.sql")).fetch_all(tx).await.map_err(from_sqlx)?;
    let taken: Vec<Found> = found.into_iter().filter(|table| !table.skipped).collect();
    let refusals: Vec<String> = taken.iter().filter_map(Found::refusal).collect();
    if !refusals.is_empty() {
        return Err(Error::new(ErrorKind::Conflict, format!("a tenant of this database can't be backed up: {}", refusals.join("; "))));
    }
    Ok(taken
        .into_iter()
        .map(|Found { sql, plain, tenant_column, columns, key, refers, .. }| Table {
            sql,
            plain,
            tenant_column,
            columns: columns.map(|Json(columns)| columns).unwrap_or_default(),
            key: key.map(|Json(key)| key).unwrap_or_default(),
            refers: refers.0,
        })
        .collect())
}

/// Which columns name objects, and how: the table's name as SQL writes it, the column's, and the path with braces for its value.
pub(super) async fn object_columns<S: Send + std::fmt::Debug>(tx: &mut Tx<S>) -> Result<Vec<(String, String, String)>> {
    let query = sqlx::query_as(
        "select format('%I.%I', n.nspname, c.relname), o.col::text, o.path from tenancy.object_columns o join pg_class c on c.oid = o.rel join pg_namespace n on n.oid = c.relnamespace order by 1, 2, 3",
    );
    query.fetch_all(tx).await.map_err(from_sqlx)
}

/// A name as SQL writes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Column {
    pub(super) fn quoted(&self) -> String {
        quoted(&self.name)
    }
}

impl Table {
    /// As a statement names it.
    pub(super) fn from(&self) -> String {
        if self.plain { format!("only {}", self.sql) } else { self.sql.clone() }
    }

    /// The columns that are written: a generated one can't be.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.generated)
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// An order that is the same in every database: of the key, or of all there is.
    fn order(&self) -> String {
        let by = |column: &Column| match (column.binary, column.text) {
            (true, false) => column.quoted(),
            (true, true) => format!("{} collate \"C\"", column.quoted()),
            (false, _) => format!("{}::text collate \"C\"", column.quoted()),
        };
        let key: Option<Vec<String>> = self.key.iter().map(|name| self.column(name).map(by)).collect();
        match key {
            Some(key) if !key.is_empty() => key.join(", "),
            // Two rows that are equal here are equal.
            _ => self.stored().map(|column| format!("{}::text collate \"C\"", column.quoted())).collect::<Vec<_>>().join(", "),
        }
    }

    /// What takes a tenant's rows out: `tenant` is a literal of ours.
    pub(super) fn copy_out(&self, tenant: &str) -> String {
        self.copy_out_of(&self.from(), tenant)
    }

    /// The same of what stands for the table.
    pub(super) fn copy_out_of(&self, from: &str, tenant: &str) -> String {
        let columns: Vec<String> =
            self.stored().map(|column| if column.binary { column.quoted() } else { format!("{}::text", column.quoted()) }).collect();
        let order = self.order();
        let order = if order.is_empty() { String::new() } else { format!(" order by {order}") };
        format!(
            "COPY (SELECT {} FROM {from} WHERE {} = '{tenant}'{order}) TO STDOUT (FORMAT binary)",
            columns.join(", "),
            quoted(&self.tenant_column),
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::backup) fn column(name: &str, kind: &str) -> Column {
        Column {
            name: name.to_owned(),
            kind: kind.to_owned(),
            binary: true,
            text: kind == "text",
            generated: false,
            identity: false,
            required: false,
            sequence: false,
            uuid: kind == "uuid",
        }
    }

    pub(in crate::backup) fn table(sql: &str, key: &[&str], columns: Vec<Column>) -> Table {
        Table {
            sql: sql.to_owned(),
            plain: true,
            tenant_column: "tenant_id".to_owned(),
            columns,
            key: key.iter().map(|&name| name.to_owned()).collect(),
            refers: Vec::new(),
        }
    }

    #[test]
    fn rows_come_in_one_order_in_every_database() {
        let mut odd = column("mood\"", "mood[]");
        odd.binary = false;
        let mut sum = column("sum", "bigint");
        sum.generated = true;
        let keyed = table("public.t", &["name", "n"], vec![column("n", "bigint"), column("name", "text"), odd.clone(), sum]);
        assert_eq!(
            keyed.copy_out("T"),
            r#"COPY (SELECT "n", "name", "mood"""::text FROM only public.t WHERE "tenant_id" = 'T' order by "name" collate "C", "n") TO STDOUT (FORMAT binary)"#
        );
        let bare = table("public.t", &[], vec![column("n", "bigint"), odd]);
        assert!(bare.copy_out("T").contains(r#"order by "n"::text collate "C", "mood"""::text collate "C")"#));
    }
}
