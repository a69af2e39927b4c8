"""The recipe: the user's one Python file, loaded, checked and wrapped.

Whatever the user's code raises becomes a `RecipeError` that points at the user's own line. Functions that
the recipe leaves out are filled in, so the rest of `train` sees one complete `Recipe`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hpcmass.errors import HpcmassError, NotFound, RecipeError
from hpcmass.files import storage_errors
from hpcmass.train.defaults import (
    Sum,
    Targets,
    default_loss,
    default_metrics,
    default_transform,
    samples_of,
    token_loss,
    token_metrics,
)

Facts = dict[str, dict[str, Any]]
"""By field: `role`, `dtype`, `shape`, `classes`, and of the manifest: `mean`, `std`, `min`, `max`."""

Transform = Callable[[dict[str, Tensor], bool, Sequence[str]], dict[str, Tensor]]

_COUNTER = itertools.count()
_NAMES = ("build_model", "loss", "metrics", "optimizer", "transform", "augment", "augment_batch")
_AUGMENTS = ("augment", "augment_batch")
_DTYPE_WORDS = ("scalar type", "same dtype", "not implemented for", "should be the same", "dtype")


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe; every function of the user's is wrapped, every default filled in.

    Attributes:
        path: The file.
        source: Its text.
        sha256: SHA-256 of its bytes.
        module: The executed module.
        build_model: `(params, data) -> torch.nn.Module | estimator`, checked; `data` are the facts about the
            training data (`hpcmass.train.facts`), or None where `takes_data` is false.
        takes_data: Whether the recipe's `build_model` has a parameter `data`.
        loss: `(outputs, targets) -> scalar Tensor`, the mean over the samples; or a `Sum`, over tokens, say.
        metrics: `(outputs, targets) -> {name: Tensor of n values, or a Sum}`; always has `loss`.
        optimizer: `(model, params, lr) -> Optimizer`, or None: the job file's choice.
        transform: `(batch, train, inputs) -> batch`; `inputs` are the names of the input fields.
        augment: `(sample, rng) -> sample`, one sample's arrays by field, in training alone; or None.
        augment_batch: `(batch, rngs) -> batch`, the arrays of several samples by field; or None.
    """

    path: Path
    source: str
    sha256: str
    module: ModuleType
    build_model: Callable[..., Any]
    takes_data: bool
    loss: Callable[[Any, Targets], Tensor | Sum]
    metrics: Callable[[Any, Targets], dict[str, Tensor | Sum]]
    optimizer: Callable[[torch.nn.Module, dict[str, Any], float], torch.optim.Optimizer] | None
    transform: Transform
    augment: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    augment_batch: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None

    @property
    def augments(self) -> bool:
        """Whether it changes samples at random, on the reading threads."""
        return self.augment is not None or self.augment_batch is not None

    def errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """Turn what the user's code raises in the body (a model's forward, say) into `RecipeError`."""
        return recipe_errors(self.path, doing)


