//! `tenancy-server tenant …`: the operator's work on tenants, straight on the database.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::SubsecRound as _;
use clap::Subcommand;
use tenancy_core::{
    Actor, Clock as _, Email, Error, ErrorKind, NewInvite, NewTenant, Result, Role, SystemClock, Tenant, TenantCatalog as _, TenantChange,
    TenantHint, TenantId, TenantQuery, TenantSlug, TenantStatus,
};
use tenancy_sqlx::{PgCatalog, TenantDb};

use super::{erase, export, provision, say};
use crate::app::welcome;
use crate::config::{Config, text};
use crate::database::Database;
use crate::plans::{entitle, plans};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a tenant, which is active at once unless it is to be provisioned
    Create {
        /// The tenant's name in addresses: a DNS label of 3 to 40 characters
        slug: TenantSlug,
        /// The tenant's name for people [default: the slug]
        #[arg(long)]
        name: Option<String>,
        /// The plan: free, standard or unlimited
        #[arg(long, default_value = Tenant::DEFAULT_PLAN)]
        plan: String,
        /// It is to be provisioned: it is refused everywhere until then
        #[arg(long)]
        provisioning: bool,
        /// Who is invited to own it, by mail: links need TENANCY_PUBLIC_URL
        #[arg(long, value_name = "EMAIL")]
        owner: Option<Email>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Provision a tenant that was created with --provisioning: its quotas, its first rows; then it is active
    Provision {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON: the operation
        #[arg(long)]
        json: bool,
    },
    /// List tenants, the newest first
    List {
        /// Only those whose slug or name contains this
        #[arg(long)]
        search: Option<String>,
        /// Only those in this state [default: all but archived]
        #[arg(long)]
        status: Option<TenantStatus>,
        /// At most this many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Only those after this one: the `next` of the page before
        #[arg(long)]
        after: Option<TenantId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a tenant
    Show {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Suspend a tenant: it is refused everywhere, and nothing is removed
    Suspend {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Archive a tenant: it is refused everywhere, nothing is removed, and it may be erased
    Archive {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Export a tenant: its rows and objects as files that anybody can read
    Export {
        /// Slug or id
        tenant: TenantHint,
        /// The folder for the files: empty, or not there yet
        into: PathBuf,
        /// Rows as CSV [default: as NDJSON]
        #[arg(long)]
        csv: bool,
        /// Print JSON: the operation
        #[arg(long)]
        json: bool,
    },
    /// Erase an archived tenant: its rows and objects are gone for good
    Erase {
        /// Slug or id
        tenant: TenantHint,
        /// The tenant's slug, once more
        #[arg(long)]
        confirm: TenantSlug,
        /// Why, for the certificate
        #[arg(long, default_value = "asked for on the command line")]
        reason: String,
        /// Print JSON: the operation, whose `result` is the signed certificate
        #[arg(long)]
        json: bool,
    },
    /// Let a suspended tenant be served again
    Resume {
        /// Slug or id
        tenant: TenantHint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    let database = Database::from_config(config).await?;
    if !database.has_admin() {
        return Err(Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: set TENANCY_ADMIN_DATABASE_URL"));
    }
    if database.is_embedded() {
        database.migrate().await?;
    }
    let work = async |db: &TenantDb| match verb {
        Verb::Erase { tenant, confirm, reason, json } => erase::run(config, db, &tenant, &confirm, &reason, json).await,
        Verb::Export { tenant, into, csv, json } => export::run(config, db, &tenant, &into, csv, json).await,
        Verb::Provision { tenant, json } => provision::run(config, db, &tenant, json).await,
        verb => act(config, db, verb).await,
    };
    database.with(config, work).await
}

/// The invitation of an owner, whose link leads to the server.
fn invitation(config: &Config, slug: &TenantSlug, owner: Email) -> Result<NewInvite> {
    let url = text(&config.public_url).ok_or_else(|| {
        Error::new(ErrorKind::Misconfigured, "the mail would have no link: set TENANCY_PUBLIC_URL to where browsers reach the server")
    })?;
    Ok(NewInvite::new(owner, Role::Owner, welcome(url, slug)?))
}

async fn act(config: &Config, db: &TenantDb, verb: Verb) -> Result<ExitCode> {
    let (catalog, by) = (&db.catalog(), Actor::System);
    match verb {
        Verb::Create { slug, name, plan, provisioning, owner, json } => {
            let name = name.unwrap_or_else(|| slug.to_string());
            let owner = owner.map(|owner| invitation(config, &slug, owner)).transpose()?;
            let new = NewTenant::new(slug, name);
            let mut new = if provisioning { new } else { new.active() };
            new.plan = plan;
            plans().plan(&new.plan)?;
            let mut tx = db.dangerous().begin_system("create a tenant").await?;
            let now = SystemClock.now().trunc_subsecs(6);
            let tenant = tx.create_tenant(new, now).await?;
            if !provisioning {
                entitle(&mut tx, tenant.id, &tenant.plan).await?;
            }
            if let Some(owner) = owner {
                tx.invite_owner(tenant.id, &owner, now).await?;
            }
            tx.commit().await?;
            print(&tenant, json)?;
        }
        Verb::List { search, status, limit, after, json } => {
            let mut query = TenantQuery::default();
            (query.search, query.status, query.limit, query.after) = (search, status, limit, after);
            let page = catalog.list(&query, &by).await?;
            if json {
                say(serde_json::json!({ "items": page.tenants, "next": page.next }));
            } else {
                page.tenants.iter().for_each(|tenant| say(line(tenant)));
                if let Some(next) = page.next {
                    say(format_args!("there are more: --after {next}"));
                }
            }
        }
        Verb::Show { tenant, json } => print(&*find(catalog, &tenant).await?, json)?,
        Verb::Erase { .. } | Verb::Export { .. } | Verb::Provision { .. } => {}
        Verb::Archive { tenant, json } => go_to(catalog, &tenant, TenantStatus::Archived, &by, json).await?,
        Verb::Suspend { tenant, json } => go_to(catalog, &tenant, TenantStatus::Suspended, &by, json).await?,
        Verb::Resume { tenant, json } => go_to(catalog, &tenant, TenantStatus::Active, &by, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn find(catalog: &PgCatalog, hint: &TenantHint) -> Result<std::sync::Arc<Tenant>> {
    catalog.find(hint).await?.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no tenant {hint}")))
}

async fn go_to(catalog: &PgCatalog, hint: &TenantHint, to: TenantStatus, by: &Actor, json: bool) -> Result<()> {
    let found = find(catalog, hint).await?;
    if found.status == to {
        return print(&found, json);
    }
    if found.status == TenantStatus::Provisioning && to == TenantStatus::Active {
        return Err(Error::new(ErrorKind::Conflict, "the tenant is not provisioned yet: provision it"));
    }
    // The version that was read: whoever else changes it meanwhile is not overruled unseen.
    print(&*catalog.update(found.id, TenantChange::status(to), Some(found.version), by).await?, json)
}

fn print(tenant: &Tenant, json: bool) -> Result<()> {
    if json {
        let text =
            serde_json::to_string(tenant).map_err(|e| Error::new(ErrorKind::Internal, "the tenant can't be written").with_source(e))?;
        say(text);
    } else {
        say(line(tenant));
    }
    Ok(())
}

fn line(tenant: &Tenant) -> String {
    format!("{}  {:<10}  {:<20}  {}", tenant.id, tenant.status, tenant.slug, tenant.name)
}
