//! Jobs: each runs as its own tenant, keeps what it wrote once, waits while the tenant is suspended, and is given up when it is archived.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use harness::Kit;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tenancy_core::outbox::{Delivery, DeliveryError, Message, RetryPolicy, Sink};
use tenancy_core::{
    Actor, Error, ErrorKind, JobEnvelope, Principal, Result, TenantCatalog as _, TenantChange, TenantContext, TenantId, TenantStatus,
};
use tenancy_sqlx::jobs::{JobHandler, Jobs};
use tenancy_sqlx::outbox::{Worker, WorkerOptions};
use tenancy_sqlx::{TenantTx, from_sqlx};
use tokio::sync::Barrier;
use uuid::Uuid;

/// What a run of the job saw.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    tenant: TenantId,
    request: Uuid,
    attempt: u32,
    notes: Vec<String>,
}

/// Adds a note, after it has read all of them. Fails as often as its payload says, after it has written.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Run>>>);

#[async_trait]
impl JobHandler for Notes {
    async fn run(&self, cx: &TenantContext, job: &JobEnvelope, tx: &mut TenantTx) -> Result<()> {
        assert!(matches!(cx.principal(), Principal::Job { name, .. } if name == "note"));
        let notes = sqlx::query_scalar("select body from notes order by body").fetch_all(&mut *tx).await.map_err(from_sqlx)?;
        self.0.lock().expect("a lock").push(Run { tenant: tx.tenant_id(), request: cx.request_id(), attempt: job.attempt(), notes });
        sqlx::query("insert into notes (body) values ('by a job')").execute(&mut *tx).await.map_err(from_sqlx)?;
        if u64::from(job.attempt()) <= job.payload()["failures"].as_u64().unwrap_or_default() {
            return Err(Error::new(ErrorKind::Unavailable, "not yet"));
        }
        if job.payload()["invalid"] == true {
            return Err(Error::invalid("payload", "must make sense"));
        }
        Ok(())
    }
}

impl Notes {
    fn runs(&self, of: &TenantContext) -> Vec<Run> {
        self.0.lock().expect("a lock").iter().filter(|run| run.tenant == of.tenant_id()).cloned().collect()
    }
}

async fn enqueue(kit: &Kit, cx: &TenantContext, payload: serde_json::Value) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let job = JobEnvelope::new(cx, "note").with_payload(payload);
    assert!(tx.enqueue(&job, "1").await.expect("queued") && !tx.enqueue(&job, "1").await.expect("known"));
    tx.commit().await.expect("commit");
}

async fn worker(kit: &Kit, sink: impl Sink, attempts: u32) -> Worker {
    let retry = RetryPolicy::new(attempts, Duration::ZERO, Duration::ZERO);
    let options = WorkerOptions::default().with_poll(Duration::from_millis(10)).with_retry(retry);
    Worker::start(&kit.db, Arc::new(sink), options).await.expect("a worker")
}

async fn to(kit: &Kit, cx: &TenantContext, status: TenantStatus) {
    kit.db.catalog().update(cx.tenant_id(), TenantChange::status(status), None, &Actor::System).await.expect("changed");
}

/// Waits until as many messages are so.
async fn wait_for(eye: &mut PgConnection, condition: &str, count: i64) {
    let sql = format!("select count(*) from tenancy.outbox where {condition}");
    for _ in 0..1500 {
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut *eye).await.expect("outbox");
        if now == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never {count} messages where {condition}");
}

