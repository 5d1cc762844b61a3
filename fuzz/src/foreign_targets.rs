//! Features and their names in the files of other programs, and what lists graphs.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use circuitscope::batch::Index;
use circuitscope::export::{list_graphs, read_wire};
use circuitscope::features::{Bundle, ExportFormat, FeatureSet, INDEX_FILE, ImportOptions, export, import, read_names};
use circuitscope::job::Job;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::feature_targets::{collected, look_at};
use crate::hub::walk;
use crate::mutate::Form;
use crate::seeds;
use crate::targets::{Target, folder_in_memory, in_folder};
use crate::tiny::{N_FEATURES, N_LAYERS, Tiny};

/// Features of a bundle that are looked at.
const MAX_FEATURES: usize = 64;

/// Names of features: lines of JSON, a table, an object.
pub fn names() -> Target {
    let files = ["a.jsonl", "a.csv", "a.json"].map(in_folder);
    let lines = r#"{"modelId":"m","layer":"1-set","index":"3","description":"one","typeName":"np_max-act"}
{"layer":0,"index":2,"explanations":[{"description":"two","typeName":"x"},{"description":"three"}]}

{"layer":"0","index":2,"tokens":["a"],"values":[1.5]}"#;
    let table = "feature,label\r\n0_3,\"months, \"\"and\"\" days\"\r\n1_2,\"two\nlines\"\r\n";
    let columns = "modelId,layer,index,typeName,description\nm,0-set,3,np_max-act,other\n\nm,1-set,2,x,\"y\"\n";
    let seeds = [lines, table, columns, r#"{"0_3": "a", "1_2": "b"}"#].map(|seed| seed.as_bytes().to_vec());
    Target::new(Form::Lines, seeds.into(), move |input| {
        let mut is_read = false;
        for (path, write) in &files {
            write(input);
            is_read |= read_names(path, &[N_FEATURES; N_LAYERS]).is_ok_and(|names| {
                assert!(names.values().all(|name| !name.is_empty()), "a name has letters");
                true
            });
        }
        is_read
    })
}

/// Features that are here, in the files of another program.
fn exported(format: ExportFormat) -> Vec<PathBuf> {
    let set = FeatureSet::open(&collected()).expect("features");
    let folder = folder_in_memory();
    export(&set, Some(&Tiny::make().replacement()), &folder, format, &Job::default())
        .expect("the folder can be written");
    let mut files = walk(&folder);
    files.sort();
    files
}

fn inflated(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).expect("it was written");
    GzDecoder::new(file).read_to_end(&mut bytes).expect("it is compressed");
    bytes
}

/// Imports features. What was imported is a folder of features, each of which can be read.
fn imported() -> impl Fn(&Path) -> bool {
    let replacement = Tiny::make().replacement();
    let out = folder_in_memory().join("features");
    let options = ImportOptions { n_checked: 2, n_checked_examples: 1, max_examples: 4 };
    move |path| {
        let found = import(&replacement, &[path.to_path_buf()], &out, &options, &Job::default());
        assert!(found.is_err() || look_at(&out), "what was imported is read");
        let _ = std::fs::remove_dir_all(&out);
        found.is_ok()
    }
}

/// Neuronpedia's lines: features, examples, explanations.
pub fn neuronpedia() -> Target {
    let (path, write) = in_folder("batch-0.jsonl");
    let import = imported();
    let mut seeds: Vec<Vec<u8>> = exported(ExportFormat::Neuronpedia)
        .iter()
        .filter(|path| path.ends_with("batch-0.jsonl.gz"))
        .map(|p| inflated(p))
        .collect();
    let pieces = r#"{"modelId":"m","layer":"1-set","index":"3","maxActApprox":2.5,"frac_nonzero":0.01,"pos_str":["a"],"neg_str":["b"],"freq_hist_data_bar_heights":[3,1],"freq_hist_data_bar_values":[0.5,1.5]}
{"layer":"1","index":3,"tokens":["a","▁","ab"],"values":[0,0.5,2],"maxValueTokenIndex":2}
{"layer":1,"index":"4","activations":[{"tokens":["<s>","a"],"values":[0,1],"qualifyingTokenIndex":1}],"explanations":[{"description":"e","typeName":"np_max-act"}]}
{"layer":1,"index":"4","description":"later"}"#;
    seeds.push(pieces.as_bytes().to_vec());
    Target::new(Form::Lines, seeds, move |input| {
        write(input);
        import(&path)
    })
}

