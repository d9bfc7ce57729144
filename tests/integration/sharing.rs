//! Sharing: what a share shows, to whom and until when, asked in SQL as the application's role, with nothing but the database
//! in the way.

mod links;
mod worlds;

use harness::{Kit, Route, on_each_route};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use tenancy_core::share::{NewShare, Perms, ResourceRef, Share, ShareState, SharingPolicy};
use tenancy_core::{Actor, ErrorKind, Principal, Result, Role, TenantCatalog, TenantChange, TenantContext, TenantStatus};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::operations::Operations;
use tenancy_sqlx::sharing::{Direction, own_and_shared};
use tenancy_sqlx::{Isolation, TenantTx, from_sqlx};
use uuid::Uuid;

fn member(cx: &TenantContext, name: &str, role: Role) -> TenantContext {
    TenantContext::establish(cx.tenant().clone(), Principal::Member { subject: name.parse().expect("a subject"), role })
}

/// Two tenants whose policies let them share notes, with their comments; a third is left as it was.
pub(crate) struct Two {
    pub(crate) kit: Kit,
    pub(crate) owner: TenantContext,
    pub(crate) target: TenantContext,
    /// Notes of the owner: the first is what the tests share.
    pub(crate) notes: Vec<Uuid>,
}

pub(crate) async fn policy(kit: &Kit, by: &TenantContext, change: impl Fn(&mut SharingPolicy)) {
    let mut tx = kit.db.begin(by).await.expect("begin");
    let mut policy = tx.sharing_policy().await.expect("a policy");
    change(&mut policy);
    tx.set_sharing_policy(by, &policy, Some(policy.version).filter(|version| *version > 0)).await.expect("set");
    tx.commit().await.expect("commit");
}

async fn platform(kit: &Kit, enabled: bool, links: bool) {
    let mut tx = kit.db.dangerous().begin_system("a test switches sharing").await.expect("system");
    let mut platform = tx.platform_sharing().await.expect("the platform's");
    (platform.enabled, platform.links) = (enabled, links);
    tx.set_platform_sharing(&platform).await.expect("set");
    tx.commit().await.expect("commit");
}

async fn shareable(kit: &Kit) {
    let mut eye = kit.superuser().await;
    eye.execute("set role tenancy_owner").await.expect("owner");
    eye.execute(
        "call tenancy.share_table('notes', 'note', updatable => '{body}');
         call tenancy.share_table('comments', parent => 'notes', insertable => '{body}', needs => 'comment')",
    )
    .await
    .expect("shareable");
}

impl Two {
    pub(crate) async fn on(route: Route) -> Option<Self> {
        let kit = Kit::on(route).await?;
        shareable(&kit).await;
        platform(&kit, true, true).await;
        let (owner, target) = (member(&kit.acme, "ann", Role::Admin), member(&kit.globex, "bob", Role::Admin));
        policy(&kit, &owner, |policy| {
            (policy.offers, policy.links, policy.types) = (true, true, vec!["note".to_owned()]);
        })
        .await;
        policy(&kit, &target, |policy| policy.accepts = true).await;
        let mut tx = kit.db.begin(&owner).await.expect("begin");
        let mut notes = Vec::new();
        for body in ["shared", "sibling", "another"] {
            let note: Uuid = sqlx::query_scalar("insert into notes (body) values ($1) returning id")
                .bind(body)
                .fetch_one(&mut tx)
                .await
                .expect("a note");
            sqlx::query("insert into comments (note_id, body) values ($1, $2)")
                .bind(note)
                .bind(format!("on {body}"))
                .execute(&mut tx)
                .await
                .expect("a comment");
            notes.push(note);
        }
        tx.commit().await.expect("commit");
        Some(Self { kit, owner, target, notes })
    }

    pub(crate) async fn new() -> Self {
        Self::on(Route::Direct).await.expect("a kit")
    }

    fn note(&self) -> ResourceRef {
        ResourceRef::new("note", self.notes[0]).expect("a resource")
    }

    async fn offer(&self, of: NewShare) -> Result<Share> {
        let mut tx = self.kit.db.begin(&self.owner).await?;
        let share = tx.offer_share(&self.owner, &of).await?;
        tx.commit().await?;
        Ok(share)
    }

