//! `gantry completions`: what a shell offers for the next word.

use std::process::ExitCode;

use clap::{ArgMatches, Args as _};
use clap_complete::Shell;

use super::{Command, command_line, parse};
use crate::{context::Context, failure::Result};

pub static COMMAND: Command = Command {
    name: "completions",
    about: "Write a shell's completions; make install puts them where the shells look",
    examples: &[
        ("gantry completions bash > /etc/bash_completion.d/gantry", "for bash"),
        ("gantry completions zsh > /usr/local/share/zsh/site-functions/_gantry", "for zsh"),
        ("gantry completions fish > ~/.config/fish/completions/gantry.fish", "for fish"),
    ],
    arguments: |command| Args::augment_args(command),
    run: completions,
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

fn completions(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    context.printer.bytes(&script(args.shell));
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "gantry", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::COMMANDS;

    #[test]
    fn every_command_is_offered_in_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            for command in COMMANDS {
                assert!(script.contains(command.name), "{shell} lacks {}", command.name);
            }
        }
    }
}
