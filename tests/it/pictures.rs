//! Pictures of circuits: drawn whatever they hold, every text within its place, every edge to be followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use circuitscope::Error;
use circuitscope::circuits::collapse;
use circuitscope::graph::{Circuit, CircuitMeta, Link, Node, NodeId};
use circuitscope::picture::{
    Arrangement, BoxKind, DrawnBox, HeatMap, PictureSettings, arrange, characters_without_font, heat_map, png, svg,
};
use proptest::prelude::*;
use resvg::usvg;

use crate::circuits::{any_circuit, four_alike, node};
use crate::docs::{is_same, words};
use crate::support::{circuitscope, file_named_by, root, shared};

#[test]
fn pictures_of_little_and_of_other_scripts_are_drawn() {
    let empty = Circuit::new(CircuitMeta::default(), Vec::new(), Vec::new()).unwrap();
    let mut foreign = node(NodeId::Token { pos: 0 }, 0);
    foreign.text = "首都 \u{1}\n".to_owned();
    let foreign = Circuit::new(CircuitMeta::default(), vec![foreign], Vec::new()).unwrap();
    for circuit in [empty, foreign] {
        let view = collapse(&circuit, &[]).unwrap();
        let picture = svg(&circuit, &view, &arrange(&circuit, &view, &PictureSettings::default()));
        assert!(png(&picture, 1.0).unwrap().starts_with(b"\x89PNG"));
    }
    assert!(matches!(png("no picture", 1.0), Err(Error::Picture { .. })));
}

/// Every text of a picture with the room that it really takes: left, top, right, bottom.
fn texts(group: &usvg::Group, found: &mut Vec<(String, [f32; 4])>) {
    for node in group.children() {
        match node {
            usvg::Node::Group(group) => texts(group, found),
            usvg::Node::Text(text) => {
                let room = node.abs_bounding_box();
                let content: String = text.chunks().iter().map(|chunk| chunk.text()).collect();
                found.push((content, [room.left(), room.top(), room.right(), room.bottom()]));
            }
            _ => {}
        }
    }
}

#[test]
fn labels_stay_within_their_boxes_and_the_picture() {
    let mut circuit = four_alike();
    let labels = [
        "say a capital (at \"is\"), WWW MMMM @@@@",
        "immediately-without-any-space-in-it-at-all",
        "Straße, Ελλάδα, Россия",
        "x",
    ];
    circuit.set_labels(|_, feature| Some(labels[feature as usize].to_owned()));
    circuit.meta.prompt =
        "A prompt that is much longer than the picture of so few nodes is wide, so that it has to be cut".to_owned();
    let view = collapse(&circuit, &[]).unwrap();
    let arrangement = arrange(&circuit, &view, &PictureSettings::default());
    let picture = svg(&circuit, &view, &arrangement);
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/picture/sans.ttf")).unwrap());
    fonts.set_sans_serif_family("DejaVu Sans");
    let options = usvg::Options { fontdb: std::sync::Arc::new(fonts), ..usvg::Options::default() };
    let mut found = Vec::new();
    texts(usvg::Tree::from_str(&picture, &options).unwrap().root(), &mut found);
    assert!(found.len() > 8);
    for (text, [left, top, right, bottom]) in &found {
        let is_inside =
            *left >= 0.0 && *top >= 0.0 && *right <= arrangement.width as f32 && *bottom <= arrangement.height as f32;
        assert!(is_inside, "{text:?} at {left} to {right}, {top} to {bottom}");
    }
    for drawn in &arrangement.boxes {
        for line in &drawn.lines {
            let room = found.iter().find(|(text, [left, top, ..])| {
                text.trim() == line.trim()
                    && f64::from(*left) > drawn.x - 20.0
                    && f64::from(*left) < drawn.x + drawn.width
                    && f64::from(*top) > drawn.y - 5.0
                    && f64::from(*top) < drawn.y + drawn.height
            });
            let (_, [left, top, right, bottom]) = room.unwrap_or_else(|| panic!("{line:?} is not in {found:?}"));
            let fits = f64::from(*left) >= drawn.x && f64::from(*right) <= drawn.x + drawn.width;
            assert!(
                fits && f64::from(*top) >= drawn.y && f64::from(*bottom) <= drawn.y + drawn.height,
                "{line:?} {drawn:?}"
            );
        }
    }
}

fn arranged(circuit: &Circuit) -> Arrangement {
    arrange(circuit, &collapse(circuit, &[]).unwrap(), &PictureSettings::default())
}

fn feature(layer: u32, pos: u32, feature: u32, label: Option<&str>) -> Node {
    Node { label: label.map(str::to_owned), ..node(NodeId::Feature { layer, pos, feature }, pos) }
}

