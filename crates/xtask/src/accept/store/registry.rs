//! A writer of images over the registry's own protocol, and the comparison of what is there with what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;

use super::archive::{self, Image};
use super::work::{Register, Work};
use crate::sandbox::Sandbox;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tags of a writer.
const TAGS: usize = 6;
/// A layer's size, small enough for many and large enough to be cut.
const LAYER_BYTES: std::ops::Range<usize> = 100..200_000;

/// Where the registry is, and the token that it wants.
#[derive(Clone)]
pub(super) struct Registry {
    address: SocketAddr,
    token: String,
}

impl Registry {
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self> {
        let address = sandbox.endpoint("registry")?;
        let token = std::fs::read_to_string(sandbox.state().join("registry-token"))?;
        Ok(Self { address: address.parse()?, token: token.trim().to_owned() })
    }

    pub(super) fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { registry: self.clone(), stream: BufReader::new(stream) })
    }
}

/// A kept connection.
pub(super) struct Connection {
    registry: Registry,
    stream: BufReader<TcpStream>,
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    location: String,
    pub(super) body: Vec<u8>,
}

impl Connection {
    /// One exchange; `step` is asked before the second half of the body goes out, so that a moment may fall between.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        media: &str,
        body: &[u8],
        step: &dyn Fn() -> bool,
    ) -> Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: {media}\r\n\
             Content-Length: {}\r\n\r\n",
            self.registry.address,
            self.registry.token,
            body.len()
        );
        let (first, second) = body.split_at(body.len() / 2);
        let stream = self.stream.get_mut();
        stream.write_all(&[head.as_bytes(), first].concat())?;
        step();
        stream.write_all(second)?;
        self.answer(method)
    }

    pub(super) fn get(&mut self, path: &str) -> Result<Answer> {
        self.send("GET", path, archive::MANIFEST, b"", &|| true)
    }

    fn answer(&mut self, method: &str) -> Result<Answer> {
        let status = self.line()?;
        let status = status.get(9..12).and_then(|code| code.parse().ok()).context("no status line")?;
        let (mut length, mut location) = (0, String::new());
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            } else if name.eq_ignore_ascii_case("location") {
                location = value.trim().to_owned();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("an answer in chunks");
            }
        }
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, location, body })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }
}

/// One writer's repository.
pub(super) struct Images {
    repository: String,
    /// The manifest's digest by tag.
    tags: BTreeMap<String, Register<String>>,
    /// Acknowledged blobs.
    pub(super) blobs: BTreeSet<String>,
    pushed: u64,
}

/// How a push or a removal ended.
enum Outcome {
    Done,
    /// Answered as not done, for a full disk.
    Refused,
    /// No answer.
    Gone(anyhow::Error),
}

impl Images {
    pub(super) fn new(repository: &str) -> Self {
        let tags = (0..TAGS).map(|number| (format!("v{number}"), Register::default())).collect();
        Self { repository: repository.to_owned(), tags, blobs: BTreeSet::new(), pushed: 0 }
    }

    /// Acknowledged pushes.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// What was acknowledged: tag and digest.
    pub(super) fn known(&self) -> impl Iterator<Item = (&String, &String)> {
        self.tags.iter().filter_map(|(tag, register)| Some((tag, register.get()?)))
    }

    pub(super) fn begin(&mut self, tag: &str, image: &Image) {
        self.tags.entry(tag.to_owned()).or_default().begin(Some(image.digest()));
    }

    /// The image was acknowledged under this tag, with all that it needs.
    pub(super) fn acknowledge(&mut self, tag: &str, image: &Image) {
        self.tags.entry(tag.to_owned()).or_default().acknowledge();
        self.blobs.extend([&image.layer, &image.config, &image.manifest].map(|bytes| archive::digest(bytes)));
        self.pushed += 1;
    }

    /// Pushes and removes until told to stop, or until the registry is gone.
    pub(super) fn write(
        &mut self,
        connection: &mut Connection,
        work: &Work,
        random: &mut StdRng,
        refusals: bool,
    ) -> Result<()> {
        while work.step() {
            let tag = format!("v{}", random.random_range(0..TAGS));
            let there = self.tags.get(&tag).is_some_and(|register| register.get().is_some());
            let outcome = match there && random.random_range(0..4) == 0 {
                true => self.remove(connection, &tag)?,
                false => {
                    let image = Image::random(random, LAYER_BYTES)?;
                    self.push(connection, &tag, &image, work, random.random_range(0..2) == 0)?
                }
            };
            match outcome {
                Outcome::Done => {}
                Outcome::Gone(error) => {
                    return if work.stopped() {
                        Ok(())
                    } else {
                        Err(error.context(format!("{}:{tag}: no answer", self.repository)))
                    };
                }
                Outcome::Refused if refusals => work.count(|counts| counts.blobs_refused += 1),
                Outcome::Refused => bail!("{}:{tag}: refused for a full disk", self.repository),
            }
        }
        Ok(())
    }

