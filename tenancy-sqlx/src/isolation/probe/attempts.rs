//! What a tenant tries against another's rows, table by table.
//!
//! Three tenants take part: the attacker, with rows of its own; the victim; and one without any row, so that whatever *it* touches
//! belongs to somebody else. Every attempt is a transaction of its own, which is rolled back.

use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Either, Executor, Postgres, Row};
use tenancy_core::{Result, TenantContext};

use super::facts::{Facts, ForeignKey, Function, Relation};
use super::plant::{Recipes, Side, insert};
use super::report::{Crossing, Kind};
use super::values::quote;
use crate::db::TenantDb;
use crate::error::from_sqlx;

/// At the head of each attempt, so that none waits for a lock or runs for long.
pub(super) const LIMITS: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '15s';";
/// Calls of one function.
const CALLS: usize = 24;

const READ: Kind = Kind {
    name: "a read",
    rules: &[
        "rls-off",
        "partition-unprotected",
        "child-unprotected",
        "fence-missing",
        "fence-not-restrictive",
        "fence-one-command",
        "fence-role-list",
        "fence-wrong-column",
        "fence-text",
        "policy-open",
        "policy-permissive-other",
        "policy-null-is-global",
        "policy-subquery",
        "policy-other-setting",
    ],
};
const VIEW: Kind = Kind { name: "a read of a view", rules: &["view-bypasses", "view-definer-nested", "view-definer", "foreign-table"] };
const STORED: Kind = Kind { name: "a read of a materialized view", rules: &["materialized-view"] };
const FUNCTION: Kind = Kind { name: "a function's answer", rules: &["function-definer-bypasses", "function-definer"] };
const FUNCTION_WRITE: Kind = Kind { name: "a function's write", rules: &["function-definer-bypasses", "function-definer"] };
const LEAKPROOF: Kind = Kind { name: "a function before the policy", rules: &["function-leakproof"] };
const UPDATE: Kind = Kind { name: "an update", rules: WRITES };
const DELETE: Kind = Kind { name: "a delete", rules: WRITES };
const INSERT: Kind = Kind { name: "an insert", rules: WRITES };
const MOVE: Kind = Kind { name: "a move of a row", rules: WRITES };
const TRUNCATE: Kind = Kind { name: "truncate", rules: &["grant-truncate"] };
const KEY: Kind = Kind { name: "a key", rules: &["primary-key-without-tenant", "unique-without-tenant", "exclusion-without-tenant"] };
const REFERENCE: Kind =
    Kind { name: "a foreign key", rules: &["foreign-key-without-tenant", "foreign-key-misaligned", "foreign-key-from-global"] };
const CASCADE: Kind = Kind { name: "a foreign key that cascades", rules: &["foreign-key-cascade-crosses", "foreign-key-without-tenant"] };
const WRITES: &[&str] = &[
    "rls-off",
    "check-weaker-than-using",
    "partition-unprotected",
    "child-unprotected",
    "fence-one-command",
    "fence-missing",
    "fence-not-restrictive",
    "fence-role-list",
    "fence-wrong-column",
    "fence-text",
    "policy-open",
];

/// What the server said to an attempt.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The last row's first column, if it is a number.
    pub(super) number: Option<i64>,
    pub(super) lines: Vec<String>,
    pub(super) affected: u64,
    /// SQLSTATE and the constraint's name.
    pub(super) error: Option<(String, Option<String>)>,
}

impl Reply {
    pub(super) fn count(&self) -> i64 {
        self.number.unwrap_or_default()
    }

    pub(super) fn failed_with(&self, states: &[&str]) -> bool {
        self.error.as_ref().is_some_and(|(state, _)| states.contains(&state.as_str()))
    }

    /// Row-level security lets a write through before constraints are looked at.
    fn got_past_the_policies(&self) -> bool {
        let out_of_partition = self.error.as_ref().is_some_and(|(state, constraint)| state == "23514" && constraint.is_none());
        (self.error.is_none() && self.affected > 0) || self.failed_with(&["23505", "23503", "23P01"]) || out_of_partition
    }
}

