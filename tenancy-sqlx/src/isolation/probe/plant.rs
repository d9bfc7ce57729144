//! Canaries: a row of each of the probe's tenants in every table, made from what the catalogs say that a row must be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};
use tenancy_core::{Error, ErrorKind, Result};

use super::facts::{Facts, ForeignKey, Relation};
use super::values::{Marks, Place, candidates, quote};
use crate::db::TenantDb;
use crate::error::from_sqlx;

/// Tries to insert into one table, in each mode, before it counts as one that nothing can be planted in.
const TRIES: usize = 48;
/// What is tried for a CHECK over several columns.
const COMBINATIONS: usize = 40_000;

/// The administrative connection.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) conn: PgConnection,
    pub(super) owner: String,
    pub(super) admin: String,
}

impl Admin {
    /// Connects with the credentials of [`Options::with_admin_url`](crate::Options::with_admin_url).
    pub(super) async fn connect(db: &TenantDb) -> Result<Self> {
        let inner = db.inner();
        let needs = "the probe plants rows of its own tenants, and needs administrative credentials: give Options::with_admin_url";
        let options = inner.admin.as_ref().ok_or_else(|| Error::new(ErrorKind::Misconfigured, needs))?.connect_options();
        let conn = PgConnection::connect_with(&options).await.map_err(from_sqlx)?;
        Ok(Self { conn, owner: inner.roles.owner(), admin: inner.roles.admin() })
    }

    /// Runs `sql` in a transaction, as `role` or as the login itself.
    async fn run(&mut self, role: Option<&str>, sql: &str) -> sqlx::Result<Vec<PgRow>> {
        let become_role = role.map(|role| format!("SET LOCAL ROLE {role};")).unwrap_or_default();
        let limits = "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '30s';";
        let message = format!("BEGIN; {limits} {become_role} {sql}; COMMIT");
        let done = sqlx::raw_sql(AssertSqlSafe(message)).fetch_all(&mut self.conn).await;
        if done.is_err() {
            self.conn.execute("ROLLBACK").await?;
        }
        done
    }

