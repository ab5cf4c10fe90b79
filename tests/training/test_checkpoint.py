"""Checkpoints: the resumed run is the run, bit for bit; and what does not fit is refused by name."""

import hashlib
import json

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, metrics, ops, optimizers, schedules
from xnn.benchmarks.exactness.networks import SMALL
from xnn.errors import CorruptFileError, DataError, OptionError
from xnn.layers.files import weights_sha256
from xnn.layers.resumable_sha256 import ResumableSHA256
from xnn.training.checkpoint import built

ROWS, BATCH, EPOCHS = 70, 16, 5
PER_EPOCH = -(-ROWS // BATCH)


class KilledError(Exception):
    """Ends a fit as a killed process does: nothing is written after it."""


class Saver(callbacks.Callback):
    """Saves a checkpoint after some step, and ends the run three steps later."""

    def __init__(self, path=None, at=-9):
        self._path, self._at, self._seen = path, at, 0

    def on_step(self, history, epoch, step, loss):
        self._seen += 1
        if self._seen == self._at:
            self.trainer.save(self._path)
        if self._seen == self._at + 3:
            raise KilledError

    def state(self):
        return None


class Halving(callbacks.Callback):
    """Changes what it trains: halves the rate, unfreezes a layer, and changes dropout."""

    def __init__(self):
        self.losses, self.best, self.rng = [], {}, np.random.default_rng(3)

    def on_epoch_end(self, history, entry):
        self.losses.append(entry["loss"])
        self.best[len(self.losses)] = (np.float32(entry["loss"]), self.model[0].weight.value * 1)
        entry["noise"] = self.rng.random()
        if len(self.losses) == 2:
            self.optimizer.learning_rate = 0.5 * self.optimizer.rate
            for layer in self.model.layers:
                if isinstance(layer, layers.Dropout):
                    layer.rate = 0.1
            self.model[0].weight.frozen = False


class Own(optimizers.Optimizer):
    """An optimizer with a step of its own, which keeps bare arrays and numbers."""

    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.calls, self.speeds = 0, {}

    def update(self, parameter):
        self.calls += 1
        speed = 0.9 * self.speeds.get(parameter, 0.0 * parameter.grad) + parameter.grad
        self.speeds[parameter] = self.state[parameter] = speed
        parameter.value = parameter.value - self.rate / (1 + 0.01 * self.calls) * speed


class Rule(optimizers.Optimizer):
    array_names = ("velocity",)

    @staticmethod
    def rule(xp, parameter, gradient, velocity, *, learning_rate, friction):
        velocity = friction * velocity + gradient
        return parameter - learning_rate * velocity, velocity

    friction = 0.7


class Counting(layers.Layer):
    """A layer that keeps a number from step to step."""

    def __init__(self):
        self.mean = layers.Buffer("mean", (8,), xnn.initializers.Zeros())

    def compute(self, x):
        self.keep([self.mean], lambda xp, mean, x: (0.9 * mean + 0.1 * xp.mean(x, axis=0),), x)
        return x - 0.1 * ops.stop_gradient(self.mean)


class Decay:
    """A schedule that is an object of the user's."""

    def __init__(self, rate):
        self.rate, self.asked = rate, 0

    def __call__(self, step):
        self.asked += 1
        return self.rate / (1 + 0.1 * step)


def squares(outputs, targets):
    return ops.mean((outputs - 0.5) * (outputs - 0.5))


class Perceptual(losses.Loss):
    """A loss that compares outputs as a frozen network sees them."""

    def __init__(self):
        super().__init__()
        self.network = xnn.Sequential(layers.Dense(3, 6), layers.Tanh(), seed=8)
        for parameter in self.network.parameters():
            parameter.frozen = True

    def check(self, targets, shape):
        """Any targets will do."""

    def prepare(self, targets, dtype):
        return targets

    def compute(self, outputs, targets):
        seen = self.network(outputs) - 0.1
        return ops.mean(seen * seen)


def network(*extra, seed=0):
    first = layers.Dense(4, 8), *extra
    return xnn.Sequential(*first, layers.Tanh(), layers.Dense(8, 3), seed=seed)


CE = losses.SoftmaxCrossEntropy
CASES = {
    "sgd": (lambda: network(), lambda: CE(), lambda: optimizers.SGD(0.1), {}),
    "momentum, clipped": (network, CE, lambda: optimizers.SGD(0.1, momentum=0.9, clip_norm=0.5), {}),
    "adam, averages, cosine": (
        lambda: network(layers.BatchNorm(8), layers.Dropout(0.3)),
        lambda: CE(label_smoothing=0.1, class_weight=[1.0, 2.0, 0.5]),
        lambda: optimizers.Adam(schedules.Warmup(schedules.Cosine(0.03, steps=25), steps=4), average=0.9),
        {"sample_weight": np.linspace(0.5, 1.5, ROWS)},
    ),
    "adamw": (network, CE, lambda: optimizers.AdamW(0.01, weight_decay={"weight": 0.1}), {}),
    "averages": (network, CE, lambda: optimizers.AdamW(0.01, average=0.8, clip_value=0.2), {}),
    "nadam": (network, CE, lambda: optimizers.Nadam(0.01), {}),
    "lion": (network, CE, lambda: optimizers.Lion(0.003), {}),
    "adagrad": (network, CE, lambda: optimizers.AdaGrad(0.05, clip_value=0.1), {}),
    "adadelta": (network, CE, lambda: optimizers.AdaDelta(1.0), {}),
    "rmsprop": (network, CE, lambda: optimizers.RMSProp(0.01, momentum=0.5, centered=True), {}),
    "float64": (
        lambda: xnn.Sequential(layers.Dense(4, 3, dtype="float64"), seed=1),
        CE,
        lambda: optimizers.Adam(0.01),
        {"seed": 5, "shuffle": False},
    ),
    "own step": (network, CE, lambda: Own(0.05), {}),
    "own rule": (network, CE, lambda: Rule(0.05), {}),
    "own layer": (lambda: network(Counting()), CE, lambda: optimizers.SGD(Decay(0.1)), {}),
    "own loss": (
        network,
        lambda: losses.Lambda(squares),
        lambda: optimizers.SGD(0.01),
        {},
    ),
    "own loss with a network": (network, Perceptual, lambda: optimizers.Adam(0.01), {}),
    "frozen": (lambda: _frozen(network(layers.Dropout(0.5))), CE, lambda: optimizers.Adam(0.01), {}),
}


def _frozen(model):
    model[0].weight.frozen = True
    return model


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    return x, (np.abs(x[:, 0]) + x[:, 1] > 0.5).astype(np.int64) + (x[:, 2] > 1)


def trainer_of(case, *watchers, patience=2, **options):
    model, loss, optimizer, _ = CASES[case]
    own = [Halving(), callbacks.EarlyStopping("val_loss", patience=patience), *watchers]
    trainer = xnn.Trainer(
        model(), loss(), optimizer(), ["accuracy", metrics.ConfusionMatrix()], own, **options
    )
    own[0].optimizer = trainer.optimizer
    for watcher in watchers:
        watcher.trainer = trainer
    return trainer


def fit(trainer, case, epochs=EPOCHS, **options):
    x, y = data()
    given = {"batch_size": BATCH, "epochs": epochs, "progress": False, **CASES[case][3], **options}
    return trainer.fit((x, y), validation=(x[:30], y[:30]), **given)


def outcome(trainer, history):
    halving, stopping, *_ = trainer.callbacks
    return {
        "weights": weights_sha256(trainer.model),
        "losses": history.losses_sha256,
        "epochs": json.dumps(history.epochs),
        "steps": (history.steps, history.samples, trainer.epoch, trainer.step, trainer.optimizer.steps),
        "stopped": history.stopped,
        "best": (stopping.best, stopping.best_epoch),
        "kept": (halving.losses, halving.rng.random()),
        "best weights": {n: (w.dtype, w.tolist(), a.tolist()) for n, (w, a) in halving.best.items()},
        "rate": trainer.optimizer.rate,
        "averages": [a.tolist() for a in trainer.optimizer.averages.values()],
    }


def interrupted(path, case, at, **options):
    saver = Saver(path, at)
    with pytest.raises(KilledError):
        fit(trainer_of(case, saver, **options), case)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES)
