//! What a drill proves, and what it leaves.

use serde_json::json;
use sqlx::Executor as _;
use tenancy_core::TenantContext;
use tenancy_sqlx::operations::Operation;
use uuid::Uuid;

use super::drift::since;
use crate::backup::{World, as_owner, digests, hard_world, run};

pub(super) async fn drill(world: &World, cx: &TenantContext, backup: Uuid) -> Operation {
    let mut tx = world.kit.db.dangerous().begin_system("a test drills").await.expect("system");
    let queued = tx.request_drill(cx.tenant_id(), Some(backup), None).await.expect("queued");
    tx.commit().await.expect("commit");
    world.finish(queued.id).await
}

/// After such a change to the schema the drill fails with these words, or is done where there are none; and nobody's rows are others.
async fn drilled(schema: &str, words: &str) {
    let (world, acme, backup) = since(schema, &[]).await;
    let mut eye = world.kit.superuser().await;
    let was = digests(&mut eye, None).await;
    let done = drill(&world, &acme, backup).await;
    match done.error {
        None => assert_eq!(words, "", "{schema}: nothing was found"),
        Some(said) => assert!(!words.is_empty() && said.contains(words), "{schema}: {words}: {said}"),
    }
    assert_eq!(digests(&mut eye, None).await, was, "{schema}");
}

/// Each once with what the backup's rows stand, and once with what they don't.
async fn each(rules: &[(&str, &str, &str, &str)]) {
    for (rule, good, bad, words) in rules {
        // The rows of now are no hindrance to a rule.
        let rule = format!("reset role; truncate parts, docs; set role tenancy_owner; {rule}");
        drilled(&rule.replace('@', good), "").await;
        drilled(&rule.replace('@', bad), words).await;
    }
}

#[tokio::test]
async fn a_constraint_that_a_row_breaks_is_found() {
    each(&[
        ("alter table docs add constraint small check (n < @)", "70001", "70000", "its rows break small"),
        ("alter table docs add constraint small check (n < @) not valid", "70001", "70000", "its rows break small"),
        ("alter table docs alter @ set not null", "title", "mood", "public.docs: its rows break"),
        ("alter table docs alter title type varchar(@)", "5", "4", "too long"),
        ("create domain short as text check (length(value) < @); alter table docs alter title type short", "6", "5", "short_check"),
        ("create unique index docs_one on docs (tenant_id, (n % @))", "7", "3", "its rows break docs_one"),
        ("create unique index docs_one on docs (tenant_id, (n > 0)) where n < @", "2", "3", "its rows break docs_one"),
        (
            "alter table docs add colour text default 'grey', add constraint docs_one unique (tenant_id, @)",
            "title",
            "colour",
            "its rows break docs_one",
        ),
        (
            "alter table docs add constraint docs_one exclude using btree (tenant_id with =, (n % @) with =)",
            "7",
            "3",
            "its rows break docs_one",
        ),
        ("create index on docs ((100 / (n - @)))", "5", "70000", "division by zero"),
        ("alter table docs add less smallint generated always as (n / @) stored", "3", "1", "smallint out of range"),
    ])
    .await;
}

#[tokio::test]
async fn a_foreign_key_that_a_row_breaks_is_found() {
    let global = "create table kinds (n int primary key); insert into kinds values (1), (2), (@); grant select on kinds to tenancy_app;
                  call tenancy.declare_global('kinds', 'the same for all'); alter table docs add constraint docs_kinds foreign key (n) references kinds";
    each(&[
        (
            "alter table docs add constraint docs_parts foreign key (tenant_id, @) references parts (tenant_id, id)",
            "id",
            "n",
            "1 of public.docs by docs_parts",
        ),
        (global, "70000", "7", "1 of public.docs by docs_kinds"),
    ])
    .await;
}

#[tokio::test]
async fn row_level_security_that_refuses_a_row_or_hides_it_is_found() {
    let function = "create function few(n int) returns boolean stable language sql as 'select n < @';
                    create policy few on docs as restrictive to tenancy_app using (few(n))";
    each(&[
        ("create policy few on docs as restrictive for insert to tenancy_app with check (n < @)", "70001", "70000", "of public.docs refuses 1 of its rows"),
        ("create policy few on docs as restrictive for select to tenancy_app using (n < @)", "70001", "70000", "of public.docs hides 1 of its rows"),
        ("create policy few on docs as restrictive to public using (docs.n < (select @ where docs.tenant_id = tenancy.current_tenant()))", "70001", "70000", "refuses 1"),
        // These are asked of the real tables.
        ("create policy few on parts as restrictive to tenancy_app using (exists (select from docs d where d.id = doc and d.n < @))", "70001", "70000", "new row violates row-level security"),
        (function, "70001", "70000", "new row violates row-level security"),
    ])
    .await;
    // Not of the application's role.
    drilled("create policy few on docs as restrictive to tenancy_admin using (n < 3)", "").await;
    drilled("drop policy tenancy_rows on docs; create policy own on docs to tenancy_admin using (tenant_id = (select tenancy.current_tenant()))", "refuses all of its rows").await;
}

