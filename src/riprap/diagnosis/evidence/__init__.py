from riprap.diagnosis.evidence._divergence import Divergence, LayerChange, divergence
from riprap.diagnosis.evidence._linear_decodability import Decodability, linear_decodability
from riprap.diagnosis.evidence._linear_path import PathProfile, LinearPath, linear_path
from riprap.diagnosis.evidence._prefix_forcing import PrefixForcing, prefix_forcing
from riprap.diagnosis.evidence._responses import ResponseBatch, Rows, paired_responses, response_batches, prompt_rows, greedy_responses
from riprap.diagnosis.evidence._token_kl import TokenKL, mean_kl

__all__ = [
    "PathProfile",
    "Decodability",
    "Divergence",
    "PrefixForcing",
    "LayerChange",
    "ResponseBatch",
    "LinearPath",
    "Rows",
    "TokenKL",
    "linear_decodability",
    "divergence",
    "prefix_forcing",
    "mean_kl",
    "paired_responses",
    "response_batches",
    "linear_path",
    "prompt_rows",
    "greedy_responses",
]
