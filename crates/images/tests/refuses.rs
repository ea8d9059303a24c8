//! Archives and layers that lie, are torn, or lead out of the image: each is refused, and nothing is left of it.

mod support;

use std::path::Path;

use images::{Store, import::Options};
use oci::{Descriptor, Digest, Index, layer::Limits, media_type};
use support::{Parts, archive, blob, layer, raw_entry, raw_layer};
use tar::EntryType;

/// Everything below a folder, but the lock.
fn contents(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path().strip_prefix(dir).unwrap().display().to_string());
        }
    }
    found.retain(|path| !matches!(path.as_str(), "blobs/lock"));
    found.sort();
    found
}

/// The layout of an image with a layer of raw entries `(kind, path, link)`.
fn with_entries(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let raw = raw_layer(|builder| {
        for (kind, path, link) in entries {
            raw_entry(builder, *kind, path, link, b"");
        }
    });
    archive(&Parts::new(vec![raw]).layout("localhost/evil:1"))
}

fn damaged(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = Parts::hello();
    change(&mut parts);
    archive(&parts.layout("localhost/evil:1"))
}

fn refiled(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut files = Parts::hello().layout("localhost/evil:1");
    change(&mut files);
    archive(&files)
}

fn reconfigured(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    damaged(|parts| {
        change(parts);
        parts.manifest.config = Descriptor::of(media_type::OCI_CONFIG, &parts.config.to_vec());
    })
}

fn relayered(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    damaged(|parts| {
        change(&mut parts.layers[1]);
        parts.manifest.layers[1] = Descriptor::of(media_type::OCI_LAYER_GZIP, &parts.layers[1]);
    })
}

fn huge() -> (Vec<u8>, Digest) {
    raw_layer(|builder| {
        let mut header = tar::Header::new_gnu();
        header.set_path("huge").unwrap();
        header.set_size(1 << 62);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    })
}

