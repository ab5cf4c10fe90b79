"""Models leave and come: files of ONNX, C and PyTorch that compute what a model computes, and ONNX files read back.

`functions.py` and `weighted.py` are the tables of what each op and layer is in each format; `target.py` walks through
a model and reads them. `onnx_graph.py`, `c_file.py` and `torch_script.py` write the formats. `from_onnx.py` reads
ONNX: it finds chains and branches in the graph of `onnx_reader.py`, and takes layers from the table `operators.py`.
"""

from xnn.exchange.c_file import to_c
from xnn.exchange.from_keras import from_keras
from xnn.exchange.from_onnx import from_onnx
from xnn.exchange.onnx_graph import to_onnx
from xnn.exchange.torch_script import to_torch

__all__ = ["from_keras", "from_onnx", "to_c", "to_onnx", "to_torch"]
