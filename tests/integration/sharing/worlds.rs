//! Random worlds of tenants, shares and links, asked in SQL of our own as the application's role: what each of them sees and may write is
//! compared with a model of a few lines. Nothing of the kit checks anything here but PostgreSQL.
//!
//! A seed decides a world.

use std::collections::BTreeSet;
use std::fmt::Debug;

use harness::Kit;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy_core::{Actor, ErrorKind, Role, TenantCatalog as _, TenantChange, TenantContext, TenantStatus};
use tenancy_sqlx::Tx;
use tenancy_sqlx::sharing::own_and_shared;
use uuid::Uuid;

use super::{member, platform};

const TENANTS: usize = 4;
const SHARES: usize = 30;
const LINKS: usize = 10;
/// Who asks, in transactions of our own.
const BOB: [&str; 2] = ["set local tenancy.subject = 'bob'", "set local tenancy.role = 'member'"];

/// What is of one tenant.
struct Tenant {
    cx: TenantContext,
    active: bool,
    offers: bool,
    accepts: bool,
    links: bool,
    project: Uuid,
}

struct Document {
    id: Uuid,
    of: usize,
    title: String,
}

struct Share {
    id: Uuid,
    document: usize,
    target: usize,
    perms: &'static str,
    /// Accepted, not ended, not expired, and for whoever asks here.
    good: bool,
}

struct Link {
    token: String,
    ticket: String,
    document: usize,
    /// Neither revoked nor expired, nor is its ticket.
    good: bool,
}

/// A world, and what there is in it.
struct World {
    kit: Kit,
    enabled: bool,
    links_enabled: bool,
    tenants: Vec<Tenant>,
    documents: Vec<Document>,
    shares: Vec<Share>,
    links: Vec<Link>,
}

const TABLES: &str = "
    create table w_projects (tenant_id uuid not null, id uuid not null, name text not null, primary key (tenant_id, id));
    create table w_documents (tenant_id uuid not null, id uuid not null, project_id uuid not null, title text not null, primary key (tenant_id, id),
      foreign key (tenant_id, project_id) references w_projects (tenant_id, id));
    create table w_files (tenant_id uuid not null, id uuid not null, document_id uuid not null, title text not null, primary key (tenant_id, id),
      foreign key (tenant_id, document_id) references w_documents (tenant_id, id));
    create table w_remarks (tenant_id uuid not null, id uuid not null default gen_random_uuid(), document_id uuid not null, title text not null,
      primary key (tenant_id, id), foreign key (tenant_id, document_id) references w_documents (tenant_id, id));
    call tenancy.protect_table('w_projects'); call tenancy.protect_table('w_documents');
    call tenancy.protect_table('w_files'); call tenancy.protect_table('w_remarks');
    call tenancy.share_table('w_documents', 'document', updatable => '{title}');
    call tenancy.share_table('w_files', parent => 'w_documents');
    call tenancy.share_table('w_remarks', parent => 'w_documents', insertable => '{id,title}', needs => 'comment')";

async fn run(eye: &mut PgConnection, sql: String) {
    eye.execute(AssertSqlSafe(sql.clone())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| format!("'{text}'"))
}

