//! A database that has changed since the backup: what fits comes back, what doesn't is refused by name and nothing is written.

use tenancy_core::TenantContext;
use tenancy_sqlx::backup::NewRestore;
use uuid::Uuid;

use crate::backup::{World, as_owner, digests, run};

const MADE: &str = "
    create type mood as enum ('sad', 'ok');
    create table docs (tenant_id uuid not null, id int not null, title text, n int, mood mood, primary key (tenant_id, id));
    create table parts (tenant_id uuid not null, id int not null, doc int, primary key (tenant_id, id), constraint parts_doc foreign key (tenant_id, doc) references docs (tenant_id, id));
    call tenancy.protect_table('docs'); call tenancy.protect_table('parts')";

/// A backup of three documents with a part each, and what was done since to the schema and then to the rows.
pub(super) async fn since(schema: &str, rows: &[&str]) -> (World, TenantContext, Uuid) {
    let world = World::new().await;
    as_owner(&world.kit, MADE).await;
    let acme = world.kit.acme.clone();
    for cx in [&acme, &world.kit.globex] {
        let docs =
            "insert into docs values (default, 1, 'one', 1, 'sad'), (default, 2, 'two', 2, 'ok'), (default, 3, 'three', 70000, null)";
        run(&world.kit, cx, &[docs, "insert into parts select tenant_id, id, id from docs"]).await;
    }
    let backup = world.back_up(&acme).await;
    if !schema.is_empty() {
        as_owner(&world.kit, schema).await;
    }
    run(&world.kit, &acme, rows).await;
    (world, acme, backup)
}

/// What the tenant has, each row as text.
pub(super) async fn rows(world: &World, of: &str) -> Vec<String> {
    let sql = format!("select ({of})::text from docs d order by id");
    let mut tx = world.kit.db.read(&world.kit.acme).await.expect("read");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut tx).await.expect("rows")
}

/// It is refused with these words, for everybody's rows as they were, and the tenant is served.
async fn refuses(schema: &str, damage: &[&str], restore: impl Fn(NewRestore) -> NewRestore, words: &[&str]) {
    let (world, acme, backup) = since(schema, damage).await;
    let mut eye = world.kit.superuser().await;
    let was = digests(&mut eye, None).await;
    for restore in [restore(NewRestore::new(backup)), restore(NewRestore::new(backup)).without_backup()] {
        let said = world.refused(&acme, &restore).await;
        for word in words {
            assert!(said.contains(word), "{schema}: {word}: {said}");
        }
        assert_eq!(digests(&mut eye, None).await, was, "{schema}: nothing is written");
        run(&world.kit, &acme, &["select from docs"]).await;
    }
}

/// Changes and removals, and a part that keeps its document.
pub(super) const DAMAGE: [&str; 3] =
    ["update docs set title = 'changed' where id = 1", "delete from parts where id = 3", "delete from docs where id = 3"];
pub(super) const BACK: [&str; 3] = ["(one,1,sad)", "(two,2,ok)", "(three,70000,)"];

#[tokio::test]
async fn columns_that_were_added_get_their_defaults_and_same_rows_keep_what_they_have() {
    let (world, acme, backup) = since("alter table docs add colour text default 'grey', add note text", &DAMAGE).await;
    run(&world.kit, &acme, &["update docs set colour = 'red', note = 'kept'"]).await;
    let result = world.restore(&acme, &NewRestore::new(backup)).await;
    assert_eq!(rows(&world, "row(title, n, mood)").await, BACK);
    assert_eq!(rows(&world, "row(colour, note)").await, ["(grey,)", "(red,kept)", "(grey,)"]);
    assert_eq!(result["tables"]["public.docs"], serde_json::json!({ "removed": 0, "changed": 1, "added": 1 }));
}

#[tokio::test]
async fn a_column_that_must_have_a_value_is_refused_by_name() {
    let schema = "alter table docs add must int default 1; alter table docs alter must set not null, alter must drop default";
    refuses(schema, &[], |restore| restore, &["public.docs", "\"must\"", "no default"]).await;
    refuses(schema, &[], NewRestore::losing, &["\"must\""]).await;
}

