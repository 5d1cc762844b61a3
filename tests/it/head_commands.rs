//! Heads from outside: `heads`, `trace --heads`, `trace --target-attention`, heads in `inspect` and `intervene`.

use std::path::Path;

use serde_json::Value;

use crate::support::{PROMPT, answer, circuitscope, refused_with};

/// Ten tokens, the second half of which is the first.
const AGAIN: &str = "Dallas Texas Austin Dallas Texas";

#[track_caller]
fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&answer(folder, &[args, &["--format", "json"]].concat())).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn heads_of_a_trace_are_in_both_files_and_shown_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    answer(at, &["trace", PROMPT, "--heads", "--slug", "g", "--quiet"]);
    let file: Value = serde_json::from_slice(&std::fs::read(at.join("graphs/g.json")).unwrap()).unwrap();
    for link in file["links"].as_array().unwrap() {
        let weight = link["weight"].as_f64().unwrap();
        let hops = numbers(&link["hops"]);
        let size: f64 = hops.iter().map(|part| part.abs()).sum();
        assert!((hops.iter().sum::<f64>() - weight).abs() <= 1e-4 * size, "{link}");
        let flows = link["heads"].as_array().unwrap();
        assert!(flows.len() <= 8);
        let sum: f64 =
            flows.iter().map(|flow| flow[2].as_f64().unwrap()).sum::<f64>() + link["heads_rest"].as_f64().unwrap();
        let counted: f64 = hops.iter().enumerate().map(|(k, part)| k as f64 * part).sum();
        assert!((sum - counted).abs() <= 1e-3 * size.max(1e-3), "{link}: {sum} {counted}");
    }
    for graph in ["graphs/g.json", "graphs/g.safetensors"] {
        let text = answer(at, &["inspect", graph, "--node", "3_955_8"]);
        assert!(text.contains("heads") && text.contains("direct"), "{graph}: {text}");
        let found = json(at, &["inspect", graph, "--node", "3_955_8"]);
        let edge = &found["nodes"][0]["inputs"]["negative"][0]["heads"];
        assert!(edge["label"].as_str().unwrap().contains(" %"), "{edge}");
        assert!(
            answer(at, &["inspect", graph, "--format", "csv"])
                .starts_with("source,target,weight,share,top_head,top_flow,direct\n")
        );
        assert!(answer(at, &["inspect", graph, "--format", "dot"]).contains(", label="));
        assert!(answer(at, &["inspect", graph, "--format", "graphml"]).contains("<data key=\"top_head\">"));
        let svg = answer(at, &["inspect", graph, "--format", "svg"]);
        assert!(svg.contains("of its input; ") && svg.contains("paint-order"), "{svg}");
    }
    // Pruned again, the heads of what is left stay.
    answer(at, &["prune", "graphs/g.json", "-o", "less.json", "--node-threshold", "0.5"]);
    assert!(std::fs::read_to_string(at.join("less.json")).unwrap().contains("\"heads\""));
    answer(at, &["prune", "graphs/g.safetensors", "-o", "again.json"]);
    assert!(std::fs::read_to_string(at.join("again.json")).unwrap().contains("\"hops\""));
    // Without them nothing of it is there.
    answer(at, &["trace", PROMPT, "--slug", "plain", "--quiet"]);
    assert!(!std::fs::read_to_string(at.join("graphs/plain.json")).unwrap().contains("\"hops\""));
    assert!(!answer(at, &["inspect", "graphs/plain.json", "--node", "3_955_8"]).contains("heads"));
    assert!(
        answer(at, &["inspect", "graphs/plain.json", "--format", "csv"]).starts_with("source,target,weight,share\n")
    );
}

#[test]
fn a_score_is_a_target_like_a_logit() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (options, label) in [
        (&["--target-attention", "3.1@8:7"][..], "attention 3.1@8:7, query side"),
        (&["--target-attention", "3.1@8:7", "--versus", "2"], "attention 3.1@8:7 versus 2, key side"),
        (&["--target-attention", "2.0@8:7", "--rival"], "attention 2.0@8:7 versus its rivals, key side"),
    ] {
        let text = answer(at, &[&["trace", PROMPT, "--slug", "s", "--force", "--quiet"], options].concat());
        assert!(text.contains(label), "{text}");
        assert!(answer(at, &["inspect", "graphs/s.json"]).contains("explained"));
        assert!(answer(at, &["inspect", "graphs/s.safetensors", "--format", "svg"]).contains("attention"));
        let text = answer(at, &["verify", "graphs/s.safetensors", "--samples", "4", "--ablate", "3"]);
        assert!(text.contains("contents    holds") && text.contains("edges       holds"), "{text}");
        assert!(
            !text.contains("untested") && text.contains(&format!("change of {}", label.split(',').next().unwrap())),
            "{text}"
        );
        // A path to the score goes through heads below it.
        let found = json(at, &["heads", "graphs/s.safetensors"]);
        assert_eq!(found["bills"].as_array().unwrap().len(), 2, "{found}");
        assert!(found["n_edges"].as_u64().unwrap() > 10, "{found}");
    }
}