/// A token at every position, these features, one target that all of them feed; every feature is fed by its token.
fn fan(n_pos: u32, features: Vec<Node>) -> Circuit {
    let n_pos_usize = n_pos as usize;
    let mut nodes: Vec<Node> = (0..n_pos).map(|pos| node(NodeId::Token { pos }, pos)).collect();
    nodes.extend(features);
    let target = nodes.len();
    nodes.push(node(NodeId::Target { index: 0 }, n_pos - 1));
    let mut links: Vec<Link> =
        (0..target).map(|source| Link { source, target, weight: 1.0 + source as f32 / 64.0 }).collect();
    let of_feature = |at: usize| Link { source: nodes[at].pos as usize, target: at, weight: -1.0 };
    links.extend((n_pos_usize..target).map(of_feature));
    let meta = CircuitMeta { prompt: " word".repeat(n_pos_usize), n_layers: 30, ..CircuitMeta::default() };
    Circuit::new(meta, nodes, links).unwrap()
}

#[test]
fn features_that_say_the_same_at_one_place_are_one_box_with_their_number() {
    let labels = [Some("capital"), Some("capital"), Some("capital"), Some("Texas"), None, None, None];
    let features = (0..).zip(labels).map(|(at, label)| feature(1, 0, at, label));
    let circuit = fan(2, features.chain([feature(1, 1, 9, Some("capital"))]).collect());
    let drawn = arranged(&circuit);
    let mut texts: Vec<(String, usize)> = Vec::new();
    for drawn in drawn.boxes.iter().filter(|drawn| drawn.kind == BoxKind::Feature) {
        texts.push((drawn.lines.join(" "), drawn.n_nodes));
        let share = drawn.share.unwrap();
        assert!(drawn.small_print.contains(" %") && share > 0.0 && share < 1.0, "{drawn:?}");
    }
    texts.sort();
    // Two without a label are strong enough to stand alone; a rest of one does so anyway.
    let expected = [("1_4_0", 1), ("1_5_0", 1), ("1_6_0", 1), ("3× capital", 3), ("Texas", 1), ("capital", 1)];
    assert_eq!(texts, expected.map(|(text, n)| (text.to_owned(), n)));
    let picture = svg(&circuit, &collapse(&circuit, &[]).unwrap(), &drawn);
    assert!(picture.contains("several nodes, merged") && picture.contains("1_2_0…"), "{picture}");

    // Weights of what a box merges add up, and so do shares.
    let stack = drawn.boxes.iter().position(|drawn| drawn.n_nodes == 3).unwrap();
    let target = drawn.boxes.iter().position(|drawn| drawn.kind == BoxKind::Target).unwrap();
    let edge = drawn.edges.iter().find(|edge| (edge.source, edge.target) == (stack, target)).unwrap();
    let weights: Vec<f64> = (0..10).map(|source| 1.0 + f64::from(source) / 64.0).collect();
    let sum: f64 = weights[2..5].iter().sum();
    assert!((edge.weight - sum).abs() < 1e-6 && (edge.share - sum / weights.iter().sum::<f64>()).abs() < 1e-6);
}

#[test]
fn edges_of_next_to_no_share_are_drawn_and_said() {
    let nodes =
        vec![feature(0, 0, 0, Some("weak")), node(NodeId::Token { pos: 1 }, 1), node(NodeId::Target { index: 0 }, 1)];
    let links = [(1, 1.0), (0, 4e-4)].map(|(source, weight)| Link { source, target: 2, weight });
    let circuit = Circuit::new(CircuitMeta::default(), nodes, links.to_vec()).unwrap();
    let view = collapse(&circuit, &[]).unwrap();
    let settings = PictureSettings { edge_share: 1.0, max_inputs: 9, ..Default::default() };
    let picture = svg(&circuit, &view, &arrange(&circuit, &view, &settings));
    usvg::roxmltree::Document::parse(&picture).unwrap();
    assert!(picture.contains("&lt;0.1 % of its input"), "{picture}");
}

fn targets_of(drawn: &Arrangement) -> impl Iterator<Item = &DrawnBox> {
    drawn.boxes.iter().filter(|drawn| drawn.kind == BoxKind::Target)
}

#[test]
fn a_difference_of_logits_shows_no_probability() {
    let mut target = node(NodeId::Target { index: 0 }, 0);
    (target.token_id, target.probability) = (Some(-1), Some(1.0));
    let links = [Link { source: 0, target: 1, weight: 1.0 }];
    let nodes = vec![node(NodeId::Token { pos: 0 }, 0), target];
    let circuit = Circuit::new(CircuitMeta::default(), nodes, links).unwrap();
    assert_eq!(targets_of(&arranged(&circuit)).next().unwrap().small_print, "");
}

