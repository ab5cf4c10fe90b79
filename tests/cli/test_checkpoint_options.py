"""`xnn train --checkpoint`: its options, and what it says; tests/faults kills such runs."""

import json

import pytest
from command_line import refused, run

from xnn.cli.outputs import check_apart
from xnn.errors import OptionError
from xnn.layers.safetensors_file import CHECKPOINT, read_signed

TRAIN = [
    "train",
    "--dataset",
    "synthetic",
    "--epochs",
    "2",
    "--hidden",
    "8",
    "--threads",
    "1",
    "--json",
    "--quiet",
]
KEPT = "weights_sha256", "losses_sha256", "history", "steps", "test_loss"


def trained(*words):
    return json.loads(run(*TRAIN, *words).stdout)


@pytest.mark.parametrize("words", ["--resume", "--every 5steps", "--keep 2", "--allow-different-plan"])
def test_without_a_folder_the_other_options_are_refused(words):
    refused(run(*TRAIN, *words.split()), 2, "need --checkpoint DIR")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--every often", "every must be such as '1epoch', '500steps' or '10min', got 'often'"),
        ("--keep 0", "--keep"),
    ],
)
def test_wrong_options_are_refused_before_data_are_loaded(words, message, tmp_path):
    words = [*words.split(), "--checkpoint", str(tmp_path / "new"), "--dataset", "none.npz"]
    refused(run(*TRAIN, *words), 2, message)


def test_a_finished_run_is_resumed_to_its_end_and_beyond(tmp_path):
    folder = str(tmp_path / "checkpoints")
    once, longer = trained("--checkpoint", folder), trained("--epochs", "3")
    again = run(*TRAIN, "--checkpoint", folder, "--resume")
    assert f"resumed from {folder}" in again.stderr
    assert "the checkpoint has 2 epochs already, so that nothing is left to do" in again.stderr
    assert {key: json.loads(again.stdout)[key] for key in KEPT} == {key: once[key] for key in KEPT}
    further = trained("--epochs", "3", "--checkpoint", folder, "--resume")
    assert {key: further[key] for key in KEPT} == {key: longer[key] for key in KEPT}


def test_begun_afresh_in_a_folder_with_checkpoints_it_is_refused(tmp_path):
    folder = str(tmp_path / "checkpoints")
    trained("--checkpoint", folder)
    refused(
        run(*TRAIN, "--checkpoint", folder), 2, "resume from the folder (--resume), or choose an empty one"
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr 0.5", "learning_rate is 0.5, and 0.1 in the checkpoint"),
        ("--optimizer adam", "optimizer.class is 'Adam', and 'SGD' in the checkpoint"),
        ("--hidden 9", "is 9, and 8 in the checkpoint"),
        ("--seed 4", "seed is 4, and"),
        ("--batch-size 16", "batch_size=16"),
        (
            "--patience 3",
            "callbacks are EarlyStopping, and none in the checkpoint (of xnn train: --patience)",
        ),
        (
            "--log {tmp_path}/l --record {tmp_path}/r",
            "none in the checkpoint (of xnn train: --log, --record)",
        ),
        ("--kernels ops", "kernels 'ops'"),
        ("--numerics exact", "numerics 'exact', there 'fast'"),
    ],
)
def test_another_run_is_refused_with_what_differs(words, message, finished, tmp_path):
    words = words.format(tmp_path=tmp_path).split()
    result = run(*TRAIN, "--epochs", "3", *words, "--checkpoint", finished, "--resume")
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("option", ["--save", "--record", "--log", "--dataset"])
@pytest.mark.parametrize(
    "place", ["run", "run/lock", "run/best.safetensors", "run/step-000000001.safetensors"]
)
def test_no_other_file_is_the_folder_or_one_of_its_files(option, place, tmp_path):
    outputs = {"--checkpoint": str(tmp_path / "run")}
    other = {option: str(tmp_path / place)}
    (tmp_path / "run").mkdir()
    if option == "--dataset":
        if place != "run":
            (tmp_path / place).touch()
        with pytest.raises(OptionError, match=r"--checkpoint would overwrite .* which --dataset reads"):
            check_apart(outputs, other)
        return
    with pytest.raises(OptionError, match=f"--checkpoint would overwrite .* which {option} writes"):
        check_apart(other | outputs, {})
    check_apart({option: str(tmp_path / "run" / "best.jsonl")} | outputs, {})


@pytest.fixture
def finished(tmp_path):
    folder = str(tmp_path / "checkpoints")
    trained("--checkpoint", folder)
    return folder


def test_the_file_says_what_was_run(finished, tmp_path):
    _, texts, tensors, signed = read_signed(f"{finished}/best.safetensors")
    (about,) = json.loads(texts[CHECKPOINT])["about"]
    assert signed
    assert about["dataset"] == "synthetic"
    assert about["run"]["hidden"] == [8]
    assert "Dense" in about["model"][1]
    assert "model.1.weight" in tensors
