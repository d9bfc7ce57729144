//! Members: who may change whom, seats that are exact, an owner who is left, and nobody else's to see.

use futures_util::future::join_all;
use harness::Kit;
use sqlx::Executor as _;
use tenancy_core::quota::{Metric, Quota};
use tenancy_core::{ErrorKind, Member, MemberChange, NewMember, Principal, Result, Role, Standing, Subject, TenantContext};
use tenancy_sqlx::TenantDb;
use uuid::Uuid;

fn subject(text: &str) -> Subject {
    text.parse().expect("a subject")
}

fn acting(cx: &TenantContext, who: &str, role: Role) -> TenantContext {
    TenantContext::establish(cx.tenant().clone(), Principal::Member { subject: subject(who), role })
}

fn person(name: &str, role: Role) -> NewMember {
    NewMember::new(format!("{name}@example.com").parse().expect("an address"), name, role)
}

async fn add(db: &TenantDb, by: &TenantContext, new: &NewMember) -> Result<Member> {
    let mut tx = db.begin(by).await?;
    let member = tx.add_member(by, new).await?;
    tx.commit().await.map(|()| member)
}

async fn remove(db: &TenantDb, by: &TenantContext, id: Uuid) -> Result<()> {
    let mut tx = db.begin(by).await?;
    tx.remove_member(by, id, None).await?;
    tx.commit().await
}

async fn update(db: &TenantDb, by: &TenantContext, id: Uuid, change: MemberChange, expected: Option<u64>) -> Result<Member> {
    let mut tx = db.begin(by).await?;
    let member = tx.update_member(by, id, &change, expected).await?;
    tx.commit().await.map(|()| member)
}

async fn standing(kit: &Kit, cx: &TenantContext, who: &str) -> Standing {
    kit.db.read(cx).await.expect("read").member_standing(&subject(who)).await.expect("standing")
}

/// Active members, and seats that are taken.
async fn books(kit: &Kit, cx: &TenantContext) -> (i64, i64) {
    let sql = "select (select count(*) from tenancy.members where tenant_id = $1 and status = 'active'),
                      coalesce((select used from tenancy.quota_gauges where tenant_id = $1 and metric = 'users'), 0)";
    sqlx::query_as(sql).bind(cx.tenant_id().as_uuid()).fetch_one(&mut kit.superuser().await).await.expect("books")
}

async fn seats(kit: &Kit, cx: &TenantContext, limit: u64) {
    let mut tx = kit.db.dangerous().begin_system("a test sets a quota").await.expect("system");
    tx.set_quota(cx.tenant_id(), &Quota::new(Metric::USERS, limit)).await.expect("set");
    tx.commit().await.expect("commit");
}

fn kind<T>(done: Result<T>) -> ErrorKind {
    done.map(drop).expect_err("refused").kind()
}

