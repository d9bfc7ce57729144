//! Messages: posted if the transaction commits, once per key and tenant, for nobody else to read, and delivered whatever happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use harness::Kit;
use serde_json::{Map, json};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tenancy_core::outbox::{Delivery, DeliveryError, Message, RetryPolicy, Sink};
use tenancy_core::{Actor, ErrorKind, TenantCatalog, TenantChange, TenantContext, TenantStatus};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::outbox::{MessageState, Worker, WorkerOptions};
use tokio::sync::Semaphore;

fn invited() -> Message {
    let secret = Map::from_iter([("token".to_owned(), json!("s3cret"))]);
    Message::new("member.invited", "invite:1", json!({ "to": "ada@example.com" })).expect("a message").with_secret(secret)
}

/// Posts, and says whether the message was new.
async fn post(kit: &Kit, cx: &TenantContext, commit: bool) -> bool {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let new = tx.post(&invited()).await.expect("post");
    let ended = if commit { tx.commit().await } else { tx.rollback().await };
    ended.expect("ended");
    new
}

#[tokio::test]
async fn a_message_is_there_if_the_transaction_commits_and_once() {
    let kit = Kit::new().await;
    assert!(post(&kit, &kit.acme, false).await, "rolled back");
    assert!(post(&kit, &kit.acme, true).await, "the first that stays");
    assert!(!post(&kit, &kit.acme, true).await, "the same again");
    assert!(post(&kit, &kit.globex, true).await, "another tenant's key is another key");

    let mut tx = kit.db.dangerous().begin_system("a test posts for a tenant and for the platform").await.expect("system");
    assert!(!tx.post(Some(kit.acme.tenant_id()), &invited()).await.expect("post"));
    assert!(tx.post(None, &invited()).await.expect("post"));
    tx.commit().await.expect("commit");

    let mut eye = kit.superuser().await;
    let rows =
        sqlx::query("select tenant_id, topic, payload, secret from tenancy.outbox order by id").fetch_all(&mut eye).await.expect("rows");
    let whose: Vec<Option<uuid::Uuid>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(whose, [Some(kit.acme.tenant_id().as_uuid()), Some(kit.globex.tenant_id().as_uuid()), None]);
    for row in rows {
        assert_eq!(row.get::<String, _>(1), "member.invited");
        assert_eq!(row.get::<serde_json::Value, _>(2), json!({ "to": "ada@example.com" }));
        assert_eq!(row.get::<serde_json::Value, _>(3), json!({ "token": "s3cret" }));
    }
}

#[tokio::test]
async fn the_applications_role_posts_for_its_tenant_alone_and_reads_nothing() {
    let kit = Kit::new().await;
    post(&kit, &kit.acme, true).await;
    let (acme, globex) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    for attempt in [
        "select * from tenancy.outbox".to_owned(),
        "select secret from tenancy.outbox".to_owned(),
        "delete from tenancy.outbox".to_owned(),
        format!("select tenancy.outbox_post_for('{globex}', 'a.b', 'k', '{{}}', null)"),
        format!("insert into tenancy.outbox (tenant_id, topic, dedup_key, payload) values ('{acme}', 'a.b', 'k', '{{}}')"),
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = sqlx::query(sqlx::AssertSqlSafe(attempt.clone())).fetch_all(&mut tx).await.map_err(tenancy_sqlx::from_sqlx);
        assert_eq!(refused.map(|rows| rows.len()).expect_err(&attempt).kind(), ErrorKind::Forbidden, "{attempt}");
    }
    // The control: whoever may, does.
    let mut tx = kit.db.dangerous().begin_system("a test reads the outbox").await.expect("system");
    let secret: serde_json::Value = sqlx::query_scalar("select secret from tenancy.outbox").fetch_one(&mut tx).await.expect("read");
    assert_eq!(secret["token"], "s3cret");
}

/// Keeps what it is given. A message waits for a permit first, and a topic says how it goes.
struct Seen {
    all: Mutex<Vec<Delivery>>,
    gate: Semaphore,
    /// Messages that came, and those that were given an answer.
    came: AtomicUsize,
    failing: AtomicBool,
}

impl Seen {
    fn open() -> Arc<Self> {
        Self::with_permits(Semaphore::MAX_PERMITS)
    }

    fn with_permits(permits: usize) -> Arc<Self> {
        Arc::new(Self { all: Mutex::default(), gate: Semaphore::new(permits), came: AtomicUsize::new(0), failing: AtomicBool::new(false) })
    }

    fn keys(&self) -> Vec<String> {
        self.all.lock().expect("a lock").iter().map(|delivery| delivery.key.clone()).collect()
    }
}