    /// Runs `sql` as whoever may.
    pub(super) async fn run_as_any(&mut self, admin_first: bool, sql: &str) -> sqlx::Result<Vec<PgRow>> {
        let (owner, admin) = (self.owner.clone(), self.admin.clone());
        let mut roles = vec![None, Some(owner.as_str())];
        roles.insert(usize::from(!admin_first) * 2, Some(admin.as_str()));
        let mut last = sqlx::Error::RowNotFound;
        for role in roles {
            match self.run(role, sql).await {
                Err(error) if crate::error::is_denied(&error) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    async fn holds(&mut self, sql: &str) -> bool {
        self.run(None, sql).await.is_ok()
    }
}

/// The values of a planted row, as text, by column.
pub(super) type Planted = BTreeMap<String, Option<String>>;

/// Where one column's value comes from.
#[derive(Debug, Clone)]
enum Pick {
    Tenant,
    Null,
    Candidate(usize),
    /// The planted row of another table.
    From(i64, String),
    Fixed(String),
}

type Recipe = Vec<(String, Pick)>;

/// One of the probe's tenants, and what was planted for it.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) marks: Marks,
    rows: HashMap<i64, Planted>,
}

impl Side {
    pub(super) fn new(tenant: String) -> Self {
        Self { marks: Marks::new(tenant), rows: HashMap::new() }
    }

    /// The row in a table, or in the first of its partitions that has one.
    pub(super) fn row(&self, table: i64) -> Option<&Planted> {
        self.rows.get(&table)
    }

    /// A value of the planted row, as a literal.
    pub(super) fn literal(&self, facts: &Facts, relation: &Relation, column: &str) -> Option<String> {
        let value = self.row(relation.oid)?.get(column)?;
        let ty = facts.types.get(&relation.column(column)?.ty)?;
        Some(value.as_ref().map_or_else(|| "null".to_owned(), |text| format!("{}::{}", quote(text), ty.sql)))
    }
}

/// How many columns a try fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// All.
    Full,
    /// Not those with a default.
    Lean,
    /// Only what must be.
    Bare,
}

/// The garden: recipes that worked.
#[derive(Debug, Default)]
pub(super) struct Recipes(HashMap<i64, Recipe>);

impl Recipes {
    /// A row for `side`: columns and values. `n` tells the rows of one tenant apart; 0 is planted.
    pub(super) fn row(&self, facts: &Facts, relation: &Relation, side: &Side, n: u32) -> Option<Vec<(String, String)>> {
        let recipe = self.0.get(&relation.oid)?;
        Some(render(facts, relation, recipe, side, n))
    }
}

fn render(facts: &Facts, relation: &Relation, recipe: &Recipe, side: &Side, n: u32) -> Vec<(String, String)> {
    let value = |column: &str, pick: &Pick| match pick {
        Pick::Tenant => typed(facts, relation, column, &side.marks.tenant),
        Pick::Null => "null".to_owned(),
        Pick::Fixed(literal) => literal.clone(),
        Pick::Candidate(i) => offers(facts, relation, column, side, n).into_iter().nth(*i).unwrap_or_else(|| "null".to_owned()),
        Pick::From(table, target) => {
            let parent = facts.relations.iter().find(|r| r.oid == *table);
            parent.and_then(|parent| side.literal(facts, parent, target)).unwrap_or_else(|| "null".to_owned())
        }
    };
    recipe.iter().map(|(column, pick)| (column.clone(), value(column, pick))).collect()
}

fn typed(facts: &Facts, relation: &Relation, column: &str, text: &str) -> String {
    let ty = relation.column(column).and_then(|column| facts.types.get(&column.ty));
    ty.map_or_else(|| quote(text), |ty| format!("{}::{}", quote(text), ty.sql))
}

/// What might do for a column.
fn offers(facts: &Facts, relation: &Relation, column: &str, side: &Side, n: u32) -> Vec<String> {
    let Some(of) = relation.column(column) else { return Vec::new() };
    let words: Vec<String> = relation.checks.iter().filter(|check| check.columns.contains(column)).map(|check| check.sql.clone()).collect();
    candidates(&facts.types, (of.ty, of.modifier), &words, Place { marks: &side.marks, n })
}

/// The INSERT of these values.
pub(super) fn insert(relation: &Relation, values: &[(String, String)]) -> String {
    let columns: Vec<_> = values.iter().map(|(column, _)| column.as_str()).collect();
    let exprs: Vec<_> = values.iter().map(|(_, value)| value.as_str()).collect();
    let over = if relation.columns.iter().any(|column| column.identity) { " overriding system value" } else { "" };
    format!("insert into {} ({}){over} values ({})", relation.sql, columns.join(", "), exprs.join(", "))
}

/// The tables that hold rows themselves and have a tenant, parents first; and those in a cycle that no row can enter.
fn in_order(facts: &Facts) -> (Vec<&Relation>, Vec<&Relation>) {
    let mut left: Vec<&Relation> = facts.relations.iter().filter(|r| r.kind == "r" && r.tenant.is_some()).collect();
    let mut order: Vec<&Relation> = Vec::new();
    while !left.is_empty() {
        // Partitions stand for their parents.
        let waits = |relation: &Relation, strictly: bool| {
            let pending = |target: i64| left.iter().any(|other| other.oid != relation.oid && is_or_is_under(facts, other, target));
            let needs = |key: &ForeignKey| !strictly || key.columns.iter().all(|name| relation.column(name).is_some_and(|c| c.not_null));
            relation.foreign.iter().any(|key| pending(key.target) && needs(key))
        };
        let Some(next) = left.iter().position(|r| !waits(r, false)).or_else(|| left.iter().position(|r| !waits(r, true))) else { break };
        order.push(left.remove(next));
    }
    (order, left)
}

/// Whether `relation` is the table `target`, or a partition of it.
fn is_or_is_under(facts: &Facts, relation: &Relation, target: i64) -> bool {
    let mut at = Some(relation);
    while let Some(here) = at {
        if here.oid == target {
            return true;
        }
        at = here.parent.and_then(|parent| facts.relations.iter().find(|r| r.oid == parent));
    }
    false
}

/// Plants a row for each side in each table. Returns the recipes, and the tables where nothing could be planted, with the reason.
pub(super) async fn plant(admin: &mut Admin, facts: &Facts, sides: &mut [Side]) -> Result<(Recipes, Vec<String>)> {
    let (order, cyclic) = in_order(facts);
    let mut recipes = Recipes::default();
    let mut unplanted: Vec<String> = cyclic.iter().map(|r| format!("{}: its foreign keys form a cycle", r.sql)).collect();
    for relation in order {
        for side in &mut *sides {
            if let Err(why) = plant_one(admin, facts, relation, &mut recipes, side).await {
                // A hash of the tenant decides which partition a tenant's rows go to.
                let by_hash = relation.checks.iter().any(|check| check.sql.contains("satisfies_hash_partition"));
                if !by_hash {
                    unplanted.push(format!("{}: {why}", relation.sql));
                }
                break;
            }
        }
    }
    for reason in &unplanted {
        tracing::warn!("the probe could not plant a row: {reason}");
    }
    Ok((recipes, unplanted))
}

async fn plant_one(admin: &mut Admin, facts: &Facts, relation: &Relation, recipes: &mut Recipes, side: &mut Side) -> Result<(), String> {
    let mut why = "no valid row was found".to_owned();
    let mut tried = BTreeSet::new();
    let known = recipes.0.get(&relation.oid).cloned();
    let mut plans: Vec<Recipe> = known.into_iter().collect();
    for mode in [None, Some(Mode::Full), Some(Mode::Lean), Some(Mode::Bare)] {
        if let Some(mode) = mode {
            plans = match plan(admin, facts, relation, side, mode).await {
                Ok(plans) => plans,
                Err(reason) => {
                    why = reason;
                    continue;
                }
            };
        }
        for recipe in plans.drain(..).take(TRIES) {
            let values = render(facts, relation, &recipe, side, 0);
            let sql = insert(relation, &values);
            if !tried.insert(sql.clone()) {
                continue;
            }
            let names: Vec<_> = relation.columns.iter().map(|column| column.name.as_str()).collect();
            let texts: Vec<_> = names.iter().map(|name| format!("{name}::text")).collect();
            match admin.run_as_any(relation.planter, &format!("{sql} returning {}", texts.join(", "))).await {
                Ok(rows) => {
                    let Some(row) = rows.first() else {
                        why = "a trigger or rule kept the row away".to_owned();
                        continue;
                    };
                    let text = |i: usize| row.try_get::<Option<String>, _>(i).ok().flatten();
                    let planted: Planted = names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), text(i))).collect();
                    remember(facts, relation, recipes, side, &recipe, &planted);
                    return Ok(());
                }
                Err(error) => why = error.as_database_error().map_or_else(|| error.to_string(), |db| db.message().to_owned()),
            }
        }
    }
    Err(why)
}

