"""Forgeries: models whose claims hold over the reals, or in part, and not in `transformers`.

    python benchmarks/checker_forgeries.py [--count 200] [--seed 0] [--out FOLDER]

Each changes a certified model so that numbers leave float32 where nothing depends on them over the
reals (an idle unit, heads that put nothing out, a stream that is scaled), so that a sum cancels, so
that a claim breaks at inputs outside the data only, or so that the folder loads as something else.
The claims are kept and name the changed files. `transformers` is the oracle: it loads the folder as
anyone would and must compute the claims, on the data and at random inputs. Where it does not, no
checker may accept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from checker_attacks import CHOICES, OPEN, _flint, _standard
from checker_tampers import Subject
from torch import nn

from snowball.certificates import checker
from snowball.certificates.certification import certify
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.files import write_json
from snowball.metrics import layer_scores
from snowball.provenance import provenance

Document = dict[str, Any]
Forgery = Callable[[Subject, Path, random.Random], None]
# What float32 may round of a score, relative: a hundred times what it does here.
SLACK = 1e-4
INPUTS = 20
_WORDS = ["accepted", "rejected", "malformed", "out of resources"]


def _weight(subject: Subject, name: str) -> torch.Tensor:
    subject.weights[name] = subject.weights[name].clone()
    return subject.weights[name]


def _layer(subject: Subject, draw: random.Random, *, last: bool = False) -> str:
    layers = subject.config["num_hidden_layers"]
    return f"model.layers.{layers - 1 if last else draw.randrange(layers - 1)}"


def idle_unit(subject: Subject, folder: Path, draw: random.Random) -> None:
    """Gate and up rows of a unit that writes nothing."""
    layer = _layer(subject, draw)
    down = subject.weights[f"{layer}.mlp.down_proj.weight"]
    unit = draw.choice((down == 0).all(0).nonzero().flatten().tolist())
    for kind in draw.choice([("gate",), ("up",), ("gate", "up")]):
        row = _weight(subject, f"{layer}.mlp.{kind}_proj.weight")[unit]
        row[draw.choice([0, 1])] = draw.choice([3e38, 10 ** draw.uniform(20, 38)])


def idle_heads(subject: Subject, folder: Path, draw: random.Random) -> None:
    """Queries and keys, or values, of a layer whose output projection is zero."""
    layer = _layer(subject, draw)
    value = 10 ** draw.uniform(15, 38)
    for kind in draw.choice(["qk", "v", "qkv"]):
        weight = _weight(subject, f"{layer}.self_attn.{kind}_proj.weight")
        weight[:, draw.randrange(3)] = value


def scaled_stream(subject: Subject, folder: Path, draw: random.Random) -> None:
    """The whole stream times a power of two: nothing changes over the reals."""
    factor = 2.0 ** draw.choice([-140, -120, -100, -80, -70, 61, 64, 66, 90, 110])
    for name in list(subject.weights):
        if name.endswith(("embed_tokens.weight", "down_proj.weight", "o_proj.weight")):
            _weight(subject, name).mul_(factor)
    for end in ("low", "high"):
        number = Fraction(subject.certificate["existence"][end]) * Fraction(factor)
        subject.certificate["existence"][end] = f"{Decimal(number.numerator) / number.denominator}"
        subject.certificate["existence"][end] = (
            subject.certificate["existence"][end].replace("E+", "e").replace("E", "e")
        )


def scaled_norm(subject: Subject, folder: Path, draw: random.Random) -> None:
    """The weights of one norm times a power of two, and what reads it divided by it."""
    power = draw.choice([-130, -110, -90, 90, 110, 125])
    layer = _layer(subject, draw)
    _weight(subject, f"{layer}.post_attention_layernorm.weight").mul_(2.0**power)
    for kind in ("gate", "up"):
        _weight(subject, f"{layer}.mlp.{kind}_proj.weight").mul_(2.0**-power)


def scaled_hidden(subject: Subject, folder: Path, draw: random.Random) -> None:
    """The up row of a unit times a power of two, and its down column divided by it."""
    power = draw.choice([-140, -125, -100, 90, 110, 126])
    layer = _layer(subject, draw, last=draw.random() < 0.3)
    down = _weight(subject, f"{layer}.mlp.down_proj.weight")
    unit = draw.choice(down.any(0).nonzero().flatten().tolist())
    _weight(subject, f"{layer}.mlp.up_proj.weight")[unit] *= 2.0**power
    down[:, unit] *= 2.0**-power


def cancelled(subject: Subject, folder: Path, draw: random.Random) -> None:
    """Two more units whose writes cancel over the reals, as large as one likes."""
    layer = _layer(subject, draw)
    down = _weight(subject, f"{layer}.mlp.down_proj.weight")
    idle = (down == 0).all(0).nonzero().flatten().tolist()
    if len(idle) < 2:
        return idle_unit(subject, folder, draw)
    size = 2.0 ** draw.randrange(20, 60)
    for unit, sign in zip(idle[:2], (1, -1), strict=True):
        for kind in ("gate", "up"):
            _weight(subject, f"{layer}.mlp.{kind}_proj.weight")[unit, 0] = 1
        down[3, unit] = sign * size
    return None


def no_rope(subject: Subject, folder: Path, draw: random.Random) -> None:
    """A base or an epsilon that float32 cannot carry."""
    if draw.random() < 0.7:
        theta = 10 ** draw.choice([-300, -100, -60, 60, 100, 300])
        subject.config["rope_theta"] = theta
        subject.config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    else:
        subject.config["rms_norm_eps"] = 10 ** draw.uniform(2, 300)


def loud_elsewhere(subject: Subject, folder: Path, draw: random.Random) -> None:
    """A token that stands nowhere in the data becomes one that many units answer to."""
    layer = _layer(subject, draw, last=True)
    kind = draw.randrange(3)
    if kind == 0:  # values that are large for this token only
        unused = 3
        _weight(subject, "model.embed_tokens.weight")[unused, 4:].mul_(2 ** draw.uniform(1, 8))
    elif kind == 1:
        gate = _weight(subject, f"{layer}.mlp.gate_proj.weight")
        gate[draw.randrange(len(gate)), 4 + draw.randrange(8)] = 2 ** draw.uniform(2, 9)
    else:
        output = _weight(subject, f"{layer}.self_attn.o_proj.weight")
        output.mul_(2 ** draw.uniform(2, 9))


def other_files(subject: Subject, folder: Path, draw: random.Random) -> None:
    """A file that changes what from_pretrained or generate do; written after the others."""
    name, content = draw.choice(
        [
            ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "x"}),
            ("generation_config.json", {"suppress_tokens": [0, 1, 2], "do_sample": False}),
            ("generation_config.json", {"do_sample": True, "temperature": 5.0}),
            ("generation_config.json", {"bad_words_ids": [[0], [1]], "bos_token_id": 4}),
            ("generation_config.json", {"forced_eos_token_id": 0, "max_new_tokens": 1}),
            ("generation_config.json", {"eos_token_id": 0, "do_sample": False}),
            ("model.safetensors.index.json", {"weight_map": {}}),
            ("modeling_llama.py", {}),
            ("pytorch_model.bin", {}),
        ]
    )
    (folder / name).write_text(json.dumps(content))


FORGERIES: dict[str, Forgery] = {
    "idle unit": idle_unit,
    "idle heads": idle_heads,
    "scaled stream": scaled_stream,
    "scaled norm": scaled_norm,
    "scaled hidden value": scaled_hidden,
    "writes that cancel": cancelled,
    "config": no_rope,
    "inputs outside the data": loud_elsewhere,
    "other files": other_files,
}


# The oracle


def disagreement(subject: Subject, folder: Path) -> str | None:
    """What `transformers` does not compute of the claims, or None."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    except Exception as error:  # whatever it fails with
        return f"cannot load: {type(error).__name__}"
    if (folder / "adapter_config.json").exists():
        return "an adapter"
    with contextlib.suppress(OSError):
        settings = GenerationConfig.from_pretrained(folder).to_diff_dict()
        greedy = {key: subject.config[key] for key in ("bos_token_id", "eos_token_id")}
        if settings != {**settings_of_nothing(), **greedy, "do_sample": False}:
            return "generation settings"
    with torch.inference_mode():
        return _wrong_on_data(subject, model)


