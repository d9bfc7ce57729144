//! Object storage that is apart per tenant (feature `object-store`).
//!
//! [`TenantObjects`] knows where each tenant's objects are: under a prefix of one store, or in a bucket of their own.
//! [`TenantObjects::scope`] needs a [`TenantContext`] and gives a [`TenantStore`], which is an [`ObjectStore`] whose root is the tenant.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use std::sync::Arc;
//!
//! use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
//! use tenancy_core::objects::{TenantObjects, into_error, parse_path};
//! # use tenancy_core::TenantContext;
//! # fn context(slug: &str) -> TenantContext {
//! #     let now = std::time::SystemTime::UNIX_EPOCH.into();
//! #     let tenant = tenancy_core::Tenant::new(tenancy_core::NewTenant::new(slug.parse().unwrap(), slug).active(), now).unwrap();
//! #     TenantContext::establish(Arc::new(tenant).into_active().unwrap(), tenancy_core::Principal::Visitor)
//! # }
//!
//! let objects = TenantObjects::prefixed(Arc::new(InMemory::new()), Path::from("tenants"))?;
//! let (acme, globex) = (context("acme"), context("globex"));
//!
//! let path = parse_path("reports/2026.pdf")?;
//! objects.scope(&acme)?.put(&path, "acme's".into()).await.map_err(into_error)?;
//!
//! let error = objects.scope(&globex)?.get(&path).await.map_err(into_error).unwrap_err();
//! assert_eq!(error.kind(), tenancy_core::ErrorKind::NotFound);
//! # Ok::<(), tenancy_core::Error>(()) }).unwrap();
//! ```
//!
//! # What holds
//! - Every key that reaches the store below is `<root>/<tenant's UUID>/<path>` (or `<path>` in the tenant's own bucket), for reads, writes,
//!   lists, deletes, and both ends of copies and renames.
//! - A path is refused, and never repaired, unless it is plain: see [`parse_path`], which is for untrusted text. A [`TenantStore`] checks
//!   each [`Path`] again; it takes a separator that [`Path`] itself has encoded inside a segment, and no traversal.
//! - Prefixes are compared by whole segments. What a store lists beside the tenant's prefix is dropped.
//! - Paths in results are relative to the tenant. Errors are built anew: they name the tenant's own path, and nothing of the root, the
//!   bucket, the file system, an address or another tenant. The original goes to [`TenantObjects::on_error`] and nowhere else.
//! - Contents are given as a stream, also from a local file: an open file knows its full name.
//!
//! Extensions of requests and results are passed through as they are, between the host and its own store.
//!
//! # Local files
//! `LocalFileSystem` follows symbolic links, also out of its root. This module makes none and can't see them: give the root folder to
//! the service's user alone, and never unpack archives into it by other means. On a file system an object can't also be a
//! folder: where `a` is an object, `a/b` answers as one that already exists to writes, and as absent to reads. On a
//! case-insensitive file system, paths that differ by case are the same object of the same tenant.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, future, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result as StoreResult, UploadPart,
};

use self::error::{Access, STORE};
use self::path::{Encoded, MAX_ROOT_LEN};
use crate::{Error, ErrorKind, Result, TenantContext, TenantId};

mod erase;
mod error;
mod path;
mod provision;

pub use self::erase::delete_all;
pub use self::error::into_error;
pub use self::path::{MAX_PATH_LEN, MAX_SEGMENT_LEN, parse_path};

/// How many tenants' stores are kept open at once.
const MAX_OPEN: usize = 1_000;

/// Where all tenants' objects are.
///
/// A clone is another handle to the same stores.
#[derive(Clone)]
pub struct TenantObjects {
    placement: Placement,
    on_error: Option<OnError>,
}

#[derive(Clone)]
enum Placement {
    Prefixed { store: Arc<dyn ObjectStore>, root: Path },
    Bucketed(Arc<Buckets>),
}

type OnError = Arc<dyn Fn(TenantId, &StoreError) + Send + Sync>;

impl TenantObjects {
    /// All tenants in one `store`, each under `<root>/<tenant's UUID>/`. An empty `root` is the store's own.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) for a `root` of more than 90 bytes, or one that [`parse_path`] would refuse.
    pub fn prefixed(store: Arc<dyn ObjectStore>, root: Path) -> Result<Self> {
        if root.as_ref().len() > MAX_ROOT_LEN {
            return Err(Error::new(ErrorKind::Misconfigured, "the root of the tenants' objects must have at most 90 bytes"));
        }
        if !root.is_root() {
            path::check(root.as_ref(), Encoded::Nothing)
                .map_err(|why| Error::new(ErrorKind::Misconfigured, format!("the root of the tenants' objects {why}")))?;
        }
        Ok(Self { placement: Placement::Prefixed { store, root }, on_error: None })
    }

