//! Domains of tenants' own: real questions to a name server on loopback, and real requests to the domains as hosts.

use std::time::{Duration, Instant};

use harness::actors::{Actor, Ask, Member, Reply};
use harness::app::TestApp;
use harness::dns::{DnsServer, Record};
use serde_json::{Value, json};
use sqlx::Executor as _;

const BASE: &str = "tenants.example.net";

/// A server with the base domain [`BASE`], and its name server.
async fn start() -> (TestApp, DnsServer, Member, Member) {
    let dns = DnsServer::start().await;
    let app = TestApp::with(|config| {
        config.base_domain = Some(BASE.to_owned());
        config.dns = Some(dns.address.to_string());
    })
    .await;
    let (acme, globex) = app.two_tenants().await;
    (app, dns, acme, globex)
}

/// At the tenant's host below the base domain.
fn home(of: &Member, ask: Ask) -> Ask {
    ask.with("host", format!("{}.{BASE}", of.slug))
}

fn on(of: &Member, host: &str) -> Ask {
    of.get("/api/v1/tenant").with("host", host)
}

/// The claim's name and value.
async fn claim(of: &Member, domain: &str) -> (String, String) {
    let made = home(of, of.post("/api/v1/domains", &json!({ "domain": domain }))).await.expect(201).json();
    let text = |field: &str| made["record"][field].as_str().expect("text").to_owned();
    (text("name"), text("value"))
}

/// Looks now, however short ago the last look was.
async fn verify(app: &TestApp, of: &Member, domain: &str) -> Value {
    app.db_eye().await.execute("update tenancy.domains set checked_at = null").await.expect("as if it were long ago");
    home(of, of.ask("POST", &format!("/api/v1/domains/{domain}/verify"))).await.expect(200).json()
}

async fn show(of: &Member, domain: &str) -> Reply {
    home(of, of.get(&format!("/api/v1/domains/{domain}"))).await
}