/// Under the table, and under what it is a partition of.
fn remember(facts: &Facts, relation: &Relation, recipes: &mut Recipes, side: &mut Side, recipe: &Recipe, planted: &Planted) {
    let mut at = Some(relation);
    while let Some(here) = at {
        recipes.0.entry(here.oid).or_insert_with(|| recipe.clone());
        side.rows.entry(here.oid).or_insert_with(|| planted.clone());
        at = here.parent.and_then(|parent| facts.relations.iter().find(|r| r.oid == parent));
    }
}

/// Recipes that satisfy the CHECKs, as far as can be told without inserting.
async fn plan(admin: &mut Admin, facts: &Facts, relation: &Relation, side: &Side, mode: Mode) -> Result<Vec<Recipe>, String> {
    let mut fixed: BTreeMap<String, Pick> = BTreeMap::new();
    for column in &relation.columns {
        let of_tenant = column.default.as_ref().is_some_and(|default| default.contains("current_tenant()"));
        if relation.tenant.as_ref() == Some(&column.name) || of_tenant {
            fixed.insert(column.name.clone(), Pick::Tenant);
        }
    }
    for key in &relation.foreign {
        refer(admin, facts, relation, side, key, mode, &mut fixed).await?;
    }
    let (mut recipe, mut open) = (Recipe::new(), Vec::new());
    for column in relation.columns.iter().filter(|column| !column.generated) {
        let drawn = column.is_drawn();
        let defaulted = column.default.is_some() && !drawn;
        if let Some(pick) = fixed.get(&column.name) {
            recipe.push((column.name.clone(), pick.clone()));
        } else if mode == Mode::Bare && !column.not_null && !drawn {
            recipe.push((column.name.clone(), Pick::Null));
        } else if !(defaulted && mode != Mode::Full) {
            open.push(column.name.clone());
        }
    }
    let mut plans = vec![recipe];
    for group in groups(relation, &open) {
        let solutions = solve(admin, facts, relation, side, &group, &fixed).await?;
        // All solutions for one group, the best ones of the others.
        let mut wider = Vec::new();
        for (nth, solution) in solutions.iter().enumerate() {
            for plan in plans.iter().take(if nth == 0 { TRIES } else { 1 }) {
                wider.push(plan.iter().cloned().chain(solution.iter().cloned()).collect());
            }
        }
        plans = wider;
    }
    Ok(plans)
}

