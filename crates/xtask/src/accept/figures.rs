//! Rung `figures`: the figures of `cargo xtask bench`.

use anyhow::Result;

use super::{Seen, Setting};
use crate::bench;

const ROUNDS: usize = 10;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let bench = bench::Setting { gantry: setting.gantry.clone(), rounds: ROUNDS };
    let rows = bench::measure(&bench, &[]);
    let unmet: Vec<_> = rows.iter().filter(|row| !row.met).collect();
    let mut figure = format!("{} of {} rows met", rows.len() - unmet.len(), rows.len());
    for row in &unmet {
        figure.push_str(&format!("; {}: {} beside {}, bar {}", row.about, row.ours, row.peer, row.bar));
    }
    Ok(Seen::new(unmet.is_empty() && !rows.is_empty(), figure))
}
