//! What a restore leaves alone: who may come in, what is shared and no more, what was sent, what was told, and what the provider set.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use tenancy_core::TenantContext;
use tenancy_core::quota::{Metric, Quota};
use tenancy_core::share::{NewShare, Perms, ResourceRef};
use tenancy_sqlx::audit::Sealer;
use tenancy_sqlx::backup::NewRestore;
use uuid::Uuid;

use crate::backup::{World, as_owner, run};
use crate::sharing::Two;

/// Each of the kit's own tables, by a digest.
async fn kit_tables(eye: &mut PgConnection) -> BTreeMap<String, String> {
    let tables =
        "select relname::text from pg_class where relnamespace = 'tenancy'::regnamespace and relkind in ('r', 'p') and not relispartition";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *eye).await.expect("tables");
    let mut all = BTreeMap::new();
    for table in tables {
        let sql = format!("select coalesce(md5(string_agg(t::text, ',' order by t::text)), '') from tenancy.{table} t");
        all.insert(table, sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *eye).await.expect("a digest"));
    }
    all
}

async fn texts(eye: &mut PgConnection, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(eye).await.expect(sql)
}

/// Somebody, with all that lets them in.
const PEOPLE: [&str; 4] = [
    "insert into tenancy.members (tenant_id, id, email, name, role) values ($1, $2, $3 || '@example.com', $3, 'member')",
    "insert into tenancy.invites (tenant_id, id, token_sha256, email, name, role, created_at, expires_at)
       values ($1, $2, sha256($3::text::bytea), $3 || '@example.org', $3, 'member', now(), now() + interval '1 day')",
    "insert into tenancy.sessions (tenant_id, id, member_id, token_sha256, created_at, expires_at) values ($1, $2, $2, sha256($3::text::bytea), now(), now() + interval '1 day')",
    "insert into tenancy.api_tokens (tenant_id, id, member_id, name, role, scopes, token_sha256, created_at, expires_at)
       values ($1, $2, $2, $3, 'member', '{}', sha256($3::text::bytea), now(), now() + interval '1 day')",
];

async fn people(eye: &mut PgConnection, cx: &TenantContext, name: &str) {
    let id = Uuid::now_v7();
    for sql in PEOPLE {
        sqlx::query(sql).bind(cx.tenant_id().as_uuid()).bind(id).bind(name).execute(&mut *eye).await.expect(sql);
    }
}