@contextlib.contextmanager
def recipe_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn exceptions of the body into `RecipeError` with the user's own line.

    Errors of hpcmass pass through, as does KeyboardInterrupt; `sys.exit()` in a recipe is an error, since
    a rank that leaves quietly would leave the others waiting.

    Args:
        path: The recipe's file; the last frame in it gives the line.
        doing: What was being done, such as `build_model`.

    Raises:
        RecipeError: The body raised.
    """
    try:
        yield
    except HpcmassError:
        raise
    except SystemExit as error:
        raise _recipe_error(path, doing, error) from error
    except Exception as error:
        raise _recipe_error(path, doing, error) from error


def _recipe_error(path: Path, doing: str, error: BaseException) -> RecipeError:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    text = " ".join(str(error).split())
    name = type(error).__name__
    message = f"{doing}: {name}: {text}" if text else f"{doing}: {name}"
    return RecipeError(
        message,
        where=f"{path}:{lines[-1]}" if lines else str(path),
        hint=_hint(doing, error, text),
        error=name,
        traceback="".join(traceback.format_exception(error)),
    )


def _hint(doing: str, error: BaseException, text: str) -> str | None:
    if isinstance(error, SystemExit):
        return "a recipe may not call sys.exit(); raise an exception instead"
    if type(error).__name__ in ("BackendCompilerFailed", "InductorError", "Unsupported"):
        return "torch.compile cannot do it: train.compile = false"
    if isinstance(error, ImportError):
        return "a recipe is one file and imports installed packages only; put helper code into the recipe"
    if isinstance(error, KeyError) and doing == "build_model":
        return f"if {text} is a parameter, give it in [params] of the job file"
    if isinstance(error, KeyError) and doing == "transform":
        return "the batch holds the fields of the dataset; when predicting, only the inputs"
    if isinstance(error, (RuntimeError, TypeError)) and any(word in text for word in _DTYPE_WORDS):
        return (
            "only uint8 and float inputs become float32 by themselves; cast others in transform(batch, train)"
        )
    return None


def load_recipe(path: Path) -> Recipe:
    """Execute a recipe's file and return its functions, wrapped and completed.

    The module gets a name of its own in `sys.modules` (dataclasses and pickling need it); `sys.path` stays
    as it is, and no byte code is written beside the file.

    Raises:
        NotFound: There is no such file.
        RecipeError: A syntax error, an exception while it is executed, or no `build_model`.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise NotFound("is a folder, not a recipe's file", where=path)
    with storage_errors(path, "read the recipe"):
        data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        source = data.decode("utf-8")
        code = compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise RecipeError(
            f"is not valid Python: {error.msg}", where=f"{path}:{error.lineno or 1}", hint=_excerpt(error)
        ) from error
    except ValueError as error:  # not UTF-8, or a null byte
        raise RecipeError(f"is not a Python text file ({error})", where=path) from error
    module = ModuleType(f"hpcmass_recipe_{sha256[:12]}_{next(_COUNTER)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with recipe_errors(path, "loading the recipe"):
            exec(code, module.__dict__)
        return _complete(path, source, sha256, module)
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _excerpt(error: SyntaxError) -> str | None:
    return f"the line reads: {error.text.strip()}" if error.text else None


def for_tokens(recipe: Recipe) -> Recipe:
    """A recipe whose target is ragged: the default loss and metrics are then those of its values."""
    return _complete(recipe.path, recipe.source, recipe.sha256, recipe.module, tokens=True)


def _complete(path: Path, source: str, sha256: str, module: ModuleType, *, tokens: bool = False) -> Recipe:
    found = {name: getattr(module, name, None) for name in _NAMES}
    for name, function in found.items():
        if function is not None and not callable(function):
            raise RecipeError(f"{name} is not a function", where=path)
    if found["build_model"] is None:
        raise RecipeError(
            "has no function build_model(params)",
            where=path,
            hint="def build_model(params): return a torch.nn.Module or a scikit-learn estimator",
        )
    takes_data = _takes_data(found["build_model"])
    loss = _wrap_loss(path, found["loss"] or (token_loss if tokens else default_loss))
    metrics = found["metrics"] or (token_metrics if tokens and found["loss"] is None else None)
    return Recipe(
        path=path,
        source=source,
        sha256=sha256,
        module=module,
        build_model=_wrap_build(path, found["build_model"], takes_data),
        takes_data=takes_data,
        loss=loss,
        metrics=_wrap_metrics(path, metrics, loss, own_loss=found["loss"] is not None),
        optimizer=_wrap_optimizer(path, found["optimizer"]) if found["optimizer"] else None,
        transform=_wrap_transform(path, found["transform"]) if found["transform"] else default_transform,
        **{name: _wrap_augment(path, name, own) for name in _AUGMENTS if (own := found[name])},
    )


# -- wrapping ---------------------------------------------------------------------------------------------
def is_estimator(model: object) -> bool:
    """Whether a model has scikit-learn's interface (`fit` and `predict`)."""
    return not isinstance(model, (torch.nn.Module, type)) and all(
        callable(getattr(model, name, None)) for name in ("fit", "predict")
    )


def _takes_data(function: Callable[..., Any]) -> bool:
    try:
        return "data" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return False


def _wrap_build(path: Path, function: Callable[..., Any], takes_data: bool) -> Callable[..., Any]:
    def build_model(params: dict[str, Any], data: Facts | None = None) -> Any:
        if takes_data and data is None:
            raise RecipeError("build_model needs the facts about the training data", where=path)
        more = {"data": copy.deepcopy(data)} if takes_data else {}
        with recipe_errors(path, "build_model"):
            model = function(copy.deepcopy(dict(params)), **more)
        if not isinstance(model, torch.nn.Module) and not is_estimator(model):
            raise RecipeError(
                f"build_model returned {_describe(model)}, neither a torch.nn.Module nor an estimator",
                where=_definition(path, function),
                hint="return the model itself: a torch.nn.Module, or an object with fit and predict",
            )
        return model

    return build_model


def _wrap_loss(path: Path, function: Callable[..., Any]) -> Callable[[Any, Targets], Tensor | Sum]:
    def loss(outputs: Any, targets: Targets) -> Tensor | Sum:
        with recipe_errors(path, "loss"):
            value = function(outputs, targets)
        if isinstance(value, Sum):
            return value
        if isinstance(value, tuple):
            return _sum(value, "loss", _definition(path, function))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise RecipeError(
                f"loss returned {_describe(value)}, not one number",
                where=_definition(path, function),
                hint="return a scalar tensor, the mean over the samples; or a pair, a sum and of how many",
            )
        return value.reshape(())

    return loss


def _sum(value: tuple[Any, ...], name: str, where: str) -> Sum:
    """A pair (sum, count) of the user's."""
    total, count = value if len(value) == 2 else (None, None)
    scalar = isinstance(total, Tensor) and total.numel() == 1
    many = (
        float(count)
        if isinstance(count, (int, float, Tensor)) and torch.as_tensor(count).numel() == 1
        else -1.0
    )
    if not scalar or many < 0 or many != int(many):
        raise RecipeError(
            f"{name} returned a pair that is not a sum and a whole number of values",
            where=where,
            hint='return for instance cross_entropy(…, reduction="sum"), (targets != -100).sum()',
        )
    assert isinstance(total, Tensor)
    return Sum(total.reshape(()), many)


def _wrap_metrics(
    path: Path,
    function: Callable[..., Any] | None,
    loss: Callable[[Any, Targets], Tensor | Sum],
    *,
    own_loss: bool,
) -> Callable[[Any, Targets], dict[str, Tensor | Sum]]:
    def metrics(outputs: Any, targets: Targets) -> dict[str, Tensor | Sum]:
        n = samples_of(targets)
        values: dict[str, Tensor | Sum]
        if function is None:
            values = dict(default_metrics(outputs, targets, with_loss=not own_loss))
        else:
            with recipe_errors(path, "metrics"):
                values = function(outputs, targets)
            where = _definition(path, function)
            if isinstance(values, dict):
                values = {k: _sum(v, k, where) if isinstance(v, tuple) else v for k, v in values.items()}
            _check_metrics(values, n, where)
            values = {
                name: value if isinstance(value, Sum) else value.detach().reshape(n).float()
                for name, value in values.items()
            }
        if "loss" not in values:
            found = loss(outputs, targets)
            # A loss is a mean over the samples, so n times its value averages to the right number.
            values = {"loss": found if isinstance(found, Sum) else found.detach().float().expand(n), **values}
        return values

    return metrics


def _check_metrics(values: object, n: int, where: str) -> None:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RecipeError(f"metrics returned {_describe(values)}, not a dict by name", where=where)
    for name, value in values.items():
        if not isinstance(value, Sum) and (not isinstance(value, Tensor) or value.numel() != n):
            raise RecipeError(
                f"metrics: {name!r} is {_describe(value)}, not a tensor of one value per sample ({n})",
                where=where,
                hint="do not average: hpcmass averages over all samples of all ranks; or give pairs, a sum and "
                "of how many values it is",
            )


def _wrap_optimizer(
    path: Path, function: Callable[..., Any]
) -> Callable[[torch.nn.Module, dict[str, Any], float], torch.optim.Optimizer]:
    def optimizer(model: torch.nn.Module, params: dict[str, Any], lr: float) -> torch.optim.Optimizer:
        with recipe_errors(path, "optimizer"):
            made = function(model, copy.deepcopy(dict(params)), lr)
        if not isinstance(made, torch.optim.Optimizer):
            raise RecipeError(
                f"optimizer returned {_describe(made)}, not a torch.optim.Optimizer",
                where=_definition(path, function),
            )
        return made

    return optimizer


def _wrap_augment(
    path: Path, name: str, function: Callable[..., Any]
) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    def augment(sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        with recipe_errors(path, name):
            made = function(sample, rng)
        if made is None:  # changed where it lies
            return sample
        if not isinstance(made, dict):
            raise RecipeError(
                f"{name} returned {_describe(made)}, not the sample" + "s" * (name == "augment_batch"),
                where=_definition(path, function),
                hint="return the dict of arrays, or nothing where they were changed in place",
            )
        return made

    return augment


def _wrap_transform(path: Path, function: Callable[..., Any]) -> Transform:
    def transform(batch: dict[str, Tensor], train: bool, inputs: Sequence[str]) -> dict[str, Tensor]:
        with recipe_errors(path, "transform"):
            made = function(dict(batch), train)
        if not isinstance(made, dict) or not all(isinstance(value, Tensor) for value in made.values()):
            raise RecipeError(
                f"transform returned {_describe(made)}, not a dict of tensors",
                where=_definition(path, function),
                hint="change the batch and return it",
            )
        return made

    return transform


def _definition(path: Path, function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{path}:{code.co_firstlineno}" if code is not None and code.co_filename == str(path) else str(path)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None (is a `return` missing?)" if value is None else f"a {type(value).__name__}"
