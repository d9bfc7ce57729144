//! No answer tells what is another tenant's, or gone, from what never was: on every route of the served OpenAPI document, with every
//! method. A route that names a new kind of thing fails here until it is taught how to make one.

mod document;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::actors::{Actor, Ask, Member, Reply};
use harness::app::TestApp;
use serde_json::json;
use sqlx::Executor as _;
use tenancy_core::{TenantCatalog as _, TenantChange, TenantStatus};
use uuid::Uuid;

use self::document::{Operation, Side, Way, operations, ways};
use super::ABSENT;

/// The slug of the tenant that shares with the others.
const LENDER: &str = "the-lender";

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// Whose thing a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Own,
    Foreign,
    Gone,
    ForeignGone,
    Nobodys,
}

const ALL: [Whose; 5] = [Whose::Own, Whose::Foreign, Whose::Gone, Whose::ForeignGone, Whose::Nobodys];

/// One of each kind.
#[derive(Debug, Clone)]
struct Things {
    project: String,
    document: String,
    name: String,
    member: String,
    invite: String,
    session: String,
    api_token: String,
    impersonation: String,
    domain: String,
    webhook: String,
    link: String,
    /// The lender's document, which `share` shows.
    lent: String,
    share: String,
    /// Not accepted yet.
    offer: String,
    /// The lender's document again, as from elsewhere.
    federated_share: String,
}

impl Things {
    /// What a parameter of a path names.
    fn named(&self, parameter: &str, path: &str) -> &str {
        match parameter {
            "project" => &self.project,
            "document" => &self.document,
            "name" => &self.name,
            "member" => &self.member,
            "invite" => &self.invite,
            "session" => &self.session,
            "api_token" => &self.api_token,
            "impersonation" => &self.impersonation,
            "domain" => &self.domain,
            "webhook" => &self.webhook,
            "link" => &self.link,
            "federated_share" => &self.federated_share,
            "share" if path.ends_with("/accept") || path.ends_with("/decline") => &self.offer,
            "share" => &self.share,
            other => panic!("the document has a parameter {{{other}}}: teach me how to make one, of a tenant's own, and gone"),
        }
    }

    /// Names are as long as each other, so that an answer which repeats one has the same length.
    async fn make(app: &TestApp, of: &Member, lender: &Member, name: &str) -> Self {
        let project = of.project("canary").await;
        let document = of.document(&project, "canary").await;
        of.attach(&document, name, b"canary").await.expect(201);
        let member = of.member(&Uuid::new_v4().to_string()).await;
        let invite = of.invite(&Uuid::new_v4().to_string()).await;
        let (session, api_token) = (app.db_session(&of.tenant, &member).await, of.api_token(&member).await.0);
        let impersonation = of.visit().await;
        let domain = of.domain(&format!("{}.example.com", Uuid::new_v4())).await;
        let webhook = of.webhook("https://hooks.example.com/canary").await;
        let (link, _) = of.link(&document).await;
        let theirs = lender.project("canary").await;
        let (lent, offered) = (lender.document(&theirs, "canary").await, lender.document(&theirs, "canary").await);
        lender.attach(&lent, name, b"canary").await.expect(201);
        let (share, offer) = (lender.share(&lent, of, "write").await, lender.offer(&offered, of, "read").await);
        // The installation is its own peer.
        let (_, document_from_elsewhere) = lender.offer_elsewhere(&lent, &app.origin(), &of.slug).await;
        let federated_share = of.accept_from_elsewhere(&document_from_elsewhere).await;
        Self {
            project,
            document,
            name: name.to_owned(),
            member,
            invite,
            session,
            api_token,
            impersonation,
            domain,
            webhook,
            link,
            lent,
            share,
            offer,
            federated_share,
        }
    }