#[test]
fn unlikely_targets_are_left_out_and_counted() {
    let probabilities = [0.7, 0.1, 0.02, 0.01, 0.001];
    let mut nodes = vec![node(NodeId::Token { pos: 0 }, 0)];
    nodes.extend((0..).zip(probabilities).map(|(index, probability)| {
        let text = format!(" t{index}");
        Node { probability: Some(probability), text, ..node(NodeId::Target { index }, 0) }
    }));
    let links = (1..6usize).map(|target| Link { source: 0, target, weight: 1.0 });
    let circuit = Circuit::new(CircuitMeta::default(), nodes, links).unwrap();
    let view = collapse(&circuit, &[]).unwrap();
    for (target_share, shown) in [(0.05, 2), (0.0, 5), (0.5, 1), (1.0, 1)] {
        let drawn = arrange(&circuit, &view, &PictureSettings { target_share, ..PictureSettings::default() });
        let texts: Vec<&str> = targets_of(&drawn).map(|drawn| drawn.lines[0].as_str()).collect();
        assert_eq!(texts, ["t0", "t1", "t2", "t3", "t4"][..shown]);
        assert_eq!(drawn.hidden.targets, 5 - shown);
        let picture = svg(&circuit, &view, &drawn);
        assert!(picture.contains("p = 0.70"));
        assert!(targets_of(&drawn).all(|drawn| drawn.small_print.starts_with("p = ")));
        assert_eq!(picture.contains(&format!("{} less likely target", 5 - shown)), shown < 5);
    }
}

#[test]
fn long_prompts_and_deep_models_keep_to_a_page_and_lose_no_token() {
    let features = (0..300).flat_map(|pos| (0..4).map(move |at| feature((pos * 7 + at * 11) % 30, pos, at, None)));
    let circuit = fan(300, features.collect());
    let drawn = arranged(&circuit);
    assert!(drawn.width <= 940.0 && drawn.height <= 1.5 * drawn.width, "{} × {}", drawn.width, drawn.height);
    let tokens = drawn.boxes.iter().filter(|drawn| drawn.kind == BoxKind::Token);
    assert_eq!(tokens.map(|drawn| drawn.n_nodes).sum::<usize>(), 300);
    let features = drawn.boxes.iter().filter(|drawn| drawn.kind == BoxKind::Feature);
    assert_eq!(features.map(|drawn| drawn.n_nodes).sum::<usize>() + drawn.hidden.nodes, 1200);
    assert!(drawn.rows.len() <= 9, "{:?}", drawn.rows);
    assert!(svg(&circuit, &collapse(&circuit, &[]).unwrap(), &drawn).len() < 200_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// What cannot be told apart cannot be followed: edges have ports of their own, and arrive and leave upright.
    #[test]
    fn no_two_edges_share_a_port(circuit in any_circuit(20..120)) {
        let drawn = arranged(&circuit);
        let mut ports: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
        for edge in &drawn.edges {
            let (first, last) = (edge.curve[0], edge.curve[edge.curve.len() - 1]);
            prop_assert!(first[0].0 == first[1].0 && last[2].0 == last[3].0, "{edge:?} is not upright at its ends");
            for pair in edge.curve.windows(2) {
                prop_assert_eq!(pair[0][3], pair[1][0], "the curve has a gap");
            }
            for (at, (x, y)) in [(edge.source, first[0]), (edge.target, last[3])] {
                ports.entry((at, y == drawn.boxes[at].y)).or_default().push(x);
            }
        }
        for places in ports.values_mut() {
            places.sort_by(f64::total_cmp);
            prop_assert!(places.windows(2).all(|pair| pair[1] - pair[0] > 1.0), "{places:?}");
        }
        // The same circuit gives the same picture.
        prop_assert_eq!(&arranged(&circuit), &drawn);
    }
}

/// Boxes in a row with gaps, and edges that must all pass the same gaps.
#[test]
fn edges_that_pass_one_gap_have_lanes_of_their_own() {
    // At every position an early feature and, above it, three rows that are in the way of its edge to the target.
    let features = (0..4).flat_map(|layer| (0..6).map(move |pos| feature(layer, pos, 0, Some("in the way"))));
    let circuit = fan(6, features.collect());
    let settings = PictureSettings { max_inputs: 99, edge_share: 1.0, ..PictureSettings::default() };
    let drawn = arrange(&circuit, &collapse(&circuit, &[]).unwrap(), &settings);
    let at = |edge: &circuitscope::picture::DrawnEdge, y: f64| {
        let points = edge.sampled(200);
        points.windows(2).find(|pair| pair[1].1 <= y && y <= pair[0].1).map(|pair| pair[0].0)
    };
    let mut n_passing = 0;
    for row in ["L1", "L2"] {
        let (_, top, bottom) = drawn.rows.iter().find(|(name, ..)| name == row).unwrap();
        let passes = |edge: &&circuitscope::picture::DrawnEdge| {
            let y = |at: usize| drawn.boxes[at].y;
            y(edge.source) > *bottom && y(edge.target) < *top
        };
        let mut places: Vec<f64> =
            drawn.edges.iter().filter(passes).filter_map(|edge| at(edge, (top + bottom) / 2.0)).collect();
        places.sort_by(f64::total_cmp);
        n_passing += places.len();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] > 1.5), "{row}: {places:?}");
    }
    assert!(n_passing >= 12, "only {n_passing} edges pass a row");
}

