"""Examples in all supported forms: the same examples in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diagnosis.lookup import OTHERS, Lookup, behavior, value_of
from riprap import Behavior
from riprap.diagnosis.recovery._examples import Examples

IDS = torch.tensor([[key, key] for key in OTHERS[:6]])
WANTED = torch.tensor([value_of(key) for key in OTHERS[:6]])


class Indexed:
    """What takes a tensor of indices."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return IDS[index], WANTED[index]


class Pair(NamedTuple):
    ids: Tensor
    wanted: Tensor


def of_pair(model: nn.Module, batch: Any) -> Tensor:
    ids, wanted = batch
    return nn.functional.cross_entropy(model(ids.view(-1, 2))[:, -1], wanted.view(-1))


def of_names(model: nn.Module, batch: Any) -> Tensor:
    return of_pair(model, (batch["ids"], batch["wanted"]))


FORMS: dict[str, tuple[Any, Callable[[nn.Module, Any], Tensor] | None]] = {
    "a behavior": (Behavior.next_token("b", IDS, WANTED), None),
    "one mapping": ({"ids": IDS, "wanted": WANTED}, of_names),
    "mappings": ([{"ids": IDS[:4], "wanted": WANTED[:4]}, {"ids": IDS[4:], "wanted": WANTED[4:]}],
                 of_names),
    "with a number beside": ({"weight": 1.0, "ids": IDS, "wanted": WANTED}, of_names),
    "mappings without rows": ([{"ids": i, "wanted": w} for i, w in zip(IDS, WANTED, strict=True)],
                              of_names),
    "one tuple": ((IDS, WANTED), of_pair),
    "tuples": ([(IDS[:4], WANTED[:4]), (IDS[4:], WANTED[4:])], of_pair),
    "named tuples": ([Pair(IDS, WANTED)], of_pair),
    "tuples without rows": (list(zip(IDS, WANTED, strict=True)), of_pair),
    "lists": ([[IDS[:4], WANTED[:4]], [IDS[4:], WANTED[4:]]], of_pair),
    "one list": ([IDS, WANTED], of_pair),
    "indexed": (Indexed(), of_pair),
    "indexed ones": ([Indexed()], of_pair),
    "a data set": (TensorDataset(IDS, WANTED), of_pair),
    "a loader": (DataLoader(TensorDataset(IDS, WANTED), batch_size=4), of_pair),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_examples(form: str) -> None:
    given, loss = FORMS[form]
    found = Examples(given, loss)
    model = Lookup()
    assert len(found) == 6
    for chosen in ([0], [1, 4], [5, 2, 0]):
        logits = model(IDS[chosen])[:, -1].double()
        right = -logits.log_softmax(-1)[torch.arange(len(chosen)), WANTED[chosen]].mean()
        assert float(found.loss(model, chosen)) == pytest.approx(float(right), rel=1e-6)


def test_texts_are_single_examples() -> None:
    found = Examples(["one text", "another"], lambda model, text: torch.tensor(float(len(text))))
    assert len(found) == 2
    assert float(found.loss(Lookup(), [0, 1])) == 7.5


def test_lists_of_tokens_are_single_examples() -> None:
    assert len(Examples([[1, 2, 3], [4, 5]], lambda model, row: torch.tensor(0.0))) == 2


def test_only_rows_of_tokens_are_compared_with_probes() -> None:
    assert set(Examples({"ids": IDS, "wanted": WANTED}, of_names).token_rows()) == set(
        map(tuple, IDS.tolist())
    )
    assert len(Examples(behavior()).token_rows()) == 30
