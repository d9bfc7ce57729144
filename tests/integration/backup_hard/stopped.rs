//! Backends that are killed while a tenant is restored: the old rows stand or the new ones, and another run completes.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use tenancy_sqlx::backup::NewRestore;

use crate::backup::{digests, hard_world, vandalise};

/// Kills the backend of a transaction that has written and waits for its client, and says how many there were.
const KILL_HALTED: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database()
    and backend_xid is not null and state = 'idle in transaction' and state_change < clock_timestamp() - interval '300 milliseconds'";
const KILL_ALL: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle' and usename <> 'tenancy_app'";

#[tokio::test]
async fn a_backend_that_dies_with_all_merged_leaves_the_old_rows_and_a_rerun_completes() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    let others = digests(&mut eye, Some(world.kit.globex.tenant_id())).await;
    for (step, told) in [("merged", "restoring rows"), ("before commit", "verifying")] {
        vandalise(&world, acme).await;
        let old = digests(&mut eye, Some(acme.tenant_id())).await;
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
        let halted = world.stand_still(world.backups.clone(), step, Duration::from_secs(5)).await;
        let killing = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if world.operation(queued.id).await.step == told
                    && sqlx::query_scalar::<_, i64>(KILL_HALTED).fetch_one(&mut eye).await.expect("killed") == 1
                {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), killing).await.expect(step);
        halted.abort();
        assert_eq!(digests(&mut eye, Some(acme.tenant_id())).await, old, "{step}: nothing of it stands");
        world.done(queued.id).await;
        assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new, "{step}");
    }
    assert_eq!(digests(&mut eye, Some(world.kit.globex.tenant_id())).await, others);
}

/// What was backed up first says which tables look as in the archive, and no more.
#[tokio::test]
async fn a_restore_goes_on_without_the_backup_that_it_took_first() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    vandalise(&world, acme).await;
    let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup)).await.expect("queued");
    world.killed_after("objects before").await;
    let mut tx = world.kit.db.dangerous().begin_system("a test deletes a backup").await.expect("system");
    let taken = tx.backups(acme.tenant_id(), None, 10).await.expect("backups");
    let first = taken.into_iter().find(|taken| taken.id != backup).expect("taken first").id;
    tx.delete_backup(acme.tenant_id(), first).await.expect("deleted");
    tx.commit().await.expect("commit");
    let result = world.done(queued.id).await;
    assert_eq!(result["before"], serde_json::json!(first), "the same is not taken twice");
    assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_die_at_any_moment_and_there_is_no_mix_of_old_and_new() {
    let world = hard_world().await;
    let acme = &world.kit.acme;
    let mut eye = world.kit.superuser().await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let backup = world.back_up(acme).await;
    let new = (digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await);
    let (mut died, rounds) = (0, if std::env::var_os("TENANCY_NIGHTLY").is_some() { 60 } else { 4 });
    for _ in 0..rounds {
        vandalise(&world, acme).await;
        let old = digests(&mut eye, Some(acme.tenant_id())).await;
        let queued = world.ask_restore(acme.tenant_id(), &NewRestore::new(backup).without_backup()).await.expect("queued");
        let worker = world.worker(&world.backups);
        let running = tokio::spawn(async move { worker.run_next().await.map(drop) });
        while !running.is_finished() {
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..150))).await;
            died += sqlx::query_scalar::<_, i64>(KILL_ALL).fetch_one(&mut eye).await.expect("killed");
            if died % 3 == 2 {
                break; // let it get further
            }
        }
        drop(running.await);
        let now = digests(&mut eye, Some(acme.tenant_id())).await;
        assert!(now == old || now == new.0, "old or new, and no mix");
        world.done(queued.id).await;
        assert_eq!((digests(&mut eye, Some(acme.tenant_id())).await, world.contents(acme).await), new);
        world.kit.notes(acme).await;
    }
    assert!(died > 0, "some were killed");
}