    /// Made and deleted. The attachment was one of the document in `beside` as well.
    async fn unmake(app: &TestApp, of: &Member, lender: &Member, name: &str, beside: &Self) -> Self {
        let gone = Self::make(app, of, lender, name).await;
        for (of, beside, gone) in [(of, &beside.document, &gone.document), (lender, &beside.lent, &gone.lent)] {
            of.attach(beside, name, b"canary").await.expect(201);
            for document in [beside, gone] {
                of.delete(&format!("/api/v1/documents/{document}/attachments/{name}")).await.expect(204);
            }
        }
        // As the erasure of the lender would: what has merely ended is shown for good.
        let shares = sqlx::query("delete from tenancy.cross_tenant_shares where id::text in ($1, $2)").bind(&gone.share).bind(&gone.offer);
        assert_eq!(shares.execute(&mut app.db_eye().await).await.expect("gone").rows_affected(), 2);
        let grants = sqlx::query("delete from tenancy.federated_grants where id::text = $1").bind(&gone.federated_share);
        assert_eq!(grants.execute(&mut app.db_eye().await).await.expect("gone").rows_affected(), 1);
        of.delete(&format!("/api/v1/documents/{}", gone.document)).await.expect(204);
        of.delete(&format!("/api/v1/projects/{}", gone.project)).await.expect(204);
        of.delete(&format!("/api/v1/invites/{}", gone.invite)).await.expect(204);
        of.delete(&format!("/api/v1/sessions/{}", gone.session)).await.expect(204);
        of.delete(&format!("/api/v1/api-tokens/{}", gone.api_token)).await.expect(204);
        of.delete(&format!("/api/v1/members/{}", gone.member)).await.expect(204);
        of.delete(&format!("/api/v1/impersonations/{}", gone.impersonation)).await.expect(204);
        of.delete(&format!("/api/v1/domains/{}", gone.domain)).await.expect(204);
        of.delete(&format!("/api/v1/webhooks/{}", gone.webhook)).await.expect(204);
        gone
    }

    fn nobodys() -> Self {
        let id = || Uuid::new_v4().to_string();
        Self {
            project: id(),
            document: id(),
            name: "nobodys.txt".to_owned(),
            member: id(),
            invite: id(),
            session: id(),
            api_token: id(),
            impersonation: id(),
            domain: format!("{}.example.com", id()),
            webhook: id(),
            link: id(),
            lent: id(),
            share: id(),
            offer: id(),
            federated_share: id(),
        }
    }
}

/// Everybody's things, and nobody's.
type World = BTreeMap<Whose, Things>;

/// A third tenant, which shares with whoever is named.
async fn lender(app: &TestApp, with: [&Member; 2]) -> Member {
    app.operator().allow_sharing().await;
    let own = app.stranger().get("/.well-known/tenancy-federation").await.expect(200).text("key");
    app.operator().add_peer(&app.origin(), &own).await;
    let lender = app.tenant(LENDER).await;
    for tenant in [&lender, with[0], with[1]] {
        tenant.allow_sharing().await;
    }
    lender
}

async fn world(app: &TestApp, lender: &Member, me: &Member, other: &Member) -> World {
    let own = Things::make(app, me, lender, "my--own.txt").await;
    let foreign = Things::make(app, other, lender, "foreign.txt").await;
    let gone = Things::unmake(app, me, lender, "my-gone.txt", &own).await;
    let foreign_gone = Things::unmake(app, other, lender, "is-gone.txt", &foreign).await;
    ALL.into_iter().zip([own, foreign, gone, foreign_gone, Things::nobodys()]).collect()
}

/// Each choice of whose things a path names, with how many of the first ones are one's own.
fn choices(parameters: usize) -> Vec<(usize, Vec<Whose>)> {
    let mut all = vec![Vec::new()];
    for _ in 0..parameters {
        all = all.iter().flat_map(|before| ALL.map(|whose| [&before[..], &[whose]].concat())).collect();
    }
    all.into_iter().map(|choice| (choice.iter().take_while(|whose| **whose == Whose::Own).count(), choice)).collect()
}

