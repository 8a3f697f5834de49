//! What must not stand in a file.

use crate::workspace::TextFile;

pub(super) fn findings(file: &TextFile) -> Vec<String> {
    let source = file.path.ends_with(".rs");
    let lines = (1..).zip(file.text.lines());
    let found = lines.flat_map(|(number, line)| {
        let code = if source { in_source(line) } else { None };
        let causes = [machine_path(line), code].into_iter().flatten();
        causes.map(move |cause| format!("{}:{number}: {cause}", file.path)).collect::<Vec<_>>()
    });
    found.collect()
}

/// Written so that this file does not find itself.
fn in_source(line: &str) -> Option<String> {
    let unfinished = ["todo", "unimplemented"].into_iter().find(|name| line.contains(&format!("{name}!(")));
    if let Some(name) = unfinished {
        return Some(format!("`{name}!` is not for what is kept"));
    }
    let bare = line.trim_start().starts_with("#[ignore]");
    bare.then(|| "an ignored test needs its reason: `#[ignore = \"…\"]`".to_owned())
}

/// A path from the root of one machine; the same name inside of a longer path is none.
fn machine_path(line: &str) -> Option<String> {
    let inside = |character: char| character.is_alphanumeric() || "._-~}$/*".contains(character);
    let names = ["work", "root", "home"].map(|name| format!("/{name}/"));
    let found = names.iter().find(|name| {
        line.match_indices(name.as_str()).any(|(at, _)| !line[..at].chars().next_back().is_some_and(inside))
    });
    found.map(|name| format!("a path of one machine (`{name}`)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        findings(&TextFile { path: path.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn each_rule_finds_a_planted_line() {
        for name in ["todo", "unimplemented"] {
            let text = format!("fn f() {{\n    {name}!()\n}}");
            assert_eq!(found("a.rs", &text), [format!("a.rs:2: `{name}!` is not for what is kept")]);
            assert!(found("a.md", &text).is_empty());
        }
        assert!(found("a.rs", "    #[ignore]")[0].contains("needs its reason"));
        for name in ["work", "root", "home"] {
            assert!(
                found("a.md", &format!("see `/{name}/x`"))[0].starts_with("a.md:1: a path of one machine")
            );
        }
    }

    #[test]
    fn what_only_looks_alike_is_left_alone() {
        assert!(found("a.rs", "#[ignore = \"needs a week\"]").is_empty());
        for text in ["docs/work/x.md", "https://example.org/home/x", "~/work/x", "$ROOT/home/x"] {
            assert!(found("a.md", text).is_empty(), "{text}");
        }
    }
}
