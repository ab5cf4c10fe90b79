"""Metrics: counted on the device batch by batch, added on the host, one number at the end.

    trainer = xnn.Trainer(model, loss, optimizer, metrics=["accuracy", "top5", metrics.F1(average="weighted")])

    f1 = metrics.F1()                  # or alone, on arrays of any backend
    for x, y in batches:
        f1.update(model(x), y)
    f1.compute()

Batches may differ in size: what is added are counts and sums, so that many batches give what one of all samples
would. Sample weights do not enter: every sample counts once, whatever its loss weighs.

One of your own is a function (xp, outputs, targets) -> the batch's sum, which is divided by the samples, or a class:

    class Bias(metrics.Metric):
        name = "bias"
        def count(self, xp, outputs, targets): return xp.sum(outputs - targets, axis=0)
        def result(self, total, samples): return float(abs(total / samples).max())
"""

from xnn.metrics.classes import F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from xnn.metrics.metric import Count, Metric, Totals, count_batch
from xnn.metrics.named import get
from xnn.metrics.regression import MAE, MSE, R2, RMSE
from xnn.ops.metrics import accuracy

__all__ = [
    "F1", "MAE", "MSE", "R2", "RMSE", "Accuracy", "ConfusionMatrix", "Count", "Metric", "Precision", "Recall", "TopK",
    "Totals", "accuracy", "count_batch", "get",
]  # fmt: skip
