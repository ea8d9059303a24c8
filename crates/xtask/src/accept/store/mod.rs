//! Rung `store`: what was acknowledged stays, whatever ends the daemon or fills the disk; what lies is refused.

pub(super) mod archive;
mod disk;
mod full;
mod kills;
mod objects;
mod pods;
mod registry;
mod tars;
pub(super) mod work;
mod writers;

use anyhow::{Context, Result};

pub(crate) use pods::Traces;
pub(crate) use work::Register;

use super::{Seen, Setting};

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let kills = kills::run(setting).context("kills")?;
    let full = full::run(setting).context("full disks")?;
    let tars = tars::run(setting).context("tars")?;
    Ok(Seen::new(true, format!("{kills}; {full}; {tars}")))
}
