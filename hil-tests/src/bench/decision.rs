//! What a decision with nothing to do costs. In: the program `reconcile-cost`, which calls the agent's
//! own core and stands beside the binaries under test. Out: processor time.

use std::process::Command;

use anyhow::Context as _;
use coracle_testbed::bin;
use coracle_testbed::process::run;
use serde::Deserialize;
use serde_json::{Value, json};

use super::figures::Samples;
use super::{LIMIT, Result};

/// Processor time that is good, in microseconds.
pub(super) const TARGET_MICROS: f64 = 1000.0;

/// As the program tells.
#[derive(Debug, Deserialize)]
struct Told {
    workloads: u32,
    reconcile_micros: Vec<f64>,
}

/// Processor time of one call of `reconcile`, in microseconds.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) workloads: u32,
    pub(super) micros: Samples,
}

/// Runs the program.
pub(super) fn measure() -> Result<Decision> {
    let coracle = bin("coracle")?;
    let dir = coracle.parent().context("coracle lies nowhere")?;
    let program = dir.join("examples/reconcile-cost");
    let said = run(&mut Command::new(&program), LIMIT).with_context(|| {
        format!("{}: build it first (cargo build -p coracle-core --examples)", program.display())
    })?;
    let told: Told = serde_json::from_slice(&said)?;
    let Told { workloads, reconcile_micros } = told;
    Ok(Decision { workloads, micros: reconcile_micros.into_iter().collect() })
}

impl Decision {
    /// Whether the target is met.
    pub(super) fn met(&self) -> bool {
        self.micros.median().is_some_and(|median| median < TARGET_MICROS)
    }

    /// All samples and what was made of them.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "workloads": self.workloads,
            "reconcile_micros": self.micros.to_json(),
            "target_micros": TARGET_MICROS,
            "met": self.met(),
        })
    }
}
