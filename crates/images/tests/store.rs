//! The store as its users see it: import, unpack, export, collect; and what a crash or a full disk leaves.

mod support;

use std::{
    collections::HashSet,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use images::{Error, Store, garbage::Grace, import::Options};
use oci::{Descriptor, Digest, Reference, media_type};
use support::{Parts, archive, layer, raw_entry, raw_layer};

const NO_GRACE: Grace = Grace { blobs: Duration::ZERO, untagged: Duration::ZERO };

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn put(store: &Store, parts: &Parts, name: &str) -> Digest {
    for bytes in parts.layers.iter().chain([&parts.config.to_vec()]) {
        store.put(bytes, None).unwrap();
    }
    let document = store.put_manifest(&reference(name), parts.manifest.to_vec(), None).unwrap();
    document.descriptor.digest
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn imports_exports_and_imports_again() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Store::open(a.path()).unwrap();
    let parts = Parts::hello();
    let imported =
        first.import(archive(&parts.layout("localhost/hello:1")).as_slice(), &Options::default()).unwrap();
    assert_eq!(imported[0].names, [reference("localhost/hello:1")]);
    let names = [reference("localhost:5050/hello:1")];
    let one = first.export(&names, Vec::new()).unwrap();
    assert_eq!(one, first.export(&names, Vec::new()).unwrap());
    let second = Store::open(b.path()).unwrap();
    let again = second.import(one.as_slice(), &Options::default()).unwrap();
    assert_eq!(again, imported);
    assert_eq!(second.resolve(&names[0]).unwrap().unwrap().digest, imported[0].descriptor.digest);
    assert!(matches!(second.export(&[reference("nope")], Vec::new()), Err(Error::NameUnknown(_))));
}

#[test]
fn imports_what_an_old_docker_saves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let parts = Parts::hello();
    let imported =
        store.import(archive(&parts.saved("hello:latest")).as_slice(), &Options::default()).unwrap();
    assert_eq!(imported[0].names, [reference("docker.io/library/hello:latest")]);
    let tree = store.tree(&imported[0].descriptor.digest).unwrap();
    assert_eq!(read(tree.path.join("hello")), "program");
    let named = Options { name: Some(reference("localhost/own:2")), ..Options::default() };
    store.import(archive(&parts.saved("hello:latest")).as_slice(), &named).unwrap();
    assert!(store.resolve(&reference("localhost/own:2")).unwrap().is_some());
}

#[test]
fn unpacks_layers_on_top_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let base = layer(|w| {
        w.file("etc/keep", 0o640, 4, &b"base"[..])?;
        w.file("etc/gone", 0o644, 0, std::io::empty())?;
        w.file("opq/old", 0o644, 0, std::io::empty())?;
        w.file("changed", 0o644, 3, &b"old"[..])?;
        w.directory("becomes-file/x", 0o755)?;
        w.symlink("lib", "usr/lib")?;
        w.directory("usr/lib", 0o755)?;
        w.file("bin/a", 0o4755, 1, &b"a"[..])?;
        w.hardlink("bin/b", "bin/a")
    });
    let top = layer(|w| {
        w.file("opq/new", 0o644, 0, std::io::empty())?;
        w.file("opq/.wh..wh..opq", 0o644, 0, std::io::empty())?;
        w.file("etc/.wh.gone", 0o644, 0, std::io::empty())?;
        w.file("changed", 0o600, 3, &b"new"[..])?;
        w.file("becomes-file", 0o644, 0, std::io::empty())?;
        w.directory("tmp", 0o1777)
    });
    let base_only = Parts::new(vec![base.clone()]);
    // Without an entry for its folder, the file goes where the lower layer's link leads.
    let through = raw_layer(|b| raw_entry(b, tar::EntryType::Regular, "lib/x.so", "", b"so"));
    let whole = Parts::new(vec![base, top, through]);
    let tree = store.tree(&put(&store, &whole, "localhost/x:1")).unwrap();
    let at = |path: &str| tree.path.join(path);
    assert_eq!(read(at("etc/keep")), "base");
    assert_eq!(read(at("changed")), "new");
    assert_eq!(read(at("usr/lib/x.so")), "so");
    assert!(!at("etc/gone").exists() && !at("opq/old").exists() && at("opq/new").exists());
    assert!(at("becomes-file").is_file());
    let mode = |path: &str| std::fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("bin/a"), mode("tmp"), mode("changed")), (0o4755, 0o1777, 0o600));
    assert_eq!(std::fs::metadata(at("bin/a")).unwrap().ino(), std::fs::metadata(at("bin/b")).unwrap().ino());
    assert_eq!(std::fs::metadata(at("changed")).unwrap().mtime(), 0);
    // The base is a tree of its own and saw none of it.
    let below = store.tree(&put(&store, &base_only, "localhost/x:base")).unwrap();
    assert_eq!(read(below.path.join("changed")), "old");
    assert!(below.path.join("etc/gone").exists() && !below.path.join("usr/lib/x.so").exists());
    assert_eq!(store.tree(&tree.digest).unwrap().path, tree.path);
}

