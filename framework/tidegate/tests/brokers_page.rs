//! The page of URLs names every setting that a URL may have.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use tidegate::open::{BROKERS, broker};

const PAGE: &str = include_str!("../../../docs/reference/brokers.md");

#[test]
fn every_scheme_and_setting_is_on_the_page() {
    let mut servers = 0;
    for (schemes, _) in BROKERS {
        for scheme in *schemes {
            let shown = [format!("`{scheme}:"), format!("`{scheme}://HOST")];
            assert!(shown.iter().any(|shown| PAGE.contains(shown)), "{scheme}");
            // What is no setting is refused with those that are.
            let Err(error) = broker(&format!("{scheme}://host?no-setting=1")) else { continue };
            let Some(known) = error.hint_text().and_then(|hint| hint.strip_prefix("known are ")) else {
                continue;
            };
            servers += 1;
            for setting in known.split(", ") {
                assert!(PAGE.contains(&format!("`{setting}`")), "{scheme}: {setting}");
            }
        }
    }
    let are_compiled = cfg!(feature = "redis") && cfg!(feature = "nats");
    assert!(!are_compiled || servers >= 4, "{servers}");
}
