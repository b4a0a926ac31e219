//! The distribution's `docker-registry` on loopback, without TLS or login, and pushing to any
//! such registry. In: a place, images. Out: references that can be pulled.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::image::{Blob, Content};
use crate::place::Place;
use crate::process::Process;
use crate::{Result, free_port, http, installed};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running registry; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    port: u16,
    configuration: PathBuf,
    name: String,
    place: Place,
}

impl Registry {
    /// Starts one with its blobs in the place, and waits until it answers.
    pub fn start(place: &Place) -> Result<Self> {
        let port = free_port()?;
        let name = format!("registry{}", place.number());
        let data = place.data().join(&name);
        std::fs::create_dir(&data)?;
        let configuration = place.run().join(format!("{name}.yml"));
        std::fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: \
                 {:?}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
                data.display().to_string()
            ),
        )?;
        let process = launch(place, &name, &configuration, port)?;
        Ok(Self { process, port, configuration, name, place: place.clone() })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT/NAME:TAG`.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.address())
    }

    /// `127.0.0.1:PORT/NAME@DIGEST`.
    pub fn pinned(&self, name: &str, digest: &str) -> String {
        format!("{}/{name}@{digest}", self.address())
    }

    /// Pushes an image or index under a name and tag; gives the digest of its manifest.
    pub fn push(&self, content: &dyn Content, name: &str, tag: &str) -> Result<String> {
        self.place.in_network(|| push(&self.address(), content, name, tag))?
    }

    /// SIGKILL: connections are refused until [`start_again`](Self::start_again).
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again on the same port, with what was pushed.
    pub fn start_again(&mut self) -> Result<()> {
        if !self.process.is_running() {
            self.process = launch(&self.place, &self.name, &self.configuration, self.port)?;
        }
        Ok(())
    }

    /// SIGSTOP: connections open, nobody answers.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.freeze()
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&mut self) -> Result<()> {
        self.process.thaw()
    }
}

fn launch(place: &Place, name: &str, configuration: &PathBuf, port: u16) -> Result<Process> {
    let mut command = Command::new(installed("docker-registry")?);
    command.arg("serve").arg(configuration);
    let mut process = place.spawn(name, &command)?;
    process.wait_until("the registry answers", START_LIMIT, || {
        let answer = place.in_network(|| http::get(&format!("http://127.0.0.1:{port}/v2/")));
        answer.ok()?.ok().filter(|answer| answer.status == 200)
    })?;
    Ok(process)
}

/// Pushes to the registry at `address` (`HOST:PORT`) over plain HTTP, by the OCI distribution
/// specification: blobs that it lacks, then manifests, the outermost last and by tag.
pub fn push(address: &str, content: &dyn Content, name: &str, tag: &str) -> Result<String> {
    let base = format!("http://{address}/v2/{name}");
    for blob in content.blobs() {
        push_blob(&base, blob).with_context(|| format!("cannot push blob {}", blob.digest))?;
    }
    for manifest in content.inner_manifests() {
        push_manifest(&base, manifest, &manifest.digest)?;
    }
    push_manifest(&base, content.root(), tag)?;
    Ok(content.root().digest.clone())
}

fn push_blob(base: &str, blob: &Blob) -> Result<()> {
    let digest = &blob.digest;
    if http::request("HEAD", &format!("{base}/blobs/{digest}"), &[], &[])?.status == 200 {
        return Ok(());
    }
    let begun = http::request("POST", &format!("{base}/blobs/uploads/"), &[], &[])?;
    ensure!(begun.status == 202, "upload refused with {}: {}", begun.status, begun.text());
    let location = begun.header("location").context("upload without a location")?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={digest}");
    let kind = [("Content-Type", "application/octet-stream")];
    let done = http::request("PUT", &url, &kind, &blob.bytes)?;
    ensure!(done.status == 201, "blob refused with {}: {}", done.status, done.text());
    Ok(())
}

fn push_manifest(base: &str, manifest: &Blob, reference: &str) -> Result<()> {
    let kind = [("Content-Type", manifest.media_type.as_str())];
    let url = format!("{base}/manifests/{reference}");
    let done = http::request("PUT", &url, &kind, &manifest.bytes)?;
    ensure!(done.status == 201, "manifest refused with {}: {}", done.status, done.text());
    Ok(())
}
