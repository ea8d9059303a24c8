//! The commands: one file each, and a row here. Help, completion and dispatch read the row.

mod build;
mod completions;
mod daemon;
mod down;
mod history;
mod image;
mod logs;
mod ps;
mod registry;
mod rollback;
mod run;
mod scale;
mod uninstall;
mod up;
mod version;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Args as _, FromArgMatches as _, error::ErrorKind};
use tokio_util::sync::CancellationToken;

pub use crate::context::Hooks;
use crate::{
    context::Context,
    failure::{Failure, Result},
    printer::Printer,
    settings::{Flags, Settings},
};

/// A command.
pub struct Command {
    pub name: &'static str,
    pub about: &'static str,
    /// Command lines that work, with what they do.
    pub examples: &'static [(&'static str, &'static str)],
    /// Adds the arguments.
    pub arguments: fn(clap::Command) -> clap::Command,
    pub run: fn(&Context, &ArgMatches) -> Result<ExitCode>,
}

/// Every command, sorted by name.
pub static COMMANDS: &[&Command] = &[
    &build::COMMAND,
    &completions::COMMAND,
    &daemon::COMMAND,
    &down::COMMAND,
    &history::COMMAND,
    &image::COMMAND,
    &logs::COMMAND,
    &ps::COMMAND,
    &registry::COMMAND,
    &rollback::COMMAND,
    &run::COMMAND,
    &scale::COMMAND,
    &uninstall::COMMAND,
    &up::COMMAND,
    &version::COMMAND,
];

/// The whole command line.
pub fn command_line() -> clap::Command {
    let mut root = clap::Command::new("gantry")
        .version(crate::version::VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .after_help(EXAMPLES);
    root = Flags::augment_args(root);
    for command in COMMANDS {
        let row = (command.arguments)(clap::Command::new(command.name));
        // Flattened flags bring the comments of their structs along, as if they were about the command.
        let row = row.about(command.about).long_about(None).after_help(examples(command.examples));
        root = root.subcommand(row);
    }
    root.about(ABOUT).long_about(None)
}

const ABOUT: &str = "Go source to a running, load-balanced service";

const EXAMPLES: &str = "Examples:
  gantry up ./hello                  build, deploy, print the address
  gantry ps                          what runs, and where
  gantry logs hello -f               follow its log
  gantry rollback hello              back to the version before
  gantry down hello                  end it";

fn examples(rows: &[(&str, &str)]) -> String {
    let width = rows.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
    let lines: Vec<String> = rows.iter().map(|(line, what)| format!("  {line:<width$}   {what}")).collect();
    format!("Examples:\n{}", lines.join("\n"))
}

/// Runs the binary's command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>, hooks: Hooks) -> ExitCode {
    let matches = match command_line().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error),
    };
    let flags = match Flags::from_arg_matches(&matches) {
        Ok(flags) => flags,
        Err(error) => return refuse(&error),
    };
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let settings = Settings::resolve(flags, path("HOME").as_deref(), path("XDG_CONFIG_HOME").as_deref());
    let printer = Printer::new(settings.quiet);
    let context = Context { settings, printer, cancel: CancellationToken::new(), hooks };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return ExitCode::from(2);
    };
    let result = (command.run)(&context, matches);
    context.printer.progress_done();
    result.unwrap_or_else(|failure| {
        context.printer.failure(&failure);
        ExitCode::from(failure.code())
    })
}

/// Says what is wrong with a command line, in the shape of all errors; help and version are data.
fn refuse(error: &clap::Error) -> ExitCode {
    let printer = Printer::new(false);
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            printer.bytes(error.to_string().as_bytes());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            printer.error_bytes(error.to_string().as_bytes());
            ExitCode::from(2)
        }
        _ => {
            let (message, hint) = usage(&error.to_string());
            printer.failure(&Failure::usage(message).hint(hint));
            ExitCode::from(2)
        }
    }
}

/// The message and a hint out of clap's text: `error: …`, tips, usage.
fn usage(text: &str) -> (String, Option<String>) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let rest: Vec<&str> = lines.collect();
    let tip = rest.iter().find_map(|line| line.strip_prefix("tip: ")).map(str::to_owned);
    let named: Vec<&str> = rest
        .iter()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("tip:"))
        .copied()
        .collect();
    let usage =
        rest.iter().find_map(|line| line.strip_prefix("Usage: ")).map(|usage| format!("usage: {usage}"));
    let values = named.iter().find(|line| line.starts_with('['));
    let message = match values {
        _ if message.ends_with(':') => format!("{message} {}", named.join(", ")),
        Some(values) => format!("{message} {values}"),
        None => message,
    };
    (message, tip.or(usage).or_else(|| Some("gantry --help".to_owned())))
}

/// Parses a command's arguments after clap has checked them.
fn parse<A: clap::FromArgMatches>(matches: &ArgMatches) -> Result<A> {
    A::from_arg_matches(matches).map_err(|error| {
        let (message, hint) = usage(&error.to_string());
        Failure::usage(message).hint(hint)
    })
}

/// Reads `90s`, `5m`, `1h` or seconds.
fn duration(text: &str) -> std::result::Result<std::time::Duration, String> {
    let factors = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let suffixed =
        factors.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = suffixed.unwrap_or((text, 1.0));
    let number = number.parse::<f64>().map_err(|_| "not a duration such as 90s or 5m".to_owned())?;
    std::time::Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_unique_and_documented() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for command in COMMANDS {
            assert!(!command.about.is_empty() && !command.examples.is_empty(), "{}", command.name);
        }
        command_line().debug_assert();
        assert_eq!(command_line().get_about().unwrap().to_string(), ABOUT);
        for command in COMMANDS {
            let shown = command_line();
            let shown = shown.find_subcommand(command.name).unwrap();
            assert_eq!(shown.get_about().unwrap().to_string(), command.about);
            assert!(shown.get_long_about().is_none(), "{}", command.name);
        }
    }

    #[test]
    fn every_example_is_a_command_line_that_is_accepted() {
        for command in COMMANDS {
            for (line, _) in command.examples {
                let line = line.split(" | ").find(|part| part.contains("gantry ")).unwrap_or(line);
                let line = line.trim_start_matches("sudo ");
                // What a shell takes away.
                let words = line.split_whitespace().take_while(|word| !matches!(*word, "<" | ">"));
                let parsed = command_line().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn wrong_command_lines_have_one_error_and_a_hint() {
        let said = |line: &str| {
            let error = command_line().try_get_matches_from(line.split_whitespace()).unwrap_err();
            let (message, hint) = usage(&error.to_string());
            format!("{message} | {}", hint.unwrap_or_default())
        };
        insta::assert_snapshot!(said("gantry upp"), @"unrecognized subcommand 'upp' | a similar subcommand exists: 'up'");
        insta::assert_snapshot!(said("gantry scale hello"), @"the following required arguments were not provided: <REPLICAS> | usage: gantry scale <NAME> <REPLICAS>");
        insta::assert_snapshot!(said("gantry ps -o csv"), @"invalid value 'csv' for '--output <FORMAT>' [possible values: table, wide, name, json, yaml] | gantry --help");
    }

    #[test]
    fn durations_have_units() {
        let seconds = |text: &str| duration(text).unwrap().as_secs_f64();
        assert_eq!([seconds("90s"), seconds("5m"), seconds("10")], [90.0, 300.0, 10.0]);
        assert!(duration("x").is_err() && duration("-1s").is_err());
    }
}
