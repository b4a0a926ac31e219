//! Which places in the code refused something: for the test that wants a bad case for each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::Location;

thread_local! {
    static REACHED: RefCell<Option<BTreeSet<(String, u32)>>> = const { RefCell::new(None) };
}

/// From now on, on this thread.
pub(crate) fn start_recording() {
    REACHED.with_borrow_mut(|reached| *reached = Some(BTreeSet::new()));
}

/// File and line of each.
pub(crate) fn places_reached() -> BTreeSet<(String, u32)> {
    REACHED.with_borrow_mut(Option::take).unwrap_or_default()
}

#[track_caller]
pub(crate) fn record() {
    let place = Location::caller();
    REACHED.with_borrow_mut(|reached| {
        if let Some(reached) = reached {
            reached.insert((place.file().to_owned(), place.line()));
        }
    });
}
