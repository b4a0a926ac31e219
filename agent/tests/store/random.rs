//! Random uses against a model.

use std::collections::BTreeMap;

use coracle::store::StoreError;
use proptest::prelude::*;

use super::support::{open, order, record, replica, wait};

#[derive(Clone, Debug)]
enum Step {
    Accept(u64),
    Record(Vec<(u32, Option<u32>)>),
    Reserve(bool),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_u64).prop_map(Step::Accept),
        4 => prop::collection::vec((0..80_u32, prop::option::of(0..1000_u32)), 0..30).prop_map(Step::Record),
        1 => any::<bool>().prop_map(Step::Reserve),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_was_acknowledged(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open(dir.path());
        let (mut current, mut previous) = (None::<u64>, None::<u64>);
        let mut histories = BTreeMap::new();
        let mut sequences = [0_u64; 2];
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Accept(generation) => match wait(store.accept(order(generation))) {
                    Ok(()) if current == Some(generation) => {}
                    Ok(()) => {
                        prop_assert!(current.is_none_or(|current| generation > current));
                        previous = current.replace(generation);
                    }
                    Err(StoreError::NotNewer { highest, .. }) => {
                        prop_assert_eq!(Some(highest), current);
                        prop_assert!(generation < highest);
                    }
                    Err(error) => prop_assert!(false, "{}", error.chain()),
                },
                Step::Record(changes) => {
                    for (index, value) in &changes {
                        match value {
                            Some(failures) => histories.insert(replica(*index), record(*failures)),
                            None => histories.remove(&replica(*index)),
                        };
                    }
                    let changes = changes.into_iter()
                        .map(|(index, value)| (replica(index), value.map(record))).collect();
                    wait(store.record(changes)).unwrap();
                }
                Step::Reserve(boot) => {
                    let block =
                        wait(store.reserve_sequence(if boot { "a" } else { "b" }, 0)).unwrap();
                    // A boot id never comes back, but if it did, its count starts anew.
                    let last = &mut sequences[usize::from(boot)];
                    prop_assert!(block.start >= *last || block.start == 1);
                    *last = block.end;
                    sequences[usize::from(!boot)] = 0;
                }
                Step::Reopen => {
                    wait(store.close());
                    let (opened, loaded) = open(dir.path());
                    store = opened;
                    prop_assert_eq!(loaded.trouble, None);
                    prop_assert_eq!(loaded.highest_generation, current.unwrap_or(0));
                    prop_assert_eq!(loaded.current, current.map(order));
                    prop_assert_eq!(loaded.previous, previous.map(order));
                    prop_assert_eq!(&loaded.histories, &histories);
                }
            }
        }
        wait(store.close());
    }
}
