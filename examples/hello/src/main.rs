//! Notes of many tenants, each under its own host name, in one table.
use axum::{Json, Router, extract::State, routing::get};
use tenancy_core::{Actor, NewTenant, TenantCatalog, TenantSlug};
use tenancy_sqlx::{Options, Roles, Schema, TenantDb, embedded, from_sqlx};
use tenancy_tower::axum::{CurrentTenant, Problem};
use tenancy_tower::{HostResolver, ResolveTenantLayer};

async fn list(State(db): State<TenantDb>, CurrentTenant(cx): CurrentTenant) -> Result<Json<Vec<String>>, Problem> {
    let mut tx = db.read(&cx).await?;
    Ok(Json(sqlx::query_scalar("select body from notes").fetch_all(&mut tx).await.map_err(from_sqlx)?))
}

async fn add(State(db): State<TenantDb>, CurrentTenant(cx): CurrentTenant, body: String) -> Result<(), Problem> {
    let mut tx = db.begin(&cx).await?;
    sqlx::query("insert into notes (body) values ($1)").bind(body).execute(&mut tx).await.map_err(from_sqlx)?;
    Ok(tx.commit().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = embedded::start(embedded::Options::new(".tenancy/hello")).await?;
    server.ensure_database("hello").await?;
    let (app_url, admin_url) = (server.url("tenancy_app", "hello"), server.url("postgres", "hello"));
    let mut schema = Schema::connect(&admin_url, Roles::default()).await?;
    schema.migrate().await?;
    schema.apply(&sqlx::migrate!()).await?;
    let db = TenantDb::open(Options::new(&app_url)?.with_admin_url(&admin_url)?).await?;
    let catalog = std::sync::Arc::new(db.catalog());
    for slug in ["acme", "globex"] {
        let slug: TenantSlug = slug.parse()?;
        if catalog.find(&slug.clone().into()).await?.is_none() {
            catalog.create(NewTenant::new(slug, "Hello").active(), &Actor::System).await?;
        }
    }
    let tenants = ResolveTenantLayer::new(catalog, HostResolver::new("localhost")?);
    let app = Router::new().route("/notes", get(list).post(add)).layer(tenants).with_state(db);
    axum::serve(tokio::net::TcpListener::bind("127.0.0.1:8080").await?, app).await.map_err(Into::into)
}
