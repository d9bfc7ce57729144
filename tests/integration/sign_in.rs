//! Signing in: secrets that work once, for one tenant, until they expire; and nothing kept that would let anybody in.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use harness::Kit;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tenancy_core::quota::{Metric, Quota};
use tenancy_core::{
    Clock as _, Error, ErrorKind, Invite, LinkBase, Member, NewInvite, NewMember, NewTenant, Principal, Result, Role, SystemClock,
    TenantCatalog as _, TenantChange, TenantContext, TenantStatus,
};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::sign_in::{Credential, NewApiToken, Token};
use uuid::Uuid;

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

fn link() -> LinkBase {
    LinkBase::new("https://app.example.com/welcome/").expect("an address")
}

fn acting(cx: &TenantContext, who: &str, role: Role) -> TenantContext {
    TenantContext::establish(cx.tenant().clone(), Principal::Member { subject: who.parse().expect("a subject"), role })
}

fn to(name: &str, role: Role) -> NewInvite {
    NewInvite::new(format!("{name}@example.com").parse().expect("an address"), role, link())
}

async fn invite_at(db: &TenantDb, by: &TenantContext, new: &NewInvite, at: DateTime<Utc>) -> Result<Invite> {
    let mut tx = db.begin(by).await?;
    let invite = tx.invite(by, new, at).await?;
    tx.commit().await.map(|()| invite)
}

async fn invite(db: &TenantDb, by: &TenantContext, new: &NewInvite) -> Result<Invite> {
    invite_at(db, by, new, now()).await
}

async fn accept(db: &TenantDb, cx: &TenantContext, token: &str) -> Result<Member> {
    let mut tx = db.begin(cx).await?;
    let member = tx.accept_invite(token).await?;
    tx.commit().await.map(|()| member)
}

/// The token in the newest link that was posted to `name`.
async fn mailed(kit: &Kit, name: &str) -> String {
    let sql = "select secret ->> 'link' from tenancy.outbox where payload ->> 'to' = $1 order by id desc limit 1";
    let link: String =
        sqlx::query_scalar(sql).bind(format!("{name}@example.com")).fetch_one(&mut kit.superuser().await).await.expect("a link");
    link.rsplit('/').next().expect("a token").to_owned()
}

fn said(error: &Error) -> (ErrorKind, String) {
    (error.kind(), error.to_string())
}

fn kind<T>(done: Result<T>) -> ErrorKind {
    done.map(drop).expect_err("refused").kind()
}

