//! Operators in the database: nobody but the administrative role sees them, and an admin is left whoever leaves at once.

use harness::Kit;
use sqlx::{Executor as _, PgConnection};
use tenancy_core::{Clock as _, ErrorKind, NewOperator, Operator, OperatorChange, OperatorRole, Result, SystemClock, TokenDays};
use tenancy_sqlx::{TenantDb, Token};
use uuid::Uuid;

async fn add(db: &TenantDb, name: &str, role: OperatorRole) -> (Operator, Token) {
    let new = NewOperator::new(name, format!("{name}@example.com").parse().expect("an address"), role);
    let mut tx = db.dangerous().begin_system("a test adds an operator").await.expect("system");
    let made = tx.create_operator(&new, SystemClock.now()).await.expect("an operator");
    tx.commit().await.expect("commit");
    made
}

async fn change(db: &TenantDb, id: Uuid, change: OperatorChange) -> Result<Operator> {
    let mut tx = db.dangerous().begin_system("a test changes an operator").await?;
    let changed = tx.update_operator(id, &change, None, false).await?;
    tx.commit().await.map(|()| changed)
}

async fn waits_for_a_lock(eye: &mut PgConnection) {
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    for _ in 0..500 {
        if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *eye).await.expect("activity") > 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("nobody waits");
}

#[tokio::test]
async fn the_applications_role_can_do_nothing_with_operators() {
    let kit = Kit::new().await;
    let (ada, token) = add(&kit.db, "ada", OperatorRole::Admin).await;
    for sql in [
        "select count(*) from tenancy.operators",
        "insert into tenancy.operators (id, name, email, role, expires_at) values (gen_random_uuid(), 'x', 'x@x.de', 'admin', now())",
        "update tenancy.operators set role = 'admin'",
        "delete from tenancy.operators",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = (&mut tx).execute(sql).await.expect_err(sql);
        assert_eq!(tenancy_sqlx::from_sqlx(refused).kind(), ErrorKind::Forbidden, "{sql}");
    }
    // Were it granted by mistake, there is still no policy that shows a row.
    let mut eye = kit.superuser().await;
    eye.execute("grant select on tenancy.operators to tenancy_app").await.expect("granted");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let seen: i64 = sqlx::query_scalar("select count(*) from tenancy.operators").fetch_one(&mut tx).await.expect("count");
    assert_eq!(seen, 0);
    // The control: the row is there.
    let found = kit.db.operator_by_token(token.expose()).await.expect("a look-up").expect("ada");
    assert_eq!((found.id, found.role), (ada.id, OperatorRole::Admin));
}

#[tokio::test]
async fn a_token_is_somebodys_for_as_long_as_nothing_was_taken_from_them() {
    let kit = Kit::new().await;
    let who = async |token: &Token| kit.db.operator_by_token(token.expose()).await.expect("a look-up").map(|operator| operator.id);
    let (ada, first) = add(&kit.db, "ada", OperatorRole::Viewer).await;
    assert_eq!(who(&first).await, Some(ada.id));
    for not in ["", "tno_", &first.expose()[4..], &format!("{} ", first.expose()), &first.expose().to_uppercase()] {
        assert_eq!(kit.db.operator_by_token(not).await.expect("a look-up"), None, "{not}");
    }
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let (_, second) = tx.rotate_operator_token(ada.id, TokenDays::default(), Some(1), SystemClock.now()).await.expect("another token");
    tx.commit().await.expect("commit");
    assert_eq!((who(&first).await, who(&second).await), (None, Some(ada.id)));
    change(&kit.db, ada.id, OperatorChange::disable()).await.expect("disabled");
    assert_eq!(who(&second).await, None);

    let (bob, token) = add(&kit.db, "bob", OperatorRole::Viewer).await;
    assert_eq!(who(&token).await, Some(bob.id));
    kit.superuser().await.execute("update tenancy.operators set expires_at = now() where name = 'bob'").await.expect("ended");
    assert_eq!(who(&token).await, None);
}

#[tokio::test]
async fn of_the_last_two_admins_one_stays_however_they_leave_at_once() {
    let kit = Kit::new().await;
    let ((ada, _), (bob, _)) = (add(&kit.db, "ada", OperatorRole::Admin).await, add(&kit.db, "bob", OperatorRole::Admin).await);
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    tx.update_operator(ada.id, &OperatorChange::disable(), None, false).await.expect("one of two");
    let node = TenantDb::open(kit.options()).await.expect("another node");
    let racing = tokio::spawn(async move { change(&node, bob.id, OperatorChange::disable()).await });
    waits_for_a_lock(&mut kit.superuser().await).await;
    assert!(!racing.is_finished());
    tx.commit().await.expect("commit");
    assert_eq!(racing.await.expect("no panic").expect_err("the last one").kind(), ErrorKind::Conflict);

    // The control: what does not lock the others' rows, as a count beforehand, lets both leave.
    kit.superuser().await.execute("update tenancy.operators set disabled_at = null").await.expect("both are back");
    let mut both = Vec::new();
    for id in [ada.id, bob.id] {
        let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
        let others = "select count(*) from tenancy.operators where role = 'admin' and disabled_at is null and id <> $1";
        let others: i64 = sqlx::query_scalar(others).bind(id).fetch_one(&mut tx).await.expect("count");
        assert_eq!(others, 1);
        both.push((id, tx));
    }
    for (id, mut tx) in both {
        sqlx::query("update tenancy.operators set disabled_at = now(), token_sha256 = null where id = $1")
            .bind(id)
            .execute(&mut tx)
            .await
            .expect("disabled");
        tx.commit().await.expect("commit");
    }
    let left: i64 = sqlx::query_scalar("select count(*) from tenancy.operators where disabled_at is null")
        .fetch_one(&mut kit.superuser().await)
        .await
        .expect("count");
    assert_eq!(left, 0);
}