#[async_trait]
impl Sink for Seen {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
        self.came.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("open").forget();
        self.all.lock().expect("a lock").push(delivery.clone());
        match delivery.topic.as_str() {
            "test.panic" => panic!("as the test asks"),
            "test.refused" => Err(DeliveryError::Refused("no such\0 address".to_owned())),
            _ if self.failing.load(Ordering::SeqCst) => Err(DeliveryError::Retry("busy".to_owned())),
            _ => Ok(()),
        }
    }
}

/// A look every 10 ms, and no wait between tries.
fn eager(attempts: u32) -> WorkerOptions {
    let retry = RetryPolicy::new(attempts, Duration::ZERO, Duration::ZERO);
    WorkerOptions::default().with_poll(Duration::from_millis(10)).with_retry(retry)
}

async fn worker(db: &TenantDb, sink: &Arc<Seen>, options: WorkerOptions) -> Worker {
    Worker::start(db, Arc::clone(sink) as Arc<dyn Sink>, options).await.expect("a worker")
}

async fn post_many(kit: &Kit, cx: &TenantContext, topic: &str, count: usize) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    for n in 0..count {
        let secret = Map::from_iter([("token".to_owned(), json!("s3cret"))]);
        let message = Message::new(topic, format!("k{n}"), json!({ "n": n })).expect("a message").with_secret(secret);
        assert!(tx.post(&message).await.expect("post"));
    }
    tx.commit().await.expect("commit");
}

/// Waits until as many rows of the outbox as that are so.
async fn wait_for(eye: &mut PgConnection, condition: &str, count: usize) {
    let sql = format!("select count(*) from tenancy.outbox where {condition}");
    for _ in 0..1500 {
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut *eye).await.expect("outbox");
        if usize::try_from(now) == Ok(count) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never {count} messages where {condition}");
}

async fn wait_until(what: impl Fn() -> bool) {
    for _ in 0..1500 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came to that");
}

#[tokio::test]
async fn two_workers_deliver_each_message_once_with_its_secret_and_then_forget_that() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let other = TenantDb::open(kit.options()).await.expect("a second node");
    let (one, two) = (Seen::open(), Seen::open());
    let workers = [worker(&kit.db, &one, eager(3)).await, worker(&other, &two, eager(3)).await];
    post_many(&kit, &kit.acme, "member.invited", 150).await;
    post_many(&kit, &kit.globex, "member.invited", 149).await;
    let mut tx = kit.db.dangerous().begin_system("a test posts for the platform").await.expect("system");
    tx.post(None, &Message::new("member.invited", "k0", json!({})).expect("a message")).await.expect("post");
    tx.commit().await.expect("commit");
    wait_for(&mut eye, "sent_at is not null and secret is null and claim is null and attempts = 1", 300).await;
    for worker in workers {
        worker.shutdown().await;
    }
    let mut keys = [one.keys(), two.keys()].concat();
    assert_eq!(keys.len(), 300);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 300, "each once");
    let all = [one.all.lock().expect("a lock").clone(), two.all.lock().expect("a lock").clone()].concat();
    for delivery in &all {
        let whose = delivery.tenant_id.map_or_else(|| "platform".to_owned(), |tenant| tenant.to_string());
        assert!(delivery.key.starts_with(&format!("{whose}:member.invited:k")), "{delivery:?}");
        assert_eq!(delivery.secret["token"] == "s3cret", delivery.tenant_id.is_some());
    }
}

#[tokio::test]
async fn what_a_killed_worker_had_is_delivered_again_with_the_same_key() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let seen = Seen::with_permits(0);
    let killed = worker(&kit.db, &seen, eager(3)).await;
    post_many(&kit, &kit.acme, "test.sent", 1).await;
    wait_until(|| seen.came.load(Ordering::SeqCst) == 1).await;
    drop(killed);

    // The control: as long as the lease runs, nobody else takes it.
    let heir = Seen::open();
    let worker = worker(&kit.db, &heir, eager(3)).await;
    post_many(&kit, &kit.globex, "test.sent", 1).await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    assert_eq!(heir.keys(), [format!("{}:test.sent:k0", kit.globex.tenant_id())]);

    sqlx::query("update tenancy.outbox set due_at = clock_timestamp() where claim is not null").execute(&mut eye).await.expect("lapse");
    wait_for(&mut eye, "sent_at is not null", 2).await;
    worker.shutdown().await;
    let again = heir.all.lock().expect("a lock")[1].clone();
    assert_eq!((again.key, again.attempt), (format!("{}:test.sent:k0", kit.acme.tenant_id()), 2));
    assert_eq!(again.secret["token"], "s3cret", "it was not delivered, as far as anybody knows");
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_marks_nothing() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let (slow, fast) = (Seen::with_permits(0), Seen::with_permits(0));
    let late = worker(&kit.db, &slow, eager(5)).await;
    post_many(&kit, &kit.acme, "test.refused", 1).await;
    wait_until(|| slow.came.load(Ordering::SeqCst) == 1).await;
    let first = tokio::spawn(late.shutdown());
    tokio::task::yield_now().await; // it takes no more
    sqlx::query("update tenancy.outbox set due_at = clock_timestamp() where claim is not null").execute(&mut eye).await.expect("lapse");
    let second = worker(&kit.db, &fast, eager(5)).await;
    wait_until(|| fast.came.load(Ordering::SeqCst) == 1).await;
    slow.gate.add_permits(1);
    first.await.expect("it stopped");
    wait_for(&mut eye, "dead_at is null and claim is not null", 1).await;
    fast.gate.add_permits(1);
    // The control: the one that has the lease does.
    wait_for(&mut eye, "dead_at is not null and claim is null", 1).await;
    second.shutdown().await;
}

