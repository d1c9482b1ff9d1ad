"""What image files become, against OpenCV's own decoders and against the numbers that were written into them."""

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from image_classifier.preparation import decode
from image_classifier.preparation.decode import FORMATS, PEAK, UnreadableImage
from tests.helpers.images import encoded, noise

RNG = np.random.default_rng(0)


def pixels(data: bytes, background: str = "white") -> np.ndarray:
    """What our decoder makes of a file: int [height, width, 3]."""
    decoded = decode.decode(data, background)
    assert decoded.mode == "RGB"
    return np.asarray(decoded).astype(int)


def opencvs(data: bytes) -> np.ndarray:
    """What OpenCV makes of a file, over white: int [height, width, 3]."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).astype(float)
    found /= 257 if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).dtype == np.uint16 else 1
    if found.ndim == 2:
        return np.repeat(found[:, :, None], 3, axis=2)
    colors, alpha = found[:, :, 2::-1], found[:, :, 3:] / 255 if found.shape[2] == 4 else 1.0
    return colors * alpha + 255 * (1 - alpha)


WRITTEN = [  # ending, channels, bits, options
    *[(".png", channels, bits, []) for channels in (1, 3, 4) for bits in (8, 16)],
    *[(".tiff", channels, bits, [cv2.IMWRITE_TIFF_COMPRESSION, how])
      for channels in (1, 3, 4) for bits in (8, 16) for how in (1, 5, 8)],  # none, LZW, deflate
    *[(".webp", channels, 8, [cv2.IMWRITE_WEBP_QUALITY, 101]) for channels in (3, 4)],
    *[(".bmp", channels, 8, []) for channels in (1, 3, 4)],
    *[(".pgm", 1, bits, []) for bits in (8, 16)],
    *[(".ppm", 3, bits, []) for bits in (8, 16)],
    *[(".jpg", channels, 8, [cv2.IMWRITE_JPEG_QUALITY, 95]) for channels in (1, 3)],
    (".avif", 3, 8, []),
]  # fmt: skip


@pytest.mark.parametrize(("ending", "channels", "bits", "options"), WRITTEN, ids=str)
def test_what_opencv_wrote_and_reads_is_read_alike(ending, channels, bits, options):
    kind = np.uint8 if bits == 8 else np.uint16
    image = RNG.integers(0, 2**bits, (24, 20, channels), dtype=kind)
    if channels == 4:
        image[:8, :, 3], image[8:16, :, 3] = 0, 2**bits - 1
    if ending in (".jpg", ".avif"):
        image = cv2.GaussianBlur(image, (0, 0), 5)  # their decoders differ where colors change from pixel to pixel
    try:
        written, data = cv2.imencode(ending, image, options)
    except cv2.error:
        written = False
    if not written:
        pytest.skip(f"this OpenCV does not write {ending} of {channels} channels and {bits} bits")
    near = 3 if ending in (".jpg", ".avif") else 2 if (channels, bits) == (4, 16) else 1  # color and alpha are rounded
    assert np.abs(pixels(data.tobytes()) - opencvs(data.tobytes())).max() <= near


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode, form):
    """An orange of every mode that the format has; in the gray modes its brightness, in black and white a white."""
    orange = Image.new("RGB", (16, 16), (255, 255, 255) if mode == "1" else (240, 130, 20))
    try:
        data = encoded(orange.convert(mode), form)
    except OSError:
        pytest.skip(f"{form} has no {mode}")
    decoded = decode.decode(data)
    gray = round(0.299 * 240 + 0.587 * 130 + 0.114 * 20)  # ITU-R 601, as Pillow converts
    expected = {"1": [255] * 3, "L": [gray] * 3, "LA": [gray] * 3}.get(mode, [240, 130, 20])
    near = {"P": 25}.get(mode, 4)  # a palette of 216 colors; lossy formats round
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int).mean(axis=(0, 1)) - expected).max() <= near


def test_postscript_is_not_opened():
    """Pillow would hand it to Ghostscript, where there is one: a program in an image."""
    with pytest.raises(UnreadableImage, match="not an image in one of the formats"):
        decode.decode(encoded(noise(8, 8), "EPS"))


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    little = Image.fromarray(values)
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    pgm = b"P5 3 1 65535\n" + values.astype(">u2").tobytes()
    for data in (encoded(little), encoded(little, "TIFF"), encoded(big, "TIFF"), pgm):
        assert np.asarray(decode.decode(data))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("image", [Image.new("I", (3, 2), 200), Image.new("F", (3, 2), 0.5)])
def test_32_bit_grey_of_unknown_range_is_refused(image):
    with pytest.raises(UnreadableImage, match="of unknown range"):
        decode.decode(encoded(image, "TIFF"))


def test_an_image_of_a_line_is_refused():
    """Its shorter side scaled to 160 px, it would take 300 GB: a crop bomb of eight kilobytes."""
    with pytest.raises(UnreadableImage, match="1 x 4000000 pixels: too narrow"):
        decode.decode(encoded(Image.new("1", (1, 4_000_000))))


@pytest.mark.parametrize(("tag", "turn"), [(3, 2), (6, 3), (8, 1)])  # EXIF 2.3, 4.6.4 A: how the camera was held
def test_exif_orientation_is_applied(tag, turn):
    exif, image = Image.Exif(), noise(4, 2)
    exif[0x0112] = tag
    decoded = decode.decode(encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(np.asarray(image), turn))


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(noise(50, 50))[:500]])
def test_what_is_not_an_image_is_unreadable(data):
    with pytest.raises(UnreadableImage):
        decode.decode(data)


# ---------------------------------------------------------------- transparency


def test_what_lies_under_full_transparency_never_shows():
    """Icons whose shape is in the alpha channel alone: every color is black."""
    shape = np.zeros((16, 16), np.uint8)
    shape[4:12, 4:12] = 255
    icon = np.dstack([np.zeros((16, 16, 3), np.uint8), shape])
    image, gray = Image.fromarray(icon), Image.fromarray(icon[:, :, [0, 3]], "LA")
    for data in (encoded(image), encoded(image, "WEBP", lossless=True), encoded(image, "TIFF"), encoded(gray)):
        assert np.array_equal(pixels(data), np.repeat(255 - shape[:, :, None], 3, axis=2))
        assert np.array_equal(pixels(data, "#0000ff")[0, 0], [0, 0, 255])


def test_half_transparency_is_half_of_each():
    image = Image.new("RGBA", (4, 4), (200, 0, 100, 128))
    assert np.abs(pixels(encoded(image), "black") - np.array([200, 0, 100]) * 128 / 255).max() <= 1
    assert np.abs(pixels(encoded(image)) - (np.array([200, 0, 100]) * 128 + 255 * 127) / 255).max() <= 1


@pytest.mark.parametrize("table", [0, bytes([0, 128, 255]), b"\0"])
def test_a_palettes_transparent_colors_show_the_background(table):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = pixels(encoded(image, transparency=table))
    assert found[0, 0].tolist() == [255, 255, 255] and found[0, 2].tolist() == [70, 80, 90]
    expected = [148, 153, 158] if isinstance(table, bytes) and len(table) == 3 else [40, 50, 60]
    assert np.abs(found[0, 1] - expected).max() <= 1


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 1)])
def test_a_color_that_stands_for_transparent_shows_the_background(mode, color):
    image = Image.new(mode, (3, 1), color)
    image.putpixel((1, 0), 0 if mode != "RGB" else (1, 2, 3))
    found = pixels(encoded(image, transparency=color), "#00ff00")
    assert found[0, 0].tolist() == found[0, 2].tolist() == [0, 255, 0]
    assert found[0, 1].tolist() == ([1, 2, 3] if mode == "RGB" else [0, 0, 0])


def test_a_16_bit_color_that_stands_for_transparent_shows_the_background():
    def png(kind: int, values: np.ndarray, transparent: bytes) -> bytes:
        height, width = values.shape[:2]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"tRNS", transparent)]
        return with_chunks([*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])

    gray = np.array([[0, 1000, 65535]])
    assert pixels(png(0, gray, struct.pack(">H", 1000)), "#00ff00")[0].tolist() == [[0] * 3, [0, 255, 0], [255] * 3]
    color = np.array([[[65535, 0, 0], [0, 0, 65535]]])
    assert pixels(png(2, color, struct.pack(">HHH", 65535, 0, 0)))[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    color = np.array([[[25700, 25700, 25700], [100, 100, 100]]])  # 8 bits: 100 and 0, of which 0 is transparent
    found = pixels(png(2, color, struct.pack(">HHH", 100, 100, 100)), "#00ff00")
    assert found[0].tolist() == [[100, 100, 100], [0, 255, 0]]


@pytest.mark.parametrize(("bits", "color"), [(2, 1), (2, 3), (4, 1), (4, 15), (4, 0)])
def test_a_color_of_less_than_8_bits_that_stands_for_transparent_shows_the_background(bits, color):
    """Pillow brings the pixels to 8 bits and leaves the color as it is."""
    other = color ^ 2
    row = bytes([0, (color << bits | other) << (8 - 2 * bits)])  # no filter; two pixels
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", color))]
    found = pixels(with_chunks([*chunks, (b"IDAT", zlib.compress(row)), (b"IEND", b"")]), "#00ff00")
    assert found[0].tolist() == [[0, 255, 0], [other * 255 // (2**bits - 1)] * 3]


# ---------------------------------------------------------------- TIFF's kinds of gray


def tiff(values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """An uncompressed gray TIFF, written by hand: Pillow cannot write these kinds."""
    height, width = values.shape
    if bits in (8, 16, 32):
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    else:  # packed, each row from a byte of its own
        rows = (
            np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :] for row in values
        )
        data = b"".join(np.packbits(row.ravel()).tobytes() for row in rows)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    entries = b""
    for tag, value in tags:
        long = tag in (273, 279)
        entries += struct.pack(f"{order}HHI", tag, 4 if long else 3, 1)
        entries += struct.pack(f"{order}I", value) if long else struct.pack(f"{order}HH", value, 0)
    ifd = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8 + len(data)) + data + ifd


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_every_depth_of_grey_has_its_black_and_its_white(bits, photometric, order):
    largest = 2**bits - 1
    values = np.linspace(0, largest, 16).round().astype(np.uint8 if bits <= 8 else np.uint16).reshape(2, 8)
    expected = values.astype(float) * 255 / largest
    expected = 255 - expected if photometric == 0 else expected
    data = tiff(values, bits, photometric, order=order)
    if (bits, order) == (12, ">"):  # which Pillow has no reader for
        with pytest.raises(UnreadableImage, match=r"a TIFF of a kind that cannot be read \(12 bits, photometric"):
            decode.decode(data)
        return
    assert np.abs(pixels(data) - expected[:, :, None]).max() <= 1


@pytest.mark.parametrize("values", [np.arange(48, dtype=np.uint8) * 5, np.arange(48, dtype=np.uint16) * 1300])
def test_jpeg_2000_without_loss_gives_its_numbers_back(values):
    values = values.reshape(6, 8)
    found = pixels(encoded(Image.fromarray(values), "JPEG2000", irreversible=False))
    assert np.abs(found[:, :, 0] - values / (1 if values.dtype == np.uint8 else 257)).max() <= 1


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "reason"),
    [
        (np.zeros((4, 4), np.int8), 8, 2, "its pixels are signed (8 bits), of unknown range"),
        (np.zeros((4, 4), np.int16), 16, 2, "its pixels are signed (16 bits), of unknown range"),
        (np.zeros((4, 4), np.int32), 32, 2, "its pixels are 32-bit, of unknown range|signed"),
        (np.zeros((4, 4), np.uint32), 32, 1, "its pixels are 32-bit, of unknown range"),
        (np.zeros((4, 4), np.float32), 32, 3, "its pixels are floating point, of unknown range"),
        (np.zeros((4, 4), np.uint16), 10, 1, "a TIFF of a kind that cannot be read (10 bits, photometric 1)"),
        (np.zeros((4, 4), np.uint16), 14, 0, "a TIFF of a kind that cannot be read (14 bits, photometric"),
    ],
)
def test_grey_of_unknown_range_is_refused_with_the_true_reason(values, bits, sample_format, reason):
    with pytest.raises(UnreadableImage) as refused:
        decode.decode(tiff(values, bits, sample_format=sample_format or 1))
    assert any(part in str(refused.value) for part in reason.split("|"))


def test_16_bit_grey_says_how_much_of_its_range_it_uses():
    values = np.full((4, 4), 4095, np.uint16)
    assert decode.decode(tiff(values, 16)).info[PEAK] == 4095
    assert decode.decode(encoded(Image.fromarray(values))).info[PEAK] == 4095
    assert PEAK not in decode.decode(tiff(values, 12)).info
    assert PEAK not in decode.decode(encoded(noise(4, 4))).info


# ---------------------------------------------------------------- what stands beside the pixels


def with_chunks(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks."""
    parts = [struct.pack(">I4s", len(c), n) + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_text_and_profiles_of_any_size_are_passed_over():
    image, notes = noise(8, 8), PngImagePlugin.PngInfo()
    notes.add_text("long", "x" * 5_000_000, zip=True)
    notes.add_text("plain", "x" * 5_000_000)
    for options in ({"pnginfo": notes}, {"icc_profile": bytes(5_000_000)}):
        assert np.array_equal(pixels(encoded(image, **options)), np.asarray(image))
    assert np.array_equal(pixels(encoded(image, "TIFF", icc_profile=bytes(5_000_000))), np.asarray(image))
    pixels(encoded(image, "JPEG", icc_profile=bytes(3_000_000)))
    pixels(encoded(image, "WEBP", icc_profile=bytes(3_000_000)))


GOOD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
DAMAGED = [GOOD_EXIF[:n] for n in range(6, len(GOOD_EXIF))] + [
    b"Exif\0\0" + GOOD_EXIF,
    b"Exif\0\0garbage",
    GOOD_EXIF.replace(b"\x08\0\0\0", b"\xff\xff\xff\x7f"),
    GOOD_EXIF.replace(b"\x03\0\x01\0\0\0", b"\x03\0\xff\xff\xff\xff"),
    GOOD_EXIF.replace(b"\x12\x01\x03", b"\x12\x01\x63"),
]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_damaged_exif_costs_no_image(form):
    image, unlike = noise(6, 4), 0
    for exif in DAMAGED:
        try:
            data = encoded(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
        except Exception:  # Pillow's writer checks some of it
            continue
        found = decode.decode(data)
        assert found.size in ((6, 4), (4, 6))
        unlike += 1
    assert unlike > 5


def test_an_orientation_beside_a_damaged_tag_counts():
    """Pillow turns the image, and then fails to write the tags anew."""
    entries = struct.pack("<HHII", 274, 3, 1, 6), struct.pack("<HHI4s", 282, 2, 4, b"odd")  # orientation, resolution
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    data = encoded(noise(6, 4), "JPEG", exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode.decode(data).size == (4, 6)


def test_pillow_prints_nothing_of_its_own(tmp_path):
    """Odd metadata and palettes, read in a program as prepare reads them: with Python's own filters of warnings."""
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    palette.putpalette(list(range(12)))
    for number, data in enumerate(
        [
            encoded(palette, transparency=bytes([0, 128, 255, 255])),
            encoded(noise(8, 8), "TIFF")[:-30],
            *(encoded(noise(8, 8), "JPEG", exif=exif) for exif in DAMAGED[-5:]),
            encoded(Image.new("L", (10_000, 10_000))),
        ]
    ):
        (tmp_path / f"{number:02d}").write_bytes(data)
    code = (
        "import sys\nfrom pathlib import Path\nfrom image_classifier.preparation import decode\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        decode.decode(path.read_bytes())\n"
        "    except decode.UnreadableImage:\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_heic_file_is_read_or_its_package_named():
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif, an extra, is not installed")
    assert pillow_heif and "HEIF" in decode.formats()
    pixels(encoded(noise(64, 64), "HEIF"))


def test_without_its_package_a_heic_file_says_what_to_install(monkeypatch):
    monkeypatch.setattr(decode, "formats", lambda: FORMATS)
    for brand in (b"heic", b"mif1"):
        with pytest.raises(UnreadableImage, match="pip install pillow-heif"):
            decode.decode(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200))


@pytest.mark.parametrize("kind", ["zTXt", "tEXt", "XMP"])
def test_an_orientation_in_a_text_of_a_png_is_applied_too(kind):
    """As older programs write it: ImageMagick the EXIF block in hex, Adobe's XMP."""
    image = noise(6, 4)
    if kind == "XMP":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
        chunk = (b"iTXt", text)
    else:
        block = b"\nexif\n%8d\n" % len(GOOD_EXIF) + GOOD_EXIF.hex().encode()
        packed = b"\0" + zlib.compress(block) if kind == "zTXt" else block
        chunk = (kind.encode(), b"Raw profile type exif\0" + packed)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    data = with_chunks(
        [
            (b"IHDR", struct.pack(">IIBBBBB", 6, 4, 8, 2, 0, 0, 0)),
            chunk,
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
    )
    assert np.array_equal(pixels(data), np.rot90(np.asarray(image), 3))


def test_bigtiff_has_its_black_and_its_white_too():
    values = np.array([[0, 1000, 65535]], np.uint16)
    data = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 24) + values.tobytes() + bytes(2)
    tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 0), (273, 16), (277, 1), (278, 1), (279, 6), (339, 1)]
    ifd = (
        struct.pack("<Q", len(tags))
        + b"".join(struct.pack("<HHQQ", tag, 3, 1, value) for tag, value in tags)
        + bytes(8)
    )
    assert pixels(data + ifd)[0, :, 0].tolist() == [255, 252, 0]
