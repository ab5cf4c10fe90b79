"""A disk that is really full: the training goes on, what is there stays whole, and messages say what to do."""

import json
import sys
from pathlib import Path

import pytest
from small_disk import on_small_disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does")


@pytest.mark.parametrize("roomy_after", [99, 4])
def test_all_files_of_a_run_on_a_full_disk(roomy_after, tmp_path):
    small, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    small.mkdir()
    elsewhere.mkdir()
    program = Path(__file__).with_name("full_disk.py")
    found = json.loads(on_small_disk(small, "4m", program, elsewhere, roomy_after))
    print(json.dumps(found, indent=1))
    assert found["whole"] == found["weights"]  # the training went on
