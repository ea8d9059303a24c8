//! Strategic merge patch: lists are merged by key where the schema says so, `$patch`, `$retainKeys`,
//! `$deleteFromPrimitiveList` and `$setElementOrder` direct it (apimachinery `util/strategicpatch`).

use serde_json::{Map, Value};

use super::{Error, Patched};
use crate::schema::{self, Patch, Schema, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Lays the patch over an object of that definition.
pub fn apply(schema: &'static Schema, object: &Value, body: &[u8]) -> Result<Patched, Error> {
    let decoded = schema::decode_free(body).map_err(|e| Error::BadRequest(e.to_string()))?;
    let Value::Object(mut patch) = decoded.object else {
        return Err(Error::BadRequest(
            "json: cannot unmarshal array into Go value of type map[string]interface {}".to_owned(),
        ));
    };
    let original = object.as_object().cloned().unwrap_or_default();
    let object = Value::Object(merge_map(original, &mut patch, Place::Struct(schema))?);
    // Messages show the patch as merging left it.
    let shown = crate::field::go_value(&Value::Object(patch));
    Ok(Patched { object, strict: decoded.strict, shown: Some(shown) })
}

/// Where in the schema a map is.
#[derive(Clone, Copy)]
enum Place<'t> {
    Struct(&'static Schema),
    Values(&'t Type),
    Unknown,
}

impl<'t> Place<'t> {
    fn of(ty: &'t Type) -> Self {
        match ty {
            Type::Struct(id) => Place::Struct(id.schema()),
            Type::Map(values) => Place::Values(values),
            Type::List(list) => Place::of(&list.items),
            _ => Place::Unknown,
        }
    }

    /// How a field is merged, and what is below it (for a list: its items).
    fn field(self, name: &str) -> (Patch, Place<'t>) {
        match self {
            Place::Struct(schema) => match schema.field(name) {
                Some(field) => (field.patch, Place::of(&field.ty)),
                None => (Patch::default(), Place::Unknown),
            },
            Place::Values(ty) => (Patch::default(), Place::of(ty)),
            Place::Unknown => (Patch::default(), Place::Unknown),
        }
    }
}

type Object = Map<String, Value>;

/// Consumes of the patch what Kubernetes' implementation consumes: directives, and the lists that they order.
fn merge_map(mut original: Object, patch: &mut Object, place: Place<'_>) -> Result<Object, Error> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("")) {
        None => {}
        Some("replace") => {
            patch.remove(DIRECTIVE);
            return Ok(patch.clone());
        }
        Some("delete") => return Ok(Object::new()),
        Some(other) => return Err(bad_directive(other, patch)),
    }
    retain_keys(&mut original, patch)?;
    set_orders(&mut original, patch, place)?;
    for (key, value) in patch.iter_mut() {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(rest) => (rest.to_owned(), true),
            None => (key.clone(), false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let (strategy, below) = place.field(&key);
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(old, new, below)?),
            (Some(Value::Array(old)), Value::Array(new)) => {
                if deletes {
                    Value::Array(old.into_iter().filter(|v| !new.contains(v)).collect())
                } else if strategy.merge {
                    Value::Array(merge_list(old, new, strategy.merge_key, below)?.0)
                } else {
                    Value::Array(new.clone())
                }
            }
            (Some(old), _) if deletes => old,
            (None, _) if deletes => continue,
            (old, new) => {
                clean(old.as_ref(), new);
                match without_directives(new.clone()) {
                    Some(value) => value,
                    None => continue,
                }
            }
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// A value that replaces one of another type, or none, brings no nulls along.
fn clean(old: Option<&Value>, new: &mut Value) {
    let scalar = |v: &Value| !v.is_object() && !v.is_array();
    if old.is_none_or(|old| !(scalar(old) && scalar(new))) {
        discard_nulls(new);
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// None for a value that only directs.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?))).collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let malformed = || Error::BadRequest("invalid patch format of retainKeys".to_owned());
    let keys = keys.as_array().ok_or_else(malformed)?;
    let kept = |name: &String| keys.iter().any(|k| k.as_str() == Some(name));
    let directs = |name: &str| name.starts_with(DELETE_FROM_LIST) || name.starts_with(SET_ORDER);
    if patch.iter().any(|(k, v)| !v.is_null() && !directs(k) && !kept(k)) {
        return Err(malformed());
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

fn set_orders(original: &mut Object, patch: &mut Object, place: Place<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive);
        let name = &directive[SET_ORDER.len()..];
        let (strategy, below) = place.field(name);
        let list = |value: Value| match value {
            Value::Array(items) => Ok(items),
            _ => Err(Error::BadRequest("invalid patch format of setElementOrder list".to_owned())),
        };
        let order = list(order.unwrap_or(Value::Null))?;
        let old = original.get(name).cloned().map(list).transpose()?;
        let mut new = patch.get(name).filter(|v| !v.is_null()).cloned().map(list).transpose()?;
        let key = strategy.merge_key;
        if let Some(new) = &new {
            check_order(new, &order, key)?;
        }
        let (merged, server_order) = match (old, &mut new) {
            (None, None) => continue,
            // A null still removes the list below.
            (Some(_), None) if patch.contains_key(name) => continue,
            (Some(old), None) => (old.clone(), old),
            (None, Some(new)) => match without_directives(Value::Array(new.clone())) {
                Some(Value::Array(items)) => (items, Vec::new()),
                _ => continue,
            },
            (Some(old), Some(new)) if strategy.merge => merge_list(old, new, key, below)?,
            (Some(old), Some(new)) => (new.clone(), old),
        };
        original.insert(name.to_owned(), Value::Array(ordered(merged, &order, &server_order, key)));
        patch.remove(name);
    }
    Ok(())
}

/// The patch's items must stand in the order that it asks for.
fn check_order(items: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Error> {
    let items: Vec<&Value> =
        items.iter().filter(|i| i.get(DIRECTIVE).is_none_or(|d| d != "delete")).collect();
    let (mut at, mut wanted) = (0, order.iter());
    // An item that directs is skipped only while there is an order left to compare with, as Kubernetes does.
    while at < items.len() && !order.is_empty() {
        if wanted.len() > 0 && items[at].get(DIRECTIVE).is_some() {
            at += 1;
            continue;
        }
        match wanted.next() {
            Some(name) if same(name, items[at], key) => at += 1,
            Some(_) => {}
            None => {
                return Err(Error::Unclassified(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    crate::field::go_value(&items.iter().map(|i| (*i).clone()).collect()),
                    crate::field::go_value(&Value::Array(order.to_vec()))
                )));
            }
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) if a.is_object() || b.is_object() => a.get(key).is_some() && a.get(key) == b.get(key),
        _ => a == b,
    }
}

fn place_in(order: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    order.iter().position(|other| same(other, item, key))
}

/// The merged list, and the order in which the server is taken to have had its items. That is the order of the list
/// that Go's implementation works on in place: what a patch deletes makes room, and what it adds takes the room that is
/// left, so that added items count as the server's. Clients see the resulting order.
fn merge_list(
    original: Vec<Value>,
    patch: &mut [Value],
    key: Option<&str>,
    items: Place<'_>,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    if original.is_empty() && patch.is_empty() {
        return Ok((original, Vec::new()));
    }
    if !original.iter().chain(patch.iter()).any(Value::is_object) {
        let mut merged = original.clone();
        for item in patch.iter() {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok((ordered(merged, patch, &original, None), original));
    }
    let Some(key) = key else {
        return Err(Error::Unclassified("cannot merge lists without merge key".to_owned()));
    };
    let Special { mut original, mut in_place, replaces } = special_items(original, patch, key)?;
    let server_order = original.clone();
    let mut order = Vec::new();
    for item in patch.iter_mut().filter(|i| !replaces && i.get(DIRECTIVE).is_none()) {
        order.push(item.clone());
        let found = place_in(&original, item, Some(key));
        let mut none = Object::new();
        let map = item.as_object_mut().unwrap_or(&mut none);
        if !map.contains_key(key) {
            return Err(no_key(map, key));
        }
        match found {
            Some(index) => {
                let old = original[index].as_object().cloned().unwrap_or_default();
                original[index] = Value::Object(merge_map(old, map, items)?);
            }
            None => {
                if let Some(room) = in_place.get_mut(original.len()) {
                    *room = item.clone();
                }
                original.push(item.clone());
            }
        }
    }
    Ok((ordered(original, &order, &server_order, Some(key)), in_place))
}

struct Special {
    /// What is left of the original.
    original: Vec<Value>,
    /// The original's memory, with room at its end for each item deleted.
    in_place: Vec<Value>,
    /// The original is the patch's own items; nothing is left to merge.
    replaces: bool,
}

/// Carries out the items that direct.
fn special_items(mut original: Vec<Value>, patch: &[Value], key: &str) -> Result<Special, Error> {
    let mut in_place = original.clone();
    let mut rest = Vec::new();
    let mut replaces = false;
    for item in patch {
        let map = item.as_object().cloned().unwrap_or_default();
        match map.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("")) {
            None => rest.push(item.clone()),
            Some("replace") => replaces = true,
            Some("delete") => {
                let Some(value) = map.get(key) else { return Err(no_key(&map, key)) };
                while let Some(index) = original.iter().position(|o| o.get(key) == Some(value)) {
                    original.remove(index);
                    in_place[..original.len()].clone_from_slice(&original);
                }
            }
            Some("merge") => {
                return Err(Error::Unclassified(
                    "merging lists cannot yet be specified in the patch".to_owned(),
                ));
            }
            Some(other) => return Err(bad_directive(other, &map)),
        }
    }
    if replaces {
        original = rest;
    }
    Ok(Special { original, in_place, replaces })
}

/// Items that `order` names stand in its order; the others keep their places before them as the server had them.
fn ordered(items: Vec<Value>, order: &[Value], server_order: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| place_in(order, item, key).is_some());
    named.sort_by_key(|item| place_in(order, item, key));
    others.sort_by_key(|item| place_in(server_order, item, key));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(name)) => {
                let places = place_in(server_order, other, key).zip(place_in(server_order, name, key));
                places.is_some_and(|(other, name)| other < name)
            }
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
}

fn no_key(map: &Object, key: &str) -> Error {
    let shown = crate::field::go_value(&Value::Object(map.clone()));
    Error::Unclassified(format!("map: {shown} does not contain declared merge key: {key}"))
}

fn bad_directive(directive: &str, map: &Object) -> Error {
    let shown = crate::field::go_value(&Value::Object(map.clone()));
    Error::Unclassified(format!("unknown patch type: {directive} in map: {shown}"))
}
