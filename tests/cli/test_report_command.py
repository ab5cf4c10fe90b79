"""`xnn report` and `xnn train --report`: what is read, joined, rebuilt and refused, and what is left as it was."""

import json
import re
import shlex

import numpy as np
import pytest
from command_line import run

import xnn

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs on 60 small images, with all its files."""
    folder = tmp_path_factory.mktemp("run")
    x = RNG.integers(0, 256, (60, 16)).astype(np.uint8)
    np.savez(folder / "small.npz", x=x, y=np.arange(60) % 3)
    files = "--log run.jsonl --checkpoint ck --save net.safetensors --report train.html"
    how = "--dataset small.npz --hidden 4 --epochs 3 --schedule cosine --quiet"
    result = in_folder(folder, *f"train {how} {files}".split())
    assert result.exit_code == 0, result.output
    return folder


def in_folder(folder, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(*arguments)


def runs_in(path):
    text = path.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)["runs"]


def report(folder, *arguments):
    result = in_folder(folder, "report", *arguments, "-o", "out.html")
    assert result.exit_code == 0, result.output
    return runs_in(folder / "out.html")


def test_train_writes_the_report_that_its_files_give(trained):
    (at_end,) = runs_in(trained / "train.html")
    (later,) = report(trained, "run.jsonl")  # it names the folder of checkpoints
    for part in ("snapshots", "layers", "classes", "command"):
        assert at_end[part] == later[part], part
    assert shlex.split(at_end["command"])[:4] == ["xnn", "train", "--dataset", "small.npz"]
    assert at_end["command"].endswith("--numerics fast --backend numpy")
    assert later["facts"]["Digests (SHA-256)"] == at_end["facts"]["Digests (SHA-256)"]
    assert later["curves"]["series"]["learning_rate"][0] > later["curves"]["series"]["learning_rate"][-1]
    model = xnn.load(trained / "net.safetensors")
    weight = later["snapshots"]["steps"][-1]["weights"]["1.weight"]
    assert weight["norm"] == pytest.approx(float(np.linalg.norm(model[1].weight.value)), rel=1e-3)
    assert sum(map(sum, later["classes"]["matrix"])) == 6


def test_the_command_of_a_report_repeats_the_run(trained):
    (about,) = report(trained, "run.jsonl")
    words = shlex.split(about["command"])
    again = [w for w in words[1:] if w != "--quiet"]
    for option, name in (("--log", "two.jsonl"), ("--checkpoint", "ck2"), ("--save", "two.safetensors")):
        again[again.index(option) + 1] = name
    again[again.index("--report") + 1] = "two.html"
    assert in_folder(trained, *again).exit_code == 0
    (second,) = report(trained, "two.jsonl")
    key = "Digests (SHA-256)"
    assert second["facts"][key] == about["facts"][key]


def test_a_model_file_and_several_runs(trained):
    model, log = report(trained, "net.safetensors", "run.jsonl")
    assert model["classes"]["matrix"] == log["classes"]["matrix"]
    assert "name the run's log" in model["curves"]
    assert "loss" in model["snapshots"]["notes"][0]
    (only,) = report(trained, "ck", "run.jsonl")
    assert only["name"] == "run.jsonl, ck"
    (one,) = report(trained, str(sorted((trained / "ck").glob("step*"))[-1]))
    assert len(one["snapshots"]["steps"]) == 1


def test_without_data_and_with_other_data(trained, tmp_path):
    (trained / "small.npz").rename(trained / "away.npz")
    try:
        (run_,) = report(trained, "ck")
        assert "there is no file" in run_["classes"] or "neither" in run_["classes"]
        assert run_["snapshots"]["steps"][0]["weights"]
        (run_,) = report(trained, "ck", "--data", "away.npz")
        assert run_["classes"]["kind"] == "classes"
    finally:
        (trained / "away.npz").rename(trained / "small.npz")


def test_a_log_that_was_cut_off_and_one_that_is_damaged(trained):
    lines = (trained / "run.jsonl").read_text().splitlines()
    begins = json.loads(lines[0]) | {"files": {}}
    whole = [json.dumps(begins), *lines[1:]]
    (trained / "cut.jsonl").write_text("\n".join([*whole[:3], whole[3][:20]]))
    (found,) = report(trained, "cut.jsonl")
    assert found["curves"]["epoch"] == [1, 2]
    assert "cut off" in found["notes"][0]
    assert found["facts"]["Run"]["ended"] == "not: the log has no end"
    assert "no weights" in found["classes"]
    (trained / "bad.jsonl").write_text("\n".join([whole[0], "{", *whole[1:]]))
    result = in_folder(trained, "report", "bad.jsonl", "-o", "new.html")
    assert (result.exit_code, "bad.jsonl:2" in result.stderr) == (4, True)
    assert not (trained / "new.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 4, "no file or folder"),
        (["small.npz"], 4, "is not the log of a run"),
        (["empty"], 4, "has no checkpoint"),
        (["run.jsonl", "-o", "report.txt"], 2, r"must end in .html"),
        (["run.jsonl", "-o", "mine.html"], 2, "other content"),
        (["run.jsonl", "--data", "nothing.npz"], 4, "nothing.npz"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_refused_and_left_alone(trained, arguments, code, says):
    (trained / "empty").mkdir(exist_ok=True)
    (trained / "mine.html").write_text("<p>mine")
    result = in_folder(trained, "report", *arguments)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert (trained / "mine.html").read_text() == "<p>mine"


def test_train_refuses_before_it_trains(trained):
    result = in_folder(
        trained, "train", "--dataset", "small.npz", "--report", "a.txt", "--log", "never.jsonl"
    )
    assert (result.exit_code, "html" in result.stderr) == (2, True)
    assert not (trained / "never.jsonl").exists()
