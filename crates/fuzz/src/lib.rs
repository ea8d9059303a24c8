//! What reads bytes that somebody else wrote, as targets for a fuzzer.
//!
//! `cargo xtask fuzz TARGET SECONDS` runs one under libFuzzer; the corpora in `tests/fuzz`, one folder a target, are
//! replayed by an ordinary test. A target panics when an invariant of what it calls does not hold.

use std::io::Read;

use resources::schema::{self, Validation};
use resources::{DEPTH_MAX, KINDS, depth, patch, protobuf, yaml};
use runtime::protocol::{Envelope, Reply};
use serde_json::{Value, json};

/// Names the target for the fuzzer's process.
pub const TARGET_VARIABLE: &str = "GANTRY_FUZZ_TARGET";

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also its folder in `tests/fuzz`.
    pub name: &'static str,
    /// Panics when something that must never happen does.
    pub run: fn(&[u8]),
}

/// Every target, sorted.
pub const TARGETS: &[Target] = &[
    Target { name: "dns", run: proxy::fuzzing::dns },
    Target { name: "http1", run: proxy::fuzzing::http1 },
    Target { name: "json-patch", run: json_patch },
    Target { name: "keeper", run: keeper },
    Target { name: "protobuf", run: protobuf },
    Target { name: "strategic-patch", run: strategic_patch },
    Target { name: "tar", run: tar },
    Target { name: "yaml", run: yaml },
];

/// The parser of JSON takes so many levels; a patch may hold a value of that depth in a list of operations.
const PARSED_DEPTH_MAX: usize = 128;

/// A document and a patch, with a zero byte between them.
fn json_patch(input: &[u8]) {
    let (document, patch) = halves(input);
    let document = serde_json::from_slice(document).unwrap_or_else(|_| json!({"a": {"b": [1, {"c": "d"}]}}));
    if let Ok(patched) = patch::json::apply(&document, patch) {
        let before = depth::measure(&document).0;
        let after = depth::measure(&patched.object).0;
        assert!(after <= before.max(PARSED_DEPTH_MAX), "{after} levels");
    }
}

/// A kind's number, an object and a patch, with a zero byte between the last two.
fn strategic_patch(input: &[u8]) {
    let Some((number, rest)) = input.split_first() else { return };
    let kind = KINDS[usize::from(*number) % KINDS.len()];
    let Some(schema) = schema::of(kind.schema) else { return };
    let (object, patch) = halves(rest);
    let object = schema::decode(schema, object)
        .map_or_else(|_| json!({"metadata": {"name": "a"}}), |read| read.object);
    for how in [patch::Kind::Strategic, patch::Kind::Merge, patch::Kind::Json] {
        if let Ok((mut patched, _)) = patch::apply(how, schema, &object, patch, Validation::Warn)
            && patched.is_object()
        {
            (kind.default)(&mut patched);
            let _ = (kind.validate)(&patched, None);
        }
    }
}

/// A kind's number and a body.
fn protobuf(input: &[u8]) {
    let Some((number, body)) = input.split_first() else { return };
    let kind = KINDS[usize::from(*number) % KINDS.len()];
    let raw = protobuf::open(body).map_or(body, |envelope| envelope.raw);
    if let Ok(object) = protobuf::decode(kind.schema, raw) {
        let text = object.to_string();
        if let Some(schema) = schema::of(kind.schema) {
            let _ = schema::decode(schema, text.as_bytes());
        }
    }
}

fn yaml(input: &[u8]) {
    if let Ok(value) = yaml::value(input) {
        assert!(
            depth::measure(&value).0 <= DEPTH_MAX + 1,
            "a tag may add one level to what the parser counts"
        );
    }
}

/// One layer, or two with [`BETWEEN`] between them, unpacked over each other into a folder of their own.
fn tar(input: &[u8]) {
    let halves = input.windows(BETWEEN.len()).position(|window| window == BETWEEN);
    let (first, second) = match halves {
        Some(at) => (&input[..at], &input[at + BETWEEN.len()..]),
        None => (input, &[][..]),
    };
    entries(first);
    entries(second);
    images::fuzzing::layers(first, second);
}

const BETWEEN: &[u8] = b"--next-layer--";

/// Every entry is read, checked and named.
fn entries(input: &[u8]) {
    use oci::layer::{Limits, Policy, Reader, decompress};
    let limits = Limits { entries: 1000, bytes: 1 << 20, extended_bytes: 1 << 16, path_bytes: 4096 };
    let Ok(stream) = decompress(input) else { return };
    let mut reader = Reader::new(stream, limits);
    let mut policy = Policy::default();
    let mut bytes = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        let _ = entry.display_path();
        if let Ok(oci::layer::Action::Make { path, .. } | oci::layer::Action::Remove { path }) =
            policy.check(&entry)
        {
            let steps = path.split(|byte| *byte == b'/');
            assert!(!steps.into_iter().any(|step| step == b".."), "a path that leads out");
        }
        let mut content = Vec::new();
        if reader.by_ref().take(1 << 20).read_to_end(&mut content).is_err() {
            break;
        }
        bytes += content.len();
    }
    assert!(bytes <= 2 << 20, "{bytes} bytes of contents");
}

/// What a keeper hears, and what it answers.
fn keeper(input: &[u8]) {
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(input) {
        let text = serde_json::to_vec(&envelope).unwrap_or_default();
        assert!(serde_json::from_slice::<Envelope>(&text).is_ok(), "a request that is not read back");
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(input) {
        let text = serde_json::to_vec(&reply).unwrap_or_default();
        assert!(serde_json::from_slice::<Value>(&text).is_ok(), "an answer that is no JSON");
    }
}

fn halves(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|byte| *byte == 0).unwrap_or(0);
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}
