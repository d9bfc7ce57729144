//! Backups: all of one tenant to the last bit, back in one transaction, and nothing of another.

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use tenancy_core::{ErrorKind, TenantContext, TenantId};
use tenancy_sqlx::backup::{NewClone, NewRestore};
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use self::world::{World, archive_of, as_owner, digests, hard_world, keys, run, vandalise};

#[tokio::test]
async fn a_tenant_comes_back_to_the_last_bit_and_nobody_else_notices() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let backup = world.back_up(acme).await;
    let was = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    vandalise(&world, acme).await;
    let damaged = world.contents(acme).await;
    let others = (digests(&mut eye, Some(globex.tenant_id())).await, world.contents(globex).await);
    assert_ne!(digests(&mut eye, Some(acme.tenant_id())).await, was.0);

    let result = world.restore(acme, &NewRestore::new(backup)).await;
    assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), was);
    assert_eq!((digests(&mut eye, Some(globex.tenant_id())).await, world.contents(globex).await), others);
    assert_eq!(result["tables"]["public.events"], json!({ "removed": 1, "changed": 0, "added": 6 }));
    assert_eq!(result["tables"]["public.things"], json!({ "removed": 1, "changed": 2, "added": 0 }));
    assert_eq!(result["tables"]["public.\"Odd Name\""], json!({ "removed": 0, "changed": 0, "added": 2 }));
    // It is served again, and what counts goes on.
    run(&world.kit, acme, &["insert into things (name) values ('after')", "insert into notes (body) values ('after')"]).await;

    // The backup that was taken first undoes the restore.
    let before: Uuid = serde_json::from_value(result["before"].clone()).expect("a backup");
    world.restore(acme, &NewRestore::new(before).without_backup()).await;
    assert!(world.kit.notes(acme).await.contains(&"not in the backup".to_owned()));
    assert_eq!(world.contents(acme).await, damaged);
    assert_eq!((digests(&mut eye, Some(globex.tenant_id())).await, world.contents(globex).await), others);
}

#[tokio::test]
async fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let backup = world.back_up(acme).await;
    vandalise(&world, acme).await;
    let was = (digests(&mut eye, None).await, world.contents(acme).await);
    let told = world.restore(acme, &NewRestore::new(backup).dry_run()).await;
    assert_eq!((digests(&mut eye, None).await, world.contents(acme).await), was);
    let events = &told["tables"]["public.events"];
    assert_eq!((&events["removed"], &events["changed"], &events["added"]), (&json!(1), &json!(0), &json!(6)));
    assert_eq!((&events["examples"]["removed"], &events["examples"]["added"][0]), (&json!([{ "id": 19 }]), &json!({ "id": 9 })));
    assert_eq!(told["tables"]["public.things"]["changed"], 2);
    assert_eq!(
        told["tables"]["public.bare"],
        json!({ "removed": 1, "changed": 0, "added": 2, "examples": { "removed": [], "added": [] } })
    );
    assert_eq!(told["objects"], json!({ "removed": 1, "changed": 1, "added": 1 }));

    // What a dry run told is what is done.
    let done = world.restore(acme, &NewRestore::new(backup).without_backup()).await;
    for (table, counts) in done["tables"].as_object().expect("tables") {
        assert_eq!(
            ["removed", "changed", "added"].map(|how| &counts[how]),
            ["removed", "changed", "added"].map(|how| &told["tables"][table][how]),
            "{table}"
        );
    }
    let again = world.restore(acme, &NewRestore::new(backup).dry_run()).await;
    assert!(
        again["tables"].as_object().expect("tables").values().all(|counts| *counts == json!({ "removed": 0, "changed": 0, "added": 0 })),
        "{again}"
    );
}

