//! Restores during which reads go on: they show the tenant as it was, nothing writes, and they end before objects are replaced.

use std::time::Duration;

use harness::Kit;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use sqlx::Executor as _;
use tenancy_core::{Actor, Error, ErrorKind, JobEnvelope, Result, Tenant, TenantCatalog as _, TenantChange, TenantContext, TenantStatus};
use tenancy_sqlx::backup::NewRestore;
use tenancy_sqlx::{Isolation, TenantDb, from_sqlx};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::called_off::cancel;
use crate::backup::{World, digests, hard_world, vandalise};
use crate::impersonation::WAYS_OUT;

/// What writes, as one statement.
const WRITES: [&str; 9] = [
    "insert into notes (body) values ('x')",
    "update notes set body = 'x'",
    "delete from notes",
    "select body from notes for update",
    "with gone as (delete from notes returning 1) select count(*) from gone",
    "select tenancy.gauge_add('users', 1)",
    "select tenancy.outbox_post('test.topic', 'key', '{}'::jsonb, null)",
    "select nextval('public.numbers')",
    "do $$ begin insert into notes (body) values ('x'); end $$",
];

/// What this node heard of itself the other one hears within so long.
const HEARD: Duration = Duration::from_millis(1_200);

/// Asks for a restore, and runs a worker that stands still after `step`, until it is there.
async fn halted(world: &World, restore: &NewRestore, step: &'static str) -> (Uuid, JoinHandle<Result<Option<Uuid>>>) {
    let acme = world.kit.acme.tenant_id();
    let id = world.ask_restore(acme, restore).await.expect("queued").id;
    let running = world.stand_still(world.backups.clone(), step, Duration::from_secs(6)).await;
    tokio::time::sleep(HEARD).await;
    (id, running)
}

async fn found(db: &TenantDb, cx: &TenantContext) -> std::sync::Arc<Tenant> {
    db.catalog().find(&cx.tenant_id().into()).await.expect("found").expect("there")
}

/// A context as the edge of a node makes it for what only reads.
async fn let_in(db: &TenantDb, cx: &TenantContext) -> Result<TenantContext> {
    Ok(TenantContext::establish(found(db, cx).await.into_readable()?, cx.principal().clone()))
}

async fn notes(db: &TenantDb, cx: &TenantContext) -> Result<Vec<String>> {
    let mut tx = db.read(cx).await?;
    sqlx::query_scalar("select body from notes order by body").fetch_all(&mut tx).await.map_err(from_sqlx)
}

/// Nothing begins that could write, whoever asks.
async fn nothing_begins(db: &TenantDb, cx: &TenantContext) {
    for cx in [cx.clone(), cx.clone().read_only()] {
        for refused in [
            db.begin(&cx).await.map(drop),
            db.begin_with(&cx, Isolation::Serializable).await.map(drop),
            db.read_shared(&cx, Uuid::now_v7()).await.map(drop),
            db.begin_shared(&cx, Uuid::now_v7()).await.map(drop),
        ] {
            let refused = refused.expect_err("behind the fence");
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
            assert!(refused.message().contains("restoring"), "{refused}");
        }
    }
}

/// Whatever is tried in a transaction that reads, nothing of it stays.
async fn nothing_writes(kit: &Kit, cx: &TenantContext) {
    let numbers = "create sequence if not exists public.numbers; grant usage on sequence public.numbers to tenancy_app";
    kit.superuser().await.execute(numbers).await.expect("a sequence");
    for sql in WRITES {
        for mut tx in [kit.db.read(cx).await.expect("read"), kit.db.read_with_shares(cx).await.expect("read")] {
            let refused = from_sqlx((&mut tx).execute(sql).await.expect_err(sql));
            assert_eq!(refused.kind(), ErrorKind::Forbidden, "{sql}: {refused}");
        }
    }
    for way in WAYS_OUT {
        let mut tx = kit.db.read(cx).await.expect("read");
        if (&mut tx).execute(way).await.is_ok() && (&mut tx).execute("insert into notes (body) values ('out')").await.is_ok() {
            // As PostgreSQL before 16 can be told to.
            assert_eq!(tx.commit().await.expect_err(way).kind(), ErrorKind::Forbidden);
        }
    }
}