#[test]
fn a_script_without_a_font_is_named_below_the_picture() {
    // U+E123 is for private use: no font has it.
    let mut token = node(NodeId::Token { pos: 0 }, 0);
    token.text = "a\u{E123}b".to_owned();
    let circuit = Circuit::new(CircuitMeta::default(), vec![token], Vec::new()).unwrap();
    let view = collapse(&circuit, &[]).unwrap();
    let picture = svg(&circuit, &view, &arrange(&circuit, &view, &PictureSettings::default()));
    assert_eq!(characters_without_font(&picture).unwrap(), "\u{E123}");
    let height = |bytes: &[u8]| u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    let without = picture.replace('\u{E123}', "x");
    assert_eq!(characters_without_font(&without).unwrap(), "");
    assert!(height(&png(&picture, 2.0).unwrap()) >= height(&png(&without, 2.0).unwrap()) + 30, "there is no note");
}

fn small_map() -> HeatMap {
    HeatMap {
        title: "When <Mary> & John".to_owned(),
        quantity: "direct effect on \" Mary\"".to_owned(),
        rows: vec!["tokens".to_owned(), "L0".to_owned()],
        columns: vec![" Mary".to_owned(), " and".to_owned(), " John\n".to_owned()],
        values: vec![2.0, -1.0, 0.0, 0.001, -2.0, 0.5],
    }
}

