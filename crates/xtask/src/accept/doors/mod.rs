//! Rung `doors`: attacks on a running gantry, as root, as nobody, or from inside a Pod. Each has to fail in the way
//! that its row says, while a program beside it serves every request.
//!
//! A family is a file beside this one with its own `DOORS`; `--only PART` runs the rows whose name has that part.

mod api;
mod certs;
mod commands;
mod containers;
mod images;
mod modes;
mod network;
mod pods;
mod proxy;
mod stage;
mod state;

use anyhow::Result;

pub(super) use self::stage::{NOBODY, Stage};
use super::{Seen, Setting, fixtures};

/// One attack.
pub(super) struct Door {
    /// Unique; lower case and hyphens, the family first.
    pub(super) name: &'static str,
    /// What has to happen, for a reader of the failure.
    pub(super) wanted: &'static str,
    /// Part of the short form.
    pub(super) short: bool,
    /// Attacks; an error when the door was open. What was seen otherwise.
    pub(super) attack: fn(&Stage) -> Result<String>,
}

/// Every family.
const FAMILIES: &[&[Door]] = &[
    api::DOORS,
    certs::DOORS,
    commands::DOORS,
    containers::DOORS,
    images::DOORS,
    modes::DOORS,
    network::DOORS,
    pods::DOORS,
    proxy::DOORS,
    state::DOORS,
];

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let mut open = Vec::new();
    let mut count = 0;
    for door in FAMILIES.iter().copied().flatten() {
        if (setting.short && !door.short) || !setting.wants(door.name) {
            continue;
        }
        count += 1;
        match Stage::set(setting).and_then(|stage| stage.play(door)) {
            Ok(seen) => crate::say(&format!("  {}: {seen}", door.name)),
            Err(error) => {
                let finding = format!("{}: wanted: {}; {error:#}", door.name, door.wanted);
                crate::say(&format!("  {finding}"));
                open.push(finding);
            }
        }
    }
    let figure = match open.as_slice() {
        [] => format!("{count} attacks failed as wanted, and every request beside them was answered"),
        some => format!("{} of {count} doors are open: {}", some.len(), some.join("; ")),
    };
    Ok(Seen::new(open.is_empty() && count > 0, figure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_have_names_of_their_own_and_say_what_is_wanted() {
        let mut names: Vec<_> = FAMILIES.iter().copied().flatten().map(|door| door.name).collect();
        assert!(FAMILIES.iter().copied().flatten().all(|door| !door.wanted.is_empty()));
        assert!(names.iter().all(|name| name.contains('-')));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