impl World {
    async fn new(seed: u64) -> Self {
        let (mut rng, kit) = (StdRng::seed_from_u64(seed), Kit::new().await);
        let mut eye = kit.superuser().await;
        run(&mut eye, format!("set role tenancy_owner; {TABLES}; reset role")).await;
        let (enabled, links_enabled) = (rng.random_bool(0.9), rng.random_bool(0.9));
        platform(&kit, enabled, links_enabled).await;
        let (mut tenants, mut documents) = (Vec::new(), Vec::new());
        for of in 0..TENANTS {
            let cx = kit.database.tenant(&kit.db, &format!("world-{of}")).await.expect("a tenant");
            let (cx, project) = (member(&cx, "bob", Role::Member), Uuid::now_v7());
            let tenant = cx.tenant_id();
            let [offers, accepts, links] = [0.85, 0.85, 0.85].map(|p| rng.random_bool(p));
            run(&mut eye, format!("insert into tenancy.sharing_policies (tenant_id, offers, accepts, links) values ('{tenant}', {offers}, {accepts}, {links});
                insert into w_projects values ('{tenant}', '{project}', 'project of {of}')")).await;
            for n in 0..rng.random_range(2..5) {
                let (id, title) = (Uuid::now_v7(), format!("title {n} of {of}"));
                run(
                    &mut eye,
                    format!(
                        "insert into w_documents values ('{tenant}', '{id}', '{project}', '{title}');
                    insert into w_files values ('{tenant}', gen_random_uuid(), '{id}', 'file of {title}');
                    insert into w_remarks values ('{tenant}', gen_random_uuid(), '{id}', 'remark on {title}')"
                    ),
                )
                .await;
                documents.push(Document { id, of, title });
            }
            // The last may have been suspended after it all.
            let active = of + 1 < TENANTS || rng.random_bool(0.5);
            tenants.push(Tenant { cx, active, offers, accepts, links, project });
        }
        let mut world = Self { kit, enabled, links_enabled, tenants, documents, shares: Vec::new(), links: Vec::new() };
        for _ in 0..SHARES {
            world.add_share(&mut eye, &mut rng).await;
        }
        for _ in 0..LINKS {
            world.add_link(&mut eye, &mut rng).await;
        }
        for tenant in world.tenants.iter().filter(|tenant| !tenant.active) {
            let change = TenantChange::status(TenantStatus::Suspended);
            world.kit.db.catalog().update(tenant.cx.tenant_id(), change, None, &Actor::System).await.expect("suspended");
        }
        world
    }

    async fn add_share(&mut self, eye: &mut PgConnection, rng: &mut StdRng) {
        let (document, target, id) = (rng.random_range(0..self.documents.len()), rng.random_range(0..TENANTS), Uuid::now_v7());
        let of = self.documents[document].of;
        if of == target {
            return;
        }
        let perms = *["read", "comment", "write"].choose(rng).expect("perms");
        let others = ["offered", "declined", "withdrawn", "revoked", "left", "gone", "expired"];
        let state = if rng.random_bool(0.75) { "active" } else { others.choose(rng).expect("states") };
        let expires = *[None, None, Some("1 day"), Some("1 day"), Some("-1 second")].choose(rng).expect("times");
        let roles = *[None, None, None, Some("{member,admin}"), Some("{owner}")].choose(rng).expect("roles");
        let subjects = *[None, None, None, Some("{bob,carol}"), Some("{carol}")].choose(rng).expect("subjects");
        let sql = format!(
            "insert into tenancy.cross_tenant_shares (id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, only_roles, only_subjects, state, expires_at, offered_by)
             values ('{id}', '{}', '{}', 'document', '{}', '{perms}', {}, {}, '{state}', now() + {}::interval, 'a test') on conflict do nothing",
            self.tenants[of].cx.tenant_id(), self.tenants[target].cx.tenant_id(), self.documents[document].id, quoted(roles), quoted(subjects), quoted(expires),
        );
        let made = eye.execute(AssertSqlSafe(sql)).await.expect("a share").rows_affected();
        let good = state == "active" && expires != Some("-1 second") && roles != Some("{owner}") && subjects != Some("{carol}");
        if made == 1 {
            self.shares.push(Share { id, document, target, perms, good });
        }
    }

    async fn add_link(&mut self, eye: &mut PgConnection, rng: &mut StdRng) {
        let document = rng.random_range(0..self.documents.len());
        let of = self.tenants[self.documents[document].of].cx.tenant_id();
        let (id, token) = (Uuid::now_v7(), format!("{:043}", rng.random::<u64>()));
        let ticket = (0..4).map(|_| format!("{:016x}", rng.random::<u64>())).collect::<String>();
        let (revoked, over, late) = (rng.random_bool(0.25), rng.random_bool(0.2), rng.random_bool(0.2));
        let until = |over: bool| if over { "now() - interval '1 second'" } else { "now() + interval '1 day'" };
        run(eye, format!(
            "insert into tenancy.share_links (tenant_id, id, resource_type, resource_id, token_hash, label, expires_at, created_by, revoked_at)
               values ('{of}', '{id}', 'document', '{}', sha256('{token}'), '', {}, 'a test', case when {revoked} then now() end);
             insert into tenancy.share_tickets values ('{of}', sha256(decode('{ticket}', 'hex')), '{id}', {})",
            self.documents[document].id, until(over), until(late),
        )).await;
        self.links.push(Link { token, ticket, document, good: !revoked && !over && !late });
    }

    /// The model: whether a share shows its document to its target.
    fn shows(&self, share: &Share) -> bool {
        let (owner, target) = (&self.tenants[self.documents[share.document].of], &self.tenants[share.target]);
        share.good && self.enabled && owner.active && owner.offers && target.active && target.accepts
    }

    /// The model: whether a ticket shows its link's document.
    fn opens(&self, link: &Link) -> bool {
        let owner = &self.tenants[self.documents[link.document].of];
        link.good && self.links_enabled && owner.active && owner.links
    }

    /// What is not as the model has it.
    async fn found(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (viewer, tenant) in self.tenants.iter().enumerate().filter(|(_, tenant)| tenant.active) {
            self.lists(viewer, tenant, &mut found).await;
            self.references(viewer, tenant, &mut found).await;
            for share in &self.shares {
                self.one_share(viewer, tenant, share, &mut found).await;
            }
        }
        for (n, link) in self.links.iter().enumerate() {
            self.one_link(n, link, &mut found).await;
        }
        found
    }

    /// All that is shared at once, as a list, as counts, and as a search.
    async fn lists(&self, viewer: usize, tenant: &Tenant, found: &mut Vec<String>) {
        let shown: BTreeSet<usize> =
            self.shares.iter().filter(|share| share.target == viewer && self.shows(share)).map(|share| share.document).collect();
        let mut tx = self.kit.db.read_with_shares(&tenant.cx).await.expect("a list");
        self.views(&mut tx, "", &shown, &format!("the lists of {viewer}"), found).await;
        let own: BTreeSet<usize> = (0..self.documents.len()).filter(|n| self.documents[*n].of == viewer).collect();
        let sql = own_and_shared("w_documents", "id, title", "id");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(1000_i64).bind(Uuid::max());
        let rows: Vec<(Option<Uuid>, Option<String>, Uuid, String)> = query.fetch_all(&mut tx).await.expect("a list");
        let listed = rows.into_iter().map(|(.., title)| title).collect::<BTreeSet<_>>();
        compare(&listed, &self.titles("", own.union(&shown)), &format!("own and shared of {viewer}"), found);
        self.tables(&mut tx, Some(viewer), found).await;
        drop(tx);
        // Whoever does not say who asks sees what is for everybody, or less.
        let mut tx = self.kit.db.read(&tenant.cx).await.expect("begin");
        let listed: BTreeSet<String> = texts(&mut tx, "select title from tenancy_views.w_documents").await;
        if !listed.is_subset(&self.titles("", &shown)) {
            found.push(format!("a plain transaction of {viewer} sees {listed:?}"));
        }
        let sides: BTreeSet<String> = texts(&mut tx, "select id::text from tenancy.cross_tenant_shares").await;
        let expected = self.shares.iter().filter(|share| share.target == viewer || self.documents[share.document].of == viewer);
        compare(&sides, &expected.map(|share| share.id.to_string()).collect(), &format!("the shares of {viewer}"), found);
    }

    fn titles<'a>(&self, prefix: &str, documents: impl IntoIterator<Item = &'a usize>) -> BTreeSet<String> {
        documents.into_iter().map(|n| format!("{prefix}{}", self.documents[*n].title)).collect()
    }

    /// The views with this suffix show these documents and their parts: in lists, counts, sums, joins and searches.
    async fn views<S: Debug + Send>(&self, tx: &mut Tx<S>, suffix: &str, shown: &BTreeSet<usize>, who: &str, found: &mut Vec<String>) {
        for (view, prefix) in [("w_documents", ""), ("w_files", "file of "), ("w_remarks", "remark on ")] {
            let view = format!("tenancy_views.{view}{suffix}");
            let expected = self.titles(prefix, shown);
            compare(&texts(tx, &format!("select title from {view}")).await, &expected, &format!("{view}: {who}"), found);
            let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(distinct title) from {view}")))
                .fetch_one(&mut *tx)
                .await
                .expect("a count");
            if usize::try_from(count) != Ok(expected.len()) {
                found.push(format!("{view}: {who} counts {count}, not {}", expected.len()));
            }
            for document in &self.documents {
                let title = format!("{prefix}{}", document.title);
                let search = format!(
                    "select title from {view} where title ilike '%{}%' and 1 / (case when title = '{title}' then 1 else 0 end) = 1",
                    document.title.to_uppercase()
                );
                // A row that must not be seen would also end it by an error.
                let hits = texts(tx, &search).await;
                if hits.contains(&title) != expected.contains(&title) {
                    found.push(format!("{view}: {who} searches {title} and finds {hits:?}"));
                }
            }
        }
        let parents = format!(
            "select p.name from tenancy_views.w_documents{suffix} d join w_projects p on p.id = d.project_id and p.tenant_id <> tenancy.current_tenant()"
        );
        compare(&texts(tx, &parents).await, &BTreeSet::new(), &format!("the parents: {who}"), found);
    }

    /// The tables themselves show a tenant its own, and nobody nothing.
    async fn tables<S: Debug + Send>(&self, tx: &mut Tx<S>, viewer: Option<usize>, found: &mut Vec<String>) {
        let own: BTreeSet<usize> = (0..self.documents.len()).filter(|n| Some(self.documents[*n].of) == viewer).collect();
        for (table, prefix) in [("w_documents", ""), ("w_files", "file of "), ("w_remarks", "remark on ")] {
            let expected = self.titles(prefix, &own);
            compare(&texts(tx, &format!("select title from {table}")).await, &expected, &format!("{table} of {viewer:?}"), found);
        }
        let projects = texts(tx, "select name from w_projects").await;
        compare(&projects, &viewer.map(|n| format!("project of {n}")).into_iter().collect(), &format!("projects of {viewer:?}"), found);
    }

    /// One share, named by whoever likes to.
    async fn one_share(&self, viewer: usize, tenant: &Tenant, share: &Share, found: &mut Vec<String>) {
        let shows = share.target == viewer && self.shows(share);
        let who = format!("{viewer} by {} of {} ({}, shows: {shows})", share.id, share.document, share.perms);
        match self.kit.db.begin_shared(&tenant.cx, share.id).await {
            Ok(_) if shows => {}
            Err(error) if !shows && error.kind() == ErrorKind::NotFound => {}
            other => found.push(format!("{who} is opened: {}", other.is_ok())),
        }
        let mut tx = self.kit.db.begin(&tenant.cx).await.expect("begin");
        for named in [format!("set local tenancy.share = '{}'", share.id), BOB[0].to_owned(), BOB[1].to_owned()] {
            sqlx::query(AssertSqlSafe(named)).execute(&mut tx).await.expect("named");
        }
        let documents = texts(&mut tx, "select title from tenancy_views.w_documents").await;
        compare(&documents, &self.titles("", shows.then_some(&share.document)), &who, found);

        let (write, comment) = (shows && share.perms == "write", shows && share.perms != "read");
        let done = outcome(&mut tx, "update tenancy_views.w_documents_write set title = title").await;
        expect(&done, if write { "1 row" } else { "0 rows" }, &format!("{who} changes"), found);
        for sql in [
            "delete from tenancy_views.w_documents_write",
            "delete from tenancy_views.w_files",
            "update tenancy_views.w_remarks_write set title = ''",
            "update tenancy_views.w_documents_write set tenant_id = tenant_id",
            "update tenancy_views.w_documents set title = ''",
            "update tenancy_views.w_files set title = ''",
            "insert into tenancy_views.w_documents_write (title) values ('')",
            "insert into tenancy_views.w_files values (null)",
        ] {
            let done = outcome(&mut tx, sql).await;
            if !["42501: permission denied", "55000: cannot "].iter().any(|refused| done.starts_with(refused)) {
                found.push(format!("{who}: {sql}: {done}"));
            }
        }
        // Remarks on what is shared, on a sibling, on another tenant's, and on nothing: only the first is taken, and the others are alike.
        let owner = self.tenants[self.documents[share.document].of].cx.tenant_id();
        let say = |document: Uuid| {
            format!("insert into tenancy_views.w_remarks_write (tenant_id, document_id, title) values ('{owner}', '{document}', 'x')")
        };
        let none = outcome(&mut tx, &say(Uuid::now_v7())).await;
        expect(&none, "44000", &format!("{who} remarks on nothing"), found);
        for (n, document) in self.documents.iter().enumerate() {
            let done = outcome(&mut tx, &say(document.id)).await;
            let expected = if comment && n == share.document { "1 row" } else { none.as_str() };
            expect(&done, expected, &format!("{who} remarks on {n}"), found);
        }
    }

    /// What refers to another's row is refused as what refers to nothing: keys tell nothing.
    async fn references(&self, viewer: usize, tenant: &Tenant, found: &mut Vec<String>) {
        let (mine, mut tx) = (tenant.cx.tenant_id(), self.kit.db.begin(&tenant.cx).await.expect("begin"));
        for named in BOB {
            sqlx::query(named).execute(&mut tx).await.expect("named");
        }
        for (n, other) in self.tenants.iter().enumerate().filter(|(n, _)| *n != viewer) {
            let theirs = other.cx.tenant_id();
            let document = self.documents.iter().find(|document| document.of == n).expect("a document").id;
            let ways: [&dyn Fn(Uuid, Uuid) -> String; 6] = [
                &|project, _| format!("insert into w_documents values ('{mine}', gen_random_uuid(), '{project}', 'x')"),
                &|project, _| format!("update w_documents set project_id = '{project}'"),
                &|_, document| format!("insert into w_files values ('{mine}', gen_random_uuid(), '{document}', 'x')"),
                &|_, document| format!("insert into w_files values ('{theirs}', gen_random_uuid(), '{document}', 'x')"),
                &|_, document| format!("insert into w_remarks (tenant_id, document_id, title) values ('{theirs}', '{document}', 'x')"),
                &|project, document| format!("insert into w_documents values ('{theirs}', '{document}', '{project}', 'x')"),
            ];
            for (way, sql) in ways.iter().enumerate() {
                let there = outcome(&mut tx, &sql(other.project, document)).await;
                let (no_project, no_document) = (Uuid::now_v7(), Uuid::now_v7());
                let nowhere = outcome(&mut tx, &sql(no_project, no_document)).await;
                let there = there.replace(&other.project.to_string(), "<project>").replace(&document.to_string(), "<document>");
                let nowhere = nowhere.replace(&no_project.to_string(), "<project>").replace(&no_document.to_string(), "<document>");
                if there != nowhere || there.ends_with("rows") || there.ends_with("row") {
                    found.push(format!("{viewer} refers to what is of {n} by way {way}: {there:?} is not {nowhere:?}"));
                }
            }
        }
        let own = self.documents.iter().find(|document| document.of == viewer).expect("a document").id;
        let control = outcome(&mut tx, &format!("insert into w_files values ('{mine}', gen_random_uuid(), '{own}', 'x')")).await;
        assert_eq!(control, "1 row", "the control: one's own can be referred to");
    }

    /// A link shows its document to whoever has its token and a ticket of its own, and lets nobody write.
    async fn one_link(&self, n: usize, link: &Link, found: &mut Vec<String>) {
        let other = &self.links[(n + 1) % self.links.len()];
        for (token, shows) in [(&link.token, self.opens(link)), (&other.token, false)] {
            let shown = shows.then_some(link.document).into_iter().collect();
            let mut tx = self.kit.db.read_link(token, &link.ticket).await.expect("begin");
            self.views(&mut tx, "_link", &shown, &format!("link {n} (shows: {shows})"), found).await;
            self.views(&mut tx, "", &BTreeSet::new(), &format!("link {n}, as a share"), found).await;
            self.tables(&mut tx, None, found).await;
        }
        for sql in [
            "update tenancy_views.w_documents_write set title = title",
            "insert into w_remarks (tenant_id, document_id, title) values (gen_random_uuid(), gen_random_uuid(), '')",
            "insert into tenancy_views.w_remarks_write (title) values ('')",
            "delete from tenancy_views.w_documents_link",
            "update tenancy_views.w_documents_link set title = ''",
        ] {
            let mut tx = self.kit.db.read_link(&link.token, &link.ticket).await.expect("begin");
            if sqlx::query(sql).execute(&mut tx).await.is_ok() {
                found.push(format!("link {n} writes: {sql}"));
            }
        }
    }
}

async fn texts<S: Debug + Send>(tx: &mut Tx<S>, sql: &str) -> BTreeSet<String> {
    let rows: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(tx).await.unwrap_or_else(|error| vec![format!("{sql}: {error}")]);
    rows.into_iter().collect()
}

/// How a statement ends, of a part that is undone.
async fn outcome<S: Debug + Send>(tx: &mut Tx<S>, sql: &str) -> String {
    let mut part = tx.savepoint().await.expect("a savepoint");
    match sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut *part).await {
        Ok(done) if done.rows_affected() == 1 => "1 row".to_owned(),
        Ok(done) => format!("{} rows", done.rows_affected()),
        Err(sqlx::Error::Database(error)) => {
            let detail = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail).unwrap_or_default();
            format!("{}: {} {detail}", error.code().unwrap_or_default(), error.message())
        }
        Err(error) => panic!("{sql}: {error}"),
    }
}