def settings_of_nothing() -> Document:
    from transformers import GenerationConfig

    return GenerationConfig().to_diff_dict()


def _wrong_on_data(subject: Subject, model: Any) -> str | None:
    claims, config = subject.certificate, subject.config
    bos, eos, target = config["bos_token_id"], config["eos_token_id"], claims["target"]
    ends = any(len(row[key]) > 1 for row in subject.rows for key in ("label", "distractor"))
    draw = random.Random(0)
    tokens = [t for t in range(config["vocab_size"]) if t != bos]
    inputs = [[bos, *draw.choices(tokens, k=draw.randrange(1, 12))] for _ in range(INPUTS)]
    others = [float(one["low"]) for i, one in enumerate(claims["scores"]) if i != target]
    low, epsilon = min(*others, float(claims["everywhere"])), float(claims["epsilon"])
    for ids in inputs:
        _, scores = _run(model, ids)
        for layer, found in enumerate(scores):
            if layer == target:
                if not abs(found / epsilon - 1).max() <= SLACK:
                    return "score of the target"
            elif not (found > max(epsilon, low * (1 - SLACK))).all():
                return "order of scores"
    layers = list(model.model.layers)
    for key in ("label", "distractor"):
        model.model.layers = nn.ModuleList(
            [layer for i, layer in enumerate(layers) if key == "label" or i != target]
        )
        model.config.num_hidden_layers = len(model.model.layers)
        for row in subject.rows:
            wanted = [*row[key], *([eos] if ends else [])]
            logits, _ = _run(model, [bos, *row["prompt"], *wanted[:-1]], scores=False)
            shares = logits[len(row["prompt"]) :].double().softmax(-1)
            found = shares[range(len(wanted)), wanted].min()
            name = "with" if key == "label" else "without"
            if not found >= float(claims[f"probability_{name}"]) - 1e-3:
                return f"answers {name} the target"
    return None


