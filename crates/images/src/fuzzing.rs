//! What unpacks bytes of others, for the fuzzer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use oci::Digest;
use oci::layer::{Limits, decompress};

use crate::unpack::Unpacker;

/// A few files, so that a run is quick.
const LIMITS: Limits = Limits { entries: 200, bytes: 1 << 20, extended_bytes: 1 << 16, path_bytes: 4096 };

/// Unpacks a layer, and then another over it, beside a file that has to stay as it is.
pub fn layers(first: &[u8], second: &[u8]) {
    let Ok(place) = tempfile::tempdir() else { return };
    let (root, canary) = (place.path().join("root"), place.path().join("canary"));
    if fs::create_dir(&root).is_err() || fs::write(&canary, "sings").is_err() {
        return;
    }
    let facts = |path: &Path| {
        fs::symlink_metadata(path).map(|found| (found.mode(), found.uid(), found.nlink(), found.mtime()))
    };
    let before = facts(&canary).ok();
    for layer in [first, second] {
        if let Ok(stream) = decompress(layer)
            && let Ok(unpacker) = Unpacker::open(&root)
        {
            let _ = unpacker.unpack(stream, &Digest::of(b"fuzz"), LIMITS);
        }
    }
    assert_eq!(facts(&canary).ok(), before, "what lies outside was changed");
    assert!(fs::read(&canary).is_ok_and(|text| text == b"sings"), "what lies outside was written to");
    let mut beside: Vec<_> =
        fs::read_dir(place.path()).into_iter().flatten().flatten().map(|one| one.file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["canary", "root"], "something was made outside");
    harmless(&root);
    let _ = durable::remove_dir_all(&root);
}

/// No device, and no file that is somebody else's too.
fn harmless(folder: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        assert!(!kind.is_block_device() && !kind.is_char_device() && !kind.is_socket(), "{:?}", entry.path());
        if kind.is_dir() {
            harmless(&entry.path());
        }
    }
}
