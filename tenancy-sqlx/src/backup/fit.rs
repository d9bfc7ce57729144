//! How what a backup has fits what the database has now: by stated rules, or not at all.
//!
//! | since the backup | what a restore does |
//! |---|---|
//! | a column was added | rows that come back or change get its default; refused if it has none and must not be null |
//! | a column was dropped | refused by name, unless its values may be left out |
//! | a column has another type | its values are assigned to it, as by INSERT; refused where PostgreSQL refuses that |
//! | a column was added to the key | refused by name |
//! | a table was added | it stays as it is |
//! | a table was dropped, or is skipped now | refused by name, unless its rows may be left out |

use std::collections::BTreeSet;

use tenancy_core::{Error, ErrorKind, Result, TenantId};

use super::tables::{Column, Table, quoted};

/// One table that is restored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fit {
    /// As it is now.
    pub(super) table: Table,
    /// As it was.
    pub(super) was: Table,
}

/// What is restored, and what is not.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fits {
    pub(super) fits: Vec<Fit>,
    /// Tables of the backup that are left out, and tables of now that the backup does not know.
    pub(super) lost: Vec<String>,
    pub(super) new: Vec<String>,
}

/// Which tables, and with how much drift.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) tables: Option<&'a [String]>,
    pub(super) may_lose: bool,
}

impl Fits {
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `tables` for one that the backup has not; [`Conflict`](ErrorKind::Conflict), naming all that does not fit.
    pub(super) fn of(was: &[Table], now: &[Table], wanted: Wanted<'_>) -> Result<Self> {
        if let Some(unknown) = wanted.tables.into_iter().flatten().find(|name| !was.iter().any(|table| table.sql == **name)) {
            let names: Vec<&str> = was.iter().map(|table| table.sql.as_str()).collect();
            return Err(Error::invalid("tables", format!("the backup has no table {unknown}: it has {}", names.join(", "))));
        }
        let picked = |table: &Table| wanted.tables.is_none_or(|names| names.contains(&table.sql));
        let mut fits = Self::default();
        let mut refusals = Vec::new();
        for was in was.iter().filter(|table| picked(table)) {
            match now.iter().find(|table| table.sql == was.sql) {
                None => fits.lost.push(was.sql.clone()),
                Some(table) => {
                    let fit = Fit { table: table.clone(), was: was.clone() };
                    refusals.extend(fit.refusals());
                    fits.lost.extend(fit.lost().map(|column| format!("{}.{}", was.sql, column.quoted())));
                    fits.fits.push(fit);
                }
            }
        }
        if wanted.tables.is_none() {
            let known: BTreeSet<&str> = was.iter().map(|table| table.sql.as_str()).collect();
            fits.new = now.iter().filter(|table| !known.contains(table.sql.as_str())).map(|table| table.sql.clone()).collect();
        }
        if !wanted.may_lose && !fits.lost.is_empty() {
            refusals.push(format!("{} can't be restored, since the database has them no more", fits.lost.join(", ")));
        }
        if refusals.is_empty() {
            return Ok(fits);
        }
        Err(Error::new(ErrorKind::Conflict, format!("the backup does not fit the database: {}", refusals.join("; "))))
    }
}

impl Fit {
    fn lost(&self) -> impl Iterator<Item = &Column> {
        self.was.stored().filter(|column| self.table.column(&column.name).is_none_or(|now| now.generated))
    }

    fn refusals(&self) -> Vec<String> {
        let sql = &self.table.sql;
        let mut refusals: Vec<String> = self
            .table
            .stored()
            .filter(|column| column.required && !self.was.stored().any(|was| was.name == column.name))
            .map(|column| format!("{sql} has a column {} since, which has no default and must not be null", column.quoted()))
            .collect();
        // Without its key a row of the backup can't be told from the others.
        if let Some(gone) = self.table.key.iter().find(|name| !self.was.stored().any(|was| was.name == **name)) {
            refusals.push(format!("{sql} has {} in its key since", quoted(gone)));
        }
        refusals
    }

    /// The columns that come from the backup, as they are now.
    pub(super) fn columns(&self) -> impl Iterator<Item = &Column> {
        self.table.stored().filter(|column| self.was.stored().any(|was| was.name == column.name))
    }

    /// Whether the bytes of the backup are what the table's own rows would give.
    pub(super) fn is_exact(&self) -> bool {
        let plain = |table: &Table| table.stored().map(|c| (c.name.clone(), c.kind.clone(), c.binary)).collect::<Vec<_>>();
        plain(&self.table) == plain(&self.was) && self.table.key == self.was.key
    }

    /// Whether the bytes can be loaded into columns like the table's: not where there are none, since COPY then means all.
    fn is_direct(&self) -> bool {
        self.was.stored().next().is_some()
            && self
                .was
                .stored()
                .all(|was| was.binary && self.table.column(&was.name).is_some_and(|now| now.kind == was.kind && !now.generated))
    }

