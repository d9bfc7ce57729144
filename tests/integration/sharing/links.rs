//! What a link shows to whoever has it, until when, and with which passphrase.

use harness::{Route, on_each_route};
use sqlx::{AssertSqlSafe, Executor as _};
use tenancy_core::share::NewLink;
use tenancy_core::{Actor, ErrorKind, TenantCatalog as _, TenantChange, TenantStatus};
use tenancy_sqlx::from_sqlx;
use tenancy_sqlx::sharing::{LinkTx, ReadyLink};
use uuid::Uuid;

use super::{Two, platform, policy};

on_each_route! {
    #[tokio::test] a_link_shows_its_resource_to_whoever_has_it_and_nothing_beside_it;
}

async fn ready(new: NewLink) -> ReadyLink {
    ReadyLink::new(new).await.expect("a good link")
}

/// What a link shows: the notes, and then the comments.
async fn linked(tx: &mut LinkTx) -> Vec<String> {
    let sql = "select body from tenancy_views.notes_link union all select body from tenancy_views.comments_link";
    sqlx::query_scalar(sql).fetch_all(tx).await.expect("rows")
}

async fn a_link_shows_its_resource_to_whoever_has_it_and_nothing_beside_it(route: Route) {
    let Some(two) = Two::on(route).await else { return };
    let db = &two.kit.db;
    let mut tx = db.begin(&two.owner).await.expect("begin");
    let mut new = NewLink::new(two.note());
    (new.label, new.max_uses) = ("for the printer".to_owned(), Some(2));
    let (link, token) = tx.create_link(&two.owner, &ready(new).await).await.expect("made");
    tx.commit().await.expect("commit");
    let token = token.expose();
    let open = async |token: &str| db.open_link(token, None, "192.0.2.1", Uuid::now_v7()).await;
    let opened = open(token).await.expect("opened");
    assert_eq!((opened.link, opened.owner, &opened.resource), (link.id, two.owner.tenant_id(), &two.note()));
    let mut tx = db.read_link(token, &opened.ticket).await.expect("a ticket");
    let shown = async |tx: &mut LinkTx, view: &str| -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(format!("select body from {view}"))).fetch_all(tx).await.expect("rows")
    };
    assert_eq!(shown(&mut tx, "tenancy_views.notes_link").await, ["shared"]);
    assert_eq!(shown(&mut tx, "tenancy_views.comments_link").await, ["on shared"]);
    for nothing in ["notes", "comments", "tenancy_views.notes", "tenancy_views.comments"] {
        assert_eq!(shown(&mut tx, nothing).await, [""; 0], "{nothing}");
    }
    let write = sqlx::query("insert into notes (tenant_id, body) values (gen_random_uuid(), 'x')").execute(&mut tx).await;
    assert_eq!(from_sqlx(write.expect_err("read only")).kind(), ErrorKind::Forbidden);

    // Every token that opens nothing is answered alike.
    let mut words = Vec::new();
    let longer = format!("{token}A");
    for bad in ["", "x", &token[1..], &longer, &token.to_lowercase(), &opened.ticket, &"A".repeat(43)] {
        let error = open(bad).await.expect_err(bad);
        words.push((error.kind(), error.to_string()));
    }
    open(token).await.expect("its second use");
    let error = open(token).await.expect_err("used up");
    words.push((error.kind(), error.to_string()));
    words.dedup();
    assert_eq!(words, [(ErrorKind::NotFound, tenancy_core::Error::not_found().to_string())]);

    // Revoked between two statements: what was opened shows nothing.
    let mut tx = db.read_link(token, &opened.ticket).await.expect("a ticket");
    assert_eq!(shown(&mut tx, "tenancy_views.notes_link").await, ["shared"], "the control: the ticket still holds");
    let mut other = db.begin(&two.owner).await.expect("begin");
    other.revoke_link(&two.owner, link.id).await.expect("revoked");
    other.commit().await.expect("commit");
    assert_eq!(shown(&mut tx, "tenancy_views.notes_link").await, [""; 0]);

    // Nothing that is stored is the token or the ticket.
    let mut eye = two.kit.superuser().await;
    for table in ["share_links", "share_tickets", "audit_events", "outbox"] {
        let sql = format!("select count(*) from tenancy.{table} t where t::text like any (array['%' || $1 || '%', '%' || $2 || '%'])");
        let found: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(token).bind(&opened.ticket).fetch_one(&mut eye).await.expect("a count");
        assert_eq!(found, 0, "{table}");
    }
}

