use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::path::PathBuf;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, integration};

use super::*;
use crate::{NewTenant, Principal, Tenant};

fn context(slug: &str) -> TenantContext {
    let new = NewTenant::new(slug.parse().unwrap(), slug).active();
    let tenant = Tenant::new(new, std::time::SystemTime::UNIX_EPOCH.into()).unwrap();
    TenantContext::establish(Arc::new(tenant).into_active().unwrap(), Principal::Visitor)
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tenancy-objects-{}", TenantId::new()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(LocalFileSystem::new_with_prefix(&self.0).unwrap())
    }

    /// The files below, relative to the folder.
    fn files(&self) -> BTreeSet<String> {
        let (mut found, mut folders) = (BTreeSet::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ROOT: &str = "root-of-all/tenants";

fn prefixed(store: Arc<dyn ObjectStore>) -> TenantObjects {
    TenantObjects::prefixed(store, Path::from(ROOT)).unwrap()
}

async fn listed(store: &dyn ObjectStore) -> Vec<String> {
    let mut paths: Vec<_> = store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    paths.sort();
    paths
}

/// All that an error shows: itself and its causes, for people and for programs.
fn texts(error: &StoreError) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" {error} {error:?}");
        cause = error.source();
    }
    text
}

/// Objects over `store` that remember the texts of all original errors.
fn observed(objects: TenantObjects) -> (TenantObjects, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&seen);
    (objects.on_error(move |_, error| hook.lock().unwrap().push(texts(error))), seen)
}

