//! Which tables an erasure empties, in which order: read from the catalog each time, so that a new table can't be forgotten.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::FromRow;
use tenancy_core::{Error, ErrorKind, Result};

use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// A table, or the root of its partitions, as the catalog describes it.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Table {
    oid: i64,
    /// Its name, quoted.
    pub(super) sql: String,
    kit: bool,
    /// Whether the administrative role may read and delete its rows.
    granted: bool,
    forced: bool,
    /// The tenant's column, unquoted.
    pub(super) col: Option<String>,
    is_uuid: bool,
    fenced: bool,
    is_global: bool,
    rule: Option<String>,
    pub(super) reason: Option<String>,
    odd_part: Option<String>,
    /// Foreign keys: name, the table it points to, what happens to this side when the other one is deleted.
    refers: Value,
}

impl Table {
    /// The kit's own tables are deleted from by a function: the role can't.
    pub(super) fn by_function(&self) -> bool {
        self.kit && !self.granted
    }

    fn keys(&self) -> impl Iterator<Item = (&str, i64, &str)> {
        self.refers.as_array().into_iter().flatten().filter_map(|key| Some((key[0].as_str()?, key[1].as_i64()?, key[2].as_str()?)))
    }

    fn refers_to(&self, other: &Self) -> bool {
        self.keys().any(|(_, to, _)| to == other.oid)
    }

    fn is_kept(&self) -> bool {
        self.rule.as_deref() == Some("keep")
    }

    fn is_tenants(&self) -> bool {
        (self.fenced || self.col.is_some() || self.rule.is_some() || self.odd_part.is_some()) && !self.is_global
    }

    /// Why its rows can't be deleted.
    fn refusal(&self) -> Option<String> {
        if let Some(part) = &self.odd_part {
            return Some(format!("{}: its part {part} has another tenant column", self.sql));
        }
        let why = if self.col.is_none() {
            "has a rule and no tenant column"
        } else if !self.is_uuid {
            "has a tenant column that is not a uuid"
        } else if !self.kit && !self.fenced && self.rule.is_none() {
            "has a tenant column, is not protected, and is neither declared global nor has a rule"
        } else if self.kit && !self.granted && self.forced {
            "forces row security on its owner: grant delete on it"
        } else if !self.kit && !self.granted {
            "does not let the administrative role read and delete"
        } else {
            return None;
        };
        Some(format!("{} {why}", self.sql))
    }
}

/// The tables that hold rows of tenants: each one's oid, quoted name and quoted tenant column.
#[cfg(feature = "export")]
pub(crate) async fn tenant_tables(tx: &mut SystemTx) -> Result<Vec<(i64, String, String)>> {
    let tables: Vec<Table> = sqlx::query_as(include_str!("facts.sql")).fetch_all(tx).await.map_err(from_sqlx)?;
    let named = tables.into_iter().filter(|table| table.is_tenants() && table.is_uuid);
    Ok(named.filter_map(|table| Some((table.oid, table.sql, super::scan::quoted(&table.col?)))).collect())
}

/// What an erasure does.
#[derive(Debug)]
pub(super) struct Plan {
    /// Sets of tables, in order; those of one set refer to each other (or one to itself), and are emptied by one statement.
    pub(super) sets: Vec<Vec<Table>>,
    /// Tables whose rows of the tenant stay, with the reason.
    pub(super) kept: Vec<Table>,
}

