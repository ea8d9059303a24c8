//! The paths of a kind: what can be done where, with which parameters.

use serde_json::{Map, Value, json};

use super::{META, body_schema};
use crate::kind::{Kind, Subresource};

const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Adds the paths of a kind and its subresources.
pub fn of_kind(kind: &Kind, paths: &mut Map<String, Value>) {
    let plural = kind.plural;
    let root = kind.api_path();
    let scoped = if kind.namespaced() {
        let mut all = Path::new(kind, &[]);
        all.operation("get", "list", &format!("{}List", kind.schema), &LIST);
        paths.insert(format!("{root}/{plural}"), all.finish());
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    let in_namespace: &[&str] = if kind.namespaced() { &["namespace"] } else { &[] };
    let named: &[&str] = if kind.namespaced() { &["name", "namespace"] } else { &["name"] };
    let has = |verb: &str| kind.verbs.contains(&verb);

    let mut collection = Path::new(kind, in_namespace);
    if has("list") {
        collection.operation("get", "list", &format!("{}List", kind.schema), &LIST);
    }
    if has("create") {
        collection.operation("post", "post", kind.schema, &WRITE);
    }
    if has("deletecollection") {
        collection.operation("delete", "deletecollection", &format!("{META}Status"), &LIST);
    }
    paths.insert(scoped.clone(), collection.finish());

    let mut object = Path::new(kind, named);
    if has("get") {
        object.operation("get", "get", kind.schema, &[]);
    }
    if has("update") {
        object.operation("put", "put", kind.schema, &WRITE);
    }
    if has("patch") {
        object.operation("patch", "patch", kind.schema, &PATCH);
    }
    if has("delete") {
        object.operation("delete", "delete", &format!("{META}Status"), &DELETE);
    }
    paths.insert(format!("{scoped}/{{name}}"), object.finish());

    for subresource in kind.subresources {
        let path = of_subresource(kind, subresource, named);
        paths.insert(format!("{scoped}/{{name}}/{}", subresource.name()), path);
    }
}

fn of_subresource(kind: &Kind, subresource: &Subresource, named: &[&str]) -> Value {
    let mut path = Path::new(kind, named);
    path.subresource = Some(*subresource);
    let schema = body_schema(subresource).unwrap_or_else(|| kind.schema.to_owned());
    for verb in subresource.verbs() {
        match *verb {
            "get" => path.operation("get", "get", &schema, &[]),
            "create" => path.operation("post", "post", &schema, &WRITE),
            "update" => path.operation("put", "put", &schema, &WRITE),
            "patch" => path.operation("patch", "patch", &schema, &PATCH),
            "delete" => path.operation("delete", "delete", &schema, &DELETE),
            _ => {}
        }
    }
    path.finish()
}

/// A query parameter: name, type, what it is for.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter =
    ("dryRun", "string", "When it is \"All\", nothing is stored; the answer is as if it were.");
const FIELD_MANAGER: Parameter =
    ("fieldManager", "string", "A name for who makes the change; at most 128 characters. Apply requires it.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What happens to unknown and duplicate fields: Ignore drops them, Warn (the default) drops and names them, Strict refuses the request.",
);
const FORCE: Parameter = ("force", "boolean", "Apply takes fields over that other managers own.");
const LIST: [Parameter; 10] = [
    ("allowWatchBookmarks", "boolean", "A watch may send BOOKMARK events."),
    ("continue", "string", "The token of the page before."),
    ("fieldSelector", "string", "Only objects whose fields have these values."),
    ("labelSelector", "string", "Only objects whose labels are selected."),
    ("limit", "integer", "At most so many objects on a page."),
    ("resourceVersion", "string", "How new the answer must at least be, or where a watch starts."),
    ("resourceVersionMatch", "string", "How resourceVersion is to be understood: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "A watch begins with what is there, then a bookmark."),
    ("timeoutSeconds", "integer", "A watch ends after so long."),
    ("watch", "boolean", "Send changes as they come instead of a list."),
];
const WRITE: [Parameter; 3] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: [Parameter; 4] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: [Parameter; 4] = [
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object may take to end; 0 is at once."),
    ("orphanDependents", "boolean", "Old form of propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];

struct Path<'a> {
    kind: &'a Kind,
    parameters: Vec<Value>,
    operations: Map<String, Value>,
    subresource: Option<Subresource>,
}

impl<'a> Path<'a> {
    fn new(kind: &'a Kind, variables: &[&str]) -> Self {
        let parameters = variables
            .iter()
            .map(|name| {
                json!({
                    "description": if *name == "name" { format!("name of the {}", kind.kind) } else {
                        "object name and auth scope, such as for teams and projects".to_owned()
                    },
                    "in": "path", "name": name, "required": true,
                    "schema": { "type": "string", "uniqueItems": true },
                })
            })
            .collect();
        Path { kind, parameters, operations: Map::new(), subresource: None }
    }

    fn operation(&mut self, method: &str, action: &str, schema: &str, parameters: &[Parameter]) {
        let kind = self.kind;
        let body = self.subresource.as_ref().and_then(Subresource::body);
        let (group, version, name) = body.unwrap_or((kind.group, kind.version, kind.kind));
        let mut operation = json!({
            "description": self.description(action),
            "operationId": self.operation_id(action),
            "tags": [format!("{}_{}", if kind.group.is_empty() { "core" } else { kind.group }, kind.version)],
            "responses": {
                "200": { "description": "OK", "content": content(&["application/json", "application/yaml"], schema) },
                "401": { "description": "Unauthorized" },
            },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": { "group": group, "kind": name, "version": version },
        });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.iter().map(query).collect();
        }
        let body = match method {
            "post" | "put" => Some((content(&["*/*"], schema), true)),
            "patch" => Some((content(PATCHES, &format!("{META}Patch")), true)),
            "delete" => Some((content(&["*/*"], &format!("{META}DeleteOptions")), false)),
            _ => None,
        };
        if let Some((content, required)) = body {
            operation["requestBody"] = json!({ "content": content });
            if required {
                operation["requestBody"]["required"] = true.into();
            }
        }
        self.operations.insert(method.to_owned(), operation);
    }

    fn description(&self, action: &str) -> String {
        let kind = self.kind.kind;
        let what = match &self.subresource {
            Some(subresource) => format!("{} of the specified {kind}", subresource.name()),
            None => format!("the specified {kind}"),
        };
        match action {
            "list" => format!("list or watch objects of kind {kind}"),
            "post" if self.subresource.is_none() => format!("create a {kind}"),
            "post" => format!("create {what}"),
            "deletecollection" => format!("delete collection of {kind}"),
            "delete" => format!("delete a {kind}"),
            "put" => format!("replace {what}"),
            "patch" => format!("partially update {what}"),
            _ => format!("read {what}"),
        }
    }

    fn operation_id(&self, action: &str) -> String {
        let kind = self.kind;
        let verb = match action {
            "list" => "list",
            "post" => "create",
            "deletecollection" | "delete" => "delete",
            "put" => "replace",
            "patch" => "patch",
            _ => "read",
        };
        let group = kind.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        let scope = match (kind.namespaced(), self.parameters.is_empty()) {
            (true, false) => "Namespaced",
            _ => "",
        };
        let collection = if action == "deletecollection" { "Collection" } else { "" };
        let everywhere =
            if kind.namespaced() && self.parameters.is_empty() { "ForAllNamespaces" } else { "" };
        let subresource = self.subresource.map_or("", |s| s.name());
        format!(
            "{verb}{}{}{collection}{scope}{}{}{everywhere}",
            capital(group),
            capital(kind.version),
            kind.kind,
            capital(subresource)
        )
    }

    fn finish(mut self) -> Value {
        self.parameters.push(query(&("pretty", "string", "The answer is indented when it is \"true\".")));
        self.operations.insert("parameters".to_owned(), self.parameters.into());
        Value::Object(self.operations)
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn query((name, ty, description): &Parameter) -> Value {
    json!({
        "description": description, "in": "query", "name": name,
        "schema": { "type": ty, "uniqueItems": true },
    })
}

fn content(media_types: &[&str], schema: &str) -> Value {
    let reference = json!({ "schema": { "$ref": format!("#/components/schemas/{schema}") } });
    Value::Object(media_types.iter().map(|m| ((*m).to_owned(), reference.clone())).collect())
}
