"""A trained model, loaded from its bundle: a callable from arrays to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.errors import CorruptError, DataError, HpcmassError
from hpcmass.train.bundle import EXPORTED, Bundle, read_bundle, read_stack, read_weights, same_signature
from hpcmass.train.defaults import Sum
from hpcmass.train.inputs import flatten, forward, prepare
from hpcmass.train.predictor import estimator_outputs
from hpcmass.train.recipe import Recipe, for_tokens, load_recipe
from hpcmass.train.signature import ANY, FieldSpec, Signature
from hpcmass.train.skops_files import load_estimator

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], Any]
Score = Callable[[dict[str, Array]], dict[str, Array]]
BATCH = 256


class Model:
    """A model from a bundle.

    `model(inputs)` takes an array (n, *shape) where there is one input, else a dict of arrays by name, and
    gives probabilities (n, classes) float32 for a classification, values as the model gives them otherwise.

    Attributes:
        signature: Names, types and shapes of inputs and outputs.
        kind: `torch`, `estimator`, `ensemble`, `onnx` or `torch-export`.
        bundle: What it was loaded from.
        core: The torch module, the estimator, the list of member models, or ONNX Runtime's session.
        ragged: What its training data's ragged fields became in batches, for `Dataset.shaped`.
    """

    def __init__(self, bundle: Bundle, core: Any, run: Run, score: Score | None = None) -> None:
        self.bundle = bundle
        self.signature: Signature = bundle.signature
        self.kind = bundle.kind
        self.ragged = bundle.ragged
        self.core = core
        self._run = run
        self._score = score

    @property
    def task(self) -> str:
        """`classification`, `regression` or `other`."""
        return self.signature.task

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes by index, or None."""
        return None if self.signature.classes is None else list(self.signature.classes)

    def __call__(self, inputs: Any, *, batch_size: int = BATCH) -> Any:
        """Compute the outputs for n samples, in batches, without gradients.

        Args:
            inputs: An array (n, *shape), or a dict of arrays by input name.
            batch_size: Samples at once.

        Returns:
            Array (n, ...); a dict or tuple of arrays where the model gives that.

        Raises:
            DataError: Names, types or shapes are not those of the signature.
            RecipeError: The model's own code raised.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, not 1 or more")
        arrays = self._checked(inputs)
        n = len(next(iter(arrays.values())))
        parts = []
        for start in range(0, n, batch_size):
            # A copy: a recipe's transform may work in place, and the arrays are the caller's.
            parts.append(self._run({k: np.array(v[start : start + batch_size]) for k, v in arrays.items()}))
        if not parts:
            spec = self.signature.outputs[0]
            return np.zeros((0, *spec.shape), spec.dtype)
        return _joined(parts)

    def predict(self, inputs: Any, *, batch_size: int = BATCH) -> Any:
        """Class indices (n,) int64 of a classification, values otherwise; raises as a call does."""
        outputs = self(inputs, batch_size=batch_size)
        return np.asarray(outputs).argmax(axis=1) if self.task == "classification" else outputs

    def predict_labels(self, inputs: Any, *, batch_size: int = BATCH) -> Array:
        """Names of the predicted classes, (n,) str.

        Raises:
            DataError: The model is no classification, or as for a call.
        """
        if self.classes is None:
            raise DataError(f"the model has no classes (its task is {self.task})", hint="use predict")
        found: Array = np.take(self.classes, self.predict(inputs, batch_size=batch_size))
        return found

    def score(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The recipe's metrics of n samples, each (n,) float64; without a recipe's own the default ones.

        One that is a sum over values (tokens) is (n, 2): each sample's sum, and its number of values.

        Args:
            batch: Arrays by field name: the model's inputs and targets (further fields may be there).

        Raises:
            DataError: The model is of several, or a field is missing.
            RecipeError: The recipe's code raised.
        """
        if self._score is None:
            hint = "evaluate the version that it was made from" if self.kind in EXPORTED else None
            raise DataError(f"a model of kind {self.kind!r} has no metrics of its own", hint=hint)
        return self._score({name: np.array(values) for name, values in batch.items()})

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"<hpcmass model: {self.kind}, {self.task}{classes}, {self.signature}>"

    def _checked(self, inputs: Any) -> dict[str, Array]:
        specs = self.signature.inputs
        names = [spec.name for spec in specs]
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise DataError(
                    f"the model takes several inputs: {', '.join(names)}", hint="give a dict of arrays"
                )
            inputs = {names[0]: inputs}
        missing = [name for name in names if name not in inputs]
        unknown = [str(name) for name in inputs if name not in names]
        if missing or unknown:
            raise DataError(
                f"the model takes inputs {', '.join(names)}; given: {', '.join(map(str, inputs)) or 'none'}",
                hint="give these and no others",
            )
        arrays = {spec.name: _fit(inputs[spec.name], spec) for spec in specs}
        lengths = {name: len(value) for name, value in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the inputs differ in their number of samples: {lengths}")
        return arrays


def _fit(value: Any, spec: FieldSpec) -> Array:
    """An input in the signature's type, cast where no value changes (beyond rounding of floats)."""
    where = f"input {spec.name!r}"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"is not an array ({error})", where=where) from error
    if not spec.fits(array.shape[1:]) or array.ndim == 0:
        one = spec.fits(array.shape)
        raise DataError(
            f"has shape {array.shape}; expected (n{''.join(f', {size}' for size in spec.shape)})"
            + (" with any length for -1" if ANY in spec.shape else ""),
            where=where,
            hint="a single sample needs a first axis: x[None]" if one else None,
        )
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    fits = np.can_cast(array.dtype, wanted, "same_kind")
    if not array.size and array.dtype.kind in "biuf":
        fits = True
    elif array.dtype.kind in "iu" and wanted.kind in "iu":
        info = np.iinfo(wanted)
        fits = info.min <= int(array.min()) and int(array.max()) <= info.max
    if not fits:
        raise DataError(
            f"is {array.dtype}; the model takes {wanted}",
            where=where,
            hint=f"convert it yourself where that is right: x.astype('{wanted}')",
        )
    return array.astype(wanted)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return np.concatenate(parts) if len(parts) > 1 else first