impl Plan {
    pub(super) async fn read(tx: &mut SystemTx) -> Result<Self> {
        let tables = sqlx::query_as(include_str!("facts.sql")).fetch_all(tx).await.map_err(from_sqlx)?;
        Self::of(tables)
    }

    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict), naming every table that can't be handled.
    fn of(tables: Vec<Table>) -> Result<Self> {
        let (tenants, others): (Vec<_>, Vec<_>) = tables.into_iter().partition(Table::is_tenants);
        let (kept, deleted): (Vec<_>, Vec<_>) = tenants.into_iter().partition(Table::is_kept);
        let mut refusals: Vec<String> = deleted.iter().filter_map(Table::refusal).collect();
        refusals.extend(
            kept.iter().filter(|table| !table.is_uuid).map(|table| format!("{} has no tenant column of type uuid to count by", table.sql)),
        );
        // Rows that stay must not hold on to rows that go, nor go with them.
        for (table, gone) in others.iter().chain(&kept).flat_map(|table| deleted.iter().map(move |gone| (table, gone))) {
            if let Some((name, ..)) = table.keys().find(|(_, to, action)| *to == gone.oid && !matches!(*action, "n" | "d")) {
                refusals.push(format!("{} stays, and its foreign key {name} refers to {}, which is emptied", table.sql, gone.sql));
            }
        }
        let sets = in_order(&deleted);
        for set in sets.iter().filter(|set| set.len() > 1 && set.iter().any(Table::by_function)) {
            let names: Vec<&str> = set.iter().map(|table| table.sql.as_str()).collect();
            refusals.push(format!("{} refer to each other, and some are the kit's own", names.join(", ")));
        }
        if refusals.is_empty() {
            return Ok(Self { sets, kept });
        }
        Err(Error::new(ErrorKind::Conflict, format!("a tenant can't be erased from this database: {}", refusals.join("; "))))
    }

    /// The tables that are emptied.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.sets.iter().flatten()
    }
}

/// Whether one statement has to delete all rows of the set.
pub(super) fn is_cyclic(set: &[Table]) -> bool {
    set.len() > 1 || set.iter().any(|table| table.refers_to(table))
}

/// Those that refer to others first; those that refer to each other, over whatever detour, in one set.
fn in_order(tables: &[Table]) -> Vec<Vec<Table>> {
    let mut reach: BTreeMap<i64, BTreeSet<i64>> = tables.iter().map(|table| (table.oid, BTreeSet::new())).collect();
    for table in tables {
        let (mut todo, mut seen) = (vec![table], BTreeSet::new());
        while let Some(from) = todo.pop() {
            todo.extend(tables.iter().filter(|to| from.refers_to(to) && seen.insert(to.oid)));
        }
        reach.insert(table.oid, seen);
    }
    let reaches = |from: &Table, to: &Table| reach[&from.oid].contains(&to.oid);
    let mut sets: Vec<Vec<Table>> = Vec::new();
    for table in tables {
        match sets.iter_mut().find(|set| reaches(table, &set[0]) && reaches(&set[0], table)) {
            Some(set) => set.push(table.clone()),
            None => sets.push(vec![table.clone()]),
        }
    }
    // A set reaches more than any set that it refers to.
    sets.sort_by_key(|set| std::cmp::Reverse(reach[&set[0].oid].iter().chain([&set[0].oid]).collect::<BTreeSet<_>>().len()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(oid: i64, refers: &[i64]) -> Table {
        let refers = refers.iter().map(|to| serde_json::json!([format!("k{to}"), to, "a"])).collect();
        Table {
            oid,
            sql: format!("public.t{oid}"),
            kit: false,
            granted: true,
            forced: true,
            col: Some("tenant_id".to_owned()),
            is_uuid: true,
            fenced: true,
            is_global: false,
            rule: None,
            reason: None,
            odd_part: None,
            refers,
        }
    }

    #[test]
    fn what_refers_comes_first_and_cycles_go_together() {
        // 4 → 1 ↔ 2 → 3 → 3, and 5 alone.
        let plan = Plan::of(vec![table(1, &[2]), table(2, &[1, 3]), table(3, &[3]), table(4, &[1]), table(5, &[])]).expect("a plan");
        let sets: Vec<Vec<i64>> = plan.sets.iter().map(|set| set.iter().map(|table| table.oid).collect()).collect();
        let at = |oid: i64| sets.iter().position(|set| set.contains(&oid)).expect("planned");
        assert!(at(4) < at(1) && at(1) == at(2) && at(2) < at(3), "{sets:?}");
        assert_eq!(plan.sets.iter().map(|set| is_cyclic(set)).filter(|cyclic| *cyclic).count(), 2);
    }

    #[test]
    fn what_stays_must_not_refer_to_what_goes() {
        let stays = Table { col: None, fenced: false, ..table(1, &[2]) };
        let refused = Plan::of(vec![stays.clone(), table(2, &[])]).expect_err("refused").to_string();
        assert!(refused.contains("public.t1 stays, and its foreign key k2"), "{refused}");
        assert!(Plan::of(vec![table(1, &[]), Table { refers: serde_json::json!([]), ..stays }]).is_ok());
    }
}
