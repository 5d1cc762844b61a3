//! The question (docs/features.md).

use std::fmt::Write;

use serde_json::{Value, json};

use super::super::accumulate::sequence_hash;
use super::super::dashboard::{Dashboard, Example, N_INTERVALS, WINDOW_AFTER, WINDOW_BEFORE};
use super::super::files::FeatureSet;
use super::super::labels::Labelled;
use super::super::pushes::{Push, Pushes};
use super::super::report::FeatureId;
use crate::error::Result;

/// Logits that are shown.
pub(super) const N_LOGITS: usize = 10;

/// Strongest examples, and sampled ones.
const N_TOP: usize = 10;
const N_SAMPLED: usize = 6;

/// What the service is told first.
const SYSTEM: &str = "\
You name features of a language model. A feature is active on some tokens of a text. You see examples: the tokens that \
it is active on stand in << >>, and the number says how strongly, from 1 to 10. You \
also see which next tokens it makes likelier.

Answer with one JSON object and nothing else:
{\"label\": \"...\", \"on\": [...], \"after\": [...], \"soon_after\": [...], \"before\": [...]}

label: at most eight words on what the feature is active on, as a person would say it, without \"feature\" or \"tokens\".
The lists say where it is active, so that the label can be tested on other text. It is taken to be active
- on the last token of each text in `on` (words or short phrases, as they are written in a text),
- right after each text in `after`, within eight tokens after each in `soon_after`, right before each in `before`.
Name all that you expect, also what the examples do not have; leave out lists that do not apply.";

/// Fewer examples are filled up with places that labels are learnt from.
const MIN_EXAMPLES: usize = 3;

/// The messages of a question about a feature. Examples from the sequences that labels are scored on are left out.
pub(super) fn messages(set: &FeatureSet, id: FeatureId, pushed: &Pushes, labelled: &Labelled) -> Result<Value> {
    let hidden = &labelled.text.scored;
    let dashboard = set.dashboard(id.layer, id.feature)?;
    let store = set.tokens();
    let is_seen = |example: &&Example| {
        let sequence = store.sequence(store.sequence_of(example.position as usize));
        !hidden.contains(&sequence_hash(sequence.map(|at| store.token(at))))
    };
    let mut text = String::from("Examples, strongest first:\n");
    let top = dashboard.top().filter(is_seen).take(N_TOP);
    let sampled = (1..=N_INTERVALS)
        .rev()
        .flat_map(|interval| dashboard.samples(interval))
        .filter(is_seen)
        .filter(|example| !example.groups.is_top())
        .take(N_SAMPLED);
    let mut n_examples = 0;
    for example in top.chain(sampled) {
        let _ = writeln!(text, "{}", shown(set, &dashboard, example));
        n_examples += 1;
    }
    if n_examples < MIN_EXAMPLES {
        let active = &labelled.active[id.layer][id.feature];
        let learnt = &active[..labelled.text.n_learnt_of(active)];
        for &position in learnt.iter().take(N_TOP) {
            let around = labelled.text.around(position as usize, WINDOW_BEFORE, WINDOW_AFTER);
            let activation = |at: usize| f32::from(u8::from(active.binary_search(&(at as u32)).is_ok()));
            let activations: Vec<f32> = around.clone().map(activation).collect();
            let texts = store.texts(around.map(|at| labelled.text.tokens[at]));
            let _ = writeln!(text, "?: {}", marked(&texts, &activations));
        }
    }
    let tokens = |list: &[Push]| -> Vec<String> { list.iter().map(|push| store.text(push.token)).collect() };
    if !pushed.top.is_empty() {
        let _ = writeln!(text, "Next tokens that it makes likelier: {}", json!(tokens(&pushed.top)));
    }
    Ok(json!([{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]))
}

/// `10: The capital of <<Texas>> is`, in one line.
fn shown(set: &FeatureSet, dashboard: &Dashboard, example: &Example) -> String {
    let window = set.window(example, usize::MAX, usize::MAX);
    let strength = (10.0 * example.value / dashboard.max.max(f32::MIN_POSITIVE)).ceil().clamp(1.0, 10.0);
    let skipped = usize::from(window.starts_sequence);
    format!("{strength}: {}", marked(&window.texts[skipped..], &window.activations[skipped..]))
}

/// Tokens in one line, those with an activation in marks.
fn marked(texts: &[String], activations: &[f32]) -> String {
    let mut line = String::new();
    for (text, &activation) in texts.iter().zip(activations) {
        // Spaces stay outside of the marks, and marks that are text are none.
        let text = text.replace("<<", "< <").replace(">>", "> >").replace('\n', "⏎");
        if activation > 0.0 {
            let word = text.trim_start();
            let spaces = &text[..text.len() - word.len()];
            let _ = write!(line, "{spaces}<<{word}>>");
        } else {
            line.push_str(&text);
        }
    }
    line
}
