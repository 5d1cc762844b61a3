//! Who may import whom: the table of rooms in ARCHITECTURE.md, held against the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::UseTree;
use syn::visit::{self, Visit};

use crate::support::root;

/// A row of the table, for each room that it names.
#[derive(Debug)]
struct Room {
    level: usize,
    may_import: MayImport,
}

#[derive(Debug, PartialEq)]
enum MayImport {
    /// Every room of its own level and below.
    Everything,
    /// These, and rooms of level 0.
    Only(BTreeSet<String>),
}

/// Reads the table `| level | room | owns | may import |`. Names in its last column that are no rooms are other
/// crates: they are returned too.
fn read_table(architecture: &str) -> (BTreeMap<String, Room>, BTreeSet<String>) {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = architecture.lines().map(cells);
    let header = ["level", "room", "owns", "may import"];
    assert!(lines.any(|line| line == header), "ARCHITECTURE.md has a table of rooms: {header:?}");
    let rows: Vec<Vec<String>> = lines.skip(1).take_while(|line| line.len() == header.len()).collect();
    let names = |cell: &str| -> Vec<String> {
        cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).filter(|name| name != "–").collect()
    };
    let is_room: BTreeSet<String> = rows.iter().flat_map(|row| names(&row[1])).collect();
    let (mut rooms, mut crates) = (BTreeMap::new(), BTreeSet::new());
    for row in &rows {
        let level = row[0].parse().unwrap_or_else(|_| panic!("a level is a number: {row:?}"));
        for room in names(&row[1]) {
            let may_import = match row[3].as_str() {
                "everything" => MayImport::Everything,
                list => {
                    let (lower, other): (BTreeSet<_>, BTreeSet<_>) =
                        names(list).into_iter().partition(|name| is_room.contains(name));
                    crates.extend(other);
                    MayImport::Only(lower)
                }
            };
            assert!(rooms.insert(room.clone(), Room { level, may_import }).is_none(), "`{room}` is there twice");
        }
    }
    (rooms, crates)
}

fn table() -> (BTreeMap<String, Room>, BTreeSet<String>) {
    read_table(&std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap())
}

/// A file of `src`: where its module is (`["replacement", "forward"]`; `[]` for lib.rs), and its text.
struct Source {
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    sources_below(&root().join("src"), &[], &mut found);
    assert!(found.len() > 30, "the sources were found");
    found
}

fn sources_below(folder: &Path, module: &[String], found: &mut Vec<Source>) {
    let mut entries: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner = [module, std::slice::from_ref(&stem)].concat();
        if path.is_dir() {
            sources_below(&path, &inner, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let is_root = stem == "mod" || (module.is_empty() && stem == "lib");
            let module = if is_root { module.to_vec() } else { inner };
            found.push(Source { module, text: std::fs::read_to_string(&path).unwrap() });
        }
    }
}

/// Finds the first segment below the crate's root of every path that starts at `crate`, `super` or `self`.
struct Imports {
    module: Vec<String>,
    /// `*` for a glob of, or another name for, the whole crate.
    found: BTreeSet<String>,
}

impl Imports {
    fn of(source: &Source) -> BTreeSet<String> {
        let file = syn::parse_file(&source.text).unwrap_or_else(|e| panic!("{:?}: {e}", source.module));
        let mut imports = Self { module: source.module.clone(), found: BTreeSet::new() };
        imports.visit_file(&file);
        imports.found
    }

    /// Resolves a path from this module, `["super", "super", "graph"]`, to one from the crate's root; `None` for
    /// one that starts elsewhere.
    fn below_root(&self, path: &[String]) -> Option<Vec<String>> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" | "$crate" | "circuitscope" => (Vec::new(), &path[1..]),
            "self" => (self.module.clone(), &path[1..]),
            "super" => (self.module.clone(), path),
            _ => return None,
        };
        while rest.first().is_some_and(|segment| segment == "super") {
            at.pop();
            rest = &rest[1..];
        }
        Some([&at, rest].concat())
    }

    fn add(&mut self, path: &[String]) {
        self.found.extend(self.below_root(path).and_then(|below_root| below_root.first().cloned()));
    }

    /// Every leaf of a use tree below `before`.
    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |segment: &syn::Ident| [before, &[segment.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
            UseTree::Name(name) if name.ident == "self" => self.add_whole(before),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(rename) if rename.ident == "self" => self.add_whole(before),
            UseTree::Rename(rename) => self.add_whole(&with(&rename.ident)),
            UseTree::Glob(_) => self.add_whole(before),
        }
    }

    /// A module taken as a whole; the crate's root may be it.
    fn add_whole(&mut self, path: &[String]) {
        if let Some(below_root) = self.below_root(path) {
            self.found.insert(below_root.first().cloned().unwrap_or_else(|| "*".into()));
        }
    }

    /// Paths in what a macro is called with, which is not parsed: only `crate::` and `super::` are looked for.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        for (start, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                TokenTree::Ident(ident) if ident == "crate" || ident == "super" => {
                    let (mut path, mut at) = (vec![ident.to_string()], start + 1);
                    while is_colon(at) && is_colon(at + 1) {
                        match tokens.get(at + 2) {
                            Some(TokenTree::Ident(segment)) => path.push(segment.to_string()),
                            Some(TokenTree::Group(group)) => {
                                let group = TokenStream::from(TokenTree::Group(group.clone()));
                                if let Ok(tree) = syn::parse2::<UseTree>(group) {
                                    self.add_tree(&path, &tree);
                                }
                                break;
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    self.add(&path);
                }
                _ => (),
            }
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    // `pub(super)` and `pub(in crate::x)` import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// What `crate::Name` is for the names that lib.rs takes from rooms: `Error` is in `error`.
fn reexports(lib: &Source) -> BTreeMap<String, String> {
    fn leaves(room: &str, tree: &UseTree, found: &mut BTreeMap<String, String>) {
        match tree {
            UseTree::Path(path) => leaves(room, &path.tree, found),
            UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(room, tree, found)),
            UseTree::Name(name) => drop(found.insert(name.ident.to_string(), room.to_owned())),
            UseTree::Rename(rename) => drop(found.insert(rename.rename.to_string(), room.to_owned())),
            UseTree::Glob(_) => panic!("lib.rs takes everything from `{room}`: name it"),
        }
    }
    let mut found = BTreeMap::new();
    for item in syn::parse_file(&lib.text).unwrap().items {
        if let syn::Item::Use(item) = item
            && let UseTree::Path(path) = &item.tree
        {
            match (path.ident.to_string().as_str(), &*path.tree) {
                ("crate" | "self", UseTree::Path(inner)) => leaves(&inner.ident.to_string(), &inner.tree, &mut found),
                (room, tree) => leaves(room, tree, &mut found),
            }
        }
    }
    found
}

