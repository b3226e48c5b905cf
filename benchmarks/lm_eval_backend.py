"""lm-eval's own `hf` backend, asked what its tasks ask: for log-likelihoods, and for texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snowball.pretrained.loading import Pretrained


class LmEvalBackend:
    """A loaded model behind lm-eval's `hf` backend, with `rows` requests in a batch."""

    def __init__(self, loaded: Pretrained, rows: int) -> None:
        from lm_eval.models import huggingface

        # Its own annotations do not hold what its documentation shows.
        backend: Any = huggingface.HFLM
        self._backend = backend(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=rows, backend="causal"
        )

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of each continuation behind its context, in nats."""
        requests = self._requests("loglikelihood", pairs)
        return [nats for nats, _ in self._backend.loglikelihood(requests, disable_tqdm=True)]

    def texts(self, prompts: Sequence[str], new_tokens: int) -> list[str]:
        """What follows each prompt greedily, so many tokens at most."""
        how = {"until": [], "max_gen_toks": new_tokens, "do_sample": False}
        requests = self._requests("generate_until", [(prompt, how) for prompt in prompts])
        return self._backend.generate_until(requests, disable_tqdm=True)

    @staticmethod
    def _requests(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        from lm_eval.api.instance import Instance

        return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]
