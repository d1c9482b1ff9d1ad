"""From the bytes of an image file to upright RGB: what prepare and predict read, and what they refuse.

Decoding is Pillow's; here is what its plain `convert("RGB")` gets wrong: transparency, gray of more
than 8 bits, and files that are sound but for what stands beside the pixels.
"""

import hashlib
import io
import logging
import struct
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from image_classifier.core.errors import first_line

# Other Pillow formats are disabled; EPS would run Ghostscript. HEIF needs the package pillow-heif.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
# Files that operating systems leave among images. Hidden files, which begin with a dot, are left out too.
LEFTOVERS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}
MAX_ASPECT = 100  # longer side by shorter side: cropping a narrower one would first make it huge
PEAK = "peak_of_16_bits"  # in `info` of an image decoded from 16-bit gray: its largest value
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
WHITE_IS_ZERO, SIGNED = 0, 2
ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of PNG text chunks
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12
# Pillow tells of odd metadata without naming the file; what makes a file unreadable is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above twice that size Pillow refuses
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class UnreadableImage(Exception):
    """These bytes are not an image that can be decoded; the message says why."""


class NotAnImage(UnreadableImage):
    """These bytes are in none of the formats."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


@cache
def suffixes() -> frozenset[str]:
    """The endings of files that are meant to be images, those of HEIC included."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS) | {".heic", ".heif", ".mpo"}


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by an operating system."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def is_image(path: Path) -> bool:
    """Whether a file begins as an image in one of the formats does."""
    try:
        Image.open(path, formats=formats()).close()
    except Exception:  # of each format's reader
        return False
    return True


def decode(data: bytes, background: str = "white") -> Image.Image:
    """Decode an image file's bytes to RGB, turned upright as its EXIF tag says, over `background`.

    Gray of 16 bits is scaled to 8, and its largest value kept in `info`. Of an animation it is the
    first frame.

    Raises UnreadableImage: not an image, truncated, a decompression bomb, too narrow, or gray whose
    black and white are nowhere said (signed, 32-bit, floating point).
    """
    try:
        data = _without_notes(data)
        image, inverted = _opened(data)
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels: too narrow to be an image of something")
        image.load()
        tags = _tags_of(image)
        inverted = inverted or tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        if tags.get(TIFF_SAMPLE_FORMAT) == SIGNED:
            raise ValueError(f"its pixels are signed ({tags.get(TIFF_BITS)} bits), of unknown range: save it unsigned")
        _scale_color(image, data)
        return _opaque(_upright(_eight_bits(image, tags.get(TIFF_BITS, 16), inverted)), background)
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise NotAnImage(f"not an image in one of the formats {', '.join(formats())}") from None
    except Exception as error:  # each format's decoder has errors of its own
        raise UnreadableImage(first_line(error)) from None


def digest(image: Image.Image, pixels: bytes | None = None) -> bytes:
    """SHA-256 of a decoded image's size and pixels, its `tobytes()`: equal images, whatever their files."""
    found = hashlib.sha256(b"%dx%d" % image.size)  # not one string with the pixels, which would copy them
    found.update(pixels or image.tobytes())
    return found.digest()


