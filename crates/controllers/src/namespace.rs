//! Namespaces: one that is being deleted is emptied, then let go.

use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt};
use resources::{KINDS, Scope as KindScope};

use crate::cache::Key;
use crate::control::{self, Next};
use crate::error::absent_is_fine;
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error};

/// What holds a namespace in `spec.finalizers` until it is empty.
const FINALIZER: &str = "kubernetes";
/// Objects of a kind that are left are looked at again after this: what holds them tells nobody.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

pub(crate) const CONTROLLER: Controller = Controller {
    name: "namespace",
    user: CONTROLLERS_USER,
    about: "empties namespaces that are being deleted",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    control::feed(&context.scope, &queue, &context.caches.namespaces, control::own);
    context.caches.namespaces.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

fn is_ending(namespace: &Namespace) -> bool {
    let held =
        namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten()).any(|one| one == FINALIZER);
    namespace.metadata.deletion_timestamp.is_some() && held
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    let Some(namespace) = context.caches.namespaces.get(&key).filter(|namespace| is_ending(namespace)) else {
        return Ok(Next::Changed);
    };
    let mut left = 0;
    for kind in KINDS.iter().filter(|kind| kind.scope == KindScope::Namespaced) {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let api = Api::<DynamicObject>::namespaced_with(
            context.client.clone(),
            &key.name,
            &ApiResource::from_gvk_with_plural(&gvk, kind.plural),
        );
        let list = api.list_metadata(&ListParams::default()).await;
        let list = list.map_err(Error::api("list", format!("{} in {}", kind.plural, key.name)))?;
        left += list.items.len();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        for object in list.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            let name = object.name_any();
            let deleted = api.delete(&name, &params).await;
            absent_is_fine(deleted.map_err(Error::api("delete", format!("{}/{name}", kind.plural))))?;
        }
    }
    if left > 0 {
        return Ok(Next::After(AGAIN));
    }
    let mut emptied = namespace.as_ref().clone();
    if let Some(finalizers) = emptied.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let object = format!("namespaces/{key}");
    let api = Api::<Namespace>::all(context.client.clone());
    let finalized: Result<Namespace, _> =
        api.replace_subresource("finalize", &key.name, &PostParams::default(), &emptied).await;
    absent_is_fine(finalized.map_err(Error::api("finalize", object)))?;
    Ok(Next::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_deleted_namespace_that_is_held_is_emptied() {
        let namespace = |value| serde_json::from_value::<Namespace>(value).unwrap();
        let deleted = json!({"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert!(is_ending(&namespace(json!({"metadata": deleted, "spec": {"finalizers": ["kubernetes"]}}))));
        assert!(!is_ending(&namespace(json!({"metadata": deleted, "spec": {}}))));
        assert!(!is_ending(&namespace(
            json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}})
        )));
    }
}
