"""Prompts rendered by a tokenizer's chat template, up to the first position of the answer.

A reasoning template may end inside a thought. Probes stand after the thought: the template's own
switch turns thinking off, or the open thought is closed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from riprap._warnings import warn
from riprap.errors import BehaviorError

THINKING_SWITCHES = ("enable_thinking", "thinking")  # variables of templates
THOUGHT_TAGS = ("think", "thinking", "thought", "reasoning")
_RESERVED = ("add_generation_prompt", "tokenize", "return_dict", "return_tensors", "padding")


class ChatTemplate:
    """A tokenizer's chat template with a system prompt and arguments.

    Args:
        system: system message put before conversations that have none.
        arguments: further variables of the template.

    Raises:
        BehaviorError: the template does not use an argument.
    """

    def __init__(
        self, tokenizer: Any, system: str | None, arguments: Mapping[str, Any] | None
    ) -> None:
        self.tokenizer, self.system = tokenizer, system
        if system is not None and not isinstance(system, str):
            raise BehaviorError(f"system must be a text, got {type(system).__name__}")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise BehaviorError(
                f"chat_template_kwargs must be a dict, got {type(arguments).__name__}"
            )
        self.given = dict(arguments or {})
        source = str(tokenizer.chat_template)
        self._check_names(source)
        switches = [s for s in THINKING_SWITCHES if re.search(rf"\b{s}\b", source)]
        self.arguments = dict.fromkeys(switches, False) | self.given
        self._warned = False

    def _check_names(self, source: str) -> None:
        known = re.findall(r"\b[a-zA-Z_]\w*\b", source)
        for name in self.given:
            if name in _RESERVED:
                raise BehaviorError(
                    f"chat_template_kwargs contains {name!r}, which is set here; leave it out"
                )
            if name not in known:
                near = difflib.get_close_matches(str(name), set(known), n=1, cutoff=0.8)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise BehaviorError(f"the chat template does not use {name!r}{hint}")

    def encode(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a prompt, with the generation prompt."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if self.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system}, *turns]
        text = self._render(turns, self.arguments)
        if self.system and turns[0]["content"] == self.system and self.system.strip() not in text:
            raise BehaviorError(
                "the chat template leaves out the system message; put it into the prompts"
            )
        closing = self._closing(turns, text)
        if closing:
            return without_end(self.tokenizer, _tokens(self.tokenizer, text + closing), text + "\n")
        if (
            not self._warned
            and self.arguments != self.given
            and text != self._render(turns, self.given)
        ):
            off = ", ".join(f"{s}=False" for s in self.arguments if s not in self.given)
            self._warn(f"probes are made with {off}")
        ids = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False, **self.arguments
        )
        return without_end(self.tokenizer, list(ids), text)

    def _render(self, turns: Any, arguments: dict[str, Any], generation: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=generation, tokenize=False, **arguments
            )
        )

    def _closing(self, turns: Any, text: str) -> str:
        """Return what closes a thought that the generation prompt opens; mostly nothing."""
        opened = [tag for tag in THOUGHT_TAGS if text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>")]
        if not opened:
            return ""
        before = self._render(turns, self.arguments, generation=False)
        added = text.removeprefix(before)
        tag = next((tag for tag in opened if f"<{tag}>" in added), None)
        if tag is None:
            return ""  # a prompt speaks of it
        for switch in THINKING_SWITCHES:
            if self.given.get(switch):
                raise BehaviorError(
                    f"chat_template_kwargs has {switch}={self.given[switch]!r}, which leaves the "
                    f"probes inside <{tag}>, before the answer; give {switch}=False"
                )
        self._warn(f"<{tag}> is closed at once")
        return f"{'' if added.endswith(chr(10)) else chr(10)}\n</{tag}>\n\n"

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"the chat template lets the model think first; {what}, so that probes "
                "stand where the answer begins",
            )


def without_end(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Return token ids without end tokens that the tokenizer appends to every text."""
    ends = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("eos", "sep")} - {None}
    while len(ids) > 1 and ids[-1] in ends:
        if text.rstrip().endswith(tokenizer.convert_ids_to_tokens(ids[-1])):
            break
        ids = ids[:-1]
    return ids


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text with the special tokens that stand before it, none after."""
    ids, bare = list(tokenizer(text)["input_ids"]), _tokens(tokenizer, text)
    for begin in range(len(ids) - len(bare) + 1):
        if bare and ids[begin : begin + len(bare)] == bare:
            return without_end(tokenizer, ids[: begin + len(bare)], text)
    return without_end(tokenizer, ids, text)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
