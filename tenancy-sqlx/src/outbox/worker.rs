//! Delivers what is waiting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use tenancy_core::outbox::{Delivery, DeliveryError, Message, RetryPolicy, Sink};
use tenancy_core::{Actor, Result, TenantId};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use super::hint::Hint;
use super::outcome::{How, Outcome};
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;

/// How often what is old is removed, and what a lost worker tried too often is given up.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// How a [`Worker`] works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    concurrency: u16,
    per_tenant: u16,
    poll: Duration,
    timeout: Duration,
    retention: Duration,
    retry: RetryPolicy,
}

impl Default for WorkerOptions {
    /// 16 deliveries at once, 4 of them of one tenant; a look every second; 30 s for each; what was sent is kept for 7 days.
    fn default() -> Self {
        Self {
            concurrency: 16,
            per_tenant: 4,
            poll: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            retention: Duration::from_secs(7 * 24 * 3600),
            retry: RetryPolicy::default(),
        }
    }
}

impl WorkerOptions {
    /// The most deliveries at once on this node, and the most of one tenant on all nodes together; at least 1 each.
    #[must_use]
    pub fn with_concurrency(mut self, all: u16, per_tenant: u16) -> Self {
        (self.concurrency, self.per_tenant) = (all.max(1), per_tenant.max(1));
        self
    }

    /// How long a message may wait where no notification tells of it; at least 10 ms.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll.max(Duration::from_millis(10));
        self
    }

    /// How long one delivery may take, from 1 s to an hour. A lost worker's messages are due again after twice that.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.clamp(Duration::from_secs(1), Duration::from_secs(3600));
        self
    }

    /// How long what was sent is kept, and with it the memory of its key, which nobody can post again meanwhile.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// How often, and how far apart, delivery is tried.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    fn lease(&self) -> Duration {
        self.timeout * 2
    }
}

/// Takes messages out of the outbox and gives them to a [`Sink`]: one on each node, or on some.
///
/// It works on the administrative pool, since the application's role can't read messages. Its statements are fixed and not audited.
///
/// # Guarantees
/// - Each message is delivered at least once, or given up after the [policy](RetryPolicy)'s last try and kept with its last error. It is
///   repeated, with the same key, only where the answer of a delivery or the worker itself was lost.
/// - A message is with one worker at a time, by a lease that is longer than a delivery may take.
/// - However many messages one tenant has, another's next one comes before its second.
/// - Messages of a tenant that is not active are held until it is; [jobs](crate::jobs) of one that is archived are given up.
/// - A secret is removed in the statement that records the delivery, or the end of trying.
///
/// # Metrics
/// With the feature `metrics`: `outbox.delivered` and `outbox.failed` (by `topic`; each failed try), `outbox.waiting`.
///
/// Dropping it stops at once: what was under way is repeated later. [`shutdown`](Worker::shutdown) waits for it.
#[derive(Debug)]
#[must_use = "a worker that is dropped stops"]
pub struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Begins to deliver.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) without [administrative credentials](crate::Options::with_admin_url),
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(db: &TenantDb, sink: Arc<dyn Sink>, options: WorkerOptions) -> Result<Self> {
        begin_admin(db.inner(), Actor::System).await?.rollback().await?;
        let (stop, stopped) = watch::channel(false);
        let work = Work { db: db.clone(), sink, options, last: String::new(), failing: false };
        Ok(Self { stop, task: tokio::spawn(work.run(stopped)) })
    }

    /// Takes no more messages, and waits until those under way are done and recorded.
    ///
    /// # Cancel safety
    /// A dropped future stops at once, as dropping the worker does.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    db: TenantDb,
    sink: Arc<dyn Sink>,
    options: WorkerOptions,
    /// Whose turn it was last.
    last: String,
    failing: bool,
}