async fn seats(kit: &Kit, cx: &TenantContext, limit: u64) {
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(cx.tenant_id(), &Quota::new(Metric::USERS, limit)).await.expect("set");
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn an_invite_is_sent_listed_and_makes_one_member() {
    let kit = Kit::new().await;
    let owner = acting(&kit.acme, "the-owner", Role::Owner);
    let sent = invite(&kit.db, &owner, &to("Ada", Role::Admin).with_scopes(vec!["notes:read".to_owned()])).await.expect("sent");
    assert_eq!((sent.email.as_str(), sent.name.as_str(), sent.role), ("ada@example.com", "ada", Role::Admin));
    assert!(sent.expires_at - sent.created_at == TimeDelta::days(7));
    assert_eq!(kind(invite(&kit.db, &owner, &to("ada", Role::Viewer)).await), ErrorKind::Conflict, "invited already");
    assert_eq!(kit.db.read(&owner).await.expect("read").invites(Uuid::max(), 10).await.expect("list"), [sent]);

    let token = mailed(&kit, "ada").await;
    assert_eq!(kit.db.find_invite(&token).await.expect("asked"), Some(owner.tenant_id()));
    assert_eq!(kit.db.find_invite(&token).await.expect("asked"), Some(owner.tenant_id()), "asking uses nothing up");
    let member = accept(&kit.db, &kit.acme, &token).await.expect("accepted");
    assert_eq!((member.email.as_str(), member.role, member.scopes), ("ada@example.com", Role::Admin, Some(vec!["notes:read".to_owned()])));
    assert_eq!(kit.db.find_invite(&token).await.expect("asked"), None);
    let mut tx = kit.db.read(&owner).await.expect("read");
    assert_eq!(tx.invites(Uuid::max(), 10).await.expect("list"), []);
    let events: Vec<(String, String)> =
        sqlx::query_as("select action, actor_id from tenancy.audit_events where action ~ '^(invite|member)' order by at")
            .fetch_all(&mut tx)
            .await
            .expect("events");
    let event = |action: &str, by: &str| (action.to_owned(), by.to_owned());
    assert_eq!(events, [event("invite.send", "the-owner"), event("member.add", &member.id.to_string())]);
    assert_eq!(kind(invite(&kit.db, &owner, &to("ada", Role::Viewer)).await), ErrorKind::Conflict, "a member already");
}

#[tokio::test]
async fn every_token_that_is_no_good_has_one_answer() {
    let kit = Kit::new().await;
    let (owner, other) = (acting(&kit.acme, "o", Role::Owner), acting(&kit.globex, "o", Role::Owner));
    let mut bad = vec![String::new(), "x".repeat(43), "' or true --".to_owned(), "é".repeat(43)];
    let mut token = String::new();
    for name in ["used", "revoked", "resent", "expired", "tampered"] {
        let at = if name == "expired" { now() - TimeDelta::days(7) - TimeDelta::seconds(1) } else { now() };
        let sent = invite_at(&kit.db, &owner, &to(name, Role::Viewer), at).await.expect("sent");
        token = mailed(&kit, name).await;
        bad.push(token.clone());
        let mut tx = kit.db.begin(&owner).await.expect("begin");
        match name {
            "used" => drop(tx.accept_invite(&token).await.expect("accepted")),
            "revoked" => tx.revoke_invite(&owner, sent.id).await.expect("revoked"),
            "resent" => {
                assert!(tx.resend_invite(&owner, sent.id, &link(), Invite::TTL, now()).await.expect("resent").expires_at > sent.expires_at);
            }
            _ => {}
        }
        tx.commit().await.expect("commit");
    }
    bad.pop();
    // The last character has two bits that decoding would drop.
    let last = if token.ends_with('A') { 'B' } else { 'A' };
    bad.push(format!("{}{last}", &token[..42]));
    let theirs = invite(&kit.db, &other, &to("foreign", Role::Viewer)).await.expect("sent");
    let foreign = mailed(&kit, "foreign").await;
    bad.push(foreign.clone());
    let mut answers: Vec<_> = Vec::new();
    for token in &bad {
        answers.push(said(&accept(&kit.db, &kit.acme, token).await.expect_err("refused")));
        assert_eq!(kit.db.find_invite(token).await.expect("asked"), (*token == foreign).then_some(other.tenant_id()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, ErrorKind::NotFound);

    // The same tokens are good where nothing is wrong with them.
    accept(&kit.db, &kit.acme, &token).await.expect("the one that was tampered with");
    accept(&kit.db, &kit.acme, &mailed(&kit, "resent").await).await.expect("the new one");
    let mut tx = kit.db.begin(&owner).await.expect("begin");
    for refused in
        [kind(tx.revoke_invite(&owner, theirs.id).await), kind(tx.resend_invite(&owner, theirs.id, &link(), Invite::TTL, now()).await)]
    {
        assert_eq!(refused, ErrorKind::NotFound, "another tenant's");
    }
    drop(tx);
    accept(&kit.db, &kit.globex, &foreign).await.expect("in its own tenant");
    // An expired one makes way.
    invite(&kit.db, &owner, &to("expired", Role::Member)).await.expect("sent again");
    assert_eq!(accept(&kit.db, &kit.acme, &mailed(&kit, "expired").await).await.expect("accepted").role, Role::Member);
}

#[tokio::test]
async fn an_admin_neither_makes_an_owner_nor_touches_an_owners_invite() {
    let kit = Kit::new().await;
    let (owner, admin) = (acting(&kit.acme, "o", Role::Owner), acting(&kit.acme, "a", Role::Admin));
    let boss = invite(&kit.db, &owner, &to("boss", Role::Owner)).await.expect("sent");
    assert_eq!(kind(invite(&kit.db, &admin, &to("x", Role::Owner)).await), ErrorKind::Forbidden);
    assert_eq!(kind(invite(&kit.db, &acting(&kit.acme, "m", Role::Member), &to("x", Role::Viewer)).await), ErrorKind::Forbidden);
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(kind(tx.invite(&kit.globex, &to("x", Role::Viewer), now()).await), ErrorKind::NotFound, "another tenant's owner");
    drop(tx);
    let mut tx = kit.db.begin(&admin).await.expect("begin");
    assert_eq!(kind(tx.revoke_invite(&admin, boss.id).await), ErrorKind::Forbidden);
    assert_eq!(kind(tx.resend_invite(&admin, boss.id, &link(), Invite::TTL, now()).await), ErrorKind::Forbidden);
    drop(tx);
    let own = invite(&kit.db, &admin, &to("y", Role::Admin)).await.expect("an equal");
    let mut tx = kit.db.begin(&admin).await.expect("begin");
    tx.revoke_invite(&admin, own.id).await.expect("revoked");
}

#[tokio::test]
async fn of_acceptances_at_once_one_wins() {
    let kit = Kit::new().await;
    let owner = acting(&kit.acme, "o", Role::Owner);
    for round in 0..5 {
        let name = format!("ada{round}");
        invite(&kit.db, &owner, &to(&name, Role::Viewer)).await.expect("sent");
        let token = mailed(&kit, &name).await;
        let done = join_all((0..4).map(|_| accept(&kit.db, &kit.acme, &token))).await;
        let lost: Vec<_> = done.iter().filter_map(|done| done.as_ref().err().map(Error::kind)).collect();
        assert_eq!(lost, [ErrorKind::NotFound; 3]);
    }
}

#[tokio::test]
async fn without_a_seat_nobody_joins_and_the_invite_stays() {
    let kit = Kit::new().await;
    let owner = acting(&kit.acme, "o", Role::Owner);
    seats(&kit, &owner, 0).await;
    invite(&kit.db, &owner, &to("ada", Role::Viewer)).await.expect("sent");
    let token = mailed(&kit, "ada").await;
    let mut tx = kit.db.begin(&owner).await.expect("begin");
    assert_eq!(kind(tx.accept_invite(&token).await), ErrorKind::QuotaExceeded);
    tx.commit().await.expect("the transaction can go on");
    let members: i64 =
        sqlx::query_scalar("select count(*) from tenancy.members").fetch_one(&mut kit.superuser().await).await.expect("count");
    assert_eq!(members, 0);
    seats(&kit, &owner, 1).await;
    accept(&kit.db, &kit.acme, &token).await.expect("there is a seat now");
}

#[tokio::test]
async fn an_owner_is_invited_before_the_tenant_is_active_and_joins_when_it_is() {
    let kit = Kit::new().await;
    let by = kit.acme.principal().actor();
    let catalog = kit.db.catalog();
    let tenant = catalog.create(NewTenant::new("initech".parse().expect("a slug"), "Initech"), &by).await.expect("created");
    let mut tx = kit.db.dangerous().begin_system("a test provisions a tenant").await.expect("system");
    assert_eq!(tx.invite_owner(tenant.id, &to("boss", Role::Admin), now()).await.expect_err("no owner").field(), Some("role"));
    let sent = tx.invite_owner(tenant.id, &to("boss", Role::Owner), now()).await.expect("sent");
    assert_eq!(kind(tx.invite_owner(tenant.id, &to("boss", Role::Owner), now()).await), ErrorKind::Conflict);
    assert_eq!(kind(tx.invite_owner(tenancy_core::TenantId::new(), &to("boss", Role::Owner), now()).await), ErrorKind::NotFound);
    tx.commit().await.expect("commit");

    let token = mailed(&kit, "boss").await;
    assert_eq!(kit.db.find_invite(&token).await.expect("asked"), Some(tenant.id));
    let find = || async { catalog.find(&tenant.id.into()).await.expect("asked").expect("there").into_active() };
    assert_eq!(kind(find().await), ErrorKind::TenantInactive, "whoever accepts waits");
    catalog.update(tenant.id, TenantChange::status(TenantStatus::Active), None, &by).await.expect("active");
    let cx = TenantContext::establish(find().await.expect("active"), Principal::Visitor);
    let boss = accept(&kit.db, &cx, &token).await.expect("accepted");
    assert_eq!((boss.role, boss.email), (Role::Owner, sent.email));

    catalog.update(tenant.id, TenantChange::status(TenantStatus::Archived), None, &by).await.expect("archived");
    let mut tx = kit.db.dangerous().begin_system("a test provisions a tenant").await.expect("system");
    assert_eq!(kind(tx.invite_owner(tenant.id, &to("other", Role::Owner), now()).await), ErrorKind::Conflict);
}

const HOUR: Duration = Duration::from_secs(3600);

/// A member with a session, an API token, a link and an invite of their own.
async fn settle(kit: &Kit, cx: &TenantContext, name: &str) -> (Member, Token, Token) {
    let owner = acting(cx, "o", Role::Owner);
    let new = NewMember::new(format!("{name}@example.com").parse().expect("an address"), name, Role::Member);
    let mut tx = kit.db.begin(&owner).await.expect("begin");
    let member = tx.add_member(&owner, &new.with_subject(format!("idp|{name}").parse().expect("a subject"))).await.expect("added");
    let (_, session) = tx.start_session(member.id, HOUR, now()).await.expect("a session");
    let own = acting(cx, &member.id.to_string(), Role::Member);
    let (_, api_token) = tx.create_api_token(&own, &NewApiToken::new("ci", Role::Viewer, HOUR), now()).await.expect("a token");
    tx.request_sign_in(&member.email, &link(), now()).await.expect("a link");
    tx.invite(&owner, &to(&format!("{name}.friend"), Role::Viewer), now()).await.expect("sent");
    tx.commit().await.expect("commit");
    (member, session, api_token)
}

#[tokio::test]
async fn the_applications_role_reads_no_digest_and_nothing_of_another_tenant() {
    let kit = Kit::new().await;
    settle(&kit, &kit.acme, "ada").await;
    settle(&kit, &kit.globex, "eve").await;
    let mut eye = kit.superuser().await;
    let mut nobody = kit.app_url().parse::<PgConnectOptions>().expect("a URL").connect().await.expect("connect");
    for table in ["tenancy.invites", "tenancy.sign_in_links", "tenancy.sessions", "tenancy.api_tokens"] {
        let count = || AssertSqlSafe(format!("select count(*) from {table}"));
        let all: i64 = sqlx::query_scalar(count()).fetch_one(&mut eye).await.expect("count");
        let without_tenant: i64 = sqlx::query_scalar(count()).fetch_one(&mut nobody).await.expect("count");
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let own: i64 = sqlx::query_scalar(count()).fetch_one(&mut tx).await.expect("count");
        assert_eq!((all, own, without_tenant), (2, 1, 0), "{table}");
        for (sql, what) in [
            (format!("select token_sha256 from {table}"), "a digest"),
            (format!("select * from {table}"), "all columns"),
            (format!("select from {table} where token_sha256 is null"), "a comparison"),
            (
                format!(
                    "insert into {table} (tenant_id, id, token_sha256, created_at, expires_at) values ('{}', gen_random_uuid(), sha256(''), now(), now())",
                    kit.globex.tenant_id()
                ),
                "a row of another tenant",
            ),
        ] {
            let mut part = tx.savepoint().await.expect("savepoint");
            let refused = sqlx::query(AssertSqlSafe(sql)).execute(&mut *part).await.expect_err(what);
            assert_eq!(refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("42501"), "{table}: {what}");
        }
        let foreign = format!("delete from {table} where tenant_id = '{}'", kit.globex.tenant_id());
        assert_eq!(sqlx::query(AssertSqlSafe(foreign)).execute(&mut tx).await.expect("nothing").rows_affected(), 0);
        tx.commit().await.expect("commit");
    }
}

#[tokio::test]
async fn a_link_works_once_in_its_tenant_and_ends_the_others() {
    let kit = Kit::new().await;
    let (ada, ..) = settle(&kit, &kit.acme, "ada").await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    for _ in 0..5 {
        tx.request_sign_in(&ada.email, &link(), now()).await.expect("at most three are good");
    }
    tx.request_sign_in(&"nobody@example.com".parse().expect("an address"), &link(), now()).await.expect("no error says so");
    tx.commit().await.expect("commit");
    let sql = "select secret ->> 'link' from tenancy.outbox where topic = 'member.sign_in' order by id";
    let links: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut kit.superuser().await).await.expect("links");
    let tokens: Vec<&str> = links.iter().map(|link| link.rsplit('/').next().expect("a token")).collect();
    assert_eq!(tokens.len(), 3);
    let sign_in = async |cx: &TenantContext, token: &str| {
        let mut tx = kit.db.begin(cx).await?;
        let member = tx.accept_sign_in(token).await?;
        tx.commit().await.map(|()| member.id)
    };
    assert_eq!(kit.db.find_sign_in(tokens[0]).await.expect("asked"), Some(kit.acme.tenant_id()));
    assert_eq!(kind(sign_in(&kit.globex, tokens[0]).await), ErrorKind::NotFound, "another tenant");
    let done = join_all((0..4).map(|_| sign_in(&kit.acme, tokens[0]))).await;
    assert_eq!(done.iter().filter(|done| done.as_ref().is_ok_and(|id| *id == ada.id)).count(), 1);
    for token in tokens {
        assert_eq!(kit.db.find_sign_in(token).await.expect("asked"), None);
        assert_eq!(kind(sign_in(&kit.acme, token).await), ErrorKind::NotFound);
    }
    // What expired before makes room; the clock of the database decides what is good.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    tx.request_sign_in(&ada.email, &link(), now() - TimeDelta::minutes(16)).await.expect("sent");
    tx.commit().await.expect("commit");
    assert_eq!(kit.db.find_sign_in(&mailed(&kit, "ada").await).await.expect("asked"), None);
}

#[tokio::test]
async fn who_is_removed_and_added_again_signs_in_anew() {
    let kit = Kit::new().await;
    let owner = acting(&kit.acme, "o", Role::Owner);
    let (ada, session, api_token) = settle(&kit, &kit.acme, "ada").await;
    let found = kit.db.find_session(session.expose()).await.expect("asked").expect("a session");
    assert_eq!((found.with, found.tenant_id, found.member_id), (Credential::Session, kit.acme.tenant_id(), ada.id));
    let found = kit.db.find_api_token(api_token.expose()).await.expect("asked").expect("a token");
    assert_eq!((found.with, found.role, found.member_id), (Credential::ApiToken, Role::Viewer, ada.id));
    assert_eq!(kit.db.find_api_token(session.expose()).await.expect("asked"), None);
    assert_eq!(kit.db.find_session(api_token.expose()).await.expect("asked"), None);

    let mut tx = kit.db.begin(&owner).await.expect("begin");
    tx.remove_member(&owner, ada.id, None).await.expect("removed");
    assert_eq!(kind(tx.start_session(ada.id, HOUR, now()).await), ErrorKind::NotFound);
    tx.commit().await.expect("commit");
    let mut tx = kit.db.begin(&owner).await.expect("begin");
    let again = NewMember::new(ada.email, "ada", Role::Member).with_subject("idp|ada".parse().expect("a subject"));
    assert_eq!(tx.add_member(&owner, &again).await.expect("back").id, ada.id);
    tx.commit().await.expect("commit");
    assert_eq!(kit.db.find_session(session.expose()).await.expect("asked"), None);
    assert_eq!(kit.db.find_api_token(api_token.expose()).await.expect("asked"), None);
}

#[tokio::test]
async fn a_member_has_so_many_sessions_and_the_oldest_make_way() {
    let kit = Kit::new().await;
    let (ada, first, _) = settle(&kit, &kit.acme, "ada").await;
    let own = acting(&kit.acme, &ada.id.to_string(), Role::Viewer);
    let mut tx = kit.db.begin(&own).await.expect("begin");
    for _ in 0..19 {
        tx.start_session(ada.id, HOUR, now()).await.expect("a session");
    }
    assert_eq!(tx.sessions(&own, now()).await.expect("list").len(), 20);
    tx.commit().await.expect("commit");
    assert!(kit.db.find_session(first.expose()).await.expect("asked").is_some());
    let mut tx = kit.db.begin(&own).await.expect("begin");
    tx.start_session(ada.id, HOUR, now()).await.expect("a session");
    assert_eq!(tx.sessions(&own, now()).await.expect("list").len(), 20);
    tx.commit().await.expect("commit");
    assert!(kit.db.find_session(first.expose()).await.expect("asked").is_none(), "the oldest");
}

#[tokio::test]
async fn control_without_its_conditions_an_expired_and_a_foreign_invite_are_accepted() {
    let kit = Kit::new().await;
    let (owner, other) = (acting(&kit.acme, "o", Role::Owner), acting(&kit.globex, "o", Role::Owner));
    let bare = "create or replace function tenancy.invite_take(token_sha256 bytea) returns table (id uuid, email text, name text, role text, scopes text[])
        language sql security definer rows 1 set search_path = pg_catalog, pg_temp as
        $$ delete from tenancy.invites i where i.token_sha256 = $1 returning i.id, i.email, i.name, i.role, i.scopes $$";
    sqlx::raw_sql(bare).execute(&mut kit.superuser().await).await.expect("another function");
    invite_at(&kit.db, &owner, &to("expired", Role::Viewer), now() - TimeDelta::days(8)).await.expect("sent");
    invite(&kit.db, &other, &to("foreign", Role::Viewer)).await.expect("sent");
    for name in ["expired", "foreign"] {
        accept(&kit.db, &kit.acme, &mailed(&kit, name).await).await.expect("accepted");
    }
}
