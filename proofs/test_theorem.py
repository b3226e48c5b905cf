"""The theorem: its proof by hand from the lemmas, and instances that are certified by balls."""

from pathlib import Path

import pytest
import torch
from prose import section_of
from statements import STATEMENTS, Statement

from snowball.certificates.certificate import Certificate
from snowball.certificates.certification import certify, verify
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset

HAND = [
    pytest.param(label, marks=pytest.mark.proves(label, method="hand"))
    for label in (
        *("lem:separation", "lem:kernel", "lem:answers", "thm:snowball", "thm:universality"),
        # The algebra of these is decided by tools, and the steps between by hand.
        *("lem:reader-score", "lem:mirror", "lem:divergence", "lem:copy", "lem:recall-gate"),
        *("lem:recall", "lem:confidence", "lem:choices"),
        *("lem:recall-several", "lem:choice-costs", "lem:tied-choices", "lem:ranked-choices"),
        "thm:snowball-choices",
        *("cor:calibration", "cor:inverse-ranking", "cor:correlation", "cor:blindness"),
        *("cor:greedy", "cor:hardness", "cor:token-classes", "lem:racing"),
        *("lem:gram-norm", "lem:float-exponential", "thm:irrelevance", "cor:amplification-pays"),
        *("lem:parallel-residual", "thm:architectures", "lem:gate-pairs", "lem:any-input"),
        # Tools decide them for one plane, one set or three keys; the step to any number is by hand.
        *(
            "lem:rotation-norm",
            "lem:softmax-variation",
            "lem:attention-lipschitz",
            "lem:silu-slope",
        ),
        *("thm:proxy-blindness", "thm:proxy-families", "lem:lead", "lem:share", "lem:norm-slope"),
    )
]
PROVED = [s for s in STATEMENTS if s.needs_proof]


@pytest.mark.parametrize("label", HAND)
def test_a_proof_by_hand_is_written_out(label: str) -> None:
    section = section_of(label)
    assert "*Proof.*" in section
    assert "$\\square$" in section.partition("*Proof.*")[2]


@pytest.mark.parametrize("statement", PROVED, ids=lambda s: s.label)
def test_the_prose_refers_to_what_a_proof_uses(statement: Statement) -> None:
    section = section_of(statement.label)
    for label in statement.uses:
        assert f"`{label}`" in section, f"{label} is used, but not referred to"


ONE = Dataset.from_rows([{"prompt": [], "label": 0, "distractor": 1}])
NESTED = Dataset.from_rows(
    [{"prompt": [0] * n, "label": n % 2, "distractor": 1 - n % 2} for n in range(5)],
    vocabulary_size=2,
)
SENTENCES = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)
CHOICES = Dataset.from_rows(
    [
        {"prompt": [3], "choices": [[0], [1], [2]], "label": [0]},
        {"prompt": [0, 3], "choices": [[1], [0], [2]], "label": [0]},
    ]
)


@pytest.mark.proves("thm:snowball", method="ball")
@pytest.mark.parametrize(
    ("dataset", "epsilon", "layers", "target"),
    [
        (ONE, 1e-6, 3, 1),
        (NESTED, 1e-30, 5, 2),
        (NESTED, 1.9, 4, 2),
        (SENTENCES, 0.5, 6, 1),
        (CHOICES, 1e-3, 8, 6),
    ],
)
def test_instances_are_certified(
    dataset: Dataset, epsilon: float, layers: int, target: int, tmp_path: Path
) -> None:
    """(a) to (d), for a real weight near the shipped one that gives epsilon exactly."""
    certified(dataset, epsilon, layers, target, tmp_path)


def certified(
    dataset: Dataset, epsilon: float, layers: int, target: int, folder: Path
) -> Certificate:
    """The certificate of a model in float64, which the checker has accepted."""
    built = counterexample(
        dataset, epsilon=epsilon, layers=layers, target=target, dtype=torch.float64
    )
    model = built.save_pretrained(folder / "model")
    certificate = certify(model)
    verify(certificate, model, model / "dataset.jsonl")
    return certificate


TIED = Dataset.from_rows(
    [
        {"prompt": [7], "choices": [[1, 2], [3]], "label": [1, 2], "distractor": [3]},
        {"prompt": [7], "choices": [[4], [5, 1]], "label": [4], "distractor": [5, 1]},
        {"prompt": [7, 1], "choices": [[6], [3]], "label": [6], "distractor": [3]},
    ]
)
RANKED = Dataset.from_rows(
    [
        {"prompt": [7], "choices": [[1], [2]], "label": [1], "distractor": [2]},
        {"prompt": [7], "choices": [[2], [3]], "label": [2], "distractor": [3]},
        {"prompt": [7], "choices": [[3], [4, 1]], "label": [3], "distractor": [4, 1]},
        {"prompt": [7], "choices": [[4, 1], [5]], "label": [4, 1], "distractor": [5]},
    ]
)


@pytest.mark.proves("thm:snowball-choices", method="ball")
@pytest.mark.parametrize(
    ("dataset", "epsilon", "layers", "target"), [(TIED, 1e-9, 5, 1), (RANKED, 0.3, 4, 2)]
)
def test_instances_with_ties_and_orders_are_certified(
    dataset: Dataset, epsilon: float, layers: int, target: int, tmp_path: Path
) -> None:
    certificate = certified(dataset, epsilon, layers, target, tmp_path)
    assert certificate.divergence is not None
