//! A tenant as it was in any moment: by a backup and the journal of its rows' changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy_core::{Actor, ErrorKind, TenantCatalog as _, TenantChange, TenantContext, TenantStatus};
use tenancy_sqlx::backup::NewRestore;
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::{Isolation, TenantDb};

use super::kept::grow;
use crate::backup::{World, as_owner, digests, hard_world, run, vandalise};

/// What text or JSON may lose a bit of, and a trigger whose statements change the very rows that its own statement changes.
const EXACT: &str = "
    create type pair as (n int, word text);
    create table exact (tenant_id uuid not null, id int not null, amount numeric, price numeric(12,3), ratio float8, small real, blob bytea, at timestamptz, bare timestamp, pause interval,
      cash money, list int[], grid text[], moods mood[], two pair, doc json, place inet, fixed char(6), half int generated always as (id / 2) stored, primary key (tenant_id, id));
    create table customers (owner uuid not null, id int not null, name text, primary key (owner, id));
    create function again() returns trigger language plpgsql as 'begin update customers set name = name || ''!'' where owner = new.owner and name not like ''%!''; return null; end';
    create trigger again after insert or update on customers for each row execute function again();
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

/// Several writers at once, none of whom waits for another for long: they move amounts between rows, make some and remove some.
async fn write(db: TenantDb, cx: TenantContext, ids: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let n = ids.fetch_add(1, Ordering::Relaxed).cast_signed();
        let mut tx = db.begin(&cx).await.expect("begin");
        let early = n % 5 == 0;
        let statements = [
            format!("update customers set name = name || 'x' where id = {}", n % 7),
            "set constraints all immediate".to_owned(),
            format!("insert into customers (id, name) values ({}, 'new')", 1000 + n),
            format!("delete from customers where id = {}", 1000 + n / 2),
            format!("update customers set name = left(name, 3) where id = {}", (n + 1) % 7 + 10),
        ];
        for sql in statements.iter().filter(|sql| early || !sql.starts_with("set constraints")) {
            sqlx::query(AssertSqlSafe(sql.clone())).execute(&mut tx).await.expect("done");
            tokio::task::yield_now().await;
        }
        if n % 9 == 0 { tx.rollback().await.expect("undone") } else { tx.commit().await.expect("commit") }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_at_work_comes_back_as_everybody_saw_it_in_a_moment() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    run(&world.kit, acme, &["insert into customers (id, name) select g, 'c' || g from generate_series(0, 20) g"]).await;
    let mut eye = world.kit.superuser().await;
    let (ids, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(write(world.kit.db.clone(), acme.clone(), ids.clone(), stop.clone()))).collect();
    world.back_up(acme).await;
    let mut moments = Vec::new();
    while moments.len() < 4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        // For a moment nobody writes, so that a snapshot is of this moment and of no other: whoever has written waits for no one.
        eye.execute("begin; lock table customers in share row exclusive mode").await.expect("alone");
        let found = moment(&mut eye, acme).await;
        eye.execute("commit").await.expect("commit");
        moments.push(found);
        if moments.len() == 2 {
            world.back_up(acme).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it wrote");
    }
    assert!(ids.load(Ordering::Relaxed) > 40, "they wrote");
    for (at, rows) in moments.iter().rev() {
        world.restore(acme, &NewRestore::as_of(*at).without_backup()).await;
        assert_eq!(seen(&mut eye, acme).await, *rows, "as of {at}");
    }
}

