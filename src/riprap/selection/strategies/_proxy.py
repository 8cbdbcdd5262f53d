"""As moderate, by the error at the last hidden state: a forward pass is enough."""

from __future__ import annotations

from riprap.selection.strategies._moderate import Moderate


class Proxy(Moderate):
    """Of C those whose ‖∂L_i/∂h‖_F is nearest the median, h the last hidden states.

    ∂L_i/∂h_it = (softmax(z_it) − onehot(y_it)) W_head / n_i needs no backward pass. Variant of
    2604.17215, algorithm 1, which goes by the gradient in the parameters: how far the two agree
    depends on model and data (docs/selection.md).
    """

    name = "proxy"
    needs = frozenset({"proxy"})
    verdict = "variant"
    by = "proxy"
