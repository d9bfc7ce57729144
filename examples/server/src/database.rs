//! Which database, and bringing it up to date.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Row as _};
use tenancy_core::{Error, ErrorKind, Result};
#[cfg(unix)]
use tenancy_sqlx::embedded;
use tenancy_sqlx::isolation::{Finding, inspect};
use tenancy_sqlx::{Options, Refusal, Refused, Roles, Schema, TenantDb, from_sqlx};

use crate::config::{Config, given};

/// The tables of the tenants' domain.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

const EMBEDDED_DATABASE: &str = "tenancy_server";

/// The database that the settings name: the embedded one runs for as long as this value lives.
#[derive(Debug)]
pub struct Database {
    app_url: String,
    admin_url: Option<String>,
    #[cfg(unix)]
    embedded: Option<embedded::Server>,
}

impl Database {
    /// Takes the URLs of `config`, or starts the embedded PostgreSQL in its data folder.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured): contradicting settings, or no PostgreSQL to run;
    /// [`Unavailable`](ErrorKind::Unavailable) if it does not start.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn from_config(config: &Config) -> Result<Self> {
        config.check()?;
        match given(&config.database_url) {
            Some(url) => Ok(Self {
                app_url: url.to_owned(),
                admin_url: given(&config.admin_database_url).map(str::to_owned),
                #[cfg(unix)]
                embedded: None,
            }),
            None => Self::embedded(config).await,
        }
    }

    #[cfg(unix)]
    async fn embedded(config: &Config) -> Result<Self> {
        let server = embedded::start(embedded::Options::new(config.data_dir.join("postgres"))).await?;
        server.ensure_database(EMBEDDED_DATABASE).await?;
        Ok(Self {
            app_url: server.url(&Roles::default().app(), EMBEDDED_DATABASE),
            admin_url: Some(server.url("postgres", EMBEDDED_DATABASE)),
            embedded: Some(server),
        })
    }

    #[cfg(not(unix))]
    #[expect(clippy::unused_async, reason = "as on Unix")]
    async fn embedded(_config: &Config) -> Result<Self> {
        Err(Error::new(
            ErrorKind::Misconfigured,
            "there is no embedded PostgreSQL on this system: set DATABASE_URL and TENANCY_ADMIN_DATABASE_URL",
        ))
    }

    /// One line about the embedded server, if it is used.
    pub fn notice(&self) -> Option<String> {
        #[cfg(unix)]
        return self.embedded.as_ref().map(ToString::to_string);
        #[cfg(not(unix))]
        None
    }

    /// Whether the database is this program's own, which nobody else migrates.
    pub fn is_embedded(&self) -> bool {
        self.notice().is_some()
    }

    /// Whether there are administrative credentials.
    pub fn has_admin(&self) -> bool {
        self.admin_url.is_some()
    }

    /// Brings roles, the kit's schema and the domain's tables up to date. Safe on many nodes at once.
    ///
    /// # Returns
    /// Statements that an administrator must still run; empty when all is well.
    ///
    /// # Errors
    /// Those of [`Schema::migrate`] and [`Schema::apply`]; [`Misconfigured`](ErrorKind::Misconfigured) without administrative credentials.
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        let url = self
            .admin_url
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: set TENANCY_ADMIN_DATABASE_URL"))?;
        let mut schema = Schema::connect(url, Roles::default()).await.map_err(|e| about("TENANCY_ADMIN_DATABASE_URL", e))?;
        let left = schema.migrate().await?;
        schema.apply(&MIGRATIONS).await?;
        Ok(left)
    }

    /// Opens the database for serving.
    ///
    /// # Errors
    /// Those of [`TenantDb::open`]; [`Misconfigured`](ErrorKind::Misconfigured) if a migration of the domain is missing.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(&self, config: &Config) -> Result<TenantDb> {
        let db = self.open_any(config).await?;
        let (has, needs) = (self.domain_version().await?, required_version());
        if has != Some(needs) {
            let has = has.map_or_else(|| "none".to_owned(), |version| version.to_string());
            let why = format!(
                "the database has version {has} of the server's tables and this server needs {needs}: \
                 migrate first (set TENANCY_ADMIN_DATABASE_URL and run tenancy-server migrate)"
            );
            return Err(Error::new(ErrorKind::Misconfigured, why));
        }
        Ok(db)
    }

    /// Opens it for one piece of work. Closed, so that no fence waits for what this process might still serve.
    pub(crate) async fn with<T>(&self, config: &Config, work: impl AsyncFnOnce(&TenantDb) -> Result<T>) -> Result<T> {
        let db = self.open(config).await?;
        let done = work(&db).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), db.close()).await;
        done
    }

    /// How it is opened.
    pub(crate) fn options(&self, config: &Config) -> Result<Options> {
        let options = Options::new(&self.app_url).map_err(|e| about("DATABASE_URL", e))?.with_max_connections(config.max_connections);
        match &self.admin_url {
            Some(url) => options.with_admin_url(url).map_err(|e| about("TENANCY_ADMIN_DATABASE_URL", e)),
            None => Ok(options),
        }
    }

    /// Opens the database of any service.
    pub(crate) async fn open_any(&self, config: &Config) -> Result<TenantDb> {
        TenantDb::open(self.options(config)?).await.map_err(|e| {
            let refused = std::error::Error::source(&e).and_then(|source| source.downcast_ref::<Refused>());
            let old = refused.is_some_and(|refused| refused.refusals().any(|(refusal, _)| refusal == Refusal::SchemaVersion));
            about(
                if old {
                    "to migrate, set TENANCY_ADMIN_DATABASE_URL and run tenancy-server migrate; DATABASE_URL"
                } else {
                    "DATABASE_URL"
                },
                e,
            )
        })
    }

    /// What the checker finds, about the role `app`. It asks as the administrator if there is one, and works on a database that can't be opened
    /// for serving.
    ///
    /// # Errors
    /// Those of [`inspect`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn inspect(&self, app: &str) -> Result<Vec<Finding>> {
        let (variable, url) = match &self.admin_url {
            Some(url) => ("TENANCY_ADMIN_DATABASE_URL", url),
            None => ("DATABASE_URL", &self.app_url),
        };
        let mut conn = sqlx::PgConnection::connect(url).await.map_err(|e| about(variable, from_sqlx(e)))?;
        inspect(&mut conn, &Roles::default(), app).await.map_err(|e| about(variable, e))
    }

    /// The user of `DATABASE_URL`, if it has one.
    pub(crate) fn login(&self) -> Option<String> {
        let options: PgConnectOptions = self.app_url.parse().ok()?;
        Some(options.get_username().to_owned())
    }

    /// The newest migration of the domain that the database has.
    pub(crate) async fn domain_version(&self) -> Result<Option<i64>> {
        let mut conn = sqlx::PgConnection::connect(&self.app_url).await.map_err(|e| about("DATABASE_URL", from_sqlx(e)))?;
        let there = "select coalesce(has_table_privilege(to_regclass('_sqlx_migrations')::oid, 'select'), false)";
        if !value::<bool>(&mut conn, there).await? {
            return Ok(None);
        }
        value(&mut conn, "select max(version) from _sqlx_migrations where success").await
    }

    /// What the server calls itself.
    pub(crate) async fn server_version(&self) -> Result<String> {
        let mut conn = sqlx::PgConnection::connect(&self.app_url).await.map_err(|e| about("DATABASE_URL", from_sqlx(e)))?;
        value(&mut conn, "show server_version").await
    }
}

/// The newest migration of the domain that this program has.
pub(crate) fn required_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The one value that a statement gives. In one message, without a prepared statement: behind a pooler the next message may go to another
/// server connection, which does not know it.
async fn value<T>(conn: &mut sqlx::PgConnection, sql: &'static str) -> Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let row = sqlx::raw_sql(sql).fetch_one(conn).await.map_err(from_sqlx)?;
    row.try_get(0).map_err(from_sqlx)
}

/// Says which setting a wrong URL or login comes from.
fn about(variable: &str, error: Error) -> Error {
    if error.kind() == ErrorKind::Misconfigured || error.kind() == ErrorKind::Unavailable {
        Error::new(error.kind(), format!("{variable}: {}", error.message())).with_source(error)
    } else {
        error
    }
}
