//! What is known of the shape of each definition: types, list and map marks, patch strategies, required fields.
//!
//! The facts come from [`crate::facts`] and are read once. [`decode`](decode::decode) turns a body into an object that
//! a schema accepts.

mod decode;

use serde_json::Value;

pub use decode::{Decoded, Error, Validation, Words, decode, decode_free, prune, strict};

use crate::facts;
pub use crate::kinds::wire::canonical;

/// The type of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Text.
    String,
    /// true or false.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Floating point.
    Double,
    /// Base64.
    Bytes,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Kubernetes quantity.
    Quantity,
    /// Integer or text.
    IntOrString,
    /// Any value, replaced as a whole.
    Any,
    /// Any object; its shape is deduced from its values.
    Object,
    /// A definition.
    Struct(StructId),
    /// A list.
    List(Box<List>),
    /// A map with equal values.
    Map(Box<Type>),
}

/// A definition, by its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructId(pub(crate) u16);

impl StructId {
    /// The definition.
    pub fn schema(self) -> &'static Schema {
        &facts::table()[usize::from(self.0)]
    }
}

/// A list's items, and what makes two of them the same.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Each item's type.
    pub items: Type,
    /// How lists are merged by server-side apply.
    pub kind: ListKind,
}

/// How lists are merged by server-side apply (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq)]
pub enum ListKind {
    /// As a whole.
    Atomic,
    /// By value.
    Set,
    /// By these fields of each item.
    Map(Vec<&'static str>),
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Items are merged, by the key if there is one.
    pub merge: bool,
    /// `$retainKeys` is honoured.
    pub retain_keys: bool,
    /// Field by which items of a list are the same.
    pub merge_key: Option<&'static str>,
}

/// A field of a definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Type.
    pub ty: Type,
    /// Whether OpenAPI says that it must be there.
    pub required: bool,
    /// Whether server-side apply replaces the map as a whole (`x-kubernetes-map-type`).
    pub atomic: Option<bool>,
    /// Strategic merge patch.
    pub patch: Patch,
    /// Default of a scalar, as far as OpenAPI tells.
    pub default: Option<Value>,
}

/// A definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Full name, "io.k8s.api.core.v1.Pod".
    pub name: String,
    /// Fields, sorted by name.
    pub fields: Vec<Field>,
    /// Whether server-side apply replaces it as a whole.
    pub atomic: bool,
    /// Group, version and kind of a top-level kind.
    pub group_version_kind: Option<(&'static str, &'static str, &'static str)>,
}

impl Schema {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &self.fields[i])
    }

    /// "v1.Pod": how Go names the type.
    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (name, package) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        format!("{package}.{name}")
    }

    /// "Pod".
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// The definition of that full name.
pub fn of(name: &str) -> Option<&'static Schema> {
    facts::find(name).map(StructId::schema)
}

/// The definition of that full name, as a type.
pub fn type_of(name: &str) -> Option<Type> {
    facts::find(name).map(Type::Struct)
}

/// Every definition, sorted by its name in the table.
pub fn all() -> &'static [Schema] {
    facts::table()
}

impl Type {
    /// How Go spells the type, for messages.
    pub fn go_name(&self) -> String {
        match self {
            Type::String => "string".to_owned(),
            Type::Bool => "bool".to_owned(),
            Type::Int32 => "int32".to_owned(),
            Type::Int64 => "int64".to_owned(),
            Type::Double => "float64".to_owned(),
            Type::Bytes => "[]uint8".to_owned(),
            Type::Time => "v1.Time".to_owned(),
            Type::MicroTime => "v1.MicroTime".to_owned(),
            Type::Quantity => "resource.Quantity".to_owned(),
            Type::IntOrString => "intstr.IntOrString".to_owned(),
            Type::Any | Type::Object => "map[string]interface {}".to_owned(),
            Type::Struct(id) => id.schema().go_name(),
            Type::List(list) => format!("[]{}", list.items.go_name()),
            Type::Map(values) => format!("map[string]{}", values.go_name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_container() {
        let container = of("io.k8s.api.core.v1.Container").unwrap();
        let env = container.field("env").unwrap();
        assert_eq!(env.patch.merge_key, Some("name"));
        let Type::List(list) = &env.ty else { panic!("{env:?}") };
        assert_eq!(list.kind, ListKind::Map(vec!["name"]));
        let Type::Struct(id) = list.items else { panic!("{list:?}") };
        assert_eq!(id.schema().go_name(), "v1.EnvVar");
        assert_eq!(container.field("nothing"), None);
    }

    #[test]
    fn every_kind_has_its_definition() {
        for kind in crate::KINDS {
            let schema = of(kind.schema).unwrap_or_else(|| panic!("{} is not in the facts", kind.schema));
            assert_eq!(schema.group_version_kind, Some((kind.group, kind.version, kind.kind)));
        }
    }
}
