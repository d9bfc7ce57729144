//! Tenants that are backed up by themselves: when it is due, one at a time, and what is kept of it.

use std::collections::BTreeSet;

use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::path::Path;
use sqlx::PgConnection;
use tenancy_core::backup::{Keep, Schedule};
use tenancy_core::{ErrorKind, TenantId};
use tenancy_sqlx::backup::{Backup, Backups};
use uuid::Uuid;

use crate::backup::{World, hard_world};

async fn backups(world: &World, tenant: TenantId) -> Vec<Backup> {
    world.kit.db.dangerous().begin_system("a test looks").await.expect("system").backups(tenant, None, 1_000).await.expect("backups")
}

async fn set(world: &World, tenant: TenantId, schedule: Option<&Schedule>) {
    let mut tx = world.kit.db.dangerous().begin_system("a test schedules").await.expect("system");
    tx.set_backup_schedule(tenant, schedule).await.expect("set");
    tx.commit().await.expect("committed");
}

/// Lets time pass for a tenant's backups and drills.
pub(super) async fn age(eye: &mut PgConnection, tenant: TenantId, interval: &str) {
    for sql in [
        "update tenancy.backups set taken_at = taken_at - $2::interval where tenant_id = $1",
        "update tenancy.operations set updated_at = updated_at - $2::interval where tenant_id = $1 and state not in ('queued', 'running')",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql.replace("$2::interval", &format!("'{interval}'::interval"))))
            .bind(tenant.as_uuid())
            .execute(&mut *eye)
            .await
            .expect("aged");
    }
}

/// Queues what is due and does it; gives whose it was and what.
async fn next(world: &World, backups: &Backups) -> Option<(TenantId, String)> {
    let tenant = backups.queue_due().await.expect("asked")?;
    assert_eq!(backups.queue_due().await.expect("asked"), None, "one at a time");
    let id = world.worker(backups).run_next().await.expect("worked").expect("queued");
    let done = world.operation(id).await;
    assert_eq!((done.state.as_str(), done.input["reason"].as_str()), ("done", Some("scheduled")), "{:?}", done.error);
    Some((tenant, done.kind))
}

#[tokio::test]
async fn what_is_due_is_done_and_what_is_not_is_left() {
    let world = hard_world().await;
    let (acme, globex) = (world.kit.acme.tenant_id(), world.kit.globex.tenant_id());
    let mut eye = world.kit.superuser().await;
    assert_eq!(world.backups.queue_due().await.expect("asked"), None, "nobody said that any is");

    let daily = world.backups.clone().with_schedule(Schedule::default());
    let mut done = BTreeSet::new();
    for _ in 0..4 {
        done.insert(next(&world, &daily).await.expect("due"));
    }
    let both = |kind: &str| [(acme, kind.to_owned()), (globex, kind.to_owned())];
    assert_eq!(done, BTreeSet::from_iter(both("backup").into_iter().chain(both("drill"))), "none had a backup, or a drill");
    assert_eq!(next(&world, &daily).await, None);
    assert_eq!(backups(&world, acme).await[0].reason, "scheduled");

    age(&mut eye, acme, "23 hours 50 minutes").await;
    assert_eq!(next(&world, &daily).await, None);
    age(&mut eye, acme, "10 minutes").await;
    assert_eq!(next(&world, &daily).await, Some((acme, "backup".to_owned())));
    age(&mut eye, acme, "89 days").await;
    assert_eq!(next(&world, &daily).await, Some((acme, "backup".to_owned())), "and no drill yet");
    assert_eq!(next(&world, &daily).await, None);
    age(&mut eye, globex, "91 days").await;
    assert_eq!(next(&world, &daily).await, Some((globex, "backup".to_owned())));
    assert_eq!(next(&world, &daily).await, Some((globex, "drill".to_owned())));
    let mut tx = world.kit.db.dangerous().begin_system("a test looks").await.expect("system");
    let drills = tx.drills(globex).await.expect("drills");
    assert!(drills.len() == 2 && drills.iter().all(|drill| drill.result.as_ref().is_some_and(|report| report["took_ms"].is_u64())));
    drop(tx);

    // Its own schedule counts, and one that failed is let alone for an hour.
    let mut hourly = Schedule::NONE;
    hourly.every_hours = Some(1);
    set(&world, globex, Some(&hourly)).await;
    age(&mut eye, globex, "61 minutes").await;
    let failed = "insert into tenancy.operations (tenant_id, kind, state, created_by) values ($1, 'backup', 'failed', 'a test')";
    sqlx::query(failed).bind(globex.as_uuid()).execute(&mut eye).await.expect("failed");
    assert_eq!(next(&world, &daily).await, None);
    let mut tx = world.kit.db.dangerous().begin_system("a test looks").await.expect("system");
    let standing = daily.standing(&mut tx, globex).await.expect("standing");
    assert!(standing.own && standing.backup_failed_at.is_some() && standing.drill_failed_at.is_none() && standing.schedule == hourly);
    drop(tx);
    age(&mut eye, globex, "61 minutes").await;
    assert_eq!(next(&world, &daily).await, Some((globex, "backup".to_owned())));
    set(&world, globex, Some(&Schedule::NONE)).await;
    age(&mut eye, globex, "1 year").await;
    assert_eq!(next(&world, &daily).await, None, "never is a schedule");
    set(&world, globex, None).await;
    let suspend = "update tenancy.tenants set status = 'suspended', version = version + 1 where id = $1";
    sqlx::query(suspend).bind(globex.as_uuid()).execute(&mut eye).await.expect("suspended");
    assert_eq!(next(&world, &daily).await, None, "nobody writes on behalf of a tenant that is suspended");
}