impl Work {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut under_way = JoinSet::new();
        let mut done: Vec<Outcome> = Vec::new();
        let mut hint = Hint::new(&self.db);
        let mut house = Instant::now();
        loop {
            if !done.is_empty() {
                let recorded = self.record(&done).await;
                // What can't be recorded within its lease is repeated.
                done.retain(|outcome| !self.told(&recorded) && outcome.since.elapsed() < self.options.lease());
            }
            let stopping = *stop.borrow();
            if stopping && under_way.is_empty() {
                return;
            }
            if !stopping {
                if Instant::now() >= house {
                    house = Instant::now() + HOUSEKEEPING;
                    let kept = self.keep_house().await;
                    self.told(&kept);
                }
                let free = usize::from(self.options.concurrency).saturating_sub(under_way.len() + done.len());
                let claimed = if free > 0 { self.claim(free).await } else { Ok(Vec::new()) };
                self.told(&claimed);
                for (claim, delivery) in claimed.unwrap_or_default() {
                    under_way.spawn(deliver(Arc::clone(&self.sink), delivery, claim, self.options.timeout, self.options.retry));
                }
            }
            tokio::select! {
                Some(outcome) = under_way.join_next() => {
                    done.extend(outcome);
                    while let Some(outcome) = under_way.try_join_next() {
                        done.extend(outcome);
                    }
                }
                () = hint.heard(), if !stopping => {}
                () = tokio::time::sleep(self.options.poll), if !stopping => {}
                // A dropped sender is a dropped worker.
                _ = stop.changed(), if !stopping => {}
            }
        }
    }

    /// Logs the first failure of a row, and says whether it was none.
    fn told<T>(&mut self, result: &Result<T>) -> bool {
        match result {
            Ok(_) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(?error, "the outbox can't be reached: messages wait");
            }
            Err(_) => {}
        }
        result.is_ok()
    }

    async fn claim(&mut self, most: usize) -> Result<Vec<(Uuid, Delivery)>> {
        let claim = Uuid::now_v7();
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let rows = sqlx::query("select * from tenancy.outbox_claim($1, $2, $3, make_interval(secs => $4), $5, $6) order by turn")
            .bind(claim)
            .bind(i32::try_from(most).unwrap_or(i32::MAX))
            .bind(i32::from(self.options.per_tenant))
            .bind(self.options.lease().as_secs_f64())
            .bind(i32::try_from(self.options.retry.attempts()).unwrap_or(i32::MAX))
            .bind(&self.last)
            .fetch_all(&mut tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await?;
        let read = |row: &PgRow| match delivery(row) {
            Ok(delivery) => Some((claim, delivery)),
            Err(error) => {
                tracing::error!(?error, "a message of the outbox can't be read");
                None
            }
        };
        let claimed: Vec<_> = rows.iter().filter_map(read).collect();
        if let Some((_, last)) = claimed.last() {
            self.last = last.tenant_id.map(|tenant| tenant.to_string()).unwrap_or_default();
        }
        Ok(claimed)
    }

    async fn record(&self, done: &[Outcome]) -> Result<()> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        Outcome::record(done, &mut tx).await?;
        tx.commit().await
    }

    async fn keep_house(&self) -> Result<()> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        sqlx::query(
            "update tenancy.outbox set dead_at = clock_timestamp(), claim = null, secret_gone = secret_gone or secret is not null, secret = null,
                    last_error = coalesce(last_error, 'the worker was lost at each try')
              where sent_at is null and dead_at is null and due_at <= clock_timestamp() and attempts >= $1",
        )
        .bind(i32::try_from(self.options.retry.attempts()).unwrap_or(i32::MAX))
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
        sqlx::query(
            "update tenancy.outbox o set dead_at = clock_timestamp(), claim = null, secret_gone = o.secret_gone or o.secret is not null, secret = null,
                    last_error = 'the tenant is ' || t.status
               from tenancy.tenants t
              where t.id = o.tenant_id and t.status in ('archived', 'erased') and o.topic like 'job.%' and o.sent_at is null and o.dead_at is null",
        )
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
        sqlx::query(
            "delete from tenancy.outbox where id in
               (select id from tenancy.outbox where sent_at < clock_timestamp() - make_interval(secs => $1) order by sent_at limit 10000)",
        )
        .bind(self.options.retention.as_secs_f64())
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
        #[cfg(feature = "metrics")]
        {
            let waiting: i64 = sqlx::query_scalar("select count(*) from tenancy.outbox where sent_at is null and dead_at is null")
                .fetch_one(&mut tx)
                .await
                .map_err(from_sqlx)?;
            metrics::gauge!("outbox.waiting").set(u32::try_from(waiting).unwrap_or(u32::MAX));
        }
        tx.commit().await
    }
}

fn delivery(row: &PgRow) -> Result<Delivery> {
    let read = || -> Result<Delivery, sqlx::Error> {
        let decode = |e: tenancy_core::Error| sqlx::Error::Decode(Box::new(e));
        let Json(payload) = row.try_get::<Json<serde_json::Value>, _>("payload")?;
        let topic: &str = row.try_get("topic")?;
        let mut message = Message::new(topic, "read", payload).map_err(decode)?;
        if let Some(Json(secret)) = row.try_get("secret")? {
            message = message.with_secret(secret);
        }
        let tenant = row.try_get::<Option<Uuid>, _>("tenant_id")?.map(TenantId::from_uuid).transpose().map_err(decode)?;
        let key: &str = row.try_get("dedup_key")?;
        Ok(Delivery::new(row.try_get("id")?, key, tenant, &message, row.try_get::<i32, _>("attempts")?.unsigned_abs()))
    };
    read().map_err(from_sqlx)
}

async fn deliver(sink: Arc<dyn Sink>, delivery: Delivery, claim: Uuid, timeout: Duration, retry: RetryPolicy) -> Outcome {
    let since = Instant::now();
    let work = AssertUnwindSafe(sink.deliver(&delivery)).catch_unwind();
    let result = match tokio::time::timeout(timeout, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(DeliveryError::Retry("the sink panicked".to_owned())),
        Err(_) => Err(DeliveryError::Retry("it took too long".to_owned())),
    };
    let how = match result {
        Ok(()) => How::Sent,
        Err(DeliveryError::Retry(why)) => match retry.wait(delivery.attempt, rand::random()) {
            Some(wait) => How::Later { why, wait },
            None => How::Dead { why },
        },
        Err(DeliveryError::Held(why)) => How::Held { why },
        Err(error) => How::Dead { why: error.to_string() },
    };
    #[cfg(feature = "metrics")]
    match how {
        How::Sent => metrics::counter!("outbox.delivered", "topic" => delivery.topic.clone()).increment(1),
        How::Held { .. } => {}
        _ => metrics::counter!("outbox.failed", "topic" => delivery.topic.clone()).increment(1),
    }
    if let How::Dead { why } = &how {
        tracing::warn!(id = delivery.id, topic = delivery.topic, why, "a message was given up");
    }
    Outcome { id: delivery.id, claim, how, since }
}
