//! The store against a `BTreeMap`, and against power cuts and full disks on a disk that loses what was not
//! synced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{Event, Expect, Options, Revision, StorageBackend, Store, watch, write};

/// A disk in memory: what is written is visible at once, and lasts once it was synced.
#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Writes since the last sync: any subset of their sectors may survive a power cut.
    unsynced: Vec<(u64, Vec<u8>)>,
    /// Operations until the power goes; afterwards everything fails.
    fuse: Option<u64>,
    /// Bytes that the disk holds.
    capacity: Option<u64>,
    dark: bool,
}

const SECTOR: usize = 512;

impl Platter {
    fn burn(&mut self) -> std::io::Result<()> {
        if let Some(fuse) = &mut self.fuse {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                self.dark = true;
            }
        }
        if self.dark { Err(std::io::Error::other("no power")) } else { Ok(()) }
    }

    /// Power comes back: what was synced is there, and some of the rest.
    fn restart(&mut self, seed: &mut StdRng) {
        let mut bytes = std::mem::take(&mut self.durable);
        for (offset, data) in std::mem::take(&mut self.unsynced) {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                let at = offset as usize + index * SECTOR;
                if seed.random_bool(0.5) {
                    if bytes.len() < at + sector.len() {
                        bytes.resize(at + sector.len(), 0);
                    }
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        // The length is metadata: it may be the old one or the new one.
        if bytes.len() < self.visible.len() && seed.random_bool(0.5) {
            bytes.resize(self.visible.len(), 0);
        }
        self.durable = bytes.clone();
        self.visible = bytes;
        self.fuse = None;
        self.dark = false;
    }
}

#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> std::sync::MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.platter().visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let platter = self.platter();
        let start = offset as usize;
        let bytes = platter.visible.get(start..start + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let mut platter = self.platter();
        platter.burn()?;
        if platter.capacity.is_some_and(|capacity| len > capacity) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        platter.visible.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut platter = self.platter();
        platter.burn()?;
        platter.durable = platter.visible.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut platter = self.platter();
        platter.burn()?;
        let start = offset as usize;
        if platter.visible.len() < start + data.len() {
            platter.visible.resize(start + data.len(), 0);
        }
        platter.visible[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

fn open(disk: &Disk) -> Store {
    let disk = disk.clone();
    Store::open_on(move || Ok(disk.clone()), Options::default()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn contents(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let snapshot = store.snapshot();
    snapshot.range("/", None).map(|(key, entry)| (key.to_string(), entry.value.to_vec())).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, expect: u8, size: u16 },
    Delete { key: u8, expect: u8 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, 0..4u8, 0..3000u16).prop_map(|(key, expect, size)| Step::Put { key, expect, size }),
        3 => (0..12u8, 0..4u8).prop_map(|(key, expect)| Step::Delete { key, expect }),
        1 => Just(Step::Reopen),
    ]
}

fn key(number: u8) -> String {
    let kind = if number.is_multiple_of(2) { "core/pods" } else { "apps/deployments" };
    format!("/{kind}/default/n{number}")
}

fn expect(choice: u8, present: Option<u64>) -> Expect {
    match choice {
        0 => Expect::Absent,
        1 => Expect::Revision(Revision(present.unwrap_or(3))),
        2 => Expect::Revision(Revision(present.map_or(4, |revision| revision - 1))),
        _ => Expect::Any,
    }
}

fn allows(expect: Expect, present: Option<u64>) -> bool {
    match expect {
        Expect::Absent => present.is_none(),
        Expect::Revision(Revision(wanted)) => present == Some(wanted),
        Expect::Any => true,
    }
}

async fn model(steps: Vec<Step>) {
    let disk = Disk(Arc::default());
    let mut store = open(&disk);
    let mut model: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    let mut revision = 0;
    let mut watch = store.watch("/core/pods/", Revision(0)).unwrap();
    let mut remembered = Vec::new();
    let mut replica: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put { key: number, expect: choice, size } => {
                let key = key(number);
                let present = model.get(&key).map(|(revision, _)| *revision);
                let expect = expect(choice, present);
                let result = store
                    .put(&key, expect, move |revision| {
                        format!("{revision}:{}", "x".repeat(size.into())).into()
                    })
                    .await;
                assert_eq!(result.is_ok(), allows(expect, present), "{result:?}");
                if let Ok(entry) = result {
                    revision += 1;
                    assert_eq!(entry.revision, Revision(revision));
                    model.insert(key, (revision, entry.value.to_vec()));
                }
            }
            Step::Delete { key: number, expect: choice } => {
                let key = key(number);
                let present = model.get(&key).map(|(revision, _)| *revision);
                let expect = expect(choice, present);
                let result = store.delete(&key, expect, |revision| revision.to_string().into()).await;
                assert_eq!(result.is_ok(), allows(expect, present) && present.is_some(), "{result:?}");
                if result.is_ok() {
                    revision += 1;
                    model.remove(&key);
                }
            }
            Step::Reopen => {
                follow(&mut watch, &mut replica);
                store.close().await;
                store = open(&disk);
                watch = store.watch("/core/pods/", Revision(revision)).unwrap();
                remembered.clear();
            }
        }
        assert_eq!(store.revision(), Revision(revision));
        remembered.push(pods(&store.snapshot()));
    }
    for (revision, pods_then) in remembered {
        assert_eq!(pods(&store.snapshot_at("/core/pods/", revision).unwrap()), (revision, pods_then));
    }
    follow(&mut watch, &mut replica);
    let all: BTreeMap<_, _> = model.into_iter().map(|(key, (_, value))| (key, value)).collect();
    assert_eq!(contents(&store), all);
    let pods: BTreeMap<_, _> = all.into_iter().filter(|(key, _)| key.starts_with("/core/pods/")).collect();
    assert_eq!(replica, pods);
}

fn pods(snapshot: &store::Snapshot) -> (Revision, Vec<(Arc<str>, store::Entry)>) {
    let pods = snapshot.range("/core/pods/", None).map(|(key, entry)| (key.clone(), entry.clone()));
    (snapshot.revision(), pods.collect())
}

fn follow(watch: &mut store::Watch, replica: &mut BTreeMap<String, Vec<u8>>) {
    let mut events: Vec<Event> = Vec::new();
    watch.take(&mut events, usize::MAX).unwrap();
    for event in events {
        match event.now {
            Some(value) => replica.insert(event.key.to_string(), value.to_vec()),
            None => replica.remove(&*event.key),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_map(steps in proptest::collection::vec(step(), 1..60)) {
        runtime().block_on(model(steps));
    }
}

/// Power goes at a random operation; every acknowledged write is there afterwards, and each other one is
/// there whole or not at all.
#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Disk(Arc::default());
        let store = open(&disk);
        disk.platter().fuse = Some(random.random_range(1..200));
        let mut acknowledged: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut in_flight: Option<(String, Option<Vec<u8>>)> = None;
        let mut revision = Revision(0);
        runtime().block_on(async {
            for _ in 0..400 {
                let key = key(random.random_range(0..12));
                if random.random_bool(0.75) {
                    let value = vec![random.random::<u8>(); random.random_range(1..5000)];
                    let written = value.clone();
                    match store.put(&key, Expect::Any, move |_| written).await {
                        Ok(entry) => {
                            revision = entry.revision;
                            acknowledged.insert(key, value);
                        }
                        Err(_) => {
                            in_flight = Some((key, Some(value)));
                            break;
                        }
                    }
                } else {
                    match store.delete(&key, Expect::Any, |_| Vec::new()).await {
                        Ok(entry) => {
                            revision = entry.revision;
                            acknowledged.remove(&key);
                        }
                        Err(write::Error::Missing) => {}
                        Err(_) => {
                            in_flight = Some((key, None));
                            break;
                        }
                    }
                }
            }
            store.close().await;
        });
        disk.platter().restart(&mut random);
        let store = open(&disk);
        let mut found = contents(&store);
        let lowest = revision;
        if let Some((key, wanted)) = in_flight
            && found != acknowledged
        {
            assert_eq!(found.get(&key), wanted.as_ref(), "seed {seed}: the write in flight is torn");
            found.remove(&key);
            acknowledged.remove(&key);
            assert_eq!(store.revision(), Revision(lowest.0 + 1), "seed {seed}");
        } else {
            assert!(store.revision() >= lowest, "seed {seed}");
        }
        assert_eq!(found, acknowledged, "seed {seed}");
    }
}

/// A full disk is an error that changes nothing, and the store works again once there is room.
#[test]
fn a_full_disk_is_survived() {
    let disk = Disk(Arc::default());
    let store = open(&disk);
    runtime().block_on(async {
        let full = disk.platter().visible.len() as u64;
        disk.platter().capacity = Some(full);
        let mut written = 0;
        let error = loop {
            let key = format!("/core/secrets/default/s{written}");
            match store.put(&key, Expect::Absent, |_| vec![b'x'; 100_000]).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the disk never filled up");
        };
        assert!(matches!(error, write::Error::Full(_)), "{error:?}");
        assert!(error.hint().is_some());
        assert_eq!(contents(&store).len(), written);
        assert_eq!(store.revision(), Revision(written as u64));
        // Reads and small writes go on, and with room so do large ones.
        disk.platter().capacity = None;
        let entry =
            store.put("/core/secrets/default/z", Expect::Absent, |_| vec![b'x'; 100_000]).await.unwrap();
        assert_eq!(entry.revision, Revision(written as u64 + 1));
        store.close().await;
    });
    assert_eq!(contents(&open(&disk)), contents(&store));
}

#[test]
fn who_falls_off_the_ring_is_told() {
    let disk = Disk(Arc::default());
    let options = Options { ring_events: 4, ..Options::default() };
    let store = Store::open_on(move || Ok(disk.clone()), options).unwrap();
    runtime().block_on(async {
        let mut slow = store.watch("/core/pods/", Revision(0)).unwrap();
        let mut other = store.watch("/core/nodes/", Revision(0)).unwrap();
        for number in 0..6 {
            store
                .put(&format!("/core/pods/default/p{number}"), Expect::Any, |_| b"{}".to_vec())
                .await
                .unwrap();
        }
        let mut events = Vec::new();
        assert!(matches!(slow.take(&mut events, 10), Err(watch::Error::TooOld { .. })));
        assert!(matches!(store.watch("/core/pods/", Revision(1)), Err(watch::Error::TooOld { .. })));
        let mut recent = store.watch("/core/pods/", Revision(2)).unwrap();
        assert_eq!(recent.take(&mut events, 3).unwrap(), Revision(5));
        assert_eq!(recent.take(&mut events, 3).unwrap(), Revision(6));
        assert_eq!(events.len(), 4);
        // Another kind's ring is untouched, and its watchers know how far they are.
        assert_eq!(other.take(&mut events, 10).unwrap(), Revision(6));
    });
}

#[test]
fn writers_and_watchers_agree_under_concurrency() {
    let disk = Disk(Arc::default());
    let store = open(&disk);
    runtime().block_on(async {
        let mut watch = store.watch("/core/pods/", Revision(0)).unwrap();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let store = store.clone();
                async move {
                    for round in 0..25 {
                        let key = format!("/core/pods/default/p{}", round % 5);
                        store
                            .put(&key, Expect::Any, move |_| format!("{writer}/{round}").into())
                            .await
                            .unwrap();
                    }
                }
            })
            .collect();
        let mut set = tokio::task::JoinSet::new();
        for writer in writers {
            set.spawn(writer);
        }
        let mut last = Revision(0);
        let mut previous: BTreeMap<String, Arc<[u8]>> = BTreeMap::new();
        for _ in 0..200 {
            let event = watch.next().await.unwrap();
            assert_eq!(event.revision, Revision(last.0 + 1));
            last = event.revision;
            let now = event.now.unwrap();
            let before = event.before.map(|entry| entry.value);
            assert_eq!(previous.insert(event.key.to_string(), now), before);
            assert!(store.revision() >= last);
        }
        set.join_all().await;
    });
}

