//! The floor: the same containers, created and started by containerd's own `ctr`. In: a private
//! containerd, an image. Out: moments. Each `ctr` is timed from its own exec, so that the
//! programs that put it into containerd's mount namespace do not count.

use std::path::PathBuf;
use std::process::Command;

use coracle_testbed::{Containerd, Version};

use super::connector::{Watch, finish};
use super::moment::Moment;
use super::{LIMIT, Result};

/// Where its image must be.
pub(super) const NAMESPACE: &str = "floor";

/// Containers without the agent, in a containerd namespace of their own.
#[derive(Debug)]
pub(super) struct Floor {
    ctr: PathBuf,
    image: String,
    cgroup: String,
    made: Vec<String>,
}

impl Floor {
    /// `image` is there already, unpacked, in the namespace [`NAMESPACE`].
    pub(super) fn new(image: &str, cgroup: &str) -> Result<Self> {
        let ctr = Version::System.bin_dir()?.join("ctr");
        Ok(Self { ctr, image: image.into(), cgroup: cgroup.into(), made: Vec::new() })
    }

    /// `ctr run --detach` of a container that runs `argv`. Gives when `ctr` began and when the
    /// container's process ran.
    pub(super) fn run(
        &mut self,
        containerd: &Containerd,
        watch: &Watch,
        argv: &[String],
    ) -> Result<(Moment, Moment)> {
        let id = format!("floor{}", argv.join("").replace('/', "-"));
        let mut command = self.command(containerd);
        command.args(["run", "--detach", "--cgroup", &format!("{}/{NAMESPACE}/{id}", self.cgroup)]);
        command.arg(&self.image).arg(&id).args(argv);
        self.made.push(id);
        let ctr = finish(watch, &mut command)?;
        let what = "the process of ctr's container";
        let (_, ran) = watch.wait(what, LIMIT, |seen| seen.started(argv))?;
        Ok((ctr.began, ran))
    }

    /// `ctr version`: one program start, one connection, one call of containerd. Milliseconds.
    pub(super) fn round_trip(&self, containerd: &Containerd, watch: &Watch) -> Result<f64> {
        let mut command = self.command(containerd);
        command.arg("version");
        let ctr = finish(watch, &mut command)?;
        Ok(ctr.ended.ms_since(ctr.began))
    }

    /// Ends and removes all containers that were made.
    pub(super) fn clear(&mut self, containerd: &Containerd) -> Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = self.made.iter().map(String::as_str).collect();
        let orders: [&[&str]; 2] = [&["tasks", "rm", "--force"], &["containers", "rm"]];
        for order in orders {
            containerd.ctr(&[&["--namespace", NAMESPACE], order, &ids].concat())?;
        }
        self.made.clear();
        Ok(())
    }

    fn command(&self, containerd: &Containerd) -> Command {
        let mut command = containerd.inside(&self.ctr);
        command.arg("--address").arg(containerd.address()).args(["--namespace", NAMESPACE]);
        command
    }
}
