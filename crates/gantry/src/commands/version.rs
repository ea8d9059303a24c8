//! `gantry version`.

use std::process::ExitCode;

use clap::{ArgMatches, Args as _};
use serde_json::json;

use super::{Command, parse};
use crate::{
    context::Context,
    failure::Result,
    output::{self, Format},
};

/// The Kubernetes version whose API the daemon serves.
const KUBERNETES: &str = "1.36";

pub static COMMAND: Command = Command {
    name: "version",
    about: "Show the version",
    examples: &[("gantry version", "of this binary"), ("gantry version -o json", "for a script")],
    arguments: |command| Args::augment_args(command),
    run: version,
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    #[command(flatten)]
    output: output::Output,
}

fn version(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let version = crate::version::VERSION;
    match args.output.format {
        Format::Json | Format::Yaml => {
            let value = json!({ "version": version, "kubernetes": KUBERNETES, "architecture": std::env::consts::ARCH, "upgrade": super::daemon::upgrade::About::own() });
            output::value(&value, args.output.format, &context.printer)?;
        }
        _ => context.printer.data(format!("gantry {version} (Kubernetes API {KUBERNETES})")),
    }
    Ok(ExitCode::SUCCESS)
}
