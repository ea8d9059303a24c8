//! What fields mean, in Kubernetes' words: from `k8s-openapi`, generated for one document and dropped with it.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use crate::kind::Kind;

/// The descriptions of all definitions that some kinds reach.
#[derive(Debug)]
pub struct Descriptions(Map<String, Value>);

type Describe = fn(&mut SchemaGenerator);

fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// Every top-level kind of the groups in the facts, so that a new row of `KINDS` is described without a line here.
const KINDS: &[(&str, Describe)] = &[
    ("io.k8s.api.apps.v1.ControllerRevision", describe::<api::apps::v1::ControllerRevision>),
    ("io.k8s.api.apps.v1.DaemonSet", describe::<api::apps::v1::DaemonSet>),
    ("io.k8s.api.apps.v1.Deployment", describe::<api::apps::v1::Deployment>),
    ("io.k8s.api.apps.v1.ReplicaSet", describe::<api::apps::v1::ReplicaSet>),
    ("io.k8s.api.apps.v1.StatefulSet", describe::<api::apps::v1::StatefulSet>),
    (
        "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        describe::<api::autoscaling::v1::HorizontalPodAutoscaler>,
    ),
    ("io.k8s.api.batch.v1.CronJob", describe::<api::batch::v1::CronJob>),
    ("io.k8s.api.batch.v1.Job", describe::<api::batch::v1::Job>),
    ("io.k8s.api.coordination.v1.Lease", describe::<api::coordination::v1::Lease>),
    ("io.k8s.api.core.v1.ConfigMap", describe::<api::core::v1::ConfigMap>),
    ("io.k8s.api.core.v1.Endpoints", describe::<api::core::v1::Endpoints>),
    ("io.k8s.api.core.v1.Event", describe::<api::core::v1::Event>),
    ("io.k8s.api.core.v1.LimitRange", describe::<api::core::v1::LimitRange>),
    ("io.k8s.api.core.v1.Namespace", describe::<api::core::v1::Namespace>),
    ("io.k8s.api.core.v1.Node", describe::<api::core::v1::Node>),
    ("io.k8s.api.core.v1.PersistentVolume", describe::<api::core::v1::PersistentVolume>),
    ("io.k8s.api.core.v1.PersistentVolumeClaim", describe::<api::core::v1::PersistentVolumeClaim>),
    ("io.k8s.api.core.v1.Pod", describe::<api::core::v1::Pod>),
    ("io.k8s.api.core.v1.PodTemplate", describe::<api::core::v1::PodTemplate>),
    ("io.k8s.api.core.v1.ReplicationController", describe::<api::core::v1::ReplicationController>),
    ("io.k8s.api.core.v1.ResourceQuota", describe::<api::core::v1::ResourceQuota>),
    ("io.k8s.api.core.v1.Secret", describe::<api::core::v1::Secret>),
    ("io.k8s.api.core.v1.Service", describe::<api::core::v1::Service>),
    ("io.k8s.api.core.v1.ServiceAccount", describe::<api::core::v1::ServiceAccount>),
    ("io.k8s.api.discovery.v1.EndpointSlice", describe::<api::discovery::v1::EndpointSlice>),
    ("io.k8s.api.events.v1.Event", describe::<api::events::v1::Event>),
    ("io.k8s.api.networking.v1.Ingress", describe::<api::networking::v1::Ingress>),
    ("io.k8s.api.networking.v1.IngressClass", describe::<api::networking::v1::IngressClass>),
    ("io.k8s.api.networking.v1.NetworkPolicy", describe::<api::networking::v1::NetworkPolicy>),
    ("io.k8s.api.policy.v1.PodDisruptionBudget", describe::<api::policy::v1::PodDisruptionBudget>),
    ("io.k8s.api.rbac.v1.ClusterRole", describe::<api::rbac::v1::ClusterRole>),
    ("io.k8s.api.rbac.v1.ClusterRoleBinding", describe::<api::rbac::v1::ClusterRoleBinding>),
    ("io.k8s.api.rbac.v1.Role", describe::<api::rbac::v1::Role>),
    ("io.k8s.api.rbac.v1.RoleBinding", describe::<api::rbac::v1::RoleBinding>),
    ("io.k8s.api.storage.v1.StorageClass", describe::<api::storage::v1::StorageClass>),
];

impl Descriptions {
    /// Generates what these kinds need.
    pub fn of(kinds: &[&Kind]) -> Self {
        let mut generator = SchemaGenerator::default();
        for (name, describe) in KINDS {
            if kinds.iter().any(|k| k.schema == *name) {
                describe(&mut generator);
            }
        }
        describe::<meta::DeleteOptions>(&mut generator);
        describe::<meta::ListMeta>(&mut generator);
        describe::<meta::Status>(&mut generator);
        describe::<meta::APIResourceList>(&mut generator);
        describe::<api::autoscaling::v1::Scale>(&mut generator);
        describe::<api::core::v1::Binding>(&mut generator);
        describe::<api::policy::v1::Eviction>(&mut generator);
        describe::<api::authentication::v1::TokenRequest>(&mut generator);
        Descriptions(generator.take_definitions(false).into_iter().collect())
    }

    /// Of a definition, by its full name.
    pub fn definition(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.get("description")?.as_str()
    }

    /// Of a field of a definition.
    pub fn field(&self, definition: &str, name: &str) -> Option<&str> {
        self.0.get(definition)?.get("properties")?.get(name)?.get("description")?.as_str()
    }
}