#[test]
fn rooms_import_lower_rooms_only() {
    let (rooms, _) = table();
    let sources = sources();
    let lib = sources.iter().find(|source| source.module.is_empty()).expect("lib.rs");
    let reexports = reexports(lib);
    let (mut n_imports, mut wrong) = (0, BTreeSet::new());
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let room = &source.module[0];
        let row = rooms.get(room).unwrap_or_else(|| panic!("`{room}` is not in ARCHITECTURE.md's table of rooms"));
        for name in Imports::of(source) {
            let import = reexports.get(&name).unwrap_or(&name);
            if import == room {
                continue;
            }
            n_imports += 1;
            let is_fine = match (rooms.get(import), &row.may_import) {
                (None, MayImport::Everything) => import == "*",
                (None, MayImport::Only(_)) => false,
                (Some(imported), MayImport::Everything) => imported.level <= row.level,
                (Some(imported), MayImport::Only(lower)) => imported.level == 0 || lower.contains(import),
            };
            if !is_fine {
                wrong.insert(format!("`{}` imports `{import}`", source.module.join("::")));
            }
        }
    }
    assert!(n_imports > 50, "only {n_imports} imports were found");
    assert!(wrong.is_empty(), "not in ARCHITECTURE.md's table of rooms: {wrong:#?}");
}

#[test]
fn the_table_of_rooms_names_what_is_in_the_sources_and_lower_rooms() {
    let (rooms, crates) = table();
    let in_sources: BTreeSet<String> = sources().into_iter().filter_map(|s| s.module.into_iter().next()).collect();
    let in_table: BTreeSet<String> = rooms.keys().cloned().collect();
    assert_eq!(in_table, in_sources, "rooms in ARCHITECTURE.md's table, and folders and files in src");
    for (room, Room { level, may_import }) in &rooms {
        let MayImport::Only(lower) = may_import else { continue };
        for import in lower {
            assert!(rooms[import].level < *level, "`{room}` of level {level} may import `{import}`");
        }
    }
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in crates {
        let is_dependency = manifest.lines().any(|line| line.starts_with(&name) && line.contains('='));
        assert!(is_dependency, "`{name}` in ARCHITECTURE.md's table is neither a room nor a dependency");
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let text = r#"
        use crate::{Error, prune::{self, x}, graph::{A, B as C}};
        use super::super::export::*;
        // crate::comment
        pub(in crate::visibility) fn f(y: crate::labels::Labels) -> super::sibling::S {
            let z = crate::intervene::z::<crate::circuits::T>();
            println!("crate::text {}", crate::attribution::N);
            some!({ use crate::{ops, model::M}; super::sibling::y() });
            mod inner { use super::super::super::picture; use super::own; }
        }
        macro_rules! m { () => { $crate::transcoder::t() } }
    "#;
    let module = ["weights", "file"].map(str::to_owned).to_vec();
    let found = Imports::of(&Source { module, text: text.to_owned() });
    let expected = [
        "Error",
        "attribution",
        "circuits",
        "export",
        "graph",
        "intervene",
        "labels",
        "model",
        "ops",
        "picture",
        "prune",
        "transcoder",
        "weights",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
    for text in ["use crate::*;", "use crate as c;", "use crate::{self as c};"] {
        let found = Imports::of(&Source { module: vec!["ops".to_owned()], text: text.to_owned() });
        assert_eq!(found, ["*".to_owned()].into(), "{text}");
    }
}

#[test]
fn the_table_of_rooms_is_read_as_written() {
    let text = "text\n\n| level | room | owns | may import |\n| --- | --- | --- | --- |\n| 0 | `error` | x | – |\n\
                | 2 | `a`, `b` | y | error, candle |\n| 3 | `cli` | z | everything |\n\nmore";
    let (rooms, crates) = read_table(text);
    assert_eq!(rooms.keys().collect::<Vec<_>>(), ["a", "b", "cli", "error"]);
    assert_eq!(rooms["b"].level, 2);
    assert_eq!(rooms["a"].may_import, MayImport::Only(["error".to_owned()].into()));
    assert_eq!(rooms["cli"].may_import, MayImport::Everything);
    assert_eq!(crates, ["candle".to_owned()].into());
}

#[test]
fn the_feature_cuda_shows_in_ops_and_the_build_script_alone() {
    for source in sources() {
        let is_ops = source.module.first().is_some_and(|room| room == "ops");
        assert!(is_ops || !source.text.contains("feature = \"cuda\""), "the feature shows in {:?}", source.module);
    }
}