#[tokio::test]
async fn a_job_runs_as_its_own_tenant_also_when_it_is_tried_again() {
    let kit = Kit::new().await;
    kit.note(&kit.acme, "acme's").await;
    kit.note(&kit.globex, "globex's").await;
    let notes = Notes::default();
    // The control: nothing runs that was not committed.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.enqueue(&JobEnvelope::new(&kit.acme, "note"), "0").await.expect("queued");
    tx.rollback().await.expect("undone");
    enqueue(&kit, &kit.acme, json!({ "failures": 2 })).await;
    enqueue(&kit, &kit.globex, json!({ "failures": 2 })).await;
    let mut eye = kit.superuser().await;
    let worker = worker(&kit, Jobs::new(&kit.db).with("note", notes.clone()), 5).await;
    wait_for(&mut eye, "sent_at is not null", 2).await;
    worker.shutdown().await;
    for (cx, own, kept) in [(&kit.acme, "acme's", ["acme's", "by a job"]), (&kit.globex, "globex's", ["by a job", "globex's"])] {
        let run = |attempt| Run { tenant: cx.tenant_id(), request: cx.request_id(), attempt, notes: vec![own.to_owned()] };
        assert_eq!(notes.runs(cx), [run(1), run(2), run(3)], "no try sees what another tenant has, or what failed");
        assert_eq!(kit.notes(cx).await, kept, "what it wrote is kept once");
    }
}

#[tokio::test]
async fn a_suspended_tenants_job_is_held_and_an_archived_ones_is_given_up() {
    let kit = Kit::new().await;
    let notes = Notes::default();
    for cx in [&kit.acme, &kit.globex] {
        enqueue(&kit, cx, json!(null)).await;
    }
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    tx.post(&Message::new("note.made", "1", json!({})).expect("a message")).await.expect("posted");
    tx.commit().await.expect("commit");
    to(&kit, &kit.acme, TenantStatus::Suspended).await;
    to(&kit, &kit.globex, TenantStatus::Archived).await;
    let mut eye = kit.superuser().await;
    let worker = worker(&kit, Jobs::new(&kit.db).with("note", notes.clone()), 1).await;
    wait_for(&mut eye, "dead_at is not null and last_error = 'the tenant is archived'", 1).await;
    wait_for(&mut eye, "dead_at is null and sent_at is null and attempts = 0", 2).await; // acme's job, and what is no job
    assert!(notes.0.lock().expect("a lock").is_empty());
    to(&kit, &kit.acme, TenantStatus::Active).await;
    wait_for(&mut eye, "sent_at is not null and attempts = 1", 1).await;
    worker.shutdown().await;
    assert_eq!(notes.runs(&kit.acme).len(), 1);
    assert!(notes.runs(&kit.globex).is_empty());
}

/// The job as a worker hands it out.
async fn delivery(kit: &Kit, cx: &TenantContext) -> Delivery {
    let row = sqlx::query("select id, dedup_key, topic, payload from tenancy.outbox where tenant_id = $1")
        .bind(cx.tenant_id().as_uuid())
        .fetch_one(&mut kit.superuser().await)
        .await
        .expect("a message");
    let message = Message::new(row.get::<String, _>(2), "k", row.get(3)).expect("a message");
    Delivery::new(row.get(0), row.get::<String, _>(1), Some(cx.tenant_id()), &message, 1)
}

/// It was suspended after a worker had taken the job.
#[tokio::test]
async fn a_job_under_way_is_held_without_counting() {
    let kit = Kit::new().await;
    let notes = Notes::default();
    enqueue(&kit, &kit.acme, json!(null)).await;
    let (jobs, taken) = (Jobs::new(&kit.db).with("note", notes.clone()), delivery(&kit, &kit.acme).await);
    to(&kit, &kit.acme, TenantStatus::Suspended).await;
    assert_eq!(jobs.deliver(&taken).await, Err(DeliveryError::Held("the tenant is suspended".to_owned())));
    to(&kit, &kit.acme, TenantStatus::Archived).await;
    assert_eq!(jobs.deliver(&taken).await, Err(DeliveryError::Refused("the tenant is archived".to_owned())));
    assert!(notes.runs(&kit.acme).is_empty());

    /// Holds twice, then takes it.
    struct Holding(AtomicUsize);
    #[async_trait]
    impl Sink for Holding {
        async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
            assert_eq!(delivery.attempt, 1, "what was held is no try");
            if self.0.fetch_add(1, Ordering::SeqCst) < 2 { Err(DeliveryError::Held("not now".to_owned())) } else { Ok(()) }
        }
    }
    enqueue(&kit, &kit.globex, json!(null)).await;
    let worker = worker(&kit, Holding(AtomicUsize::new(0)), 1).await;
    wait_for(&mut kit.superuser().await, "sent_at is not null and attempts = 1", 1).await;
    worker.shutdown().await;
}

