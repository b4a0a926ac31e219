//! Random uses against a model.

use std::collections::{BTreeMap, BTreeSet};

use coracle::store::StoreError;
use proptest::prelude::*;

use super::support::{
    container, container_change, open, order, record, wait, workload, workload_change,
    workload_record,
};

#[derive(Clone, Debug)]
enum Step {
    /// So much above the newest, less one; and which generations are to be kept, by their lowest bits.
    Accept(u64, u64),
    Record(Vec<(u32, Option<u32>)>, Vec<(u32, Option<u32>)>),
    Reserve(bool),
    Reopen,
}

fn changes(things: u32, most: usize) -> impl Strategy<Value = Vec<(u32, Option<u32>)>> {
    prop::collection::vec((0..things, prop::option::of(0..1000_u32)), 0..most)
}

fn needed(bits: u64) -> BTreeSet<u64> {
    (0..200).filter(|generation| bits >> (generation % 64) & 1 == 1).collect()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u64, any::<[u64; 3]>()).prop_map(|(ahead, bits)| {
            // Most of them, so that there are sometimes too many.
            Step::Accept(ahead, bits[0] | bits[1] | bits[2])
        }),
        4 => (changes(80, 30), changes(20, 8))
            .prop_map(|(containers, workloads)| Step::Record(containers, workloads)),
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
        let mut kept = BTreeSet::new();
        let (mut histories, mut workloads) = (BTreeMap::new(), BTreeMap::new());
        let mut sequences = [0_u64; 2];
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Accept(ahead, bits) => {
                    let generation = (current.unwrap_or(1) + ahead).saturating_sub(1);
                    let keep = needed(bits);
                    match wait(store.accept(order(generation), keep.clone())) {
                        Ok(()) if current == Some(generation) => {}
                        Ok(()) => {
                            prop_assert!(current.is_none_or(|current| generation > current));
                            kept.extend(current.and(previous));
                            kept.retain(|generation| keep.contains(generation));
                            while kept.len() > 8 {
                                kept.pop_first();
                            }
                            previous = current.replace(generation);
                        }
                        Err(StoreError::NotNewer { highest, .. }) => {
                            prop_assert_eq!(highest, current.unwrap_or(0));
                            prop_assert!(generation < highest || current.is_none());
                        }
                        Err(error) => prop_assert!(false, "{}", error.chain()),
                    }
                }
                Step::Record(containers, others) => {
                    for (index, value) in &containers {
                        match value {
                            Some(failures) => histories.insert(container(*index), record(*failures)),
                            None => histories.remove(&container(*index)),
                        };
                    }
                    for (index, value) in &others {
                        match value {
                            Some(number) => {
                                workloads.insert(workload(*index), workload_record(*number))
                            }
                            None => workloads.remove(&workload(*index)),
                        };
                    }
                    let containers =
                        containers.into_iter().map(|(index, value)| container_change(index, value));
                    let others =
                        others.into_iter().map(|(index, value)| workload_change(index, value));
                    wait(store.record(containers.chain(others).collect())).unwrap();
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
                    let expected: Vec<_> = kept.iter().rev().copied().map(order).collect();
                    prop_assert_eq!(loaded.kept, expected);
                    prop_assert_eq!(&loaded.histories, &histories);
                    prop_assert_eq!(&loaded.workloads, &workloads);
                }
            }
        }
        wait(store.close());
    }
}
