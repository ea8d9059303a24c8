//! Flags over environment over defaults, resolved once.

use std::path::{Path, PathBuf};

/// Where a system keeps a daemon's state.
const STATE_DIR: &str = "/var/lib/gantry";

/// Flags that every command has.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Folder with the daemon's state [default: /var/lib/gantry]
    #[arg(long, global = true, value_name = "DIR", env = "GANTRY_STATE", hide_env = true)]
    pub state_dir: Option<PathBuf>,
    /// Kubeconfig to use instead of the state folder's own
    #[arg(long, global = true, value_name = "FILE", env = "GANTRY_KUBECONFIG", hide_env = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace
    #[arg(
        long,
        short = 'n',
        global = true,
        value_name = "NAME",
        default_value = "default",
        hide_default_value = true
    )]
    pub namespace: String,
    /// Say data and errors only
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
}

/// The settings of one invocation; nothing changes them afterwards.
#[derive(Clone, Debug)]
pub struct Settings {
    pub state_dir: PathBuf,
    pub kubeconfig: Option<PathBuf>,
    pub namespace: String,
    pub quiet: bool,
    /// The caller's own folder for gantry's files, where a daemon that root started leaves credentials.
    pub user_dir: Option<PathBuf>,
    pub is_root: bool,
}

impl Settings {
    /// Resolves the flags; the environment is behind them already.
    pub fn resolve(flags: Flags, home: Option<&Path>, config_home: Option<&Path>) -> Self {
        let config = config_home.map(Path::to_owned).or_else(|| home.map(|home| home.join(".config")));
        let state_dir = flags.state_dir.unwrap_or_else(|| STATE_DIR.into());
        Self {
            state_dir: std::path::absolute(&state_dir).unwrap_or(state_dir),
            kubeconfig: flags.kubeconfig,
            namespace: flags.namespace,
            quiet: flags.quiet,
            user_dir: config.map(|config| config.join("gantry")),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// ` --state-dir DIR` where a command in a hint needs it.
    pub fn state_flag(&self) -> String {
        if self.state_dir == Path::new(STATE_DIR) {
            String::new()
        } else {
            format!(" --state-dir {}", self.state_dir.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_state_folder_is_the_default() {
        let settings = Settings::resolve(Flags::default(), Some(Path::new("/home/a")), None);
        assert_eq!(settings.state_dir, Path::new(STATE_DIR));
        assert_eq!(settings.user_dir.as_deref(), Some(Path::new("/home/a/.config/gantry")));
        assert_eq!(settings.state_flag(), "");
        let flags = Flags { state_dir: Some("/tmp/x".into()), ..Flags::default() };
        assert_eq!(Settings::resolve(flags, None, None).state_flag(), " --state-dir /tmp/x");
    }
}
