//! `cargo xtask facts`: the table of schema facts in `crates/resources/src/facts/`, from Kubernetes' own OpenAPI
//! files. No prose is taken over: names, types, list and map marks, patch strategies, required fields, key defaults.
//!
//! The table is text: a definition is a line at the margin, each of its fields an indented one.
//!
//! ```text
//! core.v1.Container
//!  args [s L=atomic
//!  env [@core.v1.EnvVar L=map:name P=merge:name
//!  name s ! D=""
//! ```
//!
//! Types: `s` string, `b` boolean, `i` int32, `l` int64, `d` double, `y` base64 bytes, `t` time, `u` time with
//! microseconds, `q` quantity, `x` integer or string, `j` any value, `o` any object, `@name` a definition, `[` a list
//! of, `{` a map of. Marks: `!` required, `L=` list type, `M=` map type, `P=` patch strategy and merge key, `D=`
//! default. A definition's own marks: `M=`, and `G=group/version/Kind`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Groups whose v1 kinds, and all that these refer to, are in the table.
const GROUPS: &[&str] = &[
    "",
    "apiextensions.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
];

/// Where the table is kept, from the workspace's root.
pub const TABLE: &str = "crates/resources/src/facts/table.txt";

type Definitions = BTreeMap<String, Value>;

/// Reads `*.json` from the folder and writes the table.
pub fn run(openapi_dir: &Path) -> Result<()> {
    let definitions = read(openapi_dir)?;
    let table = render(&definitions)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(TABLE);
    std::fs::write(&path, table).with_context(|| format!("write {}", path.display()))
}

fn read(dir: &Path) -> Result<Definitions> {
    let mut definitions = Definitions::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let document: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))?;
        if let Some(schemas) = document.pointer("/components/schemas").and_then(Value::as_object) {
            for (name, schema) in schemas {
                definitions.entry(name.clone()).or_insert_with(|| schema.clone());
            }
        }
    }
    Ok(definitions)
}

fn render(definitions: &Definitions) -> Result<String> {
    let mut queue: Vec<&str> =
        definitions.iter().filter(|(_, d)| is_root(d)).map(|(name, _)| name.as_str()).collect();
    let mut reached: BTreeSet<&str> = queue.iter().copied().collect();
    while let Some(name) = queue.pop() {
        let definition = definitions.get(name).with_context(|| format!("{name} is not defined"))?;
        let mut references = Vec::new();
        collect(definition, &mut references);
        for reference in references {
            if special(reference).is_none() && reached.insert(reference) {
                queue.push(reference);
            }
        }
    }
    let mut out = String::from(
        "# Made by `cargo xtask facts` from the OpenAPI files of k8s.io/kubernetes. Do not edit.\n",
    );
    for name in reached {
        definition(&mut out, name, &definitions[name]).with_context(|| name.to_owned())?;
    }
    Ok(out)
}

fn is_root(definition: &Value) -> bool {
    kinds(definition).iter().any(|(group, version, _)| *version == "v1" && GROUPS.contains(group))
}

fn kinds(definition: &Value) -> Vec<(&str, &str, &str)> {
    definition
        .get("x-kubernetes-group-version-kind")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| {
            Some((v.get("group")?.as_str()?, v.get("version")?.as_str()?, v.get("kind")?.as_str()?))
        })
        .collect()
}

fn collect<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                out.push(name.rsplit('/').next().unwrap_or(name));
            }
            map.values().for_each(|v| collect(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| collect(v, out)),
        _ => {}
    }
}

/// Definitions that are scalars to us.
fn special(name: &str) -> Option<&'static str> {
    Some(match name {
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => "t",
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => "u",
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => "q",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "x",
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => "j",
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" => "o",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => "j",
        _ => return None,
    })
}

/// `io.k8s.api.core.v1.Pod` is `core.v1.Pod`; the other prefix is `~`.
fn short(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("io.k8s.api.") {
        rest.to_owned()
    } else if let Some(rest) = name.strip_prefix("io.k8s.apimachinery.pkg.apis.") {
        format!("~{rest}")
    } else {
        name.to_owned()
    }
}

fn definition(out: &mut String, name: &str, schema: &Value) -> Result<()> {
    out.push_str(&short(name));
    if let Some(map_type) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
        write!(out, " M={map_type}")?;
    }
    if let [(group, version, kind)] = kinds(schema).as_slice() {
        write!(out, " G={group}/{version}/{kind}")?;
    }
    out.push('\n');
    let required: BTreeSet<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        bail!("a definition that is no object and not listed as a scalar: {schema}");
    }
    for (field, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        write!(out, " {field} {}", type_of(property).with_context(|| field.clone())?)?;
        if required.contains(field.as_str()) {
            out.push_str(" !");
        }
        marks(out, property)?;
        out.push('\n');
    }
    Ok(())
}

fn type_of(schema: &Value) -> Result<String> {
    let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref")).and_then(Value::as_str);
    if let Some(reference) = reference {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return Ok(special(name).map_or_else(|| format!("@{}", short(name)), str::to_owned));
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or("");
    Ok(match (schema.get("type").and_then(Value::as_str).unwrap_or(""), format) {
        ("string", "byte") => "y".to_owned(),
        ("string", _) => "s".to_owned(),
        ("boolean", _) => "b".to_owned(),
        ("integer", "int64") => "l".to_owned(),
        ("integer", _) => "i".to_owned(),
        ("number", _) => "d".to_owned(),
        ("array", _) => format!("[{}", type_of(schema.get("items").context("a list without items")?)?),
        ("object", _) => match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => format!("{{{}", type_of(values)?),
            _ => "o".to_owned(),
        },
        ("", _) => "j".to_owned(),
        (other, _) => bail!("type {other:?} is not known"),
    })
}

fn marks(out: &mut String, property: &Value) -> Result<()> {
    let text = |key: &str| property.get(key).and_then(Value::as_str);
    if let Some(list_type) = text("x-kubernetes-list-type") {
        write!(out, " L={list_type}")?;
        if let Some(keys) = property.get("x-kubernetes-list-map-keys").and_then(Value::as_array) {
            let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
            write!(out, ":{}", keys.join(","))?;
        }
    }
    if let Some(map_type) = text("x-kubernetes-map-type") {
        write!(out, " M={map_type}")?;
    }
    if let Some(strategy) = text("x-kubernetes-patch-strategy") {
        write!(out, " P={strategy}")?;
        if let Some(key) = text("x-kubernetes-patch-merge-key") {
            write!(out, ":{key}")?;
        }
    }
    match property.get("default") {
        // An empty struct: nothing but how Go writes a field that is no pointer.
        None | Some(Value::Object(_)) => {}
        Some(default) => {
            let default = default.to_string();
            if default.contains([' ', '\n']) {
                bail!("a default with a space needs another format: {default}");
            }
            write!(out, " D={default}")?;
        }
    }
    Ok(())
}
