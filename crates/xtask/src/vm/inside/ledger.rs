//! Writes objects and journals what it was told, until the power goes; and, when it is back, compares what is there
//! with what was acknowledged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::daemon;
use super::journal::{Journal, Record, Value};
use crate::accept::Register;
use crate::bench::api::Connection;

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const KEYS: usize = 24;
/// Longest value, in bytes: a record then spans redb's pages.
const VALUE_BYTES_MAX: usize = 9000;

/// What the host waits for: from here on the power may go.
pub(in crate::vm) const CHECKED: &str = "checked";

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    seed: u64,
    /// Writes to do; without it, until the power goes or the disk fails
    #[arg(long)]
    writes: Option<u64>,
}

struct Ledger {
    journal: Journal,
    keys: BTreeMap<String, Register<Value>>,
    number: u64,
    acknowledged: u64,
    unanswered: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut connection = daemon::ready()?.connect()?;
    let (journal, records) = Journal::open()?;
    let mut ledger = Ledger::new(journal, records);
    let arrived = ledger.check(&mut connection)?;
    crate::print(&format!(
        "{CHECKED}: {} writes acknowledged so far, all there; {} had no answer, {arrived} of the last of them were there",
        ledger.acknowledged, ledger.unanswered
    ));
    let mut random = StdRng::seed_from_u64(arguments.seed);
    for _ in 0..arguments.writes.unwrap_or(u64::MAX) {
        if let Some(refusal) = ledger.write(&mut connection, &mut random)? {
            crate::print(&format!("refused: {refusal}"));
            break;
        }
    }
    Ok(())
}

impl Ledger {
    fn new(journal: Journal, records: Vec<Record>) -> Self {
        let mut ledger = Self { journal, keys: BTreeMap::new(), number: 0, acknowledged: 0, unanswered: 0 };
        for number in 0..KEYS {
            ledger.keys.insert(format!("ledger-{number}"), Register::default());
        }
        for record in records {
            match record {
                Record::Begin { key, value } => {
                    ledger.number += 1;
                    ledger.unanswered += 1;
                    ledger.keys.entry(key).or_default().begin(value);
                }
                Record::Acknowledged { key } => {
                    ledger.acknowledged += 1;
                    ledger.unanswered -= 1;
                    ledger.keys.entry(key).or_default().acknowledge();
                }
                Record::Found { key, value } => {
                    let register = ledger.keys.entry(key).or_default();
                    register.begin(value);
                    register.acknowledge();
                }
            }
        }
        ledger
    }

    /// How many of the writes without an answer had arrived.
    fn check(&mut self, connection: &mut Connection) -> Result<usize> {
        let list = connection.ok("GET", PATH, "", "")?;
        let mut there = BTreeMap::new();
        for item in list["items"].as_array().context("a list without items")? {
            let name = item["metadata"]["name"].as_str().context("an object without a name")?;
            let text = item["data"]["value"].as_str().unwrap_or_default();
            if name.starts_with("ledger-") {
                there.insert(name.to_owned(), read(text).with_context(|| format!("{name} is torn"))?);
            }
        }
        let mut arrived = 0;
        for (key, register) in &mut self.keys {
            let value = there.remove(key);
            if register.settle(key, value.clone())? {
                arrived += 1;
                self.journal.write(&Record::Found { key: key.clone(), value })?;
            }
        }
        ensure!(there.is_empty(), "objects that nobody wrote: {:?}", there.keys());
        Ok(arrived)
    }

    /// One write; why it was refused, if it was.
    fn write(&mut self, connection: &mut Connection, random: &mut StdRng) -> Result<Option<String>> {
        let key = format!("ledger-{}", random.random_range(0..KEYS));
        let register = self.keys.get_mut(&key).context("no such key")?;
        let there = register.get().is_some();
        let delete = there && random.random_bool(0.25);
        self.number += 1;
        let value = Value { number: self.number, length: random.random_range(0..VALUE_BYTES_MAX) };
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": &key}, "data": {"value": value.text()},
        });
        let next = (!delete).then_some(value);
        register.begin(next.clone());
        self.journal.write(&Record::Begin { key: key.clone(), value: next })?;
        let (method, path, text) = match (there, delete) {
            (_, true) => ("DELETE", format!("{PATH}/{key}"), String::new()),
            (true, _) => ("PUT", format!("{PATH}/{key}"), body.to_string()),
            (false, _) => ("POST", PATH.to_owned(), body.to_string()),
        };
        let media = if delete { "" } else { "application/json" };
        let (status, answer) = match connection.send(method, &path, media, &text) {
            Ok(answered) => answered,
            Err(error) => return Ok(Some(format!("{method} {path}: no answer: {error:#}"))),
        };
        if !(200..300).contains(&status) {
            // Whether it is there, a failed disk does not say.
            return Ok(Some(format!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer))));
        }
        register.acknowledge();
        self.acknowledged += 1;
        self.journal.write(&Record::Acknowledged { key })?;
        Ok(None)
    }
}

fn read(text: &str) -> Result<Value> {
    let (number, rest) = text.split_once(' ').context("no value of ours")?;
    let value = Value { number: number.parse()?, length: rest.len() };
    ensure!(value.text() == text, "a value that is not whole");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_back_and_a_torn_one_is_not() {
        let value = Value { number: 12, length: 30 };
        assert_eq!(read(&value.text()).unwrap(), value);
        assert!(read("12 vvx").is_err() && read("").is_err());
    }
}
