"""The toy world: a capability, a refusal and its contrast, and new tasks that endanger them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from riprap.behaviors import Behavior
from riprap.studies.worlds import tasks
from riprap.studies.worlds.tasks import Vocabulary
from riprap.studies.worlds.training import batches


@dataclass(frozen=True)
class ToyConfig:
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    feed_forward: int = 128
    tie: bool = False
    init: float = 0.1
    start_steps: int = 600
    start_lr: float = 4e-3
    start_wd: float = 0.01
    start_batch: int = 128
    lr: float = 3e-4
    wd: float = 0.01
    batch: int = 64
    probes: int = 48
    betas: tuple = (0.9, 0.999)


OLD = ("A", "B", "over_refusal")


class ToyWorld:
    def __init__(self, config: ToyConfig | None = None):
        self.config = c = config or ToyConfig()
        v = c.vocabulary
        self.tasks = {
            "A": tasks.addition(v),
            "B": tasks.requests(v, "harmful"),
            "over_refusal": tasks.requests(v, "harmless"),
            "C": tasks.product_of(v),
            "C_disjoint": tasks.product_of(v, True),
            "C_context": tasks.product_in_request(v),
        }

    def untrained(self, seed):
        c = self.config
        lc = LlamaConfig(
            vocab_size=len(c.vocabulary),
            hidden_size=c.hidden,
            intermediate_size=c.feed_forward,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            max_position_embeddings=8,
            tie_word_embeddings=c.tie,
            attn_implementation="sdpa",
            use_cache=False,
            initializer_range=c.init,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(lc).float()

    def batches(self, task, seed, size=None):
        n = size or self.config.batch
        if task == "null":
            sizes = [n // 2, n // 4, n - n // 2 - n // 4]
            return batches([self.tasks[t] for t in OLD], sizes, seed)
        return batches([self.tasks[task]], [n], seed)

    def loss(self, model, batch):
        logits = model(batch.input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return functional.cross_entropy(logits, batch.targets)

    @torch.no_grad()
    def evaluate(self, model, task):
        e = self.tasks[task]
        logits = model(e.input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return (logits.argmax(-1) == e.targets).float().mean().item()

    def optimizer(self, model, lr=None):
        return torch.optim.AdamW(
            model.parameters(),
            lr=lr or self.config.lr,
            weight_decay=self.config.wd,
            betas=self.config.betas,
            fused=True,
        )

    def start(self, seed, cache=Path("/tmp/scratch/toy/cache"), verbose=False):
        c = self.config
        key = hashlib.sha256(json.dumps([asdict(c), seed]).encode()).hexdigest()[:16]
        path = Path(cache) / f"{key}.safetensors"
        m = self.untrained(seed)
        if path.exists():
            m.load_state_dict(load_file(path), strict=False)
            return m
        o = torch.optim.AdamW(m.parameters(), lr=c.start_lr, weight_decay=c.start_wd, fused=True)
        s = torch.optim.lr_scheduler.LambdaLR(
            o, lambda k: min(1, (k + 1) / 50) * max(0.02, 1 - k / c.start_steps)
        )
        b = self.batches("null", seed, c.start_batch)
        for k in range(c.start_steps):
            l = self.loss(m, next(b))
            l.backward()
            o.step()
            s.step()
            o.zero_grad()
            if verbose and k % 200 == 199:
                print(k + 1, l.item(), [round(self.evaluate(m, t), 3) for t in OLD], flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v for k, v in m.state_dict().items() if not (c.tie and k == "lm_head.weight")}, path
        )
        return m

    def behaviors(self, probe_seed=0):
        out = []
        for i, t in enumerate(OLD):
            e = self.split(t, probe_seed)[0]
            out.append(
                Behavior.next_token(
                    t,
                    e.input_ids,
                    e.targets,
                    contrast={"B": "over_refusal", "over_refusal": "B"}.get(t),
                )
            )
        return out

    def split(self, t, probe_seed=0):
        e = self.tasks[t]
        p = torch.randperm(
            len(e), generator=torch.Generator().manual_seed(probe_seed * 1000 + OLD.index(t))
        )
        return e[p[: self.config.probes]], e[p[self.config.probes :]]

    def truth(self, probe_seed=0):
        return {t: self.split(t, probe_seed)[1] for t in OLD}
