"""A small run of `xnn train`, and the same training by the library's own calls."""

import json

from command_line import run

from xnn.data import load
from xnn.layers.files import weights_sha256
from xnn.runs.mlp import mlp
from xnn.training import Trainer

TRAIN = ("--hidden", "8", "--epochs", 2, "--batch-size", 50, "--threads", 1)  # 240 rows: five steps an epoch
STEPS = 10


def report(*args):
    """What `xnn train --json` prints, for these options beside those of TRAIN."""
    result = run("train", *TRAIN, *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def trained(path, loss, rule, augment=(), y=None, outputs=None):
    """The digest of the weights that the library trains on the same data."""
    data = load(path)
    outputs = outputs or data.classes
    net = mlp(data.x_train.shape[1], (8,), outputs, rescale=data.scaling_layer(), augment=augment)
    y = data.y_train if y is None else y(data.y_train)
    Trainer(net, loss, rule, threads=1).fit((data.x_train, y), epochs=2, batch_size=50, progress=False)
    return weights_sha256(net)
