//! Two installations, each with its own database and server, over HTTP: a share from one to the other, and all that is refused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use harness::actors::{Actor, Member, Reply};
use harness::app::TestApp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tenancy_core::federation::{Capability, Document as _, InstallationKey, Nonce, Proof};
use tenancy_core::{Clock as _, SystemClock};

use super::ABSENT;

/// The key of these settings, as the server makes it.
fn key(secret: &str) -> InstallationKey {
    InstallationKey::new(Sha256::digest(format!("tenancy federation key\n{secret}")).into())
}

fn key_of(app: &TestApp) -> InstallationKey {
    key(app.config.federation_key.as_ref().expect("a key").expose())
}

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

/// The owner's installation with a document and one beside it, and the target's.
struct Apart {
    owner: TestApp,
    target: TestApp,
    acme: Member,
    globex: Member,
    document: String,
    beside: String,
    /// The target's installation, at the owner's.
    peer: String,
}

impl Apart {
    async fn new() -> Self {
        Self::with_target(TestApp::start().await).await
    }

    async fn with_target(target: TestApp) -> Self {
        let owner = TestApp::start().await;
        let (acme, globex) = (owner.tenant("acme-works").await, target.tenant("globex-corp").await);
        let mut peers = Vec::new();
        for (one, other, member) in [(&owner, &target, &acme), (&target, &owner, &globex)] {
            one.operator().allow_sharing().await;
            member.allow_sharing().await;
            let announced = other.stranger().get("/.well-known/tenancy-federation").await.expect(200);
            assert_eq!((announced.text("origin"), announced.text("key")), (other.origin(), key_of(other).public().to_string()));
            peers.push(one.operator().add_peer(&other.origin(), &announced.text("key")).await);
        }
        let project = acme.project("a secret project").await;
        let (document, beside) = (acme.document(&project, "the plan").await, acme.document(&project, "beside").await);
        Self { owner, target, acme, globex, document, beside, peer: peers.swap_remove(0) }
    }

    async fn offer(&self) -> (String, String) {
        self.acme.offer_elsewhere(&self.document, &self.target.origin(), &self.globex.slug).await
    }

    /// The share's id at the owner's and at the target's, and its capability.
    async fn shared(&self) -> (String, String, Capability) {
        let (share, document) = self.offer().await;
        (share, self.globex.accept_from_elsewhere(&document).await, capability(&document))
    }

    /// A good proof for the document of a share, before `change`.
    fn proof(&self, share: &str, of: &Capability, change: impl FnOnce(&mut Proof)) -> Proof {
        let mut proof = Proof {
            issuer: self.target.origin().parse().expect("an origin"),
            audience: self.owner.origin().parse().expect("an origin"),
            method: "GET".to_owned(),
            path: format!("/federation/v1/shares/{share}/document"),
            capability: of.nonce,
            issued_at: now(),
            nonce: Nonce::new(rand::random()),
        };
        change(&mut proof);
        proof
    }

    /// What the owner's installation answers to this proof.
    async fn ask(&self, share: &str, proof: &str) -> Reply {
        self.owner.stranger().get(&format!("/federation/v1/shares/{share}/document")).with("tenancy-proof", proof).await
    }

    async fn ask_well(&self, share: &str, of: &Capability) -> Reply {
        self.ask(share, &self.proof(share, of, |_| ()).sign(&key_of(&self.target)).expect("signed")).await
    }
}

/// What a document says, whoever has signed it.
fn capability(document: &str) -> Capability {
    let payload = URL_SAFE_NO_PAD.decode(document.split_once('.').expect("two parts").0).expect("base64");
    serde_json::from_slice(&payload).expect("a capability")
}

async fn told(of: &Member, share: &str) -> Vec<String> {
    let log = of.get("/api/v1/audit?limit=200").await.expect(200).json();
    let about = log["items"].as_array().expect("items").iter().rev().filter(|event| event["target"] == share);
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    about.map(|event| format!("{} {} {}", text(event, "action"), text(event, "outcome"), text(event, "actor_kind"))).collect()
}

