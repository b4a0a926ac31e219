//! A repository of artifacts for tests: a web server that can be told to fail, and real software
//! packed into ZIPs for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use coracle_testbed::process::run;
use coracle_testbed::{FaultyRegistry, Place, Result};

const PATIENCE: Duration = Duration::from_secs(60);

/// A service in Python; see there.
const COUNTER: &str = include_str!("native/counter.py");

/// What the gateway's own lighttpd needs to be told.
const LIGHTTPD_CONF: &str = "server.document-root = env.CORACLE_RUNTIME + \"/www\"\n\
    server.port = 8080\nserver.bind = \"0.0.0.0\"\nindex-file.names = (\"index.html\")\n";

/// Packs what is in a directory into a ZIP in a new file; gives its bytes.
pub fn packed(dir: &Path, zip: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("/usr/bin/python3");
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    command.args(["-m", "zipfile", "-c"]).arg(zip).args(entries.collect::<Result<Vec<_>>>()?);
    run(command.current_dir(dir), PATIENCE)?;
    fs::read(zip).with_context(|| format!("cannot read {}", zip.display()))
}

/// A repository laid out as Maven's.
#[derive(Debug)]
pub struct Repository {
    /// The server, to be told to fail.
    server: Option<FaultyRegistry>,
    place: Place,
    dir: PathBuf,
}

impl Drop for Repository {
    fn drop(&mut self) {
        // It is ended by a connection, which only comes from the same network.
        let server = self.server.take();
        self.place.in_network(|| drop(server)).ok();
    }
}

impl Repository {
    /// Starts one in the network of a place.
    pub fn start(place: &Place) -> Result<Self> {
        let server = place.in_network(FaultyRegistry::start)??;
        let dir = place.run().join("artifacts");
        fs::create_dir_all(&dir)?;
        Ok(Self { server: Some(server), place: place.clone(), dir })
    }

    /// The server, to be told to fail.
    pub fn server(&self) -> &FaultyRegistry {
        self.server.as_ref().expect("it is there until the end")
    }

    /// The lines of the agent's configuration that name it.
    pub fn lines(&self) -> String {
        let address = self.server().address();
        format!("artifacts = {{ repositories = [{{ url = \"http://{address}\" }}] }}\n")
    }

    /// Packs a directory and serves it; gives its path on the server and its SHA-256.
    pub fn publish(&self, artifact: &str, dir: &Path) -> Result<(String, String)> {
        let mut parts = artifact.split(':');
        let mut part = || parts.next().context("an artifact is group:name:version");
        let (group, name, version) = (part()?.replace('.', "/"), part()?, part()?);
        let zip = self.dir.join(format!("{name}-{version}.zip"));
        let path = format!("/{group}/{name}/{version}/{name}-{version}.zip");
        let digest = self.server().put_file(&path, &packed(dir, &zip)?);
        let hex = digest.trim_start_matches("sha256:").to_owned();
        self.server().put_file(&format!("{path}.sha256"), format!("{hex}\n").as_bytes());
        Ok((path, hex))
    }

    /// The web server of the distribution's package `lighttpd`.
    pub fn publish_lighttpd(&self, artifact: &str) -> Result<(String, String)> {
        let dir = self.dir.join("lighttpd");
        for part in ["sbin", "lib", "conf"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::copy("/usr/sbin/lighttpd", dir.join("sbin/lighttpd"))?;
        for entry in fs::read_dir("/usr/lib/lighttpd")? {
            let path = entry?.path();
            fs::copy(&path, dir.join("lib").join(path.file_name().context("a module")?))?;
        }
        fs::write(dir.join("conf/lighttpd.conf"), LIGHTTPD_CONF)?;
        self.publish(artifact, &dir)
    }

    /// A service in Python that tells its version; `crash` ends at once, `sick` never gets ready.
    /// `ballast`: bytes that make its ZIP as large at least.
    pub fn publish_counter(
        &self,
        version: &str,
        says: &str,
        ballast: usize,
    ) -> Result<(String, String)> {
        let dir = self.dir.join(format!("counter-{version}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("counter.py"), COUNTER)?;
        fs::write(dir.join("version"), says)?;
        let mut state = 1_u64;
        let noise = (0..ballast).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).unwrap_or_default()
        });
        fs::write(dir.join("ballast"), noise.collect::<Vec<_>>())?;
        self.publish(&format!("org.example:counter:{version}"), &dir)
    }
}
