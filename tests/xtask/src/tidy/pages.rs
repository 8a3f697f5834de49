//! Pages that nobody shows, and paths in pages that lead nowhere.

use std::path::Path;

use crate::workspace::TextFile;

const SUMMARY: &str = "docs/SUMMARY.md";
/// The pages of errors, which are compiled into the core. The book has them by a link, as `docs/errors`.
const ERRORS: &str = "framework/core/errors/";
const CODES: &str = "framework/core/src/code.rs";
const LICENCES: &[&str] = &["LICENSE-MIT", "LICENSE-APACHE"];

pub(super) fn findings(files: &[TextFile], root: &Path) -> Vec<String> {
    let codes = files.iter().find(|file| file.path == CODES).map_or("", |file| file.text.as_str());
    let summary = files.iter().find(|file| file.path == SUMMARY).map_or("", |file| file.text.as_str());
    let mut findings = Vec::new();
    for file in files {
        findings.extend(unused_page(&file.path, codes));
        findings.extend(page_without_entry(&file.path, summary));
        if is_prose(&file.path) {
            let absent = quoted_paths(&file.text).into_iter().filter(|path| !root.join(path).exists());
            findings.extend(absent.map(|path| format!("{}: there is no `{path}`", file.path)));
        }
    }
    let absent = LICENCES.iter().filter(|name| !files.iter().any(|file| file.path == **name));
    findings.extend(absent.map(|name| format!("{name} is missing")));
    findings
}

/// A page of an error whose code is gone.
fn unused_page(path: &str, codes: &str) -> Option<String> {
    let name = path.strip_prefix(ERRORS)?.strip_suffix(".md")?;
    (name != "README" && !codes.contains(&format!("\"{name}\"")))
        .then(|| format!("{path}: no code has this page"))
}

/// A page that the book does not have.
fn page_without_entry(path: &str, summary: &str) -> Option<String> {
    let page = match path.strip_prefix(ERRORS) {
        Some(page) => format!("errors/{page}"),
        None => path.strip_prefix("docs/")?.to_owned(),
    };
    let is_page = page.ends_with(".md") && path != SUMMARY;
    (is_page && !summary.contains(&format!("({page})")))
        .then(|| format!("{path}: {SUMMARY} does not name it"))
}

/// The changelog speaks of what was, so it is not looked at.
fn is_prose(path: &str) -> bool {
    path.ends_with(".md")
        && (path.starts_with("docs/") || path.starts_with(ERRORS) || !path.contains('/'))
        && path != "CHANGELOG.md"
}

/// What stands in back quotes and looks like a path of this tree.
fn quoted_paths(text: &str) -> Vec<&str> {
    const AREAS: &[&str] =
        &["framework/", "adapters/", "migrations/", "examples/", "tests/", "docs/", ".ci/", ".cargo/"];
    let mut fenced = false;
    let mut paths = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2);
        let plain = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        paths.extend(quoted.filter(plain).filter(|path| AREAS.iter().any(|area| path.starts_with(area))));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> TextFile {
        TextFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn each_rule_finds_a_planted_page() {
        let files = [
            file(CODES, "SLOT_LOST = 40, \"slot-lost\", …"),
            file("framework/core/errors/slot-lost.md", ""),
            file("framework/core/errors/slot-found.md", ""),
            file(
                "docs/start.md",
                "see `docs/here.md`, `docs/gone.md` and `docs/<name>.md`\n```\n`docs/fenced.md`\n```",
            ),
            file(
                "docs/SUMMARY.md",
                "[Start](start.md) [Lost](errors/slot-lost.md) [Found](errors/slot-found.md)",
            ),
            file("docs/unlisted.md", ""),
            file("LICENSE-MIT", ""),
        ];
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("docs")).unwrap();
        std::fs::write(root.path().join("docs/here.md"), "").unwrap();
        assert_eq!(
            findings(&files, root.path()),
            [
                "framework/core/errors/slot-found.md: no code has this page",
                "docs/start.md: there is no `docs/gone.md`",
                "docs/unlisted.md: docs/SUMMARY.md does not name it",
                "LICENSE-APACHE is missing",
            ]
        );
    }
}