#[tokio::test]
async fn several_nodes_queue_one() {
    let world = hard_world().await;
    let daily = world.backups.clone().with_schedule(Schedule::default());
    let asked = (0..8).map(|_| {
        let daily = daily.clone();
        tokio::spawn(async move { daily.queue_due().await })
    });
    let mut queued = 0;
    for asked in asked.collect::<Vec<_>>() {
        match asked.await.expect("asked") {
            Ok(found) => queued += usize::from(found.is_some()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Retry, "{error}"),
        }
    }
    assert_eq!(queued, 1);
}

#[tokio::test]
async fn what_is_kept_no_longer_goes_and_its_archive_with_it() {
    let world = hard_world().await;
    let (acme, globex) = (world.kit.acme.tenant_id(), world.kit.globex.tenant_id());
    let mut eye = world.kit.superuser().await;
    let mut rule = Schedule::default();
    (rule.keep, rule.drill_days) = (Keep::new(1, 2, 0, 0), None);
    let daily = world.backups.clone().with_schedule(rule);
    set(&world, globex, Some(&Schedule::NONE)).await;
    let asked = world.back_up(&world.kit.acme).await; // is kept until somebody deletes it
    let other = world.back_up(&world.kit.globex).await;
    let mut held = Uuid::nil();
    for n in 0..6 {
        age(&mut eye, acme, "1 day").await;
        assert!(next(&world, &daily).await.is_some());
        if n == 1 {
            held = backups(&world, acme).await[0].id;
            let mut tx = world.kit.db.dangerous().begin_system("a test holds").await.expect("system");
            tx.hold_backup(acme, held, Some("litigation 4711")).await.expect("held");
            tx.commit().await.expect("committed");
        }
    }
    let kept: Vec<Uuid> = backups(&world, acme).await.iter().map(|backup| backup.id).collect();
    assert_eq!((kept.len(), &kept[2..]), (4, &[held, asked][..]), "two days, what is held, and what was asked for");
    let gone =
        "select count(*) from tenancy.audit_events where tenant_id = $1 and action = 'backup.delete' and detail ->> 'reason' = 'retention'";
    assert_eq!(sqlx::query_scalar::<_, i64>(gone).bind(acme.as_uuid()).fetch_one(&mut eye).await.expect("events"), 3);

    let folder = |tenant: TenantId| Path::from("backups").join(tenant.to_string()).join("archives");
    let archives = async |tenant: TenantId| -> BTreeSet<String> {
        let all: Vec<_> = world.store.list(Some(&folder(tenant))).try_collect().await.expect("listed");
        all.iter().filter_map(|meta| meta.location.parts().nth(3).map(|part| part.as_ref().to_owned())).collect()
    };
    assert_eq!(archives(acme).await.len(), 7);
    assert_eq!(daily.queue_sweep().await.expect("queued"), Some(acme));
    world.worker(&daily).run_next().await.expect("worked");
    assert_eq!(archives(acme).await, kept.iter().map(Uuid::to_string).collect());
    assert_eq!(archives(globex).await, BTreeSet::from([other.to_string()]), "another tenant's stay");
    // What is kept can be restored.
    let restored = world.restore(&world.kit.acme, &tenancy_sqlx::backup::NewRestore::new(kept[1]).dry_run()).await;
    assert_eq!(restored["dry_run"], true);
}