def test_the_resumed_run_is_the_run(case, folder):
    whole = trainer_of(case, Saver())
    wanted = outcome(whole, fit(whole, case))
    for at in (1, PER_EPOCH, PER_EPOCH + 2, 2 * PER_EPOCH + 3, 3 * PER_EPOCH - 1):
        path = folder / "run.safetensors"
        interrupted(path, case, at)
        trainer = trainer_of(case, Saver())
        trainer.resume(path)
        history = fit(trainer, case)
        assert history.resumed
        assert outcome(trainer, history) == wanted, at


def test_a_run_is_resumed_again_and_again(folder):
    case, path = "adam, averages, cosine", folder / "again.safetensors"
    whole = trainer_of(case, Saver())
    wanted = outcome(whole, fit(whole, case))
    saver = Saver(path, 2)
    with pytest.raises(KilledError):
        fit(trainer_of(case, saver), case)
    for _ in range(4):
        saver = Saver(path, 4)
        trainer = trainer_of(case, saver)
        trainer.resume(path)
        with pytest.raises(KilledError):
            fit(trainer, case)
    trainer = trainer_of(case, Saver())
    trainer.resume(path)
    assert outcome(trainer, fit(trainer, case)) == wanted


def test_after_a_fit_the_next_fit_goes_on(folder):
    case, path = "adam, averages, cosine", folder / "between.safetensors"
    first, second = trainer_of(case), trainer_of(case)
    fit(first, case, epochs=2)
    first.save(path)
    second.resume(path)
    assert [c.losses for c in (first.callbacks[0], second.callbacks[0])] == [first.callbacks[0].losses] * 2
    assert outcome(first, fit(first, case, 2)) == outcome(second, fit(second, case, 2))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("backend", ["numpy", "array-api-strict"])
