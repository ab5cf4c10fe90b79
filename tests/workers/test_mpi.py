"""Training by real processes of MPI. `.ci/mpi.py` runs this file with the wheels of MPICH and of Open MPI."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(sys.executable).parent / "mpiexec"
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
PROGRAM = pathlib.Path(__file__).with_name("mpi_program.py")
MISSING = [
    what
    for what, there in (
        ("mpi4py", importlib.util.find_spec("mpi4py") is not None),
        ("mpiexec", LAUNCHER.exists()),
    )
    if not there
]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {' and no '.join(MISSING)} beside this Python: .ci/mpi.py makes environments with both",
)
#: What is measured from the fault to the end of all processes includes the time to start them.
PATIENCE = 60


def options():
    """Those of Open MPI that let it start more processes than there are cores, also as root."""
    said = subprocess.run([LAUNCHER, "--version"], capture_output=True, text=True).stdout
    return (
        ["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
        if "Open MPI" in said or "OpenRTE" in said or "prte" in said
        else []
    )


def ranks(count, *arguments, patience=PATIENCE, **how):
    """Run a command of Python by so many ranks."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [LAUNCHER, *options(), "-n", str(count), sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience, **how)


def alone(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=True)


def result(ran):
    assert ran.returncode == 0, ran.stderr
    return json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))


def without_ranks(found):
    return {name: value for name, value in found.items() if name not in ("ranks", "backend")}


def test_exact_numerics_give_the_bits_of_one_process():
    found = result(ranks(3, PROGRAM, "none", "exact", "mpi"))
    assert found["ranks"] == 3
    assert without_ranks(found) == without_ranks(result(alone(PROGRAM, "none", "exact", "none")))


SUMS = """
import numpy as np
from xnn.backends.ranks.mpi import world
ranks = world()
for dtype in ("float32", "float64"):
    numbers = np.full(2**18 + 5, ranks.rank + 0.5, dtype)
    ranks.total(numbers)
    assert (numbers == 4.5).all(), numbers
numbers = np.arange(2**15) % 3 * (ranks.rank + 1)
ranks.maximum(numbers)
assert (numbers == np.arange(2**15) % 3 * 3).all(), numbers
assert ranks._memory is not None
message = ranks.message(2**16, "float32")
for factor in (1.0, 2.0):
    message.array[...] = factor * (ranks.rank + 0.5)
    message.total()
    assert (message.array == factor * 4.5).all(), message.array
assert type(message).__name__ == "SharedMessage"
assert type(ranks.message(10, "float32")).__name__ == "Message"
print("right", flush=True)
"""


def test_long_sums_are_made_in_shared_memory():
    ran = ranks(3, "-c", SUMS)
    assert ran.stdout.count("right") == 3, ran.stderr
    assert not list(pathlib.Path("/dev/shm").glob("xnn-*"))


def test_fast_numerics_are_close_to_one_process():
    found, other = (
        result(ranks(2, PROGRAM, "none", "fast", "mpi")),
        result(alone(PROGRAM, "none", "fast", "none")),
    )
    assert found["tested"]["loss"] == pytest.approx(other["tested"]["loss"], rel=1e-4)


def test_a_checkpoint_goes_on_with_another_number_of_ranks(tmp_path):
    result(ranks(2, PROGRAM, "half", "exact", "mpi", tmp_path))
    found = result(alone(PROGRAM, "none", "exact", "none", tmp_path))
    assert without_ranks(found) == without_ranks(result(alone(PROGRAM, "none", "exact", "none")))


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("raise", "rank 1 of 2 (on "),
        ("data", "rank 1 of 2 (on "),
        ("shard", "DTypeError: training data: sample 90 holds NaN or infinity"),
        ("version", "rank 1 of 2 (on "),
        ("weights", "differs from rank 0 in: weights before training"),
        ("nan", "step 2 (epoch 1, batch 2): the output of layer 4 (Dense) is not finite"),
        ("after", "RuntimeError: after the training"),
        ("kill", "signal 9"),
        ("exit", "rank 1 of 2 has ended its program"),
        (
            "freeze",
            "on rank 1 of 2 callbacks have changed parameters or options of the optimizer, on rank 0 nothing",
        ),
    ],
)
def test_a_rank_that_fails_ends_all(scenario, said):
    start = time.monotonic()
    ran = ranks(2, PROGRAM, scenario, "fast", "mpi")
    assert ran.returncode != 0
    assert said in ran.stdout + ran.stderr
    assert time.monotonic() - start < PATIENCE


@pytest.mark.parametrize("scenario", ["slow", "disk"])
def test_a_slow_rank_and_a_full_disk_change_nothing(scenario, tmp_path):
    ran = ranks(2, PROGRAM, scenario, "exact", "mpi", *([tmp_path] if scenario == "disk" else []))
    assert without_ranks(result(ran)) == without_ranks(result(alone(PROGRAM, "none", "exact", "none")))
    if scenario == "disk":
        assert "xnn: no checkpoint of step 12" in ran.stderr
        assert "(No space left on device): make room" in ran.stderr


def test_an_interrupted_rank_ends_the_training_of_all_after_the_same_step():
    found = result(ranks(2, PROGRAM, "interrupt", "exact", "mpi"))
    assert found["interrupted"]
    assert len(found["epochs"]) == 2