/// Runs statements that we wrote.
pub(super) async fn ask<'c, E: Executor<'c, Database = Postgres>>(executor: E, sql: String) -> Result<Reply> {
    let mut reply = Reply::default();
    let mut steps = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(executor);
    loop {
        match steps.try_next().await {
            Ok(Some(Either::Left(done))) => reply.affected = done.rows_affected(),
            Ok(Some(Either::Right(row))) => reply.note(&row),
            Ok(None) => return Ok(reply),
            Err(sqlx::Error::Database(db)) => {
                reply.error = Some((db.code().unwrap_or_default().into_owned(), db.constraint().map(ToOwned::to_owned)));
                return Ok(reply);
            }
            Err(error) => return Err(from_sqlx(error)),
        }
    }
}

impl Reply {
    fn note(&mut self, row: &PgRow) {
        self.number = row.try_get::<i64, _>(0).ok().or(self.number);
        self.lines.extend(row.try_get::<String, _>(0).ok());
    }
}

/// The cast and the stage.
#[derive(Debug)]
pub(super) struct Prober<'a> {
    pub(super) db: &'a TenantDb,
    pub(super) facts: &'a Facts,
    pub(super) recipes: &'a Recipes,
    pub(super) attacker: (&'a TenantContext, &'a Side),
    pub(super) victim: (&'a TenantContext, &'a Side),
    pub(super) empty: (&'a TenantContext, &'a Side),
    pub(super) crossed: Vec<Crossing>,
    pub(super) attempts: u64,
}