fn corpus() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = archive(&Parts::hello().layout("localhost/evil:1"));
    let saved = Parts::hello().saved("localhost/evil:1");
    let file = EntryType::Regular;
    let symlink = EntryType::Symlink;
    vec![
        ("empty file", Vec::new(), "NotAnArchive"),
        ("no tar", vec![b'x'; 4096], "Header"),
        ("cut in the middle", good[..good.len() / 2].to_vec(), "Torn"),
        ("cut after an entry", archive(&Parts::hello().layout("localhost/evil:1")[..3]), "Missing"),
        ("gzip cut short", gzip(&good)[..400].to_vec(), "Torn"),
        ("blob under another's digest", refiled(|files| files[4].1 = b"other".to_vec()), "WrongDigest"),
        ("blob with a bad name", refiled(|files| files[4].0 = "blobs/sha256/zz".into()), "Name"),
        ("size that is not the blob's", damaged(|p| p.manifest.layers[0].size += 1), "WrongSize"),
        ("wrong diff id", reconfigured(|p| p.config.rootfs.diff_ids[0] = Digest::of(b"x")), "WrongDiffId"),
        ("too few diff ids", reconfigured(|p| drop(p.config.rootfs.diff_ids.pop())), "LayerCount"),
        (
            "root file system of another kind",
            reconfigured(|p| p.config.rootfs.kind = "x".into()),
            "RootFsType",
        ),
        ("layer whose gzip is cut", relayered(|l| l.truncate(l.len() - 9)), "Torn"),
        ("layer whose gzip is damaged", relayered(|l| l[40] ^= 0x55), "Layer"),
        ("layer that is no tar", relayered(|l| *l = vec![7; 2048]), "Layer"),
        ("path traversal", with_entries(&[(file, "../../etc/cron.d/x", "")]), "Traversal"),
        ("path traversal in the middle", with_entries(&[(file, "a/../../x", "")]), "Traversal"),
        (
            "symlink to / and through it",
            with_entries(&[(symlink, "l", "/"), (file, "l/etc/x", "")]),
            "BelowLink",
        ),
        ("relative symlink out", with_entries(&[(symlink, "a/l", "../../x")]), "LinkEscapes"),
        ("hard link out", with_entries(&[(EntryType::Link, "h", "../../etc/shadow")]), "LinkEscapes"),
        (
            "hard link through a link",
            with_entries(&[(symlink, "l", "/etc"), (EntryType::Link, "h", "l/shadow")]),
            "BelowLink",
        ),
        ("block device", with_entries(&[(EntryType::Block, "dev/sda", "")]), "Device"),
        ("character device", with_entries(&[(EntryType::Char, "dev/mem", "")]), "Device"),
        ("whiteout of ..", with_entries(&[(file, "a/.wh...", "")]), "Whiteout"),
        ("sparse file", with_entries(&[(EntryType::GNUSparse, "s", "")]), "UnknownType"),
        ("huge declared size", archive(&Parts::new(vec![huge()]).layout("localhost/evil:1")), "TooLarge"),
        (
            "bomb",
            archive(
                &Parts::new(vec![layer(|w| {
                    w.file("a", 0o644, 3 << 19, std::io::repeat(0))?;
                    w.file("b", 0o644, 3 << 19, std::io::repeat(0))
                })])
                .layout("localhost/evil:1"),
            ),
            "TooMuch",
        ),
        ("missing layer", refiled(|files| drop(files.pop())), "BlobMissing"),
        ("missing config", refiled(|files| drop(files.remove(3))), "BlobMissing"),
        ("missing manifest", refiled(|files| drop(files.remove(2))), "BlobMissing"),
        ("missing layout file", refiled(|files| drop(files.remove(0))), "Missing"),
        ("bad JSON in the index", refiled(|files| files[1].1 = b"{".to_vec()), "Json"),
        (
            "bad JSON in the manifest",
            refiled(|files| reindex(files, b"{\"schemaVersion\":2,", media_type::OCI_MANIFEST)),
            "Json",
        ),
        (
            "schema version 1",
            refiled(|files| reindex(files, br#"{"schemaVersion":1,"layers":[]}"#, media_type::OCI_MANIFEST)),
            "SchemaVersion",
        ),
        ("duplicate index", refiled(|files| files.push(files[1].clone())), "Duplicate"),
        ("one manifest listed with two sizes", refiled(|files| list_twice(files)), "Conflict"),
        (
            "unknown manifest media type",
            refiled(|files| reindex(files, br#"{"schemaVersion":2}"#, "text/html")),
            "UnknownMediaType",
        ),
        (
            "manifest that says it is an index",
            refiled(|files| {
                reindex(files, br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#, media_type::OCI_MANIFEST)
            }),
            "MediaTypeMismatch",
        ),
        (
            "unknown layer media type",
            damaged(|p| p.manifest.layers[0].media_type = "text/plain".into()),
            "UnknownLayer",
        ),
        (
            "an artifact's layout version",
            refiled(|files| files[0].1 = br#"{"imageLayoutVersion":"9"}"#.to_vec()),
            "Layout",
        ),
        ("no image", refiled(|files| files[1].1 = Index::new(vec![]).to_vec()), "Empty"),
        ("name that is none", archive(&Parts::hello().layout("Local Host!")), "Name"),
        ("no name", archive(&unnamed()), "Unnamed"),
        ("docker save without a layer", archive(&saved[1..]), "Missing"),
        ("docker save with bad JSON", archive(&[("manifest.json".to_owned(), b"[{".to_vec())]), "Json"),
        ("archive entry that leads out", archive(&[("../x".to_owned(), b"x".to_vec())]), "Traversal"),
        (
            "archive with a device",
            raw_layer(|b| raw_entry(b, EntryType::Block, "index.json", "", b"")).0,
            "Kind",
        ),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unnamed() -> Vec<(String, Vec<u8>)> {
    let mut files = Parts::hello().layout("localhost/evil:1");
    let mut index: Index = serde_json::from_slice(&files[1].1).unwrap();
    index.manifests[0].annotations.clear();
    files[1].1 = index.to_vec();
    files
}

/// Makes the index list other bytes as the image's manifest.
fn reindex(files: &mut [(String, Vec<u8>)], manifest: &[u8], media_type: &str) {
    files[1].1 = Index::new(vec![Descriptor::of(media_type, manifest)]).to_vec();
    files[2] = blob(manifest);
}

fn list_twice(files: &mut [(String, Vec<u8>)]) {
    let mut index: Index = serde_json::from_slice(&files[1].1).unwrap();
    let mut other = index.manifests[0].clone();
    other.size += 1;
    index.manifests.push(other);
    files[1].1 = index.to_vec();
}

#[test]
fn every_lying_or_torn_archive_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let before = contents(dir.path());
    let limits = Limits { bytes: 2 << 20, ..Limits::default() };
    for (name, bytes, why) in corpus() {
        let options = Options { limits, ..Options::default() };
        let error = match store.import(bytes.as_slice(), &options) {
            Ok(images) => panic!("{name}: accepted as {images:?}"),
            Err(error) => error,
        };
        assert!(format!("{error:?}").contains(why), "{name}: {error:?}");
        assert_eq!(contents(dir.path()), before, "{name}");
    }
}

#[test]
fn a_layer_that_lies_is_refused_again_when_it_is_unpacked() {
    // A registry takes in what is well-formed; the layers are judged here.
    let cases: Vec<(&str, Parts)> = vec![
        ("diff id", {
            let mut parts = Parts::hello();
            parts.config.rootfs.diff_ids[1] = Digest::of(b"x");
            parts.manifest.config = Descriptor::of(media_type::OCI_CONFIG, &parts.config.to_vec());
            parts
        }),
        ("hard link to nothing", {
            Parts::new(vec![raw_layer(|b| raw_entry(b, EntryType::Link, "h", "absent", b""))])
        }),
        ("below a file of a lower layer", {
            let base = layer(|w| w.file("f", 0o644, 0, std::io::empty()));
            Parts::new(vec![base, raw_layer(|b| raw_entry(b, EntryType::Regular, "f/x", "", b""))])
        }),
        ("torn", {
            let mut parts = Parts::hello();
            let len = parts.layers[1].len();
            parts.layers[1].truncate(len - 20);
            parts.manifest.layers[1] = Descriptor::of(media_type::OCI_LAYER_GZIP, &parts.layers[1]);
            parts
        }),
    ];
    for (name, parts) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for bytes in parts.layers.iter().chain([&parts.config.to_vec()]) {
            store.put(bytes, None).unwrap();
        }
        let reference = "localhost/x:1".parse().unwrap();
        let document = store.put_manifest(&reference, parts.manifest.to_vec(), None).unwrap();
        assert!(store.tree(&document.descriptor.digest).is_err(), "{name}");
        // The base may stay: it was whole.
        let trees: Vec<String> =
            contents(&dir.path().join("trees")).into_iter().filter(|p| p.contains(".tmp")).collect();
        assert!(trees.is_empty(), "{name}: {trees:?}");
    }
}

#[test]
fn a_link_of_a_lower_layer_does_not_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    let target = outside.display().to_string();
    let base = layer(|w| w.symlink("l", &target));
    let through = raw_layer(|b| raw_entry(b, EntryType::Regular, "l/x", "", b"x"));
    let parts = Parts::new(vec![base, through]);
    for bytes in parts.layers.iter().chain([&parts.config.to_vec()]) {
        store.put(bytes, None).unwrap();
    }
    let document =
        store.put_manifest(&"localhost/x:1".parse().unwrap(), parts.manifest.to_vec(), None).unwrap();
    // Inside the image the link dangles, so there is nowhere to put the file.
    assert!(store.tree(&document.descriptor.digest).is_err());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}
