//! What a backup's archive costs: rows compressed and sealed against compressed alone, and objects stored as contents against copied.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use rand::RngCore as _;
use tenancy_core::TenantId;
use tenancy_core::objects::into_error;
use tenancy_sqlx::backup::archive::{ArchiveKey, ArchiveReader, ArchiveWriter, Blobs, Expect, Header, Kind};
use uuid::Uuid;

const ROUNDS: usize = 5;
const ROWS: usize = 64 * 1024 * 1024;
const OBJECTS: usize = 16;
const OBJECT: usize = 8 * 1024 * 1024;

fn say(what: &str, bytes: usize, mut took: Vec<Duration>) {
    took.sort_unstable();
    let rate = bytes as f64 / 1e6 / took[took.len() / 2].as_secs_f64();
    println!("{what:<44} {rate:>8.0} MB/s");
}

/// Rows as a table has them: ids, times, some words.
fn rows() -> Vec<u8> {
    let mut rows = Vec::with_capacity(ROWS + 200);
    let mut n = 0_u64;
    while rows.len() < ROWS {
        rows.extend(Uuid::new_v4().as_bytes());
        rows.extend((n * 977).to_be_bytes());
        rows.extend(format!("row {n} of a table, {} and a body that says {}", n % 97, n.wrapping_mul(2_654_435_761) % 1_000_003).bytes());
        n += 1;
    }
    rows
}

pub(super) async fn archive() -> Result<(), Box<dyn Error>> {
    let (tenant, backup, key) = (TenantId::new(), Uuid::now_v7(), ArchiveKey::new(Uuid::now_v7(), [7; 32]));
    let rows = rows();
    let (mut alone, mut written, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut press = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
        for piece in rows.chunks(8192) {
            press.write_all(piece)?;
        }
        press.finish()?;
        alone.push(start.elapsed());

        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let at = Path::from("archive");
        let start = Instant::now();
        let header = Header::new(tenant, backup, &key, true, chrono::DateTime::UNIX_EPOCH);
        let mut archive = ArchiveWriter::create(Arc::clone(&store), at.clone(), header, &key).await?;
        archive.begin(Kind::Rows, "public.rows")?;
        for piece in rows.chunks(200) {
            archive.write(piece).await?; // as COPY gives them: a message for each row
        }
        archive.end(1).await?;
        let done = archive.finish(serde_json::Value::Null).await?;
        written.push(start.elapsed());

        let start = Instant::now();
        let expect = Expect { tenant, backup, bytes: done.bytes, hash: done.hash };
        ArchiveReader::open(store, at, expect, &key).await?.verify().await?;
        read.push(start.elapsed());
    }
    say("rows: zstd -1 alone", ROWS, alone);
    say("rows: an archive, written", ROWS, written);
    say("rows: an archive, read", ROWS, read);
    objects(tenant, &key).await
}

async fn objects(tenant: TenantId, key: &ArchiveKey) -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("tenancy-bench-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder)?;
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(&folder)?);
    let mut content = vec![0; OBJECT];
    let [mut copied, mut stored, mut known] = [const { [const { Vec::new() }; 2] }; 3];
    for round in 0..ROUNDS {
        for (at_once, n) in [1, 4].into_iter().zip(0..) {
            let from = |n: usize| Path::from(format!("objects/{round}-{at_once}-{n}"));
            for n in 0..OBJECTS {
                rand::rng().fill_bytes(&mut content);
                store.put(&from(n), content.clone().into()).await?;
            }
            let start = Instant::now();
            let copy = async |n: usize| {
                let mut got = store.get(&from(n)).await?.into_stream();
                let mut upload = WriteMultipart::new(store.put_multipart(&Path::from(format!("copies/{round}-{at_once}-{n}"))).await?);
                while let Some(bytes) = got.try_next().await? {
                    upload.put(bytes);
                }
                upload.finish().await.map(drop)
            };
            stream::iter((0..OBJECTS).map(Ok)).try_for_each_concurrent(at_once, copy).await?;
            copied[n].push(start.elapsed());
            let blobs = Blobs::new(Arc::clone(&store), Path::from("backups"));
            for took in [&mut stored, &mut known] {
                let start = Instant::now();
                let put = async |n: usize| {
                    let content = store.get(&from(n)).await.map_err(into_error)?.into_stream().map_err(into_error);
                    blobs.put(tenant, key, content.boxed()).await.map(drop)
                };
                stream::iter((0..OBJECTS).map(Ok)).try_for_each_concurrent(at_once, put).await?;
                took[n].push(start.elapsed());
            }
        }
    }
    std::fs::remove_dir_all(&folder)?;
    for (what, took) in [("copied", copied), ("stored as contents", stored), ("that are stored already", known)] {
        for (took, how) in took.into_iter().zip(["one by one", "four at once"]) {
            say(&format!("objects: {what}, {how}"), OBJECTS * OBJECT, took);
        }
    }
    Ok(())
}
