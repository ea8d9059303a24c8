//! What a real kube-apiserver answered to creates, updates, patches and applies, against what this crate makes of the
//! same requests: the object, its field owners, or the refusal.

use resources::schema::{self, Validation};
use resources::status::{Status, Target};
use resources::{KINDS, Kind, apply, patch};
use serde_json::{Value, json};

/// Reads `input --- expected` cases and shows every one that differs.
fn check(corpus: &str, run: impl Fn(&Case) -> Result<Value, Status>) {
    let mut failures = Vec::new();
    let cases: Vec<&str> = corpus.split("\n\n").filter(|c| !c.trim_start().starts_with('#')).collect();
    assert!(cases.len() > 3, "a corpus with hardly a case");
    for text in cases {
        let (input, expected) = text.split_once("\n---\n").expect("a case has two parts");
        let case = Case::parse(input);
        let expected: Value = serde_json::from_str(expected).expect("the answer is JSON");
        let (found, expected) = match run(&case) {
            Ok(object) => (comparable(object), comparable(expected)),
            Err(status) => (json!({ "code": status.code, "message": status.message }), expected),
        };
        if found != expected {
            failures.push(format!("{input}\nexpected {expected}\nfound    {found}"));
        }
    }
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n\n"));
}

struct Case {
    kind: &'static Kind,
    live: Option<Value>,
    manager: String,
    force: bool,
    body: String,
}

impl Case {
    fn parse(text: &str) -> Case {
        let input: Value = serde_json::from_str(text).expect("the input is JSON");
        let text = |key: &str| input[key].as_str().unwrap_or("").to_owned();
        Case {
            kind: KINDS.iter().find(|k| k.resource() == text("kind")).expect("a kind of ours"),
            live: input.get("live").cloned(),
            manager: text("manager"),
            force: input["force"] == true,
            body: text("body"),
        }
    }

    fn request(&self) -> apply::Request<'_> {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        apply::Request { kind: self.kind, manager: &self.manager, subresource: "", now }
    }

    /// What the API server does with a new object once its owners are known.
    fn admit(&self, mut new: Value) -> Result<Value, Status> {
        (self.kind.prepare)(&mut new, self.live.as_ref());
        let errors = (self.kind.validate)(&new, self.live.as_ref());
        if errors.is_empty() {
            return Ok(new);
        }
        let name = new["metadata"]["name"].as_str().unwrap_or("").to_owned();
        Err(Status::invalid(
            Target { group: self.kind.group, resource: self.kind.kind, name: &name },
            &errors,
        ))
    }

    fn tracked(&self, mut new: Value) -> Result<Value, Status> {
        let reset = apply::is_reset(&new);
        (self.kind.default)(&mut new);
        apply::update(self.live.as_ref(), &mut new, reset, &self.request()).map_err(|e| e.status())?;
        self.admit(new)
    }

    fn written(&self) -> Result<Value, Status> {
        let schema = schema::of(self.kind.schema).expect("a schema");
        let decoded = schema::decode(schema, self.body.as_bytes());
        self.tracked(decoded.map_err(|e| Status::bad_request(e.to_string()))?.object)
    }

    fn patched(&self, kind: patch::Kind) -> Result<Value, Status> {
        let schema = schema::of(self.kind.schema).expect("a schema");
        let live = self.live.as_ref().expect("a patch has something to patch");
        self.tracked(patch::apply(kind, schema, live, self.body.as_bytes(), Validation::Warn)?.0)
    }

    fn applied(&self) -> Result<Value, Status> {
        let config: Value = serde_json::from_str(&self.body).expect("the configuration is JSON");
        let mut new =
            apply::apply(self.live.as_ref(), &config, self.force, &self.request()).map_err(|e| e.status())?;
        (self.kind.default)(&mut new);
        self.admit(new)
    }
}

/// Without what only a server with a store and allocators fills in; owners sorted, their times only there or not.
fn comparable(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "namespace"] {
        metadata.remove(field);
    }
    if let Some(entries) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
        for entry in entries.iter_mut() {
            let timed = entry.get("time").is_some();
            entry["time"] = timed.into();
        }
        entries.sort_by_key(|e| [e["manager"].to_string(), e["operation"].to_string()]);
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    object
}

#[test]
fn creates() {
    check(include_str!("corpora/create.txt"), Case::written);
}

#[test]
fn updates() {
    check(include_str!("corpora/update.txt"), Case::written);
}

#[test]
fn json_patches() {
    check(include_str!("corpora/json.txt"), |case| case.patched(patch::Kind::Json));
}

#[test]
fn merge_patches() {
    check(include_str!("corpora/merge.txt"), |case| case.patched(patch::Kind::Merge));
}

#[test]
fn strategic_merge_patches() {
    check(include_str!("corpora/strategic.txt"), |case| case.patched(patch::Kind::Strategic));
}

#[test]
fn applies() {
    check(include_str!("corpora/apply.txt"), Case::applied);
}

#[test]
fn applying_twice_changes_nothing() {
    for text in include_str!("corpora/apply.txt").split("\n\n").skip(1) {
        let mut case = Case::parse(text.split_once("\n---\n").expect("a case has two parts").0);
        let Ok(first) = case.applied() else { continue };
        case.live = Some(first.clone());
        let mut second = case.applied().expect("what was applied can be applied again");
        apply::keep_times(&first, &mut second);
        assert_eq!(second, first, "{text}");
    }
}
