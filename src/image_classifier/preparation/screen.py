"""Which images may enter a split: none that is damaged, in two splits, or under two labels."""

from collections import defaultdict

from image_classifier.core.config import Data
from image_classifier.core.errors import UserError, printable


class Screen:
    """Decides which images may enter a split, and keeps what it found for one report at the end.

    Splits pass in the order test, val, train, so that an image found in two of them leaves the
    training side and test stays whole. `banned` are the SHA-256 of images that have two labels.
    """

    def __init__(self, data: Data, banned: set[bytes] | None = None):
        self.data, self.banned = data, banned or set()
        # SHA-256 of the pixels -> the split and the class that they came in with
        self.seen: dict[bytes, tuple[str, str]] = {}
        # split -> what -> where and why
        self.findings: dict[str, dict[str, list[str]]] = defaultdict(
            lambda: {"contradictions": [], "duplicates": [], "near_duplicates": [], "unreadable": []}
        )
        self.peaks: list[int] = []  # the largest value of each image of 16-bit gray

    def admit(self, split: str, where: str, digest: bytes, label: str) -> bool:
        """Whether the image found at `where`, with these pixels and this class, belongs in `split`."""
        first, name = self.seen.setdefault(digest, (split, label))
        found = self.findings[split]
        if name != label or (digest in self.banned and split != "test"):
            # The same words whether or not the other copy was seen, as in a prepare that goes on after a kill.
            other = "elsewhere under another label" if digest in self.banned else f"in {first} as {name}"
            found["contradictions"].append(f"{where} ({label}): {other}")
            if self.data.on_contradiction != "count":
                return split == "test" and self.data.on_contradiction == "drop"
        if first == split:
            return True
        found["duplicates"].append(f"{where}: also in {first}")
        return self.data.on_duplicate == "count"

    def conclude(self) -> None:
        """Say what was found.

        Raises UserError: there are findings which the settings do not allow.
        """
        for key, setting, kind, what, ways in (
            ("data.on_unreadable", self.data.on_unreadable, "unreadable", "cannot be read", "remove them, or skip"),
            ("data.on_contradiction", self.data.on_contradiction, "contradictions", "have two labels", "drop or count"),
            ("data.on_duplicate", self.data.on_duplicate, "duplicates", "appear in two splits", "drop or count"),
        ):
            listed = [line for found in self.findings.values() for line in found[kind]]
            if listed and setting == "fail":
                raise UserError(
                    f"{len(listed)} images {what} ({key} = fail; {ways}): " + "; ".join(map(printable, listed))
                )
            if listed:
                print(f"prepare: {len(listed)} images {what} ({key} = {setting}); listed in each index.json")
        if self.peaks and max(self.peaks) < 2**14:
            print(
                f"prepare: the brightest pixel of {len(self.peaks)} images of 16-bit gray is {max(self.peaks)} of "
                "65535: they come out dark; if that is not meant, scale them to the full range"
            )