#[tokio::test]
async fn a_member_is_added_changed_removed_and_back_each_with_its_event() {
    let kit = Kit::new().await;
    let owner = acting(&kit.acme, "the-owner", Role::Owner);
    let ada = add(&kit.db, &owner, &person("Ada", Role::Member).with_subject(subject("idp|ada"))).await.expect("added");
    assert_eq!((ada.email.as_str(), ada.version, ada.is(&subject("idp|ada"))), ("ada@example.com", 1, true));
    assert_eq!(kind(add(&kit.db, &owner, &person("ada", Role::Viewer)).await), ErrorKind::Conflict, "the address, in any case");
    let again = person("Other", Role::Viewer).with_subject(subject("idp|ada"));
    assert_eq!(kind(add(&kit.db, &owner, &again).await), ErrorKind::Conflict, "the subject");

    let change = MemberChange::new(Some("Ada L.".to_owned()), Some(Role::Admin), Some(Some(vec!["notes:read".to_owned()])));
    let changed = update(&kit.db, &owner, ada.id, change.clone(), Some(1)).await.expect("changed");
    assert_eq!((changed.name.as_str(), changed.role, changed.version, changed.id), ("Ada L.", Role::Admin, 2, ada.id));
    assert_eq!(kind(update(&kit.db, &owner, ada.id, change, Some(1)).await), ErrorKind::VersionMismatch);
    let mut tx = kit.db.read(&owner).await.expect("read");
    assert_eq!(tx.member(ada.id).await.expect("one"), Some(changed.clone()));
    assert_eq!(tx.members(Uuid::max(), 10).await.expect("page"), [changed]);
    assert_eq!(tx.members(ada.id, 10).await.expect("page"), []);
    drop(tx);
    let active = Standing::Active { id: ada.id, role: Role::Admin, scopes: Some(vec!["notes:read".to_owned()]) };
    for who in ["idp|ada", &ada.id.to_string()] {
        let found = standing(&kit, &owner, who).await;
        assert!(matches!(&found, Standing::Active { id, role: Role::Admin, .. } if *id == ada.id) && found == active, "{found:?}");
    }
    assert_eq!(books(&kit, &owner).await, (1, 1));

    remove(&kit.db, &owner, ada.id).await.expect("removed");
    assert_eq!(kind(remove(&kit.db, &owner, ada.id).await), ErrorKind::NotFound);
    assert_eq!(kind(update(&kit.db, &owner, ada.id, MemberChange::role(Role::Owner), None).await), ErrorKind::NotFound);
    assert_eq!((standing(&kit, &owner, "idp|ada").await, standing(&kit, &owner, "nobody").await), (Standing::Removed, Standing::Unknown));
    assert_eq!(standing(&kit, &owner, &ada.id.to_string()).await, Standing::Removed);
    assert_eq!(books(&kit, &owner).await, (0, 0));
    let left: (Option<String>, String) =
        sqlx::query_as("select email, name from tenancy.members").fetch_one(&mut kit.superuser().await).await.expect("the row stays");
    assert_eq!(left, (None, String::new()));

    let back = add(&kit.db, &owner, &person("Ada", Role::Viewer).with_subject(subject("idp|ada"))).await.expect("back");
    assert_eq!((back.id, back.role, back.version, back.scopes), (ada.id, Role::Viewer, 4, None));
    assert_eq!(books(&kit, &owner).await, (1, 1));
    let mut tx = kit.db.read(&owner).await.expect("read");
    let events: Vec<(String, String, i64)> =
        sqlx::query_as("select action, actor_id, (detail->>'version')::bigint from tenancy.audit_events where target = $1 order by at")
            .bind(ada.id.to_string())
            .fetch_all(&mut tx)
            .await
            .expect("events");
    let by = |action: &str, version| (action.to_owned(), "the-owner".to_owned(), version);
    assert_eq!(events, [by("member.add", 1), by("member.update", 2), by("member.remove", 3), by("member.add", 4)]);
}

#[tokio::test]
async fn rules_hold_against_the_row_and_not_what_the_caller_believes() {
    let kit = Kit::new().await;
    let (owner, admin) = (acting(&kit.acme, "the-owner", Role::Owner), acting(&kit.acme, "the-admin", Role::Admin));
    let boss = add(&kit.db, &owner, &person("boss", Role::Owner)).await.expect("an owner");
    let ada = add(&kit.db, &admin, &person("ada", Role::Admin)).await.expect("an admin");
    for refused in [
        kind(add(&kit.db, &admin, &person("x", Role::Owner)).await),
        kind(add(&kit.db, &admin, &person("x", Role::Viewer).with_subject(subject("the-owner"))).await),
        kind(update(&kit.db, &admin, boss.id, MemberChange::role(Role::Viewer), None).await),
        kind(update(&kit.db, &admin, ada.id, MemberChange::role(Role::Owner), None).await),
        kind(remove(&kit.db, &admin, boss.id).await),
        kind(remove(&kit.db, &acting(&kit.acme, "m", Role::Member), ada.id).await),
    ] {
        assert_eq!(refused, ErrorKind::Forbidden);
    }
    assert_eq!(kind(remove(&kit.db, &owner, boss.id).await), ErrorKind::Conflict, "the last owner");
    assert_eq!(kind(update(&kit.db, &owner, boss.id, MemberChange::role(Role::Admin), None).await), ErrorKind::Conflict);
    update(&kit.db, &owner, ada.id, MemberChange::role(Role::Owner), None).await.expect("another owner");
    remove(&kit.db, &owner, boss.id).await.expect("not the last any more");
    assert_eq!(books(&kit, &owner).await, (1, 1));
}

