//! A writer of ConfigMaps, and the comparison of what is there with what it was told.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::work::{Register, Work};
use crate::bench::api::{Api, Connection};

const PATH: &str = "/api/v1/namespaces/default/configmaps";
/// Keys of a writer.
const KEYS: usize = 12;
/// Longest value, in bytes: a record then spans redb's pages.
const VALUE_BYTES_MAX: usize = 9000;

/// One ConfigMap.
#[derive(Default)]
struct Key {
    /// Its value, which says which write made it.
    value: Register<String>,
    /// Of the last acknowledged write.
    version: Option<String>,
}

/// The keys of one writer, and the sum of what it did.
pub(super) struct Objects {
    keys: BTreeMap<String, Key>,
    /// Numbers the writes, so that no two have the same value.
    number: u64,
    written: u64,
    /// Writes without an answer, and those of them that had arrived.
    in_flight: u64,
    arrived: u64,
}

impl Objects {
    pub(super) fn new(writer: usize) -> Self {
        let keys = (0..KEYS).map(|number| (format!("store-{writer}-{number}"), Key::default())).collect();
        Self { keys, number: 0, written: 0, in_flight: 0, arrived: 0 }
    }

    /// Acknowledged writes.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes that had no answer, and how many of them had arrived.
    pub(super) fn in_flight(&self) -> (u64, u64) {
        (self.in_flight, self.arrived)
    }

    /// Creates, updates and deletes until told to stop, or until the server is gone.
    pub(super) fn write(
        &mut self,
        connection: &mut Connection,
        work: &Work,
        random: &mut StdRng,
        refusals: bool,
    ) -> Result<()> {
        let names: Vec<String> = self.keys.keys().cloned().collect();
        while work.step() {
            let name = &names[random.random_range(0..names.len())];
            let length = random.random_range(0..VALUE_BYTES_MAX);
            let delete = random.random_range(0..4) == 0;
            match self.one(connection, name, length, delete)? {
                Outcome::Done => {}
                Outcome::Gone(error) => {
                    return if work.stopped() {
                        Ok(())
                    } else {
                        Err(error.context(format!("{name}: no answer")))
                    };
                }
                Outcome::Refused if refusals => work.count(|counts| counts.objects_refused += 1),
                Outcome::Refused => bail!("{name}: refused for a full disk"),
            }
        }
        Ok(())
    }

    /// Adds keys with large values until one is refused.
    pub(super) fn grow(&mut self, connection: &mut Connection, bytes: usize) -> Result<()> {
        const ATTEMPTS: usize = 4000;
        for number in 0..ATTEMPTS {
            let name = format!("store-large-{number}");
            self.keys.entry(name.clone()).or_default();
            match self.one(connection, &name, bytes, false)? {
                Outcome::Refused => return Ok(()),
                Outcome::Done => {}
                Outcome::Gone(error) => return Err(error.context("the API server, on a full disk")),
            }
        }
        bail!("{ATTEMPTS} objects of {bytes} bytes went onto a full disk")
    }

    /// Deletes every key.
    pub(super) fn clear(&mut self, connection: &mut Connection) -> Result<()> {
        for name in self.keys.keys().cloned().collect::<Vec<_>>() {
            let done = self.one(connection, &name, 0, true)?;
            ensure!(matches!(done, Outcome::Done), "{name}: not deleted");
        }
        Ok(())
    }

    fn one(
        &mut self,
        connection: &mut Connection,
        name: &str,
        length: usize,
        delete: bool,
    ) -> Result<Outcome> {
        let key = self.keys.get_mut(name).context("no such key")?;
        let there = key.value.get().is_some();
        if delete && !there {
            return Ok(Outcome::Done);
        }
        self.number += 1;
        let value = format!("{} {}", self.number, "v".repeat(length));
        let mut body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": &value},
        });
        let (method, path) = match (there, delete) {
            (true, true) => ("DELETE", format!("{PATH}/{name}")),
            (true, false) => ("PUT", format!("{PATH}/{name}")),
            (false, _) => ("POST", PATH.to_owned()),
        };
        if let Some(version) = &key.version
            && method == "PUT"
        {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        key.value.begin((!delete).then_some(value));
        let text = if delete { String::new() } else { body.to_string() };
        let media = if delete { "" } else { "application/json" };
        let (status, answer) = match connection.send(method, &path, media, &text) {
            Ok(answered) => answered,
            Err(error) => {
                self.in_flight += 1;
                return Ok(Outcome::Gone(error));
            }
        };
        let answer: Value = serde_json::from_slice(&answer)
            .with_context(|| format!("{method} {path}: {status}, and no JSON"))?;
        if (200..300).contains(&status) {
            key.value.acknowledge();
            self.written += 1;
            key.version =
                answer["metadata"]["resourceVersion"].as_str().filter(|_| !delete).map(str::to_owned);
            return Ok(Outcome::Done);
        }
        let message = answer["message"].as_str().unwrap_or_default();
        let clear = answer["kind"] == "Status"
            && answer["code"] == status
            && matches!(status, 500 | 507)
            && message.contains("full")
            && message.contains("free space");
        ensure!(clear, "{method} {path}: {status} {answer}");
        key.value.refuse();
        Ok(Outcome::Refused)
    }

    fn settle(&mut self, there: &mut BTreeMap<String, (String, String)>) -> Result<()> {
        for (name, key) in &mut self.keys {
            let (value, version) = there.remove(name).unzip();
            match key.value.settle(name, value)? {
                true => {
                    self.arrived += 1;
                    key.version = version;
                }
                false => ensure!(
                    key.version == version,
                    "{name}: acknowledged at version {:?}, there is {version:?}",
                    key.version
                ),
            }
        }
        self.keys.retain(|name, key| !name.starts_with("store-large-") || key.value.get().is_some());
        Ok(())
    }
}

enum Outcome {
    Done,
    /// Answered as not done, for a full disk.
    Refused,
    /// No answer.
    Gone(anyhow::Error),
}

/// Compares everything that is there with what all writers were told.
pub(super) fn check(api: &Api, writers: &mut [Objects]) -> Result<()> {
    let list = api.connect()?.ok("GET", PATH, "", "")?;
    let mut there = BTreeMap::new();
    for item in list["items"].as_array().context("a list without items")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&item["metadata"]["name"]);
        if name.starts_with("store-") {
            there.insert(name, (text(&item["data"]["value"]), text(&item["metadata"]["resourceVersion"])));
        }
    }
    let shown: u64 = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?;
    for writer in writers.iter_mut() {
        writer.settle(&mut there)?;
        let latest = writer.keys.values().filter_map(|key| key.version.as_deref()?.parse::<u64>().ok()).max();
        ensure!(
            latest.is_none_or(|latest| latest <= shown),
            "the list's version {shown} is older than {latest:?}"
        );
    }
    ensure!(there.is_empty(), "objects that nobody wrote: {:?}", there.keys());
    Ok(())
}
