"""The table of CUDA kernels, and the rules by which several of them become one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xnn import ops
from xnn.backends.kernels.calls import Call, KernelTable, Runnable, Whole, nothing
from xnn.backends.kernels.cuda import activation_kernels as activations
from xnn.backends.kernels.cuda import augmentation_kernels as augmentation
from xnn.backends.kernels.cuda import data_kernels as data
from xnn.backends.kernels.cuda import dense_kernels as dense
from xnn.backends.kernels.cuda import embedding_kernels as embeddings
from xnn.backends.kernels.cuda import image_kernels as images
from xnn.backends.kernels.cuda import loss_kernels as loss
from xnn.backends.kernels.cuda import loss_weights as weights
from xnn.backends.kernels.cuda import normalization_kernels as norms
from xnn.backends.kernels.cuda import persistent_kernel as persistent
from xnn.backends.kernels.cuda import pooling_kernels as pooling
from xnn.backends.kernels.cuda import update_kernels as changes
from xnn.backends.kernels.cuda.cublas import library
from xnn.backends.kernels.cuda.data_kernels import Gather
from xnn.backends.kernels.cuda.data_set import DataSet
from xnn.backends.kernels.cuda.feed import LONGEST, DeviceFeed
from xnn.backends.kernels.cuda.loss_kernels import Accuracy, Loss
from xnn.backends.kernels.cuda.loss_weights import Collect, Divisor
from xnn.backends.kernels.cuda.normalization_kernels import Running
from xnn.backends.kernels.cuda.update_kernels import Segments
from xnn.ops import updates
from xnn.ops.metrics import accuracy
from xnn.ops.normalization import running_moments

__all__ = ["CudaTable", "join_losses", "join_neighbours"]

_KERNELS: dict[tuple[str, Any], tuple[Any, Any]] = {
    ("gather", None): (data.gather, data.serves_gather),
    ("draw", None): (augmentation.draw, augmentation.serves_draw),
    ("forward", ops.warp): (augmentation.warp, augmentation.serves_warp),
    ("forward", ops.dropout): (data.dropout, data.serves_dropout),
    ("backward", ops.dropout): (data.dropout_backward, data.serves_dropout),
    ("forward", ops.dense): (dense.dense, dense.serves_dense),
    ("backward", ops.dense): (dense.dense_backward, dense.serves_dense),
    **{("forward", op): (dense.activation, dense.serves_elements) for op in dense.KINDS if op is not None},
    **{
        ("backward", op): (dense.activation_backward, dense.serves_elements)
        for op in dense.KINDS
        if op is not None
    },
    **{("forward", op): (activations.curve, activations.serves_curve) for op in activations.CURVES},
    **{("backward", op): (activations.curve_backward, activations.serves_curve) for op in activations.CURVES},
    **{
        (kind, op): (activations.reshape, activations.serves_shape)
        for kind in ("forward", "backward")
        for op in activations.SHAPES
    },
    **{("forward", op): (activations.softmax, activations.serves_softmax) for op in activations.SOFTMAXES},
    **{
        ("backward", op): (activations.softmax_backward, activations.serves_softmax)
        for op in activations.SOFTMAXES
    },
    ("forward", ops.conv2d): (images.conv2d, images.serves_conv2d),
    ("backward", ops.conv2d): (images.conv2d_backward, images.serves_conv2d),
    **{("forward", op): (pooling.pool, pooling.serves_pool) for op in (ops.max_pool2d, ops.avg_pool2d)},
    **{
        ("backward", op): (pooling.pool_backward, pooling.serves_pool)
        for op in (ops.max_pool2d, ops.avg_pool2d)
    },
    ("forward", ops.mean): (pooling.mean, pooling.serves_mean),
    ("backward", ops.mean): (pooling.mean_backward, pooling.serves_mean),
    ("forward", ops.moments): (norms.moments, norms.serves_moments),
    ("forward", ops.normalize): (norms.normalize, norms.serves_normalize),
    ("backward", ops.normalize): (norms.normalize_backward, norms.serves_normalize_backward),
    ("keep", running_moments): (norms.running, norms.serves_running),
    ("forward", ops.embedding): (embeddings.embedding, embeddings.serves_embedding),
    ("backward", ops.embedding): (embeddings.embedding_backward, embeddings.serves_embedding),
    ("forward", ops.add): (dense.add, activations.serves_sum),
    ("backward", ops.add): (activations.sum_backward, activations.serves_sum),
    ("add", None): (dense.add, dense.serves_add),
    ("loss", ops.softmax_cross_entropy): (loss.cross_entropy, loss.serves_cross_entropy),
    **{("loss", op): (loss.distance, loss.serves_distance) for op in loss.DISTANCES},
    **{
        ("total", op): (weights.divisor, loss.serves_divisor)
        for op in (ops.softmax_cross_entropy, *loss.DISTANCES)
    },
    ("metric", accuracy): (loss.accuracy, loss.serves_accuracy),
    ("collect", None): (loss.collect, loss.serves_collect),
    **{("update", rule): (changes.update, changes.serves_update) for rule in changes.RULES},
    ("clip", updates.clip_by_norm): (changes.clip, dense.has_one_dtype),
    ("clip", updates.clip_by_value): (changes.clip, dense.has_one_dtype),
    ("keep", updates.moving_average): (changes.moving_average, dense.has_one_dtype),
}


class CudaTable(KernelTable):
    """CUDA kernels, for one fit: what changes from step to step, and the data, are in the GPU's memory.

    kernels: as for KernelTable, where bind(call, feed) returns an item or a list of items for `assemble`.

    Raises BackendUnavailableError if cuBLAS cannot be loaded.
    """

    name = "cuda"
    in_place = buffers_in_place = True
    chunk = LONGEST
    views = frozenset(activations.SHAPES)

    def __init__(self, kernels: Any = None) -> None:
        super().__init__(_KERNELS if kernels is None else kernels)
        library()
        self._data: DataSet | None = None
        self._feed: DeviceFeed | None = None

    def feed(
        self,
        groups: Sequence[Any],
        rows: int,
        collected: Sequence[Any],
        arrays: Sequence[Any] = (),
        free_memory: Callable[[], int | None] | None = None,
    ) -> DeviceFeed:
        """Make the feed of the programs that are bound from now on."""
        if self._data is None or not self._data.is_of(arrays, rows):
            self._data = DataSet(arrays, rows, LONGEST, free_memory)
        self._feed = DeviceFeed(groups, rows, collected, self._data)
        return self._feed

    def own(self, call: Call) -> bool:
        """Whether there is a kernel for the call, and place for what it records."""
        if call.kind == "collect" and self._feed is not None:
            return super().own(call) and self._feed.can_collect(call.options["into"], call.reads[0].shape)
        return super().own(call)

    def bind(self, call: Call) -> Any:
        """Return what the kernel launches: an item or a list of items for `assemble`."""
        assert self._feed is not None, "a program's feed is made before its kernels"
        return self.kernels[call.key][0](call, self._feed)  # type: ignore[call-arg]

    def whole(self, calls: Sequence[Call]) -> Whole:
        """The persistent kernel for these calls, or why they run one after the other."""
        assert self._feed is not None, "a program's feed is made before its kernels"
        return persistent.whole(calls, self._feed)

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """Join items that can be one launch, and turn all into functions without arguments."""
        flat = [
            part
            for item in bound
            for part in (item if isinstance(item, list) else [item])
            if part is not nothing
        ]
        for item in flat:
            if isinstance(item, Collect):
                item.place()
        items = self.join([item for item in flat if item is not None])
        return [step for item in items for step in (item.build() if hasattr(item, "build") else [item])]

    def join(self, items: list[Any]) -> list[Any]:
        """Join items that can be one launch."""
        return join_losses(join_neighbours(items))


def join_neighbours(items: list[Any]) -> list[Any]:
    """Join gathers that follow one another, averages that do, and running statistics that do."""
    joined: list[Any] = []
    for item in items:
        last = joined[-1] if joined else None
        if isinstance(last, Gather) and isinstance(item, Gather) and (both := last.join(item)):
            joined[-1] = both
        elif not (isinstance(last, (Segments, Running)) and last.join(item)):
            joined.append(item)
    return joined


def join_losses(items: list[Any]) -> list[Any]:
    """Let the loss do what belongs to it: accuracy, the record of both, and the gradient of the last bias.

    Accuracy is counted from the same logits, and nothing but the record reads the numbers. The bias's gradient comes
    right after the loss.
    """
    for cost in [item for item in items if isinstance(item, (Divisor, Loss))]:
        after = items.index(cost) + 1
        others = [item for item in items if isinstance(item, (Accuracy, Collect, Divisor))] + items[
            after : after + 1
        ]
        taken = [item for item in others if cost.join(item)]
        items = [item for item in items if not any(item is one for one in taken)]
    return items
