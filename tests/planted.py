"""Faults for tests of `xnn verify`: each changes one number of a run, or ends it.

`plant(fault)` makes the fault in this process. As the module of a side of `xnn verify`, this file makes the fault
that the environment variable PLANT names. A fault is a kind, a place and a number:

weight 3.weight 7          one element of this weight, by one unit in the last place, after the update of step 7
gradient 1.weight 7        one element of this weight's gradient in step 7, where the Dense op computes it
initial 1.weight 0         one element of this weight, before training
pixel 17 0                 one byte of row 17 of the data, before they are used
hidden 17 0                the same byte, after the digest of the data is taken
die - 3                    the process ends at step 3
"""

from __future__ import annotations

import os

import numpy as np

import xnn.backends.kernels.binding as binding
from xnn import ops
from xnn.cli import train
from xnn.runs import digests, replay_process, spec

ELEMENT = (1, 2)  # the element that is changed


def nudge(array):
    array[ELEMENT] = np.nextafter(array[ELEMENT], array.dtype.type(np.inf))


def plant(fault, set_attribute=setattr):
    """Make a fault by replacing methods with `set_attribute`, such as monkeypatch.setattr, which undoes it."""
    what, where, number = fault.split()
    number, taken = int(number), [0]
    build, on_step, backward_of = spec.RunSpec.build, digests.Recorder.on_step, binding.backward_of

    def built(self, data):
        model, loss, rule = build(self, data)
        if what == "initial":
            array = dict(model.named_parameters())[where].value.copy()
            nudge(array)
            dict(model.named_parameters())[where].value = array
        return model, loss, rule

    def stepped(self, history, epoch, step, loss):
        taken[0] += 1
        if taken[0] == number and what == "die":
            os._exit(7)
        if taken[0] == number and what == "weight":
            nudge(dict(self.model.named_parameters())[where].value)
        on_step(self, history, epoch, step, loss)

    def went_backward(op, xp, grad, saved):
        gradients = backward_of(op, xp, grad, saved)
        if what == "gradient" and op is ops.dense and taken[0] == number - 1:
            dw = gradients[1]
            if dw.shape[0] == 784 and where == "1.weight":
                nudge(dw)
        return gradients

    set_attribute(spec.RunSpec, "build", built)
    set_attribute(digests.Recorder, "on_step", stepped)
    set_attribute(binding, "backward_of", went_backward)
    if what in ("pixel", "hidden"):
        load, record_header = train.load, spec.RunSpec.record_header

        def spoil(data):
            data.x_train[int(where), 300] ^= 255
            return data

        def told(self, data):
            known = record_header(self, data)
            if what == "hidden":
                spoil(data)
            return known

        def loaded(*arguments):
            return spoil(load(*arguments)) if what == "pixel" else load(*arguments)

        set_attribute(spec.RunSpec, "record_header", told)
        set_attribute(train, "load", loaded)
        set_attribute(replay_process, "load", loaded)


def main():
    """Run one side of `xnn verify` with the fault in PLANT."""
    plant(os.environ["PLANT"])
    replay_process.main()
