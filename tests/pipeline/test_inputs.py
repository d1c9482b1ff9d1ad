"""Bad input by the thousand: every input is either right or refused in one clear line.

`make test` tries a few hundred of each kind, `make test-full` thousands; pytest's last lines say how many.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from image_classifier.core import config, files
from image_classifier.core.config import Config
from image_classifier.core.errors import UserError
from image_classifier.core.files import SUMS
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader, ShardWriter, _write_sealed
from image_classifier.preparation import decode
from image_classifier.preparation.decode import UnreadableImage
from tests.helpers.project import DEFAULTS, TRIED

PARAMS = DEFAULTS.read_text()
KEYS = [line.split(":")[0] for line in PARAMS.splitlines() if ":" in line.split("#")[0]]
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
ODDITIES = """
~ | yes | 0o17 | 0x1F | 1e-4 | 1e-04 | .inf | -.nan | 1_000 | 2026-02-31 | 12:30:45 | *here | &a [*a]
<<: 1 | { | [1, 2 | ' | "\\xZZ" | ? a | null # null | --- | ... | %YAML 9.9 | @a | `a` | - - -
!!set {a} | !!binary xyz | !!python/object:os.system x
"""
oddities = st.sampled_from(
    [*ODDITIES.replace("\n", " | ").split(" | "), "|", "\t", "\x00", "\ufeff", "9" * 5000, "[" * 2000]
)


def tries(number: int):
    """A test that draws this many inputs, ten times as many in `make test-full`."""
    factor = 10 if os.environ.get("INPUTS") == "many" else 1
    return settings(
        max_examples=number * factor,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(function, argument):
    """What a function returns, or the error that it may raise."""
    TRIED[function.__qualname__] += 1
    try:
        return function(argument)
    except (UserError, UnreadableImage) as error:
        return error


def is_clear(error: object, name: str) -> bool:
    """Whether this is an error whose every line names the file."""
    lines = str(error).splitlines()
    return isinstance(error, UserError) and bool(lines) and all(name in line and len(line) < 1000 for line in lines)


def refused_or_valid(path: Path) -> bool:
    result = outcome(config.load, path)
    return isinstance(result, Config) or is_clear(result, "params.yaml")


@tries(300)
@given(key=st.sampled_from(KEYS), value=oddities | st.builds(json.dumps, values))
@example(key="  revision", value="&a [*a]")  # of data and of model: an anchor twice, which YAML allows
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
def test_any_value_of_any_key(tmp_path_factory, key, value):
    lines = [f"{key}: {value}" if line.split(":")[0] == key else line for line in PARAMS.splitlines()]
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    assert refused_or_valid(path)


@tries(300)
@given(
    data=st.binary(max_size=200) | st.builds(str.encode, oddities) | st.builds(lambda v: json.dumps(v).encode(), values)
)
def test_any_bytes_as_params(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(data)
    assert refused_or_valid(path)


@st.composite
def images(draw) -> bytes:
    """A image file of any mode and format, then cut, flipped or left as it is."""
    image = Image.fromarray(np.zeros((draw(st.integers(1, 40)), draw(st.integers(1, 40)), 3), dtype=np.uint8))
    buffer, mode = io.BytesIO(), draw(st.sampled_from(MODES))
    try:
        (image.convert("L") if mode in ("LA", "PA", "I;16", "F", "I") else image).convert(mode).save(
            buffer, draw(st.sampled_from(FORMATS))
        )
    except (OSError, ValueError, KeyError):  # a mode that this format does not have
        image.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[place] = value
    return bytes(data[: draw(st.sampled_from([len(data), len(data) // 2, 1, 0]))])


@tries(500)
@given(data=images() | st.binary(max_size=100))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_as_a_image(data):
    image = outcome(decode.decode, data)
    if isinstance(image, UnreadableImage):
        assert len(str(image).splitlines()) == 1
    else:
        assert image.mode == "RGB"
        if image.width * image.height < 10**6:  # a flipped byte may ask for a large one
            assert Resize(32, "crop")(image).shape == (32, 32, 3)


def test_a_decompression_bomb_is_refused():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode.decode(buffer.getvalue())


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "split"
    writer = ShardWriter(folder, Resize(32, "stretch"))
    for number in range(4):
        writer.add(Resize(32, "stretch")(Image.new("RGB", (9, 9))), number % 2, bytes(32), number)
    writer.close(["a", "b"])
    return folder


@tries(300)
@given(data=st.data())
def test_any_index(split, data):
    path = split / "index.json"
    right = path.read_bytes()
    wrong = data.draw(
        st.binary(max_size=100)
        | st.builds(lambda value: json.dumps(value).encode(), values)
        | st.builds(
            lambda key, value: json.dumps(json.loads(right) | {key: value}).encode(),
            st.sampled_from(sorted(json.loads(right))),
            values,
        )
        | st.builds(
            lambda place, byte: right[:place] + bytes([byte]) + right[place + 1 :],
            st.integers(0, len(right) - 1),
            st.integers(0, 255),
        )
        | st.just(b"[" * 100_000)
    )
    path.write_bytes(wrong)
    result = outcome(ShardReader, split)
    path.write_bytes(right)
    if isinstance(result, ShardReader):
        assert json.loads(wrong) == json.loads(right)  # another way to write the same
    else:
        assert is_clear(result, "index.json")


@tries(300)
@given(data=st.data())
def test_any_index_with_the_checksum_that_belongs_to_it(split, data):
    path = split / "index.json"
    right = path.read_bytes()
    index = json.loads(right)
    del index["checksum"]
    part = data.draw(st.sampled_from([index, index["shards"][0], index["preprocessing"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    try:
        _write_sealed(path, index)
        result = outcome(ShardReader, split)
    finally:
        path.write_bytes(right)
    assert isinstance(result, ShardReader) or str(result).count("\n") == 0


@tries(200)
@given(data=st.binary(max_size=300) | st.builds(lambda text: text.encode(), st.text(max_size=100)))
def test_any_bytes_as_a_seal(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "a.json").write_text("{}")
    (folder / SUMS).write_bytes(data)
    TRIED["check_seal"] += 1
    with pytest.raises(UserError, match="missing or damaged.*: run it again"):
        files.check_seal(folder, "run it again")