#[test]
fn keeps_the_layers_order_of_entries() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let twice = raw_layer(|b| {
        raw_entry(b, tar::EntryType::Regular, "a", "", b"first");
        raw_entry(b, tar::EntryType::Regular, "./a", "", b"second");
        raw_entry(b, tar::EntryType::Directory, "d/", "", b"");
        raw_entry(b, tar::EntryType::Regular, "d/in", "", b"x");
        raw_entry(b, tar::EntryType::Fifo, "pipe", "", b"");
    });
    let tree = store.tree(&put(&store, &Parts::new(vec![twice]), "localhost/x")).unwrap();
    assert_eq!(read(tree.path.join("a")), "second");
    assert_eq!(read(tree.path.join("d/in")), "x");
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let tree = store.tree(&put(&store, &Parts::new(vec![]), "localhost/scratch")).unwrap();
    assert_eq!(std::fs::read_dir(tree.path).unwrap().count(), 0);
}

#[test]
fn concurrent_users_of_an_image_get_one_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = put(&store, &Parts::hello(), "localhost/hello");
    let paths: HashSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| store.tree(&digest).unwrap().path)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(paths.len(), 1);
}

#[test]
fn a_crash_leaves_only_what_the_next_start_removes() {
    let dir = tempfile::tempdir().unwrap();
    let digest = {
        let store = Store::open(dir.path()).unwrap();
        let digest = put(&store, &Parts::hello(), "localhost/hello:1");
        // As SIGKILL would: the destructors that clean up do not run.
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(b"half of a blob").unwrap();
        std::mem::forget(ingest);
        std::fs::create_dir_all(dir.path().join("trees/.tmp-1-1/rootfs/etc")).unwrap();
        let tags = dir.path().join("names/localhost/hello/tags");
        std::fs::write(tags.join(".staged-1-1"), b"{").unwrap();
        digest
    };
    // The forgotten ingest holds the store, and with it the lock, as a dead process would not.
    std::fs::remove_file(dir.path().join("blobs/lock")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.resolve(&reference("localhost/hello:1")).unwrap().unwrap().digest, digest);
    let mut left = Vec::new();
    for folder in ["blobs/sha256", "trees", "names/localhost/hello/tags"] {
        for entry in std::fs::read_dir(dir.path().join(folder)).unwrap() {
            left.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    assert_eq!(store.usage().unwrap().1, 4);
    store.tree(&digest).unwrap();
}

#[test]
fn a_tree_that_is_not_complete_is_unpacked_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = put(&store, &Parts::hello(), "localhost/hello");
    let tree = store.tree(&digest).unwrap();
    std::fs::write(tree.path.join("hello"), b"torn").unwrap();
    std::fs::write(tree.path.join("../complete"), br#"{"version":1,"boot":"another"}"#).unwrap();
    assert_eq!(read(store.tree(&digest).unwrap().path.join("hello")), "program");
}

#[test]
fn what_arrives_is_what_was_announced_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.put(b"x", Some(&Digest::of(b"y"))), Err(Error::WrongDigest { .. })));
    let mut small = store.ingest().unwrap().limit(3);
    assert!(matches!(small.write_all(b"1234"), Err(Error::TooLarge { limit: 3 })));
    drop(small);
    assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    let long = Digest::of_with(oci::digest::Algorithm::Sha512, b"x");
    assert_eq!(store.put(b"x", Some(&long)).unwrap(), long);
    assert!(store.has(&long) && !store.has(&Digest::of(b"x")));
    let missing = store.put_manifest(&reference("localhost/x"), Parts::hello().manifest.to_vec(), None);
    assert!(matches!(missing, Err(Error::BlobMissing(_))));
}

#[test]
fn a_second_process_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(Error::Locked(_))));
}

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_nothing_torn() {
    // A tmpfs of 1 MiB needs root; without it there is no small disk to fill.
    let dir = tempfile::tempdir().unwrap();
    let (flags, options) = (rustix::mount::MountFlags::empty(), c"size=1m");
    if let Err(error) = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(options)) {
        assert!(std::env::var_os("CI").is_none(), "cannot mount a tmpfs: {error}");
        writeln!(std::io::stderr(), "skipped: cannot mount a tmpfs: {error}").unwrap();
        return;
    }
    let result = std::panic::catch_unwind(|| fill_a_disk(dir.path()));
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    result.unwrap();
}