@pytest.mark.parametrize("threads", [1, 2])
def test_exact_numerics_resume_anywhere(backend, threads, folder):
    case, path = "momentum, clipped", folder / "exact.safetensors"
    whole = trainer_of(case, Saver(), numerics="exact")
    wanted = outcome_without_arrays(whole, fit(whole, case))
    interrupted(path, case, 8, numerics="exact", threads=1)
    with xnn.backends.backend(backend):
        trainer = trainer_of(case, Saver(), numerics="exact", threads=threads, kernels="ops")
        trainer.resume(path)
        found = outcome_without_arrays(trainer, fit(trainer, case))
    assert found == wanted


def outcome_without_arrays(trainer, history):
    return {
        "weights": weights_sha256(trainer.model),
        "losses": history.losses_sha256,
        "epochs": json.dumps(history.epochs),
    }


def test_in_fast_numerics_another_plan_is_refused_with_what_differs(folder):
    path = folder / "plan.safetensors"
    interrupted(path, "sgd", 8, kernels="ops")
    trainer = trainer_of("sgd", Saver(), kernels="numpy")
    trainer.resume(path)
    with pytest.raises(OptionError, match=r"kernels 'numpy', there 'ops'.*--allow-different-plan"):
        fit(trainer, "sgd")
    trainer = trainer_of("sgd", Saver(), kernels="numpy")
    trainer.resume(path, allow_different_plan=True)
    assert fit(trainer, "sgd").steps == EPOCHS * PER_EPOCH


def test_threads_auto_takes_the_number_of_the_checkpoint(folder):
    path = folder / "auto.safetensors"
    interrupted(path, "sgd", 8, threads=1)
    trainer = trainer_of("sgd", Saver(), threads="auto")
    trainer.resume(path)
    assert fit(trainer, "sgd").plan["threads"] == 1


