//! Credentials for registries, from Docker's own configuration file, and written there.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// The key under which Docker keeps the credential of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What proves who we are to one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Basic {
        username: String,
        password: String,
    },
    /// A token that is shown as it is.
    Bearer(String),
    /// An OAuth 2 refresh token, which is exchanged for others.
    Identity(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credential::Basic { .. } => "Basic(…)",
            Credential::Bearer(_) => "Bearer(…)",
            Credential::Identity(_) => "Identity(…)",
        })
    }
}

/// Why credentials could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not Docker's configuration", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} keeps credentials in the helper {helper:?}", path.display())]
    UsesHelper { path: PathBuf, helper: String },
    #[error("credential helper {0} cannot be run")]
    Helper(String, #[source] io::Error),
    #[error("credential helper {0} failed: {1}")]
    HelperFailed(String, String),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::UsesHelper { .. } => Some("log in with `docker login`, which fills that helper".into()),
            Error::Helper(..) => Some("install the helper, or remove it from Docker's configuration".into()),
            _ => None,
        }
    }
}

/// The credentials of all registries.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    known: BTreeMap<String, Credential>,
    helpers: BTreeMap<String, String>,
    default_helper: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Credentials {
    /// Reads Docker's `config.json`; none if there is no such file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        let parse = |source| Error::Parse { path: path.to_owned(), source };
        let file: ConfigFile = serde_json::from_slice(&bytes).map_err(parse)?;
        let known = file.auths.iter().filter_map(|(key, entry)| Some((domain(key), credential(entry)?)));
        let helpers = file.cred_helpers.iter().map(|(key, helper)| (domain(key), helper.clone()));
        Ok(Credentials {
            known: known.collect(),
            helpers: helpers.collect(),
            default_helper: file.creds_store.filter(|store| !store.is_empty()),
        })
    }

    /// Adds the credential of one registry.
    pub fn with(mut self, registry: &str, credential: Credential) -> Self {
        self.known.insert(domain(registry), credential);
        self
    }

    /// The credential for a registry's domain, asking the helper that is configured for it.
    pub async fn find(&self, registry: &str) -> Result<Option<Credential>, Error> {
        let registry = domain(registry);
        if let Some(credential) = self.known.get(&registry) {
            return Ok(Some(credential.clone()));
        }
        match self.helpers.get(&registry).or(self.default_helper.as_ref()) {
            Some(helper) => ask(helper, &registry).await,
            None => Ok(None),
        }
    }
}

/// Writes the credential of one registry into Docker's `config.json`; everything else in it stays. `None` removes it.
/// As root it writes to a user's file with that user's rights.
pub fn save(path: &Path, registry: &str, credential: Option<&Credential>) -> Result<(), Error> {
    let write = |source| Error::Write { path: path.to_owned(), source };
    let owner = durable::Owner::of(path).map_err(write)?;
    owner.acting(|| save_as_owner(path, registry, credential)).map_err(write)?
}

fn save_as_owner(path: &Path, registry: &str, credential: Option<&Credential>) -> Result<(), Error> {
    let mut file: Map<String, Value> = match std::fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|source| Error::Parse { path: path.to_owned(), source })?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    let key = match domain(registry).as_str() {
        "docker.io" => DOCKER_HUB_KEY.to_owned(),
        domain => domain.to_owned(),
    };
    let own_helper = file.get("credHelpers").and_then(|helpers| helpers.get(&key)).and_then(Value::as_str);
    if let (Some(helper), Some(_)) = (own_helper, credential) {
        return Err(Error::UsesHelper { path: path.to_owned(), helper: helper.to_owned() });
    }
    let auths = file.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    if !auths.is_object() {
        *auths = Value::Object(Map::new());
    }
    if let Value::Object(auths) = auths {
        match credential {
            None => drop(auths.remove(&key)),
            Some(credential) => drop(auths.insert(key, entry(credential))),
        }
    }
    let write = |source| Error::Write { path: path.to_owned(), source };
    let bytes = serde_json::to_vec_pretty(&file).map_err(|e| write(e.into()))?;
    if let Some(dir) = path.parent() {
        durable::create_dir_all(dir).map_err(write)?;
    }
    durable::write(path, &bytes).map_err(write)
}