#[tokio::test]
async fn behind_the_fence_what_reads_sees_the_old_rows_and_nothing_writes() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    let mut eye = kit.superuser().await;
    let other = kit.database.open().await.expect("another node");
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    for step in ["settled", "merged", "before commit"] {
        vandalise(&world, acme).await;
        let (old, before) = (digests(&mut eye, Some(acme.tenant_id())).await, kit.notes(acme).await);
        assert_ne!(old, new.0);
        let (id, running) = halted(&world, &NewRestore::new(backup).without_backup().with_reads(), step).await;

        let row = found(&kit.db, acme).await;
        assert_eq!((row.status, row.reads), (TenantStatus::Restoring, true), "{step}");
        assert_eq!(row.into_active().expect_err("for what writes").kind(), ErrorKind::Unavailable);
        for db in [&kit.db, &other] {
            let reader = let_in(db, acme).await.expect("to read");
            assert!(reader.is_read_only() && !acme.is_read_only());
            for cx in [acme, &reader] {
                assert_eq!(notes(db, cx).await.expect("reads go on"), before, "{step}");
                nothing_begins(db, cx).await;
            }
        }
        let reader = let_in(&kit.db, acme).await.expect("to read");
        for cx in [acme, &reader] {
            nothing_writes(kit, cx).await;
        }
        let objects = world.objects.scope(&reader).expect("scope");
        let read = objects.get(&Path::from("a/b.txt")).await.expect("it").bytes().await.expect("read");
        assert_eq!(read, "?".repeat("acme's object".len()), "as it was damaged");
        assert!(objects.put(&Path::from("a/b.txt"), PutPayload::from("x")).await.is_err());
        assert!(objects.delete(&Path::from("a/b.txt")).await.is_err());
        for cx in [acme, &reader] {
            let job = JobEnvelope::new(cx, "reindex").establish(&kit.db.catalog()).await.expect_err("held");
            assert_eq!(job.kind(), ErrorKind::Unavailable);
        }
        assert_eq!(digests(&mut eye, Some(acme.tenant_id())).await, old, "{step}: nothing was written");
        kit.note(&kit.globex, "meanwhile").await;

        running.abort();
        world.done(id).await;
        assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new, "{step}");
        let row = found(&kit.db, acme).await;
        assert_eq!((row.status, row.reads), (TenantStatus::Active, false));
        kit.note(acme, "after").await;
        // Who was let in to read may read on, and is told to come again, not that it must never write.
        notes(&kit.db, &reader).await.expect("a read");
        assert_eq!(kit.db.begin(&reader).await.expect_err("let in to read").kind(), ErrorKind::Unavailable);
        assert!(!let_in(&kit.db, acme).await.expect("as ever").is_read_only());
    }
    let numbers: bool = sqlx::query_scalar("select is_called from public.numbers").fetch_one(&mut eye).await.expect("numbers");
    assert!(!numbers);

    // The control: unless it is asked for, nobody reads.
    let (id, running) = halted(&world, &NewRestore::new(backup).without_backup(), "settled").await;
    assert_eq!(let_in(&kit.db, acme).await.expect_err("restoring").kind(), ErrorKind::Unavailable);
    assert_eq!(notes(&kit.db, acme).await.expect_err("restoring").kind(), ErrorKind::Unavailable);
    running.abort();
    world.done(id).await;
    for sql in WRITES {
        (&mut kit.db.begin(acme).await.expect("begin")).execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// What a reader of an active tenant can do, who is not hardened, and one behind the fence can't.
#[tokio::test]
async fn control_a_reader_that_is_not_hardened_makes_its_transaction_one_that_writes() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    let escape = async |tx: &mut tenancy_sqlx::TenantTx| {
        for sql in ["set transaction read write", "insert into notes (body) values ('escaped')", "commit"] {
            (&mut *tx).execute(sql).await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    escape(&mut kit.db.read(acme).await.expect("read")).await.expect("nothing is in the way");
    let escaped = async |kit: &Kit| kit.notes(acme).await.into_iter().filter(|body| body == "escaped").count();
    assert_eq!(escaped(kit).await, 1, "a row that a test would see");
    let backup = world.back_up(acme).await;
    let (id, running) = halted(&world, &NewRestore::new(backup).without_backup().with_reads(), "settled").await;
    let refused = escape(&mut kit.db.read(acme).await.expect("read")).await.expect_err("a snapshot is in the way");
    assert_eq!(refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("25001"));
    assert_eq!(escaped(kit).await, 1);
    running.abort();
    world.done(id).await;
}

#[tokio::test]
async fn once_the_rows_are_new_nobody_reads_until_the_objects_are() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    let other = kit.database.open().await.expect("another node");
    let was = kit.notes(acme).await;
    let backup = world.back_up(acme).await;
    let all = NewRestore::new(backup).without_backup().with_reads();
    vandalise(&world, acme).await;
    let (id, running) = halted(&world, &all, "applied").await;
    for db in [&kit.db, &other] {
        assert_eq!(let_in(db, acme).await.expect_err("objects follow").kind(), ErrorKind::Unavailable);
        assert_eq!(notes(db, acme).await.expect_err("objects follow").kind(), ErrorKind::Unavailable);
    }
    running.abort();
    world.done(id).await;
    other.ping().await.expect("it hears of it now, and not within the bound");
    assert_eq!(notes(&other, acme).await.expect("served"), was);

    // Where objects stay as they are reads go on, and show the new rows.
    vandalise(&world, acme).await;
    let (id, running) = halted(&world, &all.with_tables(["public.notes", "public.comments"]), "applied").await;
    for db in [&kit.db, &other] {
        let reader = let_in(db, acme).await.expect("to read");
        assert_eq!(notes(db, &reader).await.expect("reads go on"), was);
        nothing_begins(db, &reader).await;
    }
    nothing_writes(kit, acme).await;
    assert_eq!(notes(&kit.db, acme).await.expect("reads go on"), was);
    running.abort();
    world.done(id).await;
    kit.note(acme, "after").await;
}

/// Another node hears late that reads are over. Whoever it lets in sees the objects as they were, or all of them as they are now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_some_objects_as_they_were_and_some_as_they_are() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    // No notification is ever sent.
    let silent = "create or replace function tenancy.stamp_tenant() returns trigger language plpgsql as $$ begin new.changed_xid := pg_current_xact_id(); return new; end $$";
    kit.superuser().await.execute(silent).await.expect("silence");
    let other = kit.database.open().await.expect("another node");
    // Many, so that it takes a while to replace them.
    for n in 0..400 {
        world.put(acme, &format!("many/{n:03}"), "as it was").await;
    }
    let backup = world.back_up(acme).await;
    let (first, last) = (Path::from("many/000"), Path::from("many/399"));
    let look = async || {
        let objects = world.objects.scope(&let_in(&other, acme).await?)?;
        let mut both = Vec::new();
        for path in [&last, &first] {
            both.push(objects.get(path).await.expect("there").bytes().await.expect("read").to_vec());
        }
        Ok::<_, Error>(both)
    };
    let (mut seen, mut refused) = (std::collections::BTreeSet::new(), 0);
    for _ in 0..3 {
        vandalise(&world, acme).await;
        for n in 0..400 {
            world.put(acme, &format!("many/{n:03}"), "not as it was").await;
        }
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup().with_reads()).await.expect("queued");
        let worker = world.worker(&world.backups);
        let running = tokio::spawn(async move { worker.run_next().await.map(drop) });
        while !running.is_finished() {
            match look().await {
                Ok(both) => drop(seen.insert(both)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable);
                    refused += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(running.await.expect("no panic")); // on a busy machine it may lose its claim
        world.done(queued.id).await;
        other.catalog().refresh().await.expect("it hears");
        seen.insert(look().await.expect("served"));
    }
    let whole = ["as it was", "not as it was"].map(|text| vec![text.as_bytes().to_vec(); 2]);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), whole, "all as they were, or all as they are");
    assert!(refused > 0, "the control: reads ended meanwhile");
}

