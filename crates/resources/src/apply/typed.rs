//! Values seen through a schema: which paths they set, what changed between two, how one is merged into another
//! (structured-merge-diff `typed`).
//!
//! A missing value (`None`) and `null` (`Some(Null)`) are different things throughout: a field that is always written
//! is there, as `null`, before anybody set it.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::{Path, Set, show};
use crate::schema::{List, ListKind, Schema, Type};

/// A value's type, and whether the field that holds it makes a map atomic.
#[derive(Clone, Copy, Debug)]
pub struct Node<'t> {
    ty: NodeType<'t>,
    atomic: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
enum NodeType<'t> {
    Root(&'static Schema),
    Type(&'t Type),
}

/// How a value of that type is treated.
#[derive(Clone, Copy)]
enum Atom<'t> {
    Scalar,
    List(&'t List),
    /// A list of unknown items.
    OpaqueList,
    Map {
        fields: Option<&'static Schema>,
        values: Option<&'t Type>,
        atomic: bool,
    },
}

impl<'t> Node<'t> {
    /// The whole object.
    pub fn root(schema: &'static Schema) -> Self {
        Node { ty: NodeType::Root(schema), atomic: None }
    }

    fn of(ty: &'t Type) -> Self {
        Node { ty: NodeType::Type(ty), atomic: None }
    }

    fn atom(self, value: &Value) -> Atom<'t> {
        let ty = match self.ty {
            NodeType::Root(schema) => {
                return Atom::Map { fields: Some(schema), values: None, atomic: schema.atomic };
            }
            NodeType::Type(ty) => ty,
        };
        match ty {
            Type::Struct(id) => {
                let schema = id.schema();
                let atomic = self.atomic.unwrap_or(schema.atomic);
                Atom::Map { fields: Some(schema), values: None, atomic }
            }
            Type::List(list) => Atom::List(list),
            Type::Map(values) => {
                Atom::Map { fields: None, values: Some(values), atomic: self.atomic.unwrap_or(false) }
            }
            // The type of these is deduced from the value.
            Type::Any | Type::Object => match value {
                Value::Object(_) | Value::Null => {
                    let atomic = self.atomic.unwrap_or(false) || matches!(ty, Type::Any);
                    Atom::Map { fields: None, values: Some(ty), atomic }
                }
                Value::Array(_) => Atom::OpaqueList,
                _ => Atom::Scalar,
            },
            _ => Atom::Scalar,
        }
    }

    fn fields(self) -> Option<&'static Schema> {
        match self.ty {
            NodeType::Root(schema) => Some(schema),
            NodeType::Type(Type::Struct(id)) => Some(id.schema()),
            NodeType::Type(_) => None,
        }
    }

    /// Whether the type is a struct with that field.
    pub fn declares(self, name: &str) -> bool {
        self.fields().is_some_and(|s| s.field(name).is_some())
    }

    /// The type below an element.
    pub fn descend(self, element: &Element) -> Option<Node<'t>> {
        match (element, self.ty) {
            (Element::Field(name), _) if self.fields().is_some() => child(self.fields(), None, name),
            (Element::Field(_), NodeType::Type(Type::Map(values))) => Some(Node::of(values)),
            (Element::Field(_), NodeType::Type(ty @ (Type::Any | Type::Object))) => Some(Node::of(ty)),
            (Element::Key(_), NodeType::Type(Type::List(list))) => Some(Node::of(&list.items)),
            _ => None,
        }
    }
}

/// The type of an entry: a declared field's, or that of all values.
fn child<'t>(fields: Option<&'static Schema>, values: Option<&'t Type>, name: &str) -> Option<Node<'t>> {
    if let Some(field) = fields.and_then(|f| f.field(name)) {
        return Some(Node { ty: NodeType::Type(&field.ty), atomic: field.atomic });
    }
    values.map(Node::of)
}

/// What names an item of an associative list.
fn element(list: &List, item: &Value) -> Result<Element, String> {
    match &list.kind {
        ListKind::Atomic => Err("invalid indexing of non-associative list".to_owned()),
        ListKind::Set => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            scalar => Ok(Element::Value(scalar.clone())),
        },
        ListKind::Map(keys) => {
            let map = match item {
                Value::Null => {
                    return Err("associative list with keys may not have a null element".to_owned());
                }
                Value::Object(map) => map,
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let fields = match &list.items {
                Type::Struct(id) => Some(id.schema()),
                _ => None,
            };
            let mut found: Vec<(String, Value)> = Vec::with_capacity(keys.len());
            for key in keys {
                let default = || fields.and_then(|f| f.field(key)).and_then(|f| f.default.clone());
                if let Some(value) = map.get(*key).cloned().or_else(default) {
                    found.push(((*key).to_owned(), value));
                }
            }
            if found.is_empty() {
                return Err(format!(
                    "associative list with keys has an element that omits all key fields {} (and doesn't have default values for any key fields)",
                    crate::apply::quoted_list(keys)
                ));
            }
            found.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Element::Key(found))
        }
    }
}