async fn conformance(store: &TenantStore) {
    integration::put_get_delete_list(store).await;
    integration::get_opts(store).await;
    integration::list_uses_directories_correctly(store).await;
    integration::list_with_delimiter(store).await;
    integration::list_with_offset_exclusivity(store).await;
    integration::rename_and_copy(store).await;
    integration::copy_if_not_exists(store).await;
    integration::copy_rename_nonexistent_object(store).await;
    integration::stream_get(store).await;
    integration::multipart_race_condition(store, true).await;
    integration::multipart_out_of_order(store).await;
    assert!(matches!(integration::get_nonexistent_object(store, None).await, Err(StoreError::NotFound { .. })));
    for object in listed(store).await {
        store.delete(&Path::parse(object).unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_tenant_store_passes_object_stores_own_suite_beside_another_tenant() {
    let (folder, buckets) = (Folder::new(), Folder::new());
    let dir = buckets.0.clone();
    let of_each = TenantObjects::bucketed(move |id| {
        let dir = dir.join(id.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        Ok(Arc::new(LocalFileSystem::new_with_prefix(dir).unwrap()))
    });
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    for objects in [prefixed(Arc::clone(&memory)), prefixed(folder.store()), of_each] {
        let (a, b) = (objects.scope(&context("acme")).unwrap(), objects.scope(&context("globex")).unwrap());
        // At the suite's own paths, so that its "is empty" would see them.
        for path in ["test_dir/test_file.json", "test1", "foo"] {
            b.put(&Path::from(path), "b".into()).await.unwrap();
        }
        conformance(&a).await;
        assert_eq!(listed(&b).await, ["foo", "test1", "test_dir/test_file.json"]);
        assert_eq!(b.get(&Path::from("test1")).await.unwrap().bytes().await.unwrap(), "b");
    }
    let on_memory = prefixed(memory).scope(&context("acme")).unwrap();
    integration::put_get_attributes(&on_memory).await;
    integration::put_opts(&on_memory, true).await;
    integration::put_opts(&prefixed(folder.store()).scope(&context("acme")).unwrap(), false).await;
}

#[tokio::test]
async fn what_is_shared_is_read_at_its_owner_and_nowhere_else() {
    let objects = prefixed(Arc::new(InMemory::new()));
    let (acme, globex) = (context("acme"), context("globex"));
    let path = Path::from("plan.txt");
    objects.scope(&acme).unwrap().put(&path, "acme's".into()).await.unwrap();
    let shown = objects.dangerous_get_shared(acme.tenant_id(), &path).await.unwrap();
    assert_eq!(shown.meta.location, path);
    assert_eq!(shown.bytes().await.unwrap(), "acme's");
    let error = objects.dangerous_get_shared(globex.tenant_id(), &path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for crossing in [format!("../{}/plan.txt", acme.tenant_id()), format!("{}/plan.txt", acme.tenant_id())] {
        assert!(objects.dangerous_get_shared(globex.tenant_id(), &Path::from(crossing.as_str())).await.is_err(), "{crossing}");
    }
}

#[tokio::test]
async fn the_same_path_of_two_tenants_is_two_objects() {
    let (folder, path) = (Folder::new(), Path::from("docs/plan.txt"));
    let objects = prefixed(folder.store());
    let (a, b) = (context("acme"), context("globex"));
    let (of_a, of_b) = (objects.scope(&a).unwrap(), objects.scope(&b).unwrap());
    of_a.put(&path, "a".into()).await.unwrap();
    assert!(matches!(of_b.get(&path).await, Err(StoreError::NotFound { .. })));
    assert!(listed(&of_b).await.is_empty());
    of_b.put(&path, "bb".into()).await.unwrap();

    let got = of_a.get(&path).await.unwrap();
    assert_eq!((&got.meta.location, got.meta.size), (&path, 1));
    assert!(matches!(got.payload, GetResultPayload::Stream(_)), "an open file would show its name");
    assert_eq!(got.bytes().await.unwrap(), "a");
    assert_eq!(of_a.head(&path).await.unwrap().location, path);

    of_a.copy(&path, &Path::from("copy")).await.unwrap();
    of_a.rename(&path, &Path::from("moved")).await.unwrap();
    assert_eq!(listed(&of_a).await, ["copy", "moved"]);
    assert_eq!(of_b.get(&path).await.unwrap().bytes().await.unwrap(), "bb");
    let below = |cx: &TenantContext, path: &str| format!("{ROOT}/{}/{path}", cx.tenant_id());
    let expected = [below(&a, "copy"), below(&a, "moved"), below(&b, "docs/plan.txt")];
    assert_eq!(folder.files(), BTreeSet::from(expected));

    let gone = of_a.delete_stream(of_a.list(None).map_ok(|meta| meta.location).boxed());
    assert_eq!(gone.try_collect::<BTreeSet<_>>().await.unwrap(), BTreeSet::from(["copy", "moved"].map(Path::from)));
    assert_eq!(listed(&of_b).await, ["docs/plan.txt"]);
}

/// A store that lists by bytes and not by segments, as some do.
#[derive(Debug, Clone)]
struct ByBytes(Arc<InMemory>);

/// A store whose every operation fails with an error that shows the key, as `Self::error` makes it.
#[derive(Debug, Clone, Copy)]
struct Leaky(fn(String) -> StoreError);

impl fmt::Display for ByBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByBytes")
    }
}

impl fmt::Display for Leaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaky")
    }
}

#[async_trait]
impl ObjectStore for ByBytes {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        self.0.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        self.0.list(None).try_filter(move |meta| future::ready(meta.location.as_ref().starts_with(prefix.as_ref()))).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> StoreResult<ListResult> {
        let objects: Vec<_> = self.0.list(None).try_collect().await?;
        let common_prefixes = objects.iter().filter_map(|meta| meta.location.parent()).collect();
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl ObjectStore for Leaky {
    async fn put_opts(&self, location: &Path, _: PutPayload, _: PutOptions) -> StoreResult<PutResult> {
        Err(self.0(location.to_string()))
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        Ok(Box::new(LeakyUpload(*self, location.to_string())))
    }

    /// Fails while the content is read, or at once where only the head is.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let error = self.0(location.to_string());
        if options.head {
            return Err(error);
        }
        let last_modified = std::time::SystemTime::UNIX_EPOCH.into();
        let meta = ObjectMeta { location: location.clone(), last_modified, size: 9, e_tag: None, version: None };
        let payload = GetResultPayload::Stream(stream::once(future::ready(Err(error))).boxed());
        Ok(GetResult { payload, meta, range: 0..9, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        let error = self.0;
        locations.map(move |location| Err(error(format!("/srv/{}", location?)))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        stream::once(future::ready(Err(self.0(prefix.cloned().unwrap_or_default().to_string())))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        Err(self.0(prefix.cloned().unwrap_or_default().to_string()))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> StoreResult<()> {
        Err(self.0(format!("{from} to {to}")))
    }
}

#[derive(Debug)]
struct LeakyUpload(Leaky, String);

#[async_trait]
impl MultipartUpload for LeakyUpload {
    fn put_part(&mut self, _: PutPayload) -> UploadPart {
        future::ready(Err(self.0.0(self.1.clone()))).boxed()
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        Err(self.0.0(self.1.clone()))
    }

    async fn abort(&mut self) -> StoreResult<()> {
        Err(self.0.0(self.1.clone()))
    }
}

#[tokio::test]
async fn a_sibling_whose_name_begins_alike_is_not_listed() {
    let cx = context("acme");
    let raw = Arc::new(InMemory::new());
    let prefix = format!("{ROOT}/{}", cx.tenant_id());
    for key in [format!("{prefix}/own"), format!("{prefix}x/foreign"), prefix.clone(), format!("{ROOT}/foreign"), "foreign".into()] {
        raw.put(&Path::parse(key).unwrap(), "v".into()).await.unwrap();
    }
    let by_bytes = ByBytes(raw);
    // The detector works: this store does list the sibling under the tenant's prefix.
    let naive: Vec<_> = by_bytes.list(Some(&Path::parse(&prefix).unwrap())).try_collect().await.unwrap();
    assert_eq!(naive.len(), 3);

    let store = prefixed(Arc::new(by_bytes)).scope(&cx).unwrap();
    assert_eq!(listed(&store).await, ["own"]);
    let after: Vec<_> = store.list_with_offset(None, &Path::ROOT).try_collect().await.unwrap();
    assert_eq!(after.len(), 1);
    let level = store.list_with_delimiter(None).await.unwrap();
    assert_eq!(level.objects.iter().map(|meta| meta.location.as_ref()).collect::<Vec<_>>(), ["own"]);
    assert!(level.common_prefixes.is_empty());
}

/// Every error that `store` can be made to give, at `path`.
async fn provoke(store: &TenantStore, path: &Path) -> Vec<StoreError> {
    let other = Path::from("other");
    let mut errors = Vec::new();
    errors.extend(store.put_opts(path, "v".into(), object_store::PutMode::Create.into()).await.err());
    errors.extend(store.head(path).await.err());
    match store.get(path).await {
        Ok(got) => errors.extend(got.bytes().await.err()),
        Err(error) => errors.push(error),
    }
    errors.extend(store.get_ranges(path, &[0..1, 90..99]).await.err());
    errors.extend(store.list(Some(path)).try_collect::<Vec<_>>().await.err());
    errors.extend(store.list_with_offset(Some(path), path).try_collect::<Vec<_>>().await.err());
    errors.extend(store.list_with_delimiter(Some(path)).await.err());
    errors.extend(store.copy(path, &other).await.err());
    errors.extend(store.copy_if_not_exists(path, path).await.err());
    errors.extend(store.rename(path, &other).await.err());
    errors.extend(store.rename_if_not_exists(&other, path).await.err());
    match store.put_multipart(path).await {
        Ok(mut upload) => {
            errors.extend(upload.put_part("v".into()).await.err());
            errors.extend(upload.complete().await.err());
            errors.extend(upload.abort().await.err());
            assert!(!format!("{upload:?}").contains("root-of-all"));
        }
        Err(error) => errors.push(error),
    }
    errors.extend(store.delete(path).await.err());
    errors.extend(store.delete(path).await.err());
    errors
}

#[tokio::test]
async fn no_error_shows_the_root_the_tenant_or_the_file_system() {
    let leaks: [fn(String) -> StoreError; 12] = [
        |key| StoreError::Generic { store: "S3", source: key.into() },
        |key| StoreError::Generic { store: "S3", source: std::io::Error::other(key).into() },
        |key| StoreError::NotFound { path: key.clone(), source: key.into() },
        |key| StoreError::AlreadyExists { path: key.clone(), source: key.into() },
        |key| StoreError::Precondition { path: key.clone(), source: key.into() },
        |key| StoreError::NotModified { path: key.clone(), source: key.into() },
        |key| StoreError::PermissionDenied { path: key.clone(), source: key.into() },
        |key| StoreError::Unauthenticated { path: key.clone(), source: key.into() },
        |key| StoreError::NotSupported { source: key.into() },
        |key| StoreError::NotImplemented { operation: key.clone(), implementer: key },
        |key| StoreError::InvalidPath { source: object_store::path::Error::EmptySegment { path: key } },
        |key| StoreError::UnknownConfigurationKey { store: "S3", key },
    ];
    let (folder, cx) = (Folder::new(), context("acme"));
    let mut objects = vec![prefixed(folder.store()), prefixed(Arc::new(InMemory::new()))];
    objects.extend(leaks.map(|leak| prefixed(Arc::new(Leaky(leak)))));
    let secrets = [ROOT.to_owned(), "root-of-all".into(), cx.tenant_id().to_string(), folder.0.to_str().unwrap().into(), "/srv".into()];
    let shows = |text: &str| secrets.iter().any(|secret| text.contains(secret));
    let (mut checked, mut leaked) = (0, 0);
    for (n, objects) in objects.into_iter().enumerate() {
        let (objects, originals) = observed(objects);
        let store = objects.scope(&cx).unwrap();
        assert!(!shows(&store.to_string()));
        assert!(!format!("{store:?} {objects:?}").contains("Leaky"));
        for path in ["own/path.txt", "own/folder/x", "own/folder"].map(Path::from) {
            for error in provoke(&store, &path).await {
                let text = texts(&error);
                assert!(!shows(&text), "store {n}: {text}");
                if let Some(named) = error::path_of(&error) {
                    assert!([path.as_ref(), "other"].contains(&named), "store {n}: {named}");
                }
                let shown = into_error(error);
                assert!(!shows(&format!("{shown} {shown:?}")), "store {n}: {shown:?}");
                checked += 1;
            }
        }
        leaked += originals.lock().unwrap().iter().filter(|text| shows(text)).count();
    }
    // Negative control: the same scan does find the secrets in what the stores said.
    assert!(checked > 500 && leaked > checked / 2, "{leaked} of {checked}");
}

#[tokio::test]
async fn an_error_keeps_its_kind_and_the_tenants_own_path() {
    let folder = Folder::new();
    let store = prefixed(folder.store()).scope(&context("acme")).unwrap();
    let [a, b, below] = ["a", "b", "a/b"].map(Path::from);
    store.put(&a, "v".into()).await.unwrap();
    let is_absent = |error: StoreError, at: &Path| assert!(matches!(error, StoreError::NotFound { path, .. } if path == at.as_ref()));
    let is_taken = |error: StoreError, at: &Path| assert!(matches!(error, StoreError::AlreadyExists { path, .. } if path == at.as_ref()));
    is_absent(store.get(&b).await.unwrap_err(), &b);
    is_absent(store.copy(&b, &a).await.unwrap_err(), &b);
    is_absent(store.delete(&b).await.unwrap_err(), &b);
    is_taken(store.copy_if_not_exists(&a, &a).await.unwrap_err(), &a);
    // On a file system an object can't also be a folder.
    is_absent(store.get(&below).await.unwrap_err(), &below);
    is_absent(store.delete(&below).await.unwrap_err(), &below);
    is_taken(store.put(&below, "v".into()).await.unwrap_err(), &below);
    store.put(&Path::from("x/y"), "v".into()).await.unwrap();
    is_taken(store.put(&Path::from("x"), "v".into()).await.unwrap_err(), &Path::from("x"));

    // Of several deletions, each error names its own object.
    let locations = stream::iter([&a, &b, &Path::from("../c"), &Path::from("x/y")].map(|path| Ok(path.clone())));
    let gone: Vec<_> = store.delete_stream(locations.boxed()).collect().await;
    assert_eq!(gone[0].as_ref().unwrap(), &a);
    assert!(matches!(&gone[1], Err(StoreError::NotFound { path, .. }) if path == "b"));
    assert!(gone[2].as_ref().is_err_and(error::is_refused));
    assert_eq!(gone[3].as_ref().unwrap().as_ref(), "x/y");
}

#[tokio::test]
async fn traversal_is_refused_and_writes_nothing_outside() {
    let folder = Folder::new();
    let cx = context("acme");
    let store = prefixed(folder.store()).scope(&cx).unwrap();
    store.put(&Path::from("own"), "v".into()).await.unwrap();
    let own = BTreeSet::from([format!("{ROOT}/{}/own", cx.tenant_id())]);

    let hostile = ["../evil", "a/../../evil", "..", ".", "/../evil", "%2e%2e/evil", "a\\..\\evil", "", "a\0"];
    for text in hostile {
        assert!(parse_path(text).is_err(), "{text}");
        // However a host turns the text into a path.
        for path in [Path::parse(text).ok(), Path::from_url_path(text).ok(), Some(Path::from(text))].into_iter().flatten() {
            assert!(store.put(&path, "v".into()).await.is_err_and(|error| error::is_refused(&error)), "{path}");
            assert!(store.put_multipart(&path).await.is_err_and(|error| error::is_refused(&error)), "{path}");
            assert!(store.copy(&Path::from("own"), &path).await.is_err_and(|error| error::is_refused(&error)), "{path}");
            assert!(store.rename(&Path::from("own"), &path).await.is_err_and(|error| error::is_refused(&error)), "{path}");
            assert!(store.copy(&path, &Path::from("own")).await.is_err_and(|error| error::is_refused(&error)), "{path}");
            let refused = store.get(&path).await.map(drop).map_err(into_error).unwrap_err();
            assert_eq!((refused.kind(), refused.field()), (ErrorKind::Invalid, Some("path")), "{path}");
            assert!(store.get_ranges(&path, &[]).await.is_err(), "{path}");
            assert!(store.delete(&path).await.is_err(), "{path}");
        }
    }
    assert_eq!(folder.files(), own);

    // Negative control: a prefix put before the text by hand does leave the tenant's folder, and the raw store's error shows it.
    let naive = folder.0.join(ROOT).join(cx.tenant_id().to_string()).join("../evil");
    std::fs::write(naive, "v").unwrap();
    assert_ne!(folder.files(), own);
    let error = folder.store().get(&Path::from(format!("{ROOT}/{}/none", cx.tenant_id()))).await.unwrap_err();
    assert!(texts(&error).contains(ROOT));
}

#[tokio::test]
async fn a_bucket_is_opened_once_for_each_tenant_and_closed_on_demand() {
    let opened = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&opened);
    let objects = TenantObjects::bucketed(move |id| {
        log.lock().unwrap().push(id);
        Ok(Arc::new(InMemory::new()))
    });
    let (a, b, path) = (context("acme"), context("globex"), Path::from("x"));
    objects.scope(&a).unwrap().put(&path, "a".into()).await.unwrap();
    assert!(objects.scope(&b).unwrap().get(&path).await.is_err());
    assert_eq!(listed(&objects.scope(&a).unwrap()).await, ["x"]);
    assert_eq!(*opened.lock().unwrap(), [a.tenant_id(), b.tenant_id()]);
    objects.close(a.tenant_id());
    objects.scope(&b).unwrap();
    objects.scope(&a).unwrap();
    assert_eq!(*opened.lock().unwrap(), [a.tenant_id(), b.tenant_id(), a.tenant_id()]);

    for n in 0..MAX_OPEN {
        objects.scope(&context(&format!("t{n:04}"))).unwrap();
    }
    let Placement::Bucketed(buckets) = &objects.placement else { unreachable!() };
    assert_eq!(buckets.stores.lock().unwrap().len(), MAX_OPEN);

    let failing = TenantObjects::bucketed(|_| Err(Error::new(ErrorKind::Unavailable, "no bucket yet")));
    assert_eq!(failing.scope(&a).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn the_root_is_checked() {
    let with_root = |root: &str| TenantObjects::prefixed(Arc::new(InMemory::new()), Path::from(root));
    for good in ["", "tenants", "a/b", &"a".repeat(MAX_ROOT_LEN)] {
        assert!(with_root(good).is_ok(), "{good}");
    }
    for bad in ["a/../b", "..", &"a".repeat(MAX_ROOT_LEN + 1)] {
        assert_eq!(with_root(bad).unwrap_err().kind(), ErrorKind::Misconfigured, "{bad}");
    }
}

#[tokio::test]
async fn under_a_read_only_context_nothing_changes() {
    let (objects, cx) = (prefixed(Arc::new(InMemory::new())), context("acme"));
    let (writes, reads) = (objects.scope(&cx).unwrap(), objects.scope(&cx.read_only()).unwrap());
    let (a, b) = (Path::from("a"), Path::from("b"));
    writes.put(&a, "kept".into()).await.unwrap();
    let refused = [
        reads.put(&b, "x".into()).await.map(drop),
        reads.put_multipart(&b).await.map(drop),
        reads.copy(&a, &b).await,
        reads.rename(&a, &b).await,
        reads.delete(&a).await,
    ];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(into_error(error).kind(), ErrorKind::Forbidden);
    }
    assert_eq!(reads.get(&a).await.unwrap().bytes().await.unwrap(), "kept");
    // The control: each of them is done under the other context.
    writes.put(&b, "x".into()).await.unwrap();
    writes.put_multipart(&b).await.unwrap().complete().await.unwrap();
    writes.copy(&a, &b).await.unwrap();
    writes.rename(&b, &a).await.unwrap();
    writes.delete(&a).await.unwrap();
}
