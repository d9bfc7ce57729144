//! New ids for a clone's rows, and for all that refers to them.
//!
//! | what | how |
//! |---|---|
//! | uuid columns of primary keys, and those that a foreign key or [`declare_objects`](super) names | new by a hash with a secret of the clone's |
//! | integer ones that a sequence counts | numbers of the sequence, in the same order |
//! | columns that refer to one of these, by a foreign key or a declared reference | the same as there, however long the chain or whatever the circle |
//! | `uuid[]` and JSONB columns with a declared reference | each id that is new now, in its place |
//! | objects that a renewed column names | are put under the new name |
//!
//! What refers to a table that is not cloned stays as it is. The table `m0` has each old uuid with its new one, `m1`, `m2`, … have numbers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, FromRow, Row as _};
use tenancy_core::{Error, ErrorKind, Result};
use uuid::{Builder, Uuid};

use super::details::Was;
use super::fit::Fit;
use super::session::Restoring;
use super::tables::{object_columns, quoted};
use crate::error::from_sqlx;
use crate::operations::Progress;
use crate::tx::SystemTx;

/// A column: its table's name as SQL writes it, and its own.
type Node = (String, String);

/// How a column's values become new.
#[derive(Debug, Clone, PartialEq)]
enum How {
    Id,
    /// By the table `m` of this number.
    Number(usize),
    Ids,
    /// Where the ids are.
    Json(Vec<String>),
}

/// Which columns are renewed, and how.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    columns: BTreeMap<Node, How>,
    /// The columns whose sequences give new numbers, for `m1`, `m2`, …
    counted: Vec<Node>,
    /// How objects are named by renewed columns.
    paths: Vec<(String, How)>,
}

/// What the catalog says beside the tables.
#[derive(Debug, Default)]
struct Facts {
    /// The type beneath domains, and whether a value's text can name an id.
    kinds: BTreeMap<Node, (String, bool)>,
    declared: Vec<Declared>,
    /// Columns that name objects, and how.
    objects: Vec<(Node, String)>,
}

#[derive(Debug, FromRow)]
struct Declared {
    sql: String,
    col: String,
    path: String,
    refers: String,
}

impl Facts {
    async fn read(tx: &mut SystemTx) -> Result<Self> {
        let kinds: Vec<(String, String, String, bool)> = sqlx::query_as(
            "with recursive roots (oid, root) as (
               select oid, oid from pg_type where typtype <> 'd' union all select t.oid, r.root from pg_type t join roots r on t.typbasetype = r.oid where t.typtype = 'd'
             )
             select format('%I.%I', n.nspname, c.relname), a.attname::text, format_type(y.oid, null), y.typcategory not in ('N', 'D', 'T', 'B', 'I', 'G', 'R', 'V') and y.oid <> 'bytea'::regtype
               from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace join roots r on r.oid = a.atttypid join pg_type y on y.oid = r.root
              where c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped and n.nspname !~ '^pg_' and n.nspname not in ('tenancy', 'information_schema')",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let declared = sqlx::query_as(
            "select format('%I.%I', n.nspname, c.relname) as sql, d.col::text as col, d.path, format('%I.%I', fn.nspname, f.relname) as refers
               from tenancy.reference_columns d join pg_class c on c.oid = d.rel join pg_namespace n on n.oid = c.relnamespace
               join pg_class f on f.oid = d.refers join pg_namespace fn on fn.oid = f.relnamespace order by 1, 2, 3",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let objects = object_columns(&mut *tx).await?;
        Ok(Self {
            kinds: kinds.into_iter().map(|(sql, name, kind, names)| ((sql, name), (kind, names))).collect(),
            declared,
            objects: objects.into_iter().map(|(sql, name, path)| ((sql, name), path)).collect(),
        })
    }

    fn kind(&self, node: &Node) -> &str {
        self.kinds.get(node).map_or("", |(kind, _)| kind.as_str())
    }

    fn is_integer(&self, node: &Node) -> bool {
        matches!(self.kind(node), "smallint" | "integer" | "bigint")
    }
}