OTHERS = {
    "learning_rate": (network, CE, lambda: optimizers.SGD(0.2), "learning_rate is 0.2, and 0.1"),
    "schedule": (network, CE, lambda: optimizers.SGD(schedules.Cosine(0.1, steps=9)), "learning_rate"),
    "optimizer": (network, CE, lambda: optimizers.Adam(0.1), "optimizer.class is 'Adam', and 'SGD'"),
    "layer": (lambda: network(layers.ReLU()), CE, lambda: optimizers.SGD(0.1), "ReLU.*, and Sequential, "),
    "fewer layers": (
        lambda: xnn.Sequential(layers.Dense(4, 3), seed=0),
        CE,
        lambda: optimizers.SGD(0.1),
        "the layers are Sequential, Dense, and Sequential, Dense, ",
    ),
    "rate": (lambda: network(seed=4), CE, lambda: optimizers.SGD(0.1), "seed is 4, and 0"),
    "loss": (network, lambda: CE(label_smoothing=0.1), lambda: optimizers.SGD(0.1), "label_smoothing"),
    "reduction": (network, lambda: CE(reduction="sum"), lambda: optimizers.SGD(0.1), "reduction is 'sum'"),
    "width": (
        lambda: xnn.Sequential(layers.Dense(4, 9), layers.Tanh(), layers.Dense(9, 3), seed=0),
        CE,
        lambda: optimizers.SGD(0.1),
        "outputs is 9, and 8",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_was_built_differently_is_named(other, folder, monkeypatch):
    path = folder / "built.safetensors"
    interrupted(path, "sgd", 3)
    *parts, message = OTHERS[other]
    monkeypatch.setitem(CASES, "sgd", (*parts, {}))
    trainer = trainer_of("sgd", Saver())
    before = weights_sha256(trainer.model)
    with pytest.raises(OptionError, match=message):
        trainer.resume(path)
    assert weights_sha256(trainer.model) == before


def test_other_callbacks_and_metrics_are_named(folder):
    path = folder / "callbacks.safetensors"
    interrupted(path, "sgd", 3)
    with pytest.raises(OptionError, match=r"callbacks\.1\.patience is 7, and 2 in the checkpoint"):
        trainer_of("sgd", Saver(), patience=7).resume(path)
    with pytest.raises(OptionError, match="EarlyStopping, and Halving, EarlyStopping, Saver in"):
        trainer_of("sgd").resume(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 9}, "seed=9"),
        ({"batch_size": 8}, "batch_size=8"),
        ({"shuffle": False}, "shuffle=False"),
        ({"sample_weight": np.ones(ROWS)}, "training data are not those"),
    ],
)
def test_other_options_of_fit_are_refused(options, message, folder):
    path = folder / "options.safetensors"
    interrupted(path, "sgd", 3)
    trainer = trainer_of("sgd", Saver())
    trainer.resume(path)
    with pytest.raises(OptionError, match=message):
        fit(trainer, "sgd", **options)


def test_other_data_are_refused(folder):
    path = folder / "data.safetensors"
    interrupted(path, "sgd", 3)
    x, y = data()
    for other in ((x + 1, y), (x[:-1], y[:-1]), (x, y[::-1].copy())):
        trainer = trainer_of("sgd", Saver())
        trainer.resume(path)
        with pytest.raises(OptionError, match="training data are not those of"):
            trainer.fit(other, validation=(x, y), batch_size=BATCH, epochs=EPOCHS, progress=False)


class KeepsAFile(callbacks.Callback):
    def __init__(self, path):
        self._file = open(path, "w")  # noqa: SIM115

    def on_fit_end(self, history):
        self._file.close()


class MakesObjects(callbacks.Callback):
    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.made = Decay(1.0)


class NoRestore(callbacks.Callback):
    def state(self):
        return 3


class OddState(callbacks.Callback):
    def restore(self):
        """A method of the user's with the name of a hook."""


