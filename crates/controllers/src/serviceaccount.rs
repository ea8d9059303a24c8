//! ServiceAccounts: each namespace has one named `default`.

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::cache::{Change, Key};
use crate::control::{self, Next};
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error};

const DEFAULT: &str = "default";

pub(crate) const CONTROLLER: Controller = Controller {
    name: "serviceaccount",
    user: CONTROLLERS_USER,
    about: "gives each namespace its default ServiceAccount",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    control::feed(&context.scope, &queue, &context.caches.namespaces, control::own);
    control::feed(
        &context.scope,
        &queue,
        &context.caches.service_accounts,
        |change: &Change<ServiceAccount>| {
            let gone = change.now.is_none();
            change
                .before
                .iter()
                .filter(|_| gone)
                .map(|one| Key::new("", one.namespace().unwrap_or_default()))
                .collect()
        },
    );
    context.caches.service_accounts.ready().await;
    context.caches.namespaces.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

fn lacks_default(namespace: &Namespace, has: bool) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !has && phase != Some("Terminating") && namespace.metadata.deletion_timestamp.is_none()
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    let Some(namespace) = context.caches.namespaces.get(&key) else {
        return Ok(Next::Changed);
    };
    let has = context.caches.service_accounts.get(&Key::new(key.name.clone(), DEFAULT)).is_some();
    if !lacks_default(&namespace, has) {
        return Ok(Next::Changed);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT.to_owned()),
            namespace: Some(key.name.clone()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let api = Api::<ServiceAccount>::namespaced(context.client.clone(), &key.name);
    match api.create(&PostParams::default(), &account).await {
        Ok(_) => Ok(Next::Changed),
        Err(error) if crate::error::code(&error) == Some(409) => Ok(Next::Changed),
        Err(error) => Err(Error::api("create", format!("serviceaccounts/{}/{DEFAULT}", key.name))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_ending_namespace_gets_none() {
        let namespace = |value| serde_json::from_value::<Namespace>(value).unwrap();
        assert!(lacks_default(&namespace(json!({"metadata": {"name": "n"}})), false));
        assert!(!lacks_default(&namespace(json!({"metadata": {"name": "n"}})), true));
        assert!(!lacks_default(
            &namespace(json!({"metadata": {"name": "n"}, "status": {"phase": "Terminating"}})),
            false
        ));
    }
}
