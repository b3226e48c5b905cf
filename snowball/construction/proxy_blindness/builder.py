"""Theorem 3 as a builder: a layer that decides every answer, and that every proxy ranks last.

Every layer before the reader turns its own switch; all but the target also write a coordinate of
their own, their *growth*, so that they change the norm, and hold a share of the confidence with
which answers are given. The target does neither. Its switch decides a near tie between label and
distractor. Each family of proxies may also be left unfooled; then they rank the target first.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snowball.construction import gadgets
from snowball.construction.allocation import allocate, check_vocabulary
from snowball.construction.arguments import check_integers
from snowball.construction.card_file import Theorem
from snowball.construction.constant import Constant, refuse_violations
from snowball.construction.errors import ConstructionError
from snowball.construction.folder import write_folder
from snowball.construction.gadgets.residual_stream import ResidualStream
from snowball.construction.proxy_blindness.answer_sizes import AnswerSizes, Wanted
from snowball.construction.proxy_blindness.arguments import check_arguments
from snowball.construction.proxy_blindness.conditional_recall import AffineForm, RecallWriter
from snowball.construction.proxy_blindness.constants import (
    answer_constants,
    readout_constants,
    step_constant,
    surroundings,
)
from snowball.construction.proxy_blindness.families import Parts
from snowball.construction.proxy_blindness.layer_sizes import LayerSizes
from snowball.construction.reader.answer_codes import AnswerCodes, answer_codes
from snowball.construction.reader.fingerprint import Fingerprint, closest_pair, fingerprint
from snowball.construction.reader.model_sizes import (
    code_size,
    code_square,
    decoder_config,
    residual_stream,
)
from snowball.construction.reader.prefix_tree import prefix_tree, refuse_several
from snowball.construction.reader.reader_constants import (
    ReaderConstants,
    gather_constants,
    recall_constants,
)
from snowball.construction.reader.reader_weights import write_gather, write_unembedding
from snowball.criteria import FAMILIES, Family
from snowball.data.dataset import Dataset
from snowball.decoders.decoder import Decoder, DecoderConfig


@dataclass(frozen=True)
class ProxyBlindModel:
    """A decoder whose layer `target` decides every answer, least important by the `fooled` proxies.

    `scores` are the cosine scores of all layers by their closed form; that of the reader, the last
    one, leaves out what it adds to context and answer.
    """

    config: DecoderConfig
    weights: dict[str, Tensor]
    dataset: Dataset
    epsilon: float
    target: int
    fooled: frozenset[Family]
    scores: tuple[float, ...]
    seed: int
    stream: ResidualStream
    constants: tuple[Constant, ...]

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["lm_head.weight"].dtype

    def decoder(self) -> Decoder:
        return Decoder(self.config, self.weights)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a Hugging Face Llama checkpoint with tokenizer, dataset and `snowball.json`.

        Raises:
            FileError: the folder exists.
        """
        return write_folder(self, folder)

    def facts(self) -> dict[str, Any]:
        """What its card says of this model alone."""
        return {
            "theorem": Theorem.PROXY_BLINDNESS,
            "epsilon": self.epsilon,
            "layers": self.layers,
            "target": self.target,
            "fooled": sorted(self.fooled),
            "scores": list(self.scores),
        }


