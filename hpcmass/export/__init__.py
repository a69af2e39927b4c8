"""Models as programs that run without hpcmass: ONNX, torch.export, int8; checked before they are believed."""

from hpcmass.export.build import FORMATS, Exported, export_bundle

__all__ = ["FORMATS", "Exported", "export_bundle"]
