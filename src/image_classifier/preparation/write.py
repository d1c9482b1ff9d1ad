"""From the rows of a source to shards: decode, screen, resize, on every core."""

import errno
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from torch import Tensor
from tqdm import tqdm

from image_classifier.core import provenance, runtime
from image_classifier.core.config import Data
from image_classifier.core.errors import UserError, printable
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardWriter
from image_classifier.preparation import decode, similar, sources
from image_classifier.preparation.columns import class_names
from image_classifier.preparation.screen import Screen

TASK_SIZE = 64  # images that a thread takes at a time, at most
TASK_BYTES = 2**24  # of their files and of the resized images, at most, where there is more than one
BYTES_AHEAD = 2**29  # of all tasks that are begun and not yet written
ROWS_READ = 8  # at a time: one by one takes longer
# Errors of the image, or of what a table calls it; others are the machine's or the disk's.
OWN = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
SMALL = 128 * 128  # pixels: up to here an image is resized together with others of its size
MOST = 2_000_000  # images among which near-duplicates are looked for: the time grows with train times test and val
PACKAGES = ["datasets", "pillow", "torch", "numpy", "scikit-learn"]  # that decide the shards


@dataclass
class Decoded:
    """A row of the source, decoded and resized; or what is wrong with it."""

    where: str  # its file, or its row
    label: int
    pixels: Tensor | None = None  # uint8 [size, size, 3]
    digest: bytes = b""  # SHA-256 of the decoded image
    error: str = ""
    peak: int | None = None  # the largest value of 16-bit gray


def resume_key(data: Data, seed: int) -> str:
    """A hash of all that decides the shards: unfinished ones with another key are of no use."""
    paths = Path(data.source).rglob("*") if data.source.startswith(sources.LOCAL) else ()
    found = [(str(path), path.stat()) for path in sorted(paths) if path.exists()]  # of a link, what it leads to
    states = [(name, state.st_size, state.st_ctime_ns) for name, state in found]
    return provenance.fingerprint("prepare", {"data": data.model_dump(), "seed": seed, "files": states}, PACKAGES)


def write_split(
    folder: Path, split: str, rows: datasets.Dataset, resize: Resize, screen: Screen, size: int | None = None
) -> ShardWriter:
    """Write the images that `screen` admits, of rows with the columns of `sources.load`; all but the index.

    With `size`, as many of each class as its first `size` rows hold. Shards that `folder` holds
    already are kept. The bytes do not depend on that, nor on the number of CPUs: threads decode and
    resize, in order.
    """
    writer = ShardWriter(folder, resize, screen.findings[split])
    names = class_names(rows)
    for digest, label in writer.written():
        screen.seen.setdefault(digest, (split, names[label]))
    wanted = Counter(rows["label"][:size])
    rest = rows.skip(writer.rows) if writer.rows < len(rows) else rows.take(0)  # to skip all is refused
    with tqdm(total=wanted.total(), initial=writer.rows, desc=split, unit=" images", leave=False, disable=None) as bar:
        for image in decoded(rest, resize):
            if writer.counts == wanted and not writer.findings["unreadable"]:
                break  # otherwise every unreadable image of the source is named
            writer.rows += 1
            if image.pixels is None:
                writer.findings["unreadable"].append(f"{image.where}: {image.error}")
            elif writer.counts[image.label] == wanted[image.label]:
                continue  # an image in reserve, not needed
            elif screen.admit(split, image.where, image.digest, names[image.label]):
                writer.add(image.pixels, image.label, image.digest, writer.rows - 1)
                screen.peaks += [image.peak] if image.peak is not None else []
            bar.update()
    return writer


def write_indexes(writers: dict[str, ShardWriter], parts: dict[str, datasets.Dataset]) -> dict[str, Counter[str]]:
    """Look for near-duplicates across the splits, tell of them, and write each index; count the images by class."""
    contents = {split: writer.contents() for split, writer in writers.items()}
    if (count := sum(writer.counts.total() for writer in writers.values())) <= MOST:
        found, least, caught = similar.pairs({split: images for split, (images, _) in contents.items()})
    else:
        found, least, caught = [], 1.0, 1.0
        print(f"prepare: near-duplicates are not looked for among {count:,} images, more than {MOST:,}")
    if caught < 0.5:
        print(f"prepare: near-duplicates can hardly be told here: {caught:.0%} of copies are nearer than other images")
    for pair in found:
        names = []
        for split, number in ((pair.split, pair.number), (pair.other_split, pair.other_number)):
            (row,) = parts[split].select([contents[split][1][number]])
            names.append(sources.location(row["image"], row["row"]))
        findings = writers[pair.split].findings
        if not any(line.startswith(f"{names[0]}: ") for line in findings["duplicates"]):
            line = f"{names[0]}: like {names[1]} in {pair.other_split} ({pair.similarity:.3f})"
            findings["near_duplicates"].append(line)
    if number := sum(len(writer.findings["near_duplicates"]) for writer in writers.values()):
        print(
            f"prepare: {number} images are near-duplicates of images in other splits (similarity {least:.4f} or more, "
            f"which {caught:.0%} of re-encoded, resized and shifted copies reach); listed in each index.json"
        )
    counts = {}
    for split, writer in writers.items():
        classes = class_names(parts[split])
        writer.close(classes)
        counts[split] = Counter({name: writer.counts[label] for label, name in enumerate(classes)})
    return counts