/// Columns whose values are the same ids: each one leads to the one that stands for all.
#[derive(Debug, Default)]
struct Classes(BTreeMap<Node, Node>);

impl Classes {
    fn of<'a>(&'a self, node: &'a Node) -> &'a Node {
        let mut at = node;
        while let Some(next) = self.0.get(at) {
            at = next;
        }
        at
    }

    fn join(&mut self, one: &Node, other: &Node) {
        let (one, other) = (self.of(one).clone(), self.of(other).clone());
        if one != other {
            self.0.insert(one, other);
        }
    }
}

impl Plan {
    fn of(fits: &[Fit], facts: &Facts) -> Result<Self> {
        let within = |sql: &str| fits.iter().find(|fit| fit.table.sql == sql);
        let (mut classes, mut all, mut anchors, mut fixed) = (Classes::default(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for fit in fits {
            let table = &fit.table;
            anchors.extend(table.key.iter().map(|name| (table.sql.clone(), name.clone())));
            for key in &table.refers {
                for (here, there) in key.pairs.iter().filter(|(here, _)| *here != table.tenant_column) {
                    let (here, there) = ((table.sql.clone(), here.clone()), (key.to.clone(), there.clone()));
                    if within(&key.to).is_some_and(|to| to.table.tenant_column != there.1) {
                        classes.join(&here, &there);
                        anchors.insert(there);
                    } else {
                        fixed.insert(here.clone());
                    }
                    all.insert(here);
                }
            }
        }
        let mut inside = Vec::new();
        for declared in &facts.declared {
            let (Some(_), Some(to)) = (within(&declared.sql), within(&declared.refers)) else { continue };
            let [key] = to.table.key.as_slice() else {
                let why = format!(
                    "{} has another key than when it was declared that {}.{} refers to it",
                    to.table.sql, declared.sql, declared.col
                );
                return Err(Error::new(ErrorKind::Conflict, format!("{why}: call tenancy.declare_reference again")));
            };
            let (here, there) = ((declared.sql.clone(), declared.col.clone()), (to.table.sql.clone(), key.clone()));
            if matches!(facts.kind(&here), "uuid[]" | "jsonb") {
                inside.push((here, there, &declared.path));
            } else {
                classes.join(&here, &there);
                all.insert(here);
            }
        }
        anchors.extend(facts.objects.iter().filter(|(node, _)| within(&node.0).is_some()).map(|(node, _)| node.clone()));
        all.extend(anchors.iter().cloned());
        let fixed: BTreeSet<&Node> = fixed.iter().map(|node| classes.of(node)).collect();
        let mut members: BTreeMap<&Node, Vec<&Node>> = BTreeMap::new();
        for node in all.iter().filter(|node| !fixed.contains(classes.of(node))) {
            members.entry(classes.of(node)).or_default().push(node);
        }

        let stored = |node: &Node| within(&node.0).and_then(|fit| fit.columns().find(|column| column.name == node.1));
        let mut plan = Self::default();
        for nodes in members.values() {
            let how = if nodes.iter().any(|node| anchors.contains(*node) && facts.kind(node) == "uuid") {
                How::Id
            } else if let Some(counts) = nodes
                .iter()
                .find(|node| anchors.contains(**node) && facts.is_integer(node) && stored(node).is_some_and(|column| column.sequence))
            {
                plan.counted.push((*counts).clone());
                How::Number(plan.counted.len())
            } else {
                continue;
            };
            // A column that was declared and has another type by now is left, and told of.
            let fits = |node: &Node| if how == How::Id { facts.kind(node) == "uuid" } else { facts.is_integer(node) };
            let nodes = nodes.iter().filter(|node| fits(node) && stored(node).is_some());
            plan.columns.extend(nodes.map(|node| ((*node).clone(), how.clone())));
        }
        for (here, there, path) in inside {
            if stored(&here).is_none() || plan.columns.get(&there) != Some(&How::Id) {
                continue;
            }
            let how = if facts.kind(&here) == "jsonb" { How::Json(Vec::new()) } else { How::Ids };
            if let How::Json(paths) = plan.columns.entry(here).or_insert(how) {
                paths.push(path.clone());
            }
        }
        plan.paths = facts.objects.iter().filter_map(|(node, path)| Some((path.clone(), plan.columns.get(node)?.clone()))).collect();
        Ok(plan)
    }

    fn of_table(&self, fit: &Fit) -> Vec<(&str, &How)> {
        self.columns.iter().filter(|((sql, _), _)| *sql == fit.table.sql).map(|((_, name), how)| (name.as_str(), how)).collect()
    }

    /// Where the values of `how` are staged.
    fn staged(&self, fits: &[Fit], how: &How, kind: &str) -> String {
        let mut parts = Vec::new();
        for (n, fit) in fits.iter().enumerate() {
            let columns = self.of_table(fit).into_iter().filter(|(_, of)| *of == how);
            parts.extend(columns.map(|(name, _)| format!("select {}::{kind} as old from s{n}", quoted(name))));
        }
        if parts.is_empty() { format!("select null::{kind} as old") } else { parts.join(" union ") }
    }

    /// A table with the old ids in the new ones' place; `None` where nothing was renewed.
    fn back(&self, fit: &Fit) -> Option<String> {
        let renewed = self.of_table(fit);
        if renewed.is_empty() {
            return None;
        }
        let mut columns = vec![format!("t.{}", quoted(&fit.table.tenant_column))];
        for column in fit.table.stored() {
            let (name, kind) = (column.quoted(), &column.kind);
            let value = match renewed.iter().find(|(renewed, _)| *renewed == column.name) {
                None => format!("t.{name}"),
                Some((_, How::Id)) => format!("(select m.old from m0 m where m.new = t.{name})::{kind}"),
                Some((_, How::Number(k))) => format!("(select m.old from m{k} m where m.new = t.{name})::{kind}"),
                Some((_, How::Ids)) => format!("{}::{kind}", swapped(&format!("t.{name}"), &format!("t.{name}"), ("new", "old"), "")),
                Some((_, How::Json(_))) => {
                    format!("{}::{kind}", swapped(&format!("t.{name}"), &found(&format!("t.{name}::text")), ("new", "old"), "\""))
                }
            };
            columns.push(format!("{value} as {name}"));
        }
        Some(format!("(select {} from {} t) t", columns.join(", "), fit.table.from()))
    }
}

/// The ids in a text, looked for once.
fn found(text: &str) -> String {
    format!("(select tenancy.ids_in({text}))::uuid[]")
}

/// A value with those of these ids that are known changed for the others.
fn swapped(value: &str, ids: &str, (from, to): (&str, &str), mark: &str) -> String {
    format!(
        "(select tenancy.swap_ids({value}::text, array_agg(m.{from}), array_agg(m.{to}), '{mark}') from m0 m where m.{from} = any({ids}))"
    )
}

/// What was renewed, for the result.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    pub(super) ids: i64,
    /// How many values of a column still name an old id.
    pub(super) left: BTreeMap<String, i64>,
}

/// Makes the ids of a clone new.
pub(super) struct Renewal {
    secret: [u8; 32],
    plan: Plan,
    facts: Facts,
    /// By the table's number, the numbers that objects are named by.
    numbers: BTreeMap<usize, BTreeMap<i64, i64>>,
}

impl std::fmt::Debug for Renewal {
    /// Leaves out the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Renewal {
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where a declared reference does not fit the tables any more.
    pub(super) async fn begin(fits: &[Fit], progress: &Progress) -> Result<Self> {
        // The same in each attempt: what was put for one is found by the next.
        let secret = match progress.finished("secret").await? {
            Some(known) => serde_json::from_value(known)
                .map_err(|error| Error::new(ErrorKind::Internal, "the operation can't be read").with_source(error))?,
            None => {
                let secret: [u8; 32] = rand::random();
                let mut tx = progress.begin().await?;
                progress.finish(&mut tx, "secret", &json!(secret)).await?;
                tx.commit().await?;
                secret
            }
        };
        let facts = Facts::read(&mut progress.read().await?).await?;
        Ok(Self { secret, plan: Plan::of(fits, &facts)?, facts, numbers: BTreeMap::new() })
    }

