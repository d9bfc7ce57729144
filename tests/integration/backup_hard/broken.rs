//! The controls of `random` and `drift`: a restore that is broken, in however small a way, is seen by what they compare; and one that goes wrong on
//! its way is refused by the product itself.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy_core::TenantContext;
use tenancy_sqlx::backup::NewRestore;

use super::drift::{BACK, DAMAGE, rows, since};
use super::random::{Seen, Table, fill, schema, seen};
use crate::backup::{World, as_owner, digests};

/// What makes a value of a type the least bit another one, where that can be: often it is equal still.
fn least(kind: &str, column: &str) -> Vec<(&'static str, String)> {
    let c = column;
    let (what, to, when) = match kind {
        "int" | "smallint" | "bigint" => ("a bit of a number", format!("{c} # 1"), "true".to_owned()),
        "numeric" => ("a scale", format!("round({c}, scale({c}) + 1)"), format!("{c} <> 'NaN'")),
        "numeric(12,3)" => ("a thousandth", format!("{c} + 0.001"), "true".to_owned()),
        "text" | "varchar(40)" => ("a blank", format!("{c} || ' '"), "true".to_owned()),
        "boolean" => ("a boolean", format!("not {c}"), "true".to_owned()),
        "uuid" => (
            "a bit of an id",
            format!("encode(set_bit(uuid_send({c}), 127, 1 - get_bit(uuid_send({c}), 127)), 'hex')::uuid"),
            "true".to_owned(),
        ),
        "bytea" => ("a bit", format!("set_bit({c}, 0, 1 - get_bit({c}, 0))"), format!("length({c}) > 0")),
        "date" => ("a day", format!("{c} + 1"), format!("isfinite({c})")),
        "timestamptz" | "timestamp" => ("a microsecond", format!("{c} + interval '1 microsecond'"), format!("isfinite({c})")),
        "interval" => ("a month for 30 days", "interval '30 days'".to_owned(), format!("{c}::text = '1 mon'")),
        "float8" | "real" => ("a sign of nothing", "0".to_owned(), format!("{c}::text = '-0'")),
        "json" => ("a blank in JSON", format!("({c}::text || ' ')::json"), "true".to_owned()),
        "jsonb" => ("a scale in JSON", format!("replace({c}::text, '1.0', '1.00')::jsonb"), format!("{c}::text like '%1.0%'")),
        "int[]" => ("an array's bounds", "'{7,8}'".to_owned(), format!("{c}::text = '[2:3]={{7,8}}'")),
        "numeric[]" => ("a scale in an array", "'{1.50}'".to_owned(), format!("{c}::text = '{{1.5}}'")),
        "text[]" => ("NULL in an array", "'{\"\",NULL,NULL}'".to_owned(), format!("{c}::text = '{{\"\",NULL,\"NULL\"}}'")),
        "hue" => ("a label", format!("case {c} when 'red' then 'blue' else 'red' end::hue"), "true".to_owned()),
        "pair" => ("a part of a composite", "'(2,\"a \"\"b\"\", C\")'".to_owned(), format!("({c}).n = 2")),
        _ => return Vec::new(),
    };
    vec![(what, format!("{c} = {to} where {c} is not null and {when}"))]
}

/// Statements that each change one thing: what, and how.
fn mutations(table: &Table, cx: &TenantContext, other: &TenantContext) -> Vec<(&'static str, String)> {
    let (name, tenant, other) = (&table.name, cx.tenant_id(), other.tenant_id());
    let one = |when: &str| format!("ctid = (select ctid from {name} where tenant_id = '{tenant}' and ({when}) order by ctid limit 1)");
    let mut all = vec![
        ("a row is gone", format!("delete from {name} where {}", one("true"))),
        ("a row is somebody else's", format!("update {name} set tenant_id = '{other}' where {}", one("true"))),
    ];
    if table.key.is_empty() {
        // Generated columns can't be named: the row comes again but for those.
        let columns: Vec<&str> = table.columns.iter().map(|column| column.0.as_str()).collect();
        let columns = [&["tenant_id"], columns.as_slice()].concat().join(", ");
        all.push(("a row is there twice", format!("insert into {name} ({columns}) select {columns} from {name} where {}", one("true"))));
    }
    for (column, kind, may_be_null) in &table.columns {
        for (what, set) in least(kind, column) {
            let (set, when) = set.split_once(" where ").expect("a condition");
            all.push((what, format!("update {name} set {set} where {}", one(when))));
        }
        if *may_be_null {
            all.push(("NULL", format!("update {name} set {column} = null where {}", one(&format!("{column} is not null")))));
            if *kind == "text" {
                all.push((
                    "an empty text for NULL",
                    format!("update {name} set {column} = '' where {}", one(&format!("{column} is null"))),
                ));
            }
        }
        if table.key.is_empty() {
            continue; // rows that nothing tells apart can't change places
        }
        // Each value is there as often as before.
        let pick = |order: &str| {
            format!(
                "(select {column}::text from {name} where tenant_id = '{tenant}' and {column} is not null order by {column}::text collate \"C\" {order} limit 1)"
            )
        };
        let (least, most) = (pick("asc"), pick("desc"));
        let at = |which: &str| one(&format!("{column}::text = {which}"));
        all.push((
            "two values changed places",
            format!(
                "update {name} set {column} = (case when {} then {most} else {least} end)::{kind} where {least} <> {most} and ({} or {})",
                at(&least),
                at(&least),
                at(&most)
            ),
        ));
    }
    all
}

