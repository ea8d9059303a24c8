//! `cargo xtask proto`: the numbers and types of the fields of the built-in types in Kubernetes' protobuf encoding,
//! from the tags of the Go types. Writes `crates/resources/src/protobuf/table.txt`: names and numbers only, no prose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::wire;

/// Package folder within its module, and the prefix that its types get in the table.
const PACKAGES: &[(usize, &str, &str)] = &[
    (1, "pkg/apis/meta/v1", "meta.v1"),
    (0, "apps/v1", "apps.v1"),
    (0, "authentication/v1", "authentication.v1"),
    (0, "authorization/v1", "authorization.v1"),
    (0, "autoscaling/v1", "autoscaling.v1"),
    (0, "batch/v1", "batch.v1"),
    (0, "coordination/v1", "coordination.v1"),
    (0, "core/v1", "core.v1"),
    (0, "discovery/v1", "discovery.v1"),
    (0, "events/v1", "events.v1"),
    (0, "networking/v1", "networking.v1"),
    (0, "policy/v1", "policy.v1"),
    (0, "rbac/v1", "rbac.v1"),
];

/// What clients send beside objects.
const ROOTS: &[&str] = &["meta.v1.DeleteOptions"];

/// Types with an encoding of their own.
const SPECIAL: &[(&str, &str)] = &[
    ("metav1.Time", "Time"),
    ("metav1.MicroTime", "MicroTime"),
    ("resource.Quantity", "Quantity"),
    ("intstr.IntOrString", "IntOrString"),
    ("metav1.FieldsV1", "Raw"),
    ("runtime.RawExtension", "Raw"),
    ("meta.v1.Time", "Time"),
    ("meta.v1.MicroTime", "MicroTime"),
    ("meta.v1.FieldsV1", "Raw"),
];

struct Field {
    number: String,
    /// The JSON name; empty for an inlined struct.
    name: String,
    go_type: String,
    omit: bool,
}

enum Type {
    Struct(Vec<Field>),
    Alias(String),
}

/// Regenerates the table.
pub fn run(root: &Path) -> Result<()> {
    let folders = wire::modules()?;
    let mut types = BTreeMap::new();
    for (module, folder, prefix) in PACKAGES {
        for entry in std::fs::read_dir(folders[*module].join(folder)).context("cannot list the Go package")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".go") && !name.ends_with("_test.go") && !name.contains("generated") {
                parse(&std::fs::read_to_string(&path)?, prefix, &mut types);
            }
        }
    }
    let mut todo: Vec<String> = ROOTS.iter().map(|name| (*name).to_owned()).collect();
    // Every kind of these packages, so that serving one more needs no new table.
    todo.extend(types.iter().filter(|(_, ty)| is_object(ty)).map(|(name, _)| name.clone()));
    let mut seen: BTreeSet<String> = todo.iter().cloned().collect();
    let mut lines = BTreeMap::new();
    while let Some(name) = todo.pop() {
        let Some(Type::Struct(fields)) = types.get(&name) else { continue };
        let prefix = name.rsplit_once('.').map_or("", |(prefix, _)| prefix);
        let mut line = name.clone();
        for field in fields {
            let pointer = field.go_type.starts_with('*');
            let mark = if field.omit && !pointer { '-' } else { '=' };
            let described = describe(&types, &field.go_type, prefix);
            write!(line, " {}{mark}{}:{described}", field.number, field.name)?;
            let inner = described.trim_start_matches(['[', '%']).to_owned();
            if types.contains_key(&inner) && seen.insert(inner.clone()) {
                todo.push(inner);
            }
        }
        lines.insert(name, line);
    }
    let mut out = String::from(
        "# Made by `cargo xtask proto` from the tags of k8s.io/api. One type a line: number, mark, JSON name, type.\n\
         # Marks: - gone when zero; = kept. No name: the fields of an inlined struct.\n\
         # Types: s b i d y and messages; after [ a list's, after % a map's from strings.\n",
    );
    for line in lines.values() {
        out.push_str(line);
        out.push('\n');
    }
    let target = root.join("crates/resources/src/protobuf/table.txt");
    std::fs::write(&target, out).with_context(|| format!("cannot write {}", target.display()))
}

fn is_object(ty: &Type) -> bool {
    let Type::Struct(fields) = ty else { return false };
    fields.iter().any(|field| field.name == "metadata" && field.go_type == "metav1.ObjectMeta")
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
        let body = lines.by_ref().take_while(|line| !line.starts_with('}'));
        let fields: Vec<Field> = if rest.trim_end().ends_with("{}") {
            Vec::new()
        } else {
            body.filter_map(|line| field(line.trim())).collect()
        };
        types.insert(key, Type::Struct(fields));
    }
}

fn field(line: &str) -> Option<Field> {
    if line.starts_with("//") {
        return None;
    }
    let (declaration, tags) = line.split_once('`')?;
    let tag = |name: &str| tags.split_once(&format!("{name}:\""))?.1.split('"').next();
    let number = tag("protobuf")?.split(',').nth(1)?.to_owned();
    let mut json = tag("json")?.split(',');
    let name = json.next()?.to_owned();
    Some(Field {
        number,
        name,
        go_type: declaration.split_whitespace().last()?.to_owned(),
        omit: json.any(|option| option == "omitempty" || option == "omitzero"),
    })
}

fn describe(types: &BTreeMap<String, Type>, go_type: &str, prefix: &str) -> String {
    let go_type = go_type.trim_start_matches('*');
    if go_type == "[]byte" {
        return "y".to_owned();
    }
    if let Some(items) = go_type.strip_prefix("[]") {
        return format!("[{}", describe(types, items, prefix));
    }
    if let Some((_, values)) = go_type.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return format!("%{}", describe(types, values, prefix));
    }
    if let Some((_, special)) = SPECIAL.iter().find(|(name, _)| *name == go_type) {
        return (*special).to_owned();
    }
    match go_type {
        "string" | "types.UID" => return "s".to_owned(),
        "bool" => return "b".to_owned(),
        "int32" | "int64" | "int" => return "i".to_owned(),
        "float64" => return "d".to_owned(),
        _ => {}
    }
    let name = wire::resolve(go_type, prefix);
    if let Some((_, special)) = SPECIAL.iter().find(|(special, _)| *special == name) {
        return (*special).to_owned();
    }
    match types.get(&name) {
        Some(Type::Alias(alias)) => {
            let prefix = name.rsplit_once('.').map_or("", |(prefix, _)| prefix);
            describe(types, alias, prefix)
        }
        Some(Type::Struct(_)) => name,
        None => "s".to_owned(),
    }
}