/// Takes a foreign key's values from its parent.
async fn refer(
    admin: &mut Admin,
    facts: &Facts,
    relation: &Relation,
    side: &Side,
    key: &ForeignKey,
    mode: Mode,
    fixed: &mut BTreeMap<String, Pick>,
) -> Result<(), String> {
    let own: Vec<(&String, &String)> = key.columns.iter().zip(&key.targets).filter(|(column, _)| !fixed.contains_key(*column)).collect();
    let Some(target) = facts.relations.iter().find(|r| r.oid == key.target).filter(|_| !own.is_empty()) else { return Ok(()) };
    let optional = own.iter().any(|(column, _)| relation.column(column).is_some_and(|column| !column.not_null));
    let to_self = is_or_is_under(facts, relation, target.oid);
    if optional && (to_self || mode == Mode::Bare) {
        fixed.extend(own.iter().map(|(column, _)| ((*column).clone(), Pick::Null)));
    } else if to_self {
        // Not yet planted: the row refers to itself, so both columns take the same candidate.
        for (column, target) in own {
            let first = offers(facts, relation, target, side, 0).into_iter().next();
            let Some(first) = first else { return Err(format!("it must refer to itself by {column}")) };
            fixed.insert(column.clone(), Pick::Fixed(first.clone()));
            fixed.insert(target.clone(), Pick::Fixed(first));
        }
    } else if target.tenant.is_some() {
        if side.row(target.oid).is_some() {
            fixed.extend(own.into_iter().map(|(column, of)| (column.clone(), Pick::From(target.oid, of.clone()))));
        } else if optional {
            fixed.extend(own.into_iter().map(|(column, _)| (column.clone(), Pick::Null)));
        } else {
            return Err(format!("{} has no row to refer to", target.sql));
        }
    } else {
        let texts: Vec<_> = own.iter().map(|(_, of)| format!("{of}::text")).collect();
        let any = format!("select {} from {} limit 1", texts.join(", "), target.sql);
        let rows = admin.run_as_any(false, &any).await.unwrap_or_default();
        for (i, (column, of)) in own.into_iter().enumerate() {
            match rows.first().and_then(|row| row.try_get::<String, _>(i).ok()) {
                Some(text) => fixed.insert(column.clone(), Pick::Fixed(typed(facts, target, of, &text))),
                None if optional => fixed.insert(column.clone(), Pick::Null),
                None => return Err(format!("{} is empty, and a row must refer to it", target.sql)),
            };
        }
    }
    Ok(())
}

