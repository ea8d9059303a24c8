//! Parts of suites that run in the machine.

mod clock;
mod daemon;
mod deaths;
mod first;
mod journal;
mod ledger;
mod unit;

use anyhow::Result;

pub(super) use clock::STEPS;
pub(super) use journal::SERIAL as JOURNAL;
pub(super) use ledger::CHECKED;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Install the daemon as a unit, deploy a program, wait until it answers
    Prepare,
    /// Wait until the program answers and has its replicas, and nothing more
    Settled,
    /// Compare what is there with what was acknowledged, then write until told otherwise
    Ledger(ledger::Arguments),
    /// Step the clock, and see that nothing minds
    Clock,
    /// Kill daemon and proxy together, and see that nobody is refused
    Deaths(deaths::Arguments),
    /// Wait for the program's first answer after the power came, and note when it came
    First,
    /// Tell what the first answer took
    Took,
    /// Upgrade, restart, stop and uninstall the unit
    Unit,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.part {
        Part::Prepare => daemon::prepare(),
        Part::Settled => daemon::answers().and_then(|_| daemon::settled()),
        Part::Ledger(arguments) => ledger::run(arguments),
        Part::Clock => clock::run(),
        Part::Deaths(arguments) => deaths::run(arguments),
        Part::First => first::wait(),
        Part::Took => first::tell(),
        Part::Unit => unit::life(),
    }
}