/// The archive's place in the store.
#[tokio::test]
async fn an_archive_that_is_not_this_backup_is_refused_before_anything_is_written() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let (first, theirs) = (world.back_up(acme).await, world.back_up(globex).await);
    vandalise(&world, acme).await;
    let second = world.back_up(acme).await;
    let was = (digests(&mut eye, None).await, world.contents(acme).await);
    let mine = archive_of(&world, second).await;
    let good = world.store.get(&mine).await.expect("there").bytes().await.expect("read").to_vec();
    let other = |at: Path| {
        let store = world.store.clone();
        async move { store.get(&at).await.expect("there").bytes().await.expect("read").to_vec() }
    };
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (what, bytes) in [
        ("another tenant's", other(archive_of(&world, theirs).await).await),
        ("an older one of the same tenant", other(archive_of(&world, first).await).await),
        ("changed", flipped),
        ("truncated", good[..good.len() - 100].to_vec()),
        ("longer", [good.as_slice(), b"x"].concat()),
        ("empty", Vec::new()),
        ("something else", b"PGDMP".repeat(100)),
    ] {
        world.store.put(&mine, bytes.into()).await.expect("put");
        let why = world.refused(acme, &NewRestore::new(second).without_backup()).await;
        assert!(why.contains("archive"), "{what}: {why}");
        assert_eq!((digests(&mut eye, None).await, world.contents(acme).await), was, "{what}");
        assert_eq!(world.kit.notes(acme).await.len(), world.kit.notes(acme).await.len(), "it is served");
    }
    world.store.delete(&mine).await.expect("deleted");
    world.refused(acme, &NewRestore::new(second)).await;
    // Whole again, it is taken.
    world.store.put(&mine, good.into()).await.expect("put");
    world.restore(acme, &NewRestore::new(second)).await;
    // Nobody restores from another tenant's backup.
    let foreign = world.ask_restore(acme.tenant_id(), &NewRestore::new(theirs)).await.expect_err("another tenant's");
    let none = world.ask_restore(acme.tenant_id(), &NewRestore::new(Uuid::now_v7())).await.expect_err("none");
    assert_eq!((foreign.kind(), foreign.to_string()), (ErrorKind::NotFound, none.to_string()));
}

#[tokio::test]
async fn killed_at_any_step_the_old_data_stands_or_the_new_and_a_rerun_completes() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    // Of a backup.
    for step in ["objects", "rows", "archive"] {
        let queued = world.ask_backup(acme.tenant_id()).await.expect("queued");
        world.killed_after(step).await;
        world.done(queued.id).await;
        archive_of(&world, queued.id).await;
    }
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    let others = digests(&mut eye, Some(world.kit.globex.tenant_id())).await;
    // Of a restore.
    for step in ["objects before", "staged", "fenced", "settled", "merged", "before commit", "applied", "objects after"] {
        vandalise(&world, acme).await;
        let old = digests(&mut eye, Some(acme.tenant_id())).await;
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup)).await.expect("queued");
        world.killed_after(step).await;
        let now = digests(&mut eye, Some(acme.tenant_id())).await;
        let applied = matches!(step, "applied" | "objects after");
        assert!(now == if applied { new.0.clone() } else { old }, "{step}: old or new, and no mix");
        world.done(queued.id).await;
        assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new, "{step}");
        world.kit.notes(acme).await;
    }
    assert_eq!(digests(&mut eye, Some(world.kit.globex.tenant_id())).await, others);
}

#[tokio::test]
async fn behind_the_fence_the_tenant_gets_an_answer_to_try_again_and_others_are_served() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let backup = world.back_up(acme).await;
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    // A transaction that began before is waited for, and what it writes is undone like all the rest.
    let mut late = world.kit.db.begin(acme).await.expect("begin");
    let there = Arc::new(Notify::new());
    let halting = world.worker(&world.backups.clone().halting_after("merged", Arc::clone(&there)));
    let restoring = tokio::spawn(async move { halting.run_next().await });
    for _ in 0..100 {
        if world.operation(queued.id).await.step == "waiting for older transactions" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.operation(queued.id).await.step, "waiting for older transactions");
    sqlx::query("insert into notes (body) values ('late')").execute(&mut late).await.expect("it may still write");
    late.commit().await.expect("commit");
    for error in [world.kit.db.begin(acme).await.err(), world.kit.db.read(acme).await.err()] {
        let error = error.expect("nobody is served");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("restoring"), "{error}");
    }
    let mut resume = world.kit.db.dangerous().begin_system("a test resumes").await.expect("system");
    let active = tenancy_core::TenantChange::status(tenancy_core::TenantStatus::Active);
    let held = resume
        .update_tenant(acme.tenant_id(), active, None, tenancy_core::Clock::now(&tenancy_core::SystemClock))
        .await
        .expect_err("it is being restored");
    assert_eq!(held.kind(), ErrorKind::Conflict);
    // While rows are held by the restore, another tenant waits for nothing.
    tokio::time::timeout(Duration::from_secs(60), there.notified()).await.expect("merged");
    world.kit.note(globex, "meanwhile").await;
    restoring.abort();
    world.done(queued.id).await;
    assert!(!world.kit.notes(acme).await.contains(&"late".to_owned()));
}

