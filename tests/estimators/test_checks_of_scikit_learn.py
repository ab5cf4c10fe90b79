"""scikit-learn's checks of estimators, and its own tests of its MLP, on xnn.sklearn's estimators."""

from pathlib import Path

import pytest

pytest.importorskip("sklearn")

import sklearn

from xnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore")

OWN = Path(sklearn.__file__).parent / "neural_network" / "tests" / "test_mlp.py"
IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
NEWEST = tuple(map(int, sklearn.__version__.split(".")[:2]))
#: float32 rounding: with some BLAS a prediction near 0 is 1.04e-4 off, and the limit 1e-4 there was raised later.
CLOSE = {"test_mlp_regressor_dtypes_casting"} if NEWEST < (1, 6) else set()


with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SCIPY_ARRAY_API", "1")  # scikit-learn 1.6 cannot be imported without it
    from sklearn.utils.estimator_checks import parametrize_with_checks

#: The checks train some two hundred networks. scikit-learn, too, takes fewer epochs than 200 for its own MLPs.
EPOCHS = 50
# scikit-learn 1.4 gives a generator, of which pytest warns.
CHECKS = parametrize_with_checks([MLPClassifier(max_iter=EPOCHS), MLPRegressor(max_iter=EPOCHS)])


@pytest.mark.parametrize(CHECKS.args[0], [*CHECKS.args[1]], **CHECKS.kwargs)
def test_an_estimator_passes(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # scikit-learn 1.9 has a check more with it
    check(estimator)


@pytest.mark.slow
def test_scikit_learns_own_tests_pass_with_another_import(tmp_path, pytester_of):
    text = OWN.read_text(encoding="utf-8")
    assert text.count(IMPORT) == 1
    passed, failed = pytester_of(
        text.replace(IMPORT, IMPORT.replace("sklearn.neural_network", "xnn.sklearn"))
    )
    assert failed <= CLOSE
    assert passed > 50
