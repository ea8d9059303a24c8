//! The fixtures of `tests/programs` that a load runs against.

use anyhow::{Context, Result};

use crate::load::{Protocol, Target};
use crate::sandbox::Sandbox;

/// A fixture: its name, its folder below the project's, what it speaks.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    pub(crate) folder: &'static str,
    protocol: Protocol,
    per_second: u64,
}

/// Every fixture; 1,000 operations a second in all.
pub(crate) const FIXTURES: &[Fixture] = &[
    Fixture { name: "hello", folder: "examples/hello", protocol: Protocol::Get, per_second: 550 },
    Fixture { name: "post", folder: "tests/programs/post", protocol: Protocol::Post, per_second: 150 },
    Fixture { name: "echo", folder: "tests/programs/echo", protocol: Protocol::Echo, per_second: 150 },
    Fixture {
        name: "greeting",
        folder: "tests/programs/greeter",
        protocol: Protocol::Greeting,
        per_second: 150,
    },
];

/// Deploys version `version` of every fixture and waits until it serves.
pub(crate) fn up(sandbox: &Sandbox, version: usize) -> Result<()> {
    FIXTURES.iter().try_for_each(|fixture| up_one(sandbox, fixture, version))
}

pub(crate) fn up_one(sandbox: &Sandbox, fixture: &Fixture, version: usize) -> Result<()> {
    let folder = crate::tidy::root()?.join(fixture.folder);
    let folder = folder.to_str().context("the project's folder is no text")?;
    sandbox.ok(["up", folder, "--name", fixture.name, "--env", &format!("VERSION={version}")]).map(drop)
}

/// Where the load goes.
pub(crate) fn targets(sandbox: &Sandbox) -> Result<Vec<Target>> {
    targets_of(sandbox, FIXTURES)
}

/// The same for some of them.
pub(crate) fn targets_of(sandbox: &Sandbox, fixtures: &[Fixture]) -> Result<Vec<Target>> {
    fixtures
        .iter()
        .map(|fixture| {
            let address = sandbox.address(fixture.name)?;
            Ok(Target { protocol: fixture.protocol, address, per_second: fixture.per_second })
        })
        .collect()
}