#[tokio::test]
async fn what_a_table_makes_of_a_row_is_found() {
    let cast = "create function as_mood(t text) returns mood immutable strict language plpgsql as
                'begin return (enum_range(null::mood))[case t when ''sad'' then 1 else @ end]; end'; create cast (text as mood) with function as_mood(text)";
    let trigger = |does: &str| {
        format!(
            "create function spoil() returns trigger language plpgsql as 'begin {does} return new; end';
             create trigger spoil before insert on docs for each row execute function spoil(); alter table docs enable always trigger spoil"
        )
    };
    each(&[
        (cast, "2", "1", "public.docs has other contents"),
        (&trigger("if new.n = @ then return null; end if;"), "7", "70000", "public.docs takes other rows"),
        (&trigger("if new.n = @ then new.n = 4; end if;"), "7", "70000", "public.docs has other contents"),
    ])
    .await;
}

#[tokio::test]
async fn isolation_that_is_broken_is_found() {
    let own = "tenant_id = (select tenancy.current_tenant())";
    let open = |how: &str| {
        format!(
            "alter policy tenancy_fence on docs using (tenant_id is not null) with check (tenant_id is not null); drop policy tenancy_rows on docs;
             create policy s on docs for select to tenancy_app using ({own}); create policy i on docs for insert to tenancy_app with check ({own}); {how}"
        )
    };
    let found = "public.docs lets other tenants' rows be read or deleted";
    drilled("alter table docs disable row level security", found).await;
    drilled(&open("alter policy s on docs using (tenant_id is not null)"), found).await;
    drilled(&open("create policy d on docs for delete to tenancy_app using (tenant_id is not null)"), found).await;
    drilled(&open(&format!("create policy d on docs for delete to tenancy_app using ({own})")), "").await;
}

#[tokio::test]
async fn what_is_new_has_its_default_and_no_sequence_goes_on() {
    let schema = "alter table docs add no bigint generated always as identity, add serial bigserial, add at timestamptz not null default now(),
                  add id2 uuid not null default gen_random_uuid(), add constraint docs_one unique (tenant_id, no), add unique (tenant_id, id2)";
    let (world, acme, backup) = since(schema, &[]).await;
    let mut eye = world.kit.superuser().await;
    let counted = "select concat((select last_value from docs_no_seq), (select last_value from docs_serial_seq))";
    let was: String = sqlx::query_scalar(counted).fetch_one(&mut eye).await.expect("counted");
    let done = drill(&world, &acme, backup).await;
    assert_eq!((done.error, &done.result.expect("a report")["tables"]["public.docs"]), (None, &json!({ "rows": 3, "identical": false })));
    assert_eq!(sqlx::query_scalar::<_, String>(counted).fetch_one(&mut eye).await.expect("counted"), was);
}

#[tokio::test]
async fn odd_tables_are_no_hindrance_and_a_partition_that_is_gone_is_one() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let odd = "create table bare_key (id int primary key, tenant_id uuid not null); call tenancy.protect_table('bare_key');
               create table alone (tenant_id uuid not null); call tenancy.protect_table('alone')";
    as_owner(&world.kit, odd).await;
    run(
        &world.kit,
        acme,
        &["insert into bare_key (id) values (1)", "insert into alone default values", "insert into alone default values"],
    )
    .await;
    let backup = world.back_up(acme).await;
    let done = drill(&world, acme, backup).await;
    assert_eq!((done.state.as_str(), done.error), ("done", None));
    as_owner(&world.kit, "drop table events_2").await;
    let said = drill(&world, acme, backup).await.error.expect("there is no partition");
    assert!(said.contains("public.events"), "{said}");
}

/// How large the tables are, with what was written and undone.
async fn sizes(world: &World) -> Vec<i64> {
    let mut eye = world.kit.superuser().await;
    let sizes =
        "select pg_relation_size(c.oid) from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'i') order by oid";
    sqlx::query_scalar(sizes).fetch_all(&mut eye).await.expect("sizes")
}

#[tokio::test]
async fn a_drill_writes_nothing_into_tables_that_others_use() {
    let world = World::new().await;
    let acme = &world.kit.acme;
    run(&world.kit, acme, &["insert into notes (body) select repeat('a note ', 20) || g from generate_series(1, 5000) g"]).await;
    let backup = world.back_up(acme).await;
    let mut eye = world.kit.superuser().await;
    eye.execute("vacuum notes").await.expect("vacuum");
    let was = sizes(&world).await;
    let done = drill(&world, acme, backup).await;
    assert_eq!((done.state.as_str(), &done.result.expect("a report")["tables"]["public.notes"]["rows"]), ("done", &json!(5000)));
    assert_eq!(sizes(&world).await, was);
    // The control: where a policy may look at other rows than the one that is written, all of them have to be there.
    let looks = "create function fine(body text) returns boolean stable language sql as 'select true';
                 create policy fine on notes as restrictive to tenancy_app using (fine(body))";
    as_owner(&world.kit, looks).await;
    let done = drill(&world, acme, backup).await;
    assert_eq!((done.state.as_str(), done.error), ("done", None));
    assert!(sizes(&world).await > was, "what was written and undone is seen so");
}