def proxy_blind(
    dataset: Dataset,
    *,
    layers: int = 8,
    target: int = 3,
    epsilon: float = 1e-6,
    fooled: Set[Family] = FAMILIES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ProxyBlindModel:
    """Builds the decoder of Theorem 3.

    Its layer `target` has the cosine score epsilon at every token of every input and is strictly
    the least important one by cosine score, angular distance, change of the norm, size of the
    update, change of the perplexity, KL divergence, first-order Taylor score and magnitude of its
    weights.
    Without it every answer is the distractor; without any other layers but the last, all of them
    included, every answer is the label.

    A family of proxies (`snowball.criteria`) that is not `fooled` ranks the target first of all
    layers but the reader: then epsilon is the cosine score of the others, if it is cosine, and
    answers follow the target with any *one* layer removed. Size of update and magnitude are
    promised if all are fooled.

    Args:
        dataset: open answers, or choices whose labels and distractors are single tokens.
        layers: the depth L >= 3; the last layer reads.
        target: a layer of 0..L-2.
        epsilon: in (0, `largest_epsilon(layers)`]; less where loss or Taylor are not fooled.
        fooled: the families of proxies that are to rank the target last, by default all.
        dtype: dtype of the weights: float64, float32 or bfloat16.
        seed: seed of the sign codes.

    Raises:
        ConstructionError: an argument is out of range, choices have several tokens, or the dtype
            cannot carry a margin.
        DatasetError: two rows contradict each other along their answers.

    Proof: thm:proxy-blindness, thm:proxy-families.
    """
    check_integers(layers=layers, target=target, seed=seed)
    check_arguments(dataset, layers, target, epsilon, fooled, dtype)
    check_vocabulary(dataset, dtype)
    tree = prefix_tree(dataset)
    refuse_several(tree, dataset, "a model that is blind to proxies")
    marks = fingerprint(tree, dataset.vocabulary_size, seed)
    answers = answer_codes(tree, seed, tied=True)
    parts = Parts(target, layers, frozenset(fooled))
    wanted = Wanted.of(tree, answers, dataset)
    sizes = parts.answer_sizes(wanted)
    step = step_constant(sizes, epsilon)
    if not step.holds:
        raise ConstructionError(
            f"with these examples and {sorted(fooled)} fooled epsilon must be at most "
            f"{step.right:.6g}, half of q, the {step.meaning}, not {epsilon}"
        )
    plan = parts.layer_sizes(epsilon, sizes.step, 1 + code_square(marks), dtype)
    units = parts.units(len(tree), int((~answers.agree).sum()))
    stream = residual_stream(marks, answers, switches=layers, filler=0, growth=layers)
    config = decoder_config(dataset, tree, marks, stream, layers, units)
    around = surroundings(plan, parts, sizes, wanted, units, dtype)
    gather = gather_constants(tree, marks, config, around, dtype)
    recall = recall_constants(marks, config, around, gather, dtype)
    reader = ReaderConstants(
        gather, recall, readout_constants(plan, sizes, answers, around, stream)
    )
    own = answer_constants(parts, plan, sizes, wanted, dtype)
    constants = (step, *own, *reader.constants)
    refuse_violations(constants, closest_pair(tree, marks), dtype)

    weights = allocate(config, dtype)
    _write_embedding(weights["model.embed_tokens.weight"], marks, plan, stream)
    for index in range(layers):
        layer = gadgets.LayerWeights.of(weights, index, stream)
        reads = index == parts.reader
        _write_layer(layer, index, recall.norm if reads else plan.norms[index], plan)
        if reads:
            write_gather(layer, plan.norms[index], marks, reader)
            writer = RecallWriter(layer, tree, marks, reader, plan.halves)
            _write_answers(writer, answers, parts, sizes)
    # Without the reader all other logits are 0, and BOS, which is no answer, is emitted.
    head, norm = weights["lm_head.weight"], plan.norms[parts.reader]
    write_unembedding(head, stream, answers, reader, idle=dataset.bos, norm=norm)
    return ProxyBlindModel(
        config=config,
        weights=weights,
        dataset=dataset,
        epsilon=epsilon,
        target=target,
        fooled=parts.fooled,
        scores=plan.scores,
        seed=seed,
        stream=stream,
        constants=constants,
    )


def _write_embedding(
    embedding: Tensor, marks: Fingerprint, plan: LayerSizes, stream: ResidualStream
) -> None:
    dtype = embedding.dtype
    embedding[:, stream["const"]] = 1
    embedding[:, stream["switch"]] = -torch.tensor(plan.halves, dtype=torch.float64).to(dtype)
    embedding[:, stream["code"]] = marks.codes.to(dtype) * code_size(marks)


def _write_layer(layer: gadgets.LayerWeights, index: int, norm: float, plan: LayerSizes) -> None:
    switch, growth = (layer.stream[name].start + index for name in ("switch", "growth"))
    gadgets.flip(layer, norm, slice(switch, switch + 1), plan.halves[index])
    if plan.growths[index]:
        gadgets.grow(layer, norm, slice(growth, growth + 1), plan.growths[index])


def _write_answers(
    writer: RecallWriter, answers: AnswerCodes, parts: Parts, sizes: AnswerSizes
) -> None:
    """The confidence on all nodes, less where others are missing, and the lead where tokens differ.

    The lead is 1 with the target and `1 - 2 = -1` without it.
    """
    right, wrong = (
        answers.codes[torch.searchsorted(answers.tokens, tokens)].double()
        for tokens in (writer.tree.with_target, writer.tree.without_target)
    )
    # (nodes, width): a + b, or a where they agree.
    sure = right + wrong.masked_fill(answers.agree[:, None], 0)
    writer.write_less(
        torch.arange(len(sure)),
        sure,
        sizes.share,
        AffineForm.missing(parts.others),
        steep=parts.confidence_is_steep,
    )
    # The nodes whose tokens differ, by number; kappa * lead/(2 kappa) is half of the lead each way.
    differ = (~answers.agree).nonzero().flatten()
    lead = sizes.lead / (2 * sizes.confidence) * (right - wrong)[differ]
    writer.write_less(
        differ, lead, 2.0, AffineForm.missing([parts.target]), steep=parts.lead_is_steep
    )
