//! Deployments: one ReplicaSet for each version of the template, and an orderly way from one to the next.
//!
//! [`plan`] says what to do, [`rollout`] how many replicas each set gets, [`progress`] what the status says.

mod plan;
mod progress;
mod rollout;

use std::sync::Arc;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cache::{Change, Key};
use crate::control::{self, Next};
use crate::error::absent_is_fine;
use crate::event::Type;
use crate::owner::{controller_of, controller_ref, is_controlled_by, selects};
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error};
use plan::{Action, plan};

/// The annotation that numbers the versions of a Deployment, on it and on its ReplicaSets.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a ReplicaSet had before it was rolled back to.
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when the set was last scaled.
pub(crate) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The replicas that the Deployment may have in all while it changes.
pub(crate) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

pub(crate) const CONTROLLER: Controller = Controller {
    name: "deployment",
    user: CONTROLLERS_USER,
    about: "rolls a Deployment's ReplicaSets from one version to the next",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    control::feed(&context.scope, &queue, &context.caches.deployments, control::own);
    let deployments = context.caches.deployments.clone();
    control::feed(
        &context.scope,
        &queue,
        &context.caches.replica_sets,
        move |change: &Change<ReplicaSet>| {
            let mut keys = Vec::new();
            for set in change.either() {
                let namespace = set.namespace().unwrap_or_default();
                match controller_of(&set.metadata) {
                    Some(owner) if owner.kind == "Deployment" => {
                        keys.push(Key::new(namespace, owner.name.clone()))
                    }
                    Some(_) => {}
                    None => keys.extend(
                        deployments
                            .list(&namespace)
                            .iter()
                            .filter(|one| {
                                one.spec.as_ref().is_some_and(|spec| selects(&spec.selector, &set.metadata))
                            })
                            .map(|one| Key::of(one.as_ref())),
                    ),
                }
            }
            keys
        },
    );
    context.caches.replica_sets.ready().await;
    context.caches.deployments.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    let Some(deployment) = context.caches.deployments.get(&key) else {
        return Ok(Next::Changed);
    };
    let sets = own_sets(context, &deployment, &key).await?;
    let plan = plan(&deployment, &sets, Timestamp::now())
        .map_err(|source| Error::Encode { object: format!("deployments/{key}"), source })?;
    for action in plan.actions {
        execute(context, &deployment, &key, action).await?;
    }
    Ok(plan.next.map_or(Next::Changed, Next::After))
}

/// The Deployment's ReplicaSets, oldest first; orphans that it selects are adopted.
async fn own_sets(
    context: &Context,
    deployment: &Deployment,
    key: &Key,
) -> Result<Vec<Arc<ReplicaSet>>, Error> {
    let uid = deployment.uid().unwrap_or_default();
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let mut own = Vec::new();
    for set in context.caches.replica_sets.list(&key.namespace) {
        if is_controlled_by(&set.metadata, &uid) {
            own.push(set);
            continue;
        }
        let orphan = controller_of(&set.metadata).is_none() && set.metadata.deletion_timestamp.is_none();
        if orphan && deployment.metadata.deletion_timestamp.is_none() && selects(&selector, &set.metadata) {
            let patch =
                json!({"metadata": {"uid": set.uid(), "ownerReferences": [controller_ref(deployment)]}});
            let api = Api::<ReplicaSet>::namespaced(context.client.clone(), &key.namespace);
            let name = set.name_any();
            let adopted = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            let adopted = adopted.map_err(Error::api("patch", format!("replicasets/{name}")));
            if let Some(adopted) = absent_is_fine(adopted)? {
                context.caches.replica_sets.caught_up(&adopted).await?;
                own.push(Arc::new(adopted));
            }
        }
    }
    own.sort_by_key(|set| (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.name_any()));
    Ok(own)
}

async fn execute(context: &Context, deployment: &Deployment, key: &Key, action: Action) -> Result<(), Error> {
    let sets = Api::<ReplicaSet>::namespaced(context.client.clone(), &key.namespace);
    match action {
        Action::Create(set) => create_set(context, deployment, &sets, *set).await,
        Action::Change { set, patch, replicas } => {
            let name = set.name_any();
            let changed = sets.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            let changed = changed.map_err(Error::api("patch", format!("replicasets/{name}")));
            let Some(changed) = absent_is_fine(changed)? else {
                return Ok(());
            };
            if let Some((from, to)) = replicas {
                let verb = if to > from { "up" } else { "down" };
                let message = format!("Scaled {verb} replica set {name} from {from} to {to}");
                context.events.say(deployment, Type::Normal, "ScalingReplicaSet", message);
            }
            context.caches.replica_sets.caught_up(&changed).await
        }
        Action::Delete(set) => {
            let name = set.name_any();
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                ..Default::default()
            };
            let deleted = sets
                .delete(&name, &params)
                .await
                .map_err(Error::api("delete", format!("replicasets/{name}")));
            absent_is_fine(deleted).map(drop)
        }
        Action::Revision(revision) => {
            let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
            let api = Api::<Deployment>::namespaced(context.client.clone(), &key.namespace);
            let changed = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            match absent_is_fine(changed.map_err(Error::api("patch", format!("deployments/{key}"))))? {
                Some(changed) => context.caches.deployments.caught_up(&changed).await,
                None => Ok(()),
            }
        }
        Action::Status(status) => write_status(context, deployment, key, *status).await,
    }
}

async fn create_set(
    context: &Context,
    deployment: &Deployment,
    sets: &Api<ReplicaSet>,
    set: ReplicaSet,
) -> Result<(), Error> {
    let name = set.name_any();
    match sets.create(&PostParams::default(), &set).await {
        Ok(created) => {
            let replicas = created.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            if replicas > 0 {
                let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                context.events.say(deployment, Type::Normal, "ScalingReplicaSet", message);
            }
            context.caches.replica_sets.caught_up(&created).await
        }
        // The name is taken by another template with the same hash: count the collision, then hash anew.
        Err(error) if crate::error::code(&error) == Some(409) => {
            let taken = sets.get(&name).await.map_err(Error::api("get", format!("replicasets/{name}")))?;
            let ours = is_controlled_by(&taken.metadata, &deployment.uid().unwrap_or_default());
            let template = |set: &ReplicaSet| {
                set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
            };
            if ours && crate::owner::same_template(&template(&taken), &template(&set)) {
                return context.caches.replica_sets.caught_up(&taken).await;
            }
            let mut status = deployment.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            write_status(context, deployment, &Key::of(deployment), status).await
        }
        Err(error) => {
            let error = Error::api("create", format!("replicasets/{name}"))(error);
            let message =
                format!("Failed to create new replica set \"{name}\": {}", crate::error::chain(&error));
            context.events.say(deployment, Type::Warning, "ReplicaSetCreateError", message);
            Err(error)
        }
    }
}

async fn write_status(
    context: &Context,
    deployment: &Deployment,
    key: &Key,
    status: DeploymentStatus,
) -> Result<(), Error> {
    if deployment.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api = Api::<Deployment>::namespaced(context.client.clone(), &key.namespace);
    // From the cache, which already holds this look's own writes.
    let mut changed = match context.caches.deployments.get(key) {
        Some(current) if current.uid() == deployment.uid() => current.as_ref().clone(),
        _ => return Ok(()),
    };
    changed.status = Some(status);
    let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
    match absent_is_fine(written.map_err(Error::api("replace", format!("deployments/{key}"))))? {
        Some(written) => context.caches.deployments.caught_up(&written).await,
        None => Ok(()),
    }
}