/// The walk of `docs/federation.md`.
#[tokio::test]
async fn offer_accept_read_and_be_refused_when_it_ends() {
    let apart = Apart::new().await;
    let (acme, globex, viewer) = (&apart.acme, &apart.globex, apart.globex.role("viewer"));
    let body = json!({ "resource": format!("document:{}", apart.document), "peer": apart.target.origin(), "target": globex.slug });
    let offered = acme.post("/api/v1/federated-shares", &body).await.expect(201);
    let (share, document) = (offered.text("id"), offered.text("document"));
    assert_eq!((offered.text("state"), offered.text("direction")), ("offered".to_owned(), "outgoing".to_owned()));
    acme.post("/api/v1/federated-shares", &body).await.problem("conflict");
    acme.get(offered.header("location")).await.expect(200).is_silent_about([&document]);
    apart.ask_well(&share, &capability(&document)).await.expect(404);

    // Accepted again, it stays accepted; and it is the tenant's alone.
    viewer.post("/api/v1/federated-shares/accept", &json!({ "document": document })).await.problem("forbidden");
    let grant = globex.accept_from_elsewhere(&document).await;
    assert_eq!(globex.accept_from_elsewhere(&document).await, grant);
    globex.post("/api/v1/federated-shares/decline", &json!({ "document": document })).await.problem("conflict");
    let path = format!("/api/v1/federated-shares/{grant}");
    let shown = viewer.get(&format!("{path}/document")).await.expect(200);
    assert_eq!(
        (shown.text("title"), shown.text("content"), shown.text("federated_share")),
        ("the plan".into(), "text".into(), grant.clone())
    );
    shown.is_silent_about(["beside", "secret", &apart.beside]);
    acme.patch(&format!("/api/v1/documents/{}", apart.document), &json!({ "title": "the new plan" })).await.expect(200);
    assert_eq!(viewer.get(&format!("{path}/document")).await.expect(200).text("title"), "the new plan", "as it is now");
    viewer.get(&path).await.problem("forbidden");
    let incoming = globex.get("/api/v1/federated-shares").await.expect(200).json();
    assert_eq!((&incoming["items"][0]["id"], &incoming["items"][0]["owner_name"]), (&json!(grant), &json!(acme.name)));
    let outgoing = acme.get("/api/v1/federated-shares?direction=outgoing").await.expect(200).json();
    assert_eq!((&outgoing["items"][0]["id"], &outgoing["items"][0]["state"]), (&json!(share), &json!("active")));
    // An operator's visit, which changes nothing, sees what its tenant sees.
    let visit = json!({ "reason": "the test wants it" });
    let visit =
        apart.target.operator().post(&format!("/api/v1/tenants/{}/impersonate", globex.tenant), &visit).await.expect(201).text("token");
    let visitor = apart.target.operator().with_token(&visit);
    assert_eq!(visitor.get(&format!("{path}/document")).await.expect(200).text("title"), "the new plan");
    // Another tenant of the same installation has nothing of it.
    let initech = apart.target.tenant("initech-labs").await;
    for (theirs, nobodys) in [("", ""), ("/document", "/document")] {
        let (theirs, nobodys) = (format!("{path}{theirs}"), format!("/api/v1/federated-shares/{ABSENT}{nobodys}"));
        assert_eq!(initech.get(&theirs).await.expect(404).comparable(), initech.get(&nobodys).await.comparable());
        assert_eq!(initech.delete(&theirs.replace("/document", "")).await.expect(404).status, 404);
    }

    acme.delete(&format!("/api/v1/federated-shares/{share}")).await.expect(204);
    acme.delete(&format!("/api/v1/federated-shares/{share}")).await.expect(204);
    viewer.get(&format!("{path}/document")).await.problem("not-found");
    globex.delete(&path).await.expect(204);
    viewer.get(&format!("{path}/document")).await.problem("not-found");
    let log = |what: &[&str]| what.iter().map(|what| format!("federation.{what}")).collect::<Vec<_>>();
    assert_eq!(
        told(acme, &share).await,
        log(&[
            "offered done member",
            "open denied peer",
            "accepted done peer",
            "open done peer",
            "open done peer",
            "open done peer",
            "ended done member",
            "open denied peer",
            "end denied peer"
        ])
    );
    assert_eq!(
        told(globex, &grant).await,
        log(&[
            "accepted done member",
            "open done member",
            "open done member",
            "open done operator",
            "open done member",
            "ended done member",
            "open denied member"
        ])
    );
}

