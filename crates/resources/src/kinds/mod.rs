//! The table of built-in kinds: one file each, one row here, sorted by group and plural.

use crate::kind::Kind;

mod configmap;
mod controllerrevision;
mod deployment;
mod endpointslice;
mod event;
mod lease;
pub mod names;
mod namespace;
mod node;
mod pod;
mod replicaset;
mod secret;
mod service;
mod serviceaccount;
pub(crate) mod tree;
pub(crate) mod wire;
mod workload;

/// Every built-in kind.
pub static KINDS: &[&Kind] = &[
    &configmap::KIND,
    &event::KIND,
    &namespace::KIND,
    &node::KIND,
    &pod::KIND,
    &secret::KIND,
    &serviceaccount::KIND,
    &service::KIND,
    &controllerrevision::KIND,
    &deployment::KIND,
    &replicaset::KIND,
    &lease::KIND,
    &endpointslice::KIND,
    &event::EVENTS_KIND,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_unique() {
        let keys: Vec<(&str, &str)> = KINDS.iter().map(|k| (k.group, k.plural)).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(keys, sorted);
    }
}