/// Waits for the answer of this status, for a second at most: what every node promises.
async fn within_a_second(ask: impl Fn() -> Ask, status: u16) {
    let since = Instant::now();
    while ask().await.status != status {
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", ask().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Has every held domain looked at again: a node does that when it starts.
async fn recheck(app: &TestApp) {
    let mut eye = app.db_eye().await;
    eye.execute("update tenancy.domains set due_at = now() - interval '1 s' where state = 'verified'").await.expect("due");
    let _node = app.another_node().await;
    let since = Instant::now();
    let due = "select count(*) from tenancy.domains where state = 'verified' and due_at < now() + interval '1 hour'";
    while sqlx::query_scalar::<_, i64>(due).fetch_one(&mut eye).await.expect("due") > 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "nobody looks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The walk of `docs/domains.md`.
#[tokio::test]
async fn a_domain_serves_its_tenant_from_the_proof_to_the_release_on_every_node() {
    let (app, dns, acme, globex) = start().await;
    let node = app.another_node().await;
    let made = home(&acme, acme.post("/api/v1/domains", &json!({ "domain": "Shop.Example.COM" }))).await.expect(201);
    assert_eq!((made.header("location"), made.text("state").as_str()), ("/api/v1/domains/shop.example.com", "pending"));
    let claimed = made.json();
    assert_eq!(claimed["record"]["name"], "_tenancy-challenge.shop.example.com");
    assert_eq!(show(&acme, "SHOP.example.com").await.expect(200).json(), claimed);
    home(&acme, acme.post("/api/v1/domains", &json!({ "domain": "shop.example.com" }))).await.problem("conflict");

    // Unproved it is nobody's host.
    let nobodys = on(&acme, "nobodys.example.com").await;
    nobodys.problem("tenant-not-found");
    assert_eq!(on(&acme, "shop.example.com").await.comparable(), nobodys.comparable());
    assert_eq!(verify(&app, &acme, "shop.example.com").await["problem"], "there is no such TXT record");
    dns.txt("_tenancy-challenge.shop.example.com", "tenancy-verify=0");
    assert_eq!(verify(&app, &acme, "shop.example.com").await["problem"], "the TXT record has another value");
    on(&acme, "shop.example.com").await.problem("tenant-not-found");

    dns.txt("_tenancy-challenge.shop.example.com", claimed["record"]["value"].as_str().expect("a value"));
    let proved = verify(&app, &acme, "shop.example.com").await;
    assert_eq!((&proved["state"], &proved["problem"]), (&json!("verified"), &Value::Null));
    for host in ["shop.example.com", "SHOP.example.com.", "shop.example.com:8443"] {
        assert_eq!(on(&acme, host).await.expect(200).text("slug"), "acme-works", "{host}");
    }
    within_a_second(|| on(&acme.at(&node), "shop.example.com"), 200).await;
    // Another tenant's token at this host is what it is at a host that is nobody's.
    let crossed = on(&globex, "shop.example.com").await;
    assert_eq!(crossed.comparable(), on(&globex, "nobodys.example.com").await.comparable());
    crossed.problem("tenant-not-found");
    let strangers = async |host: &str| app.stranger().get("/api/v1/tenant").with("host", host).await.comparable();
    assert_eq!(strangers("shop.example.com").await, strangers("nobodys.example.com").await);
    let operators = app.operator().get("/api/v1/tenants/acme-works").await.expect(200).json();
    assert_eq!(operators["domains"], json!(["shop.example.com"]));
    assert_eq!(
        home(&acme, acme.get("/api/v1/domains")).await.expect(200).json()["items"],
        json!([show(&acme, "shop.example.com").await.json()])
    );

    // A tenant that does not serve does not serve there either.
    app.operator().ask("POST", "/api/v1/tenants/acme-works/suspend").await.expect(200);
    for at in [acme.clone(), acme.at(&node)] {
        within_a_second(|| on(&at, "shop.example.com"), 403).await;
    }
    app.operator().ask("POST", "/api/v1/tenants/acme-works/resume").await.expect(200);
    within_a_second(|| on(&acme.at(&node), "shop.example.com"), 200).await;

    home(&acme, acme.delete("/api/v1/domains/shop.example.com")).await.expect(204);
    for at in [acme.clone(), acme.at(&node)] {
        within_a_second(|| on(&at, "shop.example.com"), 404).await;
    }
    show(&acme, "shop.example.com").await.problem("not-found");
    let log = home(&acme, acme.get("/api/v1/audit")).await.expect(200).json();
    let actions: Vec<_> =
        log["items"].as_array().expect("items").iter().map(|event| event["action"].as_str().expect("an action")).collect();
    for action in ["domain.claim", "domain.verify", "domain.release"] {
        assert_eq!(actions.iter().filter(|known| **known == action).count(), 1, "{action}: {actions:?}");
    }
}

#[tokio::test]
async fn a_proof_is_whatever_the_dns_says_of_the_name() {
    let (app, dns, acme, _) = start().await;
    for (n, state) in (0..).zip(["verified", "verified", "verified", "verified", "pending", "pending", "pending", "pending", "pending"]) {
        let domain = format!("d{n}.example.com");
        let (name, value) = claim(&acme, &domain).await;
        let text = |text: &str| Record::Txt(vec![text.to_owned()]);
        let (records, problem): (&[Record], Option<&str>) = match n {
            0 => (&[text("v=spf1 -all"), text(&value), text("other")], None),
            1 => (&[Record::Txt(vec![value[..20].to_owned(), value[20..].to_owned()])], None),
            2 => {
                dns.txt("proofs.example.org", &value);
                (&[Record::Cname("proofs.example.org".to_owned())], None)
            }
            3 => (&[text(&format!(" {value} "))], None),
            4 => (&[text(&value.to_uppercase())], Some("the TXT record has another value")),
            5 => (&[text(&format!("{value}0"))], Some("the TXT record has another value")),
            6 => (&[Record::Cname("nowhere.example.org".to_owned())], Some("there is no such TXT record")),
            7 => (&[Record::Fails], Some("the name servers could not say")),
            _ => (&[Record::Silent], Some("the name servers did not answer in time")),
        };
        dns.set(&name, records);
        let seen = verify(&app, &acme, &domain).await;
        let problem = problem.map_or(Value::Null, |problem| json!(problem));
        if n == 8 {
            assert!(seen["problem"] == "the name servers could not say" || seen["problem"] == problem, "{seen}");
            assert_eq!(seen["state"], "pending");
        } else {
            assert_eq!((&seen["state"], &seen["problem"]), (&json!(state), &problem), "{n}");
        }
        let status = if state == "verified" { 200 } else { 404 };
        assert_eq!(on(&acme, &domain).await.status, status, "{n}");
    }
    // Only the name of the proof was asked for.
    assert!(dns.asked().iter().all(|name| name.contains("_tenancy-challenge.") || name.contains("example.org")), "{:?}", dns.asked());
}

#[tokio::test]
async fn names_that_are_nobodys_to_bring_and_limits() {
    let (_app, dns, acme, _) = start().await;
    let post = |body: Value| home(&acme, acme.post("/api/v1/domains", &body));
    for bad in [
        BASE,
        "acme-works.tenants.example.net",
        "globex-corp.Tenants.Example.Net",
        "a.b.tenants.example.net",
        "localhost",
        "printer.local",
        "db.internal",
        "a.test",
        "127.0.0.1",
        "[::1]",
        "example.com:443",
        "*.example.com",
        "example.com.",
        "bücher.example.com",
        "https://example.com",
        "",
    ] {
        post(json!({ "domain": bad })).await.invalid("domain");
    }
    post(json!({ "domain": "a.example.com", "state": "verified" })).await.invalid("state");
    // What looks like another name is itself, and what only ends alike is not below the base domain.
    for good in ["xn--80ak6aa92e.com", "eviltenants.example.net", "example.net"] {
        post(json!({ "domain": good })).await.expect(201);
    }
    let path = "/api/v1/domains/xn--80ak6aa92e.com";
    for role in ["viewer", "member"] {
        let who = acme.role(role);
        for ask in [who.get("/api/v1/domains"), who.get(path), who.delete(path), who.ask("POST", &format!("{path}/verify"))] {
            home(&acme, ask).await.problem("forbidden");
        }
        home(&acme, who.post("/api/v1/domains", &json!({ "domain": "b.example.com" }))).await.problem("forbidden");
    }
    let look = || home(&acme, acme.ask("POST", &format!("{path}/verify")));
    look().await.expect(200);
    let asked = dns.asked().len();
    let refused = look().await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "10"));
    refused.problem("rate");
    assert_eq!(dns.asked().len(), asked, "and the DNS is not asked");
    for n in 3..20 {
        post(json!({ "domain": format!("d{n}.example.com") })).await.expect(201);
    }
    assert_eq!(
        post(json!({ "domain": "d20.example.com" })).await.problem("conflict")["detail"],
        "a tenant can claim 20 domains: release one first"
    );
    home(&acme, acme.delete(path)).await.expect(204);
    post(json!({ "domain": "d20.example.com" })).await.expect(201);
}

#[tokio::test]
async fn a_claim_is_invisible_and_the_first_proof_wins() {
    let (app, dns, acme, globex) = start().await;
    let (name, acmes) = claim(&acme, "shop.example.com").await;
    // To the other tenant a claimed domain is as a free one.
    show(&globex, "shop.example.com").await.problem("not-found");
    let absent = home(&globex, globex.ask("POST", "/api/v1/domains/shop.example.com/verify")).await;
    assert_eq!(absent.comparable(), home(&globex, globex.ask("POST", "/api/v1/domains/free.example.com/verify")).await.comparable());
    let (_, globexs) = claim(&globex, "shop.example.com").await;
    assert_ne!(acmes, globexs);
    dns.txt(&name, &acmes);
    assert_eq!(verify(&app, &acme, "shop.example.com").await["state"], "verified");
    // So is a held one, to who can't prove it; the holder's proof is nobody else's.
    let unproved = verify(&app, &globex, "shop.example.com").await;
    assert_eq!((&unproved["state"], &unproved["problem"]), (&json!("pending"), &json!("the TXT record has another value")));
    // Who proves it learns that it is held, and does not get it.
    dns.set(&name, &[Record::Txt(vec![acmes.clone()]), Record::Txt(vec![globexs.clone()])]);
    let second = verify(&app, &globex, "shop.example.com").await;
    assert_eq!((&second["state"], &second["problem"]), (&json!("pending"), &json!("another account of this platform holds the domain")));
    on(&globex, "shop.example.com").await.problem("tenant-not-found");
    on(&acme, "shop.example.com").await.expect(200);

    // Gone for one look or two it is still held; silence counts for nothing.
    dns.set(&name, &[Record::Fails]);
    recheck(&app).await;
    dns.txt(&name, &globexs);
    for _ in 0..2 {
        recheck(&app).await;
        assert_eq!(verify(&app, &acme, "shop.example.com").await["state"], "verified", "what its admin asks for takes nothing away");
    }
    on(&acme, "shop.example.com").await.expect(200);
    recheck(&app).await;
    assert_eq!(show(&acme, "shop.example.com").await.expect(200).text("state"), "lost");
    within_a_second(|| on(&acme, "shop.example.com"), 404).await;
    let told = "select count(*) from tenancy.outbox where topic = 'domain.lost' and tenant_id = $1::uuid";
    let told: i64 = sqlx::query_scalar(told).bind(&acme.tenant).fetch_one(&mut app.db_eye().await).await.expect("the outbox");
    assert_eq!(told, 1);
    // Now it moves.
    assert_eq!(verify(&app, &globex, "shop.example.com").await["state"], "verified");
    assert_eq!(on(&globex, "shop.example.com").await.expect(200).text("slug"), "globex-corp");
    on(&acme, "shop.example.com").await.problem("tenant-not-found");
}

#[tokio::test]
async fn of_racing_proofs_one_wins() {
    let (app, dns, acme, globex) = start().await;
    for n in 0..10 {
        let domain = format!("race{n}.example.com");
        let ((name, one), (_, other)) = (claim(&acme, &domain).await, claim(&globex, &domain).await);
        dns.set(&name, &[Record::Txt(vec![one]), Record::Txt(vec![other])]);
        let look = |of: &Member| home(of, of.ask("POST", &format!("/api/v1/domains/{domain}/verify")));
        let (one, other) = tokio::join!(look(&acme).into_future(), look(&globex).into_future());
        let mut states = [one.expect(200).text("state"), other.expect(200).text("state")];
        states.sort();
        assert_eq!(states, ["pending", "verified"], "{domain}");
        let mut heard = [on(&acme, &domain).await.status, on(&globex, &domain).await.status];
        heard.sort_unstable();
        assert_eq!(heard, [200, 404], "{domain}");
    }
    // The control: without the key of the holders both have it.
    let mut eye = app.db_eye().await;
    eye.execute("drop index tenancy.domains_holder_key").await.expect("no key");
    for of in [&acme, &globex] {
        assert_eq!(verify(&app, of, "race0.example.com").await["state"], "verified");
    }
}

#[tokio::test]
async fn the_applications_role_reads_no_claims_and_finds_by_exact_name_alone() {
    let (app, dns, acme, globex) = start().await;
    let (name, value) = claim(&acme, "shop.example.com").await;
    dns.txt(&name, &value);
    verify(&app, &acme, "shop.example.com").await;
    let db = app.database.open().await.expect("open");
    let found = tenancy_core::TenantCatalog::find(&db.catalog(), &globex.tenant.parse().expect("an id")).await.expect("catalog");
    let visitor = tenancy_core::TenantContext::establish(
        found.and_then(|tenant| tenant.into_active().ok()).expect("active"),
        tenancy_core::Principal::Visitor,
    );
    for (statement, allowed) in [
        ("select count(*) from tenancy.domains", false),
        ("update tenancy.domains set state = 'verified'", false),
        ("delete from tenancy.domains", false),
        (
            "insert into tenancy.domains (tenant_id, domain, token) values (tenancy.current_tenant(), 'a.example.com', repeat('0', 32))",
            false,
        ),
        ("select * from tenancy.domain_seen_for(tenancy.current_tenant(), 'a', 'b', 'found', null, 1, '1 day')", false),
        ("select tenancy.domains_changed(tenancy.current_tenant())", false),
        ("select count(*) from tenancy.domains_own(null)", true),
        ("select count(*) from tenancy.resolve_tenant(null, null, '%.example.com')", true),
    ] {
        let mut tx = db.begin(&visitor).await.expect("begin");
        assert_eq!(sqlx::query(statement).execute(&mut tx).await.is_ok(), allowed, "{statement}");
    }
    let mut tx = db.begin(&visitor).await.expect("begin");
    let count = async |tx: &mut tenancy_sqlx::TenantTx, from: &'static str| {
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!("select count(*) from tenancy.{from}"))).fetch_one(tx).await.expect(from)
    };
    assert_eq!(count(&mut tx, "domains_own(null)").await, 0);
    assert_eq!(count(&mut tx, "domains_own('shop.example.com')").await, 0);
    for pattern in ["'%'", "'%.example.com'", "''", "null"] {
        assert_eq!(count(&mut tx, Box::leak(format!("resolve_tenant(null, null, {pattern})").into_boxed_str())).await, 0, "{pattern}");
    }
    assert_eq!(count(&mut tx, "resolve_tenant(null, null, 'shop.example.com')").await, 1, "the control");
    drop(tx);
    db.close().await;
}
