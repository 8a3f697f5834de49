//! Which crate of the workspace may know which.

use cargo_metadata::{DependencyKind, Metadata};

use crate::workspace;

/// One dependency between folders of the workspace.
#[derive(Debug, Clone, Copy)]
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    development: bool,
}

pub(super) fn findings(metadata: &Metadata) -> Vec<String> {
    let root = workspace::root();
    let inside = |path: &str| {
        std::path::Path::new(path).strip_prefix(&root).ok().map(|path| path.display().to_string())
    };
    let mut findings = Vec::new();
    if metadata.packages.iter().any(|package| package.name.as_str() == "aws-lc-rs") {
        let text =
            "aws-lc-rs is in the tree beside ring: with two providers rustls has no default, and panics";
        findings.push(text.to_owned());
    }
    for package in metadata.workspace_packages() {
        let Some(from) = package.manifest_path.parent().and_then(|path| inside(path.as_str())) else {
            continue;
        };
        for dependency in &package.dependencies {
            let Some(to) = dependency.path.as_ref().and_then(|path| inside(path.as_str())) else { continue };
            let development = dependency.kind == DependencyKind::Development;
            findings.extend(refusal(Edge { from: &from, to: &to, development }));
        }
    }
    findings
}

/// The rule that an edge breaks, as a sentence.
fn refusal(edge: Edge<'_>) -> Option<String> {
    let Edge { from, to, development } = edge;
    let (allowed, rule) = if development { tests_may(from, to) } else { programs_may(from, to) };
    let kind = if development { "for its tests" } else { "" };
    (!allowed).then(|| format!("{from} depends on {to} {kind}: {rule}").replace(" :", ":"))
}

fn programs_may(from: &str, to: &str) -> (bool, &'static str) {
    let (area, name) = from.split_once('/').unwrap_or((from, ""));
    let framework = to.starts_with("framework/");
    match (area, name) {
        ("framework", "core") => (false, "the core knows no other crate of the workspace"),
        ("framework", "broker" | "runtime") => (to == CORE, "it knows the core alone"),
        ("framework", "tidegate") => {
            let allowed = (framework || to.starts_with("adapters/")) && to != from;
            (allowed, "the facade knows the crates of the framework, and the adapters by feature")
        }
        ("framework", _) => {
            (to == CORE || to == RUNTIME, "a framework crate knows the core and the runtime alone")
        }
        ("adapters", _) => {
            let protocol = to.starts_with("adapters/") && to.ends_with("-common");
            (
                to == CORE || to == BROKER || protocol,
                "an adapter knows the core, and what makes a broker, alone (and a crate for a protocol that it shares)",
            )
        }
        ("tests", _) => (true, ""),
        (_, _) => (!to.starts_with("tests/"), "what is shipped does not know the tests"),
    }
}

fn tests_may(from: &str, to: &str) -> (bool, &'static str) {
    let shared = to.starts_with("tests/") || to == "adapters/memory" || programs_may(from, to).0;
    match from.split_once('/').unwrap_or((from, "")).0 {
        // An adapter is tested where it is used: below the framework's engines.
        "adapters" => (
            shared || to.starts_with("framework/"),
            "its tests may know the framework, the crates under tests/ and the memory adapter",
        ),
        "framework" => (shared, "its tests may know the crates under tests/ and the memory adapter"),
        _ => (true, ""),
    }
}

const BROKER: &str = "framework/broker";
const CORE: &str = "framework/core";
const RUNTIME: &str = "framework/runtime";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_refuses_a_planted_edge() {
        for (from, to) in [
            ("adapters/postgres", "adapters/mongodb"),
            ("adapters/postgres", "framework/runtime"),
            ("adapters/postgres", "tests/services"),
            ("framework/core", "framework/runtime"),
            ("framework/core", "adapters/memory"),
            ("framework/core", "framework/broker"),
            ("framework/broker", "framework/runtime"),
            ("framework/runtime", "framework/broker"),
            ("framework/runtime", "framework/flow"),
            ("framework/flow", "framework/cqrs"),
            ("framework/cqrs", "adapters/sqlite"),
            ("framework/tidegate", "migrations"),
            ("migrations", "tests/services"),
            ("examples/01-first-message", "tests/services"),
        ] {
            let refusal = refusal(Edge { from, to, development: false }).unwrap();
            assert!(refusal.starts_with(&format!("{from} depends on {to}: ")), "{refusal}");
        }
        for (from, to) in [("adapters/postgres", "adapters/mongodb"), ("framework/core", "adapters/sqlite")] {
            assert!(refusal(Edge { from, to, development: true }).unwrap().contains("for its tests: "));
        }
    }

    #[test]
    fn what_the_design_wants_is_allowed() {
        for (from, to, development) in [
            ("adapters/postgres", "framework/core", false),
            ("adapters/redis", "framework/broker", false),
            ("adapters/rabbitmq", "adapters/amqp-common", false),
            ("framework/runtime", "framework/core", false),
            ("framework/flow", "framework/runtime", false),
            ("framework/tidegate", "framework/flow", false),
            ("framework/tidegate", "adapters/sqlite", false),
            ("migrations", "adapters/postgres", false),
            ("tests/proof", "adapters/postgres", false),
            ("adapters/postgres", "tests/services", true),
            ("adapters/postgres", "adapters/memory", true),
            ("adapters/postgres", "framework/flow", true),
            ("framework/core", "adapters/memory", true),
            ("framework/core", "tests/conformance", true),
            ("migrations", "tests/services", true),
        ] {
            assert_eq!(refusal(Edge { from, to, development }), None);
        }
    }
}
