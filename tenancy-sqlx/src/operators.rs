//! The operators' rows: each change with its audit event, and who a token is of.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, NewOperator, Operator, OperatorChange, OperatorRole, Result, TokenDays};
use uuid::Uuid;

use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::SystemTx;

const COLUMNS: &str = "id, name, email, role, expires_at, last_used_at, disabled_at, created_at, updated_at, version";

struct Found(Operator);

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let email = row.try_get::<&str, _>("email")?.parse().map_err(decode)?;
        let role = row.try_get::<&str, _>("role")?.parse().map_err(decode)?;
        let new = NewOperator::new(row.try_get::<String, _>("name")?, email, role);
        let mut found = Operator::new(row.try_get("id")?, new, row.try_get("created_at")?, row.try_get("expires_at")?);
        found.last_used_at = row.try_get("last_used_at")?;
        found.disabled_at = row.try_get("disabled_at")?;
        found.updated_at = row.try_get("updated_at")?;
        found.version = u64::try_from(row.try_get::<i64, _>("version")?).unwrap_or_default();
        Ok(Self(found))
    }
}

impl TenantDb {
    /// The operator whose token this is, as of now: whoever is disabled, or whose token has ended or was replaced, is nobody.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) without [administrative credentials](crate::Options::with_admin_url);
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// Upholds I28. The look-up is by digest, so that the time it takes says nothing of a token.
    pub async fn operator_by_token(&self, token: &str) -> Result<Option<Operator>> {
        let Some(token) = Token::parse(Token::OPERATOR, token) else { return Ok(None) };
        let mut tx = begin_admin(self.inner(), Actor::System).await?;
        // The use is noted once a minute, and no request waits for another that notes it.
        let sql = format!(
            "with live as (select * from tenancy.operators where token_sha256 = $1 and disabled_at is null and expires_at > now()),
                  due as (select o.id from tenancy.operators o
                           where o.id in (select id from live) and coalesce(o.last_used_at < now() - interval '1 minute', true) for update skip locked),
                  noted as (update tenancy.operators o set last_used_at = now() from due where o.id = due.id returning o.id)
             select {COLUMNS}, exists (select from noted) as noted from live"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).bind(token.sha256().to_vec()).fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        let Some(row) = row else { return Ok(None) };
        let Found(operator) = Found::from_row(&row).map_err(from_sqlx)?;
        if row.try_get("noted").map_err(from_sqlx)? {
            tx.commit().await?;
        }
        Ok(Some(operator))
    }
}

impl SystemTx {
    /// Adds an operator, and gives their token: it can't be had later.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) names the field; [`Conflict`](ErrorKind::Conflict): an operator has this address.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn create_operator(&mut self, new: &NewOperator, now: DateTime<Utc>) -> Result<(Operator, Token)> {
        new.check()?;
        let token = Token::new(Token::OPERATOR)?;
        let sql = format!(
            "insert into tenancy.operators (id, name, email, role, token_sha256, expires_at) values ($1, $2, $3, $4, $5, $6) returning {COLUMNS}"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql))
            .bind(Uuid::now_v7())
            .bind(&new.name)
            .bind(new.email.as_str())
            .bind(new.role.as_str())
            .bind(token.sha256().to_vec())
            .bind(new.lasts.after(now));
        let Found(made) = query.fetch_one(&mut *self).await.map_err(taken)?;
        self.audit_operator("operator.create", &made).await?;
        Ok((made, token))
    }

    /// An operator, if there is one of this id.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn operator(&mut self, id: Uuid) -> Result<Option<Operator>> {
        let sql = format!("select {COLUMNS} from tenancy.operators where id = $1");
        let found = sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(self).await.map_err(from_sqlx)?;
        Ok(found.map(|Found(operator)| operator))
    }

    /// At most `limit` operators with ids before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn operators(&mut self, before: Uuid, limit: i64) -> Result<Vec<Operator>> {
        let sql = format!("select {COLUMNS} from tenancy.operators where id < $1 order by id desc limit $2");
        let found: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql)).bind(before).bind(limit).fetch_all(self).await.map_err(from_sqlx)?;
        Ok(found.into_iter().map(|Found(operator)| operator).collect())
    }

    /// Changes an operator who is of the version `expected`, if one is given. Whoever is disabled has no token any more, also when they are
    /// enabled again. `bootstrap`: by whoever has the bootstrap credential, or the database.
    ///
    /// # Errors
    /// Those of [`Operator::permit_change`]; [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch);
    /// [`Conflict`](ErrorKind::Conflict): another operator has this address.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn update_operator(&mut self, id: Uuid, change: &OperatorChange, expected: Option<u64>, bootstrap: bool) -> Result<Operator> {
        let (found, other_admins) = self.lock_operator(id, expected).await?;
        found.permit_change(change, other_admins, bootstrap)?;
        let disabled = change.disabled.unwrap_or(found.disabled_at.is_some());
        let sql = format!(
            "update tenancy.operators set name = $2, email = $3, role = $4, disabled_at = case when $5 then coalesce(disabled_at, now()) end,
                    token_sha256 = case when $5 then null else token_sha256 end, updated_at = now(), version = version + 1
              where id = $1 returning {COLUMNS}"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .bind(change.name.as_ref().unwrap_or(&found.name))
            .bind(change.email.as_ref().unwrap_or(&found.email).as_str())
            .bind(change.role.unwrap_or(found.role).as_str())
            .bind(disabled);
        let Found(changed) = query.fetch_one(&mut *self).await.map_err(taken)?;
        let goes = disabled && found.disabled_at.is_none();
        self.audit_operator(if goes { "operator.disable" } else { "operator.update" }, &changed).await?;
        Ok(changed)
    }

    /// Gives an operator another token; the one before is refused from the next request on, and what began with it is over.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch); [`Conflict`](ErrorKind::Conflict) if they are
    /// disabled.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn rotate_operator_token(
        &mut self,
        id: Uuid,
        lasts: TokenDays,
        expected: Option<u64>,
        now: DateTime<Utc>,
    ) -> Result<(Operator, Token)> {
        let (found, _) = self.lock_operator(id, expected).await?;
        if found.disabled_at.is_some() {
            return Err(Error::new(ErrorKind::Conflict, "the operator is disabled: enable them first"));
        }
        let token = Token::new(Token::OPERATOR)?;
        let sql = format!(
            "update tenancy.operators set token_sha256 = $2, token_at = clock_timestamp(), expires_at = $3, updated_at = now(), version = version + 1
              where id = $1 returning {COLUMNS}"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(token.sha256().to_vec()).bind(lasts.after(now));
        let Found(changed) = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        self.audit_operator("operator.token", &changed).await?;
        Ok((changed, token))
    }

    /// The operator, with how many other admins can sign in. All of these rows are locked, in the order of their ids: of two transactions
    /// that would each leave the other's admin as the last, the second sees what the first did.
    async fn lock_operator(&mut self, id: Uuid, expected: Option<u64>) -> Result<(Operator, usize)> {
        let sql = format!(
            "select {COLUMNS} from tenancy.operators
              where id = $1 or (role = '{}' and token_sha256 is not null and expires_at > now()) order by id for update",
            OperatorRole::Admin
        );
        let found: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_all(self).await.map_err(from_sqlx)?;
        let (found, others): (Vec<_>, Vec<_>) = found.into_iter().map(|Found(operator)| operator).partition(|operator| operator.id == id);
        let found = found.into_iter().next().ok_or_else(Error::not_found)?;
        if expected.is_some_and(|version| version != found.version) {
            return Err(Error::new(ErrorKind::VersionMismatch, "it has changed since it was read: read it again"));
        }
        Ok((found, others.len()))
    }

    /// Who they are stays out of the audit log, which nobody can change: the id is enough.
    async fn audit_operator(&mut self, action: &str, operator: &Operator) -> Result<()> {
        let detail = json!({ "role": operator.role, "version": operator.version });
        self.audit(&AuditEvent::new(self.actor().clone(), action, operator.id.to_string()).with_detail(detail)).await
    }
}

fn taken(error: sqlx::Error) -> Error {
    let error = from_sqlx(error);
    match error.kind() {
        ErrorKind::Conflict => Error::new(ErrorKind::Conflict, "an operator has this address already").with_source(error),
        _ => error,
    }
}
