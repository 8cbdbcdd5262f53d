"""Proxy: moderate by the error at the last hidden state, which needs a forward pass only."""

from __future__ import annotations

from riprap.selection.strategies._moderate import Moderate


class Proxy(Moderate):
    """Samples of C with ‖∂L_i/∂h‖_F nearest to its median, h the last hidden states.

    ∂L_i/∂h_it = (softmax(z_it) − onehot(y_it)) W_head / n_i needs no backward pass. Variant of
    2604.17215, algorithm 1, which uses the gradient in the parameters. The agreement of the two
    depends on model and data (docs/selection.md).
    """

    name = "proxy"
    needs = frozenset({"proxy"})
    fidelity = "variant"
    score_name = "proxy"
