//! The host's tables and views, as the probe needs to know them.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tenancy_core::{Error, ErrorKind, Result};

use super::values::{PgType, TYPES, Types};
use crate::error::from_sqlx;
use crate::schema::Roles;

/// A column. Names are quoted where SQL needs it, everywhere here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) ty: i64,
    pub(super) modifier: i32,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    pub(super) identity: bool,
    pub(super) default: Option<String>,
    pub(super) select: bool,
    pub(super) update: bool,
}

impl Column {
    /// Whether a value that is left out comes from a sequence, which would remember it.
    pub(super) fn is_drawn(&self) -> bool {
        self.identity || self.default.as_ref().is_some_and(|default| default.contains("nextval("))
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Check {
    pub(super) sql: String,
    pub(super) columns: BTreeSet<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    pub(super) target: i64,
    /// What deleting the parent does: `c` cascades.
    pub(super) action: String,
    pub(super) columns: Vec<String>,
    pub(super) targets: Vec<String>,
}

/// A table, view, materialized view or foreign table.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Relation {
    pub(super) oid: i64,
    pub(super) schema: String,
    pub(super) name: String,
    /// Schema and name, for SQL.
    pub(super) sql: String,
    pub(super) kind: String,
    /// The tenant's column, of a table that has one.
    pub(super) tenant: Option<String>,
    /// What it is a partition of.
    pub(super) parent: Option<i64>,
    pub(super) select: bool,
    pub(super) truncate: bool,
    /// Whether the admin role may plant in it.
    pub(super) planter: bool,
    pub(super) columns: Vec<Column>,
    pub(super) checks: Vec<Check>,
    /// The columns of each key, unique index and exclusion constraint.
    pub(super) keys: Vec<BTreeSet<String>>,
    pub(super) foreign: Vec<ForeignKey>,
}

impl Relation {
    /// The columns that the application may read, as one text, for the row `x`.
    pub(super) fn readable_text(&self) -> String {
        if self.columns.iter().all(|column| column.select) {
            return "x::text".to_owned();
        }
        let some: Vec<_> = self.columns.iter().filter(|c| c.select).map(|c| format!("x.{}", c.name)).collect();
        format!("row({})::text", some.join(", "))
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// A function that runs with its owner's rights, or is trusted with hidden rows.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Function {
    pub(super) schema: String,
    /// As `regprocedure` prints it.
    pub(super) object: String,
    /// For SQL.
    pub(super) sql: String,
    pub(super) leakproof: bool,
    /// Bare names of the arguments' types, without those that have defaults.
    pub(super) arguments: Vec<String>,
}

/// All that is known.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) relations: Vec<Relation>,
    pub(super) functions: Vec<Function>,
    pub(super) types: Types,
    /// Materialized views that come from a table with a tenant.
    pub(super) stored: BTreeSet<i64>,
    /// All roles but the application's own: name, and whether policies don't bind it.
    pub(super) roles: Vec<(String, bool)>,
    pub(super) large_objects: Vec<i64>,
}

const FUNCTIONS: &str = "
    select jsonb_build_object('schema', n.nspname, 'object', p.oid::regprocedure::text, 'sql', format('%I.%I', n.nspname, p.proname), 'leakproof', p.proleakproof,
             'arguments', coalesce((select jsonb_agg(t.typname order by a.n) from unnest(p.proargtypes) with ordinality a(oid, n) join pg_type t on t.oid = a.oid
                           where a.n <= p.pronargs - p.pronargdefaults), '[]'))::text
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'tenancy', 'tenancy_guard', 'tenancy_private')
       and p.prokind = 'f' and (p.prosecdef or p.proleakproof) and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
       and has_function_privilege((select oid from pg_roles where rolname = $1), p.oid, 'execute')
       and has_schema_privilege((select oid from pg_roles where rolname = $1), n.oid, 'usage')
       and not exists (select from pg_depend e where e.classid = 'pg_proc'::regclass and e.objid = p.oid and e.deptype = 'e')
     order by 1";

/// From each materialized view along the relations that views select from.
const STORED: &str = "
    with recursive uses(top, rel) as (
      select c.oid, c.oid from pg_class c where c.relkind = 'm'
      union
      select u.top, d.refobjid from uses u join pg_rewrite w on w.ev_class = u.rel
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass)
    select distinct top::bigint, rel::bigint from uses";

/// Reads the catalogs, on an administrative connection.
pub(super) async fn read(conn: &mut PgConnection, roles: &Roles, app: &str) -> Result<Facts> {
    let mut tx = conn.begin().await.map_err(from_sqlx)?;
    // Types and expressions print with their schemas.
    tx.execute("set local search_path = pg_catalog").await.map_err(from_sqlx)?;
    let one = |sql: &'static str| sqlx::query_scalar::<_, String>(sql).persistent(false);
    let relations = one(include_str!("facts.sql")).bind(app).bind(roles.admin()).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
    let relations: Vec<Relation> = parse(&relations)?;
    let functions = parse(&one(FUNCTIONS).bind(app).fetch_all(&mut *tx).await.map_err(from_sqlx)?)?;
    let mut types = Types::new();
    for row in sqlx::query(TYPES).persistent(false).fetch_all(&mut *tx).await.map_err(from_sqlx)? {
        let doc: String = row.try_get("doc").map_err(from_sqlx)?;
        let ty: Vec<PgType> = parse(&[doc])?;
        types.extend(ty.into_iter().map(|ty| (row.get::<i64, _>("oid"), ty)));
    }
    let uses: Vec<(i64, i64)> = sqlx::query_as(STORED).persistent(false).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
    let owned = |rel: i64| relations.iter().any(|relation| relation.oid == rel && relation.tenant.is_some());
    let stored = uses.into_iter().filter(|(_, rel)| owned(*rel)).map(|(top, _)| top).collect();
    let roles = "select quote_ident(rolname), rolsuper or rolbypassrls or rolname in ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
                      or exists (select from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' where c.relowner = r.oid and c.relkind in ('r', 'p'))
                   from pg_roles r where rolname <> $1 order by 1 limit 300";
    let roles = sqlx::query_as(roles).persistent(false).bind(app).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
    let large = "select oid::bigint from pg_largeobject_metadata order by oid limit 100";
    let large_objects = sqlx::query_scalar(AssertSqlSafe(large)).persistent(false).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
    tx.rollback().await.map_err(from_sqlx)?;
    Ok(Facts { relations, functions, types, stored, roles, large_objects })
}

fn parse<T: DeserializeOwned>(documents: &[String]) -> Result<Vec<T>> {
    let broken = |e| Error::new(ErrorKind::Internal, "the catalogs could not be read").with_source(e);
    documents.iter().map(|document| serde_json::from_str(document).map_err(broken)).collect()
}
