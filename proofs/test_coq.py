"""Three theorems in Coq: accepted, without other axioms, as the page states and maps them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from statements import STATEMENTS

COQ = Path(__file__).parent / "coq"
PAGE = (COQ / "README.md").read_text(encoding="utf-8")
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(COQ.glob("*.v"))}
STATED = ("Statement.v", "UniversalityStatement.v", "IrrelevanceStatement.v")
NAMED = re.compile(r"^(?:Theorem|Lemma|Definition) (\w+)", re.M)


def make(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", folder, target], capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder where Coq has accepted all proofs, and nothing more is assumed."""
    if shutil.which("coqc") is None or shutil.which("make") is None:
        pytest.skip("needs coqc and make: apt-get install coq make")
    folder = tmp_path_factory.mktemp("coq") / "coq"
    shutil.copytree(COQ, folder, ignore=shutil.ignore_patterns("*.vo*", "*.glob", ".*"))
    done = make(folder, "axioms")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.proves("thm:snowball", method="coq")
def test_coq_accepts_theorem_1(compiled: Path) -> None:
    assert (compiled / "Snowball.vo").exists()
    assert (compiled / "Necessity.vo").exists()


@pytest.mark.proves("thm:universality", method="coq")
def test_coq_accepts_theorem_2(compiled: Path) -> None:
    assert (compiled / "Universality.vo").exists()


@pytest.mark.proves("cor:blindness", method="coq")
def test_coq_accepts_observational_blindness(compiled: Path) -> None:
    assert (compiled / "Blindness.vo").exists()


@pytest.mark.proves("thm:irrelevance", method="coq")
def test_coq_accepts_theorem_4(compiled: Path) -> None:
    assert (compiled / "Irrelevance.vo").exists()


CHEAT = """Variable cheat : forall P : Prop, P.
Theorem snowball : snowball_theorem. Proof. apply cheat. Qed.
"""
SHADOW = """Definition snowball_theorem := True.
Theorem snowball : snowball_theorem. Proof. exact I. Qed.
"""
CHOICE = """From Coq Require ClassicalEpsilon.
Theorem snowball : snowball_theorem. Proof.
pose proof ClassicalEpsilon.constructive_indefinite_description."""


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("Snowball.v", r"(?s)Theorem snowball :.*", CHEAT, "Variable cheat"),
        ("Snowball.v", r"(?s)Theorem snowball :.*?Proof\.", CHOICE, "> ClassicalEpsilon."),
        ("Snowball.v", r"(?s)Theorem snowball :.*", SHADOW, "to have type"),
        ("Snowball.v", r"Qed\.\s*\Z", "Admitted.\n", "Admitted"),
        ("Necessity.v", r"\Z", "Axiom more : False.\n", "Axiom more"),
        ("Necessity.v", r"\Z", "Unset Positivity Checking.\n", "Unset Positivity"),
        ("Schedule.v", r"0 < epsilon <= 1 / 2", "0 < epsilon <= 1", "Error"),
        ("Statement.v", r"\(\* \(a\) \*\)", '(* " *) False -> (* " *)', "False ->"),
    ],
    ids=[
        "a variable of no section",
        "an axiom of another library",
        "another theorem of the same name",
        "an admitted proof",
        "an axiom",
        "a check of Coq that is off",
        "a step that fails",
        "a clause in a string in a comment",
    ],
)
def test_what_is_not_proved_is_refused(
    compiled: Path, tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    folder = shutil.copytree(compiled, tmp_path / "coq")
    text, changes = re.subn(old, lambda _: new, SOURCES[file], count=1)
    assert changes == 1
    (folder / file).write_text(text, encoding="utf-8")
    done = make(folder, "axioms")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_the_page_quotes_the_statements() -> None:
    """Whoever changes a statement changes the page that explains it."""
    quoted = "".join(re.findall(r"^```coq\n(.*?)^```$", PAGE, re.M | re.S))
    assert code(quoted) == [word for name in STATED for word in code(SOURCES[name])]


def code(text: str) -> list[str]:
    """The words of Coq text without its comments. What could end a comment elsewhere is refused."""
    bare = re.sub(r"\(\*((?!\(\*).)*?\*\)", "", text, flags=re.S)
    assert '"' not in text, "a string hides text"
    assert not {"(*", "*)"} & {bare[i : i + 2] for i in range(len(bare))}, "a comment hides text"
    return bare.split()


@pytest.mark.parametrize("text", ['a (* " *) b (* " *) c', "a (* (* *) b *) c", "a (* b", "a *) b"])
def test_text_that_hides_a_clause_is_refused(text: str) -> None:
    with pytest.raises(AssertionError, match="hides text"):
        code(text)


@pytest.mark.parametrize("name", STATED)
def test_a_statement_is_short(name: str) -> None:
    assert SOURCES[name].count("\n") < 150


def test_the_page_maps_prose_to_coq() -> None:
    """Every lemma below the theorems is mapped to what exists, or said not to be needed."""
    known = {name for text in SOURCES.values() for name in NAMED.findall(text)}
    rows = re.findall(r"^\| (`lem:.*?) \| (`.*?) \|", PAGE, re.M)
    mapped = {label for left, _ in rows for label in re.findall(r"`(lem:.*?)`", left)}
    for _, right in rows:
        assert set(re.findall(r"`(\w+)`", right)) <= known
    unneeded = set(re.findall(r"`(lem:.*?)`", PAGE.partition("Not needed by these decoders")[2]))
    below = labels_below("thm:snowball") | labels_below("thm:universality")
    used = {label for label in below if label.startswith("lem:")}
    assert used == mapped | unneeded
    assert not mapped & unneeded


def labels_below(label: str) -> set[str]:
    """Every label that a statement uses, directly or through others."""
    direct = {s.label: set(s.uses) for s in STATEMENTS}
    found, new = set[str](), direct[label]
    while new:
        found |= new
        new = set[str]().union(*(direct[one] for one in new)) - found
    return found
