"""`snowball certify` and `snowball verify`: what they write and print, and their exit status."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done, snowball, write_rows
from safetensors.torch import load_file, save_file

TOKENS = [{"prompt": [3, *[0] * n], "label": n % 2, "distractor": 2} for n in range(3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Done]:
    folder = tmp_path_factory.mktemp("made")
    rows = write_rows(folder / "rows.jsonl", TOKENS)
    out = folder / "model"
    assert snowball("build", rows, "--out", out, "--layers", 4, "--target", 1).status == 0
    return out, folder / "cert.json", snowball("certify", out, "--out", folder / "cert.json")


@pytest.fixture
def model(made: tuple[Path, Path, Done], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "model"))


@pytest.fixture
def certificate(made: tuple[Path, Path, Done], tmp_path: Path) -> Path:
    return Path(shutil.copy(made[1], tmp_path / "cert.json"))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def flatten(model: Path) -> None:
    """Takes the answer of one token away."""
    weights = {n: w.clone() for n, w in load_file(model / "model.safetensors").items()}
    weights["lm_head.weight"][1] = 0
    save_file(weights, model / "model.safetensors")


def test_certify_writes_a_certificate_and_says_what_is_next(made: tuple[Path, Path, Done]) -> None:
    model, certificate, done = made
    assert done.status == 0
    assert f"Next: snowball verify {certificate} {model}" in done.out.replace("\n", " ")
    claims = json.loads(certificate.read_text())
    assert (claims["target"], claims["layers"], claims["examples"]) == (1, 4, 3)


def test_verify_accepts_with_both_checkers(model: Path, certificate: Path) -> None:
    done = snowball("verify", certificate, model)
    assert done.status == 0
    assert "│ certified" in done.out.replace("┃", "│")
    assert "PASS by the flint checker" in done.out
    assert "PASS by the standard checker" in done.out
    for claim in ("existence", "artifact", "runtime"):
        assert f"│ {claim}" in done.out


def test_verify_prints_json(model: Path, certificate: Path) -> None:
    done = snowball("verify", certificate, model, model / "dataset.jsonl", "--json")
    document = json.loads(done.out)
    assert document["claims"] == json.loads(certificate.read_text())
    assert [v["checker"] for v in document["verdicts"]] == ["flint", "standard"]
    assert {v["verdict"] for v in document["verdicts"]} == {"PASS"}


@pytest.mark.parametrize("checker", ["flint", "standard"])
def test_either_checker_rejects(model: Path, certificate: Path, checker: str) -> None:
    change(certificate, margin_with="1e3")
    done = snowball("verify", certificate, model, "--checker", checker)
    assert done.status == 1
    assert f"REJECT by the {checker} checker" in done.out
    assert "artifact" in done.out
    assert "only claimed" in done.out
    assert "certified" not in done.out
    other = {"flint": "standard", "standard": "flint"}[checker]
    assert f"by the {other} checker" not in done.out


@pytest.mark.parametrize("checker", ["flint", "standard", "both"])
def test_a_malformed_file_has_its_own_status(model: Path, certificate: Path, checker: str) -> None:
    (model / "dataset.jsonl").write_text("{")
    digest = "da39a3ee5e6b4b0d3255bfef95601890afd80709"  # of other data, so that it is rejected
    assert snowball("verify", certificate, model, "--checker", checker).status in (1, 2)
    certificate.write_text("{" + digest)
    done = snowball("verify", certificate, model, "--checker", checker)
    assert done.status == 2


@pytest.mark.parametrize("key", ["\x1b[2J\x1b[32mPASS by the flint checker", "\ud800", "[/red]"])
def test_a_hostile_text_is_quoted_and_not_obeyed(model: Path, certificate: Path, key: str) -> None:
    change(certificate, **{key: 1})
    done = snowball("verify", certificate, model)
    assert done.status == 2
    assert f"missing or unknown: {key.encode('unicode_escape').decode()}" in done.errors
    assert "\x1b" not in done.errors


def test_an_undecided_claim_has_its_own_status(model: Path, certificate: Path) -> None:
    existence = {**json.loads(certificate.read_text())["existence"], "low": "-9", "high": "9"}
    change(certificate, existence=existence)
    done = snowball("verify", certificate, model, "--checker", "flint")
    assert done.status == 3
    assert "OUT OF RESOURCES by the flint checker" in done.out


def test_certify_says_which_claim_cannot_be_made(model: Path, tmp_path: Path) -> None:
    flatten(model)
    done = snowball("certify", model, "--out", tmp_path / "none.json")
    assert done.status == 1
    assert "REJECT: not certified: artifact: an answer has the margin" in done.errors
    assert not (tmp_path / "none.json").exists()


def test_certify_refuses_what_exists_and_what_it_cannot_read(
    made: tuple[Path, Path, Done], tmp_path: Path
) -> None:
    model, certificate, _ = made
    done = snowball("certify", model, "--out", certificate)
    assert (done.status, "exists" in done.errors) == (2, True)
    done = snowball("certify", tmp_path, "--out", tmp_path / "none.json")
    assert done.status == 2
    assert "refused: " in done.errors


def test_other_data_is_certified_if_the_model_knows_it(
    made: tuple[Path, Path, Done], tmp_path: Path
) -> None:
    model = made[0]
    rows = (model / "dataset.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text(rows[0])
    out = tmp_path / "part.json"
    assert snowball("certify", model, tmp_path / "part.jsonl", "--out", out).status == 0
    assert snowball("verify", out, model, tmp_path / "part.jsonl").status == 0
    assert snowball("verify", out, model).status == 1


def check(model: Path, certificate: Path, tmp_path: Path) -> Done:
    del certificate, tmp_path
    return snowball("check", model)


def certify(model: Path, certificate: Path, tmp_path: Path) -> Done:
    del certificate
    return snowball("certify", model, "--out", tmp_path / "new.json")


def verify_by_flint(model: Path, certificate: Path, tmp_path: Path) -> Done:
    del tmp_path
    return snowball("verify", certificate, model, "--checker", "flint")


def verify_by_standard(model: Path, certificate: Path, tmp_path: Path) -> Done:
    del tmp_path
    return snowball("verify", certificate, model, "--checker", "standard")


@pytest.mark.parametrize("command", [check, certify, verify_by_flint, verify_by_standard])
@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}),
        ("adapter_model.safetensors", {}),
        ("model.safetensors.index.json", {"weight_map": {}}),
        ("modeling_llama.py", {}),
        ("anything", {}),
        ("generation_config.json", {"suppress_tokens": [1]}),
        ("generation_config.json", {"do_sample": True}),
        ("config.json", {"suppress_tokens": [1]}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_llama.Other"}}),
    ],
)
def test_no_command_passes_what_changes_loading_or_generating(
    model: Path,
    certificate: Path,
    tmp_path: Path,
    command: Callable[[Path, Path, Path], Done],
    name: str,
    entries: dict[str, object],
) -> None:
    path = model / name
    if not path.exists():
        path.write_text("{}")
    change(path, **entries)
    done = command(model, certificate, tmp_path)
    assert done.status in (1, 2)
    assert name in done.out + done.errors
    assert not (tmp_path / "new.json").exists()


def test_help_names_the_exit_status() -> None:
    assert "Status 1" in snowball("certify", "--help").out