#[tokio::test]
async fn whatever_is_wrong_with_a_request_is_answered_as_a_share_that_never_was() {
    let mut apart = Apart::new().await;
    let (share, grant, of) = apart.shared().await;
    let beside = apart.acme.offer_elsewhere(&apart.beside, &apart.target.origin(), &apart.globex.slug).await;
    let (other, _) = (beside.0.clone(), apart.globex.accept_from_elsewhere(&beside.1).await);
    // A third installation, which the owner's knows as well.
    let third = key("a third installation's key, of more than 32 bytes");
    apart.owner.operator().add_peer("https://third.example.com", &third.public().to_string()).await;
    let own = key_of(&apart.target);
    let never = {
        let path = format!("/federation/v1/shares/{ABSENT}/document");
        let proof = apart.proof(ABSENT, &of, |proof| proof.path = path).sign(&own).expect("signed");
        apart.ask(ABSENT, &proof).await.expect(404).comparable()
    };
    let good = apart.proof(&share, &of, |_| ()).sign(&own).expect("signed");
    apart.ask(&share, &good).await.expect(200);
    let minute = TimeDelta::seconds(62);
    let edited = {
        let (payload, signature) = good.split_once('.').expect("two parts");
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("text").replace(&share, &other);
        format!("{}.{signature}", URL_SAFE_NO_PAD.encode(json))
    };
    let with =
        |key: &InstallationKey, change: &dyn Fn(&mut Proof)| apart.proof(&share, &of, |proof| change(proof)).sign(key).expect("signed");
    for (share, proof, why) in [
        (&share, good.clone(), "replayed"),
        (&other, good.clone(), "another path"),
        (&other, edited, "edited"),
        (&share, "x".to_owned(), "nothing"),
        (&share, with(&own, &|proof| proof.audience = "https://third.example.com".parse().expect("an origin")), "another audience"),
        (&share, with(&own, &|proof| proof.method = "POST".to_owned()), "another method"),
        (&share, with(&own, &|proof| proof.issued_at = now() - minute), "too old"),
        (&share, with(&own, &|proof| proof.issued_at = now() + minute), "from the future"),
        (&share, with(&own, &|proof| proof.capability = Nonce::new([0; 16])), "without the capability"),
        (&share, with(&own, &|proof| proof.capability = capability(&beside.1).nonce), "with another share's capability"),
        (&share, with(&key("nobody's key, but of more than 32 bytes too"), &|_| ()), "a key that is not pinned"),
        (&share, with(&third, &|_| ()), "another peer's key"),
        (
            &share,
            with(&third, &|proof| proof.issuer = "https://third.example.com".parse().expect("an origin")),
            "another peer with a stolen capability",
        ),
        (&share, with(&own, &|proof| proof.issuer = "https://nobody.example.com".parse().expect("an origin")), "nobody known"),
    ] {
        assert_eq!(apart.ask(share, &proof).await.comparable(), never, "{why}");
    }
    apart.owner.stranger().get(&format!("/federation/v1/shares/{share}/document")).await.invalid("tenancy-proof");
    // The control of the replay: where nothing is remembered, it is good again.
    sqlx::query("delete from tenancy.federation_nonces").execute(&mut apart.owner.db_eye().await).await.expect("forgotten");
    apart.ask(&share, &good).await.expect(200);

    // What ends it on the owner's side; each is undone, so that the next one has a control.
    let (acme, operator) = (&apart.acme, apart.owner.operator());
    let sharing = async |body: Value| drop(acme.put("/api/v1/sharing", "").json(&body).await.expect(200));
    sharing(json!({ "offers": false, "types": ["document"] })).await;
    assert_eq!(apart.ask_well(&share, &of).await.comparable(), never, "the policy");
    sharing(json!({ "offers": true, "types": ["document"] })).await;
    apart.ask_well(&share, &of).await.expect(200);
    operator.put("/api/v1/sharing-platform", "").json(&json!({ "enabled": false })).await.expect(200);
    assert_eq!(apart.ask_well(&share, &of).await.comparable(), never, "the platform");
    operator.allow_sharing().await;
    apart.ask_well(&share, &of).await.expect(200);
    operator.ask("POST", "/api/v1/tenants/acme-works/suspend").await.expect(200);
    assert_eq!(apart.ask_well(&share, &of).await.comparable(), never, "suspended");
    apart.globex.get(&format!("/api/v1/federated-shares/{grant}/document")).await.problem("not-found");
    operator.ask("POST", "/api/v1/tenants/acme-works/resume").await.expect(200);
    apart.ask_well(&share, &of).await.expect(200);
    operator.delete(&format!("/api/v1/federation/peers/{}", apart.peer)).await.expect(204);
    assert_eq!(apart.ask_well(&share, &of).await.comparable(), never, "the peer is gone");
    // Known again, it is a new one: what was shared is not.
    operator.add_peer(&apart.target.origin(), &own.public().to_string()).await;
    assert_eq!(apart.ask_well(&share, &of).await.comparable(), never, "what was shared with the peer that is gone");
    assert_eq!(acme.get(&format!("/api/v1/federated-shares/{share}")).await.expect(200).text("state"), "gone");
    apart.shared_again().await;
}