    /// The statements that make room for the rows, and where COPY puts them; `n` tells the tables apart.
    pub(super) fn make(&self, n: usize, app: &str) -> (String, String) {
        let columns: Vec<String> = self.columns().map(|column| format!("{} {}", column.quoted(), column.kind)).collect();
        let make = format!("create temp table s{n} ({}) on commit drop; grant select on s{n} to {app}", columns.join(", "));
        let make = self.raw(n).map_or_else(|| make.clone(), |raw| format!("{make}; {raw}"));
        (make, self.copy(n))
    }

    /// Makes room for what can't be loaded where it belongs.
    pub(super) fn raw(&self, n: usize) -> Option<String> {
        if self.is_direct() {
            return None;
        }
        let raw: Vec<String> =
            self.was.stored().map(|was| format!("{} {}", was.quoted(), if was.binary { &was.kind } else { "text" })).collect();
        Some(format!("create temp table r{n} ({}) on commit drop", raw.join(", ")))
    }

    /// The COPY that loads.
    pub(super) fn copy(&self, n: usize) -> String {
        let stored: Vec<String> = self.was.stored().map(Column::quoted).collect();
        format!("COPY {}{n}{} FROM STDIN (FORMAT binary)", if self.is_direct() { "s" } else { "r" }, listed(&stored))
    }

    /// Brings rows to where they belong that could not be loaded there.
    pub(super) fn spread(&self, n: usize) -> Option<String> {
        if self.is_direct() {
            return None;
        }
        let columns: Vec<String> = self.columns().map(Column::quoted).collect();
        let values: Vec<String> = self
            .columns()
            .map(|now| match self.was.column(&now.name) {
                Some(was) if !was.binary => format!("{}::{}", now.quoted(), if now.kind == was.kind { &now.kind } else { "text" }),
                _ => now.quoted(),
            })
            .collect();
        Some(format!("insert into s{n}{} select {} from r{n}", listed(&columns), values.join(", ")))
    }

    /// Statistics of the key are all that joins by it go by.
    pub(super) fn analyze(&self, n: usize) -> String {
        let key: Vec<String> = self.table.key.iter().map(|name| quoted(name)).collect();
        format!("analyze s{n}{}", listed(&key))
    }

    fn same_key(&self) -> String {
        self.table.key.iter().map(|name| format!("s.{0} = t.{0}", quoted(name))).collect::<Vec<_>>().join(" and ")
    }

    /// To the last bit, also for types that have no equality.
    fn same_row(&self) -> String {
        let row = |of: &str| self.columns().map(|column| format!("{of}.{}", column.quoted())).collect::<Vec<_>>().join(", ");
        // As records: rows would be compared column by column, with operators that some types lack.
        format!("row({})::record *= row({})::record", row("t"), row("s"))
    }

    fn own(&self) -> String {
        format!("t.{} = $1", quoted(&self.table.tenant_column))
    }

    /// Whether a row can be told from the others.
    pub(super) fn is_keyed(&self) -> bool {
        !self.table.key.is_empty()
    }

    /// How many rows a restore would remove, change and add.
    pub(super) fn difference(&self, n: usize) -> String {
        let (from, own) = (self.table.from(), self.own());
        if !self.is_keyed() {
            let columns: Vec<String> = self.columns().map(|column| format!("{}::text", column.quoted())).collect();
            let columns = if columns.is_empty() { "1".to_owned() } else { columns.join(", ") };
            return format!(
                "select (select count(*) from (select {columns} from {from} t where {own} except all select {columns} from s{n}) x), 0::bigint,
                        (select count(*) from (select {columns} from s{n} except all select {columns} from {from} t where {own}) x)"
            );
        }
        let (key, same) = (self.same_key(), self.same_row());
        format!(
            "select count(*) filter (where s.tenancy_there is null), count(*) filter (where t.tenancy_there and s.tenancy_there and not ({same})), count(*) filter (where t.tenancy_there is null)
               from (select true as tenancy_there, t.* from {from} t where {own}) t full join (select true as tenancy_there, s.* from s{n} s) s on {key}"
        )
    }

