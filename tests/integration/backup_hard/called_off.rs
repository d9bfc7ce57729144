//! Operations that somebody cancels: what they did is undone, or it was too late and they go on to their end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt as _};
use sqlx::{AssertSqlSafe, Executor as _};
use tenancy_core::objects::TenantObjects;
use tenancy_core::{Clock as _, Error, ErrorKind, ManualClock, SystemClock, TenantChange, TenantStatus};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::backup::{Backups, NewClone, NewRestore};
use tenancy_sqlx::operations::{Operation, Operations};
use uuid::Uuid;

use super::scheduled::age;
use crate::backup::{World, archive_of, digests, hard_world, keys, vandalise};

pub(super) async fn cancel(world: &World, id: Uuid) -> Result<Operation, Error> {
    let mut tx = world.kit.db.dangerous().begin_system("a test cancels").await.expect("system");
    let cancelled = tx.cancel_operation(id).await?;
    tx.commit().await.expect("committed");
    Ok(cancelled)
}

/// Runs a worker that stands still after `step`, until it is there.
async fn stand_still(world: &World, step: &'static str) -> tokio::task::JoinHandle<Result<Option<Uuid>, Error>> {
    world.stand_still(world.backups.clone(), step, Duration::from_secs(6)).await
}

#[tokio::test]
async fn one_that_nobody_has_begun_is_over_at_once() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let queued = world.ask_backup(acme.tenant_id()).await.expect("queued");
    assert_eq!(cancel(&world, queued.id).await.expect("cancelled").state, "cancelled");
    assert_eq!(world.worker(&world.backups).run_next().await.expect("looked"), None, "there is nothing to do");
    assert_eq!(cancel(&world, queued.id).await.expect_err("over").kind(), ErrorKind::Conflict);
    assert_eq!(cancel(&world, Uuid::now_v7()).await.expect_err("none").kind(), ErrorKind::NotFound);
    let done = world.back_up(acme).await; // and the next one can be asked for
    assert_eq!(cancel(&world, done).await.expect_err("over").kind(), ErrorKind::Conflict);
    let mut eye = world.kit.superuser().await;
    let kept = "insert into tenancy.operations (tenant_id, kind, created_by) values ($1, 'erase', 'a test') returning id";
    let erase: Uuid = sqlx::query_scalar(kept).bind(acme.tenant_id().as_uuid()).fetch_one(&mut eye).await.expect("queued");
    assert_eq!(cancel(&world, erase).await.expect_err("an erasure ends").kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_backup_under_way_is_stopped_and_is_no_backup() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    for step in ["objects", "rows", "archive"] {
        let queued = world.ask_backup(acme.tenant_id()).await.expect("queued");
        let running = stand_still(&world, step).await;
        let asked = cancel(&world, queued.id).await.expect("asked");
        assert!(asked.state == "running" && asked.cancel_asked_at.is_some());
        let stopped = tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic").expect("ended");
        assert_eq!((stopped, world.operation(queued.id).await.state.as_str()), (Some(queued.id), "cancelled"), "{step}");
    }
    let mut tx = world.kit.db.dangerous().begin_system("a test looks").await.expect("system");
    assert!(tx.backups(acme.tenant_id(), None, 10).await.expect("backups").is_empty());
    drop(tx);
    world.back_up(acme).await;
}

#[tokio::test]
async fn a_restore_is_undone_before_its_commit_and_completed_after_it() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let backup = world.back_up(acme).await;
    let new = digests(&mut eye, Some(acme.tenant_id())).await;
    vandalise(&world, acme).await;
    let old = digests(&mut eye, Some(acme.tenant_id())).await;
    assert_ne!(old, new);
    let mut look = world.kit.superuser().await;
    let mut status = async || -> String {
        let query = sqlx::query_scalar("select status from tenancy.tenants where id = $1").bind(acme.tenant_id().as_uuid());
        query.fetch_one(&mut look).await.expect("it")
    };

    for step in ["staged", "settled", "merged"] {
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
        let running = stand_still(&world, step).await;
        assert_eq!(status().await, if step == "staged" { "active" } else { "restoring" }, "{step}");
        cancel(&world, queued.id).await.expect("asked");
        tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic").expect("ended");
        assert_eq!((world.operation(queued.id).await.state.as_str(), status().await.as_str()), ("cancelled", "active"), "{step}");
        assert_eq!(digests(&mut eye, Some(acme.tenant_id())).await, old, "{step}");
    }

    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    let running = stand_still(&world, "applied").await;
    running.abort(); // its node dies, and another one is told to cancel
    cancel(&world, queued.id).await.expect("asked");
    world.done(queued.id).await;
    assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, status().await.as_str()), (new, "active"), "it was too late");
}

