//! Promises of the `weights` room about folders: on disk, in the cache of the Hub, in the program.

use std::path::Path;

use circuitscope::Error;
use circuitscope::weights::{Folder, Hub, ModelFiles};
use serde_json::json;
use tempfile::TempDir;

use crate::support::fixture;
use crate::weights::{f32s, refused, safetensors, sample_npz, written};

/// A Hugging Face folder with one tensor in each of two shards.
fn host_folder(root: &Path) {
    std::fs::create_dir_all(root).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tokenizer").join(name), root.join(name)).unwrap();
    }
    std::fs::write(root.join("config.json"), r#"{"model_type": "llama", "bos_token_id": 2}"#).unwrap();
    std::fs::write(root.join("1.safetensors"), safetensors(&[("x", f32s(&[1], &[1.0]))])).unwrap();
    std::fs::write(root.join("2.safetensors"), safetensors(&[("y", f32s(&[1], &[2.0]))])).unwrap();
    let index = json!({ "weight_map": { "x": "1.safetensors", "y": "2.safetensors" } });
    std::fs::write(root.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_host_folder_opens_with_all_its_shards() {
    let folder = TempDir::new().unwrap();
    host_folder(folder.path());
    let spec = folder.path().display().to_string();
    let host = ModelFiles::open(&spec).unwrap();
    assert_eq!(host.config["model_type"], "llama");
    assert!(host.generation_config.is_none());
    assert_eq!(host.checkpoint.names().count(), 2);
    assert_eq!(host.tokenizer.bos(), Some(2));

    std::fs::remove_file(folder.path().join("2.safetensors")).unwrap();
    assert!(matches!(refused(ModelFiles::open(&spec)), Error::MissingFile { file, .. } if file == "2.safetensors"));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(matches!(refused(ModelFiles::open(&spec)), Error::MissingFile { file, .. } if file == "config.json"));
    assert!(matches!(refused(ModelFiles::open("no/such/folder")), Error::UnknownSource { .. }));
}

#[test]
fn names_of_base_models_and_text_parts_become_those_of_language_models() {
    let folder = TempDir::new().unwrap();
    let tokenizer = |folder: &TempDir| {
        host_folder(folder.path());
        std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    };
    tokenizer(&folder);
    let one = || f32s(&[1], &[1.0]);
    let spec = folder.path().display().to_string();
    for (from, to) in [
        (
            [("h.0.ln_1.weight", one()), ("wte.weight", one())],
            ["transformer.h.0.ln_1.weight", "transformer.wte.weight"],
        ),
        (
            [("language_model.model.norm.weight", one()), ("vision_tower.x", one())],
            ["model.norm.weight", "model.norm.weight"],
        ),
        (
            [("model.language_model.norm.weight", one()), ("lm_head.weight", one())],
            ["lm_head.weight", "model.norm.weight"],
        ),
    ] {
        written(&folder, "model.safetensors", &safetensors(&from));
        let host = ModelFiles::open(&spec).unwrap();
        for name in to {
            assert!(host.checkpoint.contains(name), "{name}");
        }
    }
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"eos_token_id": 5, "text_config": {"model_type": "gemma3_text"}}"#,
    )
    .unwrap();
    let config = ModelFiles::open(&spec).unwrap().config;
    assert_eq!((&config["model_type"], &config["eos_token_id"]), (&json!("gemma3_text"), &json!(5)));
}

#[test]
fn a_hub_model_is_read_from_the_cache_on_disk() {
    let cache = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.path().join("models--org--tiny.model");
    host_folder(&repo.join("snapshots").join(commit));
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let hub = Hub { cache: cache.path().to_path_buf(), offline: true, ..Hub::from_env() };
    for spec in ["org/tiny.model", "org/tiny.model@main", &format!("org/tiny.model@{commit}")] {
        let host = ModelFiles::from_folder(&Folder::open_with(spec, hub.clone()).unwrap()).unwrap();
        assert_eq!((host.source.as_str(), host.checkpoint.names().count()), (spec, 2));
    }
    let other = Folder::open_with("org/tiny.model", hub.clone()).unwrap();
    assert!(other.checkpoint("hf://org/tiny.model/1.safetensors").unwrap().contains("x"));
    assert!(other.read_text("README.md").unwrap().is_none());

    // What the Hub was asked for before and does not have is not asked for again, offline or not.
    let mark = repo.join(".no_exist").join(commit).join("generation_config.json");
    std::fs::create_dir_all(mark.parent().unwrap()).unwrap();
    std::fs::write(mark, "").unwrap();
    let online = Folder::open_with("org/tiny.model", Hub { offline: false, ..hub.clone() }).unwrap();
    assert!(online.read_json("generation_config.json").unwrap().is_none());

    // Another revision, another repository, a file that the snapshot lacks.
    for (spec, file) in
        [("org/tiny.model@v2", "config.json"), ("org/other", "config.json"), ("org/tiny.model", "w.npz")]
    {
        let folder = Folder::open_with(spec, hub.clone()).unwrap();
        let e = refused(folder.checkpoint(file));
        let shown = format!("{e} {}", e.hint().unwrap());
        assert!(matches!(e, Error::NotCached { .. }), "{shown}");
        for part in [file, "org/", "HF_HUB_OFFLINE", &cache.path().display().to_string(), "hf download"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
    for spec in ["../org/x", "org/../x", "a/b/c", "org", "org/x@../../y", "org/"] {
        assert!(matches!(refused(Folder::open_with(spec, hub.clone())), Error::UnknownSource { .. }), "{spec}");
    }
}

#[test]
fn folders_list_and_read_files_wherever_they_are() {
    let folder = TempDir::new().unwrap();
    written(&folder, "layer_0/params.npz", &sample_npz(false));
    written(&folder, "config.yaml", b"model_name: x\n");
    let disk = Folder::open(&folder.path().display().to_string()).unwrap();
    assert_eq!(disk.list().unwrap(), ["config.yaml", "layer_0/params.npz"]);
    assert_eq!(disk.read_text("config.yaml").unwrap().as_deref(), Some("model_name: x\n"));
    assert!(disk.read_text("none").unwrap().is_none());
    assert!(disk.checkpoint("layer_0/params.npz").unwrap().contains("c"));
    assert!(matches!(refused(disk.checkpoint("layer_1/params.npz")), Error::MissingFile { .. }));

    let bytes: &'static [u8] = Vec::leak(safetensors(&[("w", f32s(&[1], &[1.0]))]));
    let files: &'static [(&'static str, &'static [u8])] = Vec::leak(vec![("a.safetensors", bytes), ("b.txt", b"b")]);
    let embedded = Folder::from_static("atlas", files);
    assert_eq!(embedded.read_text("b.txt").unwrap().as_deref(), Some("b"));
    assert!(embedded.checkpoint("a.safetensors").unwrap().contains("w"));
    assert!(matches!(refused(embedded.checkpoint("c.safetensors")), Error::MissingFile { .. }));
}

#[test]
fn checkpoints_of_the_base_model_alone_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("reference/llama_relu/model");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let _ = std::fs::copy(from.join(name), folder.path().join(name));
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed =
        tensors.tensors().into_iter().map(|(name, view)| (name.trim_start_matches("model.").to_owned(), view));
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(renamed, None).unwrap()).unwrap();
    let names = |folder: &Path| -> Vec<String> {
        let host = ModelFiles::open(folder.to_str().unwrap()).unwrap();
        let mut names: Vec<String> = host.checkpoint.names().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), names(&from));
}
