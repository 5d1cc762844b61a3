//! Every `unsafe` of the library is listed in `docs/reliability.md`, with its number and what was run over it, and has
//! its reason beside it.

use std::collections::BTreeMap;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use crate::support::root;

/// How often code says `unsafe`, comments and texts apart.
fn count(tokens: TokenStream) -> usize {
    let of = |tree| match tree {
        TokenTree::Group(group) => count(group.stream()),
        TokenTree::Ident(word) => usize::from(word == "unsafe"),
        _ => 0,
    };
    tokens.into_iter().map(of).sum()
}

fn count_in(folder: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let tokens = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            found.insert(name, count(tokens));
        }
    }
}

#[test]
fn what_says_unsafe_is_counted() {
    let code = r#"unsafe fn a() {} // unsafe
        /// unsafe
        fn b() { let _ = "unsafe"; unsafe { a() } }"#;
    assert_eq!(count(code.parse().unwrap()), 2);
}

#[test]
fn every_unsafe_is_on_the_list() {
    let mut found = BTreeMap::new();
    count_in(&root().join("src"), &mut found);
    found.retain(|_, n| *n > 0);
    let page = std::fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let mut listed = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `src/")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(cells.len() >= 6 && cells[3..5].iter().all(|cell| !cell.is_empty()), "{line}");
        listed.insert(cells[1].trim_matches('`').to_owned(), cells[2].parse::<usize>().unwrap());
    }
    assert!(listed.len() > 10, "the list was found");
    assert_eq!(found, listed, "left: in the code, right: in docs/reliability.md");
}

#[test]
fn an_unsafe_without_its_reason_is_refused() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("[lints.clippy]\nundocumented_unsafe_blocks = \"deny\""));
}
