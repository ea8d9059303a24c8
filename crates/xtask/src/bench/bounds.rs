//! What the bounds of the proxy cost: CPU a request and p99, beside the proxy of another binary, interleaved.
//!
//! The other binary is named by `GANTRY_PARENT`: a release build of the commit that is compared with.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::go::Hello;
use super::proxying::{Entry, Side, load};
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "bounds",
    about: "proxy CPU µs a request, and p99 at a fixed rate, beside another binary's proxy",
    peer: "the binary that GANTRY_PARENT names",
    bar: "≤ 1.05 ×",
    run,
};

const PARENT: &str = "GANTRY_PARENT";
const RATIO_MAX: f64 = 1.05;

/// One binary with a service of its own.
struct Contestant {
    sandbox: Sandbox,
    entry: Entry,
    proxy: u32,
    side: Side,
}

impl Contestant {
    fn start(gantry: &std::path::Path) -> Result<Self> {
        let sandbox = Sandbox::new(gantry)?;
        let hello = Hello::copy(sandbox.work("hello")?)?;
        sandbox.ok(["up", hello.path()?, "--name", "hello", "--replicas", "2"])?;
        let proxy = sandbox.proxy_pid()?.as_raw() as u32;
        let entry = Entry { address: sandbox.address("hello")?, inside: None };
        // What is made at first use is made.
        load(&entry, 1, &mut Samples::default())?;
        Ok(Self { sandbox, entry, proxy, side: Side::default() })
    }

    fn round(&mut self) -> Result<()> {
        self.side.round(&self.entry, self.proxy)
    }
}

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let parent = std::env::var_os(PARENT).map(PathBuf::from);
    let parent = parent.with_context(|| format!("{PARENT} names no binary to compare with"))?;
    ensure!(parent.is_file(), "{PARENT}: there is no {}", parent.display());
    let mut ours = Contestant::start(&setting.gantry)?;
    let mut theirs = Contestant::start(&parent)?;
    for number in 0..setting.rounds {
        // Whoever comes second finds the machine warmer.
        let (first, second) =
            if number % 2 == 0 { (&mut ours, &mut theirs) } else { (&mut theirs, &mut ours) };
        first.round()?;
        second.round()?;
    }
    ours.sandbox.end()?;
    theirs.sandbox.end()?;
    let bar = Bar::ratio(RATIO_MAX);
    let cpu = Ok(theirs.side.cpu.median());
    let p99 = Ok(theirs.side.p99.median());
    Ok(vec![
        Row::compare("proxy CPU a request, beside another binary's", "µs", ours.side.cpu.median(), &cpu, bar),
        Row::compare("proxy p99, beside another binary's", "ms", ours.side.p99.median(), &p99, bar),
    ])
}
