//! Rung `vm`: every suite that needs a machine of its own, on the oldest kernel that is supported.

use anyhow::Result;

use super::{Seen, Setting};
use crate::vm::{SUITES, Trial};

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let trial = Trial {
        gantry: setting.gantry.clone(),
        kernel: None,
        times: None,
        short: setting.short,
        seed: setting.seed,
    };
    let (mut seen, mut unmet) = (Vec::new(), 0);
    for suite in SUITES.iter().filter(|suite| setting.wants(suite.name)) {
        let line = match (suite.run)(&trial) {
            Ok(figure) => format!("{}: {figure}", suite.name),
            Err(error) => {
                unmet += 1;
                format!("{} FAILED: {error:#}", suite.name)
            }
        };
        crate::say(&format!("  {line}"));
        seen.push(line);
    }
    Ok(Seen::new(unmet == 0 && !seen.is_empty(), seen.join("; ")))
}