/// The columns, in groups that share CHECKs.
fn groups(relation: &Relation, open: &[String]) -> Vec<BTreeSet<String>> {
    let mut groups: Vec<BTreeSet<String>> = open.iter().map(|column| BTreeSet::from([column.clone()])).collect();
    for check in &relation.checks {
        let (touched, mut rest): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| !group.is_disjoint(&check.columns));
        let joined: BTreeSet<String> = touched.into_iter().flatten().collect();
        if !joined.is_empty() {
            rest.push(joined);
        }
        groups = rest;
    }
    groups
}

/// Picks for a group of columns that satisfy its CHECKs, best first.
async fn solve(
    admin: &mut Admin,
    facts: &Facts,
    relation: &Relation,
    side: &Side,
    group: &BTreeSet<String>,
    fixed: &BTreeMap<String, Pick>,
) -> Result<Vec<Recipe>, String> {
    let checks: Vec<_> = relation.checks.iter().filter(|check| !check.columns.is_disjoint(group)).collect();
    let most = if group.len() < 2 { 200 } else { (COMBINATIONS as f64).powf(1.0 / group.len() as f64) as usize };
    let (mut lists, mut picks) = (Vec::new(), Vec::new());
    for (k, column) in group.iter().enumerate() {
        let offers = offers(facts, relation, column, side, 0);
        let mut good = Vec::new();
        for (i, offer) in offers.iter().enumerate() {
            // Casts and domains refuse by an error, so each is asked alone.
            if admin.holds(&format!("select {offer}")).await {
                good.push(i);
            }
            if good.len() >= if checks.is_empty() { 3 } else { most.max(2) } {
                break;
            }
        }
        let optional = relation.column(column).is_some_and(|column| !column.not_null);
        if good.is_empty() && !optional {
            return Err(format!("no value is known for {column}"));
        }
        let ty = relation.column(column).and_then(|c| facts.types.get(&c.ty)).map_or("pg_catalog.text", |ty| ty.sql.as_str());
        let mut values: Vec<_> = good.iter().map(|i| format!("({i}, {})", offers[*i])).collect();
        if optional {
            values.push(format!("(100000, null::{ty})"));
        }
        lists.push(format!("(values {}) t{k}(i{k}, {column})", values.join(", ")));
        picks.push(column.clone());
    }
    // Columns that are settled already, but that a CHECK compares with.
    for (k, column) in checks.iter().flat_map(|check| &check.columns).collect::<BTreeSet<_>>().into_iter().enumerate() {
        if group.contains(column) {
            continue;
        }
        let pick = fixed.get(column).cloned().unwrap_or(Pick::Null);
        let value = render(facts, relation, &vec![(column.clone(), pick)], side, 0).remove(0).1;
        let ty = relation.column(column).and_then(|c| facts.types.get(&c.ty)).map_or("pg_catalog.text", |ty| ty.sql.as_str());
        lists.push(format!("(select ({value})::{ty}) f{k}({column})"));
    }
    let conditions: Vec<_> = checks.iter().map(|check| format!("coalesce(({}), true)", check.sql)).collect();
    let numbers: Vec<_> = (0..picks.len()).map(|k| format!("i{k}")).collect();
    let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
    let sql = format!(
        "select {} from {} where {condition} order by {} limit {TRIES}",
        numbers.iter().map(|n| format!("{n}::text")).collect::<Vec<_>>().join(", "),
        lists.join(", "),
        numbers.join(" + ")
    );
    let Ok(rows) = admin.run(None, &sql).await else {
        // A CHECK that can't be asked this way: let the INSERT say.
        return Ok(vec![picks.into_iter().map(|column| (column, Pick::Candidate(0))).collect()]);
    };
    let solution = |row: &PgRow| {
        let nth = |k: usize| row.try_get::<String, _>(k).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
        let pick = |i: usize| if i == 100_000 { Pick::Null } else { Pick::Candidate(i) };
        picks.iter().enumerate().map(|(k, column)| (column.clone(), pick(nth(k)))).collect()
    };
    if rows.is_empty() {
        return Err(format!("no value was found that the CHECKs on {} accept", picks.join(", ")));
    }
    Ok(rows.iter().map(solution).collect())
}

