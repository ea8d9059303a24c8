//! `cargo xtask wire`: which fields of the built-in types disappear when they are zero, which are always written, and
//! where quantities and times stand. OpenAPI does not say; the Go types of `k8s.io/api` do, by their JSON tags.
//! Writes `crates/resources/src/kinds/wire.txt`: names and marks only, no prose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The version that matches the emulated Kubernetes.
const MODULES: &[(&str, &str)] = &[("k8s.io/api", "v0.36.3"), ("k8s.io/apimachinery", "v0.36.3")];

/// Package folder within its module, and the prefix that its types get in the table.
const PACKAGES: &[(usize, &str, &str)] = &[
    (1, "pkg/apis/meta/v1", "meta.v1"),
    (0, "apps/v1", "apps.v1"),
    (0, "autoscaling/v1", "autoscaling.v1"),
    (0, "coordination/v1", "coordination.v1"),
    (0, "core/v1", "core.v1"),
    (0, "discovery/v1", "discovery.v1"),
    (0, "events/v1", "events.v1"),
    (0, "policy/v1", "policy.v1"),
];

/// The types from which everything in the table is reached.
const ROOTS: &[&str] = &[
    "apps.v1.ControllerRevision",
    "apps.v1.Deployment",
    "apps.v1.ReplicaSet",
    "autoscaling.v1.Scale",
    "coordination.v1.Lease",
    "core.v1.Binding",
    "core.v1.ConfigMap",
    "core.v1.Endpoints",
    "core.v1.Event",
    "core.v1.Namespace",
    "core.v1.Node",
    "core.v1.Pod",
    "core.v1.Secret",
    "core.v1.Service",
    "core.v1.ServiceAccount",
    "discovery.v1.EndpointSlice",
    "events.v1.Event",
    "policy.v1.Eviction",
];

#[derive(Clone)]
struct Field {
    name: String,
    go_type: String,
    omit_empty: bool,
    omit_zero: bool,
    inline: bool,
}

enum Type {
    Struct(Vec<Field>),
    Alias(String),
}

/// Regenerates the table.
pub fn run(root: &Path) -> Result<()> {
    let folders = modules()?;
    let mut types = BTreeMap::new();
    for (module, folder, prefix) in PACKAGES {
        for entry in std::fs::read_dir(folders[*module].join(folder)).context("cannot list the Go package")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.ends_with(".go") || name.ends_with("_test.go") || name.contains("generated") {
                continue;
            }
            parse(&std::fs::read_to_string(&path)?, prefix, &mut types);
        }
    }
    let mut out = String::from(
        "# Made by `cargo xtask wire` from the JSON tags of k8s.io/api. One type a line: field, mark, type.\n\
         # Marks: - gone when zero; * gone when null; \" 0 ! ~ always there, with that zero; { always there, a struct.\n\
         # A type after [ is a list's, after % a map's.\n",
    );
    let mut todo: Vec<String> = ROOTS.iter().map(|r| (*r).to_owned()).collect();
    let mut seen: BTreeSet<String> = todo.iter().cloned().collect();
    let mut lines = BTreeMap::new();
    while let Some(name) = todo.pop() {
        let fields = flatten(&types, &name)?;
        let mut line = name.clone();
        for (field, prefix) in &fields {
            let (mark, shape, target) = describe(&types, field, prefix);
            write!(line, " {}{mark}{shape}{target}", field.name)?;
            if types.contains_key(&target) && seen.insert(target.clone()) {
                todo.push(target);
            }
        }
        lines.insert(name, line);
    }
    for line in lines.values() {
        out.push_str(line);
        out.push('\n');
    }
    let target = root.join("crates/resources/src/kinds/wire.txt");
    std::fs::write(&target, out).with_context(|| format!("cannot write {}", target.display()))
}

/// The folders of the modules that the types are read from.
pub fn modules() -> Result<Vec<PathBuf>> {
    MODULES.iter().map(|(path, version)| module(path, version)).collect()
}

fn module(path: &str, version: &str) -> Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{path}@{version}")])
        .output()
        .context("cannot run go")?;
    if !output.status.success() {
        bail!("go mod download {path}@{version}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("go's answer is not JSON")?;
    Ok(PathBuf::from(answer["Dir"].as_str().context("go's answer names no folder")?))
}

fn parse(source: &str, prefix: &str, types: &mut BTreeMap<String, Type>) {
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("type ") else { continue };
        let mut words = rest.split_whitespace();
        let (Some(name), Some(what)) = (words.next(), words.next()) else { continue };
        let key = format!("{prefix}.{name}");
        if what != "struct" {
            types.insert(key, Type::Alias(what.to_owned()));
            continue;
        }
        let mut fields = Vec::new();
        if !rest.trim_end().ends_with("{}") {
            for line in lines.by_ref() {
                if line.starts_with('}') {
                    break;
                }
                fields.extend(field(line.trim()));
            }
        }
        types.insert(key, Type::Struct(fields));
    }
}

