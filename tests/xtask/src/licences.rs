//! The licences of everything that is built into a program of ours.

use cargo_metadata::Metadata;
use spdx::{Expression, ParseMode};

use crate::outcome::Tally;
use crate::workspace;

/// Licences under which we may pass on what we build.
const ALLOWED: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CDLA-Permissive-2.0",
    "BSL-1.0",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
];

pub(crate) fn gate() -> Tally {
    match workspace::metadata() {
        Ok(metadata) => Tally::gate("licences", &findings(&metadata)),
        Err(cause) => Tally::gate("licences", &[cause]),
    }
}

fn findings(metadata: &Metadata) -> Vec<String> {
    let foreign = metadata.packages.iter().filter(|package| package.source.is_some());
    let refused = foreign.filter_map(|package| {
        refusal(package.license.as_deref())
            .map(|cause| format!("{} {}: {cause}", package.name, package.version))
    });
    refused.collect()
}

/// Why an expression is not acceptable; `OR` leaves us the choice, `AND` does not.
fn refusal(licence: Option<&str>) -> Option<String> {
    let Some(text) = licence else { return Some("no licence is given".to_owned()) };
    let expression = match Expression::parse_mode(text, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(cause) => return Some(format!("`{text}` cannot be read: {}", cause.reason)),
    };
    // An exception ("WITH …") only adds permissions, so the licence's own name decides.
    let allowed = |id: spdx::LicenseId| ALLOWED.contains(&id.name);
    let accepted = expression.evaluate(|requirement| requirement.license.id().is_some_and(allowed));
    (!accepted).then(|| format!("`{text}` is not allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_needs_one_allowed_licence_and_a_sum_needs_all() {
        for accepted in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR GPL-3.0-only",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(refusal(Some(accepted)), None, "{accepted}");
        }
        for refused in
            ["MPL-2.0", "GPL-3.0-only", "MIT AND MPL-2.0", "AGPL-3.0-only OR SSPL-1.0", "LicenseRef-own"]
        {
            assert!(refusal(Some(refused)).unwrap().contains("not allowed"), "{refused}");
        }
        assert!(refusal(Some("all yours")).unwrap().contains("cannot be read"));
        assert!(refusal(None).is_some());
    }
}