    async fn accept(&self, share: &Share) -> Result<Share> {
        let mut tx = self.kit.db.begin(&self.target).await?;
        let share = tx.accept_share(&self.target, share.id).await?;
        tx.commit().await?;
        Ok(share)
    }

    /// A share that the target has accepted.
    async fn share(&self, perms: Perms) -> Share {
        let offered = self.offer(NewShare::new(self.note(), self.target.tenant_id(), perms)).await.expect("offered");
        self.accept(&offered).await.expect("accepted")
    }

    async fn end(&self, by: &TenantContext, share: Uuid) -> Share {
        let mut tx = self.kit.db.begin(by).await.expect("begin");
        let ended = tx.end_share(by, share).await.expect("ended");
        tx.commit().await.expect("commit");
        ended
    }
}

/// The bodies that a view shows.
async fn bodies(tx: &mut TenantTx, view: &str) -> Vec<String> {
    let sql = format!("select body from tenancy_views.{view} order by body");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(tx).await.expect("rows")
}

/// The kind of error that a statement of the transaction ends with, which goes on.
pub(crate) async fn refused(tx: &mut TenantTx, sql: &str) -> Option<ErrorKind> {
    let mut part = tx.savepoint().await.expect("a savepoint");
    match sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut *part).await {
        Ok(done) if done.rows_affected() == 0 => Some(ErrorKind::NotFound),
        Ok(_) => None,
        Err(error) => Some(from_sqlx(error).kind()),
    }
}

