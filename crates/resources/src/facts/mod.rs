//! The generated table of schema facts (`cargo xtask facts`), read once, on first use. Its format is described where it
//! is made, in `xtask/src/facts.rs`.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::schema::{Field, List, ListKind, Patch, Schema, StructId, Type};

static TEXT: &str = include_str!("table.txt");

struct Table {
    schemas: Vec<Schema>,
    ids: HashMap<&'static str, StructId>,
}

static TABLE: OnceLock<Table> = OnceLock::new();

/// Every definition.
pub fn table() -> &'static [Schema] {
    &read().schemas
}

/// The definition of that full name.
pub fn find(name: &str) -> Option<StructId> {
    let ids = &read().ids;
    if let Some(rest) = name.strip_prefix("io.k8s.api.") {
        ids.get(rest).copied()
    } else if let Some(rest) = name.strip_prefix("io.k8s.apimachinery.pkg.apis.") {
        ids.get(format!("~{rest}").as_str()).copied()
    } else {
        ids.get(name).copied()
    }
}

fn read() -> &'static Table {
    TABLE.get_or_init(|| parse(TEXT))
}

fn parse(text: &'static str) -> Table {
    let lines = || text.lines().filter(|l| !l.starts_with('#'));
    let ids: HashMap<&'static str, StructId> = lines()
        .filter(|l| !l.starts_with(' '))
        .enumerate()
        .map(|(i, line)| (word(line), StructId(u16::try_from(i).unwrap_or(u16::MAX))))
        .collect();
    let mut schemas: Vec<Schema> = Vec::with_capacity(ids.len());
    for line in lines() {
        match line.strip_prefix(' ') {
            None => {
                if let Some(done) = schemas.last_mut() {
                    done.fields.shrink_to_fit();
                }
                schemas.push(definition(line));
            }
            Some(line) => {
                let Some(schema) = schemas.last_mut() else { continue };
                schema.fields.extend(field(line, &ids));
            }
        }
    }
    for schema in &mut schemas {
        schema.fields.sort_by_key(|f| f.name);
    }
    Table { schemas, ids }
}

fn word(line: &str) -> &str {
    line.split(' ').next().unwrap_or(line)
}

fn definition(line: &'static str) -> Schema {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or("");
    let name = if let Some(rest) = name.strip_prefix('~') {
        format!("io.k8s.apimachinery.pkg.apis.{rest}")
    } else if name.starts_with("io.k8s.") {
        name.to_owned()
    } else {
        format!("io.k8s.api.{name}")
    };
    let mut schema = Schema { name, fields: Vec::new(), atomic: false, group_version_kind: None };
    for word in words {
        match word.split_once('=') {
            Some(("M", kind)) => schema.atomic = kind == "atomic",
            Some(("G", rest)) => {
                let mut parts = rest.split('/');
                schema.group_version_kind =
                    parts.next().zip(parts.next()).zip(parts.next()).map(|((g, v), k)| (g, v, k));
            }
            _ => {}
        }
    }
    schema
}

fn field(line: &'static str, ids: &HashMap<&'static str, StructId>) -> Option<Field> {
    let mut words = line.split(' ');
    let (name, ty) = (words.next()?, words.next()?);
    let mut field =
        Field { name, ty: Type::Any, required: false, atomic: None, patch: Patch::default(), default: None };
    let mut kind = ListKind::Atomic;
    let mut marked = false;
    for word in words {
        match word.split_once('=') {
            None => field.required = true,
            Some(("M", map_type)) => field.atomic = Some(map_type == "atomic"),
            Some(("L", list_type)) => {
                marked = true;
                kind = match list_type.split_once(':') {
                    Some((_, keys)) => ListKind::Map(keys.split(',').collect()),
                    None if list_type == "set" => ListKind::Set,
                    None => ListKind::Atomic,
                };
            }
            Some(("P", patch)) => {
                let (strategy, key) = patch.split_once(':').map_or((patch, None), |(s, k)| (s, Some(k)));
                field.patch.merge = strategy.split(',').any(|s| s == "merge");
                field.patch.retain_keys = strategy.split(',').any(|s| s == "retainKeys");
                field.patch.merge_key = key;
            }
            Some(("D", default)) => field.default = serde_json::from_str(default).ok(),
            Some(_) => {}
        }
    }
    // Without a list type the patch strategy decides, as in kube-openapi's schemaconv.
    if !marked && field.patch.merge {
        kind = field.patch.merge_key.map_or(ListKind::Set, |key| ListKind::Map(vec![key]));
    }
    field.ty = type_of(ty, kind, ids)?;
    Some(field)
}

fn type_of(text: &str, kind: ListKind, ids: &HashMap<&'static str, StructId>) -> Option<Type> {
    let rest = text.get(1..)?;
    Some(match text.as_bytes().first()? {
        b's' => Type::String,
        b'b' => Type::Bool,
        b'i' => Type::Int32,
        b'l' => Type::Int64,
        b'd' => Type::Double,
        b'y' => Type::Bytes,
        b't' => Type::Time,
        b'u' => Type::MicroTime,
        b'q' => Type::Quantity,
        b'x' => Type::IntOrString,
        b'j' => Type::Any,
        b'o' => Type::Object,
        b'@' => Type::Struct(*ids.get(rest)?),
        b'[' => Type::List(Box::new(List { items: type_of(rest, ListKind::Atomic, ids)?, kind })),
        b'{' => Type::Map(Box::new(type_of(rest, ListKind::Atomic, ids)?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let definitions = TEXT.lines().filter(|l| !l.starts_with([' ', '#'])).count();
        let fields = TEXT.lines().filter(|l| l.starts_with(' ')).count();
        assert_eq!(table().len(), definitions);
        assert_eq!(table().iter().map(|s| s.fields.len()).sum::<usize>(), fields);
    }
}