#[tokio::test]
async fn of_a_clone_nothing_is_left() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let backup = world.back_up(acme).await;
    let mut tx = world.kit.db.dangerous().begin_system("a test clones").await.expect("system");
    let queued =
        tx.request_clone(acme.tenant_id(), &NewClone::new(backup, "acme-copy".parse().expect("a slug")), None).await.expect("queued");
    tx.commit().await.expect("committed");
    let tenants = async || -> usize {
        let all: Vec<_> = world.store.list(Some(&Path::from("tenants"))).try_collect().await.expect("listed");
        all.iter()
            .filter_map(|meta| meta.location.parts().nth(1).map(|part| part.as_ref().to_owned()))
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    let before = tenants().await;
    let running = stand_still(&world, "objects before").await;
    assert_eq!(tenants().await, before + 1, "the clone's are there");
    cancel(&world, queued.id).await.expect("asked");
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic").expect("ended");
    assert_eq!((world.operation(queued.id).await.state.as_str(), tenants().await), ("cancelled", before));
}

/// Undoing takes longer than a claim holds: the node that does it keeps it.
#[tokio::test]
async fn what_takes_long_to_undo_is_undone_by_the_node_that_began_it() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let slow = ThrottleConfig { wait_delete_per_call: Duration::from_millis(1_200), ..ThrottleConfig::default() };
    let slow = ThrottledStore::new(Arc::clone(&world.store) as Arc<dyn ObjectStore>, slow);
    let objects = TenantObjects::prefixed(Arc::new(slow), Path::from("tenants")).expect("objects");
    let backups = world.backups.clone().with_objects(objects);
    let backup = world.back_up(acme).await;
    let before = world.store.list(Some(&Path::from("tenants"))).try_collect::<Vec<_>>().await.expect("listed").len();
    let mut tx = world.kit.db.dangerous().begin_system("a test clones").await.expect("system");
    let clone = NewClone::new(backup, "acme-copy".parse().expect("a slug"));
    let queued = tx.request_clone(acme.tenant_id(), &clone, None).await.expect("queued");
    tx.commit().await.expect("committed");

    // A claim of 1.5 s, and 3.6 s to remove three objects.
    let running = world.stand_still(backups, "objects before", Duration::from_millis(1_500)).await;
    cancel(&world, queued.id).await.expect("asked");
    let ended = tokio::time::timeout(Duration::from_secs(60), running).await.expect("in time").expect("no panic");
    assert_eq!(ended.expect("its claim was kept"), Some(queued.id));
    let over = world.operation(queued.id).await;
    assert_eq!((over.state.as_str(), over.attempts, over.error), ("cancelled", 1, None));
    assert_eq!(world.store.list(Some(&Path::from("tenants"))).try_collect::<Vec<_>>().await.expect("listed").len(), before);
}