/// And so does everything that ends a link, for whoever has opened it.
#[tokio::test]
async fn an_end_of_a_link_bites_at_the_next_statement_of_an_open_transaction() {
    for end in ["revoke", "expire", "ticket", "owner", "archive", "platform", "links", "row"] {
        let two = Two::new().await;
        let mut tx = two.kit.db.begin(&two.owner).await.expect("begin");
        let (link, token) = tx.create_link(&two.owner, &ready(NewLink::new(two.note())).await).await.expect("made");
        tx.commit().await.expect("commit");
        let opened = two.kit.db.open_link(token.expose(), None, "192.0.2.1", Uuid::now_v7()).await.expect("opened");
        let mut tx = two.kit.db.read_link(token.expose(), &opened.ticket).await.expect("a ticket");
        assert_eq!(linked(&mut tx).await, ["shared", "on shared"], "the control, before {end}");
        let mut eye = two.kit.superuser().await;
        let mut other = two.kit.db.begin(&two.owner).await.expect("begin");
        match end {
            "revoke" => other.revoke_link(&two.owner, link.id).await.expect("revoked"),
            "expire" | "ticket" => {
                let table = if end == "expire" { "share_links" } else { "share_tickets" };
                let sql = format!("update tenancy.{table} set expires_at = clock_timestamp()");
                eye.execute(AssertSqlSafe(sql)).await.expect("expired");
            }
            "owner" | "archive" => {
                let status = if end == "owner" { TenantStatus::Suspended } else { TenantStatus::Archived };
                let change = TenantChange::status(status);
                two.kit.db.catalog().update(two.owner.tenant_id(), change, None, &Actor::System).await.expect("suspended");
            }
            "platform" => platform(&two.kit, true, false).await,
            "links" => policy(&two.kit, &two.owner, |policy| policy.links = false).await,
            _ => drop(sqlx::query("delete from notes where id = $1").bind(two.notes[0]).execute(&mut other).await.expect("deleted")),
        }
        other.commit().await.expect("commit");
        assert_eq!(linked(&mut tx).await, [""; 0], "{end}");
    }
}

/// A ticket shows nothing without the token of the link that gave it.
#[tokio::test]
async fn a_ticket_belongs_to_its_link() {
    let two = Two::new().await;
    let mut tx = two.kit.db.begin(&two.owner).await.expect("begin");
    let new = ready(NewLink::new(two.note())).await;
    let (_, one) = tx.create_link(&two.owner, &new).await.expect("made");
    let (_, other) = tx.create_link(&two.owner, &new).await.expect("made");
    tx.commit().await.expect("commit");
    let opened = two.kit.db.open_link(one.expose(), None, "192.0.2.1", Uuid::now_v7()).await.expect("opened");
    let read = async |token: &str| {
        let mut tx = two.kit.db.read_link(token, &opened.ticket).await.expect("a ticket");
        linked(&mut tx).await
    };
    assert_eq!(read(other.expose()).await, [""; 0]);
    assert_eq!(read(&"A".repeat(43)).await, [""; 0]);
    assert_eq!(read(one.expose()).await, ["shared", "on shared"], "the control");
    assert_eq!(two.kit.db.read_link("x", &opened.ticket).await.expect_err("no token").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_passphrase_is_asked_for_and_ten_wrong_ones_lock_the_link() {
    let two = Two::new().await;
    let mut tx = two.kit.db.begin(&two.owner).await.expect("begin");
    let mut new = NewLink::new(two.note());
    new.passphrase = Some("correct horse".to_owned());
    let (link, token) = tx.create_link(&two.owner, &ready(new).await).await.expect("made");
    tx.commit().await.expect("commit");
    assert!(link.has_passphrase);
    let open = async |phrase: Option<&str>| two.kit.db.open_link(token.expose(), phrase, "192.0.2.1", Uuid::now_v7()).await;
    for wrong in [None, Some(""), Some("Correct horse")] {
        assert_eq!(open(wrong).await.expect_err("no").kind(), ErrorKind::Unauthenticated);
    }
    open(Some("correct horse")).await.expect("the control");
    for _ in 0..10 {
        assert_eq!(open(Some("wrong wrong")).await.expect_err("wrong").kind(), ErrorKind::Unauthenticated);
    }
    assert_eq!(open(Some("correct horse")).await.expect_err("locked").kind(), ErrorKind::NotFound);
    let mut eye = two.kit.superuser().await;
    eye.execute("update tenancy.share_links set locked_until = clock_timestamp()").await.expect("later");
    open(Some("correct horse")).await.expect("after the quarter of an hour");
    let denied: i64 = sqlx::query_scalar("select count(*) from tenancy.audit_events where action = 'link.open' and outcome = 'denied'")
        .fetch_one(&mut eye)
        .await
        .expect("a count");
    assert_eq!(denied, 12);
}

#[tokio::test]
async fn tickets_that_are_over_make_way() {
    let two = Two::new().await;
    let mut tx = two.kit.db.begin(&two.owner).await.expect("begin");
    let (_, token) = tx.create_link(&two.owner, &ready(NewLink::new(two.note())).await).await.expect("made");
    tx.commit().await.expect("commit");
    let mut eye = two.kit.superuser().await;
    let mut kept = Vec::new();
    for later in [false, false, true] {
        if later {
            eye.execute("update tenancy.share_tickets set expires_at = clock_timestamp()").await.expect("ten minutes later");
        }
        two.kit.db.open_link(token.expose(), None, "192.0.2.1", Uuid::now_v7()).await.expect("opened");
        let count = sqlx::query_scalar::<_, i64>("select count(*) from tenancy.share_tickets");
        kept.push(count.fetch_one(&mut eye).await.expect("a count"));
    }
    assert_eq!(kept, [1, 2, 1]);
}
