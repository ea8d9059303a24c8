//! The store of each earlier format is opened, and written to, by this release.

use std::io::Read as _;
use std::path::Path;

use store::{Expect, Options, Store};

#[tokio::test]
async fn the_store_of_format_1_is_opened_and_written_on() {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats/1/store.redb.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(packed).unwrap()).read_to_end(&mut bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.redb"), bytes).unwrap();
    let key = "/apps/deployments/default/hello";
    let revision = {
        let store = Store::open(folder.path(), Options::default()).unwrap();
        let entry = store.get(key).expect("the Deployment is there");
        assert!(String::from_utf8_lossy(&entry.value).contains("\"hello\""));
        let revision = store.revision();
        let written = store.put(key, Expect::Revision(entry.revision), |_| b"{}".to_vec()).await.unwrap();
        assert_eq!(written.revision.0, revision.0 + 1, "revisions go on where they were");
        store.close().await;
        written.revision
    };
    let store = Store::open(folder.path(), Options::default()).unwrap();
    assert_eq!(store.get(key).unwrap().revision, revision);
}

#[tokio::test]
async fn a_copy_has_what_was_kept_at_the_same_revision() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("one"), Options::default()).unwrap();
    for name in ["a", "b"] {
        let key = format!("/core/things/default/{name}");
        store.put(&key, Expect::Absent, move |_| name.as_bytes().to_vec()).await.unwrap();
    }
    let snapshot = store.snapshot();
    store.put("/core/things/default/late", Expect::Absent, |_| b"late".to_vec()).await.unwrap();
    let copy = folder.path().join("two");
    snapshot.write_to(&copy, |key, entry| key.ends_with("/b").then(|| entry.clone())).unwrap();
    let copy = Store::open(&copy, Options::default()).unwrap();
    assert_eq!(copy.revision(), snapshot.revision());
    assert_eq!(copy.snapshot().range("/", None).count(), 1);
    assert_eq!(copy.get("/core/things/default/b"), store.get("/core/things/default/b"));
}