/// What the tenant puts while a restore brings objects back is the tenant's, and is there still if the restore is called off then.
#[tokio::test]
async fn what_is_put_while_objects_come_back_stays() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let backup = world.back_up(acme).await;
    let store = world.objects.scope(acme).expect("scope");
    for at in ["a/b.txt", "large"] {
        store.delete(&Path::from(at)).await.expect("deleted");
    }
    // All are listed, and each is asked for once more three seconds later.
    let slow = ThrottleConfig { wait_get_per_call: Duration::from_secs(3), ..ThrottleConfig::default() };
    let slow = ThrottledStore::new(Arc::clone(&world.store) as Arc<dyn ObjectStore>, slow);
    let backups = world.backups.clone().with_objects(TenantObjects::prefixed(Arc::new(slow), Path::from("tenants")).expect("objects"));
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    let meanwhile = async {
        while world.operation(queued.id).await.step != "putting objects back" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.put(acme, "large", "the tenant's").await;
    };
    let (running, ()) = tokio::join!(world.stand_still(backups, "objects before", Duration::from_secs(6)), meanwhile);
    cancel(&world, queued.id).await.expect("asked");
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic").expect("ended");
    assert_eq!(world.operation(queued.id).await.state, "cancelled");
    let contents = world.contents(acme).await;
    let begin =
        |at: &str| contents.iter().find(|(path, _)| path.ends_with(at)).map(|(_, all)| String::from_utf8_lossy(&all[..all.len().min(20)]));
    assert_eq!((begin("a/b.txt").as_deref(), begin("large").as_deref()), (Some("acme's object"), Some("the tenant's")));
}

/// A node asks each second whether to stop, and writes its claim when a third of it has passed.
#[tokio::test]
async fn a_claim_is_renewed_now_and_then_and_a_cancellation_seen_at_once() {
    let world = hard_world().await;
    let queued = world.ask_backup(world.kit.acme.tenant_id()).await.expect("queued");
    let (mut eye, mut claims, began) = (world.kit.superuser().await, BTreeSet::new(), std::time::Instant::now());
    let running = world.stand_still(world.backups.clone(), "rows", Duration::from_secs(9)).await;
    while began.elapsed() < Duration::from_secs(8) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let claim = sqlx::query_scalar("select claimed_until from tenancy.operations where id = $1").bind(queued.id);
        claims.extend(claim.fetch_one(&mut eye).await.map(|until: Option<DateTime<Utc>>| until).expect("a claim"));
    }
    let most = began.elapsed().as_secs() / 3 + 1;
    assert!((2..=most).contains(&(claims.len() as u64)), "at the begin, and every three seconds of nine: {claims:?}");
    cancel(&world, queued.id).await.expect("asked");
    tokio::time::timeout(Duration::from_secs(8), running).await.expect("seen at once").expect("no panic").expect("ended");
    assert_eq!(world.operation(queued.id).await.state, "cancelled");
}

/// A day after a backup came to nothing, nothing of it is left: its archive, and contents that no backup names.
#[tokio::test]
async fn what_a_cancelled_backup_left_goes_by_itself() {
    let world = hard_world().await;
    let (acme, globex) = (&world.kit.acme, &world.kit.globex);
    let kept = [world.back_up(acme).await, world.back_up(globex).await];
    let stored = async || -> BTreeSet<Path> {
        let all: Vec<_> = world.store.list(Some(&Path::from("backups"))).try_collect().await.expect("listed");
        all.into_iter().map(|meta| meta.location).collect()
    };
    let was = stored().await;
    for (cx, restores) in [(acme, false), (globex, true)] {
        world.put(cx, "late", "in no other backup").await;
        let queued = if restores {
            world.ask_restore(cx.tenant_id(), &NewRestore::new(kept[1])).await.expect("queued") // it has backed up how the tenant is now
        } else {
            world.ask_backup(cx.tenant_id()).await.expect("queued")
        };
        let running = stand_still(&world, "archive").await;
        cancel(&world, queued.id).await.expect("asked");
        running.await.expect("no panic").expect("ended");
        assert_eq!(world.operation(queued.id).await.state, "cancelled");
    }
    assert_eq!(stored().await.len(), was.len() + 4, "an archive and a content of each");

    assert_eq!(world.backups.queue_sweep().await.expect("asked"), None, "what is young may be of a backup that is being taken");
    for cx in [acme, globex] {
        age(&mut world.kit.superuser().await, cx.tenant_id(), "25 hours").await;
    }
    let clock = Arc::new(ManualClock::new(SystemClock.now() + TimeDelta::hours(25)));
    let db = TenantDb::open(world.kit.options().with_clock(clock)).await.expect("open");
    let later = Backups::new(&db, world.store.clone(), Path::from("backups"), keys()).with_objects(world.objects.clone());
    let mut swept = BTreeSet::new();
    for _ in 0..2 {
        swept.extend(world.backups.queue_sweep().await.expect("asked"));
        later.does(Operations::new(&db)).run_next().await.expect("worked").expect("queued");
    }
    assert_eq!(swept, BTreeSet::from([acme.tenant_id(), globex.tenant_id()]));
    assert_eq!(stored().await, was);
    assert_eq!(world.backups.queue_sweep().await.expect("asked"), None, "once");
    for (cx, backup) in [acme, globex].into_iter().zip(kept) {
        archive_of(&world, backup).await;
        world.restore(cx, &NewRestore::new(backup).without_backup()).await;
    }
}