fn compare(one: &BTreeSet<String>, expected: &BTreeSet<String>, what: &str, found: &mut Vec<String>) {
    if one != expected {
        found.push(format!("{what}: {one:?} is not {expected:?}"));
    }
}

fn expect(done: &str, begins: &str, what: &str, found: &mut Vec<String>) {
    if !done.starts_with(begins) {
        found.push(format!("{what}: {done:?} is not {begins:?}"));
    }
}

#[tokio::test]
async fn nothing_but_what_is_shared_shows_in_any_world() {
    let worlds = if std::env::var_os("TENANCY_NIGHTLY").is_some() { 60 } else { 5 };
    let (mut shown, mut hidden) = (0, 0);
    for seed in 0..worlds {
        let world = World::new(seed).await;
        assert_eq!(world.found().await, [""; 0], "seed {seed}");
        let good = world.shares.iter().map(|share| world.shows(share)).chain(world.links.iter().map(|link| world.opens(link)));
        let good = good.collect::<Vec<_>>();
        shown += good.iter().filter(|good| **good).count();
        hidden += good.iter().filter(|good| !**good).count();
    }
    eprintln!("{worlds} worlds: {shown} shares and links that show something, {hidden} that do not");
    assert!(shown >= 20 && hidden >= 20, "{shown} {hidden}");
}