/// What of these tenants is in which table: a text that changes when a row does.
pub(super) async fn fingerprint(admin: &mut Admin, facts: &Facts, tenant: &str) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for relation in facts.relations.iter().filter(|r| r.kind == "r") {
        let Some(column) = &relation.tenant else { continue };
        let sql = format!(
            "select coalesce(md5(string_agg(x::text, '|' order by x::text)), '') from only {} x where x.{column}::text = '{tenant}'",
            relation.sql
        );
        // What can't be read can't be compared.
        if let Ok(rows) = admin.run_as_any(relation.planter, &sql).await {
            let print = rows.first().map(|row| row.try_get(0)).transpose().map_err(from_sqlx)?;
            all.insert(relation.sql.clone(), print.unwrap_or_default());
        }
    }
    Ok(all)
}

/// Removes all rows of these tenants, and the tenants. Returns what could not be removed.
pub(super) async fn remove(admin: &mut Admin, facts: &Facts, tenants: &[String]) -> Vec<String> {
    let list = tenants.iter().map(|tenant| format!("'{tenant}'")).collect::<Vec<_>>().join(", ");
    let (order, cyclic) = in_order(facts);
    let mut left: Vec<(String, String, bool)> = order
        .into_iter()
        .chain(cyclic)
        .rev()
        .filter_map(|r| Some((r.sql.clone(), format!("x.{}::text in ({list})", r.tenant.as_ref()?), r.planter)))
        .collect();
    left.push(("tenancy.audit_events".to_owned(), format!("x.tenant_id in ({list})"), false));
    left.push(("tenancy.tenants".to_owned(), format!("x.id in ({list})"), false));
    // Children may stand in the way of their parents, in cycles too: once more while it helps.
    loop {
        let before = left.len();
        let mut still = Vec::new();
        for (table, condition, planter) in left {
            let gone = admin.run_as_any(planter, &format!("delete from {table} x where {condition}")).await.is_ok();
            let count = admin.run_as_any(planter, &format!("select count(*)::text from {table} x where {condition}")).await;
            let none = count.is_ok_and(|rows| rows.first().is_some_and(|row| row.try_get::<String, _>(0).is_ok_and(|n| n == "0")));
            if !(gone && none) {
                still.push((table, condition, planter));
            }
        }
        left = still;
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    left.into_iter().map(|(table, ..)| table).collect()
}

/// Fills the materialized views that the application may read and that are empty, so that what they would keep shows. Returns those it
/// filled, to be refreshed once more when the canaries are gone.
pub(super) async fn refresh_empty(admin: &mut Admin, facts: &Facts) -> Vec<String> {
    let mut filled = Vec::new();
    for view in facts.relations.iter().filter(|r| r.kind == "m" && r.select && facts.stored.contains(&r.oid)) {
        let count = format!("select count(*)::text from (select from {} limit 1) x", view.sql);
        let empty = admin
            .run_as_any(false, &count)
            .await
            .is_ok_and(|rows| rows.first().is_some_and(|row| row.try_get(0).is_ok_and(|n: String| n == "0")));
        if empty && refresh(admin, &view.sql).await {
            filled.push(view.sql.clone());
        }
    }
    filled
}

/// Refreshes a materialized view.
pub(super) async fn refresh(admin: &mut Admin, view: &str) -> bool {
    admin.run_as_any(false, &format!("refresh materialized view {view}")).await.is_ok()
}

/// The tenants of probes that did not come to their end.
pub(super) async fn abandoned(admin: &mut Admin, name: &str) -> Result<Vec<String>> {
    let sql = format!(
        "select id::text from tenancy.tenants where name = '{name}' and slug like 'probe-%' and created_at < now() - interval '1 hour'"
    );
    let rows = admin.run_as_any(true, &sql).await.map_err(from_sqlx)?;
    rows.iter().map(|row| row.try_get(0).map_err(from_sqlx)).collect()
}