#[tokio::test]
async fn a_lost_connection_is_no_repetition_and_stopping_waits_for_what_is_under_way() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let seen = Seen::with_permits(0);
    let worker = worker(&kit.db, &seen, eager(3)).await;
    post_many(&kit, &kit.acme, "test.sent", 2).await;
    wait_until(|| seen.came.load(Ordering::SeqCst) == 2).await;
    // Between the delivery and its record, every session of the kit is gone.
    let cut =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let cut: i64 = sqlx::query_scalar(cut).fetch_one(&mut eye).await.expect("terminate");
    assert!(cut > 0);
    seen.gate.add_permits(2);
    worker.shutdown().await;
    wait_for(&mut eye, "sent_at is not null and attempts = 1", 2).await;
    assert_eq!(seen.keys().len(), 2);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_given_up_in_the_end() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let seen = Seen::open();
    seen.failing.store(true, Ordering::SeqCst);
    let first = worker(&kit.db, &seen, eager(3)).await;
    post_many(&kit, &kit.acme, "test.busy", 1).await;
    wait_for(&mut eye, "dead_at is not null and last_error = 'busy' and attempts = 3 and secret is null and secret_gone", 1).await;
    post_many(&kit, &kit.acme, "test.panic", 1).await;
    wait_for(&mut eye, "dead_at is not null and last_error = 'the sink panicked' and attempts = 3", 1).await;
    post_many(&kit, &kit.acme, "test.refused", 1).await;
    wait_for(&mut eye, "dead_at is not null and last_error = 'no such address' and attempts = 1", 1).await;
    first.shutdown().await;
    assert_eq!(seen.keys().len(), 3 + 3 + 1);

    // A worker that is lost at each try is as good as one that fails.
    post_many(&kit, &kit.globex, "test.fatal", 1).await;
    sqlx::query("update tenancy.outbox set attempts = 3 where topic = 'test.fatal'").execute(&mut eye).await.expect("lost");
    // The first failure then waits for its time, and the next try is the one that succeeds.
    let patient = eager(3).with_retry(RetryPolicy::new(3, Duration::from_secs(3600), Duration::from_secs(3600)));
    let second = worker(&kit.db, &seen, patient).await;
    wait_for(&mut eye, "dead_at is not null and topic = 'test.fatal' and last_error like 'the worker was lost%'", 1).await;
    post_many(&kit, &kit.globex, "test.later", 1).await;
    wait_for(&mut eye, "topic = 'test.later' and due_at > clock_timestamp() + '29 minutes' and claim is null and secret is not null", 1)
        .await;
    seen.failing.store(false, Ordering::SeqCst);
    sqlx::query("update tenancy.outbox set due_at = clock_timestamp() where topic = 'test.later'").execute(&mut eye).await.expect("due");
    wait_for(&mut eye, "topic = 'test.later' and sent_at is not null and attempts = 2 and secret is null", 1).await;
    second.shutdown().await;
}

