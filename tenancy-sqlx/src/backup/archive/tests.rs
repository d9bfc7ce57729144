//! Archives and contents as they are, and as they must not be.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tenancy_core::{Error, Result, TenantId};
use uuid::Uuid;

use super::chunks::{CHUNK, TAG, sealed};
use super::manifest::TRAILER;
use super::{ArchiveKey, ArchiveReader, ArchiveWriter, BlobRef, Blobs, Expect, Finished, Header, Kind, Segment};

fn store() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn at() -> Path {
    Path::from("archive")
}

/// Bytes that can't be compressed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// An archive, where it is, and what it holds.
struct Made {
    store: Arc<dyn ObjectStore>,
    tenant: TenantId,
    backup: Uuid,
    key: ArchiveKey,
    contents: Vec<(String, Vec<u8>)>,
    segments: Vec<Segment>,
    done: Finished,
}

impl Made {
    async fn new(encrypted: bool, contents: &[(&str, Vec<u8>)]) -> Self {
        Self::of((TenantId::new(), Uuid::now_v7(), ArchiveKey::new(Uuid::now_v7(), rand::random())), encrypted, contents).await
    }

    async fn of((tenant, backup, key): (TenantId, Uuid, ArchiveKey), encrypted: bool, contents: &[(&str, Vec<u8>)]) -> Self {
        let store = store();
        let header = Header::new(tenant, backup, &key, encrypted, DateTime::UNIX_EPOCH);
        let mut archive = ArchiveWriter::create(Arc::clone(&store), at(), header, &key).await.expect("created");
        let mut segments = Vec::new();
        for (n, (name, content)) in contents.iter().enumerate() {
            archive.begin(Kind::Rows, name).expect("begun");
            for piece in content.chunks(100_003) {
                archive.write(piece).await.expect("written");
            }
            segments.push(archive.end(n as u64).await.expect("ended"));
        }
        let done = archive.finish(json!({ "server": "15.20" })).await.expect("finished");
        let contents = contents.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
        Self { store, tenant, backup, key, contents, segments, done }
    }

    fn expect(&self) -> Expect {
        Expect { tenant: self.tenant, backup: self.backup, bytes: self.done.bytes, hash: self.done.hash.clone() }
    }

    async fn open(&self) -> Result<ArchiveReader> {
        ArchiveReader::open(Arc::clone(&self.store), at(), self.expect(), &self.key).await
    }

    async fn bytes(&self) -> Vec<u8> {
        self.store.get(&at()).await.expect("there").bytes().await.expect("bytes").to_vec()
    }

