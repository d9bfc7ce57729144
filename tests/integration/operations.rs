//! The worker of long work, with handlers as a host may write them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use harness::Kit;
use serde_json::{Value, json};
use tenancy_core::{Result, TenantContext};
use tenancy_sqlx::operations::{Handler, Operation, Operations, Progress};
use uuid::Uuid;

/// Panics when it is begun for the first time, and when it is called off for the first time; else it works until then.
#[derive(Debug, Clone, Default)]
struct Clumsy {
    runs: Arc<AtomicU32>,
    cancels: Arc<AtomicU32>,
}

#[async_trait]
impl Handler for Clumsy {
    async fn run(&self, _: &Operation, progress: &Progress) -> Result<Value> {
        progress.at("working", 0, None, "").await?;
        assert!(self.runs.fetch_add(1, Ordering::Relaxed) > 0, "a test's handler panics");
        std::future::pending().await
    }

    async fn cancel(&self, _: &Operation, _: &Progress) -> Result<bool> {
        assert!(self.cancels.fetch_add(1, Ordering::Relaxed) > 0, "a test's handler panics when it is called off");
        Ok(true)
    }
}

struct Steady;

#[async_trait]
impl Handler for Steady {
    async fn run(&self, operation: &Operation, _: &Progress) -> Result<Value> {
        Ok(operation.input.clone())
    }
}

async fn queue(kit: &Kit, cx: &TenantContext, kind: &str) -> Uuid {
    let mut tx = kit.db.dangerous().begin_system("a test queues").await.expect("system");
    let queued = tx.queue_operation(cx.tenant_id(), kind, json!("asked"), None).await.expect("queued");
    tx.commit().await.expect("commit");
    queued.id
}

async fn until(kit: &Kit, id: Uuid, is: impl Fn(&Operation) -> bool) -> Operation {
    for _ in 0..600 {
        let now = kit.db.dangerous().begin_system("a test looks").await.expect("system").operation(id).await.expect("it");
        if is(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{id} takes for ever");
}

#[tokio::test]
async fn work_that_panics_is_tried_again_and_holds_up_nobody() {
    let kit = Kit::new().await;
    let clumsy = queue(&kit, &kit.acme, "clumsy").await;
    let steady = queue(&kit, &kit.globex, "steady").await;
    let handler = Clumsy::default();
    let worker = Operations::new(&kit.db).with("clumsy", handler.clone()).with("steady", Steady);
    let working = tokio::spawn(worker.run(Duration::from_millis(20)));
    let panicked = until(&kit, clumsy, |now| now.error.is_some()).await;
    assert!(panicked.state == "running" && panicked.error.is_some_and(|error| error.contains("panicked")));
    let done = until(&kit, steady, |now| now.state == "done").await;
    assert_eq!((done.result, done.attempts), (Some(json!("asked")), 1));

    until(&kit, clumsy, |_| handler.runs.load(Ordering::Relaxed) == 2).await;
    let mut tx = kit.db.dangerous().begin_system("a test cancels").await.expect("system");
    tx.cancel_operation(clumsy).await.expect("asked");
    tx.commit().await.expect("commit");
    let over = until(&kit, clumsy, |now| now.state == "cancelled").await;
    assert_eq!((over.attempts, handler.cancels.load(Ordering::Relaxed)), (3, 2));
    assert!(!working.is_finished());
    working.abort();
}
