//! Random schemas with random rows and random damage: each tenant comes back to the last bit, and what a dry run told is what is done.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sqlx::{AssertSqlSafe, PgConnection};
use tenancy_core::TenantContext;
use tenancy_sqlx::backup::NewRestore;

use super::drilled::drill;
use crate::backup::{World, as_owner, digests};

const OWN: &str = "
    create type hue as enum ('red', 'green', 'blue');
    create type pair as (n int, word text);
    create domain even as int check (value % 2 = 0);
    create table lands (code text primary key);
    insert into lands select 'land ' || g from generate_series(1, 5) g;
    grant select on lands to tenancy_app;
    call tenancy.declare_global('lands', 'the same for all tenants')";

/// Of every kind; the first ones have an equality.
const TYPES: [&str; 30] = [
    "int",
    "smallint",
    "bigint",
    "numeric",
    "numeric(12,3)",
    "text",
    "varchar(40)",
    "boolean",
    "uuid",
    "bytea",
    "date",
    "timestamptz",
    "interval",
    "float8",
    "hue",
    "even",
    "inet",
    "int4range",
    "char(6)",
    "jsonb",
    "timestamp",
    "real",
    "int[]",
    "text[]",
    "hue[]",
    "numeric[]",
    "varchar(9)[]",
    "pair",
    "json",
    "point",
];
const WITH_EQUALITY: usize = 22;
const KEYS: [&str; 4] = ["uuid", "bigint", "text", "int, text"];

fn text(rng: &mut StdRng) -> String {
    let pieces = ["a", "B", "é", "''", "\\", "\n", "\t", " ", "{", "\"", ",", "NULL", "z", "日本", "0"];
    (0..rng.random_range(0..5)).map(|_| *pieces.choose(rng).expect("a piece")).collect()
}