#[test]
fn five_thousand_objects_open_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::open(&path, Options::default()).unwrap();
    runtime().block_on(async {
        let mut set = tokio::task::JoinSet::new();
        for number in 0..5000 {
            let store = store.clone();
            set.spawn(async move {
                let key = format!("/core/configmaps/default/c{number:05}");
                store.put(&key, Expect::Absent, |_| vec![b'x'; 1500]).await.unwrap();
            });
        }
        set.join_all().await;
        store.close().await;
    });
    let store = Store::open(&path, Options::default()).unwrap();
    assert_eq!(store.snapshot().range("/core/configmaps/", None).count(), 5000);
    assert_eq!(store.revision(), Revision(5000));
}

#[tokio::test]
async fn beyond_the_quota_only_what_is_needed_to_become_less_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::open(folder.path(), Options { quota_bytes: 1000, ..Options::default() }).unwrap();
    let store = open();
    let bytes = |count: usize| move |_| vec![b'x'; count];
    store.put("/core/configmaps/d/a", Expect::Absent, bytes(900)).await.unwrap();
    let refused = store.put("/core/configmaps/d/b", Expect::Absent, bytes(200)).await.unwrap_err();
    assert!(matches!(refused, write::Error::Quota { used: 920, wanted: 220, limit: 1000 }), "{refused:?}");
    assert!(store.get("/core/configmaps/d/b").is_none());
    let revision = store.revision();
    store.put_beyond_quota("/core/leases/d/l", Expect::Absent, bytes(200)).await.unwrap();
    assert_eq!(store.revision(), Revision(revision.0 + 1), "what was refused took no revision");
    // Less than before passes, more does not.
    store.put("/core/configmaps/d/a", Expect::Any, bytes(850)).await.unwrap();
    assert!(store.put("/core/configmaps/d/a", Expect::Any, bytes(851)).await.is_err());
    store.close().await;
    drop(store);
    let store = open();
    assert!(
        store.put("/core/configmaps/d/b", Expect::Absent, bytes(200)).await.is_err(),
        "after a restart too"
    );
    store.delete("/core/configmaps/d/a", Expect::Any, bytes(850)).await.unwrap();
    store.put("/core/configmaps/d/b", Expect::Absent, bytes(200)).await.unwrap();
}
