"""Evidence: examinations of a checkpoint that train nothing, beside its reference.

- `linear_decodability` returns a `Decodability`: can a linear probe read the classes?
- `prefix_forcing` returns a `PrefixForcing`: does a response continue if its start is given?
- `linear_path` returns a `LinearPath` with a `PathProfile` for each behavior.
- `divergence` returns a `Divergence`: KL by token, and a `LayerChange` for each layer.
- `weight_damage` returns a `WeightDamage`: is the change pruning, quantization or noise?
- `greedy_responses`, `prompt_rows`: token ids for these. `ResponseBatch`, `response_batches`,
  `paired_responses`, `TokenKL`, `mean_kl`, `Rows`: teacher forcing, which repairs use too.
"""

from riprap.diagnosis.evidence._divergence import Divergence, LayerChange, divergence
from riprap.diagnosis.evidence._linear_decodability import Decodability, linear_decodability
from riprap.diagnosis.evidence._linear_path import LinearPath, PathProfile, linear_path
from riprap.diagnosis.evidence._prefix_forcing import PrefixForcing, prefix_forcing
from riprap.diagnosis.evidence._responses import (
    ResponseBatch,
    Rows,
    greedy_responses,
    paired_responses,
    prompt_rows,
    response_batches,
)
from riprap.diagnosis.evidence._token_kl import TokenKL, mean_kl
from riprap.diagnosis.evidence._weight_damage import NOISE, WeightDamage, weight_damage

__all__ = [
    "NOISE",
    "Decodability",
    "Divergence",
    "LayerChange",
    "LinearPath",
    "PathProfile",
    "PrefixForcing",
    "ResponseBatch",
    "Rows",
    "TokenKL",
    "WeightDamage",
    "divergence",
    "greedy_responses",
    "linear_decodability",
    "linear_path",
    "mean_kl",
    "paired_responses",
    "prefix_forcing",
    "prompt_rows",
    "response_batches",
    "weight_damage",
]