def contradictory_digests(parts: dict[str, datasets.Dataset], resize: Resize) -> set[bytes]:
    """The SHA-256 of every image that has more than one class in all splits together."""
    seen: dict[bytes, int] = {}
    found = set()
    for rows in parts.values():
        for image in decoded(rows, resize):
            if image.pixels is not None and seen.setdefault(image.digest, image.label) != image.label:
                found.add(image.digest)
    return found


def check_counts(counts: dict[str, Counter[str]], size: int | None) -> None:
    """Refuse splits without a class, and a training split that fell short of `size`, data.subset_size.

    Raises UserError: too many images were left out.
    """
    for split, found in counts.items():
        if missing := [name for name, count in found.items() if not count]:
            counted = f"{found.total()} images of other classes"
            raise UserError(
                f"no image of the class {', '.join(map(printable, missing[:5]))} is left in {split} ({counted})"
            )
    train = counts["train"]
    if size is not None and train.total() < size:
        name, least = train.most_common()[-1]
        raise UserError(
            f"data.subset_size = {size}, but {least} images of the class {name} are left in train: choose "
            f"{least * len(train)} or less, which keeps the classes in balance"
        )


def decoded(rows: datasets.Dataset, resize: Resize) -> Iterator[Decoded]:
    """Every row, decoded and resized: in order, by a thread for each CPU.

    Memory is bounded in bytes, whatever the files' size and the number of CPUs; beside that each
    thread holds one decoded image.
    """
    torch.set_num_threads(1)  # each thread resizes by itself
    runtime.keep_freed_memory()
    threads = runtime.cpus()
    ahead: deque[tuple[Future[list[Decoded]], int]] = deque()  # tasks that are begun, each with its bytes
    held = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task, size in _tasks(rows, 3 * resize.size**2, min(TASK_BYTES, BYTES_AHEAD // (2 * threads))):
                ahead.append((pool.submit(decode_rows, resize, task), size))
                held += size
                while held > BYTES_AHEAD or len(ahead) > 2 * threads:
                    made, size = ahead.popleft()
                    held -= size
                    yield from made.result()
            for made, _ in ahead:
                yield from made.result()
        finally:
            pool.shutdown(cancel_futures=True)  # the reader may have had enough


def _tasks(rows: datasets.Dataset, pixels: int, limit: int) -> Iterator[tuple[list[tuple], int]]:
    """Runs of (image, label, row) for one thread, each with its bytes: at most `limit`, where there is more than one.

    An image counts as its file's bytes, where the source holds them, and `pixels` bytes when resized.
    """
    task: list[tuple] = []
    held = 0
    for part in rows.iter(ROWS_READ):
        for entry in zip(part["image"], part["label"], part["row"], strict=True):
            size = pixels + len((entry[0] or {}).get("bytes") or b"")
            if task and (len(task) == TASK_SIZE or held + size > limit):
                yield task, held
                task, held = [], 0
            task.append(entry)
            held += size
    if task:
        yield task, held


def decode_rows(resize: Resize, rows: Sequence[tuple[dict | None, int, str]]) -> list[Decoded]:
    """Decode and resize rows of (image, label, row), in order.

    Small images are resized together: one by one, threads would hold each other up at Python's
    lock. Large ones are resized as they come, so that each thread holds one of them at a time.
    """
    made, small = [], defaultdict(list)
    for source, label, row in rows:
        made.append(found := Decoded(sources.location(source, row), label))
        try:
            image = decode.decode(sources.read(source), resize.background)
        except (decode.UnreadableImage, OSError) as error:
            if getattr(error, "errno", None) not in OWN:
                raise
            found.error = getattr(error, "strerror", None) or str(error)
            continue
        pixels = image.tobytes()  # takes as long as resizing a photo, so it is called once
        found.digest, found.peak = decode.digest(image, pixels), image.info.get(decode.PEAK)
        if image.width * image.height <= SMALL:
            small[image.size].append((found, pixels))
        else:
            found.pixels = resize.many([pixels], image.size)[0]
    for size, group in small.items():
        for (found, _), resized in zip(group, resize.many([pixels for _, pixels in group], size), strict=True):
            found.pixels = resized
    return made