    /// Each tenant in a store of its own, which `open` gives: another one for each tenant.
    ///
    /// The 1 000 stores that were used last are kept open. `open` must not block.
    pub fn bucketed(open: impl Fn(TenantId) -> Result<Arc<dyn ObjectStore>> + Send + Sync + 'static) -> Self {
        let buckets = Buckets { open: Box::new(open), stores: Mutex::default() };
        Self { placement: Placement::Bucketed(Arc::new(buckets)), on_error: None }
    }

    /// Calls `hook` with each original error of a store, before a tenant-safe one is built from it: the place to log causes, for operators.
    ///
    /// Errors such as "not found" are among them. The texts name prefixes, buckets and files; show them to no tenant.
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(TenantId, &StoreError) + Send + Sync + 'static) -> Self {
        self.on_error = Some(Arc::new(hook));
        self
    }

    /// The objects of the context's tenant; none of them can be changed if the context is [read-only](TenantContext::is_read_only).
    ///
    /// # Errors
    /// What the function given to [`bucketed`](Self::bucketed) says; none for a [`prefixed`](Self::prefixed) store.
    pub fn scope(&self, cx: &TenantContext) -> Result<TenantStore> {
        Ok(TenantStore { read_only: cx.is_read_only(), ..self.of(cx.tenant_id())? })
    }

    /// The objects of a tenant that need not be active, for the platform's own work on it: where no context can be had.
    ///
    /// # Errors
    /// As [`scope`](Self::scope).
    ///
    /// # Security
    /// The caller vouches that whoever acts may reach any tenant's objects.
    pub fn dangerous_scope(&self, tenant_id: TenantId) -> Result<TenantStore> {
        self.of(tenant_id)
    }

    /// One object of a tenant that shows it to somebody else: its content, to be read.
    ///
    /// # Errors
    /// As [`TenantStore`]'s own reads, by [`into_error`].
    ///
    /// # Cancel safety
    /// Safe: it reads.
    ///
    /// # Security
    /// There is no context of `owner` here: whoever calls has just read both `owner` and `location` in one row that the database showed
    /// because of a share or a link, and takes neither from a request. There is no such way to list, to write or to delete.
    pub async fn dangerous_get_shared(&self, owner: TenantId, location: &Path) -> Result<GetResult> {
        self.of(owner)?.get_opts(location, GetOptions::default()).await.map_err(into_error)
    }

    fn of(&self, tenant_id: TenantId) -> Result<TenantStore> {
        let (inner, prefix) = match &self.placement {
            Placement::Prefixed { store, root } => (Arc::clone(store), root.clone().join(tenant_id.to_string())),
            Placement::Bucketed(buckets) => (buckets.get(tenant_id)?, Path::ROOT),
        };
        Ok(TenantStore { read_only: false, inner, place: Arc::new(Place { tenant_id, prefix, on_error: self.on_error.clone() }) })
    }

    /// Closes the tenant's own store, so that the next scope opens it anew: after its credentials have changed, or when the tenant is
    /// erased. Does nothing where tenants share a store.
    pub fn close(&self, tenant_id: TenantId) {
        if let Placement::Bucketed(buckets) = &self.placement {
            buckets.stores.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant_id);
        }
    }
}

impl fmt::Debug for TenantObjects {
    /// Leaves out the stores, whose own texts may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.placement {
            Placement::Prefixed { root, .. } => f.debug_struct("TenantObjects").field("root", &root.as_ref()).finish_non_exhaustive(),
            Placement::Bucketed(_) => f.debug_struct("TenantObjects").field("bucketed", &true).finish_non_exhaustive(),
        }
    }
}

/// The stores that are open, each with the time it was used last.
struct Buckets {
    open: Box<dyn Fn(TenantId) -> Result<Arc<dyn ObjectStore>> + Send + Sync>,
    stores: Mutex<HashMap<TenantId, Open>>,
}

type Open = (Arc<dyn ObjectStore>, Instant);

