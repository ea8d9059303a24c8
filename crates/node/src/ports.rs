//! What a Pod worker needs of the rest of the machine, one small trait a capability, so that plan and worker run
//! in tests without root, network or clock. The real ones are in [`crate::adapters`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::text;

/// Makes containers.
pub trait Containers: Send + Sync + 'static {
    /// A container that is made and not yet started.
    fn create(&self, spec: runtime::Spec) -> BoxFuture<'_, Result<Arc<dyn Container>, Failure>>;
    /// Why the program of an image cannot run, in words with the fix, if that can be seen from its files.
    fn explain(&self, spec: &runtime::Spec) -> Option<String>;
}

/// One container.
pub trait Container: Send + Sync + 'static {
    /// Its id in the runtime.
    fn id(&self) -> &str;
    /// What it was made from, if that is known.
    fn spec(&self) -> Option<&runtime::Spec> {
        None
    }
    /// The runtime's own handle, for attach and statistics.
    fn real(&self) -> Option<&runtime::Container> {
        None
    }
    /// Runs its program; the time at which it began.
    fn start(&self) -> BoxFuture<'_, Result<SystemTime, Failure>>;
    /// Sends its first process a signal; one that has ended is no error.
    fn signal(&self, number: i32) -> BoxFuture<'_, Result<(), Failure>>;
    /// How it ended, once it has.
    fn wait(&self) -> BoxFuture<'static, runtime::Exit>;
    /// Removes what is left of it, ending it if need be.
    fn delete(&self) -> BoxFuture<'_, Result<(), Failure>>;
}

/// Gives Pods their network.
pub trait Sandboxes: Send + Sync + 'static {
    /// The network of a Pod, made if it is not there; with users of its own, if it is to have them.
    fn attach(&self, uid: &str, own_users: bool) -> BoxFuture<'_, Result<Sandbox, Failure>>;
    /// Takes it away.
    fn detach(&self, uid: &str) -> BoxFuture<'_, Result<(), Failure>>;
    /// Connects to an address from one of the three sides.
    fn dial(&self, from: Side<'_>, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// The sockets on which the Pod listens.
    fn listening(&self, uid: &str) -> BoxFuture<'_, io::Result<Vec<Listening>>>;
}

/// From where a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<'a> {
    /// The machine's own network: for a Pod that has no other.
    Host,
    /// The router's, from which a Pod's own address is reached.
    Router,
    /// The Pod's with that UID: what it names is looked for where its program would look.
    Pod(&'a str),
}

/// A Pod's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its address.
    pub ip: IpAddr,
    /// The namespace that its containers join; `None` is the machine's own.
    pub netns: Option<PathBuf>,
    /// The host's id of the Pod's user 0, if it has users of its own, who own the namespace.
    pub first_id: Option<u32>,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// The port.
    pub port: u16,
    /// The address, unspecified for all.
    pub address: IpAddr,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// Brings images here.
pub trait Images: Send + Sync + 'static {
    /// The image, pulled if the policy asks for it.
    fn image(&self, request: Request) -> BoxFuture<'_, Result<Image, PullError>>;
}

/// Which image is wanted, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As the container names it.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub policy: String,
    /// Where the pull secrets are.
    pub namespace: String,
    /// Names of Secrets with registry credentials.
    pub secrets: Vec<String>,
}

/// An image that is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference with its digest, for `imageID`.
    pub id: String,
    /// The unpacked root.
    pub tree: PathBuf,
    /// Its configuration.
    pub config: Arc<oci::ImageConfig>,
    /// Whether it came over the network just now, and its size in bytes.
    pub pulled_bytes: Option<u64>,
}

/// Why an image is not here: the waiting reason, and what happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// What went wrong with a step, with causes, for a status or an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Failure {
    /// The error and all its causes on one line.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Failure(text)
    }
}

/// Writes Pods back to the API.
pub trait Pods: Send + Sync + 'static {
    /// A strategic merge patch of `pods/status`, and of annotations when the patch has some.
    fn patch_status(&self, pod: &Pod, patch: Value) -> BoxFuture<'static, Result<Pod, ApiError>>;
    /// Ends the object: grace 0, only if the uid is the same.
    fn delete(&self, pod: &Pod) -> BoxFuture<'static, Result<(), ApiError>>;
}

/// How a write to the API went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The object, or one with this uid, is no more.
    #[error("the Pod is gone")]
    Gone,
    /// Anything else; worth another try.
    #[error("{0}")]
    Failed(String),
}

/// Tells what happens to a Pod.
pub trait Events: Send + Sync + 'static {
    /// Records an event about the Pod, or one of its containers.
    fn record(&self, pod: &Pod, container: Option<&str>, event: Event);
}

/// A longer message of an event is cut, as the API has it (`NoteLengthLimit` of events.k8s.io).
const MESSAGE_CHARS_MAX: usize = 1000;

/// What happened. Its message is one line of plain text, whoever wrote the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Normal or Warning.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Event {
    /// Something that is as it should be.
    pub fn normal(reason: &'static str, message: impl AsRef<str>) -> Self {
        Self { warning: false, reason, message: text::shown(message.as_ref(), MESSAGE_CHARS_MAX) }
    }

    /// Something that is not.
    pub fn warning(reason: &'static str, message: impl AsRef<str>) -> Self {
        Self { warning: true, reason, message: text::shown(message.as_ref(), MESSAGE_CHARS_MAX) }
    }
}

/// Objects that Pods refer to.
pub trait Objects: Send + Sync + 'static {
    /// A ConfigMap.
    fn config_map(&self, namespace: &str, name: &str) -> BoxFuture<'_, Result<Option<ConfigMap>, Failure>>;
    /// A Secret.
    fn secret(&self, namespace: &str, name: &str) -> BoxFuture<'_, Result<Option<Secret>, Failure>>;
    /// The Services of a namespace and `default/kubernetes`.
    fn services(&self, namespace: &str) -> BoxFuture<'_, Vec<Service>>;
    /// A token of the Pod's service account, for `audience` (or the API server itself).
    fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> BoxFuture<'_, Result<String, Failure>>;
    /// Something for every change of these ConfigMaps and Secrets, after the first look at them.
    fn changes(
        &self,
        namespace: &str,
        config_maps: Vec<String>,
        secrets: Vec<String>,
    ) -> BoxStream<'static, ()>;
}
