//! Schemas with one defect each: what the checker must find, and the probe confirm.

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tenancy_sqlx::isolation::Finding;

mod keys;
mod objects;
mod policies;
mod roles;

/// A statement that makes one way to leak, on the tests' clean schema.
///
/// Roles belong to the whole server, which other tests use: a defect of the application's role is made on `{app}`, a role of its own
/// with the same rights, and `{other}` is one more.
#[derive(Debug)]
pub struct Defect {
    /// The rule that must find it.
    pub rule: &'static str,
    /// Run by a superuser in the test's database.
    pub sql: &'static str,
    /// Whether the probe can show it by acting.
    pub shown: bool,
}

const fn shown(rule: &'static str, sql: &'static str) -> Defect {
    Defect { rule, sql, shown: true }
}

const fn hidden(rule: &'static str, sql: &'static str) -> Defect {
    Defect { rule, sql, shown: false }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Defect> {
    [policies::DEFECTS, keys::DEFECTS, roles::DEFECTS, objects::DEFECTS].into_iter().flatten()
}

/// Rules that no statement on a test's database can break: they are about another login or server, or one started otherwise.
pub const PROVEN_OTHERWISE: &[&str] = &["app-missing", "logical-slot", "server-version"];

/// A defect that was made; [`undo`](Made::undo) takes back what belongs to the whole server.
#[derive(Debug)]
#[must_use]
pub struct Made {
    /// The application's role.
    pub app: String,
    roles: Vec<String>,
}

impl Defect {
    /// Whether it is about the application's role itself.
    pub fn is_of_role(&self) -> bool {
        self.sql.contains("{app}")
    }

    /// Makes it.
    pub async fn make(&self, eye: &mut PgConnection) -> Made {
        let mut made = Made { app: "tenancy_app".to_owned(), roles: Vec::new() };
        let unique = format!("{:08x}", rand::random::<u32>());
        let mut sql = self.sql.to_owned();
        for placeholder in ["app", "other"] {
            if !sql.contains(&format!("{{{placeholder}}}")) {
                continue;
            }
            let role = format!("defect_{placeholder}_{unique}");
            let mut create = format!("create role {role} login noinherit;");
            if placeholder == "app" {
                create += &format!("grant usage on schema tenancy to {role};");
                for table in ["notes", "comments", "entries"] {
                    create += &format!("grant select, insert, update, delete on {table} to {role};");
                    create += &format!("alter policy tenancy_rows on {table} to tenancy_app, {role};");
                }
                made.app.clone_from(&role);
            }
            eye.execute(AssertSqlSafe(create)).await.expect("a role");
            sql = sql.replace(&format!("{{{placeholder}}}"), &role);
            made.roles.push(role);
        }
        crate::insist(eye, &sql).await;
        made
    }
}

impl Made {
    /// `finding` with the names that a reader of the docs knows.
    pub fn anonymous(&self, mut finding: Finding, names: &[(&str, &str)]) -> Finding {
        for text in [&mut finding.object, &mut finding.explanation, &mut finding.mend, &mut finding.demonstrate] {
            for (from, to) in names {
                *text = text.replace(from, to);
            }
            for role in &self.roles {
                *text = text.replace(role, if *role == self.app { "tenancy_app" } else { "other_login" });
            }
        }
        finding
    }

    /// Drops the roles.
    pub async fn undo(self, eye: &mut PgConnection) {
        for role in self.roles {
            let sql = format!("reassign owned by {role} to postgres; drop owned by {role}; drop role {role}");
            crate::insist(eye, &sql).await;
        }
    }
}