#[tokio::test]
async fn what_a_transaction_changes_between_the_first_look_and_the_fence_is_undone() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let (was, backup) = (world.kit.notes(acme).await, world.back_up(acme).await);
    let mut late = world.kit.db.begin(acme).await.expect("begin");
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    let worker = world.worker(&world.backups).with_lease(Duration::from_secs(30));
    let restoring = tokio::spawn(async move { worker.run_next().await });
    while world.operation(queued.id).await.step != "waiting for older transactions" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // As many rows as before.
    sqlx::query("update notes set body = body || ' late'").execute(&mut late).await.expect("it may still write");
    late.commit().await.expect("commit");
    restoring.await.expect("no panic").expect("restored");
    assert_eq!(world.operation(queued.id).await.state, "done");
    assert_eq!(world.kit.notes(acme).await, was);
}

#[tokio::test]
async fn a_clone_is_a_tenant_like_the_other_one_and_apart_from_it() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let mut eye = world.kit.superuser().await;
    let (backup, theirs) = (world.back_up(acme).await, world.back_up(globex).await);
    let was = (digests(&mut eye, None).await, world.contents(acme).await);
    let ask = async |clone: &NewClone| {
        let mut tx = world.kit.db.dangerous().begin_system("a test clones a tenant").await?;
        let queued = tx.request_clone(acme.tenant_id(), clone, None).await?;
        tx.commit().await?;
        Ok::<_, tenancy_core::Error>(queued.id)
    };
    let slug = |slug: &str| slug.parse().expect("a slug");
    assert_eq!(ask(&NewClone::new(theirs, slug("copy"))).await.expect_err("another tenant's").kind(), ErrorKind::NotFound);
    assert_eq!(ask(&NewClone::new(backup, slug("globex"))).await.expect_err("taken").kind(), ErrorKind::Conflict);

    // Killed anywhere, it is not there; and a rerun makes it, once.
    for (n, step) in ["objects before", "before commit"].into_iter().enumerate() {
        let id = ask(&NewClone::new(backup, slug(&format!("copy-{n}")))).await.expect("queued");
        world.killed_after(step).await;
        assert_eq!(digests(&mut eye, None).await, was.0, "{step}");
        let made = world.done(id).await;
        assert_eq!((&made["slug"], &made["objects"]["count"]), (&json!(format!("copy-{n}")), &json!(3)));
        let id: Uuid = serde_json::from_value(made["tenant_id"].clone()).expect("an id");
        let copy = TenantId::from_uuid(id).expect("a tenant");
        // The same rows but for whose they are.
        for (table, (theirs, ours)) in rows_without_tenant(&mut eye, acme.tenant_id(), copy).await {
            assert_eq!(theirs, ours, "{table}");
        }
        let tenant = tenancy_core::TenantCatalog::find(&world.kit.db.catalog(), &copy.into()).await.expect("found").expect("there");
        let owner = tenancy_core::Principal::Member { subject: "owner".parse().expect("a subject"), role: tenancy_core::Role::Owner };
        let cx = TenantContext::establish(tenant.into_active().expect("it is active"), owner);
        let tail = |all: BTreeMap<String, Vec<u8>>| all.into_values().collect::<Vec<_>>();
        assert_eq!(tail(world.contents(&cx).await), tail(was.1.clone()));
        // It goes its own way.
        run(&world.kit, &cx, &["insert into things (name) values ('after')", "delete from notes", "delete from comments"]).await;
        assert_eq!(world.kit.notes(acme).await.len(), 50);
        run(
            &world.kit,
            &cx,
            &[
                "delete from things",
                "delete from \"Odd Name\"",
                "delete from bare",
                "delete from fired",
                "delete from events",
                "update men set dog = null",
                "delete from dogs",
                "delete from men",
                "delete from tree",
            ],
        )
        .await;
        assert_eq!(digests(&mut eye, None).await, was.0);
    }
}

