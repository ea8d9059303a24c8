//! Upgrades of daemon and proxy under load: what is lost, and how much slower the slowest get.

use anyhow::Result;

use super::row::Bar;
use super::{Figure, Row, Setting};
use crate::accept::upgrade;

pub(crate) const FIGURE: Figure = Figure {
    name: "upgrade",
    about: "daemon upgrade under 1,000 operations a second",
    peer: "the same load before the first upgrade",
    bar: "0 lost; p99 ≤ 3 ×",
    run,
};

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let times = setting.rounds.max(2) * 2;
    let taken = upgrade::upgrades(&setting.gantry, &upgrade::other()?, times)?;
    let none = Err(anyhow::anyhow!("nobody hands over under load"));
    let about = format!("operations lost of 1,000 a second, {times} upgrades");
    let lost = Row::compare(&about, "lost", taken.lost as f64, &none, Bar::most(0.0));
    let about = format!("p99 from the first of {times} upgrades to the last, beside before");
    let (before, during) = (upgrade::p99_ms(&taken.before_us), upgrade::p99_ms(&taken.during_us));
    let slow = Row::compare(&about, "ms", during, &Ok(before), Bar::ratio(3.0));
    Ok(vec![lost, slow])
}