impl Prober<'_> {
    /// One attempt, in a transaction of `cx`'s tenant that is rolled back.
    pub(super) async fn attempt(&mut self, cx: &TenantContext, sql: &str) -> Result<Reply> {
        self.attempts += 1;
        let mut tx = self.db.begin(cx).await?;
        let reply = ask(&mut tx, format!("{LIMITS} {sql}")).await;
        // A connection that was lost on the way needs no rollback.
        let _ = tx.rollback().await;
        reply
    }

    pub(super) fn crossed(&mut self, kind: &'static Kind, relation: &Relation, sql: &str, evidence: impl Into<String>) {
        let (schema, object) = (Some(relation.schema.clone()), relation.name.clone());
        self.crossed.push(Crossing { kind, schema, object, sql: sql.to_owned(), evidence: evidence.into() });
    }

    /// All attempts against tables, views and functions.
    pub(super) async fn run(&mut self) -> Result<()> {
        let facts = self.facts;
        for relation in &facts.relations {
            match relation.tenant.as_deref() {
                Some(tenant) => self.table(relation, tenant).await?,
                None => self.view(relation).await?,
            }
        }
        for function in &facts.functions {
            if function.leakproof {
                self.leakproof(function).await?;
            } else {
                self.function(function).await?;
            }
        }
        self.catalog().await
    }

    async fn table(&mut self, relation: &Relation, tenant: &str) -> Result<()> {
        self.reads(relation, tenant).await?;
        self.keyed_writes(relation, tenant).await?;
        self.blind_writes(relation, tenant).await?;
        self.inserts(relation, tenant).await?;
        for key in &relation.foreign {
            self.reference(relation, tenant, key).await?;
        }
        if relation.truncate {
            let sql = format!("truncate {}", relation.sql);
            let reply = self.attempt(self.empty.0, &sql).await?;
            // Privileges are looked at before locks and references.
            if reply.error.is_none() || reply.failed_with(&["55P03", "0A000"]) {
                self.crossed(&TRUNCATE, relation, &sql, "empties the table for every tenant");
            }
        }
        Ok(())
    }

    async fn reads(&mut self, relation: &Relation, tenant: &str) -> Result<()> {
        let (attacker, victim) = (self.attacker.0, &self.victim.1.marks);
        let (table, their) = (&relation.sql, format!("'{}'", victim.tenant));
        let marked = victim.seen_in(&relation.readable_text());
        let reads = [
            ("rows of another tenant came with all rows", format!("select count(*) from {table} x where {marked}")),
            ("rows of another tenant came by its id", format!("select count(*) from {table} x where x.{tenant} = {their}")),
            (
                "rows of another tenant joined",
                format!("select count(*) from (values ({their})) v(id) join {table} x on x.{tenant}::text = v.id"),
            ),
            (
                "another tenant's id is the greatest",
                format!(
                    "select count(*) from (select max(x.{tenant}::text) m, min(x.{tenant}::text) n from {table} x) y where {their} in (m, n)"
                ),
            ),
            (
                "rows of another tenant were locked",
                format!("select count(*) from (select from {table} x where x.{tenant} = {their} for update) y"),
            ),
        ];
        for (evidence, sql) in reads {
            if self.attempt(attacker, &sql).await?.count() > 0 {
                self.crossed(&READ, relation, &sql, evidence);
            }
        }
        // What the tenant without rows sees is somebody's, also where no canary could be planted.
        let any = format!("select count(*) from (select from {table} limit 1) x");
        if self.attempt(self.empty.0, &any).await?.count() > 0 {
            self.crossed(&READ, relation, &any, "a tenant that has no row sees some");
        }
        Ok(())
    }

    async fn keyed_writes(&mut self, relation: &Relation, tenant: &str) -> Result<()> {
        let (attacker, table) = (self.attacker.0, &relation.sql);
        let (mine, their) = (&self.attacker.1.marks.tenant, &self.victim.1.marks.tenant);
        let (column, value) = self.harmless(relation, tenant);
        let attempts = [
            (&UPDATE, "rows of another tenant were changed", format!("update {table} set {column} = {value} where {tenant} = '{their}'")),
            (&DELETE, "rows of another tenant were deleted", format!("delete from {table} where {tenant} = '{their}'")),
            (&MOVE, "a row was given to another tenant", format!("update {table} set {tenant} = '{their}' where {tenant} = '{mine}'")),
        ];
        for (kind, evidence, sql) in attempts {
            if self.attempt(attacker, &sql).await?.got_past_the_policies() {
                self.crossed(kind, relation, &sql, evidence);
            }
        }
        Ok(())
    }

    /// Statements that read no column, so that only the policies of their own command apply; by the tenant without rows.
    async fn blind_writes(&mut self, relation: &Relation, tenant: &str) -> Result<()> {
        let (table, id) = (&relation.sql, &self.empty.1.marks.tenant);
        let (column, value) = self.harmless(relation, tenant);
        let attempts = [
            (&UPDATE, format!("update {table} set {column} = {value}")),
            (&UPDATE, format!("update {table} set {tenant} = '{id}'")),
            (&DELETE, format!("delete from {table}")),
        ];
        for (kind, sql) in attempts {
            let reply = self.attempt(self.empty.0, &sql).await?;
            // With no row of its own, nothing can be hit, nor fail.
            if reply.affected > 0 || reply.failed_with(&["23502", "23503", "23505", "23514", "23P01"]) {
                self.crossed(kind, relation, &sql, "a tenant that has no row reached some");
            }
        }
        Ok(())
    }

    /// A column to set, and a value that it takes.
    fn harmless(&self, relation: &Relation, tenant: &str) -> (String, String) {
        let keyed = |name: &String| {
            relation.keys.iter().any(|key| key.contains(name)) || relation.foreign.iter().any(|key| key.columns.contains(name))
        };
        let plain = relation.columns.iter().find(|c| c.update && !c.generated && !c.identity && c.name != tenant && !keyed(&c.name));
        let value = |name: &str| self.attacker.1.literal(self.facts, relation, name);
        let settled = plain.and_then(|column| Some((column.name.clone(), value(&column.name)?)));
        settled.unwrap_or_else(|| (tenant.to_owned(), format!("'{}'", self.attacker.1.marks.tenant)))
    }

    async fn inserts(&mut self, relation: &Relation, tenant: &str) -> Result<()> {
        let (attacker, victim) = (self.attacker, self.victim);
        let Some(theirs) = self.recipes.row(self.facts, relation, victim.1, 5) else { return Ok(()) };
        let defaulted =
            |name: &String| name != tenant && relation.column(name).is_some_and(|column| column.default.is_some() && !column.is_drawn());
        let short: Vec<_> = theirs.iter().filter(|(name, _)| !defaulted(name)).cloned().collect();
        for values in [theirs, short] {
            let sql = insert(relation, &values);
            if self.attempt(attacker.0, &sql).await?.got_past_the_policies() {
                self.crossed(&INSERT, relation, &sql, "a row was added to another tenant");
            }
        }
        // The victim's row again, but as one of the tenant without rows: any conflict is with the victim.
        let Some(row) = victim.1.row(relation.oid) else { return Ok(()) };
        let twin = |name: &String| {
            if name == tenant { Some(format!("'{}'", self.empty.1.marks.tenant)) } else { victim.1.literal(self.facts, relation, name) }
        };
        let own_tenant = |c: &&super::facts::Column| !c.generated && row.contains_key(&c.name);
        let values: Vec<_> = relation.columns.iter().filter(own_tenant).filter_map(|c| Some((c.name.clone(), twin(&c.name)?))).collect();
        let sql = insert(relation, &values);
        if self.attempt(self.empty.0, &format!("{sql}; set constraints all immediate")).await?.failed_with(&["23505", "23P01"]) {
            self.crossed(&KEY, relation, &sql, "a conflict tells that another tenant has this value");
        }
        let upsert = format!("{sql} on conflict do nothing");
        let reply = self.attempt(self.empty.0, &upsert).await?;
        if reply.error.is_none() && reply.affected == 0 {
            self.crossed(&KEY, relation, &upsert, "a row that was not added tells that another tenant has this value");
        }
        Ok(())
    }

    /// The attacker's row, with a parent of the victim's.
    async fn reference(&mut self, relation: &Relation, tenant: &str, key: &ForeignKey) -> Result<()> {
        let (attacker, victim) = (self.attacker, self.victim);
        let parent = self.facts.relations.iter().find(|r| r.oid == key.target).filter(|r| r.tenant.is_some());
        let Some(parent) = parent else { return Ok(()) };
        let mut theirs = Vec::new();
        for (column, target) in key.columns.iter().zip(&key.targets).filter(|(column, _)| column.as_str() != tenant) {
            let (Some(mine), Some(their)) = (attacker.1.literal(self.facts, parent, target), victim.1.literal(self.facts, parent, target))
            else {
                return Ok(());
            };
            // The same value is no foreign one.
            if mine != their && their != "null" {
                theirs.push((column.clone(), their));
            }
        }
        if theirs.is_empty() {
            return Ok(());
        }
        let kind = if matches!(key.action.as_str(), "c" | "n" | "d") { &CASCADE } else { &REFERENCE };
        let set: Vec<_> = theirs.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let mut attempts = vec![format!("update {} set {} where {tenant} = '{}'", relation.sql, set.join(", "), attacker.1.marks.tenant)];
        if let Some(row) = self.recipes.row(self.facts, relation, attacker.1, 6) {
            let swapped = row.into_iter().map(|(name, value)| {
                let other = theirs.iter().find(|(column, _)| *column == name).map(|(_, value)| value.clone());
                (name, other.unwrap_or(value))
            });
            attempts.push(insert(relation, &swapped.collect::<Vec<_>>()));
        }
        for sql in attempts {
            let reply = self.attempt(attacker.0, &format!("{sql}; set constraints all immediate")).await?;
            // SET CONSTRAINTS says nothing of rows: without an error, what is before it was done.
            if reply.error.is_none() && self.attempt(attacker.0, &sql).await?.affected > 0 {
                self.crossed(kind, relation, &sql, format!("{} accepts a row of another tenant, and so tells that it exists", key.name));
            }
        }
        Ok(())
    }

    /// A view, a materialized view, a foreign table, or a table without a tenant.
    async fn view(&mut self, relation: &Relation) -> Result<()> {
        if !relation.select {
            return Ok(());
        }
        let (attacker, victim) = (self.attacker, self.victim);
        let kind = if relation.kind == "m" { &STORED } else { &VIEW };
        let marked = victim.1.marks.seen_in(&relation.readable_text());
        let sql = format!("select count(*) from {} x where {marked}", relation.sql);
        if self.attempt(attacker.0, &sql).await?.count() > 0 {
            self.crossed(kind, relation, &sql, "rows of another tenant are in it");
        }
        if self.facts.stored.contains(&relation.oid) {
            let any = format!("select count(*) from (select from {} limit 1) x", relation.sql);
            if self.attempt(self.empty.0, &any).await?.count() > 0 {
                self.crossed(kind, relation, &any, "it keeps rows of tenants' tables, and a tenant that has no row sees some");
            }
        }
        if relation.kind == "v" {
            let sql = format!("delete from {} x where {marked}", relation.sql);
            if self.attempt(attacker.0, &sql).await?.affected > 0 {
                self.crossed(kind, relation, &sql, "rows of another tenant were deleted through it");
            }
        }
        Ok(())
    }

    /// A function with its owner's rights: by its answer, or by what it changes, as the tenant without rows.
    async fn function(&mut self, function: &Function) -> Result<()> {
        let victim = self.victim.1;
        for arguments in calls(&function.arguments, victim) {
            // A function that answers what it was asked has told nothing.
            let echoes = arguments.iter().fold("x::text".to_owned(), |text, argument| format!("replace({text}, {}, '')", quote(argument)));
            let literals: Vec<_> = arguments.iter().map(|argument| quote(argument)).collect();
            let call = format!("{}({})", function.sql, literals.join(", "));
            let answer = format!("select count(*) from {call} x where {}", victim.marks.seen_in(&echoes));
            let (schema, object) = (Some(function.schema.clone()), function.object.clone());
            if self.attempt(self.empty.0, &answer).await?.count() > 0 {
                let evidence = "another tenant's rows are in the answer".to_owned();
                self.crossed.push(Crossing { kind: &FUNCTION, schema, object, sql: answer, evidence });
                break;
            }
            // PostgreSQL counts what this transaction did to each table.
            let tables = self.facts.relations.iter().filter(|r| r.tenant.is_some()).map(|r| r.oid.to_string());
            let tables: Vec<_> = ["0".to_owned()].into_iter().chain(tables).collect();
            let counts = "pg_stat_get_xact_tuples_updated(oid) + pg_stat_get_xact_tuples_deleted(oid)";
            let write = format!(
                "select count(*) from {call} x; select coalesce(sum({counts}), 0)::bigint from pg_class where oid in ({})",
                tables.join(", ")
            );
            let reply = self.attempt(self.empty.0, &write).await?;
            if reply.error.is_none() && reply.count() > 0 {
                let evidence = "called by a tenant that has no row, it changed some".to_owned();
                self.crossed.push(Crossing { kind: &FUNCTION_WRITE, schema, object, sql: write, evidence });
                break;
            }
        }
        Ok(())
    }

    /// A cheap function that is trusted with hidden rows runs on them before the policy does: the plan shows the order.
    async fn leakproof(&mut self, function: &Function) -> Result<()> {
        let [argument] = function.arguments.as_slice() else { return Ok(()) };
        for relation in self.facts.relations.iter().filter(|r| r.tenant.is_some() && r.select) {
            let takes = |c: &&super::facts::Column| c.select && self.facts.types.get(&c.ty).is_some_and(|ty| ty.name == *argument);
            let Some(column) = relation.columns.iter().find(takes) else { continue };
            let name = function.sql.rsplit('.').next().unwrap_or_default();
            let no_index = "set local enable_indexscan = off; set local enable_bitmapscan = off; set local enable_indexonlyscan = off";
            let sql =
                format!("{no_index}; explain (costs off) select from {} x where {}(x.{}) is null", relation.sql, function.sql, column.name);
            let plan = self.attempt(self.attacker.0, &sql).await?.lines;
            let early = |line: &String| match (line.find(&format!("{name}(")), line.find("InitPlan").or_else(|| line.find("$0"))) {
                (Some(call), Some(policy)) => line.contains("Filter:") && call < policy,
                _ => false,
            };
            if plan.iter().any(early) {
                let (schema, object) = (Some(function.schema.clone()), function.object.clone());
                let evidence = "it is called with other tenants' values: in the plan it comes before the policy".to_owned();
                self.crossed.push(Crossing { kind: &LEAKPROOF, schema, object, sql, evidence });
                break;
            }
        }
        Ok(())
    }

    /// The kit's own tables.
    async fn catalog(&mut self) -> Result<()> {
        const TENANTS: Kind = Kind { name: "a read of the catalog", rules: &["catalog-open"] };
        const AUDIT: Kind = Kind { name: "a read of the audit log", rules: &["audit-open"] };
        const REWRITE: Kind = Kind { name: "a change of the audit log", rules: &["audit-mutable"] };
        let their = &self.victim.1.marks.tenant;
        let attempts = [
            (&TENANTS, "tenants", "tenants", format!("select count(*) from tenancy.tenants where id = '{their}'")),
            (&AUDIT, "audit_events", "events", format!("select count(*) from tenancy.audit_events where tenant_id = '{their}'")),
        ];
        for (kind, object, what, sql) in attempts {
            if self.attempt(self.attacker.0, &sql).await?.count() > 0 {
                let (schema, object) = (Some("tenancy".to_owned()), object.to_owned());
                self.crossed.push(Crossing { kind, schema, object, sql, evidence: format!("{what} of another tenant are seen") });
            }
        }
        let writes = [
            (&TENANTS, "tenants", format!("update tenancy.tenants set name = 'probed', version = version + 1 where id = '{their}'")),
            (&TENANTS, "tenants", format!("delete from tenancy.tenants where id = '{their}'")),
            (&REWRITE, "audit_events", "delete from tenancy.audit_events".to_owned()),
            (&REWRITE, "audit_events", "update tenancy.audit_events set target = 'probed'".to_owned()),
        ];
        for (kind, object, sql) in writes {
            if self.attempt(self.attacker.0, &sql).await?.affected > 0 {
                let (schema, object) = (Some("tenancy".to_owned()), object.to_owned());
                self.crossed.push(Crossing { kind, schema, object, sql, evidence: "rows were changed".to_owned() });
            }
        }
        Ok(())
    }
}

/// What to call a function with: the victim's ids, texts and numbers. None, where an argument is of another type.
fn calls(types: &[String], victim: &Side) -> Vec<Vec<String>> {
    let mut calls = vec![Vec::new()];
    for ty in types {
        let values: Vec<String> = match ty.as_str() {
            "uuid" => victim.marks.uuids().to_vec(),
            "text" | "varchar" | "bpchar" | "name" | "citext" => {
                victim.marks.texts().into_iter().chain(["".to_owned(), "%".to_owned()]).collect()
            }
            "int4" | "int8" | "numeric" => victim.marks.numbers().into_iter().chain(["1".to_owned(), "1000".to_owned()]).collect(),
            "int2" => vec!["1".to_owned()],
            "bool" => vec!["true".to_owned(), "false".to_owned()],
            "date" | "timestamp" | "timestamptz" => vec!["2001-01-01".to_owned(), "2999-01-01".to_owned()],
            "json" | "jsonb" => vec!["{}".to_owned()],
            _ => return Vec::new(),
        };
        calls = calls
            .iter()
            .flat_map(|call| values.iter().map(|value| [call.as_slice(), std::slice::from_ref(value)].concat()))
            .take(CALLS)
            .collect();
    }
    calls
}