#[tokio::test]
async fn the_time_of_a_commit_is_that_of_its_end_whatever_was_made_immediate() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    world.back_up(acme).await;
    let mut moments = Vec::new();
    for (n, statements) in [
        vec!["set constraints all immediate", "update customers set name = name"],
        vec!["insert into customers (id) values (1)", "set constraints all immediate"],
        vec!["set constraints all immediate", "insert into customers (id) values (2)", "set constraints all immediate"],
        vec![
            "savepoint s",
            "insert into customers (id) values (3)",
            "set constraints all immediate",
            "rollback to s",
            "insert into customers (id) values (4)",
        ],
    ]
    .iter()
    .enumerate()
    {
        let mut raw = PgConnection::connect(&world.kit.app_url()).await.expect("connected");
        raw.execute(AssertSqlSafe(format!("begin; set local tenancy.tenant_id = '{}'", acme.tenant_id()))).await.expect("begin");
        for sql in statements {
            raw.execute(*sql).await.expect(sql);
        }
        raw.execute(AssertSqlSafe(format!("insert into customers (id) values ({})", 100 + n))).await.expect("one more");
        raw.execute("set constraints all immediate").await.expect("set");
        moments.push(moment(&mut eye, acme).await); // none of it is there yet
        raw.execute("commit").await.expect("commit");
        moments.push(moment(&mut eye, acme).await);
    }
    for (at, rows) in &moments {
        world.restore(acme, &NewRestore::as_of(*at).without_backup()).await;
        assert_eq!(seen(&mut eye, acme).await, *rows, "as of {at}");
    }
    // The control: with the time of the first firing, which is not the commit's, a moment has what nobody saw then.
    eye.execute("alter table tenancy.journal_commits disable trigger journal_probe").await.expect("off");
    let mut raw = PgConnection::connect(&world.kit.app_url()).await.expect("connected");
    let begin = format!(
        "begin; set local tenancy.tenant_id = '{}'; insert into customers (id) values (900); set constraints all immediate",
        acme.tenant_id()
    );
    raw.execute(AssertSqlSafe(begin)).await.expect("begun");
    let (at, rows) = moment(&mut eye, acme).await;
    raw.execute("commit").await.expect("commit");
    world.restore(acme, &NewRestore::as_of(at).without_backup()).await;
    assert_ne!(seen(&mut eye, acme).await, rows);
}

#[tokio::test]
async fn what_the_journal_does_not_reach_is_refused_and_nothing_is_written() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let asked = async |restore: NewRestore| world.ask_restore(acme.tenant_id(), &restore).await.expect_err("refused").to_string();
    let before = world.back_up(acme).await;
    let early = now(&mut eye).await;
    assert!(asked(NewRestore::as_of(early)).await.contains("keeps no journal"));
    let mut tx = world.kit.db.dangerous().begin_system("a test keeps a journal").await.expect("system");
    let refused = tx.keep_journal(acme.tenant_id(), 7).await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("public.notes") && refused.to_string().contains("tenancy.journal_tables()"), "{refused}");
    drop(tx);
    as_owner(&world.kit, EXACT).await;
    let mut tx = world.kit.db.dangerous().begin_system("a test keeps a journal").await.expect("system");
    for days in [0, 367] {
        assert_eq!(tx.keep_journal(acme.tenant_id(), days).await.expect_err("refused").field(), Some("window_days"));
    }
    assert_eq!(tx.end_journal(acme.tenant_id()).await.expect_err("none").kind(), ErrorKind::NotFound);
    drop(tx);
    keep(&world, acme).await;
    let unborn = now(&mut eye).await;
    assert!(asked(NewRestore::as_of(unborn)).await.contains("no backup was taken since it does"));
    let base = world.back_up(acme).await;
    run(&world.kit, acme, &["insert into customers (id, name) values (1, 'a')", "update notes set body = 'b'"]).await;
    let at = now(&mut eye).await;
    run(&world.kit, acme, &["delete from customers", "delete from comments"]).await;
    let was = digests(&mut eye, None).await;

    let future = world.ask_restore(acme.tenant_id(), &NewRestore::as_of(at + chrono::TimeDelta::hours(1))).await;
    assert_eq!(future.expect_err("refused").field(), Some("as_of"));
    assert!(asked(NewRestore::as_of(early)).await.contains("goes back to"));
    assert_eq!(
        world.ask_restore(acme.tenant_id(), &serde_json::from_value(json!({})).expect("read")).await.expect_err("refused").field(),
        Some("backup")
    );
    assert!(world.ask_restore(globex.tenant_id(), &NewRestore::new(base).with_as_of(at)).await.is_err(), "another's backup");
    assert!(world.refused(acme, &NewRestore::new(before).with_as_of(at)).await.contains("taken without the journal"));
    let refused = async |restore: &NewRestore, why: &str| {
        let said = world.refused(acme, restore).await;
        assert!(said.contains(why), "{why}: {said}");
    };
    let restore = NewRestore::new(base).with_as_of(at).without_backup();

    // What nobody journaled: by other columns, a trigger that was away, and one that was taken away behind the kit's back.
    as_owner(&world.kit, "alter table customers add more int").await;
    refused(&restore, "public.customers has other columns").await;
    as_owner(&world.kit, "alter table customers drop more").await;
    world.restore(acme, &restore.clone().dry_run()).await;
    as_owner(&world.kit, "alter table customers disable trigger tenancy_journal_update").await;
    refused(&restore, "public.customers is not journaled").await;
    as_owner(&world.kit, "call tenancy.journal_table('customers')").await;
    refused(&restore, "public.customers was not journaled for a while").await;
    world.restore(acme, &restore.clone().dry_run().with_tables(["public.notes", "public.comments"])).await;
    as_owner(&world.kit, "alter table events detach partition events_2").await;
    refused(&restore.clone().with_tables(["public.events"]), "lost a part").await;
    as_owner(&world.kit, "alter table events attach partition events_2 for values from (10) to (20)").await;

    let second = world.back_up(acme).await;
    // A row that goes and, by the journal, never came.
    run(&world.kit, acme, &["insert into customers (id, name) values (5, 'not in the journal')"]).await;
    eye.execute("delete from tenancy.journal where sign = 1 and image like '%not in the journal%'").await.expect("forged");
    run(&world.kit, acme, &["delete from customers where id = 5"]).await;
    let at = now(&mut eye).await;
    let said = world.refused(acme, &NewRestore::new(second).with_as_of(at).without_backup()).await;
    assert!(said.contains("2 rows of public.customers that went since are not in the backup"), "{said}");
    let forged = "set session_replication_role = replica; delete from tenancy.journal_commits where xid = (select max(xid) from tenancy.journal_commits)";
    eye.execute(forged).await.expect("forged");
    let said = world.refused(acme, &NewRestore::new(second).with_as_of(at).without_backup()).await;
    assert!(said.contains("without the time of their commit"), "{said}");

    let truncated = sqlx::query("truncate customers").execute(&mut eye).await.expect_err("refused").to_string();
    assert!(truncated.contains("can't be truncated while tenants keep a journal"), "{truncated}");

    // Off and on: another journal.
    end(&world, acme).await;
    assert!(asked(NewRestore::new(second).with_as_of(at)).await.contains("keeps no journal"));
    keep(&world, acme).await;
    world.back_up(acme).await;
    let at = now(&mut eye).await;
    refused(&NewRestore::new(second).with_as_of(at), "switched off since the backup").await;
    assert_eq!(digests(&mut eye, None).await, was, "nothing was written");
}

