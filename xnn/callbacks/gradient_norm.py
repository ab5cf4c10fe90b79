"""GradientNorm: the norm of the gradients in each epoch, for logs, curves and reports."""

from __future__ import annotations

from typing import Any

from xnn.backends import backend_of
from xnn.callbacks.callback import Callback
from xnn.history import History
from xnn.ops import updates
from xnn.ops.apply import apply_rule

__all__ = ["GradientNorm"]


class GradientNorm(Callback):
    """Adds the norm of the gradients of each epoch's last step to the history, as "gradient_norm".

        gradient_norm = sqrt(sum of the squares of all elements of all gradients)

    They are the gradients that the optimizer's rule got, after `clip_norm` and `clip_value`. Put it before callbacks
    that write the history, such as JsonLines. It keeps plain SGD from folding its step into the products that give
    the gradients: steps then take a little longer, and in fast numerics their last bits differ (history.plan says
    "folded": False).

        >>> import numpy as np
        >>> from xnn import Sequential, Trainer, callbacks, initializers, layers, losses, optimizers
        >>> x = np.array([[1.0], [2.0]], np.float32)
        >>> model = Sequential(layers.Dense(1, 1, bias=False, weight_init=initializers.Constant(0.0)))
        >>> trainer = Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=[callbacks.GradientNorm()])
        >>> history = trainer.fit((x, 3.0 * x), progress=False)  # the gradient: mean of 2 x (0 x - 3 x) = -15
        >>> history["gradient_norm"]
        [15.0]

    A norm that grows without end says that the rate is too high; one near 0 that nothing is learned any more, or
    that units are dead or saturated. Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent
    neural networks", ICML 2013.
    """

    needs_gradients = True
    #: It changes nothing in the training: a checkpoint needs nothing of it.
    bystander = True

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        # A parameter that was frozen keeps the gradient of an earlier fit.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None and not p.frozen]
        if gradients:
            lib = backend_of(*gradients)
            (norm,) = apply_rule(updates.common_norm, lib.math, gradients, {})
            entry["gradient_norm"] = float(lib.to_host(norm))
