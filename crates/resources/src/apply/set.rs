//! Sets of paths, as a tree, with the operations that field ownership needs (structured-merge-diff `fieldpath`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::{Element, Error};
use super::typed::Node;

/// A path from the top of an object.
pub type Path = Vec<Element>;

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<Element>,
    children: BTreeMap<Element, Set>,
}

impl Set {
    /// The set of one path of fields: `metadata.labels`.
    pub fn insert_dotted(&mut self, dotted: &str) {
        let path: Path = dotted.split('.').map(|f| Element::Field(f.to_owned())).collect();
        self.insert(&path);
    }

    /// Adds a path; nobody owns the whole object.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut set = self;
        for parent in parents {
            set = set.children.entry(parent.clone()).or_default();
        }
        set.members.insert(last.clone());
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// Whether an element right below the top is a member.
    pub fn has(&self, element: &Element) -> bool {
        self.members.contains(element)
    }

    /// What is below an element.
    pub fn below(&self, element: &Element) -> Option<&Set> {
        self.children.get(element).filter(|s| !s.is_empty())
    }

    /// All that is in one of the two.
    #[must_use]
    pub fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, set) in &other.children {
            let child = out.children.entry(element.clone()).or_default();
            *child = child.union(set);
        }
        out
    }

    /// All that is in both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let members = self.members.intersection(&other.members).cloned().collect();
        let mut children = BTreeMap::new();
        for (element, set) in &self.children {
            if let Some(other) = other.children.get(element) {
                let both = set.intersection(other);
                if !both.is_empty() {
                    children.insert(element.clone(), both);
                }
            }
        }
        Set { members, children }
    }

    /// All that is not in the other.
    #[must_use]
    pub fn difference(&self, other: &Set) -> Set {
        let members = self.members.difference(&other.members).cloned().collect();
        let mut children = BTreeMap::new();
        for (element, set) in &self.children {
            let rest = match other.children.get(element) {
                Some(other) => set.difference(other),
                None => set.clone(),
            };
            if !rest.is_empty() {
                children.insert(element.clone(), rest);
            }
        }
        Set { members, children }
    }

    /// All that is neither in the other nor below one of its members.
    #[must_use]
    pub fn recursive_difference(&self, other: &Set) -> Set {
        let members = self.members.difference(&other.members).cloned().collect();
        let mut children = BTreeMap::new();
        for (element, set) in &self.children {
            if other.members.contains(element) {
                continue;
            }
            let rest = match other.children.get(element) {
                Some(other) => set.recursive_difference(other),
                None => set.clone(),
            };
            if !rest.is_empty() {
                children.insert(element.clone(), rest);
            }
        }
        Set { members, children }
    }

    /// The same with every struct field that leads to a member.
    #[must_use]
    pub(super) fn with_named_parents(&self, node: Option<Node<'_>>) -> Set {
        let mut out = Set { members: self.members.clone(), children: BTreeMap::new() };
        for (element, set) in &self.children {
            let below = node.and_then(|n| n.descend(element));
            if let (Element::Field(name), Some(node)) = (element, node)
                && node.declares(name)
            {
                out.members.insert(element.clone());
            }
            out.children.insert(element.clone(), set.with_named_parents(below));
        }
        out
    }

    /// Every path, parents first.
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Path, out: &mut Vec<Path>) {
        for member in &self.members {
            let mut path = prefix.clone();
            path.push(member.clone());
            out.push(path);
        }
        for (element, set) in &self.children {
            prefix.push(element.clone());
            set.collect(prefix, out);
            prefix.pop();
        }
    }

    /// Reads `fieldsV1`.
    pub fn decode(value: &Value) -> Result<Set, Error> {
        Ok(Self::read(value)?.0)
    }

    /// The set below, and whether the path itself is a member.
    fn read(value: &Value) -> Result<(Set, bool), Error> {
        let map = value.as_object().ok_or(Error::Shape)?;
        let mut set = Set::default();
        let mut member = false;
        for (key, below) in map {
            if key == "." {
                member = true;
                continue;
            }
            let Some(element) = Element::parse(key)? else { continue };
            let (child, is_member) = Self::read(below)?;
            if is_member {
                set.members.insert(element.clone());
            }
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Ok((set.clone(), member || set.is_empty()))
    }

    /// As `fieldsV1`.
    pub fn encode(&self) -> Value {
        Value::Object(self.write(false))
    }

    fn write(&self, member: bool) -> Map<String, Value> {
        let mut out = Map::new();
        if member {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for element in &self.members {
            out.insert(element.encode(), Value::Object(Map::new()));
        }
        for (element, set) in &self.children {
            out.insert(element.encode(), Value::Object(set.write(self.members.contains(element))));
        }
        out
    }
}

/// A path as messages show it: `.spec.ports[port=80,protocol="TCP"].name`.
pub fn show(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}