#[tokio::test]
async fn the_dead_are_tried_again_on_demand_unless_their_secret_is_gone() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let seen = Seen::open();
    seen.failing.store(true, Ordering::SeqCst);
    post_many(&kit, &kit.acme, "test.secret", 1).await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.post(&Message::new("test.plain", "k", json!({})).expect("a message")).await.expect("post");
    tx.commit().await.expect("commit");
    let mut tx = kit.db.dangerous().begin_system("a test looks").await.expect("system");
    let waiting = tx.undelivered(MessageState::Waiting, None, 10).await.expect("waiting");
    assert_eq!(waiting.iter().map(|message| message.topic.as_str()).collect::<Vec<_>>(), ["test.plain", "test.secret"]);
    assert_eq!(tx.redeliver(waiting[0].id).await.expect_err("not dead").kind(), ErrorKind::Conflict);
    assert_eq!(tx.redeliver(0).await.expect_err("absent").kind(), ErrorKind::NotFound);
    tx.rollback().await.expect("rollback");

    let worker = worker(&kit.db, &seen, eager(1)).await;
    wait_for(&mut eye, "dead_at is not null", 2).await;
    seen.failing.store(false, Ordering::SeqCst);
    let mut tx = kit.db.dangerous().begin_system("a test redelivers").await.expect("system");
    let dead = tx.undelivered(MessageState::Dead, None, 10).await.expect("dead");
    assert_eq!((dead.len(), dead[0].last_error.as_deref(), dead[0].attempts), (2, Some("busy"), 1));
    assert_eq!(tx.redeliver(dead[1].id).await.expect_err("its secret is gone").kind(), ErrorKind::Conflict);
    tx.redeliver(dead[0].id).await.expect("redeliver");
    tx.commit().await.expect("commit");
    wait_for(&mut eye, "topic = 'test.plain' and sent_at is not null", 1).await;
    worker.shutdown().await;
    let events: Vec<(Option<uuid::Uuid>, String)> =
        sqlx::query_as("select tenant_id, target from tenancy.audit_events where action = 'outbox.redeliver'")
            .fetch_all(&mut eye)
            .await
            .expect("events");
    assert_eq!(events, [(Some(kit.acme.tenant_id().as_uuid()), dead[0].id.to_string())]);
}

#[tokio::test]
async fn messages_of_a_suspended_tenant_are_held_until_it_resumes() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    post_many(&kit, &kit.acme, "test.sent", 3).await;
    let catalog = kit.db.catalog();
    catalog.update(kit.acme.tenant_id(), TenantChange::status(TenantStatus::Suspended), None, &Actor::System).await.expect("suspend");
    let seen = Seen::open();
    let worker = worker(&kit.db, &seen, eager(3)).await;
    // The control: another tenant's are sent meanwhile, and after them the worker has looked again.
    for topic in ["test.sent", "test.again"] {
        post_many(&kit, &kit.globex, topic, 3).await;
        wait_for(&mut eye, &format!("sent_at is not null and topic = '{topic}'"), 3).await;
    }
    assert!(seen.all.lock().expect("a lock").iter().all(|delivery| delivery.tenant_id == Some(kit.globex.tenant_id())));
    catalog.update(kit.acme.tenant_id(), TenantChange::status(TenantStatus::Active), None, &Actor::System).await.expect("resume");
    wait_for(&mut eye, "sent_at is not null", 9).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn a_thousand_messages_of_one_tenant_do_not_delay_anothers() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    post_many(&kit, &kit.acme, "test.sent", 1000).await;
    post_many(&kit, &kit.globex, "test.sent", 2).await;
    // One at a time, so that the order is to be seen.
    let seen = Seen::with_permits(4);
    let fair = worker(&kit.db, &seen, eager(3).with_concurrency(1, 1)).await;
    wait_for(&mut eye, "sent_at is not null", 4).await;
    drop(fair);
    let whose = |tenant: &TenantContext| {
        let key = tenant.tenant_id().to_string();
        seen.keys().iter().filter(|sent| sent.starts_with(&key)).count()
    };
    assert_eq!((whose(&kit.acme), whose(&kit.globex)), (2, 2));

    // However many may be sent at once, one tenant's are only some of them.
    let all = Seen::with_permits(0);
    let busy = worker(&kit.db, &all, eager(3).with_concurrency(16, 4)).await;
    wait_until(|| all.came.load(Ordering::SeqCst) >= 3).await;
    post_many(&kit, &kit.globex, "test.again", 1).await;
    wait_for(&mut eye, "claim is not null and topic = 'test.again'", 1).await;
    let claimed: Vec<(uuid::Uuid, i64)> =
        sqlx::query_as("select tenant_id, count(*) from tenancy.outbox where claim is not null group by 1")
            .fetch_all(&mut eye)
            .await
            .expect("claimed");
    let claimed: BTreeMap<_, _> = claimed.into_iter().collect();
    assert_eq!((claimed[&kit.acme.tenant_id().as_uuid()], claimed[&kit.globex.tenant_id().as_uuid()]), (4, 1));
    drop(busy);
}

#[tokio::test]
async fn what_was_sent_is_removed_in_time_and_what_was_not_stays() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    post_many(&kit, &kit.acme, "test.sent", 3).await;
    sqlx::query("update tenancy.outbox set sent_at = clock_timestamp() - interval '8 days', secret = null where dedup_key like '%:k0'")
        .execute(&mut eye)
        .await
        .expect("old");
    sqlx::query("update tenancy.outbox set dead_at = clock_timestamp() - interval '8 days', secret = null where dedup_key like '%:k1'")
        .execute(&mut eye)
        .await
        .expect("dead");
    let worker = worker(&kit.db, &Seen::open(), eager(3)).await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    wait_for(&mut eye, "dead_at is not null", 1).await;
    wait_for(&mut eye, "true", 2).await;
    worker.shutdown().await;
}