/// An answer without what must differ: its date and request id, the names that the request gave, and the time at which something was made.
fn plain(reply: &Reply, given: &[&str]) -> String {
    let mut text = reply.comparable();
    for name in ["date", "x-request-id", "ratelimit"] {
        text += &format!("\n{name}: {}", reply.headers.get_all(name).iter().count());
    }
    for (n, name) in given.iter().enumerate() {
        text = text.replace(name, &format!("<{n}>"));
    }
    if (200..300).contains(&reply.status) && text.contains("_at\":\"") {
        let mut parts = text.split("_at\":\"");
        let first = parts.next().unwrap_or_default().to_owned();
        text = parts.fold(first, |so_far, part| so_far + "_at\":\"<time>" + part.find('"').map_or(part, |end| &part[end..]));
        // Times have more digits or less. That the length is right was seen when the answer was read.
        text = text
            .lines()
            .map(|line| if line.starts_with("content-length: ") { "content-length: <fits>" } else { line })
            .fold(String::new(), |all, line| all + line + "\n");
    }
    text
}

/// What tells one answer from another.
fn differ(one: (&Reply, &[&str]), other: (&Reply, &[&str])) -> Option<String> {
    let (one, other) = (plain(one.0, one.1), plain(other.0, other.1));
    (one != other).then(|| format!("{one:?} is not {other:?}"))
}

/// What was compared, and what was found.
#[derive(Debug, Default)]
struct Findings {
    compared: usize,
    found: Vec<String>,
}

/// Puts one operation's path in every way, with `method`, and compares what is answered for things that are not there for `me`.
async fn probe(me: &Member, world: &World, operation: &Operation, method: &str, ways: Vec<(String, Way)>, findings: &mut Findings) {
    for (way, put) in ways {
        for depth in 0..operation.parameters.len() {
            let mut reference: Option<(Reply, Vec<&str>)> = None;
            // The reference comes first: from there on, all things that are not one's own are nobody's.
            let mut all: Vec<Vec<Whose>> =
                choices(operation.parameters.len()).into_iter().filter(|(own, _)| *own == depth).map(|(_, choice)| choice).collect();
            all.sort_by_key(|choice| choice[depth..].iter().any(|whose| *whose != Whose::Nobodys));
            for choice in all {
                let given: Vec<&str> = operation
                    .parameters
                    .iter()
                    .zip(&choice)
                    .map(|(parameter, whose)| world[whose].named(parameter, &operation.path))
                    .collect();
                let target = operation.target(&given);
                let reply = put(me.ask(method, &target)).await;
                if (200..300).contains(&reply.status) && method != "HEAD" {
                    // A name is free to be given to a thing of one's own.
                    if method == "PUT" && depth > 0 {
                        me.delete(&target).await.expect(204);
                    } else {
                        findings.found.push(format!("{} {choice:?} {way}: was done: {reply:?}", operation.called()));
                    }
                }
                match &reference {
                    None => reference = Some((reply, given)),
                    Some((nobodys, names)) => {
                        findings.compared += 1;
                        if let Some(how) = differ((&reply, &given), (nobodys, names)) {
                            findings.found.push(format!("{} {choice:?} {way}: {method} {how}", operation.called()));
                        }
                    }
                }
            }
        }
    }
}

async fn served(app: &TestApp) -> Vec<Operation> {
    operations(&app.stranger().get("/openapi.json").await.expect(200).json())
}

/// The operations that name things of a tenant. What anybody may call names only what it takes a secret to name.
fn naming(operations: &[Operation]) -> impl Iterator<Item = &Operation> {
    operations.iter().filter(|operation| operation.side == Side::Tenant && !operation.parameters.is_empty())
}

