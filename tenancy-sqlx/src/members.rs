//! The people of a tenant: each change with its audit event and its seat, in the caller's transaction.

use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use tenancy_core::quota::Metric;
use tenancy_core::{AuditEvent, Email, Error, ErrorKind, Member, MemberChange, NewMember, Result, Role, Standing, Subject, TenantContext};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::TenantTx;

const COLUMNS: &str = "id, subject, email, name, role, scopes, created_at, updated_at, version";

/// A row of `tenancy.members` that is active.
struct Active(Member);

impl FromRow<'_, PgRow> for Active {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let email = row.try_get::<&str, _>("email")?.parse().map_err(decode)?;
        let role = row.try_get::<&str, _>("role")?.parse().map_err(decode)?;
        let mut member = Member::new(row.try_get("id")?, email, row.try_get("name")?, role, row.try_get("created_at")?);
        member.subject = row.try_get::<Option<&str>, _>("subject")?.map(str::parse).transpose().map_err(decode)?;
        member.scopes = row.try_get("scopes")?;
        member.updated_at = row.try_get("updated_at")?;
        member.version = u64::try_from(row.try_get::<i64, _>("version")?).unwrap_or_default();
        Ok(Self(member))
    }
}

impl TenantTx {
    /// Adds a member, who takes a seat of [`Metric::USERS`]. A subject that was removed is a member again, with their former id.
    /// Call it last before the commit: the level stays locked until then.
    ///
    /// # Errors
    /// - Those of [`NewMember::permit`]; [`Conflict`](ErrorKind::Conflict): the address or the subject is a member's.
    /// - [`QuotaExceeded`](ErrorKind::QuotaExceeded): there is no seat. Nobody was added, and the transaction can go on.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn add_member(&mut self, by: &TenantContext, new: &NewMember) -> Result<Member> {
        self.same_tenant(by)?;
        new.permit(by.principal())?;
        let mut part = self.savepoint().await?;
        let sql = format!(
            "insert into tenancy.members as m (tenant_id, id, subject, email, name, role, scopes) values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (tenant_id, subject) where subject is not null do update set email = excluded.email, name = excluded.name,
               role = excluded.role, scopes = excluded.scopes, status = 'active', updated_at = now(), version = m.version + 1
              where m.status = 'removed' returning {COLUMNS}"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(part.tenant_id().as_uuid())
            .bind(Uuid::now_v7())
            .bind(new.subject.as_ref().map(Subject::as_str))
            .bind(new.email.as_str())
            .bind(&new.name)
            .bind(new.role.as_str())
            .bind(&new.scopes);
        let taken = || Error::new(ErrorKind::Conflict, "a member has this address or subject already");
        let added: Option<Active> = query.fetch_optional(&mut *part).await.map_err(|error| {
            let error = from_sqlx(error);
            if error.kind() == ErrorKind::Conflict { taken().with_source(error) } else { error }
        })?;
        let Active(member) = added.ok_or_else(taken)?;
        part.audit(event(by, "member.add", &member)).await?;
        part.grow(Metric::USERS, 1).await?;
        part.release().await?;
        Ok(member)
    }