    /// The first keys of rows that a restore would change in one way: `removed`, `changed` or `added`.
    pub(super) fn examples(&self, n: usize, how: &str) -> Option<String> {
        if !self.is_keyed() {
            return None;
        }
        let (from, own, key, same) = (self.table.from(), self.own(), self.same_key(), self.same_row());
        let (of, filter) = match how {
            "removed" => ("t", "s.tenancy_there is null".to_owned()),
            "added" => ("s", "t.tenancy_there is null".to_owned()),
            _ => ("t", format!("t.tenancy_there and s.tenancy_there and not ({same})")),
        };
        let columns: Vec<String> = self.table.key.iter().map(|name| format!("{of}.{0} as {0}", quoted(name))).collect();
        Some(format!(
            "select row_to_json(x)::jsonb from (select {} from (select true as tenancy_there, t.* from {from} t where {own}) t
               full join (select true as tenancy_there, s.* from s{n} s) s on {key} where {filter} order by 1 limit 10) x",
            columns.join(", ")
        ))
    }

    /// Removes the rows that are not as in the backup: gives how many of them it has in another form, and how many not at all.
    pub(super) fn remove(&self, n: usize) -> String {
        let (from, own) = (self.table.from(), self.own());
        if !self.is_keyed() {
            return format!("with gone as (delete from {from} t where {own} returning 1) select 0::bigint, count(*) from gone");
        }
        let (key, same) = (self.same_key(), self.same_row());
        format!(
            "with gone as (delete from {from} t where {own} and not exists (select from s{n} s where {key} and {same})
                           returning exists (select from s{n} s where {key}) as changed)
             select count(*) filter (where changed), count(*) filter (where not changed) from gone"
        )
    }

    /// Adds the rows that are not there (any more), or all of them where nothing is there.
    pub(super) fn add(&self, n: usize, all: bool, to: TenantId) -> String {
        let columns: Vec<String> = self.columns().map(Column::quoted).collect();
        let values: Vec<String> = self.columns().map(|column| format!("s.{}", column.quoted())).collect();
        let tenant = quoted(&self.table.tenant_column);
        let missing = if self.is_keyed() && !all {
            format!(" where not exists (select from {} t where t.{tenant} = '{to}' and {})", self.table.from(), self.same_key())
        } else {
            String::new()
        };
        let comma = if columns.is_empty() { "" } else { ", " };
        format!(
            "insert into {} ({tenant}{comma}{}) overriding system value select '{to}'::uuid{comma}{} from s{n} s{missing}",
            self.table.sql,
            columns.join(", "),
            values.join(", ")
        )
    }
}

/// The columns of a statement: none is a table that has but its tenant's, whose list is left out.
fn listed(columns: &[String]) -> String {
    if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::{column, table};
    use super::*;

    fn was() -> Table {
        table("public.t", &["id"], vec![column("id", "uuid"), column("body", "text")])
    }

    const ALL: Wanted<'_> = Wanted { tables: None, may_lose: false };

    fn refused(was: &[Table], now: &[Table], wanted: Wanted<'_>) -> String {
        Fits::of(was, now, wanted).expect_err("it does not fit").to_string()
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dropped = table("public.t", &["id"], vec![column("id", "uuid")]);
        let said = refused(&[was()], std::slice::from_ref(&dropped), ALL);
        assert!(said.contains(r#"public.t."body" can't be restored"#), "{said}");
        let lossy = Fits::of(&[was()], &[dropped], Wanted { may_lose: true, ..ALL }).expect("its values are left out");
        assert_eq!((lossy.lost.len(), lossy.fits[0].columns().count(), lossy.fits[0].is_exact()), (1, 1, false));

        let said = refused(&[was()], &[], ALL);
        assert!(said.contains("public.t can't be restored"), "{said}");
        let mut must = column("must", "integer");
        must.required = true;
        let said = refused(&[was()], &[table("public.t", &["id"], vec![column("id", "uuid"), column("body", "text"), must])], ALL);
        assert!(said.contains(r#"a column "must" since"#), "{said}");
        let said = refused(
            &[was()],
            &[table("public.t", &["id", "no"], vec![column("id", "uuid"), column("body", "text"), column("no", "integer")])],
            ALL,
        );
        assert!(said.contains(r#"has "no" in its key since"#), "{said}");
    }

    #[test]
    fn selected_tables_are_those_that_the_backup_has() {
        let (one, other) = (was(), table("public.u", &[], vec![]));
        let names = ["public.u".to_owned()];
        let fits = Fits::of(&[one.clone(), other.clone()], &[one.clone(), other.clone()], Wanted { tables: Some(&names), ..ALL })
            .expect("it fits");
        assert_eq!(fits.fits.iter().map(|fit| fit.table.sql.as_str()).collect::<Vec<_>>(), ["public.u"]);
        assert!(fits.new.is_empty());
        let names = ["public.v".to_owned()];
        let said = refused(&[one], &[other], Wanted { tables: Some(&names), ..ALL });
        assert!(said.contains("no table public.v: it has public.t"), "{said}");
    }

    #[test]
    fn other_types_are_assigned_and_the_same_ones_loaded() {
        let mut mood = column("mood", "mood");
        mood.binary = false;
        let now = table("public.t", &["id"], vec![column("id", "uuid"), column("n", "bigint"), mood.clone()]);
        let was = table("public.t", &["id"], vec![column("id", "uuid"), column("n", "integer"), mood]);
        let fit = Fit { table: now.clone(), was };
        let (make, copy) = fit.make(3, "app");
        assert!(make.contains(r#"create temp table r3 ("id" uuid, "n" integer, "mood" text) on commit drop"#), "{make}");
        assert_eq!(copy, r#"COPY r3 ("id", "n", "mood") FROM STDIN (FORMAT binary)"#);
        assert!(fit.spread(3).expect("by text").contains(r#"select "id", "n", "mood"::mood from r3"#), "{:?}", fit.spread(3));
        assert!(!fit.is_exact());
        let same = Fit { was: now.clone(), table: now };
        assert!(same.is_exact() && same.make(0, "app").1.starts_with("COPY r0"), "its own types go as text");
    }
}
