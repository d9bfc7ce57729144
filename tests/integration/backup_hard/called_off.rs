//! Operations that somebody cancels: what they did is undone, or it was too late and they go on to their end.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::path::Path;
use tenancy_core::{Error, ErrorKind};
use tenancy_sqlx::backup::{NewClone, NewRestore};
use tenancy_sqlx::operations::Operation;
use uuid::Uuid;

use crate::backup::{World, digests, hard_world, vandalise};

pub(super) async fn cancel(world: &World, id: Uuid) -> Result<Operation, Error> {
    let mut tx = world.kit.db.dangerous().begin_system("a test cancels").await.expect("system");
    let cancelled = tx.cancel_operation(id).await?;
    tx.commit().await.expect("committed");
    Ok(cancelled)
}

/// Runs a worker that stands still after `step`, until it is there.
async fn stand_still(world: &World, step: &'static str) -> tokio::task::JoinHandle<Result<Option<Uuid>, Error>> {
    let halting = world.worker(&world.backups.clone().halting_after(step)).with_lease(Duration::from_secs(6));
    let running = tokio::spawn(async move { halting.run_next().await });
    // Long enough for what comes before the step, on a busy machine: it stands still then.
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!running.is_finished(), "it went on");
    }
    running
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