    /// A member, if there is one of this id.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn member(&mut self, id: Uuid) -> Result<Option<Member>> {
        let sql = format!("select {COLUMNS} from tenancy.members where tenant_id = $1 and id = $2 and status = 'active'");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        Ok(query.fetch_optional(self).await.map_err(from_sqlx)?.map(|Active(member)| member))
    }

    /// At most `limit` members with ids before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn members(&mut self, before: Uuid, limit: i64) -> Result<Vec<Member>> {
        let sql = format!(
            "select {COLUMNS} from tenancy.members where tenant_id = $1 and id < $2 and status = 'active' order by id desc limit $3"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Active(member)| member).collect())
    }

    /// The addresses of up to `limit` admins and owners, those who were members first before others.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn admin_addresses(&mut self, limit: i64) -> Result<Vec<Email>> {
        let query = sqlx::query_scalar(
            "select email from tenancy.members where tenant_id = $1 and status = 'active' and role in ('admin', 'owner') order by id limit $2",
        );
        let found: Vec<String> = query.bind(self.tenant_id().as_uuid()).bind(limit).fetch_all(self).await.map_err(from_sqlx)?;
        found.into_iter().map(Email::try_from).collect()
    }

    /// Changes a member who is of the version `expected`, if one is given.
    ///
    /// # Errors
    /// Those of [`Member::permit_change`]; [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn update_member(&mut self, by: &TenantContext, id: Uuid, change: &MemberChange, expected: Option<u64>) -> Result<Member> {
        let (found, other_owners) = self.lock_member(by, id, expected).await?;
        found.permit_change(change, by.principal(), other_owners)?;
        let sql = format!(
            "update tenancy.members set name = $3, role = $4, scopes = $5, updated_at = now(), version = version + 1
              where tenant_id = $1 and id = $2 returning {COLUMNS}"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(self.tenant_id().as_uuid())
            .bind(id)
            .bind(change.name.as_ref().unwrap_or(&found.name))
            .bind(change.role.unwrap_or(found.role).as_str())
            .bind(change.scopes.as_ref().unwrap_or(&found.scopes));
        let Active(member) = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        self.audit(event(by, "member.update", &member)).await?;
        Ok(member)
    }

    /// Removes a member who is of the version `expected`, if one is given, and frees their seat. What stays is a row without address and
    /// name, which refuses their tokens. Call it last before the commit, as [`add_member`](TenantTx::add_member).
    ///
    /// # Errors
    /// Those of [`Member::permit_removal`]; [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn remove_member(&mut self, by: &TenantContext, id: Uuid, expected: Option<u64>) -> Result<()> {
        let (mut found, other_owners) = self.lock_member(by, id, expected).await?;
        found.permit_removal(by.principal(), other_owners)?;
        let query = sqlx::query(
            "update tenancy.members set status = 'removed', email = null, name = '', scopes = null, updated_at = now(), version = version + 1
              where tenant_id = $1 and id = $2",
        );
        query.bind(self.tenant_id().as_uuid()).bind(id).execute(&mut *self).await.map_err(from_sqlx)?;
        found.version += 1;
        self.audit(event(by, "member.remove", &found)).await?;
        self.shrink(Metric::USERS, 1).await?;
        Ok(())
    }

    /// What the members say of `subject`, who may be named by their id as well: an id comes before a subject that looks like it.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn member_standing(&mut self, subject: &Subject) -> Result<Standing> {
        let sql = "select id, status, role, scopes from tenancy.members where tenant_id = $1 and (id = $2 or subject = $3)
                    order by id is not distinct from $2 desc limit 1";
        let query = sqlx::query(sql)
            .bind(self.tenant_id().as_uuid())
            .bind(Uuid::try_parse(subject.as_str()).ok().filter(|id| id.to_string() == subject.as_str()))
            .bind(subject.as_str());
        let Some(row) = query.fetch_optional(self).await.map_err(from_sqlx)? else { return Ok(Standing::Unknown) };
        let read = || -> sqlx::Result<Standing> {
            let role: Role = row.try_get::<&str, _>("role")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            Ok(match row.try_get("status")? {
                "active" => Standing::Active { id: row.try_get("id")?, role, scopes: row.try_get("scopes")? },
                _ => Standing::Removed,
            })
        };
        read().map_err(from_sqlx)
    }

    /// The member, with how many other owners there are. All of these rows are locked, in the order of their ids: of two transactions that
    /// would each leave the other's owner as the last, the second sees what the first did.
    async fn lock_member(&mut self, by: &TenantContext, id: Uuid, expected: Option<u64>) -> Result<(Member, usize)> {
        self.same_tenant(by)?;
        let sql = format!(
            "select {COLUMNS} from tenancy.members where tenant_id = $1 and status = 'active' and (id = $2 or role = 'owner')
              order by id for update"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        let (found, others): (Vec<Member>, Vec<Member>) =
            query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Active(member)| member).partition(|member| member.id == id);
        let found = found.into_iter().next().ok_or_else(Error::not_found)?;
        if expected.is_some_and(|version| version != found.version) {
            return Err(Error::new(ErrorKind::VersionMismatch, "it has changed since it was read: read it again"));
        }
        Ok((found, others.len()))
    }

    /// Whoever acts belongs to this transaction's tenant.
    pub(crate) fn same_tenant(&self, by: &TenantContext) -> Result<()> {
        if by.tenant_id() == self.tenant_id() { Ok(()) } else { Err(Error::not_found()) }
    }
}

/// Who they are stays out of the audit log, which nobody can change: the id is enough.
fn event(by: &TenantContext, action: &str, member: &Member) -> AuditEvent {
    let mut event = AuditEvent::new(by.principal().actor(), action, member.id.to_string());
    event.detail = json!({ "role": member.role, "scopes": member.scopes, "version": member.version });
    event.request_id = Some(by.request_id());
    event
}