#[tokio::test]
async fn another_tenants_member_is_nobody() {
    let kit = Kit::new().await;
    let (acme, globex) = (acting(&kit.acme, "me", Role::Owner), acting(&kit.globex, "me", Role::Owner));
    let theirs = add(&kit.db, &globex, &person("ada", Role::Owner).with_subject(subject("idp|ada"))).await.expect("theirs");
    let mut tx = kit.db.begin(&acme).await.expect("begin");
    assert_eq!((tx.member(theirs.id).await.expect("none"), tx.members(Uuid::max(), 10).await.expect("none")), (None, vec![]));
    assert_eq!(tx.member_standing(&subject("idp|ada")).await.expect("none"), Standing::Unknown);
    let foreign = tx.update_member(&acme, theirs.id, &MemberChange::role(Role::Viewer), None).await.expect_err("foreign");
    let absent = tx.update_member(&acme, Uuid::now_v7(), &MemberChange::role(Role::Viewer), None).await.expect_err("absent");
    assert_eq!((foreign.kind(), foreign.to_string()), (absent.kind(), absent.to_string()));
    assert_eq!(kind(tx.remove_member(&acme, theirs.id, None).await), ErrorKind::NotFound);
    assert_eq!(kind(tx.add_member(&globex, &person("x", Role::Viewer)).await), ErrorKind::NotFound, "a context of another tenant");
    drop(tx);
    // The same person is apart in each.
    let ours = add(&kit.db, &acme, &person("ada", Role::Viewer).with_subject(subject("idp|ada"))).await.expect("ours");
    remove(&kit.db, &acme, ours.id).await.expect("removed");
    assert_eq!(standing(&kit, &acme, "idp|ada").await, Standing::Removed);
    assert!(matches!(standing(&kit, &globex, "idp|ada").await, Standing::Active { role: Role::Owner, .. }));
    // An id comes before a subject that looks like it: no row of another's making hides a member.
    let decoy = person("decoy", Role::Viewer).with_subject(subject(&theirs.id.to_string()));
    add(&kit.db, &globex, &decoy).await.expect("a decoy");
    assert!(matches!(standing(&kit, &globex, &theirs.id.to_string()).await, Standing::Active { role: Role::Owner, .. }));
}

#[tokio::test]
async fn the_applications_role_can_not_undo_a_removal_by_deleting_its_row() {
    let kit = Kit::new().await;
    let ada = add(&kit.db, &kit.acme, &person("ada", Role::Member)).await.expect("added");
    for sql in [
        "delete from tenancy.members",
        "truncate tenancy.members",
        "update tenancy.members set subject = 'other'",
        "update tenancy.members set created_at = now()",
        "update tenancy.members set tenant_id = gen_random_uuid()",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = tx.execute(sql).await.expect_err(sql);
        assert!(refused.as_database_error().is_some_and(|db| db.code().as_deref() == Some("42501")), "{sql}: {refused}");
    }
    // The control: what is granted is done, to one's own rows.
    let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
    assert_eq!(tx.execute("update tenancy.members set name = 'x'").await.expect("granted").rows_affected(), 0);
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(tx.execute("update tenancy.members set name = 'x'").await.expect("granted").rows_affected(), 1);
    drop(tx);
    assert!(kit.db.read(&kit.acme).await.expect("read").member(ada.id).await.expect("still").is_some());
}

async fn two_owners(kit: &Kit) -> (Uuid, Uuid) {
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        ids.push(add(&kit.db, &kit.acme, &person(name, Role::Owner)).await.expect("an owner").id);
    }
    (ids[0], ids[1])
}

#[tokio::test]
async fn of_the_last_two_owners_one_stays_however_they_leave_at_once() {
    let kit = Kit::new().await;
    let other = TenantDb::open(kit.options()).await.expect("another node");
    for (demote, rollback) in [(false, false), (true, false), (false, true)] {
        let (first, second) = two_owners(&kit).await;
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        tx.remove_member(&kit.acme, first, None).await.expect("one of two");
        let (node, cx) = (other.clone(), kit.acme.clone());
        let racing = tokio::spawn(async move {
            if demote {
                update(&node, &cx, second, MemberChange::role(Role::Viewer), None).await.map(drop)
            } else {
                remove(&node, &cx, second).await
            }
        });
        // It waits for the lock.
        let mut eye = kit.superuser().await;
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        for _ in 0..500 {
            if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut eye).await.expect("activity") > 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(!racing.is_finished());
        let stays = if rollback {
            tx.rollback().await.expect("rollback");
            racing.await.expect("no panic").expect("the other one stays");
            first
        } else {
            tx.commit().await.expect("commit");
            assert_eq!(kind(racing.await.expect("no panic")), ErrorKind::Conflict);
            second
        };
        assert_eq!(books(&kit, &kit.acme).await, (1, 1));
        assert!(kit.db.read(&kit.acme).await.expect("read").member(stays).await.expect("a look").is_some());
        eye.execute("delete from tenancy.members; update tenancy.quota_gauges set used = 0").await.expect("anew");
    }
}

