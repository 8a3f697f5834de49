//! The suite calls what a fixture has.

use tidegate_conformance::{CASES, Counted, Outcome, Size, run};

use crate::memory::Memory;

/// A hook that no case calls could be empty in every fixture, and a broker that is not cleaned up would be met by the
/// next case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hook_is_called_and_every_start_is_cleaned_up() {
    let bug = Some(crate::plant::Bug::ForgetsOnKill);
    let (mut fixture, calls) = Counted::new(Memory::new(bug));
    let hooks = ["A6", "A8", "A10", "B11", "B13", "B17", "E43", "E44"];
    let cases: Vec<_> = CASES.iter().filter(|case| hooks.contains(&case.id)).copied().collect();
    assert_eq!(cases.len(), hooks.len());
    let rows = run(&mut fixture, &cases, Size::Quick, |_, _| ()).await;
    assert!(rows.iter().all(|row| row.outcome == Outcome::Passed || row.id == "A10"), "{rows:#?}");
    let calls = calls.lock().unwrap().clone();
    for hook in [
        "start",
        "connect",
        "restart",
        "kill",
        "cut",
        "network",
        "stranger",
        "lose_answers",
        "remove",
        "kept",
        "clean_up",
    ] {
        assert!(calls.get(hook).is_some_and(|count| *count > 0), "{hook} was never called: {calls:?}");
    }
    assert_eq!(calls["start"], cases.len());
    assert_eq!(calls["clean_up"], cases.len());
}

/// The ids of the cases are what the pages of the traits name.
#[test]
fn the_pages_of_the_traits_and_the_table_name_the_same_cases() {
    let pages = [
        include_str!("../../../../framework/core/src/port/broker.rs"),
        include_str!("../../../../framework/core/src/port/browse.rs"),
        include_str!("../../../../framework/core/src/port/producer.rs"),
        include_str!("../../../../framework/core/src/port/consumer.rs"),
        include_str!("../../../../framework/core/src/port/settle.rs"),
        include_str!("../../../../framework/runtime/src/service/mod.rs"),
    ];
    let mut named = std::collections::BTreeSet::new();
    for line in pages.iter().flat_map(|page| page.lines()).filter(|line| line.starts_with("/// ")) {
        for group in line.split('(').skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_id = |id: &&str| {
                let (letter, number) = id.split_at_checked(1).unwrap_or(("", ""));
                "ABCDEFGH".contains(letter) && number.parse::<u8>().is_ok()
            };
            named.extend(group.split(", ").filter(is_id).map(str::to_owned));
        }
    }
    let known: std::collections::BTreeSet<_> = CASES.iter().map(|case| case.id.to_owned()).collect();
    assert_eq!(named, known);
}