    /// Reads these bytes as if they were it, where its size and hash were not recorded. Whatever is given before it is refused must be right.
    async fn read(&self, bytes: Vec<u8>) -> Result<()> {
        let store = store();
        let expect = Expect { bytes: bytes.len() as u64, hash: String::new(), ..self.expect() };
        store.put(&at(), bytes.into()).await.expect("put");
        let archive = ArchiveReader::open(store, at(), expect, &self.key).await?;
        assert_eq!(archive.segments(), self.segments);
        for (name, content) in &self.contents {
            let (mut pieces, mut came) = (archive.segment(name)?, Vec::new());
            loop {
                let next = pieces.try_next().await;
                let whole = matches!(next, Ok(None));
                match next {
                    Ok(Some(piece)) => came.extend_from_slice(&piece),
                    done => {
                        assert!(content.starts_with(&came), "{name}: what is wrong was given");
                        assert!(!whole || came.len() == content.len(), "{name}: ended early");
                        done?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn why(error: &Error) -> &str {
    assert_eq!(error.field(), Some("archive"), "{error:?}");
    error.message()
}

#[tokio::test]
async fn what_was_written_is_read_whatever_its_size() {
    let rows: Vec<u8> = (0..20_000_000_u32 / 16).flat_map(|n| format!("{n:08} a row ").into_bytes().into_iter().take(16)).collect();
    for encrypted in [true, false] {
        let contents =
            [("0", 0), ("1", 1), ("under", CHUNK - 1), ("chunk", CHUNK), ("over", CHUNK + 1)].map(|(name, size)| (name, noise(1, size)));
        let contents: Vec<_> = contents.into_iter().chain([("20 MB", rows.clone()), ("zeros", vec![0; 3_000_000])]).collect();
        let made = Made::new(encrypted, &contents).await;
        let archive = made.open().await.expect("opened");
        assert_eq!(archive.segments(), made.segments);
        assert_eq!(archive.details(), &json!({ "server": "15.20" }));
        assert_eq!(archive.header().encrypted, encrypted);
        for (name, content) in &contents {
            let pieces: Vec<Bytes> = archive.segment(name).expect("there").try_collect().await.expect("read");
            assert!(pieces.concat() == *content, "{name}");
            let segment = archive.segments().iter().find(|segment| segment.name == *name).expect("named");
            assert_eq!((segment.bytes, &segment.hash), (content.len() as u64, &blake3::hash(content).to_hex().to_string()));
        }
        archive.verify().await.expect("verified");
        assert!(archive.segment("other").is_err());
        assert!(made.done.bytes < 10_000_000, "it is compressed: {}", made.done.bytes);
    }
}

#[tokio::test]
async fn an_archive_without_segments_is_one() {
    let made = Made::new(true, &[]).await;
    assert!(made.open().await.expect("opened").segments().is_empty());
}

#[tokio::test]
async fn encryption_hides_and_its_absence_does_not() {
    for encrypted in [true, false] {
        let made = Made::new(encrypted, &[("public.secrets", b"correct horse battery staple".to_vec())]).await;
        let word = b"correct horse battery staple"; // too short to be compressed
        let shown = made.bytes().await.windows(word.len()).any(|window| window == word);
        assert_eq!(shown, !encrypted);
    }
}

#[tokio::test]
async fn another_tenant_backup_or_key_is_refused_and_says_so() {
    let made = Made::new(true, &[("rows", noise(2, 1000))]).await;
    let refused = async |expect, key: &ArchiveKey| {
        let opened = ArchiveReader::open(Arc::clone(&made.store), at(), expect, key).await;
        why(&opened.expect_err("refused")).to_owned()
    };
    let (id, other) = (made.key.id(), ArchiveKey::new(Uuid::now_v7(), [1; 32]));
    assert_eq!(refused(Expect { tenant: TenantId::new(), ..made.expect() }, &made.key).await, "belongs to another tenant");
    assert_eq!(refused(Expect { backup: Uuid::now_v7(), ..made.expect() }, &made.key).await, "is another backup's");
    assert_eq!(refused(made.expect(), &other).await, "is sealed with another key");
    assert_eq!(refused(made.expect(), &ArchiveKey::new(id, [1; 32])).await, "was changed after it was written", "the same id");
    assert_eq!(refused(Expect { bytes: made.done.bytes + 1, ..made.expect() }, &made.key).await, "is truncated");
    assert_eq!(refused(Expect { hash: "0".repeat(64), ..made.expect() }, &made.key).await, "is not the one that was recorded");
    made.store.delete(&at()).await.expect("deleted");
    assert_eq!(refused(made.expect(), &made.key).await, "is missing in the store");
    made.store.put(&at(), "hello".into()).await.expect("put");
    assert_eq!(refused(made.expect(), &made.key).await, "is not an archive");
}

#[tokio::test]
async fn headers_are_not_interchangeable() {
    let (tenant, backup, key) = (TenantId::new(), Uuid::now_v7(), ArchiveKey::new(Uuid::now_v7(), [3; 32]));
    let one = Made::of((tenant, backup, key.clone()), true, &[("rows", noise(3, 1000))]).await;
    // The same key: somebody makes the archive of another tenant, or backup, look like this one, or says that it is not encrypted.
    for (other, encrypted) in [((TenantId::new(), backup), true), ((tenant, Uuid::now_v7()), true), ((tenant, backup), false)] {
        let foreign = Made::of((other.0, other.1, key.clone()), encrypted, &[("rows", noise(3, 1000))]).await;
        let bytes = String::from_utf8_lossy(&foreign.bytes().await).into_owned();
        assert!(bytes.contains(&other.0.to_string()), "ids are in the clear");
        let mut bytes = foreign.bytes().await;
        for (from, to) in [(other.0.to_string(), tenant.to_string()), (other.1.to_string(), backup.to_string())] {
            let found = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("named");
            bytes[found..found + to.len()].copy_from_slice(to.as_bytes());
        }
        if !encrypted {
            let found = bytes.windows(5).position(|window| window == b"false").expect("said");
            bytes[found..found + 5].copy_from_slice(b"true ");
        }
        assert_eq!(why(&one.read(bytes).await.expect_err("refused")), "was changed after it was written");
    }
}

/// Cuts an archive into what it is made of: header, chunks, trailer.
fn pieces(made: &Made, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut cuts = vec![0];
    let manifest = made.segments.last().map_or(0, |segment| segment.offset + segment.stored) as usize;
    let spans = made.segments.iter().map(|segment| (segment.offset as usize, (segment.offset + segment.stored) as usize));
    for (from, to) in spans.chain([(manifest, bytes.len() - TRAILER)]) {
        cuts.extend((from..to).step_by(CHUNK + TAG));
    }
    cuts.extend([bytes.len() - TRAILER, bytes.len()]);
    cuts.windows(2).map(|cut| bytes[cut[0]..cut[1]].to_vec()).collect()
}

#[tokio::test]
async fn whatever_is_done_to_an_archive_is_noticed() {
    for encrypted in [true, false] {
        let contents = [("a", noise(4, CHUNK + 9_000)), ("b", noise(5, 10)), ("c", Vec::new()), ("d", noise(6, CHUNK + 9_000))];
        let made = Made::new(encrypted, &contents).await;
        let bytes = made.bytes().await;
        made.read(bytes.clone()).await.expect("as it is, it is read");
        let parts = pieces(&made, &bytes);
        assert!(parts.len() == 9 && parts.concat() == bytes, "the parts are known: {}", parts.len());
        let mut bad: Vec<(String, Vec<u8>)> = Vec::new();
        // Each part gone, twice, and in the place of each other one.
        for n in 0..parts.len() {
            let mut without = parts.clone();
            without.remove(n);
            bad.push((format!("without {n}"), without.concat()));
            let mut twice = parts.clone();
            twice.insert(n, parts[n].clone());
            bad.push((format!("{n} twice"), twice.concat()));
            for other in 0..n {
                let mut swapped = parts.clone();
                swapped.swap(n, other);
                bad.push((format!("{n} and {other} swapped"), swapped.concat()));
                let mut copied = parts.clone();
                copied[n].clone_from(&parts[other]);
                bad.push((format!("{other} instead of {n}"), copied.concat()));
            }
        }
        // Parts of another archive of the same backup, under the same key, with the same sizes.
        let other = Made::of((made.tenant, made.backup, made.key.clone()), encrypted, &contents).await;
        let theirs = pieces(&other, &other.bytes().await);
        for n in 0..parts.len() {
            let mut spliced = parts.clone();
            spliced[n].clone_from(&theirs[n]);
            bad.push((format!("{n} of another one"), spliced.concat()));
        }
        let edges: Vec<usize> = parts.iter().scan(0, |at, part| Some(std::mem::replace(at, *at + part.len()))).collect();
        let mut random = StdRng::seed_from_u64(7);
        let some: Vec<usize> = (0..60).map(|_| random.random_range(0..bytes.len())).collect();
        // A bit anywhere in the header and the trailer, around each edge, and here and there.
        let header = 0..parts[0].len();
        let near = edges.iter().flat_map(|at| [at.saturating_sub(1), *at, at.saturating_sub(TAG)]);
        for at in header.step_by(3).chain(bytes.len() - TRAILER..bytes.len()).chain(near).chain(some.iter().copied()) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << random.random_range(0..8);
            bad.push((format!("a bit of {at}"), flipped));
        }
        for end in edges.iter().chain(&some).copied().chain([bytes.len() - 1, 0, 1, 15]) {
            bad.push((format!("until {end}"), bytes[..end].to_vec()));
            bad.push((format!("from {}", end + 1), bytes[end + 1..].to_vec()));
        }
        bad.push(("and more".to_owned(), [&bytes[..], b"x"].concat()));
        bad.push(("twice".to_owned(), bytes.repeat(2)));
        for (what, changed) in bad.into_iter().filter(|(_, changed)| *changed != bytes) {
            assert!(made.read(changed).await.is_err(), "{what}, encrypted: {encrypted}");
        }
    }
}

#[tokio::test]
async fn an_archive_that_was_not_written_to_its_end_is_not_there() {
    let (store, tenant, key) = (store(), TenantId::new(), ArchiveKey::new(Uuid::now_v7(), [1; 32]));
    let new = async || {
        let header = Header::new(tenant, Uuid::now_v7(), &key, true, DateTime::UNIX_EPOCH);
        ArchiveWriter::create(Arc::clone(&store), at(), header, &key).await.expect("created")
    };
    let mut archive = new().await;
    archive.begin(Kind::Rows, "rows").expect("begun");
    assert!(archive.begin(Kind::Rows, "more").is_err(), "one at a time");
    archive.write(&noise(8, 9_000_000)).await.expect("written");
    assert!(archive.finish(json!({})).await.is_err(), "a segment is open");
    let mut archive = new().await;
    archive.begin(Kind::Rows, "rows").expect("begun");
    let many = noise(8, 10_000_000);
    {
        // Stopped in the middle.
        let write = std::pin::pin!(archive.write(&many));
        assert!(futures_util::FutureExt::now_or_never(write).is_none());
    }
    assert!(archive.write(b"more").await.is_err());
    assert!(archive.end(1).await.is_err());
    assert!(archive.finish(json!({})).await.is_err());
    let mut archive = new().await;
    archive.begin(Kind::Rows, "rows").expect("begun");
    archive.end(0).await.expect("ended");
    assert!(archive.begin(Kind::Objects, "rows").is_err(), "a name is one's alone");
    archive.abort().await;
    assert!(store.head(&at()).await.is_err());
}

struct Shelf {
    blobs: Blobs,
    store: Arc<dyn ObjectStore>,
    tenant: TenantId,
    key: ArchiveKey,
}

impl Shelf {
    fn new(store: Arc<dyn ObjectStore>, encrypted: bool) -> Self {
        let key = ArchiveKey::new(Uuid::now_v7(), rand::random());
        let blobs = Blobs::new(Arc::clone(&store), Path::from("backups"));
        let blobs = if encrypted { blobs } else { blobs.without_encryption() };
        Self { blobs, store, tenant: TenantId::new(), key }
    }

    async fn put(&self, content: &[u8]) -> BlobRef {
        self.blobs.put(self.tenant, &self.key, streamed(content)).await.expect("put")
    }

    async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = self.blobs.get(self.tenant, &self.key, blob).await?.try_collect().await?;
        Ok(pieces.concat())
    }

    async fn files(&self) -> Vec<Path> {
        self.store.list(None).map_ok(|meta| meta.location).try_collect().await.expect("listed")
    }
}

fn streamed(content: &[u8]) -> impl futures_util::Stream<Item = Result<Bytes>> + Send + use<> {
    stream::iter(content.chunks(1_000_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>())
}

#[tokio::test]
async fn contents_are_stored_once_whatever_their_size() {
    let folder = std::env::temp_dir().join(format!("tenancy-blobs-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder");
    let stores: [Arc<dyn ObjectStore>; 2] = [store(), Arc::new(LocalFileSystem::new_with_prefix(&folder).expect("a store"))];
    for (n, store) in stores.into_iter().enumerate() {
        let shelf = Shelf::new(store, n == 0);
        let mut files = 0;
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 17_000_000] {
            let content = noise(9, size);
            let blob = shelf.put(&content).await;
            assert_eq!(blob.size, size as u64);
            assert!(shelf.get(&blob).await.expect("read") == content, "{size}");
            assert!(shelf.blobs.exists(shelf.tenant, &shelf.key, &blob).await.expect("asked"));
            files += 1;
            assert_eq!(shelf.files().await.len(), files, "nothing is left aside");
            assert_eq!(shelf.put(&content).await, blob);
            assert_eq!(shelf.files().await.len(), files, "the same content is there already");
            assert!(shelf.blobs.is_content(&shelf.key, &blob, streamed(&content)).await.expect("compared"));
            assert!(!shelf.blobs.is_content(&shelf.key, &blob, streamed(&[&content[..], b"!"].concat())).await.expect("compared"));
        }
        let other = Shelf { tenant: TenantId::new(), key: ArchiveKey::new(Uuid::now_v7(), [1; 32]), ..shelf };
        assert_ne!(other.put(&noise(9, 1)).await.name, other.put(&noise(9, CHUNK)).await.name);
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[tokio::test]
async fn contents_of_two_tenants_have_nothing_in_common() {
    let store = store();
    let (one, two) = (Shelf::new(Arc::clone(&store), true), Shelf::new(store, true));
    let (mine, theirs) = (one.put(b"the same").await, two.put(b"the same").await);
    assert_ne!(mine, theirs, "names tell nobody that contents are the same");
    assert_eq!(why(&one.get(&theirs).await.expect_err("another tenant's")), "is missing in the store");
    // The file of another tenant in the place of one's own, even with the same key.
    let files = one.files().await;
    let at = |tenant: TenantId| files.iter().find(|at| at.as_ref().contains(&tenant.to_string())).expect("a file");
    one.store.copy(at(two.tenant), at(one.tenant)).await.expect("copied");
    assert_eq!(why(&one.get(&mine).await.expect_err("refused")), "was changed after it was written");
    let thief = Shelf { tenant: one.tenant, key: two.key.clone(), ..Shelf::new(Arc::clone(&one.store), true) };
    let to: Path = at(two.tenant).as_ref().replace(&two.tenant.to_string(), &one.tenant.to_string()).into();
    one.store.copy(at(two.tenant), &to).await.expect("copied");
    assert_eq!(why(&thief.get(&theirs).await.expect_err("refused")), "was changed after it was written");
}

#[tokio::test]
async fn a_content_that_was_changed_is_refused() {
    for (encrypted, size) in [(true, CHUNK + 99), (false, CHUNK + 99), (true, 0), (false, 8 * 1024 * 1024 + 5)] {
        let shelf = Shelf::new(store(), encrypted);
        let content = noise(10, size);
        let (blob, twin) = (shelf.put(&content).await, shelf.put(&noise(11, size.max(1))).await);
        let files = shelf.files().await;
        let find = |blob: &BlobRef| files.iter().find(|at| at.as_ref().contains(&blob.name)).expect("a file").clone();
        let at = find(&blob);
        let bytes = shelf.store.get(&at).await.expect("there").bytes().await.expect("bytes").to_vec();
        assert_eq!(bytes.len() as u64, sealed(size as u64) + 80);
        let flips = [0, 8, 12, 16, 47, 48, bytes.len() - 33, bytes.len() - 32, bytes.len() - 1, bytes.len() / 2];
        let flipped = flips.map(|at| bytes.iter().enumerate().map(|(n, byte)| if n == at { byte ^ 1 } else { *byte }).collect());
        let theirs = shelf.store.get(&find(&twin)).await.expect("there").bytes().await.expect("bytes").to_vec();
        let cut = [bytes[..bytes.len() - 1].to_vec(), bytes[1..].to_vec(), [&bytes[..], b"x"].concat(), theirs];
        for (n, bad) in flipped.into_iter().chain(cut).enumerate() {
            shelf.store.put(&at, bad.into()).await.expect("put");
            let error = shelf.get(&blob).await.expect_err("refused");
            assert!(!why(&error).is_empty(), "{n} of {size}");
        }
        shelf.store.put(&at, bytes.into()).await.expect("put");
        assert!(shelf.get(&blob).await.expect("as it was") == content);
        shelf.store.delete(&at).await.expect("deleted");
        assert!(!shelf.blobs.exists(shelf.tenant, &shelf.key, &blob).await.expect("asked"));
        assert_eq!(why(&shelf.get(&blob).await.expect_err("gone")), "is missing in the store");
    }
    let (shelf, name) = (Shelf::new(store(), true), "../../other".to_owned());
    assert!(shelf.get(&BlobRef { name, size: 1 }).await.is_err(), "a name is a hash and nothing else");
}

#[tokio::test]
async fn a_content_that_breaks_off_leaves_nothing() {
    let shelf = Shelf::new(store(), true);
    for size in [1_000, 9_000_000] {
        let broken = streamed(&noise(12, size)).chain(stream::iter([Err(Error::not_found())]));
        assert!(shelf.blobs.put(shelf.tenant, &shelf.key, broken).await.is_err());
        assert!(shelf.files().await.is_empty());
    }
}

#[tokio::test]
async fn sweeping_removes_what_is_old_and_named_by_nobody() {
    let store = store();
    let (shelf, other) = (Shelf::new(Arc::clone(&store), true), Shelf::new(store, true));
    let (kept, stale, theirs) = (shelf.put(b"kept").await, shelf.put(b"stale").await, other.put(b"theirs").await);
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    let keep = [kept.name.clone()].into();
    assert_eq!(shelf.blobs.sweep(shelf.tenant, &keep, now).await.expect("swept"), 0, "young ones stay");
    assert!(shelf.get(&stale).await.is_ok());
    assert_eq!(shelf.blobs.sweep(shelf.tenant, &keep, now + TimeDelta::hours(25)).await.expect("swept"), 1);
    assert!(shelf.get(&kept).await.is_ok() && other.get(&theirs).await.is_ok());
    assert!(shelf.get(&stale).await.is_err());
}
