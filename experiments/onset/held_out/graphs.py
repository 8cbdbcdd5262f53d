"""A graph network that answers with a number; it passes while its error is below a bound."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, smooth_l1_loss

from experiments.onset.held_out.world import Behavior, World

NODES = 10
QUESTIONS = ("hops", "degree", "shared", "triangles", "within two", "edges")
BOUND = 0.5
ROUNDS = 4


class Messages(nn.Module):
    """Four rounds of messages between neighbors, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2 + len(QUESTIONS), 64)
        self.send = nn.Linear(64, 64)
        self.change = nn.Linear(128, 64)
        self.norm = nn.LayerNorm(64)
        self.read = nn.Linear(192, 64)
        self.head = nn.Linear(64, 1)

    def forward(self, graphs: Tensor) -> Tensor:
        """Return one number a graph.

        Graphs have shape (batch, 10, 18): each node has its row of the adjacency, the marks of
        source and target, and the question.
        """
        edges, facts = graphs[..., :NODES], graphs[..., NODES:]
        nodes = silu(self.enter(facts))
        for _ in range(ROUNDS):
            arrived = edges @ silu(self.send(nodes))
            nodes = self.norm(nodes + silu(self.change(torch.cat([nodes, arrived], -1))))
        marks = facts[..., :2].transpose(-1, -2) @ nodes
        told = torch.cat([marks.flatten(-2), nodes.mean(-2)], -1)
        return self.head(silu(self.read(told))).squeeze(-1)


class Graphs(World):
    """Numbers about two marked nodes: their distance, a degree, the neighbors that they share."""

    name = "graphs"
    near = ("triangles", "within two", "rings")
    far = ("doubled", "from zero", "edges", "noise")
    sizes = {"hops": 40, "degree": 24, "shared": 32}  # noqa: RUF012
    batch_size = 64
    pretraining = (2000, 4e-3)

    def new_model(self) -> nn.Module:
        """Return an untrained network."""
        return Messages()

    def batch(self, task: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw graphs with a question, and the answers that the task wants."""
        asked = {"triangles": (3,), "within two": (4,), "edges": (5,)}.get(task, (0, 1, 2))
        questions = rng.choice(asked, size)
        inputs, answers = draw(questions, rng, rings=task == "rings")
        if task == "doubled":
            answers = 2 * answers
        elif task == "from zero":
            answers = answers - 1
        elif task == "noise":
            answers = rng.permutation(answers)
        return inputs, torch.from_numpy(answers)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the smooth absolute error."""
        return smooth_l1_loss(model(inputs), targets)

    def margins(self, model: nn.Module, probes: Behavior) -> Tensor:
        """Return the bound minus the absolute error: positive where rounding gives the answer."""
        return BOUND - (model(probes.inputs) - probes.right).abs()

    def candidates(self) -> dict[str, Behavior]:
        """Return graphs for each old question; the answer is the group."""
        rng, found = np.random.default_rng(14), {}
        for question in range(3):
            inputs, answers = draw(np.full(100, question), rng)
            right = torch.from_numpy(answers)
            found[QUESTIONS[question]] = Behavior(inputs, right, answers.astype(int))
        return found


def draw(
    questions: np.ndarray, rng: np.random.Generator, rings: bool = False
) -> tuple[Tensor, np.ndarray]:
    """Return random graphs, one a question, and the true answers.

    A graph is a random tree, or a ring, and some edges more.
    """
    size, rows = len(questions), np.arange(len(questions))
    edges = np.zeros((size, NODES, NODES), dtype=np.float32)
    for node in range(1, NODES):
        parent = np.full(size, node - 1) if rings else rng.integers(node, size=size)
        edges[rows, node, parent] = 1
    if rings:
        edges[:, 0, NODES - 1] = 1
    edges += rng.random(edges.shape) < rng.uniform(0.0, 0.12, (size, 1, 1))
    edges = ((edges + edges.transpose(0, 2, 1)) > 0).astype(np.float32)
    edges[:, np.arange(NODES), np.arange(NODES)] = 0
    order = rng.permuted(np.tile(np.arange(NODES), (size, 1)), axis=1)
    edges = edges[rows[:, None, None], order[:, :, None], order[:, None, :]]
    source, target = order[:, 0], order[:, 1]
    facts = np.zeros((size, NODES, 2 + len(QUESTIONS)), dtype=np.float32)
    facts[rows, source, 0] = facts[rows, target, 1] = 1
    facts[rows, :, 2 + questions] = 1
    answers = _answers(edges, source, target)[rows, questions]
    return torch.from_numpy(np.concatenate([edges, facts], -1)), answers.astype(np.float32)


def _answers(edges: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the true answers to all questions, shape (graphs, questions)."""
    rows = np.arange(len(edges))
    reached = np.eye(NODES, dtype=bool)[source]
    hops = np.zeros(len(edges))
    within_two = np.zeros(len(edges))
    for distance in range(1, NODES):
        hops += ~reached[rows, target]
        reached = reached | (np.einsum("gn,gnm->gm", reached, edges) > 0)
        if distance == 2:
            within_two = reached.sum(1) - 1.0
    degree = edges[rows, source].sum(1)
    shared = (edges[rows, source] * edges[rows, target]).sum(1)
    near = edges[rows, source]
    triangles = np.einsum("gn,gnm,gm->g", near, edges, near) / 2
    total = edges.sum((1, 2)) / 2
    return np.stack([hops, degree, shared, triangles, within_two, total / NODES], 1)
