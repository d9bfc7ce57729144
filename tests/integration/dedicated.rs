//! Work in a thread of its own: another node to the database, which begins, is stopped and fails as a whole.

use std::future::pending;
use std::thread;
use std::time::Duration;

use harness::Kit;
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::{DedicatedRuntime, Options};
use tokio::sync::{mpsc, oneshot};

use crate::nodes::nodes;

/// Waits until so many nodes follow the catalog.
async fn settles_at(kit: &Kit, count: i64) {
    for _ in 0..250 {
        if nodes(kit).await == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} nodes follow the catalog", nodes(kit).await);
}

#[tokio::test]
async fn it_works_on_a_thread_of_its_own_until_it_is_stopped() {
    let kit = Kit::new().await;
    assert_eq!(nodes(&kit).await, 1);
    let (tell, mut told) = mpsc::unbounded_channel();
    let acme = kit.acme.clone();
    let started = DedicatedRuntime::start("apart", kit.options(), async move |db| {
        Ok(async move {
            let mut tx = db.begin(&acme).await.expect("begin");
            sqlx::query("insert into notes (body) values ('from afar')").execute(&mut tx).await.expect("insert");
            tx.commit().await.expect("commit");
            // It is stopped inside of a transaction.
            let _open = db.begin(&acme).await.expect("begin");
            tell.send(thread::current().name().map(str::to_owned)).expect("somebody listens");
            pending::<()>().await;
        })
    });
    let work = started.await.expect("it starts");
    assert_eq!(told.recv().await.flatten().as_deref(), Some("apart"));
    assert_eq!((kit.notes(&kit.acme).await, nodes(&kit).await), (vec!["from afar".to_owned()], 2));
    work.shutdown().await;
    assert_eq!(told.recv().await, None, "its work is gone");
    assert_eq!(nodes(&kit).await, 1, "it has said that it leaves");
    kit.db_settles().await;
}

#[tokio::test]
async fn work_that_ends_or_is_dropped_leaves_nothing() {
    let kit = Kit::new().await;
    let ended = DedicatedRuntime::start("short", kit.options(), async |_| Ok(std::future::ready(()))).await.expect("it starts");
    settles_at(&kit, 1).await;
    ended.shutdown().await;
    let dropped = DedicatedRuntime::start("long", kit.options(), async |_| Ok(pending())).await.expect("it starts");
    assert_eq!(nodes(&kit).await, 2, "the control");
    drop(dropped);
    settles_at(&kit, 1).await;
    let (tell, told) = oneshot::channel();
    let slow = DedicatedRuntime::start("slow", kit.options(), async |_| {
        tell.send(()).expect("somebody listens");
        pending::<Result<std::future::Ready<()>>>().await
    });
    tokio::select! {
        _ = slow => panic!("it never begins"),
        begins = told => begins.expect("it begins"),
    }
    settles_at(&kit, 1).await;
}

#[tokio::test]
async fn what_does_not_begin_says_why() {
    let kit = Kit::new().await;
    let refuse = async |_| Err::<std::future::Ready<()>, _>(Error::invalid("name", "is taken"));
    let refused = DedicatedRuntime::start("refused", kit.options(), refuse).await.expect_err("refused");
    assert_eq!((refused.kind(), refused.to_string()), (ErrorKind::Invalid, Error::invalid("name", "is taken").to_string()));
    settles_at(&kit, 1).await;
    let nowhere = Options::new("postgres://tenancy_app@127.0.0.1:1/none").expect("a URL");
    let away = DedicatedRuntime::start("away", nowhere, async |_| Ok(pending())).await.expect_err("nothing is there");
    assert_eq!(away.kind(), ErrorKind::Unavailable);
}
