//! Federation, asked in SQL as the application's role: what another installation's request opens, until when, and what can't be forged.

use chrono::{DateTime, Utc};
use harness::{Route, on_each_route};
use sqlx::AssertSqlSafe;
use tenancy_core::federation::{Capability, Document as _, InstallationKey, Nonce, Origin, Proof, Unverified};
use tenancy_core::{Actor, Clock as _, ErrorKind, Result, SystemClock, TenantCatalog as _, TenantChange, TenantStatus};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::federation::{FederatedOpening, FederatedShare, Federation, PeerRequest, path};
use tenancy_sqlx::operations::Operations;
use tenancy_sqlx::sharing::LinkTx;
use tenancy_sqlx::{TenantTx, from_sqlx};
use uuid::Uuid;

use super::sharing::{Two, policy, refused};

/// The owner's installation, which is real; and another, of which the test has the key.
struct Apart {
    two: Two,
    here: Federation,
    there: Origin,
    key: InstallationKey,
    peer: Uuid,
}

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

impl Apart {
    async fn on(route: Route) -> Option<Self> {
        let two = Two::on(route).await?;
        let (here, there): (Origin, Origin) = ("https://here.example.com".parse().ok()?, "https://there.example.com".parse().ok()?);
        let key = InstallationKey::new([2; 32]);
        let here = Federation::new(&two.kit.db, here, InstallationKey::new([1; 32]), false).expect("an installation");
        let mut tx = two.kit.db.dangerous().begin_system("a test adds a peer").await.expect("system");
        let peer = tx.add_federation_peer(&there, &key.public()).await.expect("added").id;
        tx.commit().await.expect("commit");
        Some(Self { two, here, there, key, peer })
    }

    async fn offer(&self, note: Uuid) -> (FederatedShare, Capability) {
        let new = serde_json::json!({ "resource": format!("note:{note}"), "peer": self.there, "target": "globex" });
        let mut tx = self.two.kit.db.begin(&self.two.owner).await.expect("begin");
        let new = serde_json::from_value(new).expect("an offer");
        let (share, document) = tx.offer_federated(&self.here, &self.two.owner, &new).await.expect("offered");
        tx.commit().await.expect("commit");
        let announced = self.here.announcement(now()).expect("announced").key;
        let offer = Unverified::<Capability>::parse(&document).expect("ours");
        (share, offer.verify(&[announced], &self.there, now()).expect("it holds there").0)
    }

    fn proof(&self, share: Uuid, act: &str, capability: Nonce, nonce: [u8; 16]) -> String {
        let proof = Proof {
            issuer: self.there.clone(),
            audience: self.here.origin().clone(),
            method: if act == "document" { "GET" } else { "POST" }.to_owned(),
            path: path(share, act),
            capability,
            issued_at: now(),
            nonce: Nonce::new(nonce),
        };
        proof.sign(&self.key).expect("signed")
    }

    async fn open(&self, share: Uuid, capability: Nonce) -> Result<FederatedOpening> {
        let proof = self.proof(share, "document", capability, rand::random());
        self.here.open(&PeerRequest { proof: &proof, method: "GET", share, act: "document", request_id: Uuid::now_v7(), now: now() }).await
    }

    async fn answer(&self, share: Uuid, act: &str, capability: Nonce) -> Result<()> {
        let proof = self.proof(share, act, capability, rand::random());
        self.here.answer(&PeerRequest { proof: &proof, method: "POST", share, act, request_id: Uuid::now_v7(), now: now() }).await
    }

    async fn accepted(&self) -> (FederatedShare, Capability) {
        let (share, capability) = self.offer(self.two.notes[0]).await;
        self.answer(share.id, "accept", capability.nonce).await.expect("accepted");
        (share, capability)
    }
}

async fn shown(tx: &mut LinkTx, view: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(format!("select body from {view}"))).fetch_all(tx).await.expect("rows")
}

on_each_route! {
    #[tokio::test]
    a_peer_sees_the_resource_and_nothing_beside_it_until_the_next_statement;
}