#[tokio::test]
async fn a_column_that_was_dropped_is_refused_by_name_unless_it_may_be_left_out() {
    let schema = "alter table docs drop mood";
    refuses(schema, &DAMAGE, |restore| restore, &["public.docs.\"mood\" can't be restored"]).await;
    let (world, acme, backup) = since(schema, &DAMAGE).await;
    let result = world.restore(&acme, &NewRestore::new(backup).losing()).await;
    assert_eq!(rows(&world, "row(title, n)").await, ["(one,1)", "(two,2)", "(three,70000)"]);
    assert_eq!(result["left_out"], serde_json::json!(["public.docs.\"mood\""]));
}

#[tokio::test]
async fn a_column_that_was_renamed_is_one_dropped_and_one_added() {
    let schema = "alter table docs rename title to name";
    refuses(schema, &[], |restore| restore, &["public.docs.\"title\" can't be restored"]).await;
    let (world, acme, backup) = since(schema, &["update docs set n = 5 where id = 1"]).await;
    world.restore(&acme, &NewRestore::new(backup).losing()).await;
    assert_eq!(rows(&world, "row(name, n)").await, ["(,1)", "(two,2)", "(three,70000)"]);
}

#[tokio::test]
async fn a_wider_type_takes_the_values_and_a_narrower_one_those_that_fit() {
    for (wide, back) in [("bigint", "70000"), ("numeric(9,1)", "70000.0"), ("text", "70000")] {
        let (world, acme, backup) = since(&format!("alter table docs alter n type {wide}"), &DAMAGE).await;
        world.restore(&acme, &NewRestore::new(backup)).await;
        assert_eq!(rows(&world, "n").await[2], back, "{wide}");
    }
    // What is there now fits, what the backup has does not; whatever may be lost, no value is cut.
    let schema = "reset role; update docs set n = 3 where n > 3; alter table docs alter n type smallint";
    refuses(schema, &[], |restore| restore, &["public.docs", "smallint out of range"]).await;
    refuses(schema, &[], NewRestore::losing, &["public.docs", "smallint out of range"]).await;
    refuses("alter table docs alter title type varchar(4) using left(title, 4)", &[], |restore| restore, &["public.docs", "too long"])
        .await;
}

#[tokio::test]
async fn an_enum_with_another_value_is_the_same_and_without_one_is_refused() {
    let (world, acme, backup) = since("alter type mood add value 'happy' before 'sad'", &DAMAGE).await;
    run(&world.kit, &acme, &["update docs set mood = 'happy'"]).await;
    world.restore(&acme, &NewRestore::new(backup)).await;
    assert_eq!(rows(&world, "row(title, n, mood)").await, BACK);
    let schema = "reset role; update docs set mood = null; alter type mood rename to old; create type mood as enum ('ok');
                  alter table docs alter mood type mood using mood::text::mood";
    refuses(schema, &[], |restore| restore, &["public.docs", "sad"]).await;
}

#[tokio::test]
async fn tables_come_and_go() {
    let added =
        "create table more (tenant_id uuid not null, id int not null, primary key (tenant_id, id)); call tenancy.protect_table('more')";
    let (world, acme, backup) = since(added, &DAMAGE).await;
    run(&world.kit, &acme, &["insert into more (id) values (1)"]).await;
    let result = world.restore(&acme, &NewRestore::new(backup)).await;
    assert_eq!(
        (rows(&world, "row(title, n, mood)").await, &result["new_since"]),
        (BACK.map(String::from).to_vec(), &serde_json::json!(["public.more"]))
    );
    run(&world.kit, &acme, &["update more set id = 2 where id = 1"]).await;
    let mut tx = world.kit.db.read(&acme).await.expect("read");
    assert_eq!(sqlx::query_scalar::<_, i64>("select count(*) from more where id = 2").fetch_one(&mut tx).await.expect("it stays"), 1);

    refuses("drop table parts", &[], |restore| restore, &["public.parts can't be restored"]).await;
    let (world, acme, backup) = since("drop table parts", &["delete from docs where id = 3"]).await;
    let result = world.restore(&acme, &NewRestore::new(backup).losing()).await;
    assert_eq!(
        (rows(&world, "row(title, n, mood)").await, &result["left_out"]),
        (BACK.map(String::from).to_vec(), &serde_json::json!(["public.parts"]))
    );
}