impl Apart {
    /// The last control: a new share works.
    async fn shared_again(&mut self) {
        let (share, _, of) = self.shared().await;
        self.ask_well(&share, &of).await.expect(200);
        let eye = &mut self.owner.db_eye().await;
        sqlx::query("update tenancy.federated_shares set expires_at = now() where id::text = $1")
            .bind(&share)
            .execute(eye)
            .await
            .expect("over");
        self.ask_well(&share, &of).await.problem("not-found");
    }
}

#[tokio::test]
async fn a_document_that_is_no_offer_to_this_tenant_is_refused_alike_and_leaves_nothing() {
    let apart = Apart::new().await;
    let initech = apart.target.tenant("initech-labs").await;
    initech.allow_sharing().await;
    let third = key("a third installation's key, of more than 32 bytes");
    apart.target.operator().add_peer("https://third.example.com", &third.public().to_string()).await;
    let (share, document) = apart.offer().await;
    let (own, of) = (key_of(&apart.owner), capability(&document));
    let with = |key: &InstallationKey, change: &dyn Fn(&mut Capability)| {
        let mut of = of.clone();
        change(&mut of);
        of.sign(key).expect("signed")
    };
    let third_origin = || "https://third.example.com".parse().expect("an origin");
    let edited = {
        let (payload, signature) = document.split_once('.').expect("two parts");
        let json =
            String::from_utf8(URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("text").replace("globex-corp", "initech-labs");
        format!("{}.{signature}", URL_SAFE_NO_PAD.encode(json))
    };
    let accept = async |who: &Member, document: &str| who.post("/api/v1/federated-shares/accept", &json!({ "document": document })).await;
    let reference = accept(&apart.globex, "x").await;
    reference.invalid("document");
    let before = apart.target.db_everything().await;
    for (who, document, why) in [
        (&initech, document.clone(), "to another tenant"),
        (&initech, edited, "edited"),
        (&apart.globex, with(&own, &|of| of.audience = third_origin()), "another audience"),
        (&apart.globex, with(&own, &|of| of.expires_at = now() - TimeDelta::seconds(1)), "expired"),
        (&apart.globex, with(&own, &|of| of.not_before = now() + TimeDelta::seconds(90)), "not yet valid"),
        (&apart.globex, with(&own, &|of| of.perms = tenancy_core::share::Perms::Write), "to write"),
        (&apart.globex, with(&key("nobody's key, but of more than 32 bytes too"), &|_| ()), "a key that is not pinned"),
        (&apart.globex, with(&third, &|_| ()), "another peer's key"),
        (&apart.globex, with(&own, &|of| of.issuer = third_origin()), "in another's name"),
        (&apart.globex, with(&own, &|of| of.issuer = "https://nobody.example.com".parse().expect("an origin")), "nobody known"),
        (&apart.globex, apart.proof(&share, &of, |_| ()).sign(&own).expect("signed"), "another kind"),
        (&apart.globex, "A".repeat(9000), "too long"),
    ] {
        assert_eq!(accept(who, &document).await.comparable(), reference.comparable(), "{why}");
    }
    assert_eq!(apart.target.db_everything().await, before);
    // Signed well, but not what the owner has offered; the owner's installation knows better.
    for invented in [with(&own, &|of| of.nonce = Nonce::new([0; 16])), with(&own, &|of| of.share = ABSENT.parse().expect("an id"))] {
        accept(&apart.globex, &invented).await.problem("conflict");
    }
    // A tenant that accepts nothing, as the policy says.
    apart.globex.put("/api/v1/sharing", "").json(&json!({})).await.expect(200);
    accept(&apart.globex, &document).await.problem("forbidden");
    apart.globex.allow_sharing().await;
    assert_eq!(apart.acme.get(&format!("/api/v1/federated-shares/{share}")).await.expect(200).text("state"), "offered");
    accept(&apart.globex, &document).await.expect(200);
}

#[tokio::test]
async fn the_next_key_is_pinned_by_the_one_before_and_takes_its_place() {
    const NEXT: &str = "the next key of the target's installation, of more than 32 bytes";
    let apart = Apart::with_target(TestApp::with(|config| config.federation_next_key = Some(NEXT.into())).await).await;
    let (share, grant, of) = apart.shared().await;
    let origin = apart.target.origin();
    let rotated = apart
        .target
        .another_node_with(|config| {
            config.federation_origin = Some(origin);
            config.federation_key = config.federation_next_key.take();
        })
        .await;
    let (before, after) = (apart.globex.clone(), apart.globex.at(&rotated));
    let path = format!("/api/v1/federated-shares/{grant}/document");
    after.get(&path).await.problem("not-found");
    before.get(&path).await.expect(200);

    let operator = apart.owner.operator();
    let rotate = format!("/api/v1/federation/peers/{}/rotate", apart.peer);
    let pinned = operator.post(&rotate, &json!({})).await.expect(200);
    assert_eq!((pinned.text("key"), pinned.text("next_key")), (key_of(&apart.target).public().to_string(), key(NEXT).public().to_string()));
    before.get(&path).await.expect(200);
    after.get(&path).await.expect(200);
    // From its first use on, the one before is refused.
    before.get(&path).await.problem("not-found");
    after.get(&path).await.expect(200);
    let peers = operator.get("/api/v1/federation/peers").await.expect(200).json();
    assert_eq!((&peers["items"][0]["key"], &peers["items"][0]["next_key"]), (&json!(key(NEXT).public()), &Value::Null));
    apart.ask_well(&share, &of).await.problem("not-found");
    // What the origin announces is signed by a key that is no longer pinned: it changes nothing. An operator can pin any key.
    operator.post(&rotate, &json!({})).await.problem("conflict");
    operator.post(&rotate, &json!({ "key": key_of(&apart.target).public() })).await.expect(200);
    before.get(&path).await.expect(200);
    after.get(&path).await.problem("not-found");
}

/// The other way round: what the owner's installation signs with its next key.
#[tokio::test]
async fn a_document_by_the_next_key_retires_the_one_before_and_a_peer_that_is_removed_ends_all() {
    let apart = Apart::new().await;
    let next = key("the next key of the owner's installation, of more than 32 bytes");
    let (_, first) = apart.offer().await;
    let (_, second) = apart.acme.offer_elsewhere(&apart.beside, &apart.target.origin(), &apart.globex.slug).await;
    let signed = capability(&first).sign(&next).expect("signed");
    let (operator, globex) = (apart.target.operator(), &apart.globex);
    let accept = async |document: &str| globex.post("/api/v1/federated-shares/accept", &json!({ "document": document })).await;
    accept(&signed).await.invalid("document");
    let peer = operator.get("/api/v1/federation/peers").await.expect(200).json()["items"][0]["id"].as_str().expect("an id").to_owned();
    operator.post(&format!("/api/v1/federation/peers/{peer}/rotate"), &json!({ "key": next.public() })).await.expect(200);
    let grant = accept(&signed).await.expect(200).text("id");
    accept(&second).await.invalid("document");
    accept(&first).await.invalid("document");
    let path = format!("/api/v1/federated-shares/{grant}");
    globex.get(&format!("{path}/document")).await.expect(200);

    operator.delete(&format!("/api/v1/federation/peers/{peer}")).await.expect(204);
    operator.delete(&format!("/api/v1/federation/peers/{peer}")).await.expect(204);
    globex.get(&format!("{path}/document")).await.problem("not-found");
    assert_eq!(globex.get(&path).await.expect(200).text("state"), "gone");
    accept(&signed).await.invalid("document");
    assert_eq!(operator.get("/api/v1/federation/peers").await.expect(200).json()["items"], json!([]));
    assert_eq!(told(globex, &grant).await.last().map(String::as_str), Some("federation.open denied member"));
}

#[tokio::test]
async fn either_side_ends_it_and_an_installation_that_is_away_is_waited_for() {
    let mut apart = Apart::new().await;
    let (share, document) = apart.offer().await;
    let declined = apart.globex.post("/api/v1/federated-shares/decline", &json!({ "document": document })).await.expect(200);
    assert_eq!(declined.text("state"), "declined");
    apart.globex.post("/api/v1/federated-shares/accept", &json!({ "document": document })).await.problem("conflict");
    let state = async |share: &str| apart.acme.get(&format!("/api/v1/federated-shares/{share}")).await.expect(200).text("state");
    assert_eq!(state(&share).await, "declined");
    let (share, grant, _) = apart.shared().await;
    apart.globex.delete(&format!("/api/v1/federated-shares/{grant}")).await.expect(204);
    assert_eq!(state(&share).await, "left");
    let (_, grant, _) = apart.shared().await;
    apart.acme.delete(&format!("/api/v1/documents/{}", apart.document)).await.expect(204);
    apart.globex.get(&format!("/api/v1/federated-shares/{grant}/document")).await.problem("not-found");
    let (_, document) = apart.acme.offer_elsewhere(&apart.beside, &apart.target.origin(), &apart.globex.tenant).await;
    let grant_beside = apart.globex.accept_from_elsewhere(&document).await;
    apart.globex.get(&format!("/api/v1/federated-shares/{grant_beside}/document")).await.expect(200);

    apart.owner.node.stop().expect("stopped");
    apart.owner.will_not_balance("it has stopped before its end");
    apart.globex.get(&format!("/api/v1/federated-shares/{grant_beside}/document")).await.problem("unavailable");
    apart.globex.delete(&format!("/api/v1/federated-shares/{grant_beside}")).await.expect(204);
    apart.globex.get(&format!("/api/v1/federated-shares/{grant_beside}/document")).await.problem("not-found");
}

#[tokio::test]
async fn bad_bodies_are_refused_by_field_and_peers_are_for_operators() {
    let apart = Apart::new().await;
    let (acme, operator) = (&apart.acme, apart.owner.operator());
    let good = json!({ "resource": format!("document:{}", apart.document), "peer": apart.target.origin(), "target": "globex-corp" });
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for (name, value) in [
        ("resource", json!("document")),
        ("resource", json!(format!("secret:{}", apart.document))),
        ("peer", json!("https://nobody.example.com")),
        ("peer", json!("http://app.example.com")),
        ("target", json!("")),
        ("target", json!("www.example.com")),
        ("expires_at", json!("2020-01-01T00:00:00Z")),
        ("expires_at", json!("2999-01-01T00:00:00Z")),
        ("perms", json!("write")),
    ] {
        acme.post("/api/v1/federated-shares", &with(name, value)).await.invalid(name);
    }
    let absent = with("resource", json!(format!("document:{ABSENT}")));
    acme.post("/api/v1/federated-shares", &absent).await.problem("not-found");
    // A policy that names its targets names tenants of this installation.
    acme.put("/api/v1/sharing", "").json(&json!({ "offers": true, "types": ["document"], "targets": [] })).await.expect(200);
    acme.post("/api/v1/federated-shares", &good).await.problem("forbidden");
    acme.allow_sharing().await;
    for role in ["viewer", "member"] {
        let who = acme.role(role);
        for ask in [
            who.post("/api/v1/federated-shares", &good),
            who.get("/api/v1/federated-shares"),
            who.delete(&format!("/api/v1/federated-shares/{ABSENT}")),
        ] {
            ask.await.problem("forbidden");
        }
    }
    acme.post("/api/v1/federated-shares", &good).await.expect(201);

    let (fine, own) = (key("some key, of more than 32 bytes; whose it is matters not").public(), apart.owner.origin());
    for (body, field) in [
        (json!({ "origin": "http://app.example.com", "key": fine }), "origin"),
        (json!({ "origin": "https://10.0.0.1/x", "key": fine }), "origin"),
        (json!({ "origin": own, "key": "x" }), "key"),
        (json!({ "origin": own, "key": fine, "trusted": true }), "trusted"),
    ] {
        operator.post("/api/v1/federation/peers", &body).await.invalid(field);
    }
    operator.post("/api/v1/federation/peers", &json!({ "origin": apart.target.origin(), "key": fine })).await.problem("conflict");
    for (method, path) in
        [("DELETE", format!("/api/v1/federation/peers/{ABSENT}")), ("POST", format!("/api/v1/federation/peers/{ABSENT}/rotate"))]
    {
        operator.ask(method, &path).json(&json!({})).await.problem("not-found");
    }
    let (viewer, _) = operator.add("vera", "viewer").await;
    viewer.get("/api/v1/federation/peers").await.expect(200);
    viewer.post("/api/v1/federation/peers", &json!({ "origin": own, "key": fine })).await.problem("forbidden");
    // Unless it is said, no installation is on this machine.
    let strict = apart.owner.another_node_with(|config| config.federation_loopback = false).await;
    operator.at(&strict).post("/api/v1/federation/peers", &json!({ "origin": own, "key": fine })).await.invalid("origin");
    let (_, document) = apart.acme.offer_elsewhere(&apart.beside, &apart.target.origin(), "globex-corp").await;
    let origin = apart.target.origin();
    let strict =
        apart.target.another_node_with(|config| (config.federation_loopback, config.federation_origin) = (false, Some(origin))).await;
    apart.globex.at(&strict).post("/api/v1/federated-shares/accept", &json!({ "document": document })).await.problem("unavailable");
    apart.globex.accept_from_elsewhere(&document).await;
}
