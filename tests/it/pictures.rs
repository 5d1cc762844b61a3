//! Pictures of circuits: drawn whatever they hold, every text within its place.

use circuitscope::Error;
use circuitscope::circuits::collapse;
use circuitscope::graph::{Circuit, CircuitMeta, NodeId};
use circuitscope::picture::{PictureSettings, arrange, png, svg};
use resvg::usvg;

use crate::circuits::{four_alike, node};

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