#[test]
fn heat_maps_show_every_value_with_its_sign() {
    let map = small_map();
    let picture = heat_map(&map).unwrap();
    assert_eq!(picture, heat_map(&map).unwrap());
    let document = usvg::roxmltree::Document::parse(&picture).unwrap();
    let cells: Vec<(f64, f64, String, String)> = document
        .descendants()
        .filter(|node| node.has_tag_name("rect"))
        .filter_map(|rect| {
            let title = rect.children().find(|child| child.has_tag_name("title"))?.text()?.to_owned();
            let number = |name: &str| rect.attribute(name).unwrap().parse().unwrap();
            Some((number("x"), number("y"), rect.attribute("fill").unwrap().to_owned(), title))
        })
        .collect();
    assert_eq!(cells.len(), 6);
    let cell = |title: &str| cells.iter().find(|cell| cell.3.starts_with(title)).unwrap_or_else(|| panic!("{title}"));
    // Rows go upwards, columns to the right.
    assert!(cell("Mary, L0").1 < cell("Mary, tokens").1 && cell("Mary, L0").0 < cell("and, L0").0);
    assert!(cell("Mary, tokens").3.ends_with("+2.0000") && cell("and, L0").3.ends_with("-2.0000"));
    let channels = |fill: &str| -> Vec<u8> {
        (1..7).step_by(2).map(|at| u8::from_str_radix(&fill[at..at + 2], 16).unwrap()).collect()
    };
    let (most, least) = (channels(&cell("Mary, tokens").2), channels(&cell("and, L0").2));
    assert!(most[2] > most[0] + 80 && least[0] > least[2] + 80, "blue is positive, orange negative");
    assert_eq!(cell("John↵, tokens").2, "#ffffff", "zero is white");
    assert!(channels(&cell("and, tokens").2)[2] > least[2], "half as much is paler");
    assert!(png(&picture, 1.0).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn long_heat_maps_go_on_in_panels_and_bad_ones_are_refused() {
    let columns: Vec<String> = (0..150).map(|at| format!(" token{at}")).collect();
    let rows: Vec<String> = (0..31).map(|at| format!("L{at}")).collect();
    let values: Vec<f64> = (0..150 * 31).map(|at| f64::from(at % 17) - 8.0).collect();
    let long = HeatMap { rows, columns, values, ..small_map() };
    let picture = heat_map(&long).unwrap();
    let width: f64 = picture.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    assert!(width <= 900.0, "{width}");
    assert_eq!(picture.matches("<title>").count(), 150 * 31);
    assert!(!heat_map(&HeatMap::default()).unwrap().contains("NaN"));

    let short = HeatMap { values: vec![1.0; 5], ..small_map() };
    let message = heat_map(&short).unwrap_err().to_string();
    assert!(message.contains("[2, 3]") && message.contains("[5]"), "{message}");
    let endless = HeatMap { values: vec![0.0, 1.0, f64::NAN, 0.0, 0.0, 0.0], ..small_map() };
    assert!(matches!(heat_map(&endless), Err(Error::GraphNotFinite { index: 2, .. })));
    let many = vec!["x".to_owned(); 1_000];
    let huge = HeatMap { rows: many.clone(), columns: many, values: vec![0.0; 1_000_000], ..small_map() };
    assert!(matches!(heat_map(&huge), Err(Error::Picture { .. })));
}

const GALLERY: &str = "docs/gallery";

/// The commands of each block of the gallery's page, as words.
fn gallery_blocks() -> Vec<Vec<Vec<String>>> {
    let page = std::fs::read_to_string(root().join(GALLERY).join("README.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands = |block: &str| {
        let mut commands = Vec::new();
        let mut command = String::new();
        for line in block.lines() {
            command = if command.is_empty() { line.to_owned() } else { format!("{command}\n{line}") };
            if let Some(words) = words(&command) {
                commands.push(words);
                command.clear();
            }
        }
        assert!(command.is_empty(), "half a command: {command}");
        commands
    };
    blocks.map(commands).collect()
}

/// Runs the blocks of the gallery that need the real model, or those that do not, and compares the pictures with those
/// that are kept, as pages are compared with what is printed: another CPU may round a last decimal otherwise.
fn compare_gallery(is_real: bool, value_of: impl Fn(&str) -> String) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut compared = BTreeSet::new();
    for block in gallery_blocks() {
        if block.iter().flatten().any(|word| word == "--model") != is_real {
            continue;
        }
        for command in block {
            assert_eq!(command[0], "circuitscope");
            let args: Vec<String> = command[1..].iter().map(|word| value_of(word)).collect();
            let output = circuitscope(folder.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            if let Some(name) = args.iter().find(|word| word.ends_with(".svg")) {
                let read = |path: &Path| std::fs::read_to_string(path.join(name)).unwrap();
                let (kept, drawn) = (read(&root().join(GALLERY)), read(folder.path()));
                let differs = kept.lines().zip(drawn.lines()).find(|(kept, drawn)| !is_same(kept, drawn));
                assert_eq!(differs, None, "{name} is not what is drawn; draw it again, and look at it");
                assert_eq!(kept.lines().count(), drawn.lines().count(), "{name}");
                compared.insert(name.clone());
            }
        }
    }
    compared
}

fn gallery_files() -> BTreeMap<String, u64> {
    let entries = root().join(GALLERY).read_dir().unwrap().map(|entry| entry.unwrap());
    let sizes = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()));
    sizes.filter(|(name, _)| name.ends_with(".svg")).collect()
}

#[test]
fn the_gallery_holds_what_the_program_draws() {
    let compared = compare_gallery(false, str::to_owned);
    assert!(compared.len() >= 4, "{compared:?}");
    let files = gallery_files();
    assert!(files.values().sum::<u64>() < 600_000, "{files:?}");
    let page = std::fs::read_to_string(root().join(GALLERY).join("README.md")).unwrap();
    for name in files.keys() {
        assert!(page.contains(&format!("]({name})")) && page.contains(&format!("-o {name}")), "{name} is not shown");
    }
}

#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_Q4_1_GGUF (SmolLM2-135M-Instruct.Q4_1.gguf, of the README) and CIRCUITSCOPE_SHARED (smollm2/ with its transcoders): cargo test --release --test it -- --ignored the_gallery_of_the_real_model"]
fn the_gallery_of_the_real_model_holds_what_the_program_draws() {
    let (model, transcoders) = (file_named_by("CIRCUITSCOPE_SMOLLM2_Q4_1_GGUF"), shared("smollm2/transcoders"));
    let compared = compare_gallery(true, |word| match word {
        "$M" => model.to_str().unwrap().to_owned(),
        "$T" => transcoders.to_str().unwrap().to_owned(),
        word => word.to_owned(),
    });
    assert!(compared.len() >= 4, "{compared:?}");
}
