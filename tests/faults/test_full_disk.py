"""A disk that is really full: the training goes on, what is there stays whole, and messages say what to do."""

import json
import sys
from pathlib import Path

import pytest
from small_disk import on_small_disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does")


@pytest.mark.parametrize("roomy_after", [99, pytest.param(4, marks=pytest.mark.slow)])
def test_all_files_of_a_run_on_a_full_disk(roomy_after, tmp_path):
    """The checkpoint of the second epoch has no room, nor have later lines of the record, the model and the plot."""
    small, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    small.mkdir()
    elsewhere.mkdir()
    program = Path(__file__).with_name("full_disk.py")
    found = json.loads(on_small_disk(small, "4m", program, elsewhere, roomy_after))
    assert found["weights"] == found["whole"]  # the training went on
    assert found["code"] == 5
    assert "Traceback" not in "".join(found["said"])
    folder, record = small / "checkpoints", small / "record.jsonl"
    full, no_room = (
        "(No space left on device)",
        [line for line in found["said"] if "no checkpoint of" in line],
    )
    assert all(line.startswith(f"xnn: no checkpoint of step {76 + 38 * n} in {folder} {full}: make room, or make the "
                               "folder writable again; training goes on, the last one, step-000000038.safetensors, "
                               "stays") for n, line in enumerate(no_room[:2]))  # fmt: skip
    assert found["said"].count(f"xnn: the record {record} ends here {full}; training goes on") == 1
    assert found["log"][:3] == ["start", "epoch", "epoch"]  # each line is whole
    assert 2 + 38 * 2 <= found["steps"] < 2 + 38 * 3
    assert found["left"] == []
    if roomy_after == 99:
        assert found["checkpoints"] == ["step-000000038.safetensors", "best.safetensors"]
        assert f"cannot write {small / 'model.safetensors'}: No space left on device" in found["said"][-1]
        assert "it was saved as" in found["said"][-1]
        assert (found["again"], found["same"]) == (0, True)  # from there, when there is room
        assert "step-000000038.safetensors, step 38" in found["again_said"][0]
    else:
        assert found["checkpoints"][:2] == ["step-000000228.safetensors", "step-000000190.safetensors"]
        assert f"the record {record} has" in found["said"][-1]
        assert found["again"] == 5  # the record has no more steps than before