#[tokio::test]
async fn without_its_trigger_a_table_is_not_as_it_was() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    world.back_up(acme).await;
    eye.execute("alter table bare disable trigger tenancy_journal_insert").await.expect("off");
    run(&world.kit, acme, &["insert into bare (word) values ('not in the journal')", "insert into notes (body) values ('in it')"]).await;
    eye.execute("alter table bare enable always trigger tenancy_journal_insert").await.expect("on");
    let (at, rows) = moment(&mut eye, acme).await;
    let said = world.refused(acme, &NewRestore::as_of(at).without_backup()).await;
    assert!(said.contains("was not journaled for a while"), "it is noticed: {said}");
    // The control: were it not looked for, the row would be missing.
    let look = "create or replace function tenancy.journal_marks() returns jsonb language sql stable security definer as 'select jsonb_object_agg(format(''%I.%I'', n.nspname, c.relname), jsonb_build_object(''form'', (tenancy.journal_form(c.oid, case c.relname when ''customers'' then ''owner'' else ''tenant_id'' end)).form, ''marks'', ''[]''::jsonb)) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname in (''public'', ''tenancy'') and c.relkind in (''r'', ''p'')'";
    eye.execute(look).await.expect("blind");
    world.back_up(acme).await;
    eye.execute("alter table bare disable trigger tenancy_journal_insert").await.expect("off");
    run(&world.kit, acme, &["insert into bare (word) values ('nor this')"]).await;
    let (later, more) = moment(&mut eye, acme).await;
    world.restore(acme, &NewRestore::as_of(later).without_backup()).await;
    let is = seen(&mut eye, acme).await;
    assert_ne!(is, more, "what is not journaled does not come back");
    assert_eq!(is, rows);
}