async fn a_peer_sees_the_resource_and_nothing_beside_it_until_the_next_statement(route: Route) {
    let Some(apart) = Apart::on(route).await else { return };
    let (two, db) = (&apart.two, &apart.two.kit.db);
    let (share, capability) = apart.offer(two.notes[0]).await;
    let nothing = apart.open(share.id, capability.nonce).await.expect_err("it is not accepted");
    assert_eq!(nothing.kind(), ErrorKind::NotFound);
    apart.answer(share.id, "accept", capability.nonce).await.expect("accepted");
    apart.answer(share.id, "accept", capability.nonce).await.expect("it stays accepted");

    let opened = apart.open(share.id, capability.nonce).await.expect("opened");
    assert_eq!((opened.owner, opened.resource.id()), (two.owner.tenant_id(), two.notes[0]));
    let mut tx = db.read_federated(&opened.ticket).await.expect("a ticket");
    assert_eq!(shown(&mut tx, "tenancy_views.notes_link").await, ["shared"]);
    assert_eq!(shown(&mut tx, "tenancy_views.comments_link").await, ["on shared"]);
    for nothing in ["notes", "comments", "tenancy_views.notes", "tenancy_views.comments"] {
        assert_eq!(shown(&mut tx, nothing).await, [""; 0], "{nothing}");
    }
    let write = sqlx::query("insert into notes (tenant_id, body) values (gen_random_uuid(), 'x')").execute(&mut tx).await;
    assert_eq!(from_sqlx(write.expect_err("read only")).kind(), ErrorKind::Forbidden);

    // Each end bites at the next statement of a transaction that is open; each is undone, so that the next one has a control.
    let catalog = db.catalog();
    let status = async |status| {
        catalog.update(two.owner.tenant_id(), TenantChange::status(status), None, &Actor::System).await.expect("a status");
    };
    let mut tx = db.read_federated(&apart.open(share.id, capability.nonce).await.expect("opened").ticket).await.expect("a ticket");
    let view = "tenancy_views.notes_link";
    policy(&two.kit, &two.owner, |policy| policy.offers = false).await;
    assert_eq!(shown(&mut tx, view).await, [""; 0], "the policy");
    policy(&two.kit, &two.owner, |policy| (policy.offers, policy.targets) = (true, Some(Vec::new()))).await;
    assert_eq!(shown(&mut tx, view).await, [""; 0], "a policy that names targets");
    policy(&two.kit, &two.owner, |policy| policy.targets = None).await;
    assert_eq!(shown(&mut tx, view).await, ["shared"], "the control");
    status(TenantStatus::Suspended).await;
    assert_eq!(shown(&mut tx, view).await, [""; 0], "suspended");
    assert_eq!(apart.open(share.id, capability.nonce).await.expect_err("suspended").kind(), ErrorKind::NotFound);
    status(TenantStatus::Active).await;
    assert_eq!(shown(&mut tx, view).await, ["shared"], "the control");
    let mut owner = db.begin(&two.owner).await.expect("begin");
    owner.end_federated(&two.owner, share.id).await.expect("ended");
    owner.commit().await.expect("commit");
    assert_eq!(shown(&mut tx, view).await, [""; 0], "revoked");
    assert_eq!(apart.open(share.id, capability.nonce).await.expect_err("revoked").kind(), ErrorKind::NotFound);

    // The row goes, and takes its share along; so does the peer, for good.
    let (second, capability) = apart.accepted().await;
    let (third, other) = apart.offer(two.notes[1]).await;
    let mut owner = db.begin(&two.owner).await.expect("begin");
    sqlx::query("delete from notes where id = $1").bind(two.notes[0]).execute(&mut owner).await.expect("deleted");
    owner.commit().await.expect("commit");
    assert!(apart.open(second.id, capability.nonce).await.is_err());
    apart.answer(third.id, "accept", other.nonce).await.expect("accepted");
    apart.open(third.id, other.nonce).await.expect("the control");
    let mut tx = db.dangerous().begin_system("a test removes a peer").await.expect("system");
    tx.remove_federation_peer(apart.peer).await.expect("removed");
    tx.add_federation_peer(&apart.there, &apart.key.public()).await.expect("added again");
    tx.commit().await.expect("commit");
    assert!(apart.open(third.id, other.nonce).await.is_err());
    let mut tx = db.read(&two.owner).await.expect("read");
    let states: Vec<&str> = tx.federated_shares(Uuid::max(), 9).await.expect("shares").iter().map(|share| share.state.as_str()).collect();
    assert_eq!(states, ["gone", "gone", "revoked"]);
}

#[tokio::test]
async fn a_proof_is_used_once_also_by_many_at_once() {
    let apart = Apart::on(Route::Direct).await.expect("direct");
    let (share, capability) = apart.accepted().await;
    let proof = apart.proof(share.id, "document", capability.nonce, [9; 16]);
    let ask = async || {
        let asked = PeerRequest { proof: &proof, method: "GET", share: share.id, act: "document", request_id: Uuid::now_v7(), now: now() };
        apart.here.open(&asked).await.is_ok()
    };
    let many = futures_util::future::join_all((0..6).map(|_| ask())).await;
    assert_eq!(many.iter().filter(|done| **done).count(), 1);
    // The control: where nothing is remembered, it is good again.
    sqlx::query("delete from tenancy.federation_nonces").execute(&mut apart.two.kit.superuser().await).await.expect("forgotten");
    assert!(ask().await && !ask().await);
}

