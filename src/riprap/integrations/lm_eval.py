"""lm-eval's tasks on a live model: `LiveModel` is an `lm_eval.api.model.LM` around it.

The model is used as it is, with its adapters and without a copy, and its training state is
preserved. Needs the extra evals.

    import lm_eval
    from riprap.integrations.lm_eval import LiveModel

    lm_eval.simple_evaluate(model=LiveModel(model, tokenizer), tasks=["arc_easy"], limit=100)
"""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

from torch import nn

from riprap._extras import EXTRAS, require
from riprap.behaviors import device_of
from riprap.errors import ConfigError
from riprap.evals import encode_pair, longest_input, score_pairs
from riprap.evaluation import generate

require("evals", *EXTRAS["evals"])

from lm_eval.api.model import LM  # type: ignore[import-not-found,unused-ignore]

MAX_NEW_TOKENS = 256  # where a task does not say
_KNOWN = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "num_beams"}


class LiveModel(LM):  # type: ignore[misc,unused-ignore]
    """A model under training, or any other, for the tasks of lm-eval.

    Args:
        model: with logits at each position; for tasks that generate, with `generate`.
        tokenizer: of the model.
        batch_size: answers that are generated at once.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int = 32) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._device = device_of(model)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        pairs = [encode_pair(self.tokenizer, *request.args) for request in requests]
        found = [(one.log_prob, one.is_greedy) for one in score_pairs(self.model, pairs)]
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, each token after as many as fit."""
        sums = []
        for request in requests:
            (text,) = request.args
            start, ids = encode_pair(self.tokenizer, "", text)
            limit = longest_input(self.model) or len(ids) + 1
            whole, pairs = start + ids, []
            for at in range(0, len(ids), limit - 1):
                window = ids[at : at + limit - 1]
                pairs.append((whole[max(0, at + 1 - (limit - len(window))) : at + 1], window))
            sums.append(sum(one.log_prob for one in score_pairs(self.model, pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate an answer to each context, cut where the first of its stop texts begins."""
        if not callable(getattr(self.model, "generate", None)):
            raise ConfigError(
                f"the task generates, and {type(self.model).__name__} has no `generate`"
            )
        answers: dict[int, str] = {}
        groups: dict[tuple[int, float], list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(at)
        for (length, temperature), own in groups.items():
            rows = [list(self.tokenizer(requests[at].args[0])["input_ids"]) for at in own]
            rows = [self._cut(row, length) for row in rows]
            found = generate(
                *(self.model, self.tokenizer, rows, length),
                temperature=temperature,
                batch_size=self.batch_size,
            )
            texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
            answers |= dict(zip(own, texts, strict=True))
        result = []
        for at, request in enumerate(requests):
            until = request.args[1].get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            text = answers[at]
            for stop in filter(None, stops):
                text = text.partition(stop)[0]
            self.cache_hook.add_partial("generate_until", request.args, text)
            result.append(text)
        return result

    @staticmethod
    def _settings(options: dict[str, Any]) -> tuple[int, float]:
        """Return number of tokens and temperature; refuse what would be left out in silence."""
        unknown = {key for key in options if key not in _KNOWN and options[key] is not None}
        if unknown or options.get("num_beams", 1) not in (1, None):
            raise ConfigError(
                f"the task asks for {', '.join(sorted(unknown)) or 'beams'}, which LiveModel does "
                "not offer: it takes until, max_gen_toks, do_sample and temperature"
            )
        length = options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_NEW_TOKENS
        temperature = float(options.get("temperature") or 0.0)
        if options.get("do_sample") is False:
            temperature = 0.0
        elif options.get("do_sample") and not temperature:
            temperature = 1.0
        return int(length), temperature

    def _cut(self, row: list[int], length: int) -> list[int]:
        """Drop the beginning of a context that leaves no room for the answer."""
        limit = longest_input(self.model)
        return row if limit is None else row[-max(1, limit - length) :]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a chat by the tokenizer's own template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's template, if one is asked for."""
        return str(self.tokenizer.chat_template) if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's caches."""
        return str(getattr(self.tokenizer, "name_or_path", "") or "tokenizer").replace("/", "__")
