//! `gantry registry`: the daemon's registry for other clients.

use std::{io::Read as _, process::ExitCode};

use clap::{ArgMatches, Subcommand as _};
use registry::{Credential, credentials};

use super::{Command, down::running, parse};
use crate::{
    context::{Context, docker_config, registry_failure},
    failure::{Failure, Result},
    launch, modes,
    reads::Reads,
};

/// The user that goes with the registry's token where a client wants a name.
const USER: &str = "gantry";
/// Bytes of a password on stdin.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

pub static COMMAND: Command = Command {
    name: "registry",
    about: "Give other clients access to the registry, and gantry to others",
    examples: &[
        ("gantry registry login", "docker, crane and skopeo may push to the daemon's"),
        ("gantry registry login ghcr.io -u me --password-stdin", "gantry may pull and push there"),
        ("gantry registry logout ghcr.io", "forget that"),
        ("sudo gantry registry reads login", "only who has logged in may read the daemon's"),
    ],
    arguments: |command| {
        Action::augment_subcommands(command).subcommand_required(true).arg_required_else_help(true)
    },
    run: |context, matches| context.block_on(registry(context, matches)),
};

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Write a credential to Docker's configuration file
    Login(Login),
    /// Remove a credential from it
    Logout(Logout),
    /// Set who may read from the daemon's registry; it holds from the daemon's next start on
    Reads(ReadsArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct ReadsArgs {
    /// Who may read
    #[arg(value_name = "WHO", value_enum)]
    reads: Reads,
}

#[derive(Clone, Debug, clap::Args)]
struct Login {
    /// The registry [default: the daemon's]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
    /// User name
    #[arg(long, short = 'u', value_name = "NAME", requires = "registry")]
    username: Option<String>,
    /// Read the password or token from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Logout {
    /// The registry [default: the daemon's]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

async fn registry(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let action: Action = parse(matches)?;
    let path = docker_config().ok_or_else(|| {
        Failure::new("there is no home folder for Docker's configuration")
            .hint("set DOCKER_CONFIG=DIR".to_owned())
    })?;
    let save = |registry: &str, credential: Option<&Credential>| {
        credentials::save(&path, registry, credential)
            .map_err(|error| Failure::from_error(&error).hint(error.hint()))
    };
    match action {
        Action::Login(Login { registry: Some(registry), username: Some(username), .. }) => {
            let mut password = String::new();
            let read = std::io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut password);
            read.map_err(|error| Failure::from_error(&error).context("read the password from stdin"))?;
            let credential = Credential::Basic { username, password: password.trim_end().to_owned() };
            let client = context.registry_outside()?;
            client.check(&registry, credential.clone()).await.map_err(registry_failure)?;
            save(&registry, Some(&credential))?;
            context.printer.step("Login", &format!("{registry}, in {}", path.display()), None);
        }
        Action::Login(Login { registry: Some(registry), .. }) => {
            return Err(Failure::usage(format!("no user for {registry}"))
                .hint(format!("gantry registry login {registry} -u NAME --password-stdin")));
        }
        Action::Login(_) => {
            let connection = running(context).await?;
            let credential =
                Credential::Basic { username: USER.to_owned(), password: connection.access.token()? };
            let hosts = hosts(&connection.endpoints.registry);
            for host in &hosts {
                save(host, Some(&credential))?;
            }
            context.printer.step("Login", &format!("{}, in {}", hosts.join(" and "), path.display()), None);
        }
        Action::Logout(Logout { registry: Some(registry) }) => save(&registry, None)?,
        Action::Reads(args) => return reads(context, args.reads),
        Action::Logout(_) => {
            let connection = running(context).await?;
            for host in hosts(&connection.endpoints.registry) {
                save(&host, None)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps who may read, for the next daemon.
fn reads(context: &Context, reads: Reads) -> Result<ExitCode> {
    let (state_dir, flag) = (&context.settings.state_dir, context.settings.state_flag());
    if !context.settings.is_root {
        return Err(Failure::new("only root may set who reads from the registry")
            .hint(format!("sudo gantry registry reads …{flag}")));
    }
    modes::make(state_dir).map_err(|error| Failure::from_error(&error).hint(error.hint()))?;
    reads.save(state_dir).map_err(|error| Failure::from_error(&error))?;
    let who = match reads {
        Reads::Open => "every user of this machine",
        Reads::Login => "who has logged in (gantry registry login)",
    };
    context.printer.step("Set", &format!("the registry is read by {who}"), None);
    if launch::holder(state_dir)?.is_some() {
        context.printer.note(format!(
            "it holds from the daemon's next start on, which ends no program: gantry daemon stop{flag} && gantry daemon start{flag}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The ways in which clients write the registry's address.
fn hosts(url: &str) -> Vec<String> {
    let host = url.rsplit_once("//").map_or(url, |(_, host)| host).trim_end_matches('/');
    let port = host.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    vec![host.to_owned(), format!("localhost:{port}")]
}