def _upright(image: Image.Image) -> Image.Image:
    """The image itself, turned; a photo of 12 megapixels takes as long to copy as to resize."""
    with suppress(Exception):  # damaged EXIF, in which each format's reader fails in its own way
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bits(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Gray of more than 8 bits as 8 bits, with a mask of its transparent color; any other image as it is.

    `inverted` is whether zero is white there; Pillow itself inverts up to 8 bits.
    """
    scaled = image.mode == "I" and image.format == "PPM"  # which Pillow scales to 16 bits
    if image.mode in ("I", "F") and not scaled:
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise ValueError(f"its pixels are {kind}, of unknown range: save it with 8 or 16 bits")
    if not (scaled or image.mode.startswith("I;16")):
        return image
    values = np.asarray(image).astype(np.uint32)
    largest = 4095 if bits == 12 else 65535
    gray = values * 255 // largest
    eight = Image.fromarray((255 - gray if inverted else gray).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if (exif := image.getexif()) and image.format != "TIFF":  # whose reader has turned it already
        eight.info["exif"] = exif.tobytes()
    if largest == 65535:
        eight.info[PEAK] = int(values.max())
    return eight


def _scale_color(image: Image.Image, data: bytes) -> None:
    """Bring a PNG's transparent color to 8 bits, to which Pillow brings the pixels alone."""
    color, bits = image.info.get("transparency"), data[24] if image.format == "PNG" else 8
    if isinstance(color, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in color)
    elif isinstance(color, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = color * 255 // (2**bits - 1)


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """RGB; where the image is transparent, `background`, whatever color lies under it."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # alpha not multiplied into the colors
    layer = (image.convert(straight) if straight else image).convert("RGBA")
    canvas = Image.new("RGBA", image.size, background)
    canvas.alpha_composite(layer)
    opaque = canvas.convert("RGB")
    opaque.info = {PEAK: image.info[PEAK]} if PEAK in image.info else {}
    return opaque


def _without_notes(data: bytes) -> bytes:
    """A PNG without what stands beside its pixels: text or a profile of megabytes, which Pillow refuses.

    Kept are the critical chunks, transparency and what may hold the orientation: EXIF, as a chunk or as the text that
    older programs wrote, and XMP. See the PNG specification, section 5.
    """
    signature = b"\x89PNG\r\n\x1a\n"
    if not data.startswith(signature):
        return data
    kept, start = [signature], len(signature)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12
        turned = length < 2**20 and data.startswith(ORIENTATION_TEXTS, start + 8)
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf") or turned:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _opened(data: bytes) -> tuple[Image.Image, bool]:
    """The image, not yet decoded, and whether zero is white in it although Pillow was told otherwise.

    Pillow cannot open all gray TIFFs of more than 8 bits where zero is white; told that it is black, it can.

    Raises UnreadableImage: it is of a kind that cannot be opened, whose name is said.
    """
    try:
        return Image.open(io.BytesIO(data), formats=formats()), False
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in HEIC:
            raise UnreadableImage("HEIC needs one more package: pip install pillow-heif; or save it as JPEG") from None
        tags = {tag: value for _, tag, value in _tiff_entries(data)}  # of several, as one a channel, the first
        if not tags:
            raise
    try:
        if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO and tags.get(TIFF_BITS, 0) > 8:
            entry = next(start for start, tag, _ in _tiff_entries(data) if tag == TIFF_PHOTOMETRIC)
            black_is_zero = struct.pack("<H" if data[:2] == b"II" else ">H", 1)
            data = data[: entry + 8] + black_is_zero + data[entry + 10 :]
        return Image.open(io.BytesIO(data), formats=formats()), True
    except UnidentifiedImageError:
        kind = f"{tags.get(TIFF_BITS)} bits, photometric {tags.get(TIFF_PHOTOMETRIC)}"
        raise UnreadableImage(f"a TIFF of a kind that cannot be read ({kind}): save it with 8 or 16 bits") from None


def _tags_of(image: Image.Image) -> dict[int, int]:
    """The tags that matter of an image that Pillow has opened, BigTIFF too; none of other formats."""
    found = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    values = {tag: found.get(tag) for tag in (TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT)}
    return {tag: value[0] if isinstance(value, tuple) else value for tag, value in values.items() if value is not None}


def _tiff_entries(data: bytes) -> list[tuple[int, int, int]]:
    """Where each entry of a TIFF's first directory stands, its tag, and its first value if that is a SHORT."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    found = []
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4) if order else (len(data),)
        (count,) = struct.unpack_from(f"{order}H", data, start) if order else (0,)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, offset = struct.unpack_from(f"{order}HHII", data, entry)
            if kind == 3:  # SHORT: in the entry itself where there are at most two, else elsewhere
                at = entry + 8 if values <= 2 else offset
                found.append((entry, tag, struct.unpack_from(f"{order}H", data, at)[0]))
    except struct.error:  # damaged: what is readable so far
        pass
    return found
