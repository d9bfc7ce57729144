//! A tenant as it was in any moment: by a backup and the journal of its rows' changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy_core::{ErrorKind, TenantContext};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::backup::NewRestore;

use crate::backup::{World, as_owner, digests, hard_world, run, vandalise};

/// What text or JSON may lose a bit of.
const EXACT: &str = "
    create type pair as (n int, word text);
    create table exact (tenant_id uuid not null, id int not null, amount numeric, price numeric(12,3), ratio float8, small real, blob bytea, at timestamptz, bare timestamp, pause interval,
      cash money, list int[], grid text[], moods mood[], two pair, doc json, place inet, fixed char(6), half int generated always as (id / 2) stored, primary key (tenant_id, id));
    create table customers (owner uuid not null, id int not null, name text, primary key (owner, id));
    call tenancy.protect_table('exact'); call tenancy.protect_table('customers', 'owner'); call tenancy.journal_tables()";

async fn keep(world: &World, cx: &TenantContext) {
    let mut tx = world.kit.db.dangerous().begin_system("a test keeps a journal").await.expect("system");
    tx.keep_journal(cx.tenant_id(), 7).await.expect("kept");
    tx.commit().await.expect("commit");
}

async fn end(world: &World, cx: &TenantContext) {
    let mut tx = world.kit.db.dangerous().begin_system("a test ends a journal").await.expect("system");
    tx.end_journal(cx.tenant_id()).await.expect("ended");
    tx.commit().await.expect("commit");
}

async fn now(eye: &mut PgConnection) -> DateTime<Utc> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(eye).await.expect("a time")
}

type Rows = (BTreeMap<String, String>, String);

/// What the tenant has, also in the table whose tenant's column has another name.
async fn seen(eye: &mut PgConnection, cx: &TenantContext) -> Rows {
    let customers = "select coalesce(string_agg(t::text, ',' order by id), '') from customers t where owner = $1";
    let customers = sqlx::query_scalar(customers).bind(cx.tenant_id().as_uuid()).fetch_one(&mut *eye).await.expect("customers");
    (digests(eye, Some(cx.tenant_id())).await, customers)
}

async fn number(eye: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(eye).await.expect(sql)
}

async fn journaled_world() -> World {
    let world = hard_world().await;
    as_owner(&world.kit, EXACT).await;
    for cx in [&world.kit.acme, &world.kit.globex] {
        keep(&world, cx).await;
    }
    world
}

/// A moment, and the rows of then.
async fn moment(eye: &mut PgConnection, cx: &TenantContext) -> (DateTime<Utc>, Rows) {
    let rows = seen(eye, cx).await;
    (now(eye).await, rows)
}