#[tokio::test]
async fn killed_at_any_step_it_is_completed_and_reads_go_on_or_are_over_as_the_step_says() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    let mut eye = kit.superuser().await;
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    for (step, reads) in [
        ("staged", true),
        ("fenced", true),
        ("settled", true),
        ("merged", true),
        ("before commit", true),
        ("applied", false),
        ("objects after", false),
    ] {
        vandalise(&world, acme).await;
        let old = digests(&mut eye, Some(acme.tenant_id())).await;
        let (id, running) = halted(&world, &NewRestore::new(backup).with_reads(), step).await;
        running.abort();
        let now = digests(&mut eye, Some(acme.tenant_id())).await;
        assert!(now == if reads { old } else { new.0.clone() }, "{step}: old or new, and no mix");
        assert_eq!(notes(&kit.db, acme).await.is_ok(), reads, "{step}");
        assert_eq!(kit.db.begin(acme).await.is_ok(), step == "staged", "{step}");
        world.done(id).await;
        assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new, "{step}");
        kit.note(acme, "after").await;
    }
}

#[tokio::test]
async fn called_off_the_tenant_is_served_and_a_suspended_one_is_not_by_its_restore() {
    let world = hard_world().await;
    let (kit, acme) = (&world.kit, &world.kit.acme);
    let backup = world.back_up(acme).await;
    let asked = NewRestore::new(backup).without_backup().with_reads();
    let dry = world.ask_restore(acme.tenant_id(), &asked.clone().dry_run()).await.expect_err("contradicts itself");
    assert_eq!((dry.kind(), dry.field()), (ErrorKind::Invalid, Some("reads")));

    let (id, running) = halted(&world, &asked, "settled").await;
    notes(&kit.db, acme).await.expect("reads go on");
    cancel(&world, id).await.expect("asked");
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic").expect("ended");
    let row = found(&kit.db, acme).await;
    assert_eq!((row.status, row.reads), (TenantStatus::Active, false));
    kit.note(acme, "served").await;

    let status = async |status| {
        let change = TenantChange::status(status);
        kit.db.catalog().update(acme.tenant_id(), change, None, &Actor::System).await.expect("changed");
    };
    status(TenantStatus::Suspended).await;
    let (id, running) = halted(&world, &asked, "settled").await;
    assert_eq!(notes(&kit.db, acme).await.expect_err("it was suspended").kind(), ErrorKind::Unavailable);
    running.abort();
    world.done(id).await;
    assert_eq!(notes(&kit.db, acme).await.expect_err("it is again").kind(), ErrorKind::TenantInactive);
    status(TenantStatus::Active).await;
    kit.note(acme, "served again").await;
}