@pytest.mark.parametrize(
    ("watcher", "message"),
    [
        (lambda path: KeepsAFile(path / "log"), r"callbacks\.3\.state\._file is <_io.*define state\(self\)"),
        (lambda path: MakesObjects(), r"callbacks\.3\.state\.made is a Decay that came during the training"),
        (
            lambda path: NoRestore(),
            "NoRestore.state returned 3, and it has no method restore: write def restore",
        ),
        (
            lambda path: OddState(),
            r"OddState\.restore is what a checkpoint calls.*write def restore\(self, state\)",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_at_the_first_save(watcher, message, folder):
    path = folder / "refused.safetensors"
    trainer = trainer_of("sgd", saver := Saver(path, 1), watcher(folder))
    with pytest.raises(OptionError, match=message):
        fit(trainer, "sgd")
    assert not path.exists()
    assert saver._seen == 1


def test_an_optimizer_that_keeps_what_cannot_be_saved_is_refused(folder):
    trainer = trainer_of("sgd")
    trainer.optimizer.state["made"] = (n for n in range(3))
    with pytest.raises(
        OptionError, match=r"optimizer\.state\.0 is <generator|optimizer\.state\.made is <generator"
    ):
        trainer.save(folder / "generator.safetensors")


def test_resume_inside_a_fit_is_refused(folder):
    class Resumes(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            self.trainer.resume("x.safetensors")

    with pytest.raises(OptionError, match="resume was called during a fit"):
        fit(trainer_of("sgd", Resumes()), "sgd")


def test_a_model_file_and_a_checkpoint_are_told_apart(folder):
    trainer = trainer_of("sgd")
    trainer.model.save(folder / "model.safetensors")
    trainer.save(folder / "checkpoint.safetensors")
    with pytest.raises(CorruptFileError, match=r"a model that model\.save wrote"):
        trainer.resume(folder / "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"it is a checkpoint, which Trainer\.resume reads"):
        xnn.load(folder / "checkpoint.safetensors")
    with pytest.raises(DataError):
        trainer.resume(folder / "none.safetensors")


def test_the_tensors_are_those_of_the_model(folder):
    from safetensors.numpy import load_file

    trainer = trainer_of("sgd")
    trainer.save(folder / "names.safetensors")
    found = load_file(folder / "names.safetensors")
    assert found["model.0.weight"].tolist() == trainer.model[0].weight.value.tolist()


def test_shared_lists_and_references_come_back(folder):
    class Shares(callbacks.Callback):
        def __init__(self, outside):
            self.one = self.two = outside
            self.layers = {"first": None}

        def on_epoch_end(self, history, entry):
            self.one.append({1: (entry["loss"], {2, 3})})
            self.layers["first"] = self.model[0]

    one, other = [], []
    first, second = trainer_of("sgd", Shares(one)), trainer_of("sgd", Shares(other))
    fit(first, "sgd", epochs=2)
    first.save(folder / "shared.safetensors")
    second.resume(folder / "shared.safetensors")
    watcher = second.callbacks[2]
    assert watcher.one is watcher.two is other
    assert other == one != []
    assert watcher.layers["first"] is second.model[0]


class SaverOfEpochs(callbacks.Callback):
    def __init__(self, path, at):
        self._path, self._at = path, at

    def on_epoch_end(self, history, entry):
        if entry["epoch"] == self._at:
            self.trainer.save(self._path)
        if entry["epoch"] == self._at + 1:
            raise KilledError

    def state(self):
        return None


@pytest.mark.parametrize("at", [1, 4, 11])
@pytest.mark.parametrize("anew", [False, True], ids=["one search", "a callback begins it anew"])
def test_lbfgs_goes_on_in_its_search(at, anew, folder):
    path = folder / "lbfgs.safetensors"

    class Doubles(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            if anew and entry["epoch"] in (3, 7):
                self.model[0].weight.value = self.model[0].weight.value * 1.1

    def run(at, resumes=False):
        saver = SaverOfEpochs(path, at)
        model = xnn.Sequential(layers.Dense(4, 5), layers.Tanh(), layers.Dense(5, 3), seed=0)
        parts = model, CE(), optimizers.LBFGS(weight_decay=1e-4)
        saver.trainer = trainer = xnn.Trainer(*parts, callbacks=[Doubles(), saver])
        if resumes:
            trainer.resume(path)
        x, y = data()
        history = trainer.fit((x, y), (x, y), epochs=15, batch_size=20, progress=False)
        return weights_sha256(model), history.losses_sha256, json.dumps(history.epochs), history.steps

    wanted = run(-9)
    with pytest.raises(KilledError):
        run(at)
    assert run(-9, resumes=True) == wanted


@pytest.mark.slow
def test_the_digest_of_many_losses_goes_on():
    rng, whole, digest = np.random.default_rng(0), hashlib.sha256(), ResumableSHA256()
    for size in (0, 1, 63, 64, 300_000, 65, 2**18, 7):
        content = rng.bytes(size)
        whole.update(content)
        digest.update(content)
        assert digest.hexdigest() == whole.hexdigest()
        digest = ResumableSHA256.from_state(digest.state())
        assert digest.hexdigest() == whole.hexdigest()
        assert len(digest.state()["rest"]) <= 2**18


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", ["momentum, clipped", "adam, averages, cosine"])
def test_every_backend_resumes_in_fast_numerics(case, lib, folder):
    path = folder / "backend.safetensors"
    with xnn.backends.backend(lib.name):
        whole = trainer_of(case, Saver())
        wanted = outcome_without_arrays(whole, fit(whole, case))
        for at in (3, 8):
            interrupted(path, case, at)
            trainer = trainer_of(case, Saver())
            trainer.resume(path)
            assert outcome_without_arrays(trainer, fit(trainer, case)) == wanted


@pytest.mark.parametrize("every", ["4steps", "1epoch"])
def test_every_backend_writes_checkpoints_at_the_steps_asked_for(every, lib, tmp_path):
    x, y = data()

    def run(*watchers):
        trainer = xnn.Trainer(network(), CE(), optimizers.Adam(0.01), callbacks=[*watchers])
        return trainer, lambda: trainer.fit((x, y), epochs=3, batch_size=BATCH, progress=False)

    with xnn.backends.backend(lib.name):
        whole, fit_whole = run()
        history = fit_whole()
        _, fit_written = run(callbacks.Checkpoint(tmp_path, every=every, keep=9))
        fit_written()
        steps = sorted(int(path.stem[5:]) for path in tmp_path.glob("step-*"))
        assert steps == ([4, 8, 12, 15] if every == "4steps" else [5, 10, 15])
        for step in steps:
            trainer, fit_again = run()
            trainer.resume(tmp_path / f"step-{step:09d}.safetensors")
            assert trainer.step == step
            assert fit_again().losses_sha256 == history.losses_sha256
            assert weights_sha256(trainer.model) == weights_sha256(whole.model)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", ["averages", "adam, averages, cosine"])
def test_a_checkpoint_of_one_backend_is_resumed_on_another_in_exact_numerics(case, other, folder):
    path = folder / "moved.safetensors"
    whole = trainer_of(case, Saver(), numerics="exact")
    wanted = outcome_without_arrays(whole, fit(whole, case))
    interrupted(path, case, 8, numerics="exact")
    with xnn.backends.backend(other.name):
        trainer = trainer_of(case, Saver(), numerics="exact")
        trainer.resume(path)
        assert outcome_without_arrays(trainer, fit(trainer, case)) == wanted
        again = folder / "back.safetensors"
        interrupted(again, case, 8, numerics="exact")
    trainer = trainer_of(case, Saver(), numerics="exact")
    trainer.resume(again)
    assert outcome_without_arrays(trainer, fit(trainer, case)) == wanted


class Target(callbacks.Callback):
    """Keeps a second network, which follows the first one, and the history."""

    def __init__(self):
        self.second = network(seed=5)

    def on_epoch_end(self, history, entry):
        self.history = history
        for mine, other in zip(self.second.parameters(), self.model.parameters(), strict=True):
            mine.value = 0.5 * mine.value + 0.5 * other.value
        entry["distance"] = float(np.abs(np.asarray(self.second[0].weight.value)).sum())


@pytest.mark.parametrize("at", [7, 10])
def test_networks_of_callbacks_go_on(at, folder):
    path = folder / "target.safetensors"
    whole = trainer_of("sgd", Saver(), Target())
    wanted = outcome(whole, fit(whole, "sgd"))
    with pytest.raises(KilledError):
        fit(trainer_of("sgd", Saver(path, at), Target()), "sgd")
    trainer = trainer_of("sgd", Saver(), Target())
    trainer.resume(path)
    history = fit(trainer, "sgd")
    assert outcome(trainer, history) == wanted
    assert trainer.callbacks[3].history is history


@pytest.mark.parametrize("name", SMALL)
def test_a_training_does_not_change_how_its_parts_were_built(name):
    """Else no checkpoint of a model that was used before could be resumed; ranks with other backends would differ."""
    network = SMALL[name]
    data = network.data()
    trainer = xnn.Trainer(*network.build(), network.metrics)
    before = built(trainer)
    trainer.fit(data[:2], epochs=1, batch_size=32, progress=False)
    trainer.evaluate(data[:2])
    trainer.model.predict(data[0])
    assert built(trainer) == before
