"""Networks as TOML texts."""

DENSE = '[[layers]]\ntype = "Dense"\noutputs = "classes"\n'

#: A network with everything that a file can have.
FULL = """
[[layers]]
type = "Dense"
outputs = 8
weight_init = {type = "He", distribution = "uniform"}
bias_init.type = "Normal"
bias_init.std = 1

[[layers]]
type = "Sequential"
layers = [
  {type = "Dropout", rate = 0.25},  # in line
  {type = "Sequential", layers = [{type = "Dense", outputs = 4, bias = false}, {type = "Tanh"}]},
]

[[layers]]
type = "Sequential"

  [[layers.layers]]
  type = "Function"
  op = "exp"

  [[layers.layers]]
  type = "Dense"
  inputs = 4
  outputs = 5
  [layers.layers.weight_init]
  type = "Zeros"

[[layers]]
type = "Flatten"

[[layers]]
type = "Linear"
outputs = "classes"
"""


def layer(kind, *lines):
    """The text of one layer."""
    return "\n".join(["[[layers]]", f'type = "{kind}"', *lines, ""])
