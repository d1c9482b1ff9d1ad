"""From the rows of a source to shards: decode, screen, resize, on every core."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import torch
from tqdm import tqdm

from image_classifier import decode, runtime, similar, sources
from image_classifier.config import Data
from image_classifier.errors import UserError, printable
from image_classifier.preprocess import Resize
from image_classifier.shards import ShardWriter
from image_classifier.splits import Screen

TASK_SIZE = 64  # pictures that a thread takes at a time, at most
TASK_BYTES = 2**24  # of their files and of what becomes of them, at most, where there is more than one
BYTES_AHEAD = 2**29  # of all tasks that are begun and not yet written
ROWS_READ = 8  # at a time: one by one takes longer
SMALL = 128 * 128  # pixels: up to here a picture is resized together with others of its size


def fingerprint(data: Data, seed: int) -> str:
    """A hash of all that decides the shards, to tell whether unfinished ones may be gone on with."""
    pictures = Path(data.source).rglob("*") if data.source.startswith(sources.LOCAL) else ()
    states = [(str(path), path.lstat().st_size, path.lstat().st_ctime_ns) for path in sorted(pictures)]
    return runtime.fingerprint(
        [data.model_dump(), seed, states], ["datasets", "pillow", "torch", "numpy", "scikit-learn"]
    )


def write(
    folder: Path, split: str, rows: datasets.Dataset, resize: Resize, screen: Screen, size: int | None = None
) -> ShardWriter:
    """Write the images that `screen` admits, of rows with the columns of `sources.load`; all but the index.

    With `size`, as many of each class as its first `size` rows hold. Shards that `folder` holds
    already are kept. The bytes do not depend on that, nor on the number of CPUs: threads decode and
    resize, in order.
    """
    writer = ShardWriter(folder, resize, screen.findings[split])
    names = sources.class_names(rows)
    for digest, label in writer.written():
        screen.seen.setdefault(digest, (split, names[label]))
    wanted = Counter(rows["label"][:size])
    rest = rows.skip(writer.rows) if writer.rows < len(rows) else rows.take(0)  # to skip all is refused
    with tqdm(total=wanted.total(), initial=writer.rows, desc=split, unit=" images", leave=False, disable=None) as bar:
        for where, picture, found, peak, label in _decoded(rest, resize):
            if writer.counts == wanted and not writer.findings["unreadable"]:
                break  # otherwise every unreadable picture of the source is named
            writer.rows += 1
            if picture is None:
                writer.findings["unreadable"].append(f"{where}: {found}")
            elif writer.counts[label] == wanted[label]:
                continue  # a picture in reserve, not needed
            elif screen.admit(split, where, found, names[label]):
                writer.add(picture, label, found, writer.rows - 1)
                screen.peaks += [peak] if peak is not None else []
            bar.update()
    return writer


def finish(writers: dict[str, ShardWriter], parts: dict[str, datasets.Dataset]) -> dict[str, Counter[str]]:
    """Look for near-duplicates across the splits, tell of them, and write each index; count the images by class."""
    contents = {split: writer.contents() for split, writer in writers.items()}
    found, least, caught = similar.pairs({split: images for split, (images, _) in contents.items()})
    for pair in found:
        names = []
        for split, number in ((pair.split, pair.number), (pair.other_split, pair.other_number)):
            (row,) = parts[split].select([contents[split][1][number]])
            names.append(sources.location(row["image"], row["row"]))
        line = f"{names[0]}: like {names[1]} in {pair.other_split} ({pair.similarity:.4f})"
        findings = writers[pair.split].findings
        if not any(other.startswith(f"{names[0]}: ") for other in findings["duplicates"]):
            findings["near_duplicates"].append(line)
    if number := sum(len(writer.findings["near_duplicates"]) for writer in writers.values()):
        print(
            f"prepare: {number} images are near-duplicates of images in other splits (similarity {least:.4f} or "
            f"more, which {caught:.0%} of re-encoded, resized and shifted copies reach); listed in each index.json"
        )
    counts = {}
    for split, writer in writers.items():
        names = sources.class_names(parts[split])
        writer.close(names)
        counts[split] = Counter({name: writer.counts[label] for label, name in enumerate(names)})
    return counts


def contradictory(parts: dict[str, datasets.Dataset], resize: Resize) -> set[bytes]:
    """The SHA-256 of every image that has more than one class in all splits together."""
    seen: dict[bytes, int] = {}
    found = set()
    for rows in parts.values():
        for _, picture, digest, _, label in _decoded(rows, resize):
            if picture is not None and seen.setdefault(digest, label) != label:
                found.add(digest)
    return found


def _decoded(rows: datasets.Dataset, resize: Resize) -> Iterator[tuple]:
    """What `make` returns for each row, and its label: in order, a thread for each CPU.

    Memory is bounded in bytes, whatever the files' size and the number of CPUs; beside that each
    thread holds one decoded picture.
    """
    torch.set_num_threads(1)  # each thread resizes by itself
    threads = runtime.cpus()
    ahead, held = deque(), 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task, size in _tasks(rows, 3 * resize.size**2, min(TASK_BYTES, BYTES_AHEAD // (2 * threads))):
                images, labels, names = zip(*task, strict=True)
                ahead.append((pool.submit(make, resize, images, names), labels, size))
                held += size
                while held > BYTES_AHEAD or len(ahead) > 2 * threads:
                    made, labels, size = ahead.popleft()
                    held -= size
                    yield from ((*found, label) for found, label in zip(made.result(), labels, strict=True))
            for made, labels, _ in ahead:
                yield from ((*found, label) for found, label in zip(made.result(), labels, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)  # the reader may have had enough


def _tasks(rows: datasets.Dataset, pixels: int, limit: int) -> Iterator[tuple[list[tuple], int]]:
    """Runs of (image, label, row) for one thread, each with its bytes: at most `limit`, where there is more than one.

    A picture counts as its file's bytes, where the source holds them, and `pixels` bytes when resized.
    """
    task, held = [], 0
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


def check(counts: dict[str, Counter[str]], size: int | None) -> None:
    """Refuse splits without a class, and a training split that fell short of `size`, data.subset_size.

    Raises UserError: what was left out is missed.
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


def make(resize: Resize, images: Sequence[dict | None], rows: Sequence[str]) -> list[list]:
    """Decode and resize: where each image was found, itself or None, its digest or what is wrong with it, and its peak.

    The peak is the largest value of 16-bit grey, None of any other.

    Small pictures are resized together: one by one, threads would hold each other up at Python's
    lock. Large ones are resized as they come, so that each thread holds one of them at a time.
    """
    made, waiting = [], defaultdict(list)
    for image, row in zip(images, rows, strict=True):
        where = sources.location(image, row)
        try:
            picture = decode.decode(sources.read(image), resize.background)
        except (decode.UnreadableImage, OSError) as error:
            made.append([where, None, getattr(error, "strerror", None) or str(error), None])
            continue
        small = picture.width * picture.height <= SMALL
        made.append([where, None if small else resize(picture), decode.digest(picture), picture.info.get(decode.PEAK)])
        if small:
            waiting[picture.size].append((made[-1], picture))
    for group in waiting.values():
        resized = resize.many([picture for _, picture in group])
        for (entry, _), pixels in zip(group, resized, strict=True):
            entry[1] = pixels
    return made