# -- loading ----------------------------------------------------------------------------------------------
def load_bundle(folder: Path, *, verify: bool = True) -> Model:
    """Load a model from its bundle, on the CPU. The recipe in the bundle, where there is one, is run.

    Args:
        folder: The bundle.
        verify: Hold the files against their checksums first.

    Raises:
        NotFound: There is no bundle.
        CorruptError: A file is damaged, or holds what is not allowed.
        RecipeError: The recipe raised.
        MissingDependency: scikit-learn, skops or ONNX Runtime is needed and not installed.
    """
    bundle = read_bundle(Path(folder), verify=verify)
    try:
        if bundle.kind == "ensemble":
            return _load_ensemble(bundle, verify)
        if bundle.kind in EXPORTED:
            return _load_exported(bundle)
        recipe = load_recipe(bundle.recipe_file)
        if any(name in bundle.ragged for name in bundle.signature.targets):
            recipe = for_tokens(recipe)
        return _load_torch(bundle, recipe) if bundle.kind == "torch" else _load_estimator(bundle, recipe)
    except CorruptError as error:
        if error.hint is None and (changed := _other_versions(bundle)):
            error.hint = changed
        raise


def _other_versions(bundle: Bundle) -> str | None:
    """Say it where the packages have changed since the model was written."""
    from importlib.metadata import PackageNotFoundError, version

    changed = []
    for name, then in bundle.framework.items():
        try:
            now = version(name)
        except PackageNotFoundError:
            now = "nothing"
        if now != then:
            changed.append(f"{name} {then} (here: {now})")
    return f"it was written with {', '.join(changed)}" if changed else None


