//! Rung `fuzz`: libFuzzer over everything that reads bytes of others; the short form replays what is kept of it.

use anyhow::Result;

use super::{Seen, Setting};
use crate::fuzz::{self, Arguments};

/// For each target.
const SECONDS: u64 = 600;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let targets = fuzz::targets()?;
    if setting.short {
        fuzz::replay()?;
        return Ok(Seen::new(
            true,
            format!("what is kept of {targets} targets ended well; nothing new was tried"),
        ));
    }
    fuzz::run(&Arguments::all(SECONDS))?;
    Ok(Seen::new(true, format!("{targets} targets, {SECONDS} s each: nothing found")))
}