#[tokio::test]
async fn the_applications_role_forges_no_federated_share_and_reads_no_secret() {
    let apart = Apart::on(Route::Direct).await.expect("direct");
    let (share, capability) = apart.accepted().await;
    let mut tx: TenantTx = apart.two.kit.db.begin(&apart.two.target).await.expect("begin");
    for sql in [
        "insert into tenancy.federation_peers (id, origin, key) values (gen_random_uuid(), 'https://x.example.com', sha256('x'))",
        "update tenancy.federation_peers set key = sha256('x')",
        "update tenancy.federated_shares set state = 'active'",
        "select nonce_sha256 from tenancy.federated_shares",
        "select nonce from tenancy.federated_grants",
        "select * from tenancy.federated_tickets",
        "select * from tenancy.federation_nonces",
        "delete from tenancy.federation_nonces",
        "select tenancy.federation_peer_remove(gen_random_uuid())",
        "select tenancy.federated_told(null, 'x', 'x', 'x', null)",
    ] {
        assert_eq!(refused(&mut tx, sql).await, Some(ErrorKind::Forbidden), "{sql}");
    }
    let others: i64 = sqlx::query_scalar("select count(*) from tenancy.federated_shares").fetch_one(&mut tx).await.expect("a count");
    assert_eq!(others, 0, "another tenant's are not there");
    // Without the capability's nonce the functions open nothing, and another tenant can end nothing.
    let opened = sqlx::query("select from tenancy.federated_open($1, $2, $3, gen_random_uuid())").bind(apart.peer).bind(share.id);
    assert!(opened.bind(&[0u8; 16][..]).fetch_optional(&mut tx).await.expect("asked").is_none());
    assert_eq!(tx.end_federated(&apart.two.target, share.id).await.expect_err("not its own").kind(), ErrorKind::NotFound);
    drop(tx);
    apart.open(share.id, capability.nonce).await.expect("the control");
}

/// Nothing is left of what was shared, also while a ticket is at hand; and another tenant's shares with the same peer stay.
#[tokio::test]
async fn the_erasure_of_the_owner_ends_what_is_shared() {
    let apart = Apart::on(Route::Direct).await.expect("direct");
    let (share, capability) = apart.accepted().await;
    let db = &apart.two.kit.db;
    let mut open = db.read_federated(&apart.open(share.id, capability.nonce).await.expect("opened").ticket).await.expect("a ticket");
    assert_eq!(shown(&mut open, "tenancy_views.notes_link").await, ["shared"], "the control");
    drop(open);
    let tenant = apart.two.owner.tenant_id();
    let mut eye = apart.two.kit.superuser().await;
    let other = "insert into tenancy.federated_shares (tenant_id, id, peer_id, target, resource_type, resource_id, nonce_sha256, offered_by, expires_at)
                 select $1, gen_random_uuid(), peer_id, target, resource_type, resource_id, nonce_sha256, offered_by, expires_at from tenancy.federated_shares";
    sqlx::query(other).bind(apart.two.target.tenant_id().as_uuid()).execute(&mut eye).await.expect("another tenant's");
    db.catalog().update(tenant, TenantChange::status(TenantStatus::Archived), None, &Actor::System).await.expect("archived");
    let mut tx = db.dangerous().begin_system("a test erases").await.expect("system");
    let queued = tx.request_erasure(tenant, "the test wants it", None).await.expect("queued");
    tx.commit().await.expect("commit");
    Operations::new(db).with(Erase::KIND, Erase::new(db, CertificateKey::new([7; 32]))).run_next().await.expect("it runs");
    let done = db.dangerous().begin_system("a test looks").await.expect("system").operation(queued.id).await.expect("it is there");
    assert_eq!(done.state, "done", "{:?}", done.error);
    for (table, left) in [("federated_shares", 1), ("federated_tickets", 0), ("federated_grants", 0)] {
        let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("select count(*) from tenancy.{table}")));
        assert_eq!(count.fetch_one(&mut eye).await.expect("a count"), left, "{table}");
    }
    assert!(apart.open(share.id, capability.nonce).await.is_err());
}
