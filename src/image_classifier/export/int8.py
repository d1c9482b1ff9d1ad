"""The ONNX model in int8: static quantization by onnxruntime, calibrated on images."""

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from image_classifier.core import files
from image_classifier.core.errors import UserError
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches, shuffled

PRODUCTS = {"Conv", "Gemm", "MatMul"}
IMAGES, BATCH_SIZE = 512, 32  # of the calibration


class Calibration(quantization.CalibrationDataReader):
    """A random sample of a split for onnxruntime, which keeps every activation until it calls set_range again."""

    def __init__(self, split: ShardReader):
        sample = shuffled(len(split), seed=0, epoch=0)[:IMAGES]
        self.batches = [images.numpy() for images, _ in batches(split, BATCH_SIZE, sample)]

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begin with one batch and end before another."""
        self.ahead = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict | None:
        """The next batch, or None behind the last."""
        return next(({"image": images} for images in self.ahead), None)


def to_int8(source: Path, target: Path, operators: Sequence[str], split: ShardReader) -> None:
    """Write the ONNX model in `source` with the weights of these operators in int8 and their inputs in uint8.

    Weights have one scale a channel. The ranges of activations are percentiles over a sample of `split`, since
    outliers would stretch them. The first and the last product with weights, depthwise convolutions, and products of
    two activations (attention) stay in float.

    Raises UserError: nothing would be left to quantize.
    """
    with tempfile.TemporaryDirectory() as scratch, files.atomic(target) as unfinished:
        prepared = Path(scratch, "model.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        weights = {weight.name for weight in graph.initializer}
        products = [n for n in graph.node if n.op_type in PRODUCTS and weights.intersection(n.input)]
        nodes = [n.name for n in products[1:-1] if n.op_type in operators and not _is_depthwise(n)]
        if not nodes:
            raise UserError(
                f"export.int8_operators = {operators}: they are nowhere in {source.name} but in its first or last "
                "layer; add Conv, or set export.int8=false"
            )
        with redirect_stdout(io.StringIO()):  # it prints its progress
            quantization.quantize_static(
                str(prepared),
                str(unfinished),
                Calibration(split),
                per_channel=True,
                op_types_to_quantize=list(operators),
                nodes_to_quantize=nodes,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                extra_options={
                    "CalibStridedMinMax": 1,  # for any method: the activations of one batch in memory
                    "CalibPercentile": 99.999,
                    "CalibTensorRangeSymmetric": False,
                },
            )


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