fn entry(credential: &Credential) -> Value {
    match credential {
        Credential::Basic { username, password } => {
            serde_json::json!({"auth": BASE64_STANDARD.encode(format!("{username}:{password}"))})
        }
        Credential::Bearer(token) => serde_json::json!({"registrytoken": token}),
        Credential::Identity(token) => serde_json::json!({"identitytoken": token}),
    }
}

fn credential(entry: &AuthEntry) -> Option<Credential> {
    if !entry.registrytoken.is_empty() {
        return Some(Credential::Bearer(entry.registrytoken.clone()));
    }
    if !entry.identitytoken.is_empty() {
        return Some(Credential::Identity(entry.identitytoken.clone()));
    }
    let decoded =
        BASE64_STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) = pair.unwrap_or((&entry.username, &entry.password));
    let (username, password) = (username.to_owned(), password.trim_end_matches('\0').to_owned());
    (!username.is_empty()).then_some(Credential::Basic { username, password })
}

/// The domain that a key of the file means: without scheme and path, Docker Hub by one name.
fn domain(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or(rest) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        domain => domain.to_owned(),
    }
}

/// Speaks the protocol of `docker-credential-…`: the registry on its input, JSON on its output.
async fn ask(helper: &str, registry: &str) -> Result<Option<Credential>, Error> {
    let program = format!("docker-credential-{helper}");
    let failed = |source| Error::Helper(program.clone(), source);
    let key = if registry == "docker.io" { DOCKER_HUB_KEY } else { registry };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(key.as_bytes()).await.map_err(failed)?;
    }
    let output = timeout(HELPER_TIMEOUT, child.wait_with_output()).await;
    let output = output.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The helper's own way to say that it has none.
        let has_none = text.contains("credentials not found");
        return if has_none { Ok(None) } else { Err(Error::HelperFailed(program, text.trim().into())) };
    }
    let answer: HelperAnswer = serde_json::from_str(&text)
        .map_err(|_| Error::HelperFailed(program.clone(), "its answer cannot be read".into()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::Identity(answer.secret),
        _ => Credential::Basic { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.into(), password: password.into() }
    }

    #[tokio::test]
    async fn reads_and_writes_dockers_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker/config.json");
        assert!(Credentials::load(&path).unwrap().find("docker.io").await.unwrap().is_none());
        save(&path, "docker.io", Some(&basic("u", "p:q"))).unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replacen('{', "{\"psFormat\": \"x\",", 1);
        std::fs::write(&path, text).unwrap();
        save(&path, "localhost:5050", Some(&basic("token", "t"))).unwrap();
        let credentials = Credentials::load(&path).unwrap();
        assert_eq!(credentials.find("docker.io").await.unwrap(), Some(basic("u", "p:q")));
        assert_eq!(credentials.find("https://localhost:5050/v2").await.unwrap(), Some(basic("token", "t")));
        save(&path, "localhost:5050", None).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("psFormat") && text.contains(DOCKER_HUB_KEY) && !text.contains("5050"),
            "{text}"
        );
    }

    /// Needs root, to act as another user.
    #[test]
    fn what_root_saves_in_a_users_home_is_the_users() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let (home, target) = (dir.path().join("home"), dir.path().join("target"));
        for folder in [&home, &target] {
            std::fs::create_dir(folder).unwrap();
        }
        chown(&home, Some(65534), Some(65534)).unwrap();
        let path = home.join(".docker/config.json");
        save(&path, "docker.io", Some(&basic("u", "p"))).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 65534);
        std::fs::remove_dir_all(home.join(".docker")).unwrap();
        symlink(&target, home.join(".docker")).unwrap();
        assert!(matches!(save(&path, "docker.io", Some(&basic("u", "p"))), Err(Error::Write { .. })));
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn a_helper_is_not_bypassed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"credHelpers":{"ghcr.io":"x"}}"#).unwrap();
        assert!(matches!(save(&path, "ghcr.io", Some(&basic("u", "p"))), Err(Error::UsesHelper { .. })));
        std::fs::write(&path, "no json").unwrap();
        assert!(matches!(Credentials::load(&path), Err(Error::Parse { .. })));
    }
}
