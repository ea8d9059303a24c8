//! `gantry uninstall`: nothing stays.

use std::process::ExitCode;

use clap::{ArgMatches, Args as _};

use super::{Command, daemon, parse};
use crate::{
    context::Context,
    failure::{Failure, Result},
    sudo::Caller,
};

pub static COMMAND: Command = Command {
    name: "uninstall",
    about: "End everything that gantry runs; with --purge, remove its data too",
    examples: &[
        ("sudo gantry uninstall", "programs, daemon, network; the data stays"),
        ("sudo gantry uninstall --purge", "the data too: images, objects, logs"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(uninstall(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// Remove the state folder too
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    patience: daemon::Patience,
}

async fn uninstall(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let state_dir = &context.settings.state_dir;
    if !context.settings.is_root {
        return Err(Failure::new("only root may end the daemon and remove what it made")
            .hint(format!("sudo gantry uninstall{}", context.settings.state_flag())));
    }
    if !state_dir.exists() {
        context.printer.note(format!("there is nothing in {}", state_dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    // A folder that gantry never wrote to is not gantry's to remove.
    if !state_dir.join("instance").exists() {
        return Err(Failure::new(format!("{} is not a state folder of gantry", state_dir.display()))
            .hint("name it: gantry uninstall --state-dir DIR".to_owned()));
    }
    // Told to end, the daemon is not started again; the unit goes once that has worked.
    let resisted = daemon::stop(context, Some(args.patience.timeout)).await?;
    daemon::install::uninstall(context)?;
    if args.purge {
        daemon::all_ended(&resisted)?;
        remove(state_dir)?;
        context.printer.step("Removed", &state_dir.display().to_string(), None);
        let behind_sudo = Caller::find().map(|caller| caller.folder());
        for user_dir in context.settings.user_dir.iter().chain(&behind_sudo) {
            forget(user_dir);
        }
    } else {
        context.printer.note(format!(
            "the data is left in {}; gantry uninstall --purge removes it",
            state_dir.display()
        ));
    }
    daemon::all_ended(&resisted)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes the credentials from a user's folder, with that user's rights; the folder too, when nothing else is in it.
fn forget(user_dir: &std::path::Path) {
    let Ok(owner) = durable::Owner::of(user_dir) else { return };
    // They are of no use without the daemon's state: what is left is no more than in the way.
    let _ = owner.acting(|| {
        for name in ["kubeconfig", "registry-token"] {
            let _ = durable::remove(&user_dir.join(name));
        }
        std::fs::remove_dir(user_dir)
    });
}

/// Removes the folder unless something is still mounted below, which might be the user's own data.
fn remove(state_dir: &std::path::Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo");
    let mounts = mounts.map_err(|error| Failure::from_error(&error).context("read /proc/self/mountinfo"))?;
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|place| std::path::Path::new(place).starts_with(state_dir));
    if let Some(place) = mounted {
        return Err(Failure::new(format!("{place} is still mounted, so nothing was removed"))
            .hint(format!("umount {place}")));
    }
    let removed = durable::remove_dir_all(state_dir);
    removed.map_err(|error| Failure::from_error(&error).context(format!("remove {}", state_dir.display())))
}
