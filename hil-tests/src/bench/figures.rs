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

    /// The largest; `None` without samples.
    pub(super) fn max(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::max)
    }

    /// All of them, and minimum and median.
    pub(super) fn to_json(&self) -> Value {
        json!({ "samples": self.0, "min": self.min(), "median": self.median() })
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

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// How much more than the floor is good, of the medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// So many times as long.
    Times(f64),
    /// So many milliseconds longer.
    Plus(f64),
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
    /// What is good.
    pub(super) target: Option<Target>,
}

impl Comparison {
    /// Nothing measured yet.
    pub(super) fn new(
        name: &'static str,
        floor_name: &'static str,
        target: Option<Target>,
    ) -> Self {
        Self { name, floor_name, agent: Samples::default(), floor: Samples::default(), target }
    }

    /// Median of the agent's over median of the floor's.
    pub(super) fn ratio(&self) -> Option<f64> {
        Some(self.agent.median()? / self.floor.median()?)
    }

    /// Whether the target is met; `None` if there is none. Not measured is not met.
    pub(super) fn met(&self) -> Option<bool> {
        let (agent, floor) = (self.agent.median(), self.floor.median());
        let within = |target| match target {
            Target::Times(times) => self.ratio().is_some_and(|ratio| ratio <= times),
            Target::Plus(ms) => agent.zip(floor).is_some_and(|(agent, floor)| agent <= floor + ms),
        };
        self.target.map(within)
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
            "target": self.target.map(|target| match target {
                Target::Times(times) => json!({ "ratio": times }),
                Target::Plus(ms) => json!({ "more_ms": ms }),
            }),
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
    fn a_target_is_met_by_the_medians() {
        let mut comparison = Comparison::new("a", "b", Some(Target::Times(1.3)));
        assert_eq!(comparison.met(), Some(false), "nothing measured");
        comparison.agent = samples(&[13.0]);
        comparison.floor = samples(&[10.0]);
        assert_eq!(comparison.met(), Some(true));
        comparison.agent = samples(&[13.1]);
        assert_eq!(comparison.met(), Some(false));
        comparison.target = Some(Target::Plus(3.2));
        assert_eq!(comparison.met(), Some(true));
        comparison.target = Some(Target::Plus(3.0));
        assert_eq!(comparison.met(), Some(false));
        comparison.target = None;
        assert_eq!(comparison.met(), None);
    }
}
