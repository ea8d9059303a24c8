//! All writers of a sandbox at once.

use std::thread;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{self, Blobs};
use super::objects::{self, Objects};
use super::registry::{Images, Registry};
use super::work::{Work, poll};
use crate::bench::api::Api;
use crate::sandbox::Sandbox;

const OBJECT_WRITERS: usize = 3;
const IMAGE_WRITERS: usize = 2;

pub(super) struct Writers {
    pub(super) objects: Vec<Objects>,
    pub(super) images: Vec<Images>,
    blobs: Blobs,
    pub(super) random: StdRng,
}

impl Writers {
    /// Beside those that write by themselves there is a last one of each sort, for the test.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            objects: (0..=OBJECT_WRITERS).map(Objects::new).collect(),
            images: (0..=IMAGE_WRITERS).map(|number| Images::new(&format!("store/{number}"))).collect(),
            blobs: Blobs::default(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Lets all write until `meanwhile`, which gets the last ones, has ended. `refusals`: a full disk is expected.
    pub(super) fn run<T>(
        &mut self,
        sandbox: &Sandbox,
        work: &Work,
        refusals: bool,
        meanwhile: impl FnOnce(&mut Objects, &mut Images) -> Result<T>,
    ) -> Result<T> {
        let api = api(sandbox)?;
        let registry = Registry::of(sandbox)?;
        let random = &mut self.random;
        let mut seed = || StdRng::seed_from_u64(random.random());
        let (Some((object, objects)), Some((image, images))) =
            (self.objects.split_last_mut(), self.images.split_last_mut())
        else {
            bail!("no writers");
        };
        thread::scope(|scope| {
            let mut running = Vec::new();
            for one in objects {
                let (mut connection, mut random) = (api.connect()?, seed());
                running.push(scope.spawn(move || one.write(&mut connection, work, &mut random, refusals)));
            }
            for one in images {
                let (mut connection, mut random) = (registry.connect()?, seed());
                running.push(scope.spawn(move || one.write(&mut connection, work, &mut random, refusals)));
            }
            let result = meanwhile(object, image);
            work.stop();
            for writer in running {
                match writer.join() {
                    Ok(done) => done?,
                    Err(_) => bail!("a writer panicked"),
                }
            }
            result
        })
    }

    /// Compares what is there, through the API, through the registry, and on disk, with what was acknowledged. A
    /// daemon that was `restarted` knows of no upload that might go on: nothing is half-written.
    pub(super) fn check(&mut self, sandbox: &Sandbox, restarted: bool) -> Result<()> {
        objects::check(&api(sandbox)?, &mut self.objects)?;
        let mut connection = Registry::of(sandbox)?.connect()?;
        for images in &mut self.images {
            images.check(&mut connection)?;
        }
        let acknowledged = self.images.iter().flat_map(|images| &images.blobs);
        self.blobs.check(&sandbox.state(), acknowledged)?;
        if !restarted {
            return Ok(());
        }
        // The daemon and the keepers go on, and may write a file at this very moment.
        poll("nothing is half-written", || Ok(disk::staged(&sandbox.state())?.is_empty()))
            .with_context(|| format!("{:?}", disk::staged(&sandbox.state())))
    }

    /// Reads every blob, and has every image read by crane.
    pub(super) fn check_all(&mut self, sandbox: &Sandbox) -> Result<(usize, usize)> {
        self.blobs.forget();
        self.check(sandbox, true)?;
        let docker = sandbox.work("docker")?;
        let mut login = sandbox.command(["registry", "login"]);
        login.env("DOCKER_CONFIG", &docker);
        let said = crate::sandbox::output(login)?;
        anyhow::ensure!(said.status.success(), "registry login: {}", String::from_utf8_lossy(&said.stderr));
        let address = sandbox.endpoint("registry")?;
        let mut read = 0;
        for images in &self.images {
            for (tag, digest) in images.known() {
                let name = format!("{address}/{}:{tag}", images.repository());
                let mut crane = std::process::Command::new(crate::tools::crane()?);
                crane.env("DOCKER_CONFIG", &docker).args(["validate", "--insecure", "--remote", &name]);
                let said = crate::sandbox::output(crane)?;
                let text = String::from_utf8_lossy(&said.stderr);
                anyhow::ensure!(said.status.success(), "crane validate {name} ({digest}): {text}");
                read += 1;
            }
        }
        let acknowledged = self.images.iter().flat_map(|images| &images.blobs);
        Ok((self.blobs.check(&sandbox.state(), acknowledged)?, read))
    }

    /// Acknowledged writes: of objects, of images.
    pub(super) fn written(&self) -> (u64, u64) {
        (self.objects.iter().map(Objects::written).sum(), self.images.iter().map(Images::pushed).sum())
    }
}

pub(super) fn api(sandbox: &Sandbox) -> Result<Api> {
    Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))
}