#[tokio::test]
async fn what_is_not_ones_own_is_what_never_was() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let lender = lender(&app, [&acme, &globex]).await;
    let world = world(&app, &lender, &acme, &globex).await;
    let of_globex = async || {
        let mut rows = app.db_everything().await;
        rows.values_mut().for_each(|rows| rows.retain(|row| row.contains(&globex.tenant)));
        rows
    };
    let before = of_globex().await;
    let operations = served(&app).await;
    let (mut findings, mut paths) = (Findings::default(), BTreeSet::new());
    for operation in naming(&operations) {
        probe(&acme, &world, operation, &operation.method, ways(Some(operation)), &mut findings).await;
        probe(&acme.role("viewer"), &world, operation, &operation.method, ways(None), &mut findings).await;
        if paths.insert(&operation.path) {
            let documented = |method: &str| naming(&operations).any(|other| other.path == operation.path && other.method == method);
            for method in METHODS.into_iter().filter(|method| !documented(method)) {
                probe(&acme, &world, operation, method, ways(None), &mut findings).await;
            }
        }
    }
    eprintln!("{} paths, {} operations, {} comparisons", paths.len(), naming(&operations).count(), findings.compared);
    assert_eq!(findings.found, [""; 0]);
    assert!(findings.compared > 1_000, "{}", findings.compared);
    assert_eq!(of_globex().await, before);
}

/// Refusals are alike also because they come early: each request is done where all that it names is one's own.
#[tokio::test]
async fn control_the_same_requests_are_done_on_ones_own() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let lender = lender(&app, [&acme, &globex]).await;
    for operation in naming(&served(&app).await) {
        for body in operation.bodies.iter().map(Some).chain(operation.bodies.is_empty().then_some(None)) {
            let own = Things::make(&app, &acme, &lender, "my--own.txt").await;
            let given: Vec<&str> = operation.parameters.iter().map(|parameter| own.named(parameter, &operation.path)).collect();
            let ask = acme.ask(&operation.method, &operation.target(&given));
            let reply = body.map_or(ask.clone(), |body| ask.json(body)).await;
            assert!((200..300).contains(&reply.status), "{} {body:?}: {reply:?}", operation.called());
            // A tenant can have a few of these, if the request has left it.
            acme.delete(&format!("/api/v1/members/{}", own.member)).await;
            acme.delete(&format!("/api/v1/domains/{}", own.domain)).await;
            acme.delete(&format!("/api/v1/webhooks/{}", own.webhook)).await;
        }
    }
}

#[tokio::test]
async fn control_a_thing_that_crosses_is_told_on_every_route() {
    let (mut app, acme, globex) = TestApp::with_tenants().await;
    app.will_not_balance("rows of one tenant are given to the other");
    let lender = lender(&app, [&acme, &globex]).await;
    let world = world(&app, &lender, &acme, &globex).await;
    let mut eye = app.db_eye().await;
    let operations = served(&app).await;
    for operation in naming(&operations) {
        // What a missing `where` and a missing policy would do: the rows are there for the other tenant.
        for table in [
            "projects",
            "documents",
            "attachments",
            "tenancy.members",
            "tenancy.invites",
            "tenancy.sessions",
            "tenancy.api_tokens",
            "tenancy.impersonations",
            "tenancy.domains",
            "tenancy.webhooks",
            "tenancy.federated_grants",
        ] {
            let columns = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                            where attrelid = $1::regclass and attnum > 0 and not attisdropped and attname <> 'tenant_id'";
            let columns: String = sqlx::query_scalar(columns).bind(table).fetch_one(&mut eye).await.expect("columns");
            let give = format!(
                "insert into {table} (tenant_id, {columns}) select '{}', {columns} from {table} where tenant_id = '{}' on conflict do nothing",
                acme.tenant, globex.tenant
            );
            eye.execute(sqlx::AssertSqlSafe(give)).await.expect("crossed");
        }
        // What a request has ended shows again, here and there.
        for again in [
            "update tenancy.federated_grants set state = 'active', ended_at = null where id::text = $1",
            "update tenancy.federated_shares s set state = 'active', ended_at = null from tenancy.federated_grants g where g.id::text = $1 and s.id = g.share_id",
        ] {
            sqlx::query(again).bind(&world[&Whose::Foreign].federated_share).execute(&mut eye).await.expect("again");
        }
        // A share and a link belong to no table of tenants' own: the one turns to the other tenant, and its link is one there too.
        let foreign = &world[&Whose::Foreign];
        let shares = "update tenancy.cross_tenant_shares set target_tenant_id = $1::uuid, ended_at = null,
                             state = case id::text when $2 then 'active' else 'offered' end where id::text in ($2, $3)";
        sqlx::query(shares).bind(&acme.tenant).bind(&foreign.share).bind(&foreign.offer).execute(&mut eye).await.expect("crossed");
        let link = "insert into tenancy.share_links (tenant_id, id, resource_type, resource_id, token_hash, label, expires_at, created_by)
                    values ($1::uuid, $2::uuid, 'document', gen_random_uuid(), sha256(gen_random_uuid()::text::bytea), 'canary', now() + '1 day', 'a test')
                    on conflict (tenant_id, id) do update set revoked_at = null";
        sqlx::query(link).bind(&acme.tenant).bind(&foreign.link).execute(&mut eye).await.expect("crossed");
        let mut findings = Findings::default();
        probe(&acme, &world, operation, &operation.method, ways(Some(operation)), &mut findings).await;
        // A member that was removed stays as a row: the next operation finds it anew.
        let tombstones = "delete from tenancy.members where tenant_id = $1::uuid and status = 'removed'
                           and id in (select id from tenancy.members where tenant_id = $2::uuid and status = 'active')";
        sqlx::query(tombstones).bind(&acme.tenant).bind(&globex.tenant).execute(&mut eye).await.expect("anew");
        let all = findings.found.join("\n");
        assert!(all.contains("[Foreign") && all.contains("is not"), "the detector is blind on {}: {all}", operation.called());
        // What stays gone is not told; but a key that a request could use up is used.
        let gone =
            findings.found.iter().find(|what| !what.contains("Foreign,") && what.contains("Gone]") && !what.contains("idempotency-key"));
        assert_eq!(gone, None, "{}", operation.called());
    }
}

