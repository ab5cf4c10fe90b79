"""In exact numerics ranks give the bits of one process with every optimizer and each of its options."""

import inspect

import pytest
from trainings import digits, mlp, on_each, outcome

from xnn import optimizers
from xnn.errors import NumericsError

#: Options that most optimizers have, together in one training.
COMMON = {"weight_decay": 0.02, "clip_norm": 0.3, "clip_value": 0.02, "average": 0.9}
KINDS = [
    kind
    for kind in (getattr(optimizers, name) for name in optimizers.__all__)
    if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer) and kind is not optimizers.Optimizer
]
STEPPING = [kind for kind in KINDS if not kind.minimizes]


def variants(kind):
    """The options with which an optimizer is tried: the default ones, those of COMMON, and each switch of its own."""
    own = inspect.signature(kind).parameters
    switches = [{name: not p.default} for name, p in own.items() if isinstance(p.default, bool)]
    momentum = {"momentum": 0.9} if "momentum" in own else {}
    return [{}, COMMON, *([momentum] if momentum else []), *({**momentum, **switch} for switch in switches)]


CASES = [
    pytest.param(kind, options, id="-".join([kind.__name__, *options]))
    for kind in STEPPING
    for options in variants(kind)
]


def test_all_optimizers_are_tried():
    assert {"SGD", "Adam", "AdamW", "RMSProp", "Lion"} <= {kind.__name__ for kind in STEPPING}
    switches = [*map(list, (case.values[1] for case in CASES))]
    assert ["momentum", "nesterov"] in switches
    assert ["momentum", "centered"] in switches
    assert ["amsgrad"] in switches


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_an_optimizer_gives_the_bits_of_one_process(kind, options):
    data = digits(75)  # 2 epochs of 3 steps, the last of which has 11 rows

    def train():
        trainer = mlp(optimizer=kind(0.01, **options), metrics=["accuracy"], numerics="exact")
        return outcome(trainer, trainer.fit(data, epochs=2, progress=False), data)

    alone = train()
    for size in (2, 3):
        assert on_each(size, train) == alone


@pytest.mark.parametrize("size", [2, 3])
def test_lbfgs_is_refused_in_exact_numerics_by_every_rank(size):
    """As by one process: SciPy's search is not the same on every machine."""
    pytest.importorskip("scipy")

    def refused():
        trainer = mlp(optimizer=optimizers.LBFGS(), numerics="exact")
        with pytest.raises(NumericsError) as caught:
            trainer.fit(digits(), progress=False)
        return str(caught.value), trainer.step

    alone = refused()
    assert "LBFGS" in alone[0]
    assert on_each(size, refused) == alone