def _load_torch(bundle: Bundle, recipe: Recipe) -> Model:
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn for nothing
        module = recipe.build_model(bundle.params, bundle.data)
    if not isinstance(module, torch.nn.Module):
        raise CorruptError("builds no torch module", where=bundle.recipe_file)
    state = read_weights(bundle)
    try:
        module.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:400]
        raise CorruptError(f"does not fit the recipe's model ({text})", where=bundle.weights_file) from error
    module.eval().requires_grad_(False)
    names = [spec.name for spec in bundle.signature.inputs]
    softmax = bundle.signature.task == "classification"

    def run(arrays: dict[str, Array]) -> Any:
        with torch.inference_mode():
            batch = prepare(arrays, recipe, names, (), train=False)
            return _numpy(forward(module, recipe, batch.inputs), softmax)

    def score(arrays: dict[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            batch = prepare(arrays, recipe, names, bundle.signature.targets, train=False)
            outputs = forward(module, recipe, batch.inputs)
            return _scores(recipe, outputs, batch.targets, batch.n)

    return Model(bundle, module, run, score)


def _scores(recipe: Recipe, outputs: Any, targets: Any, n: int) -> dict[str, Array]:
    """Metrics (n,) of n samples; of those that are sums over values (n, 2): sum and number of each sample."""
    found = recipe.metrics(outputs, targets)
    made = {name: one.double().numpy() for name, one in found.items() if not isinstance(one, Sum)}
    if len(made) < len(found):
        each = [recipe.metrics(_row(outputs, number), _row(targets, number)) for number in range(n)]
        for name, one in found.items():
            if isinstance(one, Sum):
                sums = [row[name] for row in each]
                made[name] = np.array([(float(s.total), s.count) for s in sums if isinstance(s, Sum)])
    return {name: made[name] for name in found}


def _row(value: Any, number: int) -> Any:
    """One sample's part of outputs or targets."""
    if isinstance(value, torch.Tensor):
        return value[number : number + 1]
    if isinstance(value, Mapping):
        return {name: _row(one, number) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_row(one, number) for one in value)
    return value


def _numpy(outputs: Any, softmax: bool) -> Any:
    if isinstance(outputs, Mapping):
        return {name: _numpy(value, False) for name, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return tuple(_numpy(value, False) for value in outputs)
    if softmax:
        outputs = outputs.float().softmax(dim=1)
    return (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).cpu().numpy()


def _load_exported(bundle: Bundle) -> Model:
    from hpcmass.train.exported import open_onnx, open_program

    core, run = open_onnx(bundle) if bundle.kind == "onnx" else open_program(bundle)
    return Model(bundle, core, run)


def _load_estimator(bundle: Bundle, recipe: Recipe) -> Model:
    estimator = load_estimator(bundle.estimator_file)
    names = [spec.name for spec in bundle.signature.inputs]
    classes = bundle.signature.classes if bundle.signature.task == "classification" else None
    count = None if classes is None else len(classes)

    def run(arrays: dict[str, Array]) -> Array:
        batch = prepare(arrays, recipe, names, (), train=False)
        return estimator_outputs(estimator, flatten(batch.inputs), count)

    return Model(bundle, estimator, run)


def _load_ensemble(bundle: Bundle, verify: bool) -> Model:
    members = [load_bundle(member, verify=verify) for member in bundle.members]
    try:
        same_signature([bundle, *(member.bundle for member in members)])
    except HpcmassError as error:
        raise CorruptError(f"its members do not fit it: {error.message}", where=bundle.folder) from error
    if bundle.combine == "stack":
        arrays = read_stack(bundle)
        weight, bias = arrays["weight"], arrays["bias"]
        if len(bias) != int(np.prod(bundle.signature.outputs[0].shape, dtype=np.int64)):
            raise CorruptError(f"has shapes {weight.shape} and {bias.shape}", where=bundle.stack_file)

    def run(arrays: dict[str, Array]) -> Array:
        outputs = [member._run(arrays) for member in members]
        if bundle.combine == "vote":
            return vote(outputs)
        return apply_stack(outputs, weight, bias, softmax=bundle.signature.task == "classification")

    return Model(bundle, members, run)


def vote(outputs: list[Array]) -> Array:
    """Mean of the members' outputs, each (n, ...)."""
    stacked = np.stack([np.asarray(part, np.float64) for part in outputs])
    return np.asarray(stacked.mean(axis=0), np.float32)


def stack_features(outputs: list[Array]) -> Array:
    """The members' outputs side by side, (n, members x outputs) float64."""
    return np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in outputs], axis=1)


def apply_stack(outputs: list[Array], weight: Array, bias: Array, *, softmax: bool) -> Array:
    """The linear model on top of the members' outputs; its result has the shape of one member's outputs."""
    values: Array = stack_features(outputs) @ weight.T + bias
    if softmax:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return values.reshape(outputs[0].shape).astype(np.float32)