/// circuit-tracer's file of one feature.
pub fn circuit_tracer() -> Target {
    // The feature 1 of layer 0, by its number.
    let (path, write) = in_folder("2.json");
    let import = imported();
    let files = exported(ExportFormat::CircuitTracerFiles);
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("it was written")).collect();
    for seed in &mut seeds {
        let mut feature: Value = serde_json::from_slice(seed).expect("JSON");
        feature["index"] = json!(1);
        *seed = serde_json::to_vec(&feature).expect("JSON");
    }
    Target::new(Form::Json, seeds, move |input| {
        write(input);
        import(&path)
    })
}

/// circuit-tracer's bundle: its index, which is compressed before it is read, and the one file that all layers are in.
pub fn bundle() -> Target {
    let folder = folder_in_memory();
    let import = imported();
    let files = exported(ExportFormat::CircuitTracer);
    let named = |name: &str| files.iter().find(|file| file.ends_with(name)).expect("it was written");
    let mut index: Value = serde_json::from_slice(&inflated(named(INDEX_FILE))).expect("JSON");
    let mut bins = Vec::new();
    for layer in 0..N_LAYERS {
        let of_layer = &mut index[layer.to_string()];
        let offsets = of_layer["offsets"].as_array_mut().expect("offsets");
        offsets.iter_mut().for_each(|offset| *offset = json!(offset.as_u64().expect("a number") + bins.len() as u64));
        of_layer["filename"] = json!("layer_0.bin");
        bins.extend(std::fs::read(named(&format!("layer_{layer}.bin"))).expect("it was written"));
    }
    let index = serde_json::to_vec(&index).expect("JSON");
    let seed = [&(index.len() as u64).to_le_bytes()[..], &index, &bins].concat();
    Target::new(Form::Safetensors, vec![seed], move |input| {
        let len = input.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len) as usize);
        let Some((index, bins)) = input.get(8..).and_then(|rest| rest.split_at_checked(len)) else { return false };
        let file = std::fs::File::create(folder.join(INDEX_FILE)).expect("the folder can be written");
        let mut packed = GzEncoder::new(file, Compression::fast());
        packed.write_all(index).and_then(|()| packed.try_finish()).expect("the folder can be written");
        std::fs::write(folder.join("layer_0.bin"), bins).expect("the folder can be written");
        let Ok(bundle) = Bundle::open(&folder) else { return false };
        for layer in bundle.layers().take(N_LAYERS) {
            for feature in 0..bundle.n_features(layer).min(MAX_FEATURES) {
                let _ = bundle.json(layer, feature);
            }
        }
        import(&folder)
    })
}

/// The index of a folder of graphs that `batch` writes.
pub fn index() -> Target {
    let (path, write) = in_folder("index.jsonl");
    let folder = path.parent().expect("it is in a folder").to_path_buf();
    let lines = r#"{"slug":"a","hash":"0123456789abcdef","prompt":"a b","n_tokens":3,"n_active":7,"n_nodes":5,"n_edges":6,"targets":[{"label":"a","weight":0.5}],"replacement_score":0.5,"completeness_score":0.75,"row_identity_error":1e-7,"files":{"a.json":100,"a.safetensors":2000}}
{"line":3,"error":"too long"}"#;
    Target::new(Form::Lines, vec![lines.as_bytes().to_vec()], move |input| {
        write(input);
        Index::read(&folder).is_ok()
    })
}

/// The list of a folder's graphs, of this program or another: a graph is put into it, and it is a list then too.
pub fn listing() -> Target {
    let (path, write) = in_folder("graph-metadata.json");
    let folder = path.parent().expect("it is in a folder").to_path_buf();
    let (graph, write_graph) = in_folder("a.json");
    write_graph(&seeds::graphs().1);
    let metadata = read_wire(&graph).expect("a graph").metadata;
    let theirs = json!({"graphs": [{"slug": "theirs", "scan": "x", "transcoder_list": [], "prompt_tokens": ["a"],
        "prompt": "a", "node_threshold": 0.8, "schema_version": 1, "own": {"x": 1}}, {"slug": "a"}]});
    Target::new(Form::Json, vec![serde_json::to_vec(&theirs).expect("JSON")], move |input| {
        write(input);
        let graphs = [metadata.clone()];
        let is_listed = list_graphs(&folder, &graphs).is_ok();
        if is_listed {
            assert!(list_graphs(&folder, &graphs).is_ok(), "what was listed is a list");
        } else {
            assert!(std::fs::read(&path).is_ok_and(|bytes| bytes == input), "what is no list is left");
        }
        is_listed
    })
}