#[tokio::test]
async fn control_any_difference_of_two_answers_is_told() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let (mine, absent) = (acme.project("mine").await, ABSENT);
    let get = async |id: &str| acme.get(&format!("/api/v1/projects/{id}")).await;
    let (reply, again, own) = (get(absent).await, get(absent).await, get(&mine).await);
    assert_eq!(differ((&reply, &[absent]), (&again, &[absent])), None, "dates and request ids differ, and are no difference");
    assert!(differ((&reply, &[absent]), (&own, &[&mine])).is_some());
    let text = String::from_utf8_lossy(&reply.bytes).into_owned();
    for (from, to) in [
        ("HTTP/1.1 404", "HTTP/1.1 403"),
        ("content-length:", "x-cache: hit\r\ncontent-length:"),
        ("cache-control: no-store", "cache-control: no-cache"),
        ("cache-control: no-store\r\n", ""),
        ("\"title\"", "\"Title\""),
        ("\"status\":404", "\"status\":410"),
        ("}", " }"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        let changed = Reply { bytes: text.replacen(from, to, 1).into_bytes(), ..reply.clone() };
        assert!(differ((&reply, &[absent]), (&changed, &[absent])).is_some(), "{from} -> {to}");
    }
    let mut headers = reply.clone();
    headers.headers.remove("x-request-id");
    assert!(differ((&reply, &[absent]), (&headers, &[absent])).is_some(), "an answer without its id");
    drop(app);
}

/// A list whose cursors are numbers of one's own versions: they name nothing that another could have.
const NUMBERED: &str = "/api/v1/config/history";

