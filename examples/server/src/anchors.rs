//! The audit log is sealed once a second, and the ends of its chains are kept where the database's administrators have no business: in
//! the object store, at `audit-anchors/<tenant's id, or platform>/<n>.json`, each written once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::audit::{Head, Sealer};
use tokio::task::JoinHandle;

const FOLDER: &str = "audit-anchors";
const EVERY: Duration = Duration::from_secs(1);

/// The task that seals: it ends when this is dropped, and may end at any point.
#[derive(Debug)]
pub(crate) struct Sealing(JoinHandle<()>);

impl Sealing {
    pub(crate) fn start(db: &TenantDb, store: Arc<dyn ObjectStore>) -> Self {
        let sealer = Sealer::new(db);
        Self(tokio::spawn(async move {
            // Heads that are not anchored yet: at the start all of them, since whoever sealed last may have been stopped in between.
            let mut due: BTreeMap<String, Head> = BTreeMap::new();
            let mut knows_all = false;
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Err(error) = round(&sealer, store.as_ref(), &mut due, &mut knows_all).await {
                    tracing::warn!(?error, "the audit log was not sealed or anchored: it will be tried again");
                }
            }
        }))
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn round(sealer: &Sealer, store: &dyn ObjectStore, due: &mut BTreeMap<String, Head>, knows_all: &mut bool) -> Result<()> {
    let heads = if *knows_all {
        sealer.seal().await?.heads
    } else {
        sealer.seal().await?;
        sealer.heads().await?
    };
    *knows_all = true;
    due.extend(heads.into_iter().map(|head| (head.chain(), head)));
    while let Some((chain, head)) = due.first_key_value().map(|(chain, head)| (chain.clone(), *head)) {
        keep(store, &head).await?;
        due.remove(&chain);
    }
    Ok(())
}

/// Writes an anchor, unless there is one of this place: what is anchored is never replaced.
async fn keep(store: &dyn ObjectStore, head: &Head) -> Result<()> {
    let text =
        serde_json::to_vec(head).map_err(|source| Error::new(ErrorKind::Internal, "an anchor can't be written").with_source(source))?;
    let path = Path::from_iter([FOLDER, &head.chain(), &format!("{}.json", head.n)]);
    match store.put_opts(&path, text.into(), PutOptions::from(PutMode::Create)).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(source) => Err(away(source)),
    }
}

/// The farthest anchor of each chain: if it holds, all before it do.
pub(crate) async fn read(store: &dyn ObjectStore) -> Result<Vec<Head>> {
    let mut farthest: BTreeMap<String, (i64, Path)> = BTreeMap::new();
    let mut listing = store.list(Some(&Path::from(FOLDER)));
    while let Some(object) = listing.try_next().await.map_err(away)? {
        let parts: Vec<_> = object.location.parts().map(|part| part.as_ref().to_owned()).collect();
        let [_, chain, file] = parts.as_slice() else { continue };
        let Some(n) = file.strip_suffix(".json").and_then(|n| n.parse().ok()) else { continue };
        let last = farthest.entry(chain.clone()).or_insert((n, object.location.clone()));
        if last.0 < n {
            *last = (n, object.location);
        }
    }
    let mut heads = Vec::with_capacity(farthest.len());
    for (chain, (n, path)) in farthest {
        let bytes = store.get(&path).await.map_err(away)?.bytes().await.map_err(away)?;
        let head: Head = serde_json::from_slice(&bytes)
            .ok()
            .filter(|head: &Head| head.n == n && head.chain() == chain)
            .ok_or_else(|| Error::new(ErrorKind::Misconfigured, format!("{path} is not an anchor of the audit log")))?;
        heads.push(head);
    }
    Ok(heads)
}

fn away(source: object_store::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the anchors of the audit log can't be reached").with_source(source)
}
