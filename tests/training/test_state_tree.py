"""The description of objects in checkpoints, which processes that train together compare as well."""

import pytest

from xnn.training.state_tree import Packer


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_described_alike_in_every_process(kind):
    """The order of strings in a set is another one in each process."""
    names = sorted(f"name {n}" for n in range(40))
    assert Packer({}).pack(kind(names), "names") == {f"${kind.__name__}": names}
