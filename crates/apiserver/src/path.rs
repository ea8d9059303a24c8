//! Paths: which object or collection a request is about.

use resources::KINDS;
use resources::kind::{Kind, Subresource};
use resources::status::Target;

/// What a path names.
#[derive(Debug)]
pub(crate) enum Route {
    /// Objects of a kind.
    Objects(Place),
    /// A create-only resource that is answered, not stored.
    Review(&'static crate::reviews::Review),
    /// `/api`, `/apis`.
    Roots(Root),
    /// `/apis/<group>`.
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`.
    Version { group: String, version: String },
    /// Neither; the path as it is.
    Other,
    /// Below a group and version, but nothing is there.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Legacy,
    Groups,
}

/// A collection or an object.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub kind: &'static Kind,
    /// "" for cluster scope and for all namespaces.
    pub namespace: String,
    /// "" for a collection.
    pub name: String,
    pub subresource: Option<&'static Subresource>,
    /// The path began with `watch/`.
    pub watch: bool,
}

impl Place {
    /// The object, as messages name it.
    pub(crate) fn target(&self) -> Target<'_> {
        Target { group: self.kind.group, resource: self.kind.plural, name: &self.name }
    }

    pub(crate) fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |subresource| subresource.name())
    }
}

/// Finds what a path names.
pub(crate) fn route(path: &str) -> Route {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["api"] => Route::Roots(Root::Legacy),
        ["apis"] => Route::Roots(Root::Groups),
        ["api", version] => Route::Version { group: String::new(), version: (*version).to_owned() },
        ["apis", group] => Route::Group((*group).to_owned()),
        ["apis", group, version] => {
            Route::Version { group: (*group).to_owned(), version: (*version).to_owned() }
        }
        ["api", version, rest @ ..] => objects("", version, rest),
        ["apis", group, version, rest @ ..] => objects(group, version, rest),
        _ => Route::Other,
    }
}

fn objects(group: &str, version: &str, parts: &[&str]) -> Route {
    let (watch, parts) = match parts {
        ["watch", rest @ ..] => (true, rest),
        parts => (false, parts),
    };
    let (namespace, parts) = match parts {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize", ..] | ["namespaces"] => ("", parts),
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        parts => ("", parts),
    };
    let [plural, rest @ ..] = parts else { return Route::Unknown };
    if let Some(review) = crate::reviews::find(group, version, plural) {
        return if rest.is_empty() && namespace.is_empty() { Route::Review(review) } else { Route::Unknown };
    }
    let Some(kind) =
        KINDS.iter().copied().find(|k| k.group == group && k.version == version && k.plural == *plural)
    else {
        return Route::Unknown;
    };
    if !kind.namespaced() && !namespace.is_empty() {
        return Route::Unknown;
    }
    let (name, sub, rest): (&str, _, &[&str]) = match rest {
        [] => ("", None, &[]),
        [name] => (name, None, &[]),
        [name, sub, rest @ ..] => (name, Some(*sub), rest),
    };
    if kind.namespaced() && namespace.is_empty() && !name.is_empty() {
        return Route::Unknown;
    }
    let subresource = match sub {
        None => None,
        Some(sub) => match kind.subresource(sub) {
            Some(found) if rest.is_empty() || matches!(found, Subresource::Proxy) => Some(found),
            _ => return Route::Unknown,
        },
    };
    Route::Objects(Place { kind, namespace: namespace.to_owned(), name: name.to_owned(), subresource, watch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        match route(path) {
            Route::Objects(place) => place,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn namespaces_are_objects_and_places() {
        let place_of = place("/api/v1/namespaces/a");
        assert_eq!((place_of.kind.kind, place_of.name.as_str()), ("Namespace", "a"));
        assert_eq!(place("/api/v1/namespaces/a/status").subresource_name(), "status");
        let maps = place("/api/v1/namespaces/a/configmaps/b");
        assert_eq!((maps.kind.kind, maps.namespace.as_str(), maps.name.as_str()), ("ConfigMap", "a", "b"));
        assert_eq!(place("/api/v1/configmaps").namespace, "");
        assert!(matches!(route("/api/v1/configmaps/b"), Route::Unknown));
        assert!(matches!(route("/api/v1/frogs"), Route::Unknown));
        assert!(matches!(route("/frogs"), Route::Other));
        assert!(matches!(route("/api/v1"), Route::Version { .. }));
    }
}