/// Seals until nothing is left, and gives the seals.
async fn sealed(world: &World, eye: &mut PgConnection) -> BTreeSet<String> {
    let sealer = Sealer::new(&world.kit.db);
    for _ in 0..600 {
        sealer.seal().await.expect("seal");
        let left = "select 'left' from tenancy.audit_events e where not exists (select from tenancy.audit_seals s where s.event_id = e.id)";
        if texts(eye, left).await.is_empty() {
            return texts(eye, "select s::text || e::text from tenancy.audit_seals s join tenancy.audit_events e on e.id = s.event_id")
                .await
                .into_iter()
                .collect();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("events stay unsealed")
}

pub(super) async fn grow(world: &World, cx: &TenantContext, by: u64, limit: u64) {
    let mut tx = world.kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(cx.tenant_id(), &Quota::new(Metric::STORAGE, limit)).await.expect("set");
    tx.commit().await.expect("commit");
    let mut tx = world.kit.db.begin(cx).await.expect("begin");
    tx.grow(Metric::STORAGE, by).await.expect("grown");
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn a_restore_lets_nobody_in_shares_nothing_again_and_forgets_nothing() {
    let Two { kit, owner: acme, target: globex, notes } = Two::new().await;
    let world = World::with(kit);
    let share = async |note: Uuid| {
        let of = ResourceRef::new("note", note).expect("a resource");
        let mut tx = world.kit.db.begin(&acme).await.expect("begin");
        let offered = tx.offer_share(&acme, &NewShare::new(of, globex.tenant_id(), Perms::Read)).await.expect("offered");
        tx.commit().await.expect("commit");
        let mut tx = world.kit.db.begin(&globex).await.expect("begin");
        tx.accept_share(&globex, offered.id).await.expect("accepted");
        tx.commit().await.expect("commit");
        offered.id
    };
    let (revoked, stays) = (share(notes[0]).await, share(notes[1]).await);
    let mut eye = world.kit.superuser().await;
    people(&mut eye, &acme, "before").await;

    // What comes after the backup: a document that is shared, and one whose share is revoked before it goes; people, levels, limits.
    grow(&world, &acme, 5, 100).await;
    let backup = world.back_up(&acme).await;
    let new = world.kit.note(&acme, "after the backup").await;
    let goes = share(new).await;
    let mut tx = world.kit.db.begin(&acme).await.expect("begin");
    tx.end_share(&acme, revoked).await.expect("revoked");
    tx.commit().await.expect("commit");
    run(&world.kit, &acme, &[&format!("delete from notes where id = '{}'", notes[0])]).await;
    people(&mut eye, &acme, "after").await;
    people(&mut eye, &globex, "theirs").await;
    sqlx::query("delete from tenancy.sessions where tenant_id = $1 and token_sha256 = sha256('before'::text::bytea)")
        .bind(acme.tenant_id().as_uuid())
        .execute(&mut eye)
        .await
        .expect("signed out");
    grow(&world, &acme, 10, 50).await;

    let log = sealed(&world, &mut eye).await;
    let heads = Sealer::new(&world.kit.db).heads().await.expect("heads");
    let (was, outbox) = (kit_tables(&mut eye).await, texts(&mut eye, "select o::text from tenancy.outbox o").await);
    world.restore(&acme, &NewRestore::new(backup)).await;
    let now = kit_tables(&mut eye).await;

    // No table of the kit's but these has another row: not those of members, invites, sessions, tokens, links, quotas, webhooks. In `usage`
    // is the gauge's level of this minute, in `catalog_nodes` what the nodes have heard.
    let changed: BTreeSet<&str> = was.iter().filter(|(table, digest)| now[*table] != **digest).map(|(table, _)| table.as_str()).collect();
    let may =
        ["audit_events", "backups", "catalog_nodes", "cross_tenant_shares", "operations", "outbox", "quota_gauges", "tenants", "usage"];
    assert!(changed.iter().all(|table| may.contains(table)), "{changed:?}");
    assert!(!was["sessions"].is_empty() && !was["api_tokens"].is_empty() && !was["invites"].is_empty(), "there are some");

    // The shares: what was ended stays so though its document is back; what was removed ends its own; the rest goes on.
    let states = "select state from tenancy.cross_tenant_shares where id::text = any (array[$1, $2, $3]) order by array_position(array[$1, $2, $3], id::text)";
    let states: Vec<String> = sqlx::query_scalar(states)
        .bind(revoked.to_string())
        .bind(goes.to_string())
        .bind(stays.to_string())
        .fetch_all(&mut eye)
        .await
        .expect("states");
    assert_eq!(states, ["revoked", "gone", "active"]);
    assert!(world.kit.notes(&acme).await.contains(&"shared".to_owned()), "the document is back");
    assert_eq!(world.kit.db.read_shared(&globex, revoked).await.expect_err("it stays revoked").kind(), tenancy_core::ErrorKind::NotFound);
    assert_eq!(world.kit.db.read_shared(&globex, goes).await.expect_err("it is gone").kind(), tenancy_core::ErrorKind::NotFound);
    drop(world.kit.db.read_shared(&globex, stays).await.expect("the control: it is shared"));
    let told = format!("select tenant_id::text from tenancy.audit_events where action = 'share.ended' and target = '{goes}' order by at");
    let sides: BTreeSet<String> = texts(&mut eye, &told).await.into_iter().collect();
    assert_eq!(sides, [&acme, &globex].map(|cx| cx.tenant_id().to_string()).into(), "both sides are told");

    // Nothing is sent again: what is new says that the share ended.
    let sent = texts(&mut eye, "select o::text from tenancy.outbox o").await;
    assert!(outbox.iter().all(|message| sent.contains(message)), "nothing is taken back");
    let topics = texts(&mut eye, &format!("select topic from tenancy.outbox order by id offset {}", outbox.len())).await;
    assert_eq!(topics, ["share.ended"]);

    // The log only grows, and holds.
    let grown = sealed(&world, &mut eye).await;
    assert!(grown.is_superset(&log) && grown.len() > log.len());
    let mut tx = world.kit.db.dangerous().begin_system("a test verifies the log").await.expect("system");
    let verified = tx.verify_audit(None, &heads).await.expect("verified");
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);

    // The gauge measures what is there again, under the provider's limit of now.
    let gauge = "select g.used || ' of ' || q.\"limit\" from tenancy.quota_gauges g join tenancy.quotas q using (tenant_id, metric) where g.tenant_id = '";
    assert_eq!(texts(&mut eye, &format!("{gauge}{}' and metric = 'storage'", acme.tenant_id())).await, ["5 of 50"]);
}

#[tokio::test]
async fn what_counts_goes_on_though_it_was_set_back() {
    let world = World::new().await;
    let sql = "create table always (tenant_id uuid not null, id bigint generated always as identity, word text, primary key (tenant_id, id));
               create table by_default (tenant_id uuid not null, id int generated by default as identity, primary key (id, tenant_id));
               create table serial (tenant_id uuid not null, id serial, primary key (tenant_id, id));
               create table shared (tenant_id uuid not null, id bigint generated always as identity primary key);
               call tenancy.protect_table('always'); call tenancy.protect_table('by_default'); call tenancy.protect_table('serial'); call tenancy.protect_table('shared');
               grant usage on sequence serial_id_seq to tenancy_app";
    as_owner(&world.kit, sql).await;
    let acme = &world.kit.acme;
    let tables = ["always", "by_default", "serial", "shared"];
    let insert = tables.map(|table| {
        format!("insert into {table} select from generate_series(1, 10)")
            .replace("select from", "(tenant_id) select tenancy.current_tenant() from")
    });
    let insert: Vec<&str> = insert.iter().map(String::as_str).collect();
    for cx in [&world.kit.globex, acme] {
        run(&world.kit, cx, &insert).await;
    }
    let backup = world.back_up(acme).await;
    run(&world.kit, acme, &tables.map(|table| format!("delete from {table}")).iter().map(String::as_str).collect::<Vec<_>>()).await;
    for table in tables {
        as_owner(&world.kit, &format!("alter sequence {table}_id_seq restart with 11")).await;
    }
    world.restore(acme, &NewRestore::new(backup)).await;
    run(&world.kit, acme, &insert).await;
    run(&world.kit, &world.kit.globex, &insert).await;
    // One that is ahead is not set back.
    let mut eye = world.kit.superuser().await;
    let before = texts(&mut eye, "select last_value::text from always_id_seq").await;
    world.restore(acme, &NewRestore::new(backup)).await;
    assert_eq!(texts(&mut eye, "select last_value::text from always_id_seq").await, before);
}
