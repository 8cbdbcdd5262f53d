"""Monitor a training loop on several ranks. Launch it like your own script:

torchrun --nproc-per-node 2 examples/ranks.py --out runs/ranks            # DDP
torchrun --nproc-per-node 2 examples/ranks.py --out runs/ranks --fsdp     # FSDP2
accelerate launch --multi_gpu --num_processes 2 examples/ranks.py --out runs/ranks
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from riprap import Behavior, Monitor

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--fsdp", action="store_true")
parser.add_argument("--steps", type=int, default=40)
arguments = parser.parse_args()

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
)
model = LlamaForCausalLM(config).to(device)
numbers = torch.randint(3, 64, (48, 6), generator=torch.Generator().manual_seed(1)).to(device)


def make_rows(shift: int) -> torch.Tensor:
    """Make rows whose last token is the first token plus `shift`."""
    rows = numbers.clone()
    rows[:, -1] = 3 + (rows[:, 0] - 3 + shift) % 61
    return rows


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, shift: int, steps: int) -> None:
    """Train on this rank's share of the rows."""
    rows = make_rows(shift).chunk(world)[rank]
    for _ in range(steps):
        optimizer.zero_grad()
        logits = net(rows[:, :-1]).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, rows[:, -1]).backward()
        optimizer.step()


if arguments.fsdp:
    for layer in model.model.layers:
        fully_shard(layer)
    net = fully_shard(model)
else:
    net = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
train(net, optimizer, shift=1, steps=120)

old_rows = make_rows(1)
behavior = Behavior.next_token("first task", old_rows[:, :-1], old_rows[:, -1])
monitor = Monitor([behavior], probe_every=10, run_dir=arguments.out)
with monitor.watch(net, optimizer):  # on every rank; only rank 0 writes the record
    train(net, optimizer, shift=2, steps=arguments.steps)
if rank == 0:
    for alert in monitor.alerts:
        print(alert.step, alert.level, alert.message)
    print("broke:", monitor.broken())
dist.destroy_process_group()
