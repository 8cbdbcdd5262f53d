"""The toy world of `riprap demo`: a small Llama with old skills, and new tasks that damage them.

- `ToyWorld`, `ToyConfig`: tasks, pretrained model, optimizer, batches and behaviors.
- `PRETRAINED_TASKS`, `DISPLAY_NAMES`: ids of the tasks, and their readable names.
- `Examples`, `Vocabulary`: prompts with answers, and the tokens that they consist of.
- `STORIES`, `unpack_stories`, `stories_digest`: recorded runs to look at.
- `random_llama`, `batches`, `fit`, `train_or_load`, `fingerprint`, `CACHE`, `Progress`: parts for
  other worlds.
"""

from riprap.toy._stories import STORIES, stories_digest, unpack_stories
from riprap.toy._tasks import Examples, Vocabulary
from riprap.toy._training import (
    CACHE,
    Progress,
    batches,
    fingerprint,
    fit,
    random_llama,
    train_or_load,
)
from riprap.toy._world import DISPLAY_NAMES, PRETRAINED_TASKS, ToyConfig, ToyWorld

__all__ = [
    "CACHE",
    "DISPLAY_NAMES",
    "PRETRAINED_TASKS",
    "STORIES",
    "Examples",
    "Progress",
    "ToyConfig",
    "ToyWorld",
    "Vocabulary",
    "batches",
    "fingerprint",
    "fit",
    "random_llama",
    "stories_digest",
    "train_or_load",
    "unpack_stories",
]
