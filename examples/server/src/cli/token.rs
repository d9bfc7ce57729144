//! `tenancy-server token`: a token of a tenant, as an identity provider would issue it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use tenancy_core::{Clock as _, Error, ErrorKind, Result, Role, Subject, SystemClock, TenantCatalog as _, TenantHint};

use super::say;
use crate::config::Config;
use crate::credentials::signing_secret;
use crate::database::Database;

#[derive(Debug, Args)]
pub(super) struct Token {
    /// The tenant's slug or id
    #[arg(long)]
    tenant: TenantHint,
    /// viewer, member, admin or owner
    #[arg(long, default_value_t = Role::Member)]
    role: Role,
    /// Who it is for
    #[arg(long, default_value = "dev")]
    subject: Subject,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// A scope; may be given several times
    #[arg(long)]
    scope: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, token: Token) -> Result<ExitCode> {
    config.check()?;
    let (secret, _) = signing_secret(config)?;
    let database = Database::from_config(config).await?;
    if database.is_embedded() {
        database.migrate().await?;
    }
    let tenant = database.with(config, async |db| db.catalog().find(&token.tenant).await).await?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no tenant {}: create it with tenancy-server tenant create", token.tenant))
    })?;
    if let Some(bad) = token.scope.iter().find(|scope| scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(Error::invalid("scope", format!("{bad:?} is no scope: use visible ASCII characters")));
    }

    let now = SystemClock.now();
    let expires = chrono::TimeDelta::from_std(token.ttl).ok().and_then(|ttl| now.checked_add_signed(ttl));
    let expires = expires.ok_or_else(|| Error::invalid("ttl", "is too long"))?;
    let mut claims = json!({
        "iss": config.jwt_issuer,
        "aud": config.jwt_audience,
        "sub": token.subject,
        "tenant_id": tenant.id,
        "role": token.role,
        "iat": now.timestamp(),
        "exp": expires.timestamp(),
    });
    if !token.scope.is_empty() {
        claims["scope"] = token.scope.join(" ").into();
    }
    let signed = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.expose().as_bytes()))
        .map_err(|source| Error::new(ErrorKind::Internal, "the token can't be signed").with_source(source))?;
    if token.json {
        say(json!({ "token": signed, "tenant_id": tenant.id, "expires_at": expires }));
    } else {
        say(signed);
    }
    Ok(ExitCode::SUCCESS)
}