#[test]
fn an_edge_in_full_adds_up_at_every_layer() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    answer(at, &["trace", PROMPT, "--slug", "g", "--quiet"]);
    let edge = ["heads", "graphs/g.safetensors", "--edge", "Dallas@7,3_955_8", "--top", "100"];
    let text = answer(at, &edge);
    assert!(text.contains("moved from > to") && text.contains("\" Dallas\"@7 > \" is\"@8"), "{text}");
    let found = json(at, &edge);
    let effect = found["effect"].as_f64().unwrap();
    let size: f64 = numbers(&found["hops"]).iter().map(|part| part.abs()).sum();
    for layer in found["layers"].as_array().unwrap() {
        let of_layer = |head: &str| head.starts_with(&format!("{}.", layer["layer"]));
        let flows = found["flows"].as_array().unwrap().iter().filter(|flow| of_layer(flow["head"].as_str().unwrap()));
        let sum: f64 = flows.map(|flow| flow["flow"].as_f64().unwrap()).sum();
        assert!((sum + layer["bypass"].as_f64().unwrap() - effect).abs() <= 1e-4 * size, "{layer}");
    }
    for flow in found["flows"].as_array().unwrap() {
        let moved: f64 = flow["moves"].as_array().unwrap().iter().map(|moved| moved["flow"].as_f64().unwrap()).sum();
        assert!((moved - flow["flow"].as_f64().unwrap()).abs() <= 1e-4 * size, "{flow}");
    }
    let svg = at.join("edge.svg");
    answer(at, &[&edge[..], &["--picture", "edge.svg", "--quiet"]].concat());
    assert!(std::fs::read_to_string(svg).unwrap().contains("Heads of the edge"));
}

#[test]
fn scores_patterns_and_pairs_come_as_text_json_and_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scores = ["heads", "--sequences", "2", "--length", "12"];
    let text = answer(at, &scores);
    for part in ["induction: ", "duplicate: ", "previous: ", "first: ", "copying: "] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(text, answer(at, &scores), "the same seed, the same tokens");
    let found = json(at, &scores);
    let csv = answer(at, &[&scores[..], &["--format", "csv"]].concat());
    let heads = found["heads"].as_array().unwrap();
    assert_eq!(csv.lines().count(), heads.len() + 1);
    for head in heads {
        for kind in ["induction", "duplicate", "previous", "first"] {
            assert!((0.0..=1.0).contains(&head[kind].as_f64().unwrap()), "{head}");
        }
        assert!((-1.0..=1.0).contains(&head["copying"].as_f64().unwrap()), "{head}");
    }
    answer(at, &[&scores[..], &["--picture", "scores.svg", "--kind", "previous", "--quiet"]].concat());
    assert!(std::fs::read_to_string(at.join("scores.svg")).unwrap().contains("Heads: previous"));

    let patterns = ["heads", "--prompt", AGAIN, "--head", "1.0", "--head", "0.2"];
    assert!(answer(at, &patterns).contains("head 0.2: what each token looks at"));
    let found = json(at, &patterns);
    for row in found["patterns"][0]["attention"].as_array().unwrap() {
        assert!((numbers(row).iter().sum::<f64>() - 1.0).abs() < 1e-4);
    }
    answer(at, &["heads", "--prompt", AGAIN, "--head", "1.0", "--picture", "pattern.svg", "--quiet"]);
    assert!(std::fs::read_to_string(at.join("pattern.svg")).unwrap().contains("Where head 1.0 looks"));

    let pairs = ["heads", "--prompt", PROMPT, "--score", "3.1@8:7"];
    let text = answer(at, &pairs);
    for part in ["does not cancel", "position × position", "group × group", "largest pairs of"] {
        assert!(text.contains(part), "{text}");
    }
    let found = json(at, &pairs);
    let (value, pairs_value) = (found["value"].as_f64().unwrap(), found["pairs_add_up_to"].as_f64().unwrap());
    let tolerance = 1e-5 * found["sum_of_sizes"].as_f64().unwrap() + 1e-4;
    assert!((value - pairs_value).abs() < tolerance, "{value} {pairs_value}");
    let by_position: f64 = found["by_position"].as_array().unwrap().iter().flat_map(numbers).sum();
    let by_group: f64 = found["by_group"].as_array().unwrap().iter().map(|cell| cell["amount"].as_f64().unwrap()).sum();
    assert!((by_position - value).abs() < tolerance && (by_group - value).abs() < tolerance);
    answer(at, &[&pairs[..], &["--rival", "--picture", "score.svg", "--quiet"]].concat());
    assert!(std::fs::read_to_string(at.join("score.svg")).unwrap().contains("versus its rivals"));
}