#[tokio::test]
async fn the_application_can_neither_read_nor_write_nor_forge_a_journal() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    world.back_up(acme).await;
    run(&world.kit, acme, &["insert into customers (id, name) values (1, 'a')"]).await;
    let mut eye = world.kit.superuser().await;
    let has = number(&mut eye, "select count(*) from tenancy.journal").await;
    assert!(has > 0);
    for sql in [
        "select from tenancy.journal",
        "select from tenancy.journal_commits",
        "select from tenancy.journaled",
        "delete from tenancy.journal",
        "update tenancy.journal_commits set at = now()",
        "delete from tenancy.journaled",
        "insert into tenancy.journaled (tenant_id, keep) values (gen_random_uuid(), '1 day')",
        "insert into tenancy.journal (tenant_id, rel, form, sign, image) values (gen_random_uuid(), 'public.customers', gen_random_uuid(), 1, '()')",
        "truncate tenancy.journal",
        "select tenancy.journal_net(pg_current_snapshot(), now())",
        "select tenancy.journal_point(gen_random_uuid())",
        "select tenancy.journal_prune(100)",
        "select tenancy.journal_rows()",
        "alter table customers disable trigger tenancy_journal_insert",
        "drop trigger tenancy_journal_insert on customers",
        "set local session_replication_role = replica",
        "create trigger mine before insert on tenancy.journal for each row execute function tenancy.journal_rows()",
        "call tenancy.journal_table('customers')",
    ] {
        let mut tx = world.kit.db.begin(acme).await.expect("begin");
        let refused = sqlx::query(sql).execute(&mut tx).await.expect_err(sql);
        assert_eq!(refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("42501"), "{sql}: {refused}");
    }
    // Nor does what it sets for itself change what is written: its time, or a value's form.
    for role in ["tenancy_backup", "tenancy_restore"] {
        for sql in [
            "select from tenancy.journal",
            "delete from tenancy.journal",
            "select from tenancy.journaled",
            "select tenancy.journal_prune(1)",
        ] {
            eye.execute(AssertSqlSafe(format!("set role {role}"))).await.expect("role");
            assert!(eye.execute(sql).await.is_err(), "{role}: {sql}");
            eye.execute("reset role").await.expect("reset");
        }
    }
    eye.execute("set role tenancy_admin").await.expect("role");
    for sql in [
        "delete from tenancy.journal",
        "update tenancy.journal_commits set at = now()",
        "insert into tenancy.journal_commits (tenant_id) values (gen_random_uuid())",
    ] {
        assert!(eye.execute(sql).await.is_err(), "the administrative role: {sql}");
    }
    eye.execute("reset role").await.expect("reset");
    assert_eq!(number(&mut eye, "select count(*) from tenancy.journal").await, has);
    assert!(eye.execute("delete from tenancy.journal").await.is_ok(), "the control: a superuser does");
}

