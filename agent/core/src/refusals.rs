//! How often it is shown that an order was refused. Whoever can write to the broker can send what is
//! no order of ours, or old ones, as fast as the link carries it: showing each would wear the flash,
//! push real events out of the backlog and use up the link.
//!
//! In: refusals with their time. Out: whether one is shown, and whether it matters. Deliberately not
//! here: the refusing, which is never held back.

use std::time::Duration;

/// How many are shown at once, before they are rationed.
const AT_ONCE: u32 = 10;

/// One more may be shown after this.
const APART: Duration = Duration::from_secs(60);

/// What is known of refusals that were shown.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    /// Highest generation of a refused order that was signed and for us.
    newest: u64,
    ours: Ration,
    others: Ration,
}

/// A refusal that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The order was signed, for us and newer than all before it: nobody but the fleet can make many
    /// of these.
    pub important: bool,
    /// How many came before it that were not shown.
    pub untold: u64,
}

#[derive(Clone, Debug, Default)]
struct Ration {
    used: u32,
    counted_at: Duration,
    untold: u64,
}

impl Refusals {
    /// Whether the refusal of an order is shown. `generation` is that of an order which was signed
    /// and for us, `in_force` the one that was accepted last.
    pub fn show(&mut self, generation: Option<u64>, in_force: u64, now: Duration) -> Option<Shown> {
        if let Some(newer) = generation.filter(|new| *new > in_force.max(self.newest)) {
            self.newest = newer;
            return Some(Shown { important: true, untold: 0 });
        }
        let ration = if generation.is_some() { &mut self.ours } else { &mut self.others };
        ration.take(now).map(|untold| Shown { important: false, untold })
    }
}

impl Ration {
    fn take(&mut self, now: Duration) -> Option<u64> {
        let more = now.saturating_sub(self.counted_at).as_secs() / APART.as_secs();
        self.counted_at += Duration::from_secs(more * APART.as_secs());
        self.used = self.used.saturating_sub(u32::try_from(more).unwrap_or(u32::MAX));
        if self.used >= AT_ONCE {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]

    use super::*;

    /// How many of a refusal each second for an hour are shown.
    fn shown_in_an_hour(refusals: &mut Refusals, generation: impl Fn(u64) -> Option<u64>) -> usize {
        let show = |at| refusals.show(generation(at), 5, Duration::from_secs(7200 + at));
        (0..3600).filter_map(show).filter(|shown| !shown.important).count()
    }

    #[test]
    fn many_bad_orders_from_anybody_show_few_times_and_one_of_the_fleet_at_once() {
        let mut refusals = Refusals::default();
        let show = |refusals: &mut Refusals, generation, at| {
            refusals.show(generation, 5, Duration::from_secs(at))
        };
        let plain = |untold| Some(Shown { important: false, untold });
        for _ in 0..AT_ONCE {
            assert_eq!(show(&mut refusals, None, 1), plain(0));
        }
        for _ in 0..1000 {
            assert_eq!(show(&mut refusals, None, 2), None);
        }
        assert_eq!(show(&mut refusals, Some(4), 3), plain(0), "signed ones have their own ration");
        let important = Some(Shown { important: true, untold: 0 });
        assert_eq!(show(&mut refusals, Some(6), 3), important);
        assert_eq!(show(&mut refusals, Some(6), 4), plain(0), "once: it can be replayed");
        assert_eq!(show(&mut refusals, None, 60), plain(1000));
        assert_eq!(show(&mut refusals, None, 61), None);
    }

    #[test]
    fn replayed_orders_show_once_a_minute() {
        let mut refusals = Refusals::default();
        assert!(shown_in_an_hour(&mut refusals, |at| Some(at % 2)) <= 70);
        assert!(shown_in_an_hour(&mut Refusals::default(), |_| None) <= 70);
    }
}
