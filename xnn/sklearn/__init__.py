"""Estimators for scikit-learn: MLPClassifier and MLPRegressor, its own two classes with xnn as their engine.

    from xnn.sklearn import MLPClassifier  # instead of: from sklearn.neural_network import MLPClassifier

Parameters, attributes, warnings and errors are scikit-learn's; docs/sklearn.md says what more there is. The extra
`sklearn` installs scikit-learn. `import xnn` does not import this package.
"""

from xnn.errors import MissingExtraError

try:
    import sklearn.neural_network  # noqa: F401
except ImportError as error:
    raise MissingExtraError('xnn.sklearn needs scikit-learn: pip install ".[sklearn]"') from error

# Loaded now, and not in the first fit, which would take longer.
from xnn.backends import numpy_backend  # noqa: F401
from xnn.backends.kernels import numpy_kernels  # noqa: F401
from xnn.backends.threads import blas_threads
from xnn.sklearn.estimators import MLPClassifier, MLPRegressor
from xnn.sklearn.many import fit_many
from xnn.sklearn.search import MLPSearchCV

__all__ = ["MLPClassifier", "MLPRegressor", "MLPSearchCV", "fit_many"]

blas_threads()  # The search for BLAS libraries takes 10 ms, once in a process.