fn fill_a_disk(state: &Path) {
    let store = Store::open(state).unwrap();
    let good = put(&store, &Parts::hello(), "localhost/good:1");
    let mut ingest = store.ingest().unwrap();
    let error = std::iter::repeat_with(|| ingest.write_all(&[1; 64 << 10])).find_map(Result::err).unwrap();
    assert!(error.is_disk_full() && error.hint().unwrap().contains("image rm"), "{error:?}");
    drop(ingest);
    // Big when unpacked, small as a blob: the tree does not fit.
    let big = layer(|w| w.file("zeros", 0o644, 4 << 20, std::io::repeat(0)));
    let digest = put(&store, &Parts::new(vec![big]), "localhost/big:1");
    let error = store.tree(&digest).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert_eq!(std::fs::read_dir(state.join("trees")).unwrap().count(), 0);
    let noise: Vec<u8> = (0..2u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let parts = Parts::new(vec![layer(|w| w.file("noise", 0o644, noise.len() as u64, noise.as_slice()))]);
    let error =
        store.import(archive(&parts.layout("localhost/n:1")).as_slice(), &Options::default()).unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    store.tree(&good).unwrap();
    assert_eq!(store.names().unwrap().len(), 2);
}

#[test]
fn garbage_is_what_nothing_reaches() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let program = |text: &'static str| {
        Parts::new(vec![
            layer(|w| w.file("base", 0o644, 0, std::io::empty())),
            layer(move |w| w.file("p", 0o755, text.len() as u64, text.as_bytes())),
        ])
    };
    let old = put(&store, &program("old"), "localhost/app:latest");
    let used = put(&store, &program("used"), "localhost/app:latest");
    let now = put(&store, &program("now"), "localhost/app:latest");
    for digest in [&old, &used, &now] {
        store.tree(digest).unwrap();
    }
    let stray = store.put(b"stray", None).unwrap();
    let in_use = HashSet::from([used.clone()]);
    // Everything is new: nothing goes.
    assert_eq!(store.collect_garbage(&in_use).unwrap(), Default::default());
    let collected = store.collect_garbage_after(&in_use, NO_GRACE).unwrap();
    // The old manifest, its configuration and layer, the stray blob; the base is shared.
    assert_eq!((collected.blobs, collected.manifests, collected.trees), (4, 1, 1));
    assert!(!store.has(&stray) && !store.has(&old));
    for digest in [&used, &now] {
        assert!(store.tree(digest).unwrap().path.join("p").exists());
    }
    assert!(store.resolve(&reference("localhost/app").with_digest(used)).unwrap().is_some());
    assert!(store.resolve(&reference("localhost/app").with_digest(old)).unwrap().is_none());
}

#[test]
fn a_signature_lives_as_long_as_its_subject() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let parts = Parts::hello();
    let subject = put(&store, &parts, "localhost/app:1");
    let mut signature = Parts::new(vec![layer(|w| w.file("sig", 0o644, 0, std::io::empty()))]);
    let raw = parts.manifest.to_vec();
    signature.manifest.subject = Some(Descriptor::of(media_type::OCI_MANIFEST, &raw));
    signature.manifest.artifact_type = Some("application/x-signature".into());
    let digest = Digest::of(&signature.manifest.to_vec());
    put(&store, &signature, &format!("localhost/app@{digest}"));
    let repository = reference("localhost/app");
    store.collect_garbage_after(&HashSet::new(), NO_GRACE).unwrap();
    let referrers = store.referrers(&repository, &subject).unwrap();
    assert_eq!(referrers[0].artifact_type.as_deref(), Some("application/x-signature"));
    store.remove_name(&reference("localhost/app:1")).unwrap();
    store.collect_garbage_after(&HashSet::new(), NO_GRACE).unwrap();
    assert!(store.referrers(&repository, &subject).unwrap().is_empty());
    assert!(store.repositories().unwrap().is_empty());
    assert_eq!(store.usage().unwrap(), (0, 0));
}

#[test]
fn names_are_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = put(&store, &Parts::hello(), "localhost/a/b:1");
    let descriptor = store.resolve(&reference("localhost/a/b:1")).unwrap().unwrap();
    store.set_name(&reference("nginx:1.27"), &descriptor).unwrap();
    store.set_name(&reference("localhost:5050/a/b:2"), &descriptor).unwrap();
    let names: Vec<String> = store.names().unwrap().iter().map(|(name, _)| name.familiar()).collect();
    assert_eq!(names, ["nginx:1.27", "localhost/a/b:1", "localhost/a/b:2"]);
    assert_eq!(store.repositories().unwrap(), ["a/b"]);
    assert!(store.remove_name(&reference("localhost/a/b:1")).unwrap());
    assert!(!store.remove_name(&reference("localhost/a/b:1")).unwrap());
    assert!(matches!(store.remove_blob(&digest), Err(Error::BlobUsed(_))));
    assert!(store.remove_name(&reference("localhost/a/b").with_digest(digest)).unwrap());
    assert!(store.tags(&reference("localhost/a/b")).unwrap().is_none());
    assert!(store.resolve(&reference("nginx:1.27")).unwrap().is_some());
}