async fn actions(eye: &mut PgConnection, of: &TenantContext) -> Vec<(String, String)> {
    let sql = "select action, actor_kind from tenancy.audit_events where tenant_id = $1 and action like any (array['share.%', 'link.%']) order by at";
    let rows = sqlx::query(sql).bind(of.tenant_id().as_uuid()).fetch_all(eye).await.expect("events");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

on_each_route! {
    #[tokio::test] a_share_shows_its_resource_and_nothing_beside_it;
}

async fn a_share_shows_its_resource_and_nothing_beside_it(route: Route) {
    let Some(two) = Two::on(route).await else { return };
    let db = &two.kit.db;
    let offered = two.offer(NewShare::new(two.note(), two.target.tenant_id(), Perms::Read)).await.expect("offered");
    assert_eq!((offered.state, offered.owner, offered.version), (ShareState::Offered, two.owner.tenant_id(), 1));
    assert_eq!(db.read_shared(&two.target, offered.id).await.expect_err("not accepted").kind(), ErrorKind::NotFound);
    let accepted = two.accept(&offered).await.expect("accepted");
    assert_eq!((accepted.state, accepted.version), (ShareState::Active, 2));

    let (mut tx, granted) = db.read_shared(&two.target, offered.id).await.expect("opened");
    assert_eq!((granted.owner, granted.resource, granted.perms), (two.owner.tenant_id(), two.note(), Perms::Read));
    assert_eq!(bodies(&mut tx, "notes").await, ["shared"]);
    assert_eq!(bodies(&mut tx, "comments").await, ["on shared"]);
    // The tables themselves are what they were.
    let plain: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("a count");
    assert_eq!(plain, 0);
    // Conditions that could tell of other rows by an error see none of them.
    let probe = "select count(*) from tenancy_views.notes where 1 / (case when body = 'sibling' then 0 else 1 end) = 1";
    assert_eq!(sqlx::query_scalar::<_, i64>(probe).fetch_one(&mut tx).await.expect("no row to fail on"), 1);
    drop(tx);

    let mut list = db.read_with_shares(&two.target).await.expect("a list");
    assert_eq!(bodies(&mut list, "notes").await, ["shared"]);
    drop(list);
    // A list that doesn't ask for shares has none that are for some only, and the owner and a third tenant see nothing in the views.
    let mut own = db.read_with_shares(&two.owner).await.expect("the owner's");
    assert_eq!(bodies(&mut own, "notes").await, [""; 0]);
    drop(own);
    let third = two.kit.database.tenant(db, "initech").await.expect("a third");
    let mut none = db.read_with_shares(&third).await.expect("the third's");
    assert_eq!(bodies(&mut none, "notes").await, [""; 0]);
    drop(none);
    assert_eq!(db.read_shared(&third, offered.id).await.expect_err("another's").kind(), ErrorKind::NotFound);
    assert_eq!(db.read_shared(&third, Uuid::now_v7()).await.expect_err("none").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn postgresql_refuses_writes_that_the_share_does_not_let() {
    let two = Two::new().await;
    let note = two.notes[0];
    let read = two.share(Perms::Read).await;
    let (mut tx, _) = two.kit.db.begin_shared(&two.target, read.id).await.expect("opened");
    let update = "update tenancy_views.notes_write set body = 'changed'";
    let insert = format!(
        "insert into tenancy_views.comments_write (tenant_id, note_id, body) values ('{}', '{note}', 'mine')",
        two.owner.tenant_id()
    );
    assert_eq!(refused(&mut tx, update).await, Some(ErrorKind::NotFound), "no row of a read share can be changed");
    assert!(refused(&mut tx, &insert).await.is_some());
    for sql in ["update tenancy_views.notes set body = 'x'", "delete from tenancy_views.notes", "delete from tenancy_views.notes_write"] {
        assert!(refused(&mut tx, sql).await.is_some(), "{sql}");
    }
    tx.commit().await.expect("commit");
    two.end(&two.owner, read.id).await;

    let comment = two.share(Perms::Comment).await;
    let (mut tx, _) = two.kit.db.begin_shared(&two.target, comment.id).await.expect("opened");
    assert_eq!(refused(&mut tx, update).await, Some(ErrorKind::NotFound), "a comment share changes nothing");
    let beside = insert.replace(&note.to_string(), &two.notes[1].to_string());
    assert!(refused(&mut tx, &beside).await.is_some(), "no comment beside what is shared");
    assert_eq!(refused(&mut tx, &insert).await, None, "the control: a comment on what is shared");
    tx.commit().await.expect("commit");
    two.end(&two.target, comment.id).await;

    let write = two.share(Perms::Write).await;
    let (mut tx, _) = two.kit.db.begin_shared(&two.target, write.id).await.expect("opened");
    assert_eq!(refused(&mut tx, update).await, None, "the control: a write share changes");
    for sql in [
        format!("update tenancy_views.notes_write set tenant_id = '{}'", two.target.tenant_id()),
        format!("update tenancy_views.notes_write set id = '{}'", two.notes[1]),
        "insert into tenancy_views.notes_write (tenant_id, body) values (gen_random_uuid(), 'new')".to_owned(),
    ] {
        assert!(refused(&mut tx, &sql).await.is_some(), "{sql}");
    }
    sqlx::query(update).execute(&mut tx).await.expect("changed");
    tx.commit().await.expect("commit");
    let mut eye = two.kit.superuser().await;
    let now: Vec<String> = sqlx::query_scalar("select body from notes order by body").fetch_all(&mut eye).await.expect("bodies");
    assert_eq!(now, ["another", "changed", "sibling"]);
}

/// Everything that ends a share does so between two statements of a transaction that is open.
#[tokio::test]
async fn an_end_bites_at_the_next_statement_of_an_open_transaction() {
    for end in ["revoke", "leave", "expire", "owner", "target", "platform", "offers", "accepts", "row"] {
        let two = Two::new().await;
        let share = two.share(Perms::Write).await;
        let (mut tx, _) = two.kit.db.begin_shared(&two.target, share.id).await.expect("opened");
        assert_eq!(bodies(&mut tx, "notes").await, ["shared"], "the control, before {end}");
        let mut eye = two.kit.superuser().await;
        match end {
            "revoke" => drop(two.end(&two.owner, share.id).await),
            "leave" => drop(two.end(&two.target, share.id).await),
            "expire" => {
                eye.execute("update tenancy.cross_tenant_shares set expires_at = clock_timestamp()").await.expect("expired");
            }
            "owner" | "target" => {
                let who = if end == "owner" { &two.owner } else { &two.target };
                let change = TenantChange::status(TenantStatus::Suspended);
                two.kit.db.catalog().update(who.tenant_id(), change, None, &Actor::System).await.expect("suspended");
            }
            "platform" => platform(&two.kit, false, true).await,
            "offers" => policy(&two.kit, &two.owner, |policy| policy.offers = false).await,
            "accepts" => policy(&two.kit, &two.target, |policy| policy.accepts = false).await,
            _ => {
                let mut other = two.kit.db.begin(&two.owner).await.expect("begin");
                sqlx::query("delete from notes where id = $1").bind(two.notes[0]).execute(&mut other).await.expect("deleted");
                other.commit().await.expect("commit");
            }
        }
        assert_eq!(bodies(&mut tx, "notes").await, [""; 0], "{end}");
        assert_eq!(bodies(&mut tx, "comments").await, [""; 0], "{end}");
        assert!(refused(&mut tx, "update tenancy_views.notes_write set body = 'late'").await.is_some(), "{end}");
    }
}

#[tokio::test]
async fn a_share_for_some_shows_nothing_to_others() {
    let two = Two::new().await;
    let mut of = NewShare::new(two.note(), two.target.tenant_id(), Perms::Read);
    of.only_roles = Some(vec![Role::Member, Role::Admin]);
    of.only_subjects = Some(vec!["carol".parse().expect("a subject")]);
    let offered = two.offer(of).await.expect("offered");
    two.accept(&offered).await.expect("accepted");
    for (name, role, sees) in
        [("carol", Role::Member, true), ("carol", Role::Viewer, false), ("bob", Role::Admin, false), ("x'or'a'='a", Role::Member, false)]
    {
        let cx = member(&two.target, name, role);
        let mut list = two.kit.db.read_with_shares(&cx).await.expect("a list");
        assert_eq!(bodies(&mut list, "notes").await.len(), usize::from(sees), "{name} {role}");
        drop(list);
        assert_eq!(two.kit.db.read_shared(&cx, offered.id).await.is_ok(), sees, "{name} {role}");
    }
    // Who doesn't say who asks, sees only what is for everybody.
    let mut tx = two.kit.db.read(&member(&two.target, "carol", Role::Member)).await.expect("begin");
    assert_eq!(bodies(&mut tx, "notes").await, [""; 0]);
}

#[tokio::test]
async fn what_the_policies_do_not_allow_is_refused_and_leaves_nothing() {
    let two = Two::new().await;
    let new = |target| NewShare::new(two.note(), target, Perms::Read);
    let target = two.target.tenant_id();
    let third = two.kit.database.tenant(&two.kit.db, "initech").await.expect("a third");
    // A tenant that accepts nothing, one that isn't there, and one's own, are answered alike.
    let mut words = Vec::new();
    for nobody in [third.tenant_id(), tenancy_core::TenantId::new(), two.owner.tenant_id()] {
        let error = two.offer(new(nobody)).await.expect_err("nobody");
        assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("target")));
        words.push(error.to_string());
    }
    words.dedup();
    assert_eq!(words.len(), 1);
    // Somebody else's resource, and one that isn't there.
    for id in [two.kit.note(&two.target, "theirs").await, Uuid::now_v7()] {
        let of = NewShare::new(ResourceRef::new("note", id).expect("a resource"), target, Perms::Read);
        assert_eq!(two.offer(of).await.expect_err("not the owner's").kind(), ErrorKind::NotFound);
    }
    let typed = NewShare::new(ResourceRef::new("comment", two.notes[0]).expect("a resource"), target, Perms::Read);
    assert_eq!(two.offer(typed).await.expect_err("not shared").field(), Some("resource"));
    for role in [Role::Viewer, Role::Member] {
        let by = member(&two.owner, "mel", role);
        let mut tx = two.kit.db.begin(&by).await.expect("begin");
        assert_eq!(tx.offer_share(&by, &new(target)).await.expect_err("not an admin").kind(), ErrorKind::Forbidden);
    }
    for (hours, says) in [(-1, "is over"), (48, "is later")] {
        policy(&two.kit, &two.owner, |policy| policy.max_lifetime_seconds = Some(86400)).await;
        let mut of = new(target);
        let now: chrono::DateTime<chrono::Utc> =
            sqlx::query_scalar("select now()").fetch_one(&mut two.kit.superuser().await).await.expect("a time");
        of.expires_at = Some(now + chrono::Duration::hours(hours));
        let error = two.offer(of).await.expect_err("a bad time");
        assert!(error.field() == Some("expires_at") && error.to_string().contains(says), "{error}");
    }
    policy(&two.kit, &two.owner, |policy| policy.targets = Some(vec![third.tenant_id()])).await;
    assert_eq!(two.offer(new(target)).await.expect_err("not on the list").field(), Some("target"));
    policy(&two.kit, &two.owner, |policy| policy.targets = None).await;
    policy(&two.kit, &two.owner, |policy| policy.offers = false).await;
    assert_eq!(two.offer(new(target)).await.expect_err("off").kind(), ErrorKind::Forbidden);
    policy(&two.kit, &two.owner, |policy| policy.offers = true).await;
    platform(&two.kit, false, false).await;
    assert_eq!(two.offer(new(target)).await.expect_err("off").kind(), ErrorKind::Forbidden);
    let mut eye = two.kit.superuser().await;
    let shares: i64 = sqlx::query_scalar("select count(*) from tenancy.cross_tenant_shares").fetch_one(&mut eye).await.expect("a count");
    assert_eq!(shares, 0);
    platform(&two.kit, true, false).await;
    two.offer(new(target)).await.expect("the control: all is on");
    assert_eq!(two.offer(new(target)).await.expect_err("twice").kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn each_side_does_what_is_its_own_and_a_third_finds_nothing() {
    let two = Two::new().await;
    let offered = two.offer(NewShare::new(two.note(), two.target.tenant_id(), Perms::Read)).await.expect("offered");
    let third = member(&two.kit.database.tenant(&two.kit.db, "initech").await.expect("a third"), "eve", Role::Owner);
    for n in 0..3 {
        let mut tx = two.kit.db.begin(&third).await.expect("begin");
        let answer = match n {
            0 => tx.accept_share(&third, offered.id).await,
            1 => tx.end_share(&third, offered.id).await,
            _ => tx.share(offered.id).await,
        };
        assert_eq!(answer.expect_err("a third").kind(), ErrorKind::NotFound, "{n}");
    }
    let mut tx = two.kit.db.begin(&two.owner).await.expect("begin");
    assert_eq!(tx.accept_share(&two.owner, offered.id).await.expect_err("one's own").kind(), ErrorKind::Conflict);
    drop(tx);
    let accepted = two.accept(&offered).await.expect("accepted");
    assert_eq!(two.accept(&offered).await.expect("again"), accepted);
    let mut tx = two.kit.db.begin(&two.target).await.expect("begin");
    assert_eq!(tx.decline_share(&two.target, offered.id).await.expect_err("too late").kind(), ErrorKind::Conflict);
    drop(tx);
    // Not the target's to share on: it has no such resource.
    policy(&two.kit, &two.target, |policy| (policy.offers, policy.types) = (true, vec!["note".to_owned()])).await;
    let mut tx = two.kit.db.begin(&two.target).await.expect("begin");
    let on = NewShare::new(two.note(), third.tenant_id(), Perms::Read);
    assert_eq!(tx.offer_share(&two.target, &on).await.expect_err("not theirs").kind(), ErrorKind::NotFound);
    drop(tx);
    let ended = two.end(&two.target, offered.id).await;
    assert_eq!(ended.state, ShareState::Left);
    assert_eq!(two.end(&two.owner, offered.id).await, ended, "it stays as it ended");
    for (side, cx, seen) in [
        (Direction::Outgoing, &two.owner, 1),
        (Direction::Incoming, &two.target, 1),
        (Direction::Incoming, &two.owner, 0),
        (Direction::Outgoing, &third, 0),
    ] {
        let mut tx = two.kit.db.begin(cx).await.expect("begin");
        assert_eq!(tx.shares(side, Uuid::max(), 10).await.expect("a list").len(), seen);
    }
    let mut eye = two.kit.superuser().await;
    let told = |log: Vec<(String, String)>| log.into_iter().map(|(action, kind)| format!("{action} {kind}")).collect::<Vec<_>>();
    let (owners, targets) = (told(actions(&mut eye, &two.owner).await), told(actions(&mut eye, &two.target).await));
    assert_eq!(owners, ["share.offered member", "share.accepted tenant", "share.ended tenant"]);
    assert_eq!(targets, ["share.offered tenant", "share.accepted member", "share.ended member"]);
    let told: Vec<String> =
        sqlx::query_scalar("select topic || ' ' || (tenant_id = $1) from tenancy.outbox where topic like 'share.%' order by id")
            .bind(two.owner.tenant_id().as_uuid())
            .fetch_all(&mut eye)
            .await
            .expect("messages");
    assert_eq!(told, ["share.offered false", "share.accepted true", "share.ended true"]);
}

#[tokio::test]
async fn accesses_and_denials_are_in_both_logs_whatever_becomes_of_the_transaction() {
    let two = Two::new().await;
    let share = two.share(Perms::Read).await;
    drop(two.kit.db.read_shared(&two.target, share.id).await.expect("opened")); // rolled back
    two.end(&two.owner, share.id).await;
    assert!(two.kit.db.read_shared(&two.target, share.id).await.is_err());
    let mut eye = two.kit.superuser().await;
    for side in [&two.owner, &two.target] {
        let sql = "select outcome from tenancy.audit_events where tenant_id = $1 and action = 'share.open' order by at";
        let outcomes: Vec<String> = sqlx::query_scalar(sql).bind(side.tenant_id().as_uuid()).fetch_all(&mut eye).await.expect("events");
        assert_eq!(outcomes, ["done", "denied"]);
    }
}

#[tokio::test]
async fn a_list_has_own_and_shared_rows_once_page_by_page() {
    let two = Two::new().await;
    two.share(Perms::Read).await;
    for n in 0..5 {
        two.kit.note(&two.target, &format!("own {n}")).await;
    }
    let sql = own_and_shared("notes", "id, body", "id");
    let (mut seen, mut last) = (Vec::new(), Uuid::max());
    loop {
        let mut tx = two.kit.db.read_with_shares(&two.target).await.expect("a list");
        let rows = sqlx::query(AssertSqlSafe(sql.clone())).bind(2_i64).bind(last).fetch_all(&mut tx).await.expect("a page");
        let Some(row) = rows.last() else { break };
        last = row.get("id");
        seen.extend(rows.iter().map(|row| (row.get::<String, _>("body"), row.get::<Option<Uuid>, _>("share_id").is_some())));
    }
    seen.sort();
    let expected: Vec<(String, bool)> = (0..5).map(|n| (format!("own {n}"), false)).chain([("shared".to_owned(), true)]).collect();
    assert_eq!(seen, expected);
}

/// Another isolation level would go on seeing what has ended: it sees nothing of shares.
#[tokio::test]
async fn a_snapshot_shows_no_share() {
    let two = Two::new().await;
    two.share(Perms::Read).await;
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        let mut tx = two.kit.db.begin_with(&two.target, isolation).await.expect("begin");
        assert_eq!(bodies(&mut tx, "notes").await, [""; 0]);
    }
    let mut tx = two.kit.db.begin(&two.target).await.expect("begin");
    assert_eq!(bodies(&mut tx, "notes").await, ["shared"], "the control");
}

/// The control of this file: had a share widened the table's own policy, the sibling would show in plain lists.
#[tokio::test]
async fn control_a_widened_policy_shows_more_than_the_share() {
    let two = Two::new().await;
    two.share(Perms::Read).await;
    let mut eye = two.kit.superuser().await;
    eye.execute(
        "grant usage on schema tenancy_views to tenancy_app; drop policy tenancy_fence on notes;
         create policy wide on notes for select to tenancy_app using (tenant_id in (select owner_tenant_id from tenancy_views.incoming))",
    )
    .await
    .expect("widened");
    assert_eq!(two.kit.notes(&two.target).await, ["another", "shared", "sibling"]);
}

/// What the application's role could do with SQL of its own.
#[tokio::test]
async fn the_applications_role_forges_no_share_and_reads_no_secret() {
    let two = Two::new().await;
    let share = two.share(Perms::Read).await;
    let mut tx = two.kit.db.begin(&two.target).await.expect("begin");
    for sql in [
        "insert into tenancy.cross_tenant_shares (id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, offered_by)
         select gen_random_uuid(), owner_tenant_id, target_tenant_id, resource_type, gen_random_uuid(), 'write', 'me' from tenancy.cross_tenant_shares"
            .to_owned(),
        "update tenancy.cross_tenant_shares set perms = 'write'".to_owned(),
        "update tenancy.sharing_policies set offers = true".to_owned(),
        "update tenancy.sharing_platform set enabled = true".to_owned(),
        "select token_hash from tenancy.share_links".to_owned(),
        "select passphrase from tenancy.share_links".to_owned(),
        "select * from tenancy.share_tickets".to_owned(),
        "select tenancy_views.holds('note', gen_random_uuid())".to_owned(),
        "select tenancy.share_told(null, null, 'x', 'x', 'x', null)".to_owned(),
        "set local role tenancy_share".to_owned(),
        "create view tenancy_views.mine as select 1".to_owned(),
        "call tenancy.share_table('notes', 'note')".to_owned(),
    ] {
        assert_eq!(refused(&mut tx, &sql).await, Some(ErrorKind::Forbidden), "{sql}");
    }
    assert_eq!(tx.share(share.id).await.expect("its own side").perms, Perms::Read);
    let others: i64 = sqlx::query_scalar("select count(*) from tenancy.sharing_policies").fetch_one(&mut tx).await.expect("a count");
    assert_eq!(others, 1, "its own policy alone");
}

/// Whichever side is erased, nothing is left of what was shared, and the other side has the end of the story and is told.
#[tokio::test]
async fn the_erasure_of_either_side_ends_what_is_shared() {
    for owner_goes in [true, false] {
        let two = Two::new().await;
        let share = two.share(Perms::Read).await;
        let (gone, stays) = if owner_goes { (&two.owner, &two.target) } else { (&two.target, &two.owner) };
        let archive = TenantChange::status(TenantStatus::Archived);
        two.kit.db.catalog().update(gone.tenant_id(), archive, None, &Actor::System).await.expect("archived");
        let mut eye = two.kit.superuser().await;
        let count = "select count(*) from tenancy.cross_tenant_shares where state = 'active'";
        assert_eq!(
            sqlx::query_scalar::<_, i64>(count).fetch_one(&mut eye).await.expect("a count"),
            1,
            "the control: archived, it is still there"
        );

        let mut tx = two.kit.db.dangerous().begin_system("a test erases").await.expect("system");
        let queued = tx.request_erasure(gone.tenant_id(), "the test wants it", None).await.expect("queued");
        tx.commit().await.expect("commit");
        let erase = Erase::new(&two.kit.db, CertificateKey::new([7; 32]));
        Operations::new(&two.kit.db).with(Erase::KIND, erase).run_next().await.expect("it runs");
        let done =
            two.kit.db.dangerous().begin_system("a test looks").await.expect("system").operation(queued.id).await.expect("it is there");
        assert_eq!(done.state, "done", "{:?}", done.error);

        let all = "select count(*) from tenancy.cross_tenant_shares";
        assert_eq!(sqlx::query_scalar::<_, i64>(all).fetch_one(&mut eye).await.expect("a count"), 0);
        assert_eq!(actions(&mut eye, stays).await.last().map(|(action, _)| action.as_str()), Some("share.ended"));
        let told = "select count(*) from tenancy.outbox where tenant_id = $1 and topic = 'share.ended' and payload ->> 'share' = $2";
        let told = sqlx::query_scalar::<_, i64>(told).bind(stays.tenant_id().as_uuid()).bind(share.id.to_string());
        assert_eq!(told.fetch_one(&mut eye).await.expect("a count"), 1);
    }
}

/// A context that may change nothing opens a share to read it, and is in both logs for that, and writes nothing through it.
#[tokio::test]
async fn a_read_only_context_reads_a_share_and_changes_nothing() {
    let two = Two::new().await;
    let share = two.share(Perms::Write).await;
    let update = "update tenancy_views.notes_write set body = 'changed'";
    let looks = two.target.clone().read_only();
    let (mut tx, granted) = two.kit.db.begin_shared(&looks, share.id).await.expect("opened");
    assert_eq!((bodies(&mut tx, "notes").await, granted.perms), (vec!["shared".to_owned()], Perms::Write));
    assert_eq!(refused(&mut tx, update).await, Some(ErrorKind::Forbidden));
    drop(tx);
    let (mut tx, _) = two.kit.db.begin_shared(&two.target, share.id).await.expect("opened");
    assert_eq!(refused(&mut tx, update).await, None, "the control");
    drop(tx);
    let mut eye = two.kit.superuser().await;
    for side in [&two.owner, &two.target] {
        assert_eq!(actions(&mut eye, side).await.iter().filter(|(action, _)| action == "share.open").count(), 2);
    }
}