/// Each change alone, on top of what was restored, is told by the very comparison, of that table alone.
async fn all_seen(
    eye: &mut PgConnection,
    (cx, other): (&TenantContext, &TenantContext),
    tables: &[Table],
    was: &Seen,
    seed: u64,
) -> Vec<&'static str> {
    let mut told = Vec::new();
    for (n, table) in tables.iter().enumerate() {
        for (what, sql) in mutations(table, cx, other) {
            eye.execute("begin; set local session_replication_role = replica").await.expect("begin");
            // What the schema does not let is no mutation.
            let done = eye.execute(AssertSqlSafe(sql.clone())).await;
            if done.as_ref().is_ok_and(|done| done.rows_affected() > 0) {
                let now = seen(eye, cx, tables).await;
                assert_ne!(now, *was, "seed {seed}: {what}: {sql}");
                assert_ne!((&now.0[&table.name], &now.1[n]), (&was.0[&table.name], &was.1[n]), "seed {seed}: {what}: {sql}");
                let others = |seen: &Seen| (0..tables.len()).filter(|at| *at != n).map(|at| seen.1[at].clone()).collect::<Vec<_>>();
                assert_eq!(others(&now), others(was), "seed {seed}: {what}: {sql}");
                told.push(what);
            } else if let Err(error) = done {
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned();
                assert!(["23", "22"].contains(&&code[..2]), "{sql}: {error}");
            }
            eye.execute("rollback").await.expect("rollback");
        }
    }
    assert_eq!(seen(eye, cx, tables).await, *was);
    told
}

#[tokio::test]
async fn the_least_change_of_what_was_restored_is_seen() {
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..if std::env::var_os("TENANCY_NIGHTLY").is_some() { 60 } else { 10 } {
        eprintln!("seed {seed}"); // shown if it fails
        let rng = &mut StdRng::seed_from_u64(seed);
        let world = World::new().await;
        let (tables, sql) = schema(rng);
        as_owner(&world.kit, &sql).await;
        let mut eye = world.kit.superuser().await;
        let (acme, globex) = (&world.kit.acme, &world.kit.globex);
        fill(&world, acme, rng, &tables).await;
        let was = seen(&mut eye, acme, &tables).await;
        let backup = world.back_up(acme).await;
        for table in &tables {
            let gone = format!("delete from {} where tenant_id = $1", table.name);
            eye.execute("set session_replication_role = replica").await.expect("set");
            sqlx::query(AssertSqlSafe(gone)).bind(acme.tenant_id().as_uuid()).execute(&mut eye).await.expect("deleted");
            eye.execute("reset session_replication_role").await.expect("reset");
        }
        world.restore(acme, &NewRestore::new(backup).without_backup()).await;
        assert_eq!(seen(&mut eye, acme, &tables).await, was, "seed {seed}: {sql}");
        for what in all_seen(&mut eye, (acme, globex), &tables, &was, seed).await {
            *told.entry(what).or_default() += 1;
        }
    }
    // Something of all that matters was there to be changed.
    for what in [
        "a row is gone",
        "a row is somebody else's",
        "a scale",
        "a blank",
        "a bit",
        "a microsecond",
        "NULL",
        "an empty text for NULL",
        "two values changed places",
    ] {
        assert!(told.contains_key(what), "{what}: {told:?}");
    }
    let sum: usize = told.values().sum();
    eprintln!("{sum} changes were seen: {told:?}");
    assert!(sum > 100, "{told:?}");
}

/// A trigger that fires in a restore, too, and breaks it.
fn breaking(when: &str, does: &str) -> String {
    let table = when.rsplit(' ').next().expect("a table");
    format!(
        "create function spoil() returns trigger language plpgsql as $$ begin {does} end $$;
         create trigger spoil {when} for each row execute function spoil(); alter table {table} enable always trigger spoil"
    )
}