    /// Whether objects are named by numbers, which are known only once the rows are staged.
    pub(super) fn counts_objects(&self) -> bool {
        self.plan.paths.iter().any(|(_, how)| matches!(how, How::Number(_)))
    }

    /// As the database says it: `tenancy.renewed`.
    fn renewed(&self, old: Uuid) -> Uuid {
        let hash = Sha256::new().chain_update(self.secret).chain_update(old.as_bytes()).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        let mut version = uuid::Version::Custom;
        if old.as_bytes()[6] >> 4 == 7 {
            bytes[..6].copy_from_slice(&old.as_bytes()[..6]);
            version = uuid::Version::SortRand;
        }
        Builder::from_bytes(bytes).with_version(version).with_variant(uuid::Variant::RFC4122).into_uuid()
    }

    /// Where an object of this name is put.
    pub(super) fn path(&self, path: &str) -> String {
        for (template, how) in &self.plan.paths {
            let Some(rest) = template.split_once("{}").and_then(|(before, _)| path.strip_prefix(before)) else { continue };
            let (old, new) = match how {
                How::Id => {
                    let Some(old) = rest.get(..36).and_then(|old| Uuid::try_parse(old).ok()) else { continue };
                    (old.to_string(), self.renewed(old).to_string())
                }
                How::Number(k) => {
                    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(rest.len());
                    let Ok(old) = rest[..digits].parse::<i64>() else { continue };
                    let Some(new) = self.numbers.get(k).and_then(|numbers| numbers.get(&old)) else { continue };
                    (old.to_string(), new.to_string())
                }
                _ => continue,
            };
            if template.replace("{}", &old) == path {
                return template.replace("{}", &new);
            }
        }
        path.to_owned()
    }