#[tokio::test]
async fn what_is_older_than_the_window_goes_and_the_rest_goes_with_the_tenant() {
    let world = journaled_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let old = world.back_up(acme).await;
    world.back_up(globex).await;
    for n in 0..6 {
        let sql = format!("insert into customers (id, name) values ({n}, 'a')");
        run(&world.kit, acme, &[&sql]).await;
        run(&world.kit, globex, &[&sql]).await;
    }
    let (early, _) = moment(&mut eye, acme).await;
    assert_eq!(world.backups.prune_journals().await.expect("pruned"), 0, "all of it is young");
    // Eight days later.
    eye.execute("update tenancy.journal_commits set at = at - interval '8 days' where at is not null").await.expect("aged");
    eye.execute("update tenancy.journaled set since = since - interval '8 days'").await.expect("aged");
    run(&world.kit, acme, &["delete from customers where id > 3"]).await;
    let (at, rows) = moment(&mut eye, acme).await;
    run(&world.kit, acme, &["delete from customers"]).await;
    assert_eq!(world.backups.prune_journals().await.expect("pruned"), 12);
    assert_eq!(
        number(&mut eye, "select count(*) from tenancy.journal where image like '(%,a!)' and sign = 1 and rel = 'public.customers'").await,
        0
    );
    let asked = world.ask_restore(acme.tenant_id(), &NewRestore::as_of(early - chrono::TimeDelta::days(8))).await;
    assert!(asked.expect_err("refused").to_string().contains("goes back to"));
    let said = world.refused(acme, &NewRestore::new(old).with_as_of(at)).await;
    assert!(said.contains("older than what the journal still has"), "{said}");
    // A later backup does, though the moment is before it.
    let behind = "select count(*) from tenancy.journaled where pruned >= pg_snapshot_xmin(pg_current_snapshot())";
    while number(&mut eye, behind).await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await; // somebody else in this server is at work since before
    }
    let later = world.back_up(acme).await;
    world.restore(acme, &NewRestore::new(later).with_as_of(at).without_backup()).await;
    assert_eq!(seen(&mut eye, acme).await, rows);

    // What is left of a journal that is not kept any more goes, and nobody else's.
    let of = |cx: &TenantContext| format!("select count(*) from tenancy.journal where tenant_id = '{}'", cx.tenant_id());
    run(&world.kit, globex, &["update customers set name = 'b'"]).await;
    let theirs = number(&mut eye, &of(globex)).await;
    assert!(number(&mut eye, &of(acme)).await > 0 && theirs > 0);
    end(&world, acme).await;
    world.backups.prune_journals().await.expect("pruned");
    assert_eq!((number(&mut eye, &of(acme)).await, number(&mut eye, &of(globex)).await), (0, theirs));
}

#[tokio::test]
async fn who_began_before_the_journal_is_in_the_backup_that_it_begins_with() {
    let world = hard_world().await;
    as_owner(&world.kit, EXACT).await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    // Its snapshot is of before, so that it will not see that a journal is kept.
    let mut open = world.kit.db.begin_with(acme, Isolation::RepeatableRead).await.expect("begin");
    sqlx::query("select from customers").fetch_all(&mut open).await.expect("a snapshot");
    keep(&world, acme).await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        sqlx::query("insert into customers (id, name) values (1, 'late')").execute(&mut open).await.expect("inserted");
        open.commit().await.expect("commit");
    };
    let (base, ()) = tokio::join!(world.back_up(acme), late);
    assert_eq!(number(&mut eye, "select count(*) from tenancy.journal").await, 0, "it wrote without the journal");
    let (at, rows) = moment(&mut eye, acme).await;
    run(&world.kit, acme, &["delete from customers", "delete from comments"]).await;
    world.restore(acme, &NewRestore::new(base).with_as_of(at).without_backup()).await;
    assert_eq!(seen(&mut eye, acme).await, rows);
}

#[tokio::test]
async fn gauges_go_with_the_rows_and_objects_that_are_gone_are_told() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    let attachments = "create table attachments (tenant_id uuid not null, object text not null, primary key (tenant_id, object));
               call tenancy.protect_table('attachments'); call tenancy.declare_objects('attachments', 'object', 'attachments/{}'); call tenancy.journal_tables()";
    as_owner(&world.kit, attachments).await;
    let mut eye = world.kit.superuser().await;
    let attach = async |name: &str| {
        world.put(acme, &format!("attachments/{name}"), "content").await;
        run(&world.kit, acme, &[&format!("insert into attachments (object) values ('{name}')")]).await;
    };
    attach("first").await;
    grow(&world, acme, 5, 100).await;
    world.back_up(acme).await;
    attach("second").await;
    grow(&world, acme, 10, 100).await;
    let (at, rows) = moment(&mut eye, acme).await;
    attach("third").await;
    grow(&world, acme, 20, 100).await;
    run(&world.kit, acme, &["delete from attachments"]).await;
    let store = world.objects.scope(acme).expect("scope");
    for name in ["first", "second"] {
        object_store::ObjectStoreExt::delete(&store, &object_store::path::Path::from(format!("attachments/{name}")))
            .await
            .expect("deleted");
    }
    let told = world.restore(acme, &NewRestore::as_of(at).dry_run()).await;
    let done = world.restore(acme, &NewRestore::as_of(at).without_backup()).await;
    assert_eq!(seen(&mut eye, acme).await, rows);
    assert_eq!(told["objects"], json!({ "removed": 0, "changed": 0, "added": 1 }));
    for result in [told, done] {
        assert_eq!(result["objects_missing"], json!(["attachments/second"]), "{result}");
    }
    let mut names: Vec<String> = world.contents(acme).await.into_keys().filter(|path| path.contains("attachments")).collect();
    names.iter_mut().for_each(|path| *path = path.rsplit('/').next().unwrap_or_default().to_owned());
    assert_eq!(names, ["first", "third"], "those of the backup come back, and none goes");
    let gauge = format!("select used from tenancy.quota_gauges where metric = 'storage' and tenant_id = '{}'", acme.tenant_id());
    assert_eq!(number(&mut eye, &gauge).await, 15);
}

