//! Manifests: documents of any kinds, `ko://` references filled in, applied through discovery.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, ValidationDirective},
    discovery::{self, Scope},
};
use serde::Deserialize as _;
use serde_json::Value;

use super::MANAGER;
use crate::failure::{Failure, Result};

/// Bytes of one manifest file.
const FILE_BYTES_MAX: u64 = 16 << 20;
const KO: &str = "ko://";

/// A document and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub origin: String,
    pub value: Value,
}

/// A document that the server knows the kind of.
pub struct Resolved {
    pub document: Document,
    pub api: Api<DynamicObject>,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}

/// Reads files, folders (their .yaml, .yml and .json) and `-` for stdin.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        let failed = |path: &Path, error: std::io::Error| {
            Failure::from_error(&error)
                .context(format!("read {}", path.display()))
                .hint("gantry up -f FILE.yaml".to_owned())
        };
        if path.as_os_str() == "-" {
            let mut text = String::new();
            let read = std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text);
            read.map_err(|error| failed(path, error))?;
            documents.extend(parse(&text, "stdin")?);
            continue;
        }
        let mut files = vec![path.clone()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| failed(path, error))?;
            files = entries.flatten().map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
            files.sort();
        }
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|error| failed(&file, error))?;
            documents.extend(parse(&text, &file.display().to_string())?);
        }
    }
    if documents.is_empty() {
        return Err(Failure::new("the manifests hold no objects").hint("gantry up -f FILE.yaml".to_owned()));
    }
    Ok(documents)
}

/// Reads YAML documents; a List's items count one by one.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Document>> {
    resources::yaml::check(text.as_bytes()).map_err(|error| {
        Failure::new(format!("{origin}: {error}")).hint("split it, or write aliases out".to_owned())
    })?;
    let mut documents = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::new(format!("{origin}, document {}: {error}", index + 1))
                .hint("see that it is valid YAML".to_owned())
        };
        let value = Value::deserialize(document).map_err(|error| wrong(&error))?;
        let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        let values = match value {
            Value::Null => vec![],
            Value::Object(mut list) if is_list && list.contains_key("items") => match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => vec![],
            },
            other => vec![other],
        };
        for value in values {
            for field in ["apiVersion", "kind"] {
                if !value[field].is_string() {
                    return Err(wrong(&format!("{field}: Required value")));
                }
            }
            if !value["metadata"]["name"].is_string() {
                return Err(wrong(&"metadata.name: Required value"));
            }
            documents.push(Document { origin: format!("{origin}, document {}", index + 1), value });
        }
    }
    Ok(documents)
}

/// The `ko://` references in documents, each once, sorted.
pub fn references(documents: &[Document]) -> Vec<String> {
    let mut found = Vec::new();
    documents.iter().for_each(|document| {
        strings(&document.value, &mut |text| {
            if text.starts_with(KO) {
                found.push(text.to_owned());
            }
        })
    });
    found.sort();
    found.dedup();
    found
}

/// Puts images in the place of `ko://` references.
pub fn fill(documents: &mut [Document], images: &BTreeMap<String, String>) {
    fn replace(value: &mut Value, images: &BTreeMap<String, String>) {
        match value {
            Value::String(text) => {
                if let Some(image) = images.get(text.as_str()) {
                    text.clone_from(image);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| replace(item, images)),
            Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, images)),
            _ => {}
        }
    }
    documents.iter_mut().for_each(|document| replace(&mut document.value, images));
}

fn strings(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, see)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, see)),
        _ => {}
    }
}

