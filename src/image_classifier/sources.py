"""Where labelled pictures come from, each source as a `datasets.DatasetDict`.

Every source has the columns `image` (an Image feature: the picture file's bytes) and `label`
(a ClassLabel with names), whatever they were called before.
"""

import io

import datasets
from PIL import Image

from image_classifier.config import Data
from image_classifier.errors import UserError


def load(data: Data) -> datasets.DatasetDict:
    """Load `data.source`; the pictures stay undecoded.

    Raises:
        UserError: the source is none that can be loaded yet.
    """
    if data.source != "digits":
        raise UserError(f"data.source = {data.source} cannot be loaded yet: digits is the only source so far")
    return _digits()


def class_names(dataset: datasets.Dataset) -> list[str]:
    """The names of the classes, in the order of their labels."""
    return dataset.features["label"].names


def _digits() -> datasets.DatasetDict:
    """The 1,797 handwritten digits, 8x8 grey, that ship inside scikit-learn.

    Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # 17 grey levels to 256
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=[str(d) for d in digits.target_names]),
        }
    )
    rows = {"image": [{"bytes": _png(image), "path": None} for image in pixels], "label": digits.target}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({"train": dataset})


def _png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
