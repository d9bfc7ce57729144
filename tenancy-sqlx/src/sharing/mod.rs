//! Sharing between tenants, and by links. PostgreSQL itself refuses what is not shared: no policy of a tenant's table is widened.
//!
//! A table becomes shareable by one line of its migration: `CALL tenancy.share_table('documents', 'document')`. That makes the views
//! `tenancy_views.documents` (what is shared with the transaction's tenant) and `tenancy_views.documents_link` (what a link shows).
//! `docs/sharing.md` has the whole story.
//!
//! ```no_run
//! # use tenancy_core::{Result, TenantContext, TenantId};
//! # use tenancy_core::share::{NewShare, Perms, ResourceRef};
//! # async fn share(db: tenancy_sqlx::TenantDb, owner: TenantContext, target: TenantContext, id: uuid::Uuid) -> Result<()> {
//! let mut tx = db.begin(&owner).await?;
//! let share = tx.offer_share(&owner, &NewShare::new(ResourceRef::new("document", id)?, target.tenant_id(), Perms::Read)).await?;
//! tx.commit().await?;
//!
//! let mut tx = db.begin(&target).await?;
//! tx.accept_share(&target, share.id).await?;
//! tx.commit().await?;
//!
//! let (mut tx, _granted) = db.read_shared(&target, share.id).await?;
//! let title: String = sqlx::query_scalar("select title from tenancy_views.documents").fetch_one(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
//! # Ok(()) }
//! ```

use sqlx::postgres::{PgDatabaseError, PgRow};
use sqlx::{FromRow, Row};
use tenancy_core::share::{PlatformSharing, SharingPolicy};
use tenancy_core::{AuditEvent, Error, ErrorKind, Principal, Result, Role, TenantContext, TenantId};

use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

pub(crate) mod count;
mod links;
mod shares;

#[cfg(feature = "federation")]
pub(crate) use links::check_ticket;
pub use links::{ForLink, LinkTx, OpenedLink, ReadyLink};
pub use shares::{Direction, Granted};

/// SQL for the newest rows of a shareable table, a tenant's own and those shared with it, in one list.
///
/// - `table`: its name, in `public`; `columns`: what is wanted of it, after `share_id` and `share_perms` (null for own rows); `key`: the
///   columns that order it, all descending, for instance `created_at, id`.
/// - Parameters: `$1` is the most rows; `$2` and on are the last row's `key`, of the page before.
///
/// Both branches are limited on their own: the tenant's own list costs what it did, whatever is shared.
///
/// Run it in a transaction of [`read_with_shares`](crate::TenantDb::read_with_shares).
pub fn own_and_shared(table: &str, columns: &str, key: &str) -> String {
    let keys = key.split(',').count();
    let after = (2..2 + keys).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
    let order = key.split(',').map(|column| format!("{} desc", column.trim())).collect::<Vec<_>>().join(", ");
    let rest = format!("({key}) < ({after}) order by {order} limit $1");
    format!(
        "(select null::uuid as share_id, null::text as share_perms, {columns} from {table} where tenant_id = tenancy.current_tenant() and {rest})
         union all (select share_id, share_perms, {columns} from tenancy_views.{table} where {rest})
         order by {order} limit $1"
    )
}

/// Who asks, for shares that are for some members only. Goes into a message of ours.
pub(crate) fn audience(cx: &TenantContext) -> String {
    let (subject, role) = match cx.principal() {
        Principal::Member { subject, role } => (subject.as_str(), role.as_str()),
        _ => ("", ""),
    };
    format!("SET LOCAL tenancy.subject = {}; SET LOCAL tenancy.role = '{role}'", literal(subject))
}

/// `text` as a literal that no setting of the session reads otherwise.
pub(crate) fn literal(text: &str) -> String {
    let mut quoted = String::from("E'");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            quoted.push(byte.into());
        } else {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    quoted.push('\'');
    quoted
}

/// What the functions of `0009_sharing.sql` and `0015_federation.sql` refuse, in words.
pub(crate) fn refused(error: sqlx::Error) -> Error {
    let sqlx::Error::Database(db) = &error else { return from_sqlx(error) };
    let detail = db.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail).unwrap_or_default().to_owned();
    let answer = match db.code().as_deref() {
        Some("TN010") => match detail.as_str() {
            "platform" => Error::new(ErrorKind::Forbidden, "sharing is switched off on this platform"),
            "type" => Error::invalid("resource", "is of a type that may not be shared: an admin can allow it in the sharing policy"),
            _ => Error::new(ErrorKind::Forbidden, "the sharing policy does not allow this: an admin can change it"),
        },
        Some("TN011") if detail == "past" => Error::invalid("expires_at", "is over already"),
        Some("TN011") => Error::invalid("expires_at", "is later than the sharing policy allows"),
        // Nobody learns which of these it is.
        Some("TN012") => Error::invalid("target", "there is no such tenant, or it can't be offered anything"),
        Some("TN013") => Error::new(ErrorKind::Conflict, format!("this can't be done: the share is {detail}")),
        Some("TN014") => Error::invalid("types", format!("there is no type {detail}")),
        Some("TN015") => Error::new(ErrorKind::VersionMismatch, "it has changed since it was read: read it again"),
        Some("TN016") => Error::invalid("peer", "there is no such installation: an operator can add it"),
        Some("P0002") => Error::not_found(),
        Some("23505") => Error::new(ErrorKind::Conflict, "this is shared with that tenant already"),
        _ => return from_sqlx(error),
    };
    answer.with_source(error)
}