/// Both do the work at once: the lease of the first ran out.
struct Both(Arc<Barrier>, Notes);

#[async_trait]
impl JobHandler for Both {
    async fn run(&self, cx: &TenantContext, job: &JobEnvelope, tx: &mut TenantTx) -> Result<()> {
        self.1.run(cx, job, tx).await?;
        self.0.wait().await;
        Ok(())
    }
}

#[tokio::test]
async fn a_job_that_two_workers_do_is_kept_once() {
    let kit = Kit::new().await;
    let notes = Notes::default();
    enqueue(&kit, &kit.acme, json!(null)).await;
    let (jobs, taken) = (Jobs::new(&kit.db).with("note", Both(Arc::new(Barrier::new(2)), notes.clone())), delivery(&kit, &kit.acme).await);
    let (one, two) = tokio::join!(jobs.deliver(&taken), jobs.deliver(&taken));
    assert_eq!((one, two), (Ok(()), Ok(())));
    assert_eq!(notes.runs(&kit.acme).len(), 2, "control: both did it");
    assert_eq!(kit.notes(&kit.acme).await, ["by a job"]);
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    let finished: bool = sqlx::query_scalar("select tenancy.job_finish($1)").bind(taken.id).fetch_one(&mut tx).await.expect("asked");
    assert!(!finished, "another tenant's job is none");
}

#[tokio::test]
async fn what_is_no_job_of_the_tenant_is_given_up() {
    let kit = Kit::new().await;
    let notes = Notes::default();
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let foreign = tx.enqueue(&JobEnvelope::new(&kit.globex, "note"), "1").await.expect_err("another tenant's");
    assert_eq!((foreign.kind(), foreign.field()), (ErrorKind::Invalid, Some("tenant_id")));
    let job = |cx: &TenantContext| serde_json::to_value(JobEnvelope::new(cx, "note")).expect("JSON");
    let mut nobodys = job(&kit.acme);
    nobodys.as_object_mut().expect("an object").remove("tenant_id");
    for (key, forged) in [("forged", job(&kit.globex)), ("nobodys", nobodys), ("nothing", json!(7))] {
        tx.post(&Message::new("job.note", key, forged).expect("a message")).await.expect("posted");
    }
    tx.post(&Message::new("job.other", "named", job(&kit.acme)).expect("a message")).await.expect("posted");
    tx.enqueue(&JobEnvelope::new(&kit.acme, "note").with_payload(json!({ "invalid": true })), "invalid").await.expect("queued");
    tx.enqueue(&JobEnvelope::new(&kit.acme, "nobody_does"), "unknown").await.expect("queued");
    tx.commit().await.expect("commit");
    let worker = worker(&kit, Jobs::new(&kit.db).with("note", notes.clone()).with("other", notes.clone()), 2).await;
    let mut eye = kit.superuser().await;
    wait_for(&mut eye, "dead_at is not null and attempts = 1", 5).await;
    wait_for(&mut eye, "dead_at is not null and attempts = 2 and last_error like 'nothing here does%'", 1).await;
    worker.shutdown().await;
    assert!(notes.runs(&kit.globex).is_empty() && notes.runs(&kit.acme).len() == 1, "{notes:?}", notes = notes.0);
    assert!(kit.notes(&kit.globex).await.is_empty() && kit.notes(&kit.acme).await.is_empty());
}
