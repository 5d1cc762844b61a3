"""Whether circuit-tracer and SAELens open what `train --format` writes, and compute from it what it says.

    python tests/formats/open.py target/release/circuitscope

Trains small sets of each activation from the program's own model, opens each with the other program's own loader, and compares
features and reconstructions on random inputs with the formulas of docs/formats.md, written out in NumPy. Needs circuit-tracer
and sae-lens (tests/formats/requirements.txt); a program that is missing is left out and named, and it is an error if both are.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
N_FEATURES, L0, N_TOKENS = 64, 6, 2000
N_INPUTS = 50


def train(program: str, folder: Path, *arguments: str) -> Path:
    """Makes a set in f32, so that what is compared is the reading."""
    text = ["--text", str(ROOT / "fixtures/atlas/sentences.txt"), "--split", "lines", "--tokens", str(N_TOKENS)]
    size = ["--features", str(N_FEATURES), "--l0", str(L0), "--precision", "f32", "--batch", "200"]
    command = [program, "train", "--model", "atlas", *text, *size, *arguments, "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def expected(tensors: dict, x: np.ndarray, names: dict) -> tuple[np.ndarray, np.ndarray]:
    """Features and reconstruction as docs/formats.md has them. `x` [n, d_model]"""
    of = {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
    w_enc = of["w_enc"] if of["w_enc"].shape[0] == N_FEATURES else of["w_enc"].T
    w_dec = of["w_dec"] if of["w_dec"].shape[0] == N_FEATURES else of["w_dec"].T
    pre = x @ w_enc.T + of["b_enc"]
    features = np.maximum(pre, 0.0)
    if "threshold" in of:
        features = np.where(pre > of["threshold"], features, 0.0)
    out = features @ w_dec + of["b_dec"]
    if "w_skip" in of:
        out = out + x @ of["w_skip"].T
    return features, out


def read(path: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(path)


def check(what: str, found, wanted: np.ndarray) -> None:
    found = found.detach().numpy()
    assert found.shape == wanted.shape, f"{what}: {found.shape}, expected {wanted.shape}"
    off = float(np.abs(found - wanted).max())
    scale = float(np.abs(wanted).max())
    assert off <= 1e-5 * scale, f"{what}: {off} off, of values up to {scale}"
    print(f"{what}: {int((wanted != 0).sum())} values that are not zero, at most {off / scale:.0e} of the largest off")


def circuit_tracer(program: str, at: Path) -> None:
    import torch
    import yaml
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    for name, arguments in {"jumprelu": [], "relu": ["--activation", "relu"], "skip": ["--skip"]}.items():
        folder = train(program, at / name, *arguments)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model_kind"] == "transcoder_set", config
        paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(len(list(folder.glob("layer_*"))))}
        hooks = config["feature_input_hook"], config["feature_output_hook"]
        found = load_transcoder_set(paths, config["scan"], *hooks, device=torch.device("cpu"), lazy_decoder=False)
        for layer, transcoder in enumerate(found):
            names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "w_skip": "W_skip"}
            names["threshold"] = "activation_function.threshold"
            x = np.random.default_rng(layer).standard_normal((N_INPUTS, transcoder.d_model)).astype(np.float32)
            features, out = expected(read(Path(paths[layer])), x, names)
            inputs = torch.from_numpy(x)
            encoded = transcoder.encode(inputs)
            check(f"circuit-tracer, {name}, layer {layer}, features", encoded, features)
            check(f"circuit-tracer, {name}, layer {layer}, output", transcoder(inputs), out)


    cross_layer(program, at)


def cross_layer(program: str, at: Path) -> None:
    """Features of a cross-layer transcoder, and what all layers write to each."""
    import torch
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    folder = train(program, at / "clt", "--clt")
    # It keeps most of a set in bfloat16 unless it is told otherwise.
    found = load_clt(str(folder), device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)
    n_layers, d_model = found.n_layers, found.d_model
    x = np.random.default_rng(7).standard_normal((n_layers, N_INPUTS, d_model)).astype(np.float32)
    features = np.zeros((n_layers, N_INPUTS, N_FEATURES), np.float32)
    out = np.zeros((n_layers, N_INPUTS, d_model), np.float32)
    for layer in range(n_layers):
        of = read(folder / f"W_enc_{layer}.safetensors")
        pre = x[layer] @ of[f"W_enc_{layer}"].T + of[f"b_enc_{layer}"]
        features[layer] = np.where(pre > np.maximum(of.get(f"threshold_{layer}", 0.0), 0.0), pre, 0.0)
        out[layer] += of[f"b_dec_{layer}"]
        w_dec = read(folder / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"]
        for above in range(w_dec.shape[1]):
            out[layer + above] += features[layer] @ w_dec[:, above]
    inputs = torch.from_numpy(x)
    check("circuit-tracer, cross-layer, features", found.encode(inputs), features)
    check("circuit-tracer, cross-layer, output", found(inputs), out)


def sae_lens(program: str, at: Path) -> None:
    import torch
    from sae_lens.saes.sae import SAE

    for name, arguments in {"jumprelu": [], "relu": ["--activation", "relu"], "skip": ["--skip"]}.items():
        folder = train(program, at / f"lens-{name}", "--format", "sae-lens", *arguments)
        layers = sorted(path.parent for path in folder.glob("**/cfg.json"))
        assert layers, f"no cfg.json in {folder}"
        for number, layer in enumerate(layers):
            sae = SAE.load_from_disk(layer)
            names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
            names["w_skip"] = "W_skip"
            x = np.random.default_rng(number).standard_normal((N_INPUTS, sae.cfg.d_in)).astype(np.float32)
            features, out = expected(read(layer / "sae_weights.safetensors"), x, names)
            inputs = torch.from_numpy(x)
            encoded = sae.encode(inputs)
            check(f"SAELens, {name}, {layer.name}, features", encoded, features)
            decoded = sae.forward(inputs) if name == "skip" else sae.decode(encoded)
            check(f"SAELens, {name}, {layer.name}, output", decoded, out)


def main() -> None:
    program = str(Path(sys.argv[1]).resolve())
    programs = {"circuit_tracer": circuit_tracer, "sae_lens": sae_lens}
    there = {name: run for name, run in programs.items() if importlib.util.find_spec(name)}
    for name in programs.keys() - there.keys():
        print(f"NOT CHECKED: {name} is not installed")
    if not there:
        sys.exit("neither circuit-tracer nor sae-lens is installed: pip install -r tests/formats/requirements.txt")
    with tempfile.TemporaryDirectory() as folder:
        for run in there.values():
            run(program, Path(folder))


main()