#[tokio::test]
async fn a_key_with_another_column_is_refused() {
    let schema = "alter table docs add version int not null default 1; alter table parts drop constraint parts_doc;
                  alter table docs drop constraint docs_pkey, add primary key (tenant_id, id, version)";
    refuses(schema, &[], |restore| restore, &["public.docs has \"version\" in its key since"]).await;
    refuses(schema, &[], NewRestore::losing, &["\"version\""]).await;
}

#[tokio::test]
async fn rows_that_a_new_rule_does_not_let_in_are_refused_by_its_name() {
    let schema = "reset role; update docs set title = 'x' || id; alter table docs add constraint starts_with_x check (title like 'x%')";
    refuses(schema, &[], |restore| restore, &["public.docs", "starts_with_x"]).await;
    let schema = "reset role; update docs set n = 0 where id <> 1; update docs set title = 'same' where id = 1; alter table docs add unique (tenant_id, title)";
    let (world, acme, backup) = since(schema, &[]).await;
    world.restore(&acme, &NewRestore::new(backup)).await; // and what keeps to one is let in
    assert_eq!(rows(&world, "row(title, n, mood)").await, BACK);
    refuses("", &[], |restore| restore.with_tables(["public.none"]), &["no table public.none"]).await;
}

#[tokio::test]
async fn selected_tables_come_back_alone_and_never_with_a_reference_to_nothing() {
    let damage = ["delete from parts", "delete from docs where id = 3", "update docs set title = 'now' where id = 1"];
    refuses("", &damage, |restore| restore.with_tables(["public.parts"]), &["1 of public.parts by parts_doc"]).await;
    // And not what others refer to.
    let newer = ["insert into docs (id) values (4)", "insert into parts (id, doc) values (4, 4)"];
    refuses("", &newer, |restore| restore.with_tables(["public.docs"]), &["1 of public.parts by parts_doc"]).await;

    let (world, acme, backup) = since("", &["delete from parts", "update docs set title = 'now' where id = 1"]).await;
    let result = world.restore(&acme, &NewRestore::new(backup).with_tables(["public.parts"])).await;
    assert_eq!(result["tables"], serde_json::json!({ "public.parts": { "removed": 0, "changed": 0, "added": 3 } }));
    assert_eq!(rows(&world, "title").await, ["now", "two", "three"]);
}

#[tokio::test]
async fn a_table_with_nothing_but_its_tenant_comes_back() {
    let world = World::new().await;
    let sql = "create table alone (tenant_id uuid not null); create table once (tenant_id uuid primary key); create table less (tenant_id uuid not null, n int);
               call tenancy.protect_table('alone'); call tenancy.protect_table('once'); call tenancy.protect_table('less')";
    as_owner(&world.kit, sql).await;
    let three = "select tenancy.current_tenant() from generate_series(1, 3)";
    for cx in [&world.kit.acme, &world.kit.globex] {
        let rows = ["alone", "less"].map(|table| format!("insert into {table} (tenant_id) {three}"));
        run(&world.kit, cx, &[&rows[0], &rows[1], "insert into once values (default)"]).await;
    }
    let acme = &world.kit.acme;
    let backup = world.back_up(acme).await;
    let more = ["delete from once", "delete from less", "insert into alone values (default), (default)"];
    run(&world.kit, acme, &more).await;
    as_owner(&world.kit, "alter table less drop n").await;
    let mut eye = world.kit.superuser().await;
    let others = digests(&mut eye, Some(world.kit.globex.tenant_id())).await;
    let told = world.restore(acme, &NewRestore::new(backup).losing().dry_run()).await;
    assert_eq!((&told["tables"]["public.alone"]["removed"], &told["tables"]["public.less"]["added"]), (&2.into(), &3.into()));
    world.restore(acme, &NewRestore::new(backup).losing()).await;
    let count = "select concat((select count(*) from alone), (select count(*) from once), (select count(*) from less))";
    let mut tx = world.kit.db.read(acme).await.expect("read");
    assert_eq!(sqlx::query_scalar::<_, String>(count).fetch_one(&mut tx).await.expect("counts"), "313");
    assert_eq!(digests(&mut eye, Some(world.kit.globex.tenant_id())).await, others);
}
