//! Controllers: each watches some kinds and makes one thing true.
//!
//! **Invariant:** a controller is level-driven. Its `plan` is a pure function from what is observed to actions; what
//! runs around it ([`control`]) is the same for all. Nothing is kept that a restart could not rebuild, and nobody
//! polls: a key is looked at again because an object changed, a write failed (back-off), or a time that the plan
//! named has come.

mod cache;
mod control;
mod deployment;
mod endpointslice;
mod error;
mod event;
mod garbage;
mod namespace;
mod owner;
mod pods;
mod queue;
mod replicaset;
mod scheduler;
mod serviceaccount;

pub use error::Error;

use futures::future::BoxFuture;
use kube::Client;
use lifecycle::Scope;

/// A controller's row.
pub struct Controller {
    /// Its name, in logs, events and metrics.
    pub name: &'static str,
    /// The user that it is to the API server.
    pub user: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    run: fn(Context) -> BoxFuture<'static, ()>,
}

/// Every controller, sorted by name.
pub static CONTROLLERS: &[Controller] = &[
    deployment::CONTROLLER,
    endpointslice::CONTROLLER,
    garbage::CONTROLLER,
    namespace::CONTROLLER,
    replicaset::CONTROLLER,
    scheduler::CONTROLLER,
    serviceaccount::CONTROLLER,
];

/// The identity of the controllers that are not the scheduler.
pub const CONTROLLERS_USER: &str = "system:gantry:controllers";
/// The scheduler's identity.
pub const SCHEDULER_USER: &str = "system:gantry:scheduler";

/// What a controller runs with.
#[derive(Clone)]
struct Context {
    client: Client,
    caches: cache::Caches,
    events: event::Recorder,
    scope: Scope,
}

/// Starts every controller in `scope`. `client_for` gives the client of a user; caches are filled through
/// [`CONTROLLERS_USER`]'s and shared, one watch a kind. Returns at once.
pub fn start(client_for: impl Fn(&str) -> Client, scope: &Scope) {
    let caches = cache::Caches::start(&client_for(CONTROLLERS_USER), scope);
    for controller in CONTROLLERS {
        let client = client_for(controller.user);
        let context = Context {
            events: event::Recorder::start(client.clone(), controller.name, scope),
            client,
            caches: caches.clone(),
            scope: scope.clone(),
        };
        scope.spawn(controller.name, (controller.run)(context));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_unique_and_documented() {
        assert!(CONTROLLERS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(CONTROLLERS.iter().all(|row| !row.about.is_empty()));
    }
}
