"""Metrics: what is measured besides the loss, such as accuracy, F1 or R2.

    trainer = xnn.Trainer(model, loss, optimizer, metrics=["accuracy", "top5", metrics.F1(average="weighted")])

    f1 = metrics.F1()                  # without a Trainer, on arrays of any backend
    for x, y in batches:
        f1.update(model(x), y)
    f1.compute()
    f1(model(x), y)                    # on these samples alone

Each batch is counted on the device; the counts are added on the host, in float64. So batches of any size give the
result of all samples at once. Sample weights are not used: every sample counts once.

A metric of your own is a function (xp, outputs, targets) -> the sum over the batch, or a number for each sample (n,).
Their total is divided by the number of samples. Or it is a class:

    class Bias(metrics.Metric):
        name = "bias"
        def count(self, xp, outputs, targets): return xp.sum(outputs - targets, axis=0)
        def result(self, total, samples): return float(abs(total / samples).max())
"""

from xnn.metrics.calibration import CalibrationError, Reliability
from xnn.metrics.classes import F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from xnn.metrics.metric import Count, Metric, Totals, count_batch, count_on_device, try_out
from xnn.metrics.named import get
from xnn.metrics.regression import MAE, MSE, R2, RMSE
from xnn.ops.metrics import accuracy

__all__ = [
    "F1", "MAE", "MSE", "R2", "RMSE", "Accuracy", "CalibrationError", "ConfusionMatrix", "Count", "Metric",
    "Precision", "Recall", "Reliability", "TopK", "Totals", "accuracy", "count_batch", "count_on_device",
    "get", "try_out",
]  # fmt: skip