#[tokio::test]
async fn a_sealed_database_keeps_journals_as_well() {
    let Some(kit) = crate::sealed::sealed_kit(harness::Route::Direct, |options| options).await else { return };
    let world = World::with(kit);
    let acme = &world.kit.acme;
    as_owner(&world.kit, "call tenancy.journal_tables()").await;
    keep(&world, acme).await;
    world.back_up(acme).await;
    let mut eye = world.kit.superuser().await;
    run(&world.kit, acme, &["update notes set body = 'changed'"]).await;
    let (at, was) = (now(&mut eye).await, digests(&mut eye, None).await);
    run(&world.kit, acme, &["delete from notes"]).await;
    world.restore(acme, &NewRestore::as_of(at).without_backup()).await;
    assert_eq!(digests(&mut eye, None).await, was);
}

#[tokio::test]
async fn with_a_tenant_its_journal_is_erased() {
    let world = World::new().await;
    as_owner(&world.kit, "call tenancy.journal_tables()").await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    for cx in [acme, globex] {
        keep(&world, cx).await;
        run(&world.kit, cx, &["insert into notes (body) values ('a')", "update notes set body = 'b'"]).await;
    }
    let mut eye = world.kit.superuser().await;
    let of = |cx: &TenantContext| {
        let id = cx.tenant_id();
        format!(
            "select (select count(*) from tenancy.journal where tenant_id = '{id}') + (select count(*) from tenancy.journal_commits where tenant_id = '{id}') + (select count(*) from tenancy.journaled where tenant_id = '{id}')"
        )
    };
    let theirs = number(&mut eye, &of(globex)).await;
    assert!(theirs > 0 && number(&mut eye, &of(acme)).await > 0);
    let archived = TenantChange::status(TenantStatus::Archived);
    world.kit.db.catalog().update(acme.tenant_id(), archived, None, &Actor::System).await.expect("archived");
    let mut tx = world.kit.db.dangerous().begin_system("a test erases a tenant").await.expect("system");
    let queued = tx.request_erasure(acme.tenant_id(), "the contract ended", None).await.expect("queued");
    tx.commit().await.expect("commit");
    let erase = Erase::new(&world.kit.db, CertificateKey::new([7; 32])).with_objects(world.backups.clone());
    let worker = world.worker(&world.backups).with(Erase::KIND, erase);
    loop {
        worker.run_next().await.expect("it runs");
        let now = world.operation(queued.id).await;
        assert_ne!(now.state, "failed", "{:?}", now.error);
        if now.state == "done" {
            break;
        }
    }
    assert_eq!((number(&mut eye, &of(acme)).await, number(&mut eye, &of(globex)).await), (0, theirs));
}

#[tokio::test]
async fn one_that_is_killed_is_completed_as_of_the_same_moment() {
    let world = journaled_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    world.back_up(acme).await;
    run(&world.kit, acme, STEPS[0]).await;
    let (at, rows) = moment(&mut eye, acme).await;
    for step in ["staged", "before commit", "applied"] {
        run(&world.kit, acme, &["delete from customers", "delete from comments", "update exact set amount = 7"]).await;
        let damaged = seen(&mut eye, acme).await;
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::as_of(at).without_backup()).await.expect("queued");
        world.killed_after(step).await;
        let now = seen(&mut eye, acme).await;
        assert!(now == damaged || (step == "applied" && now == rows), "{step}: old or new, and no mix");
        world.done(queued.id).await;
        assert_eq!(seen(&mut eye, acme).await, rows, "{step}");
    }
}