#[tokio::test]
async fn a_restore_that_goes_wrong_on_its_way_is_refused_and_undone() {
    for (when, does, words) in [
        ("before insert on docs", "return null;", "public.docs has other rows"),
        ("before insert on docs", "new.title := new.title || ' '; return new;", "public.docs has other contents"),
        ("before insert on docs", "new.n := new.n # 1; return new;", "public.docs has other contents"),
        ("before insert on docs", "if new.id = 3 then return null; end if; return new;", "public.docs has other rows"),
        // A row that should go stays: in its old form, or as one that is too many.
        ("before delete on docs", "if old.id = 1 then return null; end if; return old;", "public.docs has other contents"),
        ("before delete on docs", "if old.id = 4 then return null; end if; return old;", "public.docs has other rows"),
        ("after insert on parts", "delete from parts where id = 1; return null;", "public.parts has other rows"),
        ("after insert on docs", "insert into parts (id) values (new.id + 100); return null;", "public.parts has other rows"),
        (
            "after insert on docs",
            "update docs set mood = 'sad' where id = 2 and mood = 'ok'; return null;",
            "public.docs has other contents",
        ),
    ] {
        let damage = [&DAMAGE[..], &["insert into docs (id) values (4)"]].concat();
        let (world, acme, backup) = since("", &damage).await;
        as_owner(&world.kit, &breaking(when, does)).await;
        let mut eye = world.kit.superuser().await;
        let was = digests(&mut eye, None).await;
        let said = world.refused(&acme, &NewRestore::new(backup).without_backup()).await;
        assert!(said.contains(words), "{when}: {does}: {said}");
        assert_eq!(digests(&mut eye, None).await, was, "{when}: {does}");
    }
}

/// Where the schema is another one there's no hash to compare with: rows are compared with those that were loaded.
#[tokio::test]
async fn where_columns_are_others_a_restore_that_goes_wrong_is_refused_as_well() {
    for schema in ["alter table docs alter n type bigint", "alter table docs alter n type numeric", "alter table docs add more text"] {
        for (when, does, words) in [
            ("before insert on docs", "new.title := new.title || ' '; return new;", "public.docs has other contents"),
            ("before insert on docs", "new.mood := null; return new;", "public.docs has other contents"),
            ("before insert on docs", "new.n := new.n + 1; return new;", "public.docs has other contents"),
            (
                "after insert on docs",
                "update docs set mood = 'sad' where id = 2 and mood = 'ok'; return null;",
                "public.docs has other contents",
            ),
            ("before delete on docs", "if old.id = 4 then return null; end if; return old;", "public.docs has other rows"),
            (
                "after insert on docs",
                "insert into docs (id) select 90 where not exists (select from docs where id = 90); return null;",
                "public.docs has other rows",
            ),
        ] {
            let damage = [&DAMAGE[..], &["insert into docs (id) values (4)"]].concat();
            let (world, acme, backup) = since(schema, &damage).await;
            as_owner(&world.kit, &breaking(when, does)).await;
            let mut eye = world.kit.superuser().await;
            let was = digests(&mut eye, None).await;
            let said = world.refused(&acme, &NewRestore::new(backup).without_backup()).await;
            assert!(said.contains(words), "{schema}: {does}: {said}");
            assert_eq!(digests(&mut eye, None).await, was, "{schema}: {does}");
        }
    }
}

/// What `drift` compares has to see the least that could be wrong.
#[tokio::test]
async fn what_drift_compares_sees_a_restore_that_is_broken() {
    for wide in ["bigint", "numeric"] {
        let (world, acme, backup) = since(&format!("alter table docs alter n type {wide}"), &DAMAGE).await;
        world.restore(&acme, &NewRestore::new(backup)).await;
        assert_eq!(rows(&world, "row(title, n::int, mood)").await, BACK, "{wide}");
        let mut eye = world.kit.superuser().await;
        let (was, all) = (rows(&world, "row(title, n, mood)").await, digests(&mut eye, None).await);
        for sql in [
            "update docs set title = 'One' where id = 1",
            "update docs set title = title || ' ' where id = 2",
            "update docs set n = n + 1 where id = 3",
            "update docs set mood = 'sad' where id = 2",
            "update docs set mood = 'ok' where id = 3",
            "update docs set title = null where id = 1",
            "delete from docs where id = 2",
            "insert into docs (tenant_id, id, title) select tenant_id, 9, title from docs where id = 1",
            "update docs set title = case id when 1 then 'two' when 2 then 'one' else title end",
            "update docs set id = id + 10 where id = 1",
        ] {
            let condition = if sql.contains(" where ") { "and" } else { "where" };
            // Committed, since the comparison reads as the application does; and put back.
            let one = format!(
                "set session_replication_role = replica; create temp table kept as select * from docs; {sql} {condition} tenant_id = '{}'",
                acme.tenant_id()
            );
            eye.execute(AssertSqlSafe(one)).await.expect(sql);
            assert_ne!(rows(&world, "row(title, n, mood)").await, was, "{wide}: {sql}");
            assert_ne!(digests(&mut eye, None).await["docs"], all["docs"], "{wide}: {sql}");
            eye.execute("delete from docs; insert into docs select * from kept; drop table kept").await.expect("put back");
            assert_eq!(digests(&mut eye, None).await, all);
        }
    }
}