const STEPS: [&[&str]; 6] = [
    &[
        "insert into exact (id, amount, price, ratio, small, blob, at, bare, pause, cash, list, grid, moods, two, doc, place, fixed) values
           (1, 1.50, 2.5, 'NaN', '-0', '\\x00ff', 'infinity', '-infinity', '1 mon -2 days', '1234.56', '[2:3]={7,8}', '{{a,NULL},{\"\",\"NULL\"}}', '{sad,NULL}', '(1,\"a \"\"b\"\", c\")', '{\"b\" :  1.0}', '10.0.0.0/8', 'ab'),
           (2, 1.5, 0, '-0', '0.1', '', '0044-03-15 BC', '2026-01-02 03:04:05.678901', '-1 year 3:00', null, '{}', '{}', '{}', '(,)', 'null', '::1', ''),
           (3, 'NaN', null, 0.1, 1e-7, null, '2026-01-02 03:04:05.678901+02', null, null, '-0.01', null, null, null, null, null, null, null)",
        "insert into customers (id, name) select g, 'c' || g from generate_series(1, 20) g",
    ],
    &[
        "update exact set amount = 1.500, ratio = '0' where id = 2",
        "update exact set id = id + 10 where id = 3", // another key
        "update things set name = case name when 'one' then 'x' else 'one' end",
        "update things set name = 'two' where name = 'x'",
        "delete from customers where id < 5",
        "update customers set id = id + 100 where id > 15",
    ],
    &[
        "delete from exact where id = 1",
        "insert into exact (id, amount) values (1, 2)", // another row of the same key
        "delete from exact where id = 13",
        "delete from bare where word = 'same'",
        "insert into bare (word, n) values ('same', 1)",
        "update events set id = 15 where id = 5", // into another partition
        "update men set dog = null",
    ],
    // Settings of the session that a value's text depends on.
    &[
        "set local datestyle = 'SQL, DMY'",
        "set local extra_float_digits = -5",
        "set local bytea_output = 'escape'",
        "set local intervalstyle = 'sql_standard'",
        "set local timezone = 'Asia/Tokyo'",
        "insert into exact (id, ratio, blob, at, pause) values (7, 0.1234567890123456789, '\\x5c00', '2026-02-03 04:05:06.7', '1 year -3:00')",
        "update exact set amount = coalesce(amount, 0) + 0.00",
    ],
    // A row that comes, changes and goes in one transaction, and one that is as before.
    &[
        "insert into customers (id, name) values (500, 'short')",
        "update customers set name = 'shorter' where id = 500",
        "delete from customers where id = 500",
        "update customers set name = name",
        "insert into customers (id, name) values (501, 'a') on conflict (owner, id) do update set name = 'b'",
        "insert into customers (id, name) values (501, 'a') on conflict (owner, id) do update set name = 'b'",
    ],
    &["delete from comments", "delete from notes", "delete from exact", "delete from customers"],
];

#[tokio::test]
async fn a_tenant_comes_back_as_it_was_in_each_moment() {
    let world = journaled_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let first = world.back_up(acme).await;
    let mut moments = vec![moment(&mut eye, acme).await];
    for statements in STEPS {
        // One that is open meanwhile: what it wrote before the moment came after it.
        let mut open = world.kit.db.begin(acme).await.expect("begin");
        sqlx::query("insert into dogs (id, man) select max(id) + 1, 1 from dogs").execute(&mut open).await.expect("inserted");
        run(&world.kit, acme, statements).await;
        run(&world.kit, globex, statements).await;
        moments.push(moment(&mut eye, acme).await);
        open.commit().await.expect("commit");
        moments.push(moment(&mut eye, acme).await);
    }
    let last = world.back_up(acme).await;
    vandalise(&world, acme).await;
    moments.push(moment(&mut eye, acme).await);
    for two in moments.windows(2) {
        assert_ne!(two[0].1, two[1].1, "each moment is another one");
    }
    let journal = "select count(*) from tenancy.journal where tenant_id = $1";
    let count = async |eye: &mut PgConnection| -> i64 {
        sqlx::query_scalar(journal).bind(globex.tenant_id().as_uuid()).fetch_one(eye).await.expect("a count")
    };
    let others = (seen(&mut eye, globex).await, world.contents(globex).await, count(&mut eye).await);
    // From either backup, forth and back, and after restores that are in the journal themselves.
    for turn in 0..moments.len() {
        let (at, rows) = &moments[(turn * 5) % moments.len()];
        let asked = match turn % 3 {
            0 => NewRestore::as_of(*at),
            1 => NewRestore::new(first).with_as_of(*at),
            _ => NewRestore::new(last).with_as_of(*at),
        };
        let before = moment(&mut eye, acme).await;
        let told = world.restore(acme, &asked.clone().dry_run()).await;
        assert_eq!(seen(&mut eye, acme).await, before.1, "a dry run changes nothing");
        let done = world.restore(acme, &asked.without_backup()).await;
        assert_eq!(seen(&mut eye, acme).await, *rows, "turn {turn}, as of {at}");
        for (table, counts) in done["tables"].as_object().expect("tables") {
            for how in ["removed", "changed", "added"] {
                assert_eq!(counts[how], told["tables"][table][how], "turn {turn}: {how} of {table}");
            }
        }
        moments.push(before); // also such a moment
    }
    assert_eq!((seen(&mut eye, globex).await, world.contents(globex).await, count(&mut eye).await), others, "nobody else");
}