impl Buckets {
    fn get(&self, tenant_id: TenantId) -> Result<Arc<dyn ObjectStore>> {
        let now = Instant::now();
        let stores = || self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((store, used)) = stores().get_mut(&tenant_id) {
            *used = now;
            return Ok(Arc::clone(store));
        }
        // Not under the lock: one tenant's slow `open` doesn't hold up the others.
        let store = (self.open)(tenant_id)?;
        let mut stores = stores();
        if stores.len() >= MAX_OPEN
            && let Some(oldest) = stores.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id)
        {
            stores.remove(&oldest);
        }
        Ok(Arc::clone(&stores.entry(tenant_id).or_insert((store, now)).0))
    }
}

/// One tenant's objects: an [`ObjectStore`] whose root is the tenant. See the [module](self) for what it guarantees.
#[derive(Clone)]
pub struct TenantStore {
    /// Under a context that changes nothing.
    read_only: bool,
    inner: Arc<dyn ObjectStore>,
    place: Arc<Place>,
}

/// Where a tenant's objects are in the store below.
struct Place {
    tenant_id: TenantId,
    prefix: Path,
    on_error: Option<OnError>,
}

impl Place {
    /// The key of an object.
    fn key(&self, location: &Path) -> StoreResult<Path> {
        path::check(location.as_ref(), Encoded::Separators).map_err(error::refused)?;
        Ok(self.join(location))
    }

    /// The key of a folder; that of the tenant if there is none.
    fn folder(&self, location: Option<&Path>) -> StoreResult<Path> {
        match location {
            Some(location) if !location.is_root() => self.key(location),
            _ => Ok(self.prefix.clone()),
        }
    }

    fn join(&self, location: &Path) -> Path {
        self.prefix.parts().chain(location.parts()).collect()
    }

    /// The tenant's path of `key`; `None` if the tenant doesn't have it.
    fn relative(&self, key: &Path) -> Option<Path> {
        let path: Path = key.prefix_match(&self.prefix)?.collect();
        (!path.is_root()).then_some(path)
    }

    fn relative_meta(&self, meta: ObjectMeta) -> Option<ObjectMeta> {
        Some(ObjectMeta { location: self.relative(&meta.location)?, ..meta })
    }

    /// An error that the tenant may see, about `location`.
    fn error(&self, error: &StoreError, location: &Path, access: Access) -> StoreError {
        if let Some(hook) = &self.on_error {
            hook(self.tenant_id, error);
        }
        error::rebuild(error, location.as_ref(), access)
    }

    /// An error about one of the two ends of a copy or rename.
    fn error_of_pair(&self, error: &StoreError, from: &Path, to: &Path) -> StoreError {
        let location = if matches!(error, StoreError::NotFound { .. }) { from } else { to };
        self.error(error, location, Access::Write)
    }

    fn relative_list(
        self: Arc<Self>,
        listed: BoxStream<'static, StoreResult<ObjectMeta>>,
        folder: Path,
    ) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        listed
            .filter_map(move |item| {
                future::ready(match item {
                    Ok(meta) => self.relative_meta(meta).map(Ok),
                    Err(error) => Some(Err(self.error(&error, &folder, Access::Read))),
                })
            })
            .boxed()
    }
}

/// `None` for the root, as stores expect it.
fn below(folder: &Path) -> Option<&Path> {
    (!folder.is_root()).then_some(folder)
}

/// The locations that a deletion is at work on, to say which of them an error is about.
#[derive(Default)]
struct Deleting(Mutex<VecDeque<Path>>);

impl Deleting {
    fn begin(&self, location: Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(location);
    }

    /// Takes the first location for which `is` holds. Stores answer in order, or nearly so: it is soon found.
    fn end(&self, is: impl Fn(&Path) -> bool) -> Option<Path> {
        let mut locations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = locations.iter().position(is)?;
        locations.remove(at)
    }

    /// Takes the location that `error` is about: the one it names, or the next one where it names none.
    fn failed(&self, error: &StoreError) -> Option<Path> {
        match error::path_of(error) {
            Some(text) => self.end(|location| ends_with(text, location)),
            None => self.end(|_| true),
        }
    }
}

