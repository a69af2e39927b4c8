"""Estimators in skops files, held against a list of types.

skops trusts scikit-learn's public estimators and numpy's arrays by itself. The further types that fitted
estimators hold are listed here one by one; a whole package is never trusted, since packages hold functions
that run their arguments. A listed type may still carry wrong indices, which compiled code follows blindly,
so trees are checked after loading (scikit-learn's Tree and TreePredictor do not).
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import CorruptError, MissingDependency, RecipeError
from hpcmass.files import storage_errors

_TRUSTED = re.compile(
    "|".join(
        name.replace(".", r"\.")
        for name in (
            "sklearn.tree._tree.Tree",
            "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
            "sklearn.neural_network._stochastic_optimizers.(AdamOptimizer|SGDOptimizer)",
            "sklearn.neighbors._(kd_tree.KDTree|ball_tree.BallTree)(32|64)?",
            "sklearn.metrics._dist_metrics.(Euclidean|Manhattan|Minkowski|Chebyshev)Distance(32|64)?",
            "sklearn.calibration._(CalibratedClassifier|SigmoidCalibration)",
            "sklearn.utils._bunch.Bunch",
            "sklearn._loss.loss.[A-Za-z]+",
            "sklearn._loss.link.[A-Za-z]+",
            "sklearn._loss._loss.Cy[A-Za-z]+",
            "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
            "sklearn.ensemble._gb_losses.[A-Za-z]+",
            "sklearn.gaussian_process.kernels.[A-Z][A-Za-z]+",
            "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
            # What boosted trees with categorical features pass the other ones through; skops lists the function
            # inside of a partial too, so that this allows no other function.
            "functools.partial",
            "sklearn.utils.validation.check_array",
        )
    )
)


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise MissingDependency(
            "estimators need scikit-learn and skops", hint="pip install 'hpcmass[sklearn]'"
        ) from error
    # Before 0.12 a forged file ran functions that `get_untrusted_types` did not name (CVE-2025-54412, -54413).
    if tuple(int(part) for part in re.findall(r"\d+", skops.__version__)[:2]) < (0, 12):
        raise MissingDependency(
            f"estimators need skops 0.12 or newer, not {skops.__version__}", hint="pip install 'skops>=0.12'"
        )
    return skops.io


def skops_version() -> dict[str, str]:
    """Versions that matter for reading an estimator again."""
    import sklearn
    import skops

    return {"scikit-learn": sklearn.__version__, "skops": skops.__version__}


def _refused(names: list[str]) -> list[str]:
    return sorted(name for name in names if not _TRUSTED.fullmatch(name))


def _dumps(estimator: Any) -> bytes:
    """The skops bytes of an estimator, or a refusal that names what cannot be stored."""
    skops_io = _skops()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data: bytes = skops_io.dumps(estimator)
        refused = _refused(skops_io.get_untrusted_types(data=data))
    except Exception as error:
        raise RecipeError(
            f"the estimator cannot be stored safely ({type(error).__name__}: {error})",
            hint="use estimators of scikit-learn without functions or classes of your own inside",
        ) from error
    if refused:
        raise RecipeError(
            f"the estimator holds types that a model bundle does not allow: {', '.join(refused)}",
            hint="use estimators of scikit-learn without functions or classes of your own inside",
            types=refused,
        )
    return data


def check_storable(estimator: Any) -> None:
    """Refuse an estimator that could not be stored, before time is spent on fitting it.

    Raises:
        RecipeError: It is, or holds, something whose type is not allowed in a bundle.
        MissingDependency: skops is not installed.
    """
    _dumps(estimator)


def dump_estimator(estimator: Any, path: Path) -> None:
    """Write a fitted estimator; as `check_storable`."""
    data = _dumps(estimator)
    with storage_errors(path, "write the estimator"):
        path.write_bytes(data)


def load_estimator(path: Path) -> Any:
    """Load an estimator; nothing is constructed before all of its types are allowed.

    Raises:
        CorruptError: The file is not a skops file, holds other types, or a tree with wrong indices.
        MissingDependency: skops is not installed.
    """
    skops_io = _skops()
    with storage_errors(path, "read the estimator"):
        data = path.read_bytes()
    try:
        names = skops_io.get_untrusted_types(data=data)
    except Exception as error:
        raise CorruptError(f"is not a skops file ({type(error).__name__}: {error})", where=path) from error
    if refused := _refused(names):
        raise CorruptError(
            f"holds types that are not allowed: {', '.join(refused)}",
            where=path,
            hint="only estimators of scikit-learn are loaded",
            types=refused,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = skops_io.load(io.BytesIO(data), trusted=names)
        _check_trees(estimator)
    except CorruptError as error:
        raise CorruptError(error.message, where=path) from error
    except Exception as error:
        raise CorruptError(f"cannot be loaded ({type(error).__name__}: {error})", where=path) from error
    if not hasattr(estimator, "predict"):
        raise CorruptError(f"holds a {type(estimator).__name__}, not an estimator", where=path)
    return estimator


# -- indices inside trees -----------------------------------------------------------------------------
def _check_trees(root: Any) -> None:
    """Refuse trees whose indices lead out of their arrays or round in circles."""
    for value in _walk(root):
        kind = type(value).__name__
        if kind == "Tree":
            inner = value.children_left != -1
            left, right = value.children_left[inner], value.children_right[inner]
            _check_nodes(inner, left, right, value.feature[inner], int(value.n_features))
            if value.value.shape[0] != value.node_count:
                raise CorruptError("a tree's values do not fit its nodes")
        elif kind.startswith("HistGradientBoosting"):
            for predictor in itertools.chain.from_iterable(getattr(value, "_predictors", ())):
                _check_predictor(predictor, int(value._n_features))
        elif kind in ("KDTree", "BallTree", "KDTree32", "BallTree32", "KDTree64", "BallTree64"):
            data, order, nodes, _ = value.get_arrays()
            ends = (order, nodes["idx_start"], nodes["idx_end"] - 1)
            if any(len(e) and (int(e.min()) < 0 or int(e.max()) >= len(data)) for e in map(np.asarray, ends)):
                raise CorruptError("a neighbour tree's indices lead out of its data")


def _check_predictor(predictor: Any, features: int) -> None:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    left, right = nodes["left"][inner].astype(np.int64), nodes["right"][inner].astype(np.int64)
    _check_nodes(inner, left, right, nodes["feature_idx"][inner], features)
    rows = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    if rows.size and int(rows.max()) >= len(predictor.raw_left_cat_bitsets):
        raise CorruptError("a tree's categories lead out of their table")


def _check_nodes(
    inner: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any],
    right: np.ndarray[Any, Any],
    feature: np.ndarray[Any, Any],
    features: int,
) -> None:
    """Children come after their parent and inside the array; features are those of the data."""
    parents = np.flatnonzero(inner)
    for children in (left, right):
        if np.any(children <= parents) or np.any(children >= len(inner)):
            raise CorruptError("a tree's nodes lead out of it")
    if np.any(feature < 0) or np.any(feature >= features):
        raise CorruptError("a tree asks for a feature that there is not")


def _walk(root: Any) -> Iterator[Any]:
    """Every object inside an estimator, each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type, type(None))):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, np.ndarray):
            waiting.extend(value.ravel().tolist() if value.dtype == object else [])
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        else:
            waiting.extend(getattr(value, "__dict__", {}).values())
