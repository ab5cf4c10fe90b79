"""Names that users of other libraries try, and what xnn has in their place: docs/names.md in error messages.

`hasattr` stays False for them, and `dir` does not list them. A test compares the names of classes with docs/names.md.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from xnn.options import argument_names

__all__ = ["HABITS", "Habitual", "RefusedName", "hint_for", "module_habits"]

_TRAIN = "xnn.Trainer(model, loss, optimizer).fit((x, y)) trains"
_LOOP = "a Trainer passes training=True itself; in a loop of your own call model.forward(x, training=True)"
_REPLACED = "leave it out, since each backward replaces the gradients"
_STATE = "dict(model.named_state()) has the arrays; model.save(path) and model.load_weights(path) keep them in files"
_MOVE = 'model.to("cupy") moves it to a GPU, model.to("numpy") back'
_FIT = "it is an argument of fit: trainer.fit((x, y), epochs=10, batch_size=32)"
_STOP = 'history.stopped = "the reason", in a callback, ends the training'
_PARTS = "a callback has only the model: keep others yourself, as in MyCallback(optimizer)"
_CALLED = "xnn calls"
_FREEZE = "parameter.frozen = True keeps a parameter as it is"

#: For each kind of object: the name that was tried, and what to do instead.
HABITS: dict[str, dict[str, str]] = {
    "layer": {
        **dict.fromkeys(("fit", "compile", "train_on_batch", "fit_generator"), _TRAIN),
        **dict.fromkeys(("train", "eval", "training"), _LOOP),
        **dict.fromkeys(
            ("evaluate", "score"), "xnn.Trainer(model, loss, optimizer).evaluate((x, y)) does that"
        ),
        **dict.fromkeys(("state_dict", "get_weights"), _STATE),
        "load_state_dict": "xnn.from_torch(state_dict, model) takes PyTorch's, model.load_weights(path) xnn's file",
        "set_weights": "model.load_weights(path), or layer.weight.value = array",
        **dict.fromkeys(("cuda", "cpu", "gpu"), _MOVE),
        **dict.fromkeys(
            ("float", "double", "half"), "build its layers with dtype='float32' or dtype='float64'"
        ),
        **dict.fromkeys(
            ("trainable", "requires_grad_", "requires_grad", "frozen", "freeze", "unfreeze"),
            f"{_FREEZE}; model.parameters() lists them",
        ),
        **dict.fromkeys(
            ("trainable_variables", "trainable_weights", "weights", "variables"),
            "model.parameters() and model.named_parameters()",
        ),
        **dict.fromkeys(
            ("modules", "children", "named_modules"), "model.layers, or model.all_layers() with those inside"
        ),
        **dict.fromkeys(
            ("add", "append", "extend", "insert", "pop"),
            "build another one: xnn.Sequential(*model, layers.ReLU())",
        ),
        **dict.fromkeys(
            ("predict", "summary", "save", "load_weights"), "a model has it: xnn.Sequential(layer)"
        ),
        "predict_proba": "xnn.ops.softmax(model.predict(x)), or ops.sigmoid for a single output",
        "register_buffer": "self.name = layers.Buffer(...) in __init__",
        "register_parameter": "self.name = layers.Parameter(...) in __init__",
        "add_weight": "self.name = layers.Parameter(...) in __init__",
        "call": "a layer says what it does in compute(self, x)",
        "zero_grad": _REPLACED,
        "step": "optimizer.step(model.parameters())",
        "register_forward_hook": "model.layers[:3] are the first three layers: xnn.Sequential(*model.layers[:3])",
        "count_params": "sum(p.size for p in model.parameters()); print(model.summary()) shows them",
        "get_layer": "model[0] is the first layer",
        "stop_training": _STOP,
        "p": "it is called rate",
        "eps": "it is called epsilon",
        "input_shape": "print(model.summary()) shows the shapes",
    },
    "loss": {
        **dict.fromkeys(("item", "numpy", "detach"), "float(loss(outputs, targets)) is the number"),
        "step": "optimizer.step(model.parameters()) comes after model.backward(loss.backward())",
        "update_state": "xnn.Trainer(model, loss, optimizer).evaluate((x, y)) averages over batches",
    },
    "optimizer": {
        "zero_grad": _REPLACED,
        "apply_gradients": "optimizer.step(parameters, gradients)",
        "minimize": "xnn.Trainer(model, loss, optimizer).fit((x, y)); of a function: xnn.value_and_grad, then step",
        "param_groups": "weight_decay={'weight': 1e-4} goes by the parameters' names",
        "add_param_group": "weight_decay={'weight': 1e-4} goes by the parameters' names",
        "state_dict": "optimizer.state has a State for each parameter; files hold none of it",
        "load_state_dict": "optimizer.state has a State for each parameter; files hold none of it",
        "lr": "it is called learning_rate",
        "eps": "it is called epsilon",
        "alpha": "it is called learning_rate",
        **dict.fromkeys(("clipnorm", "max_norm", "max_grad_norm"), "it is called clip_norm"),
        "clipvalue": "it is called clip_value",
    },
    "trainer": {
        **dict.fromkeys(("train", "run"), "trainer.fit((x, y)) trains"),
        **dict.fromkeys(("test", "validate", "score"), "trainer.evaluate((x, y))"),
        **dict.fromkeys(("predict_classes", "summary"), "the model has it: trainer.model"),
        "compile": "a Trainer is built with loss, optimizer and metrics",
        "lr": "trainer.optimizer.learning_rate",
        "learning_rate": "trainer.optimizer.learning_rate",
        **dict.fromkeys(
            ("epochs", "max_epochs", "batch_size", "validation", "seed", "progress", "shuffle"), _FIT
        ),
        **dict.fromkeys(("stop_training", "should_stop"), _STOP),
    },
    "callback": {
        "stop_training": _STOP,
        **dict.fromkeys(("trainer", "optimizer", "loss"), _PARTS),
        "params": "history.plan says how the run was executed",
        **dict.fromkeys(("on_train_begin", "on_train_start", "on_fit_begin"), f"{_CALLED} on_fit_start"),
        "on_train_end": f"{_CALLED} on_fit_end",
        **dict.fromkeys(
            (
                "on_batch_begin",
                "on_batch_start",
                "on_train_batch_begin",
                "on_train_batch_start",
                "on_step_begin",
            ),
            f"{_CALLED} on_step, after each step, and on_fit_start before the first",
        ),
        **dict.fromkeys(
            ("on_batch_end", "on_train_batch_end", "on_step_end"), f"{_CALLED} on_step, after each step"
        ),
        **dict.fromkeys(
            ("on_epoch_begin", "on_epoch_start", "on_train_epoch_start"),
            f"{_CALLED} on_epoch_end, after each epoch, and on_fit_start before the first",
        ),
        **dict.fromkeys(
            ("on_train_epoch_end", "on_validation_end", "on_validation_epoch_end", "on_test_end"),
            f"{_CALLED} on_epoch_end, after an epoch and its validation",
        ),
    },
    "metric": {
        "eval": "metric.compute() is the result; metric(outputs, targets) that of these samples alone",
        "reset_state": "metric.reset() forgets all updates",
        "update_state": "metric.update(outputs, targets) counts a batch",
    },
    "history": {
        "history": 'history["loss"] is the list of all epochs; history.epochs has a dict for each',
        **dict.fromkeys(("stop", "stop_training"), 'history.stopped = "the reason" ends the training'),
        "epoch": "history.epochs has a dict for each epoch",
        "params": "history.plan says how the run was executed",
        **dict.fromkeys(
            ("loss", "val_loss", "accuracy", "val_accuracy"), 'write history["loss"], history["val_loss"]'
        ),
        **dict.fromkeys(("keys", "items"), "history.epochs[0] has the names"),
    },
    "value": {
        **dict.fromkeys(
            ("numpy", "cpu", "data", "tolist"), "use .value, which is an array, where no gradient is needed"
        ),
        "item": "float(v.value) is the number, where no gradient is needed",
        "detach": "use ops.stop_gradient(v)",
        "backward": "xnn.grad(f)(x) gives the gradients of a function f; model.backward(dout) those of a model",
        **dict.fromkeys(("requires_grad", "requires_grad_", "trainable", "freeze"), _FREEZE),
        **dict.fromkeys(
            ("lr", "learning_rate"),
            "the optimizer has one learning_rate for all parameters, a number or a schedule",
        ),
        "weight_decay": "optimizers take weight_decay={'weight': 1e-4}, by the parameters' names",
        **dict.fromkeys(("cuda", "to"), _MOVE),
        **dict.fromkeys(("assign", "copy_", "fill_", "zero_", "normal_", "uniform_"), "assign to its .value"),
        "view": "use ops.reshape",
        "permute": "use ops.transpose",
        "unsqueeze": "use ops.reshape",
        "squeeze": "use ops.reshape",
    },
    "xnn": {
        **dict.fromkeys(
            ("tensor", "Tensor", "array", "from_numpy", "as_tensor", "Variable", "constant"),
            "use NumPy's arrays as they are",
        ),
        **dict.fromkeys(
            ("no_grad", "inference_mode", "enable_grad"),
            "leave it out, since nothing is recorded outside of xnn.grad and compute",
        ),
        **dict.fromkeys(
            ("manual_seed", "set_random_seed", "seed"),
            "seeds are arguments: Sequential(seed=), Trainer.fit(seed=)",
        ),
        **dict.fromkeys(("nn", "keras"), "xnn.layers, xnn.losses and xnn.optimizers"),
        **dict.fromkeys(
            ("Model", "Module"), "xnn.Sequential is the model; a layer of your own is an xnn.layers.Layer"
        ),
        **dict.fromkeys(
            ("cuda", "device", "to_device", "set_default_device"),
            'xnn.use_backend("cupy"), or with xnn.backend("cupy")',
        ),
        **dict.fromkeys(("Parameter", "Buffer", "Layer", "Dense", "Linear"), "it is in xnn.layers"),
        **dict.fromkeys(
            ("Dataset", "DataLoader"), "fit((x, y), batch_size=32) takes arrays and makes the batches"
        ),
        "optim": "it is called xnn.optimizers",
        "functional": "it is called xnn.ops",
        "save": "model.save(path)",
        "GradientTape": "xnn.grad and xnn.value_and_grad",
        "autodiff": "xnn.grad and xnn.value_and_grad",
        "set_num_threads": "xnn.use_threads(n), or with xnn.threads(n)",
        "compile": "leave it out, since a Trainer makes a program of each model",
        "jit": "leave it out, since a Trainer makes a program of each model",
        "History": "it is in xnn.history",
    },
    # The names of classes, as docs/names.md has them.
    "layers": {
        "Conv2d": "Conv2D",
        **dict.fromkeys(("MaxPool2d", "MaxPooling2D"), "MaxPool2D"),
        **dict.fromkeys(("AvgPool2d", "AveragePooling2D"), "AvgPool2D"),
        **dict.fromkeys(("AdaptiveAvgPool2d", "GlobalAveragePooling2D"), "GlobalAvgPool"),
        **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNormalization"), "BatchNorm"),
        "LayerNormalization": "LayerNorm",
        "Unflatten": "Reshape",
        "Activation": "ReLU, Sigmoid, Tanh and others are layers",
        "Rescaling": "Rescale",
        "Concatenate": "Parallel",
        "Module": "Layer",
        **dict.fromkeys(
            ("ModuleList", "ModuleDict"), "lists, tuples and dicts of layers are found as they are"
        ),
    },
    "losses": {
        **dict.fromkeys(
            ("CrossEntropyLoss", "SparseCategoricalCrossentropy", "CategoricalCrossentropy"),
            "SoftmaxCrossEntropy",
        ),
        **dict.fromkeys(("BCEWithLogitsLoss", "BinaryCrossentropy"), "BinaryCrossEntropy"),
        "NLLLoss": "SoftmaxCrossEntropy, on logits",
        "BCELoss": "BinaryCrossEntropy, on logits",
        **dict.fromkeys(("L1Loss", "MeanAbsoluteError"), "L1"),
        "MeanSquaredError": "MSE",
        "HuberLoss": "Huber",
        "KLDivLoss": "KLDivergence",
        "BinaryFocalCrossentropy": "Focal",
    },
    "optimizers": {
        "NAdam": "Nadam",
        "Adagrad": "AdaGrad",
        "RMSprop": "RMSProp",
        "Adadelta": "AdaDelta",
        "AveragedModel": "every optimizer has average=0.999",
    },
    "schedules": {
        "StepLR": "Step",
        **dict.fromkeys(("MultiStepLR", "PiecewiseConstantDecay"), "MultiStep"),
        **dict.fromkeys(("ExponentialLR", "ExponentialDecay"), "Exponential"),
        **dict.fromkeys(("PolynomialLR", "PolynomialDecay"), "Polynomial"),
        **dict.fromkeys(("CosineAnnealingLR", "CosineDecay"), "Cosine"),
        **dict.fromkeys(("CosineAnnealingWarmRestarts", "CosineDecayRestarts"), "CosineRestarts"),
        "OneCycleLR": "OneCycle",
        **dict.fromkeys(("LinearLR", "SequentialLR"), "Warmup"),
        **dict.fromkeys(("LambdaLR", "LearningRateSchedule"), "a schedule is any function of the step"),
    },
    "initializers": {
        **dict.fromkeys(("GlorotNormal", "GlorotUniform"), "Glorot"),
        **dict.fromkeys(("HeNormal", "HeUniform"), "He"),
        **dict.fromkeys(("LecunNormal", "LecunUniform"), "LeCun"),
    },
}


def hint_for(kind: str, name: str) -> str:
    """What xnn has in place of a name that another library has; "" if nothing is known."""
    return HABITS[kind].get(name, "")


def module_habits(module: str) -> Callable[[str], Any]:
    """The __getattr__ of a module such as xnn.losses, by its name."""

    def missing(name: str) -> Any:
        hint = hint_for(module.rpartition(".")[2], name)
        hint = f": in xnn it is {hint}" if hint.isalnum() else f": {hint}" if hint else ""
        found = None if hint else sys.modules[module]  # of which Python tells the name that is most alike
        raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}", name=name, obj=found)

    return missing


class Habitual:
    """Answers an attribute of another library with xnn's way. A subclass sets `_habits`, a key of HABITS.

    An attribute that is assigned and would have no effect is refused: one of another library, one that is nearly
    called as an option, and for `_closed` classes any that neither the class nor its __init__ knows. Users'
    subclasses may have what attributes they like.
    """

    _habits: ClassVar[str]
    #: Whether objects of the class itself take no attributes but its options.
    _closed: ClassVar[bool] = False
    #: Whether __init__ is running.
    _building = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__ and not name.startswith("_"):
            _check_new(self, name)
        super().__setattr__(name, value)

    def _missing(self, name: str) -> Any:
        """Raise the AttributeError for an attribute that is not there."""
        hint = hint_for(self._habits, name)
        if hint and not hasattr(type(self), name):
            raise _refusal(type(self), name, hint)
        return object.__getattribute__(self, name)  # raises Python's error, or that of a property once more

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute
        __getattr__ = _missing


class RefusedName:
    """An attribute that other libraries assign, and that would have no effect here: assigning it raises.

    kind, name: the entry in HABITS.
    own: whether a user's subclass may have an attribute of this name. Default False.
    """

    def __init__(self, kind: str, name: str, own: bool = False) -> None:
        self.kind, self.name, self.own = kind, name, own

    def __get__(self, thing: Any, owner: type) -> Any:
        if thing is not None and self.name in vars(thing):
            return vars(thing)[self.name]
        raise _refusal(owner, self.name, hint_for(self.kind, self.name))

    def __set__(self, thing: Any, value: Any) -> None:
        if not self.own or type(thing).__module__.partition(".")[0] == "xnn":
            raise _refusal(type(thing), self.name, hint_for(self.kind, self.name))
        vars(thing)[self.name] = value


#: Where the classes are whose options are their attributes.
_OPTIONS_IN = {"layers", "losses", "optimizers", "metrics", "callbacks", "history", "training"}
#: How much two names must have in common to be taken for one and a misspelled one.
_NEAR = 0.75


def _check_new(thing: Habitual, name: str) -> None:
    """Raise AttributeError for a new attribute of xnn's own object that would have no effect."""
    kind: Any = type(thing)
    if not kind.__module__.startswith("xnn.") or hasattr(kind, name):
        return
    checked = kind.__module__.split(".")[1] in _OPTIONS_IN and not thing._building
    if said := _fault(kind, name, (*vars(thing),) if checked else None):
        raise _refusal(kind, name, said)


@functools.lru_cache(maxsize=4096)
def _fault(kind: Any, name: str, present: tuple[str, ...] | None) -> str:
    """What is wrong with a new attribute of an object of this class; "" if nothing is.

    present: the attributes that the object has; None if it may have any that other libraries do not know.
    """
    if hint := hint_for(kind._habits, name):
        return hint
    if present is None:  # while it is built, or of a class of xnn's own commands
        return ""
    takes = argument_names(kind)
    if name in takes:
        return ""
    there = {*dir(kind), *present, *(known for c in kind.__mro__ for known in inspect.get_annotations(c))}
    if name in there:
        return ""
    options = [option for option in dict.fromkeys((*takes, *sorted(there))) if not option.startswith("_")]
    near = get_close_matches(name, options, 1, _NEAR)
    if not (near or kind._closed):
        return ""
    nearest = f"did you mean {near[0]}? " if near else ""
    return f"{nearest}it would have no effect; {kind.__name__} takes {', '.join(takes) or 'no options'}"


def _refusal(owner: type, name: str, hint: str) -> AttributeError:
    return AttributeError(f"{owner.__name__} has no attribute {name!r}: {hint}")