/// A cursor is a place in a list, and the things at that place are one's own or none.
#[tokio::test]
async fn a_cursor_at_anothers_thing_is_a_cursor_at_nothing() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let lender = lender(&app, [&acme, &globex]).await;
    let before = world(&app, &lender, &acme, &globex).await;
    acme.document(&before[&Whose::Own].project, "the second").await;
    for path in [format!("documents/{}", before[&Whose::Own].document), format!("shares/{}", before[&Whose::Own].share)] {
        for body in ["one", "two"] {
            acme.post(&format!("/api/v1/{path}/comments"), &json!({ "body": body })).await.expect(201);
        }
    }
    let after = world(&app, &lender, &acme, &globex).await;
    let mut compared = 0;
    for operation in served(&app)
        .await
        .iter()
        .filter(|operation| operation.side == Side::Tenant && operation.query.contains(&"cursor".to_owned()) && operation.path != NUMBERED)
    {
        let given: Vec<&str> = operation.parameters.iter().map(|parameter| before[&Whose::Own].named(parameter, &operation.path)).collect();
        let target = operation.target(&given);
        let first = acme.get(&format!("{target}?limit=1")).await.expect(200);
        let cursor = URL_SAFE_NO_PAD.decode(first.text("next_cursor")).expect("base64");
        let (tag, newest) = cursor.split_at_checked(cursor.len() - 16).expect("it ends with an id: else teach me what a cursor is");
        assert_eq!(first.json()["items"][0]["id"], Uuid::from_slice(newest).expect("an id").to_string(), "teach me what a cursor is");
        let page = async |id: u128| {
            let cursor = URL_SAFE_NO_PAD.encode([tag, &id.to_be_bytes()].concat());
            acme.get(&format!("{target}?cursor={cursor}")).await.expect(200)
        };
        for things in [&before, &after] {
            for whose in [Whose::Foreign, Whose::Gone, Whose::ForeignGone] {
                for id in [&things[&whose].project, &things[&whose].document] {
                    let id = Uuid::parse_str(id).expect("an id").as_u128();
                    // Nobody's id, and nothing is between the two.
                    let (theirs, nobodys) = (page(id).await, page(id ^ 1).await);
                    assert_eq!(differ((&theirs, &[]), (&nobodys, &[])), None, "{target}: {whose:?}");
                    compared += 1;
                }
            }
        }
        let newest = u128::from_be_bytes(newest.try_into().expect("16 bytes"));
        assert!(differ((&page(newest).await, &[]), (&page(newest + 1).await, &[])).is_some(), "the control: one's own is told");
    }
    eprintln!("{compared} cursors");
    assert!(compared >= 24, "{compared}");
}

/// Tells how another tenant's key differs from a fresh one, on each operation that takes keys.
async fn keys_told(app: &TestApp, lender: &Member, acme: &Member, globex: &Member) -> Vec<String> {
    let mut found = Vec::new();
    let own = Things::make(app, acme, lender, "my--own.txt").await;
    let foreign = Things::make(app, globex, lender, "foreign.txt").await;
    for operation in
        served(app).await.iter().filter(|operation| operation.side == Side::Tenant && operation.takes_key && !operation.bodies.is_empty())
    {
        let names =
            |things: &Things| operation.parameters.iter().map(|name| things.named(name, &operation.path).to_owned()).collect::<Vec<_>>();
        let ask = async |who: &Member, things: &Things, key: &str| {
            let names = names(things);
            let target = operation.target(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let body = operation.bodies[0].to_string().replace("{document}", &things.document);
            let ask = who.ask(&operation.method, &target).body(body).with("content-type", "application/json");
            let reply = ask.with("idempotency-key", key).await;
            // Some things are there once.
            if !reply.header("location").is_empty() {
                who.delete(reply.header("location")).await.expect(204);
            }
            reply
        };
        let (used, fresh) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let done = |reply: Reply| if (200..=201).contains(&reply.status) { reply } else { panic!("{}: {reply:?}", operation.called()) };
        done(ask(globex, &foreign, &used).await);
        let (used, fresh) = (ask(acme, &own, &used).await, done(ask(acme, &own, &fresh).await));
        // What is new each time.
        let made = |reply: &Reply| {
            let json = reply.json();
            [&json["id"], &json["record"]["value"], &json["secret"], &json["url"]]
                .map(|new| new.as_str().unwrap_or("nothing was made").to_owned())
        };
        let (used_made, fresh_made) = (made(&used), made(&fresh));
        let (used, fresh) =
            ((&used, &used_made.each_ref().map(String::as_str)[..]), (&fresh, &fresh_made.each_ref().map(String::as_str)[..]));
        found.extend(differ(used, fresh).map(|how| format!("{}: {how}", operation.called())));
    }
    found
}

#[tokio::test]
async fn another_tenants_key_is_a_fresh_key() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let lender = lender(&app, [&acme, &globex]).await;
    assert_eq!(keys_told(&app, &lender, &acme, &globex).await, [""; 0]);
    // The control: a key of the table without the tenant is an oracle.
    let without = "truncate idempotency_keys; create unique index on idempotency_keys (key)";
    app.db_eye().await.execute(without).await.expect("a key without the tenant");
    assert!(keys_told(&app, &lender, &acme, &globex).await.len() >= 5, "the detector is blind");
}

