//! Samples and what is made of them: minimum, median, ratio to the floor, pass or miss. Pure.

use serde_json::{Value, json};

/// Measurements of one thing, in the order they were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(super) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The smallest; `None` without samples.
    pub(super) fn min(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::min)
    }

    /// The middle one, or the mean of the two in the middle; `None` without samples.
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(f64::midpoint(lower, upper))
    }
}

/// What the agent takes for something, beside the floor: what the same takes without it.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    /// What is measured.
    pub(super) name: &'static str,
    /// What the floor is.
    pub(super) floor_name: &'static str,
    /// The agent's, in milliseconds.
    pub(super) agent: Samples,
    /// The floor's, in milliseconds.
    pub(super) floor: Samples,
    /// The largest ratio of the medians that is good.
    pub(super) target: Option<f64>,
}

impl Comparison {
    /// Nothing measured yet.
    pub(super) fn new(name: &'static str, floor_name: &'static str, target: Option<f64>) -> Self {
        Self { name, floor_name, agent: Samples::default(), floor: Samples::default(), target }
    }

    /// Median of the agent's over median of the floor's.
    pub(super) fn ratio(&self) -> Option<f64> {
        Some(self.agent.median()? / self.floor.median()?)
    }

    /// Whether the target is met; `None` if there is none. Not measured is not met.
    pub(super) fn met(&self) -> Option<bool> {
        self.target.map(|target| self.ratio().is_some_and(|ratio| ratio <= target))
    }

    /// All samples and what was made of them.
    pub(super) fn to_json(&self) -> Value {
        let side = |samples: &Samples| {
            json!({
                "samples_ms": samples.0,
                "min_ms": samples.min(),
                "median_ms": samples.median(),
            })
        };
        json!({
            "name": self.name,
            "floor_name": self.floor_name,
            "agent": side(&self.agent),
            "floor": side(&self.floor),
            "ratio_of_medians": self.ratio(),
            "target": self.target,
            "met": self.met(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0]).median(), Some(3.0));
        assert_eq!(samples(&[9.0, 1.0, 3.0]).median(), Some(3.0));
        assert_eq!(samples(&[9.0, 1.0, 3.0, 5.0]).median(), Some(4.0));
        assert_eq!(samples(&[9.0, 1.0]).min(), Some(1.0));
    }

    #[test]
    fn a_target_is_met_by_the_ratio_of_medians() {
        let mut comparison = Comparison::new("a", "b", Some(1.3));
        assert_eq!(comparison.met(), Some(false), "nothing measured");
        comparison.agent = samples(&[13.0]);
        comparison.floor = samples(&[10.0]);
        assert_eq!(comparison.met(), Some(true));
        comparison.agent = samples(&[13.1]);
        assert_eq!(comparison.met(), Some(false));
        comparison.target = None;
        assert_eq!(comparison.met(), None);
    }
}
