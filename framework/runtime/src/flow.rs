//! What the records of services are called in a store.

use tidegate_core::{FlowName, Result};
use xxhash_rust::xxh3::xxh3_64;

/// The flow of something that has any name: the beginning of it for people, and a hash that tells it from others.
///
/// # Errors
/// None for any name.
pub(crate) fn flow(what: &str, name: &str) -> Result<FlowName> {
    let readable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(12).collect();
    FlowName::new(format!("{what}_{readable}_{:016x}", xxh3_64(name.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_will_do_and_no_two_are_one() {
        let long = "a very long name of a service, and more".to_owned();
        for name in ["billing", "", "käse/ß", &long] {
            assert!(flow("service", name).unwrap().to_string().starts_with("service_"), "{name}");
        }
        assert_ne!(flow("inbox", &long).unwrap(), flow("inbox", &long[..30]).unwrap());
        assert_eq!(flow("groups", "orders").unwrap().to_string()[..14], *"groups_orders_");
    }
}