/// A literal of this type.
fn value(rng: &mut StdRng, kind: &str) -> String {
    let n: i32 = rng.random_range(-9_999..9_999);
    let pick = |rng: &mut StdRng, of: &[&str]| (*of.choose(rng).expect("one")).to_owned();
    let inner = match kind {
        "int" | "smallint" => n.to_string(),
        "bigint" => rng.random::<i64>().to_string(),
        "numeric" | "real" | "float8" => pick(rng, &["NaN", "1.50", "1.5", "-0", "0.1", "123456789.123456789", "1e-7"]),
        "numeric(12,3)" => format!("{n}.{}", n.unsigned_abs() % 1000),
        "text" => text(rng),
        "varchar(40)" | "char(6)" => pick(rng, &["", "a", "ab ", "É", "x  y"]),
        "boolean" => rng.random::<bool>().to_string(),
        "uuid" => uuid::Uuid::from_u128(rng.random()).to_string(),
        "bytea" => format!("\\x{:x}", rng.random_range(0x10..0x100)),
        "date" => pick(rng, &["2026-01-02", "-infinity", "0044-03-15 BC", "1999-12-31"]),
        "timestamptz" | "timestamp" => pick(rng, &["2026-01-02 03:04:05.678901+02", "infinity", "1900-01-01 00:00", "0001-01-01 BC"]),
        "interval" => pick(rng, &["1 mon -2 days", "00:00:00.000001", "30 days", "1 mon", "-1 year 3:00"]),
        "hue" => pick(rng, &["red", "green", "blue"]),
        "even" => (n * 2).to_string(),
        "inet" => pick(rng, &["10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"]),
        "int4range" => pick(rng, &["[1,5)", "empty", "(,3]", "(,)"]),
        "jsonb" | "json" => pick(rng, &["{\"a\": [1, null, \"é\"]}", "{\"b\" :  1.0}", "null", "[]", "{\"b\":1.0,\"a\":2}"]),
        "int[]" => pick(rng, &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[2:3]={7,8}"]),
        "text[]" | "varchar(9)[]" => pick(rng, &["{}", "{\"\",NULL,\"NULL\"}", "{\"a,b\",\"\\\"\"}"]),
        "hue[]" => pick(rng, &["{}", "{red,NULL,blue}", "{{red},{green}}"]),
        "numeric[]" => pick(rng, &["{1.50,NaN}", "{1.5}", "{}"]),
        "pair" => pick(rng, &["(1,a)", "(,)", "(2,\"a \"\"b\"\", c\")"]),
        "point" => pick(rng, &["(1.5,-2)", "(0,0)"]),
        other => panic!("no value for {other}"),
    };
    format!("'{inner}'::{kind}")
}

pub(super) struct Table {
    pub(super) name: String,
    pub(super) key: Vec<&'static str>,
    /// Name, type, and whether it can be null.
    pub(super) columns: Vec<(String, &'static str, bool)>,
    /// Columns that refer to the key of the table with this number.
    refers: Vec<(String, usize)>,
    unique: Option<(String, &'static str)>,
    identity: bool,
    lands: bool,
}

impl Table {
    fn random(rng: &mut StdRng, n: usize) -> (Self, String) {
        let key = if rng.random_ratio(1, 6) { "" } else { KEYS.choose(rng).expect("a key") };
        let key: Vec<&str> = key.split(", ").filter(|kind| !kind.is_empty()).collect();
        let identity = key == ["bigint"] && rng.random();
        let mut sql = vec!["tenant_id uuid not null".to_owned()];
        for (at, kind) in key.iter().enumerate() {
            let how = if identity { " generated always as identity" } else { "" };
            sql.push(format!("k{at} {kind}{how}"));
        }
        let mut columns = Vec::new();
        for at in 0..rng.random_range(0..9) {
            let (kind, needed) = (*TYPES.choose(rng).expect("a type"), rng.random_ratio(1, 3));
            let default = if rng.random_ratio(1, 4) { format!(" default {}", value(rng, kind)) } else { String::new() };
            sql.push(format!("\"C {at}\" {kind}{}{default}", if needed { " not null" } else { "" }));
            columns.push((format!("\"C {at}\""), kind, !needed));
        }
        if rng.random_ratio(1, 3) {
            sql.push("made text generated always as (lower(base)) stored, base text".to_owned());
            columns.push(("base".to_owned(), "text", true));
        }
        let lands = rng.random_ratio(1, 3);
        if lands {
            sql.push("land text references lands (code)".to_owned());
        }
        if !key.is_empty() {
            let names: Vec<String> = (0..key.len()).map(|at| format!("k{at}")).collect();
            sql.push(format!("primary key (tenant_id, {})", names.join(", ")));
        }
        let equal = columns.iter().find(|column| TYPES[..WITH_EQUALITY].contains(&column.1));
        let unique = equal.filter(|_| rng.random()).map(|(name, kind, _)| (name.clone(), *kind));
        if let Some((name, _)) = &unique {
            sql.push(format!("unique (tenant_id, {name}){}", if rng.random() { " deferrable" } else { "" }));
        }
        let table = Self { name: format!("t{n}"), key, columns, refers: Vec::new(), unique, identity, lands };
        let made = format!("create table {} ({}); call tenancy.protect_table('{0}');", table.name, sql.join(", "));
        (table, made)
    }

    fn insert(&self, rng: &mut StdRng) -> String {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        if !self.identity {
            for (at, kind) in self.key.iter().enumerate() {
                names.push(format!("k{at}"));
                // Few values, so that rows come back after they went.
                values.push(if *kind == "uuid" { value(rng, kind) } else { format!("'{}'::{kind}", rng.random_range(0..60)) });
            }
        }
        for (name, kind, may_be_null) in &self.columns {
            match rng.random_range(0..5) {
                0 if *may_be_null => {
                    names.push(name.clone());
                    values.push("null".to_owned());
                }
                1 if *may_be_null => {}
                _ => {
                    names.push(name.clone());
                    values.push(value(rng, kind));
                }
            }
        }
        if self.lands {
            names.push("land".to_owned());
            values.push(format!("'land {}'", rng.random_range(1..6)));
        }
        if names.is_empty() {
            format!("insert into {} default values", self.name)
        } else {
            format!("insert into {} ({}) values ({})", self.name, names.join(", "), values.join(", "))
        }
    }

    /// One of its rows.
    fn some(&self, rng: &mut StdRng) -> String {
        format!("ctid = (select ctid from {} order by ctid limit 1 offset {})", self.name, rng.random_range(0..20))
    }

    fn change(&self, rng: &mut StdRng, all: &[Self]) -> Option<String> {
        if let Some((prefix, to)) = self.refers.choose(rng).filter(|_| rng.random()) {
            let to = &all[*to];
            let (here, there): (Vec<String>, Vec<String>) = (0..to.key.len()).map(|at| (format!("{prefix}{at}"), format!("k{at}"))).unzip();
            let one = format!("select {} from {} order by ctid limit 1 offset {}", there.join(", "), to.name, rng.random_range(0..15));
            return Some(format!("update {} set ({}) = ({one}) where {}", self.name, here.join(", "), self.some(rng)));
        }
        let (name, kind, may_be_null) = self.columns.choose(rng)?;
        let to = if *may_be_null && rng.random_ratio(1, 4) { "null".to_owned() } else { value(rng, kind) };
        Some(format!("update {} set {name} = {to} where {}", self.name, self.some(rng)))
    }

    /// Two rows whose unique values change places.
    fn swap(&self, rng: &mut StdRng) -> Option<Vec<String>> {
        let (name, kind) = self.unique.as_ref()?;
        let (table, first) = (&self.name, rng.random_range(0..10));
        // By way of a third value: no constraint sees two that are equal.
        Some(vec![format!(
            "do $do$ declare a text; b text; c text := {fresh}::text; begin
               select {name}::text into a from {table} order by ctid offset {first} limit 1;
               select {name}::text into b from {table} order by ctid offset {first} + 1 limit 1;
               update {table} set {name} = c::{kind} where {name}::text = a;
               update {table} set {name} = a::{kind} where {name}::text = b;
               update {table} set {name} = b::{kind} where {name}::text = c;
             end $do$",
            fresh = value(rng, kind)
        )])
    }
}

pub(super) fn schema(rng: &mut StdRng) -> (Vec<Table>, String) {
    let (mut tables, made): (Vec<Table>, Vec<String>) = (0..rng.random_range(1..7)).map(|n| Table::random(rng, n)).unzip();
    let mut sql = format!("{OWN}; {}", made.join(" "));
    // Also to itself, and in circles.
    for from in 0..tables.len() {
        for nth in 0..rng.random_range(0..3) {
            let to = rng.random_range(0..tables.len());
            if tables[to].key.is_empty() {
                continue;
            }
            let prefix = format!("r{nth}_");
            let columns: Vec<String> = tables[to].key.iter().enumerate().map(|(at, kind)| format!("{prefix}{at} {kind}")).collect();
            let names = |prefix: &str| (0..columns.len()).map(|at| format!("{prefix}{at}")).collect::<Vec<_>>().join(", ");
            let action = *["", " on delete cascade", " deferrable initially deferred"].choose(rng).expect("one");
            for column in &columns {
                sql += &format!("alter table t{from} add {column};");
            }
            sql += &format!(
                "alter table t{from} add foreign key (tenant_id, {}) references t{to} (tenant_id, {}){action};",
                names(&prefix),
                names("k")
            );
            tables[from].refers.push((prefix, to));
        }
    }
    (tables, sql)
}

/// Each statement for itself: what the schema doesn't let is left out.
async fn attempt(world: &World, cx: &TenantContext, statements: &[Vec<String>]) -> usize {
    let (mut did, mut tx) = (0, world.kit.db.begin(cx).await.expect("begin"));
    for group in statements {
        let mut part = tx.savepoint().await.expect("a savepoint");
        let mut changed = 0;
        let mut well = true;
        for sql in group {
            match sqlx::query(AssertSqlSafe(sql.clone())).execute(&mut *part).await {
                Ok(done) => changed += done.rows_affected(),
                Err(error) => {
                    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned();
                    assert!(["23", "22"].contains(&&code[..2]), "{sql}: {error}");
                    well = false;
                    break;
                }
            }
        }
        if well {
            // What is looked after at the commit is looked after now.
            well = sqlx::query("set constraints all immediate").execute(&mut *part).await.is_ok();
        }
        if well {
            part.release().await.expect("kept");
            did += usize::from(changed > 0);
        }
    }
    tx.commit().await.expect("commit");
    did
}

pub(super) async fn fill(world: &World, cx: &TenantContext, rng: &mut StdRng, tables: &[Table]) {
    let mut statements = Vec::new();
    for table in tables {
        statements.extend((0..rng.random_range(0..40)).map(|_| vec![table.insert(rng)]));
    }
    for table in tables {
        statements.extend((0..15).filter_map(|_| table.change(rng, tables)).map(|sql| vec![sql]));
    }
    attempt(world, cx, &statements).await;
}

async fn damage(world: &World, cx: &TenantContext, rng: &mut StdRng, tables: &[Table]) -> usize {
    let mut statements = Vec::new();
    for _ in 0..rng.random_range(5..60) {
        let table = tables.choose(rng).expect("a table");
        statements.extend(match rng.random_range(0..6) {
            0 => Some(vec![table.insert(rng)]),
            1 | 2 => Some(vec![format!("delete from {} where {}", table.name, table.some(rng))]),
            3 => table.swap(rng),
            _ => table.change(rng, tables).map(|sql| vec![sql]),
        });
    }
    attempt(world, cx, &statements).await
}

pub(super) type Seen = (BTreeMap<String, String>, Vec<Vec<u8>>);

pub(super) async fn seen(eye: &mut PgConnection, cx: &TenantContext, tables: &[Table]) -> Seen {
    let mut bytes = Vec::new();
    for table in tables {
        bytes.push(super::bytes_of(eye, &table.name, cx).await);
    }
    (digests(eye, Some(cx.tenant_id())).await, bytes)
}

async fn comes_back(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    let world = World::new().await;
    let (tables, sql) = schema(rng);
    as_owner(&world.kit, &sql).await;
    let mut eye = world.kit.superuser().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut of = Vec::new();
    for cx in [acme, globex] {
        fill(&world, cx, rng, &tables).await;
    }
    for cx in [acme, globex] {
        let backup = world.back_up(cx).await;
        of.push((cx, backup, seen(&mut eye, cx, &tables).await));
    }
    let mut damaged = 0;
    for cx in [acme, globex] {
        damaged += damage(&world, cx, rng, &tables).await;
    }
    assert!(damaged > 0, "seed {seed}: {sql}");
    for (cx, backup, was) in &of {
        let other = if cx.tenant_id() == acme.tenant_id() { globex } else { acme };
        let (before, others) = (seen(&mut eye, cx, &tables).await, seen(&mut eye, other, &tables).await);
        let drilled = drill(&world, cx, *backup).await;
        assert_eq!((drilled.state.as_str(), drilled.error), ("done", None), "seed {seed}: {sql}");
        let told = world.restore(cx, &NewRestore::new(*backup).dry_run()).await;
        assert_eq!(seen(&mut eye, cx, &tables).await, before, "seed {seed}: a drill and a dry run change nothing");
        let done = world.restore(cx, &NewRestore::new(*backup).without_backup()).await;
        assert_eq!(seen(&mut eye, cx, &tables).await, *was, "seed {seed}: {sql}");
        assert_eq!(seen(&mut eye, other, &tables).await, others, "seed {seed}: nobody else");
        for (table, counts) in done["tables"].as_object().expect("tables") {
            for how in ["removed", "changed", "added"] {
                assert_eq!(counts[how], told["tables"][table][how], "seed {seed}: {how} of {table}: {sql}");
            }
        }
        // It goes on where it was: what the schema holds of rows, it still holds.
        attempt(&world, cx, &tables.iter().map(|table| vec![table.insert(rng)]).collect::<Vec<_>>()).await;
    }
}

#[tokio::test]
async fn tenants_of_any_schema_come_back_to_the_last_bit() {
    let seeds = if std::env::var_os("TENANCY_NIGHTLY").is_some() { 200 } else { 12 };
    for seed in 0..seeds {
        eprintln!("seed {seed}"); // shown if it fails
        comes_back(seed).await;
    }
}

async fn comes_back_as_of_any_moment(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    let world = World::new().await;
    let (tables, sql) = schema(rng);
    as_owner(&world.kit, &format!("{sql}; call tenancy.journal_tables()")).await;
    let mut eye = world.kit.superuser().await;
    let acme = &world.kit.acme;
    fill(&world, acme, rng, &tables).await;
    let mut tx = world.kit.db.dangerous().begin_system("a test keeps a journal").await.expect("system");
    tx.keep_journal(acme.tenant_id(), 7).await.expect("kept");
    tx.commit().await.expect("commit");
    let mut moments = Vec::new();
    let mut backups = vec![world.back_up(acme).await];
    for n in 0..4 {
        damage(&world, acme, rng, &tables).await;
        let was = seen(&mut eye, acme, &tables).await;
        let at: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut eye).await.expect("a time");
        moments.push((at, was));
        if n == 2 {
            backups.push(world.back_up(acme).await);
        }
    }
    for (n, (at, was)) in moments.iter().enumerate() {
        let asked = NewRestore::new(backups[(n + 1) % 2]).with_as_of(*at);
        world.restore(acme, &asked.without_backup()).await;
        assert_eq!(seen(&mut eye, acme, &tables).await, *was, "seed {seed}, moment {n}: {sql}");
    }
}

#[tokio::test]
async fn tenants_of_any_schema_come_back_as_of_any_moment() {
    let seeds = if std::env::var_os("TENANCY_NIGHTLY").is_some() { 200 } else { 6 };
    for seed in 0..seeds {
        eprintln!("seed {seed}"); // shown if it fails
        comes_back_as_of_any_moment(1_000 + seed).await;
    }
}