TRAIN = (
    "-m",
    "xnn",
    "train",
    "--epochs",
    "1",
    "--hidden",
    "12",
    "--kernels",
    "numpy",
    "--task",
    "classification",
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The command `xnn train` for a small table."""
    table = tmp_path_factory.mktemp("data") / "table.csv"
    rows = "".join(f"{n % 7},{n % 5},{(n % 7 + n % 5) % 3}\n" for n in range(200))
    table.write_text("width,height,kind\n" + rows)
    return *TRAIN, "--dataset", table


def test_the_command_trains_together_and_rank_0_speaks(train, tmp_path):
    save, log = tmp_path / "model.safetensors", tmp_path / "log.jsonl"
    found = result(ranks(2, *train, "--numerics", "exact", "--json", "--save", save, "--log", log))
    assert found["plan"]["ranks"] == 2
    assert found["weights_sha256"] == result(alone(*train, "--numerics", "exact", "--json"))["weights_sha256"]
    assert save.exists()
    assert len(log.read_text().splitlines()) == 3


def test_predictions_are_shared_and_printed_once(train, tmp_path):
    save, table = tmp_path / "model.safetensors", train[-1]
    result(alone(*train, "--json", "--save", save))
    one, other = (
        run("-m", "xnn", "predict", save, table) for run in (alone, lambda *words: ranks(3, *words))
    )
    assert other.returncode == 0
    assert other.stdout == one.stdout
    assert len(one.stdout.splitlines()) == 200


def test_workers_none_trains_apart(train):
    ran = ranks(2, *train, "--workers", "none", "--json")
    assert ran.returncode == 0
    assert ran.stdout.count('"weights_sha256"') == 2


def test_check_by_itself_does_all_in_each_process():
    ran = ranks(2, "-m", "xnn", "check", "--workers", "none", "--backend", "numpy")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("passed") == 2 * alone("-m", "xnn", "check", "--backend", "numpy").stdout.count(
        "passed"
    )


EXAMPLE = """
import dataclasses, sys
import xnn
from xnn import data
sys.path.insert(0, sys.argv[1])
load = data.load

def few(name):
    whole = load(name)
    names = [field.name for field in dataclasses.fields(whole) if field.name[:2] in ("x_", "y_")]
    return dataclasses.replace(whole, **{part: getattr(whole, part)[:300] for part in names})

data.load = few
options = {"plot": None} if sys.argv[2] == "mnist_mlp" else {}
with xnn.numerics("exact"):
    __import__(sys.argv[2]).main("synthetic", epochs=1, progress=False, **options)
"""


@pytest.mark.parametrize("name", ["mnist_mlp", "lenet5"])
def test_the_examples_train_together_and_print_once(name):
    arguments = "-c", EXAMPLE, EXAMPLES, name
    together = ranks(2, *arguments)
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone(*arguments).stdout


def test_an_error_of_all_ranks_is_said_once(train):
    ran = ranks(2, *train, "--lr", "-1")
    assert ran.returncode == 2
    assert ran.stderr.count("--lr must be") == 1


def test_an_error_of_one_rank_names_it(train):
    other = [":", "-n", "1", sys.executable, *train, "--lr", "0.5"]
    ran = ranks(1, *train, "--lr", "0.1", *other)
    assert ran.returncode == 1
    assert "rank 1 of 2 (on " in ran.stderr
    assert "differs from rank 0 in: model, loss, optimizer" in ran.stderr


def test_data_that_cannot_be_read_are_named_once(train, tmp_path):
    ran = ranks(2, *train[:-1], tmp_path / "missing.csv")
    assert ran.returncode == 4
    assert ran.stderr.count("missing.csv") == 1


def lines_of(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_all(sent, train, tmp_path):
    """MPICH passes it on, and all end after the same step; Open MPI ends them by itself."""
    log, run = tmp_path / "log.jsonl", tmp_path / "run"
    long = [*train, "--json", "--log", log, "--checkpoint", run]
    long[long.index("--epochs") + 1] = "1000000"
    command = [LAUNCHER, *options(), "-n", "2", sys.executable, *map(str, long)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    while lines_of(log) < 5 and time.monotonic() - start < PATIENCE:
        time.sleep(0.05)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=PATIENCE)
    assert list(run.glob("*.safetensors"))
    if options():
        assert process.returncode != 0
    else:
        assert process.returncode == 128 + sent
        assert json.loads(next(line for line in said.splitlines() if line.startswith("{")))["interrupted"]


#: `xnn` in which the signal of the first argument comes to rank 1 alone once a file, the second one, has five lines.
SIGNALLED = """
import os, pathlib, sys, threading, time
from xnn.__main__ import main
from xnn.backends.ranks.launch import launched
number, path = int(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1))
def send():
    while not path.exists() or len(path.read_text().splitlines()) < 5:
        time.sleep(0.05)
    os.kill(os.getpid(), number)
if launched().rank == 1:
    threading.Thread(target=send, daemon=True).start()
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_ends_all_after_the_same_step(sent, train, tmp_path):
    log, save = tmp_path / "log.jsonl", tmp_path / "model.safetensors"
    long = [*train[2:], "--json", "--log", log, "--save", save]
    long[long.index("--epochs") + 1] = "1000000"
    ran = ranks(2, "-c", SIGNALLED, sent, log, *long)
    assert ran.returncode == 128 + sent, ran.stderr
    found = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    assert found["interrupted"]
    assert save.exists()
    assert json.loads(log.read_text().splitlines()[-1])["steps"] == found["steps"]


def test_a_time_limit_ends_all(train):
    long = list(train)
    long[long.index("--epochs") + 1] = "1000000"
    ran = ranks(2, *long, "--json", "--time-limit", "1s")
    assert ran.returncode == 0, ran.stderr
    assert 0 < result(ran)["steps"] < 1_000_000


def test_other_commands_run_once():
    ran = ranks(2, "-m", "xnn", "--version")
    assert ran.stdout.count("xnn, version") == 1
    assert "rank 1 with" in ranks(2, "-m", "xnn", "info").stdout
