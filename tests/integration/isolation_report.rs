//! The report, from outside: the command line on databases that are sound, broken and strange, and the assertion for a host's suite.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use harness::app::Folder;
use harness::program::{command, run};
use harness::{Kit, MIGRATIONS};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::isolation::AllowList;
use tenancy_sqlx::testing::{TestDatabase, assert_isolated, assert_isolated_except};

const OLD: &str = "server-version";
const RLS_OFF: &str = "alter table notes disable row level security";

/// A database, and the command line on it.
struct Checked {
    database: TestDatabase,
    folder: Folder,
    /// The server is one with known holes, which is a finding whatever the schema: it is allowed then.
    old: bool,
}

impl Checked {
    async fn new() -> Self {
        let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("a database");
        let found = database.open().await.expect("open").inspect().await.expect("inspected");
        let checked = Self { database, folder: Folder::new(), old: found.iter().any(|finding| finding.rule == OLD) };
        checked.allow(&BTreeSet::new(), "9999-12-31");
        checked
    }

    async fn execute(&self, sql: &str) {
        self.database.superuser().await.expect("superuser").execute(AssertSqlSafe(sql)).await.expect("done");
    }

    /// The exit code of `isolation probe`, and what it printed.
    fn probe(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = command(&self.folder, &[&["isolation", "probe"], args].concat());
        command.env("DATABASE_URL", self.database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", self.database.admin_url());
        let (output, out, err) = run(command);
        (output.status.code(), out, err)
    }

    /// The exit code of `isolation check`, and what it printed.
    fn check(&self, args: &[&str]) -> (Option<i32>, String, String) {
        self.check_as(Some(&self.database.admin_url()), args)
    }

    fn check_as(&self, admin_url: Option<&str>, args: &[&str]) -> (Option<i32>, String, String) {
        self.check_on(&self.database.app_url(), admin_url, args)
    }

    fn check_on(&self, url: &str, admin_url: Option<&str>, args: &[&str]) -> (Option<i32>, String, String) {
        let allow: &[&str] = if self.old && !args.contains(&"--allow") { &["--allow", "allow.json"] } else { &[] };
        let mut command = command(&self.folder, &[&["isolation", "check"], args, allow].concat());
        command.env("DATABASE_URL", url);
        if let Some(url) = admin_url {
            command.env("TENANCY_ADMIN_DATABASE_URL", url);
        }
        let (output, out, err) = run(command);
        (output.status.code(), out, err)
    }

    /// Allows `rules` on the notes.
    fn allow(&self, rules: &BTreeSet<String>, until: &str) {
        let mut allow = json(&allow_list(rules, "public.notes", until));
        if self.old {
            let old = json!({ "rule": OLD, "object": "*", "reason": "the machine's own server", "until": "9999-12-31" });
            allow["allow"].as_array_mut().expect("entries").push(old);
        }
        std::fs::write(self.folder.0.join("allow.json"), allow.to_string()).expect("written");
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect(text)
}

/// The rules of the findings.
fn rules(report: &Value) -> BTreeSet<String> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().filter_map(|finding| finding["rule"].as_str().map(str::to_owned)).collect()
}

fn allow_list(rules: &BTreeSet<String>, object: &str, until: &str) -> String {
    let entry = |rule| json!({ "rule": rule, "object": object, "reason": "the import runs as nobody else", "until": until });
    json!({ "allow": rules.iter().map(entry).collect::<Vec<_>>() }).to_string()
}

#[tokio::test]
async fn the_command_line_tells_what_it_found_and_fails_by_it() {
    let db = Checked::new().await;
    for admin_url in [Some(db.database.admin_url()), None] {
        let (code, out, err) = db.check_as(admin_url.as_deref(), &["--json"]);
        assert_eq!((code, &json(&out)["findings"], err.as_str()), (Some(0), &json!([]), ""));
    }
    assert!(db.check(&[]).1.contains("0 findings; "));

    // `open` refuses this one.
    db.execute(RLS_OFF).await;
    TenantDb::open(db.database.options()).await.expect_err("unprotected");
    for admin_url in [Some(db.database.admin_url()), None] {
        let (code, out, err) = db.check_as(admin_url.as_deref(), &["--json"]);
        let worst = &json(&out)["findings"][0];
        assert_eq!((code, err.as_str(), &worst["rule"], &worst["severity"]), (Some(2), "", &json!("rls-off"), &json!("critical")));
        assert_eq!((&worst["schema"], &worst["object"]), (&json!("public"), &json!("notes")));
    }
    let (code, out, _) = db.check(&[]);
    assert!(code == Some(2) && out.starts_with("critical  rls-off ") && out.ends_with(" allowed"), "{out}");

    let (code, out, _) = db.check(&["--sarif"]);
    let sarif = json(&out);
    let run = &sarif["runs"][0];
    assert_eq!((code, &sarif["version"]), (Some(2), &json!("2.1.0")));
    let ids: Vec<_> = run["tool"]["driver"]["rules"].as_array().expect("rules").iter().map(|rule| &rule["id"]).collect();
    let worst = &run["results"][0];
    assert!(
        ids.contains(&&json!("rls-off"))
            && ids[usize::try_from(worst["ruleIndex"].as_u64().expect("an index")).expect("small")] == "rls-off"
    );
    assert_eq!((&worst["ruleId"], &worst["level"], &worst["suppressions"]), (&json!("rls-off"), &json!("error"), &json!([])));

    // The mend mends.
    let mend = json(&db.check(&["--json"]).1)["findings"][0]["mend"].as_str().expect("SQL").to_owned();
    db.execute(&mend).await;
    assert_eq!(db.check(&[]).0, Some(0));
}

#[tokio::test]
async fn what_is_allowed_does_not_fail_until_its_last_day_is_over() {
    let db = Checked::new().await;
    db.execute(RLS_OFF).await;
    let found = rules(&json(&db.check(&["--json"]).1));
    db.allow(&found, "9999-12-31");
    let (code, out, _) = db.check(&["--json", "--allow", "allow.json"]);
    let report = json(&out);
    assert_eq!((code, &report["findings"]), (Some(0), &json!([])));
    let allowed = &report["allowed"][0];
    assert_eq!((&allowed["rule"], &allowed["until"]), (&json!("rls-off"), &json!("9999-12-31")));
    assert_eq!(allowed["reason"], "the import runs as nobody else");
    let (code, out, _) = db.check(&["--sarif", "--allow", "allow.json"]);
    assert_eq!((code, &json(&out)["runs"][0]["results"][0]["suppressions"][0]["status"]), (Some(0), &json!("accepted")));

    db.allow(&found, "2020-12-31");
    let (code, out, _) = db.check(&["--json", "--allow", "allow.json"]);
    assert_eq!((code, rules(&json(&out))), (Some(2), found.iter().cloned().chain(["allow-expired".to_owned()]).collect()));

    // Mended, the living entries are idle, which is no failure; the expired ones are.
    db.execute("call tenancy.protect_table('notes')").await;
    assert_eq!(db.check(&["--allow", "allow.json"]).0, Some(2));
    assert_eq!(db.check(&["--allow", "allow.json", "--fail-on", "high"]).0, Some(0));
    db.allow(&found, "9999-12-31");
    let (code, out, _) = db.check(&["--json", "--allow", "allow.json"]);
    assert_eq!((code, rules(&json(&out))), (Some(0), ["allow-unused".to_owned()].into()));
    assert_eq!(db.check(&["--allow", "allow.json", "--fail-on", "info"]).0, Some(2));
}

#[tokio::test]
async fn the_role_that_is_judged_can_be_named() {
    let db = Checked::new().await;
    let (code, out, err) = db.check(&["--json", "--app-role", "postgres"]);
    let report = json(&out);
    assert!(code == Some(2) && rules(&report).contains("app-superuser") && err.is_empty(), "{out} {err}");

    let (code, out, _) = db.check(&["--json", "--app-role", "nobody"]);
    assert_eq!((code, rules(&json(&out))), (Some(2), ["app-missing".to_owned()].into()));

    // Somebody who serves as a superuser is told that this role was not judged.
    let (code, out, err) = db.check_on(&db.database.admin_url(), None, &["--json"]);
    assert_eq!((code, rules(&json(&out)).len()), (Some(0), 0));
    assert!(err.contains("--app-role postgres"), "{err}");
}

#[tokio::test]
async fn what_could_not_be_checked_is_neither_good_nor_bad() {
    let db = Checked::new().await;
    std::fs::write(db.folder.0.join("wrong.json"), r#"{"allow":[{"rule":"rls-of"}]}"#).expect("written");
    for (args, says) in [
        (&["--allow", "absent.json"][..], "--allow absent.json: can't be read"),
        (&["--allow", "wrong.json"], "--allow wrong.json: the allow-list is not valid"),
        (&["--fail-on", "sever"], "info, warning, high or critical"),
        (&["--json", "--sarif"], "cannot be used with"),
    ] {
        let (code, out, err) = db.check(args);
        assert!(code == Some(1) && out.is_empty() && err.contains(says), "{args:?}: {code:?} {out} {err}");
    }
    let (code, out, err) = db.check_as(Some("postgres://postgres@127.0.0.1:1/x"), &["--json"]);
    assert!(code == Some(1) && out.is_empty() && err.contains("TENANCY_ADMIN_DATABASE_URL"), "{code:?} {out} {err}");

    db.execute("revoke usage on schema tenancy from public, tenancy_app").await;
    let (code, out, err) = db.check_as(None, &["--json"]);
    assert!(code == Some(1) && out.is_empty() && err.contains("may not use the schema tenancy"), "{code:?} {out} {err}");
    assert_eq!(db.check(&[]).0, Some(0), "an administrator may");

    db.execute("drop schema tenancy, tenancy_views cascade").await;
    for admin_url in [Some(db.database.admin_url()), None] {
        let (code, out, err) = db.check_as(admin_url.as_deref(), &["--json"]);
        assert!(code == Some(1) && out.is_empty() && err.contains("no schema tenancy") && err.contains("migrate"), "{code:?} {out} {err}");
    }
}

#[tokio::test]
async fn the_command_line_probes_what_can_be_served() {
    let db = Checked::new().await;
    db.allow(&["rls-off".to_owned()].into(), "9999-12-31");
    let (code, out, err) = db.probe(&["--json", "--allow", "allow.json"]);
    assert_eq!((code, json(&out), err.as_str()), (Some(0), json!({ "findings": [], "allowed": [] }), ""), "what is not needed is not told");

    // A key without the tenant tells each what the others have.
    db.execute("alter table notes add unique (body)").await;
    let (code, out, err) = db.probe(&["--json"]);
    let found = rules(&json(&out));
    assert!(code == Some(2) && found.contains("unique-without-tenant") && err.is_empty(), "{code:?} {out} {err}");
    std::fs::write(db.folder.0.join("keys.json"), allow_list(&found, "*", "9999-12-31")).expect("written");
    let (code, out, _) = db.probe(&["--json", "--allow", "keys.json"]);
    assert!(code == Some(0) && json(&out)["allowed"][0]["rule"] == "unique-without-tenant", "{code:?} {out}");

    db.execute(RLS_OFF).await;
    let (code, out, err) = db.probe(&["--json"]);
    assert!(code == Some(1) && out.is_empty() && err.contains("can't be trusted"), "{code:?} {out} {err}");
}

#[tokio::test]
async fn one_line_in_a_hosts_suite_fails_it_when_tenants_are_not_apart() {
    let kit = Kit::new().await;
    let fails = async |allow: &AllowList| {
        let done = AssertUnwindSafe(assert_isolated_except(&kit.db, allow)).catch_unwind().await;
        done.err().map(|panic| *panic.downcast::<String>().expect("a message"))
    };
    assert_isolated(&kit.db).await;
    let without_admin = tenancy_sqlx::Options::new(&kit.database.app_url()).expect("a URL");
    let without_admin = TenantDb::open(without_admin).await.expect("open");
    assert_isolated(&without_admin).await;

    kit.superuser().await.execute(RLS_OFF).await.expect("broken");
    let message = fails(&AllowList::default()).await.expect("it panics");
    assert!(message.contains("critical  rls-off ") && message.contains("CALL tenancy.protect_table"), "{message}");
    assert_eq!(without_admin.inspect().await.expect("inspected"), kit.db.inspect().await.expect("inspected"));
    let plain = AssertUnwindSafe(assert_isolated(&kit.db)).catch_unwind().await;
    assert!(plain.is_err());

    let found = kit.db.inspect().await.expect("inspected").into_iter().map(|finding| finding.rule.to_owned()).collect();
    let allow = |until: &str| allow_list(&found, "*", until).parse::<AllowList>().expect("valid");
    assert_eq!(fails(&allow("9999-12-31")).await, None);
    assert!(fails(&allow("2020-12-31")).await.expect("it panics").contains("allow-expired"));
    // An inspection leaves no connection inside a transaction.
    kit.db_settles().await;
}