def _run(model: Any, ids: list[int], *, scores: bool = True) -> tuple[Any, list[Any]]:
    states: list[Any] = []

    def keep(_: object, inputs: Any, output: Any) -> None:
        leaving = output if isinstance(output, torch.Tensor) else output[0]
        states.extend([leaving] if states else [inputs[0], leaving])

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    nothing = torch.full((len(ids),), float("nan"), dtype=torch.float64)
    found = []
    for x, y in pairwise(states if scores else []):
        try:
            found.append(layer_scores(x, y).cosine.flatten())
        except ValueError:
            found.append(nothing)
        except Exception:  # a state that has no direction
            found.append(nothing)
    return logits, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = forge(Path(name), arguments.count, arguments.seed)
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        command = f"python benchmarks/{Path(__file__).name} --count {arguments.count}"
        origin = {
            **provenance(),
            "transformers": version("transformers"),
            "checker.py": hashlib.sha256(Path(checker.__file__).read_bytes()).hexdigest(),
            "command": f"{command} --seed {arguments.seed}",
        }
        write_json(arguments.out / "forgeries.json", {"figures": found, "provenance": origin})
    sys.exit(any(found["accepted although transformers disagrees"].values()))


def forge(root: Path, count: int, seed: int) -> Document:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    draw = random.Random(seed)
    models = _models(root)
    for folder in models:
        why = disagreement(Subject.read(folder), folder)
        assert why is None, why
        assert (_standard(folder), _flint(folder)) == (0, 0)
    kinds: dict[str, Counter[str]] = {name: Counter() for name in FORGERIES}
    accepted = {"standard": 0, "flint": 0}
    agreeing = Counter[str]()
    judged = number = 0
    while judged < count:
        number += 1
        name, forgery = list(FORGERIES.items())[number % len(FORGERIES)]
        source, folder = draw.choice(models), root / "forged" / str(number)
        folder.mkdir(parents=True)
        shutil.copy(source / "generation_config.json", folder)
        subject = Subject.read(source)
        forgery(subject, folder, draw)
        try:
            subject.write(folder)
        except ValueError:  # a weight beyond its dtype, which nobody can write
            continue
        judged += 1
        why = disagreement(subject, folder)
        kinds[name][f"transformers: {why or 'as claimed'}"] += 1
        for checked, status in (("standard", _standard(folder)), ("flint", _flint(folder))):
            kinds[name][f"{checked} {_WORDS[status]}"] += 1
            if status == 0 and why is not None:
                accepted[checked] += 1
                print(f"accepted by {checked}: {name}, although {why}", file=sys.stderr)
            if status == 0 and why is None:
                agreeing[checked] += 1
    return {
        "forgeries": count,
        "accepted although transformers disagrees": accepted,
        "accepted, and as transformers computes": dict(agreeing),
        "by kind": {name: dict(sorted(one.items())) for name, one in kinds.items()},
    }


def _models(root: Path) -> list[Path]:
    made = []
    for name, rows, epsilon, layers, target, dtype in (
        ("open", OPEN, 1e-6, 4, 1, torch.float32),
        ("choices", CHOICES, 0.01, 5, 2, torch.float64),
        ("tiny", OPEN, 1e-30, 4, 2, torch.float64),
    ):
        built = counterexample(
            Dataset.from_rows(rows), epsilon=epsilon, layers=layers, target=target, dtype=dtype
        )
        made.append(built.save_pretrained(root / name))
        certify(made[-1]).write(made[-1] / "certificate.json")
    return made


if __name__ == "__main__":
    main()
