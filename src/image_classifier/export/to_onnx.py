"""The network and its preprocessing as one ONNX file."""

import copy
import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from image_classifier.core import files
from image_classifier.images.resize import Resize
from image_classifier.model.normalize import Normalize

OPSET = 20


class Classifier(nn.Module):
    """The whole of serving: uint8 [N, size, size, 3] RGB -> probabilities float32 [N, classes]."""

    def __init__(self, network: PreTrainedModel, normalize: Normalize):
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, image: Tensor) -> Tensor:
        return self.network(pixel_values=self.normalize(image)).logits.softmax(dim=1)


def to_onnx(path: Path, network: PreTrainedModel, normalize: Normalize, resize: Resize, class_names: list[str]) -> None:
    """Write an ONNX file with the preprocessing in its graph, class names, resizing and background in its metadata."""
    example = torch.zeros((2, resize.size, resize.size, 3), dtype=torch.uint8)  # 1 would fix the batch size
    network = copy.deepcopy(network)
    network.set_attn_implementation("eager")  # the exporter cannot follow the fused one of Swin in a batch of any size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Classifier(network, normalize).eval(),
            (example,),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where it is given no path"
    model = program.model_proto
    _forget_sources(model)
    facts = {"class_names": json.dumps(class_names), "resize": resize.mode, "background": resize.background}
    onnx.helper.set_model_props(model, facts)
    with files.atomic(path) as unfinished:
        unfinished.write_bytes(model.SerializeToString(deterministic=True))


def _forget_sources(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold absolute paths, so another folder would give other bytes."""
    for graph in (model.graph, *model.functions):
        whole = isinstance(graph, onnx.GraphProto)
        values = (*graph.input, *graph.output, *graph.initializer) if whole else ()
        for part in (graph, *graph.node, *graph.value_info, *values):
            del part.metadata_props[:]
            part.doc_string = ""