impl TenantStore {
    fn writable(&self) -> StoreResult<()> {
        if self.read_only { Err(error::read_only()) } else { Ok(()) }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for TenantStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        self.writable()?;
        let key = self.place.key(location)?;
        self.inner.put_opts(&key, payload, opts).await.map_err(|error| self.place.error(&error, location, Access::Write))
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        self.writable()?;
        let key = self.place.key(location)?;
        match self.inner.put_multipart_opts(&key, opts).await {
            Ok(inner) => Ok(Box::new(Upload { inner, place: Arc::clone(&self.place), location: location.clone() })),
            Err(error) => Err(self.place.error(&error, location, Access::Write)),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let key = self.place.key(location)?;
        let got = self.inner.get_opts(&key, options).await.map_err(|error| self.place.error(&error, location, Access::Read))?;
        let meta = ObjectMeta { location: location.clone(), ..got.meta.clone() };
        let (range, attributes, extensions) = (got.range.clone(), got.attributes.clone(), got.extensions.clone());
        let (place, location) = (Arc::clone(&self.place), location.clone());
        let content = got.into_stream().map_err(move |error| place.error(&error, &location, Access::Read)).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(content), meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        let key = self.place.key(location)?;
        self.inner.get_ranges(&key, ranges).await.map_err(|error| self.place.error(&error, location, Access::Read))
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        let deleting = Arc::new(Deleting::default());
        let keys = {
            let (place, deleting, store) = (Arc::clone(&self.place), Arc::clone(&deleting), self.clone());
            locations.map(move |location| {
                store.writable()?;
                let location = location?;
                let key = place.key(&location)?;
                deleting.begin(location);
                Ok(key)
            })
        };
        let place = Arc::clone(&self.place);
        self.inner
            .delete_stream(keys.boxed())
            .map(move |deleted| match deleted {
                Ok(key) => match place.relative(&key) {
                    Some(location) => {
                        deleting.end(|other| *other == location);
                        Ok(location)
                    }
                    None => Err(StoreError::Generic { store: STORE, source: "the object store answered for a foreign object".into() }),
                },
                Err(error) if error::is_refused(&error) => Err(error),
                Err(error) => {
                    let location = deleting.failed(&error).unwrap_or_default();
                    Err(place.error(&error, &location, Access::Read))
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.place.folder(prefix) {
            Ok(folder) => Arc::clone(&self.place).relative_list(self.inner.list(below(&folder)), prefix.cloned().unwrap_or_default()),
            Err(error) => stream::once(future::ready(Err(error))).boxed(),
        }
    }

    /// `offset` is only compared, never opened.
    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let offset = self.place.join(offset);
        match self.place.folder(prefix) {
            Ok(folder) => {
                let listed = self.inner.list_with_offset(below(&folder), &offset);
                Arc::clone(&self.place).relative_list(listed, prefix.cloned().unwrap_or_default())
            }
            Err(error) => stream::once(future::ready(Err(error))).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        let folder = self.place.folder(prefix)?;
        let listed = self.inner.list_with_delimiter(below(&folder)).await;
        let ListResult { common_prefixes, objects, extensions } =
            listed.map_err(|error| self.place.error(&error, prefix.unwrap_or(&Path::ROOT), Access::Read))?;
        Ok(ListResult {
            common_prefixes: common_prefixes.iter().filter_map(|folder| self.place.relative(folder)).collect(),
            objects: objects.into_iter().filter_map(|meta| self.place.relative_meta(meta)).collect(),
            extensions,
        })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.writable()?;
        let (from_key, to_key) = (self.place.key(from)?, self.place.key(to)?);
        self.inner.copy_opts(&from_key, &to_key, options).await.map_err(|error| self.place.error_of_pair(&error, from, to))
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> StoreResult<()> {
        self.writable()?;
        let (from_key, to_key) = (self.place.key(from)?, self.place.key(to)?);
        self.inner.rename_opts(&from_key, &to_key, options).await.map_err(|error| self.place.error_of_pair(&error, from, to))
    }
}

/// Whether `text` is `location`, or a longer path that ends in it.
fn ends_with(text: &str, location: &Path) -> bool {
    text.strip_suffix(location.as_ref()).is_some_and(|before| before.is_empty() || before.ends_with(['/', '\\']))
}

impl fmt::Display for TenantStore {
    /// Without the tenant: wrappers put this into errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STORE)
    }
}

impl fmt::Debug for TenantStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(STORE).field("tenant_id", &self.place.tenant_id).finish_non_exhaustive()
    }
}

/// An upload in parts, with errors that the tenant may see.
struct Upload {
    inner: Box<dyn MultipartUpload>,
    place: Arc<Place>,
    location: Path,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (place, location) = (Arc::clone(&self.place), self.location.clone());
        self.inner.put_part(data).map_err(move |error| place.error(&error, &location, Access::Write)).boxed()
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.inner.complete().await.map_err(|error| self.place.error(&error, &self.location, Access::Write))
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.inner.abort().await.map_err(|error| self.place.error(&error, &self.location, Access::Write))
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("location", &self.location.as_ref()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
