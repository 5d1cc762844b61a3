//! Graphs, and what is chosen in them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use circuitscope::attribution::{AttributionOptions, RowChoice, Visits};
use circuitscope::circuits::{
    GroupRequest, Opening, SharedView, SummarySettings, collapse, open_graph, prune_raw, summarize, summarize_with_raw,
};
use circuitscope::export::{read_raw, stream_wire};
use circuitscope::job::{CancelToken, Job};
use circuitscope::picture::{PictureSettings, arrange, svg};
use circuitscope::prune::PruneSettings;
use circuitscope::tracer::FinishedFile;
use serde_json::{Value, json};

use crate::mutate::Form;
use crate::seeds;
use crate::targets::{Target, in_folder};
use crate::tiny::Tiny;

/// A raw graph: read, pruned, summarised.
pub fn raw() -> Target {
    let (path, write) = in_folder("a.safetensors");
    let seeds = [seeds::graphs().0, seeds::graphs_of_every_kind().0].concat();
    Target::new(Form::Safetensors, seeds, move |input| {
        write(input);
        let Ok(graph) = read_raw(&path) else { return false };
        let Ok(circuit) = prune_raw(&graph, &PruneSettings::default()) else { return false };
        let settings = SummarySettings::default();
        summarize(&circuit, &settings).is_ok() && summarize_with_raw(&circuit, &graph, &settings).is_ok()
    })
}

/// How finished rows are kept here, and which graph they are of.
fn options(path: &Path, every: Duration) -> AttributionOptions {
    AttributionOptions {
        rows: RowChoice::Sampled { visits: Visits::Rows(4), nodes: Some(3) },
        finished: Some(Arc::new(FinishedFile::every(path, every))),
        ..AttributionOptions::default()
    }
}

/// Finished rows: read, and the trace that they are of goes on from them.
pub fn finished_rows() -> Target {
    let tracer = Tiny::make().tracer();
    let (path, write) = in_folder("a.rows");
    let tokens = [0u32, 1, 2, 1];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    // What traces leave that end after one report, two, and so on.
    for reports in 1.. {
        let _ = std::fs::remove_file(&path);
        let (told, token) = (AtomicUsize::new(0), CancelToken::default());
        let job = Job::default().with_cancel(token.clone()).with_progress(move |_| {
            if told.fetch_add(1, Ordering::Relaxed) + 1 >= reports {
                token.cancel();
            }
        });
        let is_whole = tracer.trace_with(&tokens[..], &options(&path, Duration::ZERO), &job).is_ok();
        seeds.extend(std::fs::read(&path).ok().filter(|bytes| !seeds.contains(bytes)));
        if is_whole {
            break;
        }
    }
    Target::new(Form::Safetensors, seeds, move |input| {
        write(input);
        tracer.trace_with(&tokens[..], &options(&path, Duration::MAX), &Job::default()).is_ok()
    })
}

/// A JSON graph: read, drawn, summarised. What a terminal would obey is in no picture.
pub fn json_graph() -> Target {
    let (path, write) = in_folder("a.json");
    let seeds = [vec![seeds::graphs().1], seeds::graphs_of_every_kind().1].concat();
    Target::new(Form::Json, seeds, move |input| {
        write(input);
        let Ok(circuit) = stream_wire(&path, None).and_then(|graph| graph.circuit()) else { return false };
        let Ok(view) = collapse(&circuit, &[]) else { return false };
        let picture = svg(&circuit, &view, &arrange(&circuit, &view, &PictureSettings::default()));
        assert!(!picture.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "a picture holds text that a terminal obeys");
        summarize(&circuit, &SummarySettings::default()).is_ok()
    })
}

/// A file of supernodes for a JSON graph.
pub fn groups() -> Target {
    let (path, write) = in_folder("groups.json");
    let graph = path.with_file_name("graph.json");
    std::fs::write(&graph, seeds::graphs().1).expect("the folder can be written");
    let opened = open_graph(&graph, &Opening::new(None, None).expect("no thresholds")).expect("a graph");
    let circuit = &opened.circuit;
    let ids: Vec<String> = circuit.graph().node_weights().take(3).map(|node| node.id.to_string()).collect();
    let lists = json!([["a", ids[0]], ["b", ids[1], ids[2]]]);
    let by_name = json!({"a": [ids[0], ids[1]], "b": [ids[2]]});
    let graph = json!({"qParams": {"supernodes": lists}, "nodes": []});
    let seeds = [lists, by_name, graph].iter().map(|seed| serde_json::to_vec(seed).expect("JSON")).collect();
    let request = GroupRequest { file: Some(path), ..GroupRequest::default() };
    Target::new(Form::Json, seeds, move |input| {
        write(input);
        request.supernodes(&opened).is_ok_and(|groups| collapse(&opened.circuit, &groups).is_ok())
    })
}

/// The address of a graph's page, for a JSON graph.
pub fn address() -> Target {
    let (path, write) = in_folder("graph.json");
    write(&seeds::graphs().1);
    let opened = open_graph(&path, &Opening::new(None, None).expect("no thresholds")).expect("a graph");
    let circuit = &opened.circuit;
    let ids: Vec<String> = circuit.graph().node_weights().take(4).map(|node| node.id.to_string()).collect();
    let encoded = |value: Value| value.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let groups = encoded(json!([["a", ids[0]], ["b", ids[1], ids[2]]]));
    let labels = encoded(json!([[ids[3], "a label"], [12, "by number"]]));
    let seeds = [
        format!(
            "https://x.org/gpt2/graph?slug=a&pinnedIds={},{}&supernodes={groups}&clerps={labels}#x",
            ids[0], ids[1]
        ),
        format!("?supernodes=[[\"a\",\"{}\"]]", ids[1]),
    ];
    Target::new(Form::Text, seeds.map(String::into_bytes).into(), move |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(view) = SharedView::parse(text) else { return false };
        let mut labelled = opened.circuit.clone();
        view.relabel(&mut labelled);
        let _ = view.pinned_in(&labelled);
        let request = GroupRequest { shared: Some(view), ..GroupRequest::default() };
        request.supernodes(&opened).is_ok_and(|groups| collapse(&labelled, &groups).is_ok())
    })
}