fn field(line: &str) -> Option<Field> {
    if line.starts_with("//") {
        return None;
    }
    let (declaration, rest) = line.split_once("json:\"")?;
    let tag = rest.split('"').next()?;
    let mut options = tag.split(',');
    let name = options.next()?.to_owned();
    let options: Vec<&str> = options.collect();
    let go_type = declaration.trim().trim_end_matches('`').split_whitespace().last()?.to_owned();
    let inline = options.contains(&"inline");
    if name == "-" || (name.is_empty() && !inline) {
        return None;
    }
    Some(Field {
        name,
        go_type,
        omit_empty: options.contains(&"omitempty"),
        omit_zero: options.contains(&"omitzero"),
        inline,
    })
}

fn flatten(types: &BTreeMap<String, Type>, name: &str) -> Result<Vec<(Field, String)>> {
    let Some(Type::Struct(fields)) = types.get(name) else { bail!("{name} is not a struct that was read") };
    let prefix = name.rsplit_once('.').map_or("", |(p, _)| p).to_owned();
    let mut out = Vec::new();
    for field in fields {
        if field.inline {
            out.extend(flatten(types, &resolve(&field.go_type, &prefix))?);
        } else {
            out.push((field.clone(), prefix.clone()));
        }
    }
    Ok(out)
}

/// A Go type's name in the table.
pub fn resolve(go_type: &str, prefix: &str) -> String {
    let go_type = go_type.trim_start_matches('*');
    match go_type.split_once('.') {
        Some(("metav1", name)) => format!("meta.v1.{name}"),
        Some(("v1" | "corev1", name)) => format!("core.v1.{name}"),
        Some(("resource", "Quantity")) => "Quantity".to_owned(),
        Some((package, name)) => format!("{package}.{name}"),
        None => format!("{prefix}.{go_type}"),
    }
}

/// Mark, shape and the type of what is inside (empty for scalars).
fn describe(types: &BTreeMap<String, Type>, field: &Field, prefix: &str) -> (char, &'static str, String) {
    let go = &field.go_type;
    let omit = field.omit_empty || field.omit_zero;
    if let Some(inner) = go.strip_prefix('*') {
        return (if omit { '*' } else { '~' }, "", target(types, inner, prefix));
    }
    if go == "[]byte" {
        return (if omit { '-' } else { '~' }, "", String::new());
    }
    if let Some(inner) = go.strip_prefix("[]") {
        return (if omit { '-' } else { '~' }, "[", target(types, inner, prefix));
    }
    if let Some((_, inner)) = go.strip_prefix("map[").and_then(|r| r.split_once(']')) {
        let inner = inner.strip_prefix("[]").unwrap_or(inner);
        return (if omit { '-' } else { '~' }, "%", target(types, inner, prefix));
    }
    let name = resolve(go, prefix);
    match go.as_str() {
        "string" => (if omit { '-' } else { '"' }, "", String::new()),
        "bool" => (if omit { '-' } else { '!' }, "", String::new()),
        "int32" | "int64" | "int" => (if omit { '-' } else { '0' }, "", String::new()),
        _ => match (name.as_str(), types.get(&name)) {
            ("Quantity", _) => ('*', "", name),
            ("meta.v1.Time" | "meta.v1.MicroTime", _) => (if field.omit_zero { '-' } else { '~' }, "", name),
            ("meta.v1.FieldsV1" | "runtime.RawExtension" | "intstr.IntOrString", _) => {
                ('*', "", String::new())
            }
            ("types.UID", _) => (if omit { '-' } else { '"' }, "", String::new()),
            (_, Some(Type::Alias(alias))) => {
                let mut field = field.clone();
                field.go_type = alias.clone();
                let prefix = name.rsplit_once('.').map_or("", |(p, _)| p);
                describe(types, &field, prefix)
            }
            (_, Some(Type::Struct(_))) => (if field.omit_zero { '-' } else { '{' }, "", name),
            _ => (if omit { '-' } else { '"' }, "", String::new()),
        },
    }
}

fn target(types: &BTreeMap<String, Type>, go_type: &str, prefix: &str) -> String {
    let name = resolve(go_type, prefix);
    match (name.as_str(), types.get(&name)) {
        ("Quantity" | "meta.v1.Time" | "meta.v1.MicroTime", _) => name,
        (_, Some(Type::Struct(_))) => name,
        _ => String::new(),
    }
}