/// Finds each document's kind at the server.
pub async fn resolve(client: &Client, documents: Vec<Document>, namespace: &str) -> Result<Vec<Resolved>> {
    let mut known: BTreeMap<String, (ApiResource, Scope)> = BTreeMap::new();
    let mut resolved = Vec::new();
    for mut document in documents {
        let text = |field: &str| document.value[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let key = format!("{version} {kind}");
        if !known.contains_key(&key) {
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            let gvk = GroupVersionKind::gvk(group, version, &kind);
            let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await.map_err(|error| {
                let unknown = !matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_));
                let failure = if unknown {
                    Failure::new(format!("{}: no kind {kind:?} in {:?}", document.origin, text("apiVersion")))
                } else {
                    error.into()
                };
                failure.hint("list what there is: kubectl api-resources".to_owned())
            })?;
            known.insert(key.clone(), (resource, capabilities.scope));
        }
        let Some((resource, scope)) = known.get(&key) else { continue };
        let name = document.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let (api, namespace) = match scope {
            Scope::Cluster => (Api::all_with(client.clone(), resource), None),
            Scope::Namespaced => {
                let own = document.value["metadata"]["namespace"].as_str().map(str::to_owned);
                let namespace = own.unwrap_or_else(|| namespace.to_owned());
                document.value["metadata"]["namespace"] = namespace.clone().into();
                (Api::namespaced_with(client.clone(), &namespace, resource), Some(namespace))
            }
        };
        resolved.push(Resolved { document, api, kind, name, namespace });
    }
    // Namespaces first: others live in them.
    resolved.sort_by_key(|object| object.kind != "Namespace");
    Ok(resolved)
}

/// Applies all objects or, when the server would refuse one, none.
pub async fn apply(objects: &[Resolved]) -> Result<Vec<DynamicObject>> {
    let new_namespaces: Vec<&str> =
        objects.iter().filter(|o| o.kind == "Namespace").map(|o| o.name.as_str()).collect();
    for object in objects {
        let in_new = object.namespace.as_deref().is_some_and(|namespace| new_namespaces.contains(&namespace));
        match object.apply(true).await {
            // What a dry run did not make is not there for what lives in it.
            Err(kube::Error::Api(status)) if in_new && status.code == 404 => {}
            Err(error) => return Err(object.refused(error)),
            Ok(_) => {}
        }
    }
    let mut applied = Vec::new();
    for object in objects {
        applied.push(object.apply(false).await.map_err(|error| object.refused(error))?);
    }
    Ok(applied)
}

impl Resolved {
    async fn apply(&self, dry_run: bool) -> std::result::Result<DynamicObject, kube::Error> {
        let parameters = PatchParams {
            dry_run,
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply(MANAGER).force()
        };
        self.api.patch(&self.name, &parameters, &Patch::Apply(&self.document.value)).await
    }

    fn refused(&self, error: kube::Error) -> Failure {
        let origin = &self.document.origin;
        let hint = match &error {
            kube::Error::Api(status) if status.code < 500 => "correct the manifest; nothing was applied",
            _ => "what it depends on failed; apply it again when that is mended",
        };
        Failure::from(error)
            .context(format!("{}/{} ({origin})", self.kind.to_lowercase(), self.name))
            .hint(hint.to_owned())
    }

    /// `deployment/hello`
    pub fn label(&self) -> String {
        format!("{}/{}", self.kind.to_lowercase(), self.name)
    }

    /// Whether its rollout can be followed.
    pub fn is_deployment(&self) -> bool {
        self.kind == "Deployment" && self.document.value["apiVersion"] == "apps/v1"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_and_references_filled() {
        let text = "apiVersion: v1\nkind: A\nmetadata: {name: a}\nspec: {image: 'ko://example.com/x', l: ['ko://./y']}\n---\n---\n\
            apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: B, metadata: {name: b}}\n";
        let mut documents = parse(text, "f.yaml").unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(references(&documents), ["ko://./y", "ko://example.com/x"]);
        fill(
            &mut documents,
            &BTreeMap::from([("ko://example.com/x".to_owned(), "localhost/x@sha256:1".to_owned())]),
        );
        assert_eq!(documents[0].value["spec"]["image"], "localhost/x@sha256:1");
        assert_eq!(documents[0].value["spec"]["l"][0], "ko://./y");
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        let said = |text: &str| parse(text, "f.yaml").unwrap_err().to_string();
        assert!(
            said("kind: A\nmetadata: {name: a}")
                .starts_with("error: f.yaml, document 1: apiVersion: Required value")
        );
        assert!(said("apiVersion: v1\nkind: A").contains("metadata.name: Required value"));
        assert!(said("a: [").starts_with("error: f.yaml, document 1: "));
    }
}
