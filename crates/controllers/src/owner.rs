//! Ownership: who controls an object, and the hash that names a Pod template.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;

/// The label that carries [`template_hash`].
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference to the object's controller, if it has one.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object of `uid` controls it.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// Whether the labels match the selector. An empty selector matches nothing here, as for Kubernetes' controllers.
pub(crate) fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    let empty = std::collections::BTreeMap::new();
    let labels = meta.labels.as_ref().unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    if equal.clone().next().is_none() && expressions.clone().next().is_none() {
        return false;
    }
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|wanted| {
            let value = labels.get(&wanted.key);
            let listed = || value.is_some_and(|value| wanted.values.iter().flatten().any(|one| one == value));
            match wanted.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// A short name for a template: the same for the same template, on any machine and in any release. `collisions`
/// moves it away from another template's hash.
pub(crate) fn template_hash(
    template: &PodTemplateSpec,
    collisions: i32,
) -> Result<String, serde_json::Error> {
    let mut template = template.clone();
    without_hash(&mut template);
    // Through Value, so that keys are sorted whatever order the struct writes.
    let text = serde_json::to_value(&template)?.to_string();
    let mut hash = fnv1a(text.as_bytes());
    if collisions > 0 {
        hash ^= fnv1a(&collisions.to_le_bytes());
    }
    Ok(safe(hash as u32 ^ (hash >> 32) as u32))
}

/// Whether both are the same template; the hash label does not count.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let (mut a, mut b) = (a.clone(), b.clone());
    without_hash(&mut a);
    without_hash(&mut b);
    a == b
}

fn without_hash(template: &mut PodTemplateSpec) {
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(TEMPLATE_HASH);
        }
        if meta.labels.as_ref().is_some_and(|labels| labels.is_empty()) {
            meta.labels = None;
        }
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Letters and digits that spell no words, as Kubernetes' own hashes.
fn safe(number: u32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    number
        .to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_hash_label_changes_neither_hash_nor_equality() {
        let plain = template(json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}));
        let marked = template(
            json!({"metadata": {"labels": {"app": "a", TEMPLATE_HASH: "x"}}, "spec": {"containers": []}}),
        );
        assert!(same_template(&plain, &marked));
        assert_eq!(template_hash(&plain, 0).unwrap(), template_hash(&marked, 0).unwrap());
        assert_ne!(template_hash(&plain, 0).unwrap(), template_hash(&plain, 1).unwrap());
    }

    #[test]
    fn selectors_match_as_documented() {
        let meta: ObjectMeta = serde_json::from_value(json!({"labels": {"a": "1", "b": "2"}})).unwrap();
        let cases = [
            (json!({}), false),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "3"]}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["1"]}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), false),
        ];
        for (selector, expected) in cases {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, &meta), expected, "{selector}");
        }
    }
}