/// Tenants as a tenant's token sees them through the operators' routes and through hints: all alike, whoever and whatever they are.
#[tokio::test]
async fn other_tenants_are_tenants_that_never_were() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (suspended, archived, erased) = (app.tenant("initech").await, app.tenant("hooli").await, app.tenant("umbrella").await);
    app.operator().ask("POST", &format!("/api/v1/tenants/{}/suspend", suspended.tenant)).await.expect(200);
    for tenant in [&archived, &erased] {
        app.operator().delete(&format!("/api/v1/tenants/{}", tenant.tenant)).await.expect(204);
    }
    let db = app.database.open().await.expect("open");
    let id = erased.tenant.parse().expect("an id");
    db.catalog().update(id, TenantChange::status(TenantStatus::Erased), None, &tenancy_core::Actor::System).await.expect("erased");
    db.close().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await; // the bound on staleness
    let known = [&acme, &globex, &suspended, &archived, &erased].map(|member| [member.tenant.as_str(), &member.slug]);
    let names: Vec<&str> = [ABSENT, "nobody"].into_iter().chain(known.into_iter().flatten()).collect();
    let (mut compared, mut found) = (0, Vec::new());
    let mut compare = async |what: String, asks: Vec<Ask>| {
        let mut reference: Option<Reply> = None;
        for (ask, name) in asks.into_iter().zip(&names) {
            let reply = ask.await;
            let Some(nobodys) = &reference else {
                reference = Some(reply);
                continue;
            };
            compared += 1;
            found.extend(differ((&reply, &[]), (nobodys, &[])).map(|how| format!("{what} {name}: {how}")));
        }
    };
    for operation in served(&app).await.iter().filter(|operation| operation.side == Side::Operator) {
        assert!(
            operation.parameters.iter().all(|parameter| {
                matches!(
                    parameter.as_str(),
                    "tenant" | "message" | "operation" | "file" | "operator" | "impersonation" | "plan" | "flag" | "peer" | "backup"
                )
            }),
            "{}: teach me what it names",
            operation.called()
        );
        let called = operation.called();
        for (way, put) in ways(Some(operation)) {
            let put = |name: &&str| put(acme.ask(&operation.method, &operation.target(&[name])));
            compare(format!("{called} {way}"), names.iter().map(put).collect()).await;
        }
        for query in &operation.query {
            let put = |name: &&str| acme.ask(&operation.method, &format!("{}?{query}={name}", operation.path));
            compare(format!("{called} {query}"), names.iter().map(put).collect()).await;
        }
    }
    for header in ["x-tenant-id", "x-tenant", "x-forwarded-host", "forwarded", "cookie"] {
        let put = |name: &&str| acme.get("/api/v1/tenant").with(header, *name);
        compare(header.to_owned(), names.iter().map(put).collect()).await;
    }
    eprintln!("{compared} comparisons of tenants");
    assert_eq!(found, [""; 0]);
    // The control: the operator's token tells them.
    let operator = async |name: &str| app.operator().get(&format!("/api/v1/tenants/{name}")).await;
    assert!(differ((&operator(&globex.slug).await, &[]), (&operator("nobody").await, &[])).is_some());
}
