//! What this gateway offers the agent and its workloads: the kernel's features, cgroup controllers,
//! network plugins, a place that keeps data, the program that judges configurations; and how it is:
//! memory, disk, load, temperature, interfaces.
//!
//! In: the configuration, `/proc`, `/sys`, file systems. Out: [`Finding`]s, good and bad. Nothing
//! that is missing here ends the agent: it does what is still possible. Deliberately not here: what
//! containerd, the store or the link find out by themselves.

mod cgroups;
mod cni;
mod data;
mod interfaces;
mod kernel;
mod numbers;
mod output;

use std::path::Path;

use crate::config::Config;
use crate::config_check;
use crate::identity::{self, Device};
use crate::policy;

pub use interfaces::interfaces;
pub use numbers::Meter;

/// One fact about the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the condition that it becomes.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub good: bool,
    /// One word, for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Finding {
    /// As it should be.
    pub fn good(name: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { name, good: true, reason, message: message.into() }
    }

    /// What is to be said of the gateway's policy.
    pub fn of_policy(state: &policy::State) -> Self {
        let policy::State { good, reason, message } = state.clone();
        Self { name: "policy", good, reason, message }
    }

    /// Not as it should be.
    pub fn bad(name: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { name, good: false, reason, message: message.into() }
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Health {
    /// What does not change while the kernel runs.
    fixed: Vec<Finding>,
    config: Config,
    /// As it was at start.
    device: Device,
}

impl Health {
    /// Looks at what does not change while the kernel runs. `device` is what the agent started
    /// with; `known` was found out elsewhere.
    pub fn new(config: Config, device: Device, known: Vec<Finding>) -> Self {
        let root = Path::new("/");
        let mut fixed = known;
        fixed.extend([kernel::look(root), cgroups::look(root)]);
        Self { fixed, config, device }
    }

    /// Everything as it is now. Some system calls; nothing is written.
    pub fn findings(&self) -> Vec<Finding> {
        let changing = [
            self.identity(),
            data::look(&self.config.state_dir),
            data::look_runtime(&self.config.runtime_dir),
            cni::look(&self.config),
            output::look(&self.config),
            self.templates(),
        ];
        self.fixed.iter().cloned().chain(changing).collect()
    }

    fn templates(&self) -> Finding {
        const NAME: &str = "templates";
        match config_check::problem(&self.config.templates) {
            None => Finding::good(NAME, "can-judge", "the program that judges by them is there"),
            Some(problem) => {
                let message = format!("orders with config templates are refused: {problem}");
                Finding::bad(NAME, "program-missing", message)
            }
        }
    }

    fn identity(&self) -> Finding {
        const NAME: &str = "identity";
        let now = identity::find(&self.config);
        let before = &self.device;
        let same = |now: &Device| {
            now.gateway == before.gateway && now.link == before.link && now.keys == before.keys
        };
        if !now.gateway.is_nil() && !same(&now) {
            let message = format!(
                "what is said of gateway {} has changed since the agent started: restart it",
                now.gateway
            );
            return Finding::bad(NAME, "restart-needed", message);
        }
        let identity::State { good, reason, message } = now.state;
        Finding { name: NAME, good, reason, message }
    }
}

/// Words in a list, for people.
fn list(words: &[&str]) -> String {
    words.join(", ")
}