    /// Renews what is staged.
    pub(super) async fn renew(&mut self, restoring: &mut Restoring<'_>, fits: &[Fit], was: &Was) -> Result<Renewed> {
        let app = restoring.inner.roles.app();
        let tx = &mut restoring.tx;
        let mut renewed = Renewed::default();
        for k in 0..=self.plan.counted.len() {
            let kind = if k == 0 { "uuid" } else { "bigint" };
            let make = format!(
                "create temp table m{k} (old {kind} primary key, new {kind} not null unique) on commit drop; grant select on m{k} to {app}"
            );
            tx.control(&make).await.map_err(from_sqlx)?;
            let olds = self.plan.staged(fits, &if k == 0 { How::Id } else { How::Number(k) }, kind);
            let done = if k == 0 {
                let sql = format!("insert into m0 select old, tenancy.renewed($1, old) from ({olds}) x where old is not null");
                sqlx::query(AssertSqlSafe(sql)).bind(&self.secret[..]).execute(&mut *tx).await
            } else {
                let (table, column) = &self.plan.counted[k - 1];
                let sql = format!(
                    "insert into m{k} with olds as materialized (select old, row_number() over (order by old) as n from ({olds}) x where old is not null)
                     select o.old, v.new from olds o join tenancy.next_values($1, $2::name, (select count(*) from olds)) with ordinality v (new, n) on v.n = o.n"
                );
                sqlx::query(AssertSqlSafe(sql)).bind(table).bind(column).execute(&mut *tx).await
            };
            renewed.ids += done.map_err(from_sqlx)?.rows_affected().cast_signed();
            tx.control(&format!("analyze m{k}")).await.map_err(from_sqlx)?;
        }
        for (n, fit) in fits.iter().enumerate() {
            self.update(tx, n, fit).await?;
            for column in fit.columns() {
                let node = (fit.table.sql.clone(), column.name.clone());
                let done = matches!(self.plan.columns.get(&node), Some(How::Id | How::Number(_)));
                if done || !self.facts.kinds.get(&node).is_some_and(|(_, names)| *names) {
                    continue;
                }
                let sql = format!(
                    "select count(distinct s.ctid) from s{n} s cross join lateral unnest(tenancy.ids_in(s.{}::text)) i (old) join m0 m on m.old = i.old",
                    column.quoted()
                );
                let left: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *tx).await.map_err(from_sqlx)?;
                if left > 0 {
                    renewed.left.insert(format!("{}.{}", fit.table.sql, column.name), left);
                }
            }
        }
        for (what, value) in [("settings", json!(was.settings)), ("branding", json!(was.branding)), ("flags", json!(was.flags))] {
            if let Some(left) = left_in(tx, &value).await? {
                renewed.left.insert(what.to_owned(), left);
            }
        }
        for (_, how) in &self.plan.paths {
            if let How::Number(k) = how {
                let sql = format!("select old, new from m{k}");
                let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
                self.numbers.insert(*k, rows.iter().map(|row| (row.get(0), row.get(1))).collect());
            }
        }
        Ok(renewed)
    }