    /// A push that has to succeed.
    pub(super) fn push_one(&mut self, connection: &mut Connection, tag: &str, image: &Image) -> Result<()> {
        match self.push(connection, tag, image, &Work::default(), false)? {
            Outcome::Done => Ok(()),
            _ => bail!("{}:{tag} was not pushed", self.repository),
        }
    }

    fn push(
        &mut self,
        connection: &mut Connection,
        tag: &str,
        image: &Image,
        work: &Work,
        chunked: bool,
    ) -> Result<Outcome> {
        for blob in [&image.layer, &image.config] {
            let step = || work.step();
            let answer = match blob_put(connection, &self.repository, blob, chunked, &step) {
                Ok(answer) => answer,
                Err(error) => return Ok(Outcome::Gone(error)),
            };
            if let Some(outcome) = refused(&answer)? {
                return Ok(outcome);
            }
            ensure!(answer.status == 201, "a blob: {} {}", answer.status, text(&answer));
            self.blobs.insert(archive::digest(blob));
        }
        let path = format!("/v2/{}/manifests/{tag}", self.repository);
        self.begin(tag, image);
        let sent = connection.send("PUT", &path, archive::MANIFEST, &image.manifest, &|| work.step());
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Ok(Outcome::Gone(error)),
        };
        if let Some(outcome) = refused(&answer)? {
            // Manifest and tag are two files: the first may be there.
            self.tags.entry(tag.to_owned()).or_default().refuse();
            return Ok(outcome);
        }
        ensure!(answer.status == 201, "PUT {path}: {} {}", answer.status, text(&answer));
        self.acknowledge(tag, image);
        Ok(Outcome::Done)
    }

    fn remove(&mut self, connection: &mut Connection, tag: &str) -> Result<Outcome> {
        let path = format!("/v2/{}/manifests/{tag}", self.repository);
        let register = self.tags.entry(tag.to_owned()).or_default();
        register.begin(None);
        let answer = match connection.send("DELETE", &path, "", b"", &|| true) {
            Ok(answer) => answer,
            Err(error) => return Ok(Outcome::Gone(error)),
        };
        if let Some(outcome) = refused(&answer)? {
            register.refuse();
            return Ok(outcome);
        }
        ensure!(answer.status == 202, "DELETE {path}: {} {}", answer.status, text(&answer));
        register.acknowledge();
        Ok(Outcome::Done)
    }

    /// Compares every tag with what was told; a manifest that is there is whole, and so is what it names.
    pub(super) fn check(&mut self, connection: &mut Connection) -> Result<()> {
        for (tag, register) in &mut self.tags {
            let path = format!("/v2/{}/manifests/{tag}", self.repository);
            let answer = connection.get(&path)?;
            let key = format!("{}:{tag}", self.repository);
            let there = match answer.status {
                200 => Some(archive::digest(&answer.body)),
                404 => None,
                status => bail!("GET {path}: {status} {}", text(&answer)),
            };
            register.settle(&key, there)?;
            if answer.status == 200 {
                let manifest: Value = serde_json::from_slice(&answer.body)?;
                for blob in [&manifest["config"], &manifest["layers"][0]] {
                    let digest = blob["digest"].as_str().context("a descriptor without a digest")?;
                    let answer = connection.get(&format!("/v2/{}/blobs/{digest}", self.repository))?;
                    ensure!(answer.status == 200, "{key}: blob {digest}: {}", answer.status);
                    ensure!(archive::digest(&answer.body) == digest, "{key}: blob {digest} is torn");
                }
            }
        }
        Ok(())
    }
}

/// A blob in one request, or in three.
fn blob_put(
    connection: &mut Connection,
    repository: &str,
    blob: &[u8],
    chunked: bool,
    step: &dyn Fn() -> bool,
) -> Result<Answer> {
    let (path, bytes) = (format!("/v2/{repository}/blobs/uploads/"), "application/octet-stream");
    let digest = archive::digest(blob);
    if !chunked {
        return connection.send("POST", &format!("{path}?digest={digest}"), bytes, blob, step);
    }
    let (first, second) = blob.split_at(blob.len() / 3);
    let started = connection.send("POST", &path, bytes, b"", &|| true)?;
    if started.status != 202 {
        return Ok(started);
    }
    let sent = connection.send("PATCH", &started.location, bytes, first, step)?;
    if sent.status != 202 {
        return Ok(sent);
    }
    connection.send("PUT", &format!("{}?digest={digest}", sent.location), bytes, second, step)
}

/// Whether the answer is a refusal for a full disk; it has to be one that a user understands.
fn refused(answer: &Answer) -> Result<Option<Outcome>> {
    if answer.status < 500 {
        return Ok(None);
    }
    let body: Value = serde_json::from_slice(&answer.body).context("a refusal that is no JSON")?;
    let message = body["errors"][0]["message"].as_str().unwrap_or_default();
    let clear = answer.status == 507 && message.to_lowercase().contains("no space left");
    ensure!(clear, "{} {body}", answer.status);
    Ok(Some(Outcome::Refused))
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}