/// The controls: with one condition gone from one view or function, the comparison finds it.
#[tokio::test]
async fn control_a_condition_that_is_gone_is_found() {
    let view = |name: &str, from: &str, to: &str| {
        let check = if name.ends_with("_write") { " with cascaded check option" } else { "" };
        format!(
            "create or replace view tenancy_views.{name} with (security_barrier) as ' || replace(rtrim(pg_get_viewdef('tenancy_views.{name}'::regclass), ';'), $q${from}$q$, $q${to}$q$) || '{check}"
        )
    };
    let link = |from: &str| format!("' || replace(pg_get_functiondef('tenancy.link_grant()'::regprocedure), $q${from}$q$, '') || '");
    for (what, sql) in [
        ("the state of a share", view("incoming", "s.state = 'active'::text", "true")),
        ("the expiry of a share", view("incoming", "s.expires_at > statement_timestamp()", "true")),
        ("whose a share is", view("incoming", "s.target_tenant_id = ( SELECT tenancy.current_tenant() AS current_tenant)", "true")),
        ("which resource", view("w_documents", "t.id = g.resource_id", "true")),
        ("what perms", view("w_remarks_write", "'comment'::text", "'read'::text")),
        ("the end of a link", link("l.revoked_at is null and ")),
        ("whose ticket it is", link("l.token_hash = decode(nullif(current_setting('tenancy.link', true), ''), 'hex') and ")),
    ] {
        // The first world in which it matters; most worlds are such.
        let mut told = false;
        for seed in 0..3 {
            let world = World::new(seed).await;
            let mut eye = world.kit.superuser().await;
            let before: String = sqlx::query_scalar(
                "select string_agg(pg_get_viewdef(c.oid), '' order by c.relname) || pg_get_functiondef('tenancy.link_grant()'::regprocedure)
                   from pg_class c where relnamespace = 'tenancy_views'::regnamespace and relkind = 'v'",
            ).fetch_one(&mut eye).await.expect("definitions");
            run(&mut eye, format!("do $do$ begin execute '{sql}'; end $do$")).await;
            let after: String = sqlx::query_scalar(
                "select string_agg(pg_get_viewdef(c.oid), '' order by c.relname) || pg_get_functiondef('tenancy.link_grant()'::regprocedure)
                   from pg_class c where relnamespace = 'tenancy_views'::regnamespace and relkind = 'v'",
            ).fetch_one(&mut eye).await.expect("definitions");
            assert_ne!(before, after, "{what}: it was not there to be gone");
            told |= !world.found().await.is_empty();
            if told {
                break;
            }
        }
        assert!(told, "the comparison is blind to {what}");
    }
}