#[test]
fn heads_are_changed_on_the_command_line_and_in_plans() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = |args: &[&str]| json(at, &[&["intervene", PROMPT], args].concat());
    let off = run(&["--ablate-head", "1.0@8"]);
    assert_eq!(off["interventions"][0], "head 1.0@8=0");
    std::fs::write(at.join("plan.json"), r#"[{"head": "1.0", "position": 8, "ablate": true}]"#).unwrap();
    assert_eq!(run(&["--plan", "plan.json"])["target"], off["target"]);
    let nothing = run(&["--ablate-head", "1.0@8", "--patch-head", "1.0@8", "--from", PROMPT]);
    assert!(nothing["kl_divergence"].as_f64().unwrap() < 1e-6, "what it writes itself changes nothing: {nothing}");
    let other = "The capital of the state containing Oakland is";
    let everything: Vec<String> = (0..4).map(|head| format!("3.{head}")).collect();
    let mut args = vec!["--from", other, "--freeze-attention"];
    for head in &everything {
        args.extend(["--patch-head", head]);
    }
    let swapped = run(&args);
    assert_eq!(swapped["mode"], "frozen attention");
    assert_eq!(swapped["interventions"].as_array().unwrap().len(), 4);
    let mean = run(&["--ablate-head", "1.0=mean", "--direct", "--generate", "2"]);
    assert_eq!(mean["interventions"][0], "head 1.0@*=mean");
    assert!(mean["continuation"]["original"].as_str().unwrap().contains("Austin"));
    let plan = r#"{"interventions": [{"head": "0.0", "mean": true}], "alternatives": [
        {"name": "off", "interventions": [{"head": "1.0@8", "ablate": true}]},
        {"name": "on", "interventions": []}]}"#;
    std::fs::write(at.join("plan.json"), plan).unwrap();
    let swept = run(&["--plan", "plan.json"]);
    let on = run(&["--ablate-head", "0.0=mean"]);
    let both = run(&["--ablate-head", "0.0=mean", "--ablate-head", "1.0@8"]);
    for (point, alone) in [(0, &both), (1, &on)] {
        let (a, b) = (&swept["points"][point]["target_probability"], &alone["target"]["probability_after"]);
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5, "{point}: {a} {b}");
    }
}

#[test]
fn patched_heads_of_another_prompt_are_path_patching() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let other = "The capital of the state containing Oakland is";
    answer(at, &["trace", PROMPT, "--target-diff", " Austin", " Sacramento", "--slug", "d", "--quiet"]);
    let found = json(at, &["heads", "graphs/d.safetensors", "--from", other, "--top", "100"]);
    // Every head is there, and the ones of the last layer that read Dallas matter.
    let heads = found["bills"][0]["heads"].as_array().unwrap();
    assert_eq!(heads.len(), 16, "{found}");
    assert!(heads[0]["amount"].as_f64().unwrap() < -1.0, "Oakland speaks against Austin: {}", heads[0]);
    let text = answer(at, &["heads", "graphs/d.safetensors", "--from", other]);
    assert!(text.contains("would gain if one head wrote what it writes there"), "{text}");
    let same = json(at, &["heads", "graphs/d.safetensors", "--from", PROMPT]);
    assert!(same["bills"][0]["heads"].as_array().unwrap().iter().all(|head| head["amount"].as_f64() == Some(0.0)));
}

#[test]
fn what_heads_do_in_a_model_needs_no_transcoders() {
    let folder = tempfile::tempdir().unwrap();
    let model = crate::support::fixture("atlas/model");
    let model = model.to_str().unwrap();
    let scores = answer(folder.path(), &["heads", "--model", model, "--sequences", "1", "--length", "9"]);
    assert!(scores.starts_with("mean attention on 1 sequences of 9 random tokens"), "{scores}");
    let pattern = answer(folder.path(), &["heads", "--model", model, "--prompt", PROMPT, "--head", "1.0"]);
    assert!(pattern.contains("1.0"), "{pattern}");
}

#[test]
fn a_score_that_is_asked_for_twice_is_explained_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for target in [["--target-attention", "3.1@8:7"], ["--target-feature", "3_955_8"]] {
        let trace = |slug: &str, targets: &[&str]| {
            let args = [&["trace", PROMPT, "--slug", slug, "--force"], targets].concat();
            let output = circuitscope(at, &args);
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let once = trace("once", &target);
        let twice = trace("twice", &[target, target].concat());
        let said = "2 targets are asked for, 1 of them different";
        assert!(twice.contains(said) && !once.contains(said), "{twice}");
        let of = |slug: &str| json(at, &["inspect", &format!("graphs/{slug}.safetensors")]);
        for part in ["nodes", "graph", "targets"] {
            assert_eq!(of("once")[part], of("twice")[part], "{part}");
        }
    }
}