/// What the runbook says of a tenant that is `restoring` with nothing under way: its status is the operator's to set then, and not before.
#[tokio::test]
async fn a_restore_that_can_neither_end_nor_be_undone_is_an_operators() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let go_to = async |status: TenantStatus| -> Result<(), Error> {
        let mut tx = world.kit.db.dangerous().begin_system("an operator looks after it").await.expect("system");
        tx.update_tenant(acme.tenant_id(), TenantChange::status(status), None, SystemClock.now()).await?;
        tx.commit().await
    };
    let mut look = world.kit.superuser().await;
    let mut status = async || -> String {
        let query = sqlx::query_scalar("select status from tenancy.tenants where id = $1").bind(acme.tenant_id().as_uuid());
        query.fetch_one(&mut look).await.expect("it")
    };
    let backup = world.back_up(acme).await;
    let new = digests(&mut eye, Some(acme.tenant_id())).await;
    vandalise(&world, acme).await;
    let old = digests(&mut eye, Some(acme.tenant_id())).await;

    let stuck = "create function stuck() returns trigger language plpgsql as $$ begin raise 'stuck' using errcode = 'XX001'; end $$;
                 create trigger stuck before update on tenancy.tenants for each row when (new.status = 'active') execute function stuck()";
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    let running = stand_still(&world, "settled").await;
    go_to(TenantStatus::Active).await.expect_err("nobody else lets it serve while the restore is under way");
    eye.execute(AssertSqlSafe(stuck)).await.expect("made");
    cancel(&world, queued.id).await.expect("asked");
    running.await.expect("no panic").expect("ended");
    let failed = world.operation(queued.id).await;
    assert_eq!((failed.state.as_str(), failed.error.is_some(), status().await.as_str()), ("failed", true, "restoring"));
    assert_eq!(digests(&mut eye, Some(acme.tenant_id())).await, old, "none of its rows");
    eye.execute("drop trigger stuck on tenancy.tenants").await.expect("mended");
    go_to(TenantStatus::Active).await.expect("resumed");

    // Its rows are the backup's, and an object can't be had.
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
    let running = stand_still(&world, "applied").await;
    running.abort();
    let contents: Vec<_> = world
        .store
        .list(Some(&Path::from("backups").join(acme.tenant_id().to_string()).join("blobs")))
        .try_collect()
        .await
        .expect("listed");
    let mut aside = Vec::new();
    for meta in contents {
        let content = world.store.get(&meta.location).await.expect("there").bytes().await.expect("read");
        world.store.delete(&meta.location).await.expect("deleted");
        aside.push((meta.location, content));
    }
    world.objects.scope(acme).expect("scope").put(&Path::from("a/b.txt"), "changed again".into()).await.expect("put");
    let failed = world.finish(queued.id).await;
    assert_eq!((failed.state.as_str(), status().await.as_str()), ("failed", "restoring"), "{failed:?}");
    assert_eq!(digests(&mut eye, Some(acme.tenant_id())).await, new);
    let refused = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup)).await.expect_err("not as it is");
    assert!(refused.to_string().contains("suspend or resume it first"), "{refused}");
    for (at, content) in aside {
        world.store.put(&at, content.into()).await.expect("put back");
    }
    go_to(TenantStatus::Suspended).await.expect("suspended");
    world.restore(acme, &NewRestore::new(backup).without_backup()).await;
    assert_eq!(status().await, "suspended");
    go_to(TenantStatus::Active).await.expect("resumed");
    assert!(world.contents(acme).await.values().any(|content| content == b"acme's object"));
}