    async fn update(&self, tx: &mut SystemTx, n: usize, fit: &Fit) -> Result<()> {
        let (mut sets, mut paths) = (Vec::new(), Vec::new());
        for (name, how) in self.plan.of_table(fit) {
            let name = quoted(name);
            let value = match how {
                How::Id => format!("tenancy.renewed($1, s.{name})"),
                How::Number(k) => format!("(select m.new from m{k} m where m.old = s.{name})"),
                How::Ids => format!("{}::uuid[]", swapped(&format!("s.{name}"), &format!("s.{name}"), ("old", "new"), "")),
                How::Json(of) => {
                    paths.push(of);
                    let at = paths.len() + 1;
                    let there = format!(
                        "(select string_agg(v::text, ' ') from unnest(${at}::text[]) p, jsonb_path_query(s.{name}, p::jsonpath, silent => true) v)"
                    );
                    format!("{}::jsonb", swapped(&format!("s.{name}"), &found(&there), ("old", "new"), "\""))
                }
            };
            sets.push(format!("{name} = {value}"));
        }
        if sets.is_empty() {
            return Ok(());
        }
        let sql = format!("update s{n} s set {}", sets.join(", "));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.secret[..]);
        let query = paths.into_iter().fold(query, sqlx::query::Query::bind);
        query.execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// What stands for a table when its rows are compared with those of the backup.
    pub(super) fn back(&self, fit: &Fit) -> Option<String> {
        self.plan.back(fit)
    }
}