#[test]
fn heads_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    answer(at, &["trace", PROMPT, "--slug", "g", "--quiet"]);
    let graph = "graphs/g.safetensors";
    for (args, parts) in [
        (&["trace", PROMPT, "--target-attention", "9.0@8:7"][..], &["layer 9"][..]),
        (&["trace", PROMPT, "--target-attention", "1.7@8:7"], &["head 1.7 does not exist", "4 heads"]),
        (&["trace", PROMPT, "--target-attention", "1.0@99:7"], &["position 99 does not exist"]),
        (&["trace", PROMPT, "--target-attention", "1.0@7:8"], &["comes after it"]),
        (&["trace", PROMPT, "--target-attention", "1.0"], &["--target-attention 1.0", "18.6@18:7"]),
        (&["trace", PROMPT, "--target-attention", "1.0@8:7", "--versus", "20"], &["position 20 does not exist"]),
        (&["trace", PROMPT, "--target-attention", "1.0@0:0", "--rival"], &["no rivals"]),
        (&["heads", graph, "--edge", "Dallas"], &["--edge Dallas", "A,B"]),
        (&["heads", graph, "--edge", "Dallas,Nowhere"], &["Nowhere"]),
        (&["heads", graph, "--edge", "3_955_8,Dallas@7"], &["no edge leads"]),
        (&["heads", "graphs/g.json"], &["graphs/g.json"]),
        (&["heads", graph, "--from", "Too short"], &["--from", "both prompts need as many tokens"]),
        (&["heads", graph, "--format", "csv"], &["--format csv"]),
        (&["heads", graph, "--head", "1.0"], &["--head <L.H>", "cannot be used with"]),
        (&["heads", graph, "--score", "1.0@8:7"], &["--score <L.H@Q:K>", "cannot be used with"]),
        (&["heads", graph, "--versus", "2"], &["--versus <KEY>", "cannot be used with"]),
        (&["heads", graph, "--rival"], &["--rival", "cannot be used with"]),
        (&["heads", graph, "--sequences", "4"], &["--sequences <N>", "cannot be used with"]),
        (&["heads", graph, "--kind", "copying"], &["--kind <KIND>", "cannot be used with"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--seed", "4"], &["--seed <S>", "cannot be used with"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--rival"], &["--rival", "cannot be used with"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--versus", "2"], &["--versus <KEY>", "cannot be used with"]),
        (&["heads", "--prompt", PROMPT], &["--head <L.H>", "--score <L.H@Q:K>"]),
        (&["heads", "--kind", "copying"], &["--picture <FILE>"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--top", "3"], &["--top <N>", "cannot be used with"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--node-threshold", "0.5"], &["--node-threshold", "no graph"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--transcoders", "x"], &["--transcoders", "the model alone"]),
        (&["heads", graph, "--from", PROMPT, "--edge-threshold", "0.5"], &["--edge-threshold", "--from"]),
        (&["heads", "--prompt", PROMPT, "--score", "1.0@8:7", "--versus", "7"], &["1.0@8:7", "with itself"]),
        (&["trace", PROMPT, "--target-attention", "1.0@8:7", "--versus", "7"], &["1.0@8:7", "with itself"]),
        (&["heads", "--prompt", PROMPT, "--head", "7.0"], &["layer 7"]),
        (&["heads", "--prompt", PROMPT, "--head", "x"], &["--head x", "18.6"]),
        (&["heads", "--prompt", PROMPT, "--head", "1.0", "--head", "1.1", "--picture", "p.svg"], &["several heads"]),
        (&["heads", "--prompt", PROMPT, "--score", "1.0@7:8"], &["comes after it"]),
        (&["heads", "--length", "1"], &["length"]),
        (&["heads", "--length", "100000"], &["`length` is 100000", "tokens, but the model's context is"]),
        (&["heads", "--sequences", "0"], &["sequences"]),
        (&["heads", "--picture", "p.txt"], &[".svg, .png"]),
        (&["intervene", PROMPT, "--ablate-head", "4.0"], &["layer 4"]),
        (&["intervene", PROMPT, "--ablate-head", "1.9"], &["head 1.9 does not exist"]),
        (&["intervene", PROMPT, "--ablate-head", "1.0@50"], &["position 50 does not exist"]),
        (&["intervene", PROMPT, "--ablate-head", "1.0=7"], &["--ablate-head 1.0=7", "=mean"]),
        (&["intervene", PROMPT, "--patch-head", "1.0", "--from", "Too short"], &["Too short", "tokens"]),
    ] {
        refused_with(at, args, parts);
        assert!(!at.join("p.svg").exists());
    }
}
