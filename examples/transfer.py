"""Transfer learning: layers trained on one task are kept unchanged, under a new last layer for another task.

    python examples/transfer.py

The first task is to name the digit, with 3000 labelled images. The second is to say whether it is odd, with 20.
"""

import xnn
from xnn import data, layers, losses, optimizers


def body(seed):
    """Build the layers that turn pixels into 64 features."""
    return xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(784, 64), layers.ReLU(), seed=seed)


def learned_odd(features):
    """Train a new head on 20 images, and return its accuracy on a thousand others."""
    model = xnn.Sequential(features, layers.Dense(64, 1), seed=2)
    trainer = xnn.Trainer(model, losses.BinaryCrossEntropy(), optimizers.Adam(0.01))
    trainer.fit((x[:20], odd[:20]), epochs=30)
    return trainer.evaluate((x[3000:], odd[3000:]))["accuracy"]


x, digit = data.synthetic_digits(4000)
odd = digit[:, None] % 2
features = body(seed=0)
names_digits = xnn.Sequential(features, layers.Dense(64, 10), seed=1)
xnn.Trainer(names_digits, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.003)).fit(
    (x[:3000], digit[:3000]), epochs=3
)
for parameter in features.parameters():
    parameter.frozen = True
before = features.predict(x[:5])
transferred, from_scratch = learned_odd(features), learned_odd(body(seed=0))
print(f"odd or even after 20 images: {transferred:.1%} on frozen features, {from_scratch:.1%} from scratch")