fn items(value: Option<&Value>) -> Option<&Vec<Value>> {
    value.and_then(Value::as_array)
}

fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn is_null_or_empty_map(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// The paths that a configuration sets.
pub fn field_set(schema: &'static Schema, value: &Value) -> Set {
    let mut set = Set::default();
    collect(Node::root(schema), value, &mut Vec::new(), &mut set);
    set
}

fn collect(node: Node<'_>, value: &Value, path: &mut Path, set: &mut Set) {
    match node.atom(value) {
        Atom::Scalar | Atom::OpaqueList => set.insert(path),
        Atom::List(list) if list.kind == ListKind::Atomic => set.insert(path),
        Atom::List(list) => {
            let elements: Vec<(Element, &Value)> = items(Some(value))
                .into_iter()
                .flatten()
                .filter_map(|item| Some((element(list, item).ok()?, item)))
                .collect();
            for (element, item) in &elements {
                let twice = elements.iter().filter(|(other, _)| other == element).count() > 1;
                path.push(element.clone());
                if !twice {
                    collect(Node::of(&list.items), item, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        Atom::Map { atomic: true, .. } => set.insert(path),
        Atom::Map { fields, values, .. } => {
            for (name, value) in entries(Some(value)).into_iter().flatten() {
                path.push(Element::Field(name.clone()));
                if let Some(node) = child(fields, values, name) {
                    collect(node, value, path, set);
                }
                let declared = fields.is_some_and(|f| f.field(name).is_some());
                if is_null_or_empty_map(value) || !declared {
                    set.insert(path);
                }
                path.pop();
            }
        }
    }
}

/// What differs between two objects.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Only in the old one.
    pub removed: Set,
    /// In both, different.
    pub modified: Set,
    /// Only in the new one.
    pub added: Set,
}

impl Comparison {
    /// Compares two objects.
    pub fn of(schema: &'static Schema, old: &Value, new: &Value) -> Self {
        let mut comparison = Comparison::default();
        comparison.walk(Node::root(schema), Some(old), Some(new), &mut Vec::new());
        comparison
    }

    /// The same without what is in or below a set.
    #[must_use]
    pub fn without(self, ignored: &Set) -> Self {
        Comparison {
            removed: self.removed.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            added: self.added.recursive_difference(ignored),
        }
    }

    fn walk(&mut self, node: Node<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Path) {
        let Some(shown) = new.filter(|v| !v.is_null()).or(old).or(new) else { return };
        let leaf = match node.atom(shown) {
            Atom::Scalar | Atom::OpaqueList => true,
            Atom::List(list) => {
                let (l, r) = (items(old), items(new));
                let empty = l.is_none_or(Vec::is_empty) && r.is_none_or(Vec::is_empty);
                let leaf = empty || list.kind == ListKind::Atomic;
                if !leaf {
                    self.walk_list(list, l, r, path);
                }
                leaf
            }
            Atom::Map { fields, values, atomic } => {
                let (l, r) = (entries(old), entries(new));
                let empty = l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty);
                let leaf = empty || atomic;
                if !leaf {
                    self.walk_map(fields, values, l, r, path);
                }
                leaf
            }
        };
        match (old, new) {
            (None, Some(_)) => self.added.insert(path),
            (Some(_), None) => self.removed.insert(path),
            (Some(old), Some(new)) if leaf && old != new => self.modified.insert(path),
            _ => {}
        }
    }

    fn walk_map(
        &mut self,
        fields: Option<&'static Schema>,
        values: Option<&Type>,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
        path: &mut Path,
    ) {
        let mut visit = |name: &String, old: Option<&Value>, new: Option<&Value>| {
            if let Some(node) = child(fields, values, name) {
                path.push(Element::Field(name.clone()));
                self.walk(node, old, new, path);
                path.pop();
            }
        };
        for (name, value) in old.into_iter().flatten() {
            visit(name, Some(value), new.and_then(|m| m.get(name)));
        }
        for (name, value) in new.into_iter().flatten() {
            if old.is_none_or(|m| !m.contains_key(name)) {
                visit(name, None, Some(value));
            }
        }
    }

    fn walk_list(
        &mut self,
        list: &List,
        old: Option<&Vec<Value>>,
        new: Option<&Vec<Value>>,
        path: &mut Path,
    ) {
        let group = |values: Option<&Vec<Value>>| {
            let mut groups: Vec<(Element, Vec<Value>)> = Vec::new();
            for item in values.into_iter().flatten() {
                let Ok(element) = element(list, item) else { continue };
                match groups.iter_mut().find(|(e, _)| *e == element) {
                    Some((_, items)) => items.push(item.clone()),
                    None => groups.push((element, vec![item.clone()])),
                }
            }
            groups
        };
        let (old, new) = (group(old), group(new));
        let mut visit = |element: &Element, old: &[Value], new: &[Value]| {
            path.push(element.clone());
            let node = Node::of(&list.items);
            match (old.len(), new.len()) {
                (0 | 1, 0 | 1) => self.walk(node, old.first(), new.first(), path),
                (2.., 2..) => {
                    if old != new {
                        self.modified.insert(path);
                    }
                }
                (2.., _) => {
                    if let Some(item) = new.first() {
                        self.walk(node, None, Some(item), path);
                    }
                    self.removed.insert(path);
                }
                (_, _) => {
                    if let Some(item) = old.first() {
                        self.walk(node, Some(item), None, path);
                    }
                    self.added.insert(path);
                }
            }
            path.pop();
        };
        for (element, items) in &old {
            let other = new.iter().find(|(e, _)| e == element).map_or(&[][..], |(_, i)| i);
            visit(element, items, other);
        }
        for (element, items) in &new {
            if !old.iter().any(|(e, _)| e == element) {
                visit(element, &[], items);
            }
        }
    }
}

/// The live object with a configuration laid over it.
pub fn merge(schema: &'static Schema, live: &Value, config: &Value) -> Value {
    merge_value(Node::root(schema), Some(live), Some(config)).unwrap_or(Value::Null)
}

fn merge_value(node: Node<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let leaf = || config.or(live).cloned();
    let shown = config.filter(|v| !v.is_null()).or(live).or(config)?;
    match node.atom(shown) {
        Atom::Scalar | Atom::OpaqueList => leaf(),
        Atom::List(list) => {
            let (l, r) = (items(live), items(config));
            let empty = l.is_none_or(Vec::is_empty) && r.is_none_or(Vec::is_empty);
            if empty || list.kind == ListKind::Atomic {
                return leaf();
            }
            let merged = merge_list(list, l.map_or(&[][..], |l| l), r.map_or(&[][..], |r| r));
            (!merged.is_empty()).then_some(Value::Array(merged))
        }
        Atom::Map { fields, values, atomic } => {
            let (l, r) = (entries(live), entries(config));
            let empty = l.is_none_or(Map::is_empty) && r.is_none_or(Map::is_empty);
            if empty || atomic {
                return leaf();
            }
            let mut out = Map::new();
            let mut visit = |name: &String, l: Option<&Value>, r: Option<&Value>| {
                let node = child(fields, values, name)?;
                out.insert(name.clone(), merge_value(node, l, r)?)
            };
            for (name, value) in l.into_iter().flatten() {
                visit(name, Some(value), r.and_then(|m| m.get(name)));
            }
            for (name, value) in r.into_iter().flatten() {
                if l.is_none_or(|m| !m.contains_key(name)) {
                    visit(name, None, Some(value));
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
    }
}

/// Merges two associative lists: the configuration's order wins among what it names; what only the live list has keeps
/// its place before the next shared item.
fn merge_list(list: &List, live: &[Value], config: &[Value]) -> Vec<Value> {
    let index = |values: &[Value]| -> Vec<(Element, Value)> {
        values.iter().filter_map(|v| Some((element(list, v).ok()?, v.clone()))).collect()
    };
    let (l, r) = (index(live), index(config));
    // Items that are there several times are replaced, not merged.
    let observed = |values: &[(Element, Value)], wanted: &Element| -> Option<Value> {
        let mut found = values.iter().filter(|(e, _)| e == wanted);
        let first = found.next()?;
        Some(if found.next().is_some() { Value::Null } else { first.1.clone() })
    };
    let in_l = |e: &Element| l.iter().any(|(other, _)| other == e);
    let in_r = |e: &Element| r.iter().any(|(other, _)| other == e);
    let mut shared = r.iter().map(|(e, _)| e).filter(|e| in_l(e)).collect::<Vec<_>>().into_iter();
    let mut next_shared = shared.next();
    let mut merged: Vec<&Element> = Vec::new();
    let mut out = Vec::new();
    let node = Node::of(&list.items);
    let both = |e: &Element| merge_value(node, observed(&l, e).as_ref(), observed(&r, e).as_ref());
    let (mut i, mut j) = (0, 0);
    while i < l.len() || j < r.len() {
        if i < l.len() && j < r.len() {
            let e = &l[i].0;
            if *e == r[j].0 {
                merged.push(e);
                out.extend(both(e));
                i += 1;
                j += 1;
                next_shared = shared.next();
                continue;
            }
            if in_r(e) && next_shared.is_some_and(|next| next != e) {
                // Shared, but its turn is later.
                i += 1;
                continue;
            }
        }
        if i < l.len() {
            let (e, item) = &l[i];
            if !in_r(e) {
                out.extend(merge_value(node, Some(item), None));
                i += 1;
                continue;
            } else if merged.contains(&e) {
                i += 1;
            }
        }
        if j < r.len() {
            let e = &r[j].0;
            merged.push(e);
            out.extend(both(e));
            j += 1;
            if next_shared == Some(e) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The object without the members of a set.
pub fn remove(schema: &'static Schema, value: &Value, set: &Set) -> Value {
    remove_value(Node::root(schema), value, set)
}

fn remove_value(node: Node<'_>, value: &Value, set: &Set) -> Value {
    match node.atom(value) {
        Atom::Scalar => value.clone(),
        Atom::OpaqueList => Value::Null,
        Atom::List(list) => {
            let mut out = Vec::new();
            for item in items(Some(value)).into_iter().flatten() {
                let Ok(element) = element(list, item) else { continue };
                if set.has(&element) {
                    continue;
                }
                out.push(match set.below(&element) {
                    Some(below) => remove_value(Node::of(&list.items), item, below),
                    None => item.clone(),
                });
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        Atom::Map { atomic: true, .. } => Value::Null,
        Atom::Map { fields, values, .. } => {
            let mut out = Map::new();
            for (name, value) in entries(Some(value)).into_iter().flatten() {
                let element = Element::Field(name.clone());
                if set.has(&element) {
                    continue;
                }
                let kept = match (set.below(&element), child(fields, values, name)) {
                    (Some(below), Some(node)) => remove_value(node, value, below),
                    _ => value.clone(),
                };
                out.insert(name.clone(), kept);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
    }
}

/// All that keeps a configuration from being one of its schema.
pub fn validate(schema: &'static Schema, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check(Node::root(schema), value, &mut Vec::new(), &mut errors);
    errors
}

fn check(node: Node<'_>, value: &Value, path: &mut Path, errors: &mut Vec<String>) {
    let report = |errors: &mut Vec<String>, path: &Path, what: String| {
        errors.push(format!("{}: {what}", show(path)));
    };
    if value.is_null() {
        return;
    }
    match node.atom(value) {
        Atom::OpaqueList => {}
        Atom::Scalar => {
            if let Some(what) = check_scalar(node, value) {
                report(errors, path, what);
            }
        }
        Atom::List(list) => {
            let Some(items) = value.as_array() else {
                return report(errors, path, format!("expected list, got {}", go_value(value)));
            };
            let mut seen: Vec<Element> = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let step = if list.kind == ListKind::Atomic {
                    Element::Index(index)
                } else {
                    match element(list, item) {
                        Ok(element) => element,
                        Err(what) => return report(errors, path, format!("element {index}: {what}")),
                    }
                };
                if seen.contains(&step) {
                    report(errors, path, format!("duplicate entries for key {step}"));
                }
                seen.push(step.clone());
                path.push(step);
                check(Node::of(&list.items), item, path, errors);
                path.pop();
            }
        }
        Atom::Map { fields, values, .. } => {
            let Some(map) = value.as_object() else {
                return report(errors, path, format!("expected map, got {}", go_value(value)));
            };
            for (name, value) in map {
                path.push(Element::Field(name.clone()));
                match child(fields, values, name) {
                    Some(node) => check(node, value, path, errors),
                    None => errors.push(format!("{}: field not declared in schema", show(path))),
                }
                path.pop();
            }
        }
    }
}

fn check_scalar(node: Node<'_>, value: &Value) -> Option<String> {
    let NodeType::Type(ty) = node.ty else { return None };
    match ty {
        Type::Int32 | Type::Int64 | Type::Double if !value.is_number() => {
            Some(format!("expected numeric (int or float), got {}", go_type(value)))
        }
        Type::String | Type::Bytes if !value.is_string() => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_literal(value)))
        }
        Type::Bool if !value.is_boolean() => Some(format!("expected boolean, got {}", go_value(value))),
        Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString
            if value.is_array() || value.is_object() =>
        {
            Some(format!("expected any scalar, got {}", go_value(value)))
        }
        _ => None,
    }
}

/// `%T` of what Go's decoder makes of the value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// `%v` of the value in its wrapper.
fn go_value(value: &Value) -> String {
    format!("&{{{}}}", crate::field::go_value(value))
}

/// `%#v` of the value.
fn go_literal(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_literal).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", crate::field::quote(k), go_literal(v))).collect();
            format!("map[string]interface {{}}{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}