/// What everybody writes first: it counts the other owners, and then removes one.
#[tokio::test]
async fn control_without_the_lock_both_owners_leave() {
    let kit = Kit::new().await;
    let (first, second) = two_owners(&kit).await;
    let mut both = [kit.db.begin(&kit.acme).await.expect("begin"), kit.db.begin(&kit.acme).await.expect("begin")];
    for tx in &mut both {
        let owners: i64 = sqlx::query_scalar("select count(*) from tenancy.members where role = 'owner' and status = 'active'")
            .fetch_one(&mut *tx)
            .await
            .expect("count");
        assert_eq!(owners, 2);
    }
    for (mut tx, id) in both.into_iter().zip([first, second]) {
        let sql = "update tenancy.members set status = 'removed', email = null, name = '' where id = $1";
        sqlx::query(sql).bind(id).execute(&mut tx).await.expect("removed");
        tx.commit().await.expect("commit");
    }
    assert_eq!(books(&kit, &kit.acme).await.0, 0, "the test above can't fail");
}

#[tokio::test]
async fn two_hundred_are_added_on_two_nodes_and_exactly_the_limit_get_a_seat() {
    let kit = Kit::new().await;
    let other = TenantDb::open(kit.options()).await.expect("another node");
    seats(&kit, &kit.acme, 25).await;
    let tries = (0..200).map(|n| {
        let (db, cx) = (if n % 2 == 0 { kit.db.clone() } else { other.clone() }, kit.acme.clone());
        async move { add(&db, &cx, &person(&format!("p{n}"), Role::Member)).await.map(drop).map_err(|error| error.kind()) }
    });
    let outcomes = join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 25);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(ErrorKind::QuotaExceeded))), "{outcomes:?}");
    assert_eq!(books(&kit, &kit.acme).await, (25, 25));

    // A refusal leaves nothing behind, also where the transaction goes on; and a seat that is freed is one.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let refused = tx.add_member(&kit.acme, &person("late", Role::Member)).await.expect_err("full");
    assert_eq!(refused.to_string(), "the quota of users allows 25 users: 25 are used, and 1 more were asked for");
    tx.commit().await.expect("it goes on");
    assert_eq!(books(&kit, &kit.acme).await, (25, 25));
    let one = kit.db.read(&kit.acme).await.expect("read").members(Uuid::max(), 1).await.expect("one").remove(0);
    remove(&kit.db, &kit.acme, one.id).await.expect("removed");
    add(&other, &kit.acme, &person("late", Role::Member)).await.expect("room");
    add(&kit.db, &kit.globex, &person("theirs", Role::Member)).await.expect("the other tenant has its own");
    assert_eq!((books(&kit, &kit.acme).await, books(&kit, &kit.globex).await), ((25, 25), (1, 1)));
}

/// What everybody writes first: it counts, and then inserts.
#[tokio::test]
async fn control_count_then_insert_seats_too_many() {
    let kit = Kit::with_options(|options| options.with_max_connections(16)).await;
    let counted = tokio::sync::Barrier::new(8);
    let one = async |n: usize| {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let count: i64 = sqlx::query_scalar("select count(*) from tenancy.members").fetch_one(&mut tx).await.expect("count");
        counted.wait().await;
        if count < 25 {
            let sql = "insert into tenancy.members (id, email, name, role) values ($1, $2, 'x', 'member')";
            sqlx::query(sql).bind(Uuid::now_v7()).bind(format!("p{n}@example.com")).execute(&mut tx).await.expect("insert");
            tx.commit().await.expect("commit");
        }
    };
    join_all((0..200).map(one)).await;
    assert!(books(&kit, &kit.acme).await.0 > 25, "the test above can't fail");
}
