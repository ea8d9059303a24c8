//! A clock that steps, as one does that is set by the network or by hand.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::daemon;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// Steps in seconds, one after the other. None leaves the days for which the certificates are valid.
pub(in crate::vm) const STEPS: [i64; 6] = [HOUR, -2 * HOUR, HOUR, 30 * DAY, -30 * DAY, 5];

pub(super) fn run() -> Result<()> {
    let address = daemon::answers()?;
    for step in STEPS {
        let now = daemon::run(Command::new("date").arg("+%s"))?.trim().parse::<i64>()?;
        daemon::run(Command::new("date").args(["-s", &format!("@{}", now + step)]))?;
        // At once: the proxy has nothing to wait for.
        daemon::ask(address, Duration::from_secs(30)).with_context(|| format!("after a step of {step} s"))?;
        for replicas in ["3", "2"] {
            let mut scale = Command::new("/payload/bin/gantry");
            daemon::run(scale.args(["scale", "hello", replicas]))
                .with_context(|| format!("after a step of {step} s"))?;
        }
        daemon::settled().with_context(|| format!("after a step of {step} s"))?;
        crate::print(&format!("a step of {step} s: served, scaled up and down"));
    }
    // One that starts by the stepped clock takes over what the one before left.
    daemon::run(Command::new("systemctl").args(["restart", daemon::UNIT]))?;
    daemon::answers()?;
    daemon::settled()
}