/// How many old ids a document of the tenant's own names.
async fn left_in(tx: &mut SystemTx, value: &Value) -> Result<Option<i64>> {
    let sql = "select nullif(count(*), 0) from unnest(tenancy.ids_in($1)) i (old) join m0 m on m.old = i.old";
    sqlx::query_scalar(sql).bind(value.to_string()).fetch_one(tx).await.map_err(from_sqlx)
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::{column, table};
    use super::super::tables::{Reference, Table};
    use super::*;

    fn refer(mut from: Table, to: &str, pairs: &[(&str, &str)]) -> Table {
        let pairs = pairs.iter().map(|(here, there)| ((*here).to_owned(), (*there).to_owned())).collect();
        from.refers.push(Reference { name: "fk".to_owned(), to: to.to_owned(), pairs, full: false });
        from
    }

    fn plan(tables: &[Table], mut facts: Facts) -> Plan {
        let fits: Vec<Fit> = tables.iter().map(|table| Fit { table: table.clone(), was: table.clone() }).collect();
        for table in tables {
            for column in &table.columns {
                facts.kinds.insert((table.sql.clone(), column.name.clone()), (column.kind.clone(), true));
            }
        }
        Plan::of(&fits, &facts).expect("a plan")
    }

    fn how<'a>(plan: &'a Plan, sql: &str, name: &str) -> Option<&'a How> {
        plan.columns.get(&(sql.to_owned(), name.to_owned()))
    }

    #[test]
    fn what_refers_to_an_id_is_renewed_with_it_and_what_refers_elsewhere_is_not() {
        let mut counted = column("no", "bigint");
        counted.sequence = true;
        let docs =
            table("public.docs", &["id"], vec![column("id", "uuid"), column("up", "uuid"), column("kind", "uuid"), column("body", "text")]);
        let docs = refer(docs, "public.docs", &[("tenant_id", "tenant_id"), ("up", "id")]);
        let docs = refer(docs, "public.kinds", &[("kind", "id")]);
        // Its key is another's, and so on.
        let parts = table("public.parts", &["doc", "n"], vec![column("doc", "uuid"), column("n", "integer"), column("no", "integer")]);
        let parts = refer(parts, "public.docs", &[("tenant_id", "tenant_id"), ("doc", "id")]);
        let parts = refer(parts, "public.counts", &[("tenant_id", "tenant_id"), ("no", "no")]);
        let last = table("public.last", &["id"], vec![column("id", "text"), column("doc", "uuid"), column("n", "integer")]);
        let last = refer(last, "public.parts", &[("tenant_id", "tenant_id"), ("doc", "doc"), ("n", "n")]);
        let counts = table("public.counts", &["no"], vec![counted]);
        let plan = plan(&[counts, docs, last, parts], Facts::default());
        for (sql, name) in [("public.docs", "id"), ("public.docs", "up"), ("public.parts", "doc"), ("public.last", "doc")] {
            assert_eq!(how(&plan, sql, name), Some(&How::Id), "{sql}.{name}");
        }
        for (sql, name) in [("public.counts", "no"), ("public.parts", "no")] {
            assert_eq!(how(&plan, sql, name), Some(&How::Number(1)), "{sql}.{name}");
        }
        assert_eq!(plan.columns.len(), 6, "{plan:?}");
        assert_eq!(plan.counted, [("public.counts".to_owned(), "no".to_owned())]);
    }

    #[test]
    fn a_key_that_is_somebody_elses_stays() {
        let users = table("public.profiles", &["user"], vec![column("user", "uuid")]);
        let users = refer(users, "tenancy.members", &[("tenant_id", "tenant_id"), ("user", "id")]);
        assert_eq!(plan(&[users], Facts::default()), Plan::default());
    }

    #[test]
    fn declared_references_and_the_names_of_objects_are_renewed() {
        let docs = table(
            "public.docs",
            &["id"],
            vec![column("id", "uuid"), column("meta", "jsonb"), column("seen", "uuid[]"), column("by", "uuid")],
        );
        let files = table("public.files", &["name"], vec![column("name", "text"), column("object", "uuid")]);
        let node = |table: &str, name: &str| (table.to_owned(), name.to_owned());
        let declared = [("meta", "$.a"), ("meta", "$.b"), ("seen", ""), ("by", "")].map(|(col, path)| Declared {
            sql: "public.docs".to_owned(),
            col: col.to_owned(),
            path: path.to_owned(),
            refers: "public.docs".to_owned(),
        });
        let facts = Facts {
            declared: declared.into(),
            objects: vec![(node("public.files", "object"), "f/{}/x{}".to_owned()), (node("public.files", "name"), "n/{}".to_owned())],
            ..Facts::default()
        };
        let plan = plan(&[docs, files], facts);
        assert_eq!(how(&plan, "public.docs", "meta"), Some(&How::Json(vec!["$.a".to_owned(), "$.b".to_owned()])));
        assert_eq!((how(&plan, "public.docs", "seen"), how(&plan, "public.docs", "by")), (Some(&How::Ids), Some(&How::Id)));
        let renewal = Renewal { secret: [7; 32], plan, facts: Facts::default(), numbers: BTreeMap::new() };
        let id = Uuid::from_u128(1 << 60);
        let new = renewal.renewed(id);
        assert_eq!(renewal.path(&format!("f/{id}/x{id}")), format!("f/{new}/x{new}"));
        for same in [format!("f/{id}/x{new}"), format!("f/{id}"), format!("n/{id}"), "f/é".to_owned()] {
            assert_eq!(renewal.path(&same), same);
        }
        let timed = Uuid::now_v7();
        assert_eq!(
            (renewal.renewed(timed).as_bytes()[..6].to_vec(), renewal.renewed(timed).get_version_num()),
            (timed.as_bytes()[..6].to_vec(), 7)
        );
    }
}
