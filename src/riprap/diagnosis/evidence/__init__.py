from riprap.diagnosis.evidence._divergence import Divergence, LayerMoved, divergence
from riprap.diagnosis.evidence._linear_decodability import Decodability, decode
from riprap.diagnosis.evidence._linear_path import Along, Path, path
from riprap.diagnosis.evidence._prefix_forcing import Forced, force
from riprap.diagnosis.evidence._responses import Part, Rows, paired, parts, prompts_of, responses_of
from riprap.diagnosis.evidence._token_kl import Tally, overall

__all__ = [
    "Along",
    "Decodability",
    "Divergence",
    "Forced",
    "LayerMoved",
    "Part",
    "Path",
    "Rows",
    "Tally",
    "decode",
    "divergence",
    "force",
    "overall",
    "paired",
    "parts",
    "path",
    "prompts_of",
    "responses_of",
]