/// Sharing is for admins.
pub(crate) fn admin(tx: &TenantTx, by: &TenantContext) -> Result<()> {
    tx.same_tenant(by)?;
    by.require(Role::Admin)
}

struct Policy(SharingPolicy);

impl FromRow<'_, PgRow> for Policy {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let mut policy = SharingPolicy::default();
        policy.offers = row.try_get("offers")?;
        policy.accepts = row.try_get("accepts")?;
        policy.links = row.try_get("links")?;
        policy.types = row.try_get("types")?;
        let targets: Option<Vec<uuid::Uuid>> = row.try_get("targets")?;
        policy.targets = targets.map(|all| all.into_iter().map(TenantId::from_uuid).collect::<Result<_>>()).transpose().map_err(decode)?;
        policy.max_lifetime_seconds = row.try_get::<Option<i64>, _>("seconds")?.and_then(|seconds| seconds.try_into().ok());
        policy.version = row.try_get::<i64, _>("version")?.try_into().unwrap_or_default();
        Ok(Self(policy))
    }
}

const POLICY: &str = "offers, accepts, links, types, targets, extract(epoch from max_lifetime)::bigint as seconds, version";

impl TenantTx {
    /// What this tenant lets its admins share.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn sharing_policy(&mut self) -> Result<SharingPolicy> {
        let query = format!("select {POLICY} from tenancy.sharing_policies where tenant_id = $1");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(self.tenant_id().as_uuid());
        Ok(query.fetch_optional(self).await.map_err(from_sqlx)?.map(|Policy(policy)| policy).unwrap_or_default())
    }

    /// Sets it, if it is of the version `expected`, when one is given. Shares that it no longer allows show nothing from then on, and show
    /// again what they did if it allows them again.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin; [`Invalid`](ErrorKind::Invalid),
    /// [`VersionMismatch`](ErrorKind::VersionMismatch).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn set_sharing_policy(&mut self, by: &TenantContext, policy: &SharingPolicy, expected: Option<u64>) -> Result<SharingPolicy> {
        admin(self, by)?;
        if policy.types.len() > 100 {
            return Err(Error::invalid("types", "must be at most 100"));
        }
        if policy.targets.as_ref().is_some_and(|targets| targets.len() > 1000) {
            return Err(Error::invalid("targets", "must be at most 1000"));
        }
        if policy.max_lifetime_seconds == Some(0) {
            return Err(Error::invalid("max_lifetime_seconds", "must be at least 1, or be left out"));
        }
        let query = format!("select {POLICY} from tenancy.sharing_set($1, $2, $3, $4, $5, make_interval(secs => $6), $7, $8, $9, $10)");
        let actor = by.principal().actor();
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(policy.offers)
            .bind(policy.accepts)
            .bind(policy.links)
            .bind(&policy.types)
            .bind(policy.targets.as_ref().map(|targets| targets.iter().map(|target| target.as_uuid()).collect::<Vec<_>>()))
            .bind(policy.max_lifetime_seconds.map(f64::from))
            // One that was never set has a row of version 1 by the time it is compared.
            .bind(expected.map(|version| version.max(1).cast_signed()))
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        query.fetch_one(self).await.map(|Policy(policy)| policy).map_err(refused)
    }
}

impl SystemTx {
    /// What the platform lets tenants share.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn platform_sharing(&mut self) -> Result<PlatformSharing> {
        let query = sqlx::query("select enabled, links, extract(epoch from max_lifetime)::bigint as seconds from tenancy.sharing_platform");
        let row = query.fetch_one(self).await.map_err(from_sqlx)?;
        let read = || -> sqlx::Result<PlatformSharing> {
            let mut platform = PlatformSharing::default();
            platform.enabled = row.try_get("enabled")?;
            platform.links = row.try_get("links")?;
            platform.max_lifetime_seconds = row.try_get::<Option<i64>, _>("seconds")?.and_then(|seconds| seconds.try_into().ok());
            Ok(platform)
        };
        read().map_err(from_sqlx)
    }

    /// Sets it, for all tenants and from the next statement on.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn set_platform_sharing(&mut self, platform: &PlatformSharing) -> Result<()> {
        let query = sqlx::query(
            "update tenancy.sharing_platform set enabled = $1, links = $2, max_lifetime = make_interval(secs => $3), updated_at = clock_timestamp()",
        );
        let query = query.bind(platform.enabled).bind(platform.links).bind(platform.max_lifetime_seconds.map(f64::from));
        query.execute(&mut *self).await.map_err(from_sqlx)?;
        let mut event = AuditEvent::new(self.actor().clone(), "sharing.platform", "sharing");
        event.detail = serde_json::json!(platform);
        self.audit(&event).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_has_nothing_that_could_end_it() {
        assert_eq!(literal("a'b\\c"), "E'a\\x27b\\x5cc'");
        assert_eq!(literal(""), "E''");
    }

    #[test]
    fn both_branches_of_a_list_are_limited() {
        let sql = own_and_shared("documents", "id, title", "created_at, id");
        assert_eq!(sql.matches("(created_at, id) < ($2, $3) order by created_at desc, id desc limit $1").count(), 2);
        assert!(sql.trim_end().ends_with("order by created_at desc, id desc limit $1"));
    }
}
