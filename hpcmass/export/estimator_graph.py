"""An estimator of scikit-learn as an ONNX model, behind the recipe's transform."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmass.errors import MissingDependency, RecipeError
from hpcmass.export.torch_graph import OPSET, cleaned, quiet
from hpcmass.train.predictor import class_columns
from hpcmass.train.signature import FieldSpec, Signature

_ML_OPSET = 3
_FEATURES = "features"


def with_estimator(front: Any, estimator: Any, features: int, signature: Signature, output: str) -> Any:
    """Put an estimator behind the ONNX model that makes its features.

    Args:
        front: An ONNX model with the output `features`, (n, features) float32.
        estimator: Fitted.
        features: How many.
        signature: Of the whole.
        output: The name of the whole's output.

    Raises:
        RecipeError: skl2onnx knows no form of this estimator in ONNX.
        MissingDependency: skl2onnx is not installed.
    """
    import onnx

    classes = len(signature.classes or ()) if signature.task == "classification" else None
    back = _converted(estimator, features, classes is not None)
    _finish(back, estimator, classes, signature.outputs[0])
    back.ir_version = front.ir_version
    del back.opset_import[:]
    back.opset_import.extend(
        [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    )
    back = onnx.compose.add_prefix(back, "estimator/")
    whole = onnx.compose.merge_models(front, back, io_map=[(_FEATURES, f"estimator/{_FEATURES}")])
    whole.graph.node[-1].output[0] = whole.graph.output[0].name = output
    onnx.checker.check_model(whole)
    return cleaned(whole)


def _converted(estimator: Any, features: int, classifier: bool) -> Any:
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingDependency(
            "exporting estimators needs skl2onnx", hint="pip install 'hpcmass[onnx]'"
        ) from error
    if classifier and not (hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")):
        raise RecipeError(f"a {type(estimator).__name__} gives classes alone, which is not exported")
    options: dict[str, Any] = {}
    if classifier:
        options = {"zipmap": False} | ({} if hasattr(estimator, "predict_proba") else {"raw_scores": True})
    tries = [options, {key: value for key, value in options.items() if key != "zipmap"}]
    for number, chosen in enumerate(tries):
        try:
            with quiet():
                return skl2onnx.to_onnx(
                    estimator,
                    initial_types=[(_FEATURES, FloatTensorType([None, features]))],
                    options={id(estimator): chosen} if chosen else None,
                    target_opset={"": OPSET, "ai.onnx.ml": _ML_OPSET},
                )
        except NameError as error:  # an option that this converter does not know
            if number or "zipmap" not in str(error):
                raise _refusal(estimator, error) from error
        except Exception as error:
            raise _refusal(estimator, error) from error
    raise AssertionError("not reached")


def _refusal(estimator: Any, error: Exception) -> RecipeError:
    text = " ".join(str(error).split())[:200]
    return RecipeError(
        f"skl2onnx cannot express a {type(estimator).__name__} in ONNX ({type(error).__name__}: {text})",
        hint="forests, linear models, neighbours and neural networks can be",
    )


def _finish(back: Any, estimator: Any, classes: int | None, spec: FieldSpec) -> None:
    """Append what makes the estimator's own output that of the model: all classes, the shape, the type."""
    from onnx import TensorProto, helper, numpy_helper

    graph = back.graph
    last = graph.output[-1 if classes is not None else 0].name

    def constant(name: str, value: np.ndarray[Any, Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def step(operator: str, *more: str, **attributes: Any) -> None:
        nonlocal last
        made = f"finish_{len(graph.node)}"
        graph.node.append(helper.make_node(operator, [last, *more], [made], **attributes))
        last = made

    if classes is not None:
        seen = np.asarray(estimator.classes_)
        if not hasattr(estimator, "predict_proba"):
            if len(seen) == 2:  # scores -s and s: the logistic function of s is softmax of half of them
                step("Mul", constant("half", np.array(0.5, np.float32)))
            step("Softmax", axis=1)
        columns = class_columns(seen, classes)
        if not np.array_equal(columns, np.arange(classes)):  # a class that it never saw has probability 0
            place = np.zeros((len(columns), classes), np.float32)
            place[np.arange(len(columns)), columns] = 1
            step("MatMul", constant("columns", place))
    step("Cast", to=getattr(TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(spec.dtype, "INT64")))
    shape = constant("shape", np.array([-1, *spec.shape], np.int64))
    graph.node.append(helper.make_node("Reshape", [last, shape], ["finished"]))
    kind = graph.node[-2].attribute[0].i
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("finished", kind, ["n", *spec.shape]))
