//! `gantry rollback`: an earlier version serves again, by the rules of `kubectl rollout undo`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{ArgMatches, Args as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Command, down::running, duration, history::revisions, parse};
use crate::{
    context::Context,
    deploy::{self, Rollout},
    failure::{Failure, Result},
    workload::{MANAGER, REVISION},
};

/// The label by which a ReplicaSet knows its Pods; no part of the template that the user wrote.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Attempts to hand over the restored fields.
const HAND_OVERS_MAX: usize = 10;

pub static COMMAND: Command = Command {
    name: "rollback",
    about: "Go back to an earlier version of a program",
    examples: &[
        ("gantry rollback hello", "to the version before"),
        ("gantry rollback hello --to-revision 2", "to a version that gantry history lists"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(rollback(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// The program
    #[arg(value_name = "NAME")]
    name: String,
    /// The version [default: the one before]
    #[arg(long, value_name = "REVISION")]
    to_revision: Option<i64>,
    /// How long it may take to get ready
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    timeout: Duration,
}

async fn rollback(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let namespace = context.namespace();
    let deployment = deploy::deployment(&connection, namespace, &args.name).await?;
    let sets = revisions(&connection, namespace, &deployment).await?;
    let current =
        kube::ResourceExt::annotations(&deployment).get(REVISION).and_then(|text| text.parse().ok());
    let (revision, set) = choose(&sets, current, args.to_revision, &args.name)?;
    let started = Instant::now();
    let deployments = connection.api::<Deployment>(namespace);
    let patched = restore(&deployments, &args.name, &deployment, template(set)?).await?;
    let rollout = Rollout {
        context,
        connection: &connection,
        namespace,
        name: &args.name,
        generation: patched.metadata.generation.unwrap_or_default(),
        spec: None,
        had_service: true,
        timeout: args.timeout,
    };
    let followed = rollout.follow().await;
    hand_over(&deployments, &args.name).await?;
    let done = followed?;
    let facts = format!("{} to revision {revision}  {}/{}", args.name, done.ready, done.wanted);
    context.printer.step("Restored", &facts, Some(started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// The version that was asked for, or the newest but the current one.
fn choose<'a>(
    sets: &'a [(i64, ReplicaSet)],
    current: Option<i64>,
    wanted: Option<i64>,
    name: &str,
) -> Result<(i64, &'a ReplicaSet)> {
    let found = match wanted {
        Some(wanted) => sets.iter().find(|(revision, _)| *revision == wanted),
        None => sets.iter().rev().find(|(revision, _)| Some(*revision) != current),
    };
    let found = found.map(|(revision, set)| (*revision, set));
    found.ok_or_else(|| match wanted {
        Some(wanted) => {
            Failure::new(format!("{name} has no revision {wanted}")).hint(format!("gantry history {name}"))
        }
        None => Failure::new(format!("{name} has no earlier version")).hint(format!("gantry history {name}")),
    })
}

/// The Pod template of a ReplicaSet as the Deployment had it.
fn template(set: &ReplicaSet) -> Result<Value> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let mut template = serde_json::to_value(template).map_err(|error| Failure::from_error(&error))?;
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    Ok(template)
}

/// Replaces the template whole, so that what the earlier version did not have goes.
async fn restore(
    deployments: &Api<Deployment>,
    name: &str,
    deployment: &Deployment,
    template: Value,
) -> Result<Deployment> {
    let patch = json_patch(json!([
        { "op": "test", "path": "/metadata/uid", "value": deployment.metadata.uid },
        { "op": "replace", "path": "/spec/template", "value": template },
    ]))?;
    let parameters =
        PatchParams { field_manager: Some("gantry-rollback".to_owned()), ..PatchParams::default() };
    Ok(deployments.patch(name, &parameters, &patch).await?)
}

/// Makes the restored fields gantry's as if `up` had applied them, so that the next `up` may drop them. The controllers
/// write to the same object: a conflict is tried again on what they left.
async fn hand_over(deployments: &Api<Deployment>, name: &str) -> Result<()> {
    for _ in 0..HAND_OVERS_MAX {
        let deployment = deployments.get(name).await?;
        let Some(entries) = owned_by_gantry(&deployment)? else { return Ok(()) };
        let owners = json_patch(json!([
            { "op": "test", "path": "/metadata/resourceVersion", "value": deployment.metadata.resource_version },
            { "op": "replace", "path": "/metadata/managedFields", "value": entries },
        ]))?;
        match deployments.patch(name, &PatchParams::default(), &owners).await {
            Ok(_) => return Ok(()),
            // A test that fails is 422, a write in between 409.
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => {
                tracing::debug!(message = status.message, name, "hand over the restored fields");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn json_patch(operations: Value) -> Result<Patch<()>> {
    serde_json::from_value(operations).map(Patch::Json).map_err(|error| Failure::from_error(&error))
}

/// The managedFields with the rollback's fields in gantry's applied entry; `None` when there is nothing to move.
fn owned_by_gantry(deployment: &Deployment) -> Result<Option<Value>> {
    let entries = deployment.metadata.managed_fields.clone().unwrap_or_default();
    let mut entries = match serde_json::to_value(entries).map_err(|error| Failure::from_error(&error))? {
        Value::Array(entries) => entries,
        _ => return Ok(None),
    };
    let Some(index) = entries.iter().position(|entry| entry["manager"] == "gantry-rollback") else {
        return Ok(None);
    };
    let moved = entries.remove(index);
    let applied =
        entries.iter_mut().find(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply");
    let Some(applied) = applied else { return Ok(None) };
    merge(&mut applied["fieldsV1"], &moved["fieldsV1"]);
    Ok(Some(Value::Array(entries)))
}

/// The union of two sets of fields.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert_with(|| json!({})), value);
            }
        }
        (into, from) if into.is_null() => into.clone_from(from),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets() -> Vec<(i64, ReplicaSet)> {
        [1, 3, 4].map(|revision| (revision, ReplicaSet::default())).into()
    }

    #[test]
    fn the_version_before_is_the_newest_that_is_not_current() {
        let chosen = |current, wanted| choose(&sets(), current, wanted, "x").map(|(revision, _)| revision);
        assert_eq!(chosen(Some(4), None).unwrap(), 3);
        assert_eq!(chosen(Some(4), Some(1)).unwrap(), 1);
        let said = chosen(Some(4), Some(2)).unwrap_err().to_string();
        assert_eq!(said, "error: x has no revision 2\nhint: gantry history x\n");
        assert!(choose(&sets()[..1], Some(1), None, "x").is_err());
    }

    #[test]
    fn restored_fields_become_gantrys() {
        let deployment: Deployment = serde_json::from_value(json!({ "metadata": { "name": "x", "managedFields": [
            { "manager": "gantry", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": { "f:a": { "f:b": {} } } },
            { "manager": "gantry-rollback", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": { "f:a": { "f:c": {} } } },
        ] } })).unwrap();
        let entries = owned_by_gantry(&deployment).unwrap().unwrap();
        assert_eq!(entries.as_array().unwrap().len(), 1);
        assert_eq!(entries[0]["fieldsV1"], json!({ "f:a": { "f:b": {}, "f:c": {} } }));
    }

    #[test]
    fn the_templates_hash_is_no_part_of_it() {
        let set = json!({ "metadata": {}, "spec": { "selector": {}, "template": { "metadata": { "labels": { "app": "x", TEMPLATE_HASH: "1" } } } } });
        let template = template(&serde_json::from_value(set).unwrap()).unwrap();
        assert_eq!(template["metadata"]["labels"], json!({ "app": "x" }));
    }
}