/// Each table's rows of two tenants, without the tenant's column.
async fn rows_without_tenant(eye: &mut PgConnection, one: TenantId, other: TenantId) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let mut all = BTreeMap::new();
    for table in digests(&mut *eye, None).await.into_keys() {
        let mut rows = Vec::new();
        for tenant in [one, other] {
            let sql = format!("select (to_jsonb(t) - 'tenant_id')::text from {table} t where tenant_id = $1 order by 1");
            rows.push(sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.as_uuid()).fetch_all(&mut *eye).await.expect("rows"));
        }
        let other = rows.pop().unwrap_or_default();
        all.insert(table, (rows.pop().unwrap_or_default(), other));
    }
    all
}

#[tokio::test]
async fn a_drill_proves_a_backup_and_leaves_nothing() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let drill = async || {
        let mut tx = world.kit.db.dangerous().begin_system("a test drills").await.expect("system");
        let queued = tx.request_drill(acme.tenant_id(), None, None).await?;
        tx.commit().await?;
        Ok::<_, tenancy_core::Error>(world.finish(queued.id).await)
    };
    assert_eq!(drill().await.expect_err("no backup yet").kind(), ErrorKind::NotFound);
    let backup = world.back_up(acme).await;
    vandalise(&world, acme).await;
    let was = (digests(&mut eye, None).await, world.contents(acme).await);
    let tenants = "select count(*) from tenancy.tenants";
    let count: i64 = sqlx::query_scalar(tenants).fetch_one(&mut eye).await.expect("count");
    let done = drill().await.expect("queued");
    assert_eq!((done.state.as_str(), &done.error), ("done", &None));
    let report = done.result.expect("a report");
    assert_eq!((&report["tables"]["public.notes"], &report["objects"]["count"]), (&json!({ "rows": 50, "identical": true }), &json!(3)));
    assert_eq!((digests(&mut eye, None).await, world.contents(acme).await), was);
    assert_eq!(sqlx::query_scalar::<_, i64>(tenants).fetch_one(&mut eye).await.expect("count"), count);
    let told: Vec<String> = sqlx::query_scalar("select outcome from tenancy.audit_events where action = 'backup.drill'")
        .fetch_all(&mut eye)
        .await
        .expect("events");
    assert_eq!(told, ["done"]);

    // A backup that can't be restored is found out: a content that is damaged, an archive that is gone.
    let all: Vec<_> = futures_util::TryStreamExt::try_collect(world.store.list(Some(&Path::from("backups")))).await.expect("listed");
    let blob = all
        .iter()
        .map(|meta: &object_store::ObjectMeta| &meta.location)
        .find(|at| at.as_ref().contains("blobs"))
        .expect("a content")
        .clone();
    let good = world.store.get(&blob).await.expect("there").bytes().await.expect("read");
    let mut bad = good.to_vec();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    world.store.put(&blob, bad.into()).await.expect("put");
    assert_eq!(drill().await.expect("queued").state, "failed");
    world.store.put(&blob, good.into()).await.expect("put");
    assert_eq!(drill().await.expect("queued").state, "done");
    world.store.delete(&archive_of(&world, backup).await).await.expect("deleted");
    assert_eq!(drill().await.expect("queued").state, "failed");
    assert_eq!((digests(&mut eye, None).await, world.contents(acme).await), was);
}
