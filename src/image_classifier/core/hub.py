"""What to do when the Hugging Face hub does not give what was asked for, told in one line."""

from collections.abc import Iterator

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from image_classifier.core.errors import first_line


def reason(error: BaseException, key: str, unreachable: str) -> str:
    """Why the hub did not give a repository, and what to do; `unreachable` is that where there is no way to the hub.

    `key` is the section of params.yaml that names repository and revision.
    """
    causes = list(_causes(error))
    # `datasets` has words of its own for two of these, without the error behind them.
    if any(isinstance(cause, GatedRepoError) or "is a gated dataset" in str(cause) for cause in causes):
        return "it is gated: accept its terms on its page on the hub, and set HF_TOKEN to a token of that account"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"the hub has no such commit of it: check {key}.revision"
    if any(isinstance(cause, RepositoryNotFoundError) or "doesn't exist on the Hub" in str(cause) for cause in causes):
        name = "data.source" if key == "data" else "model.name"
        return f"the hub knows no such repository, or it is private: check {name}, or set HF_TOKEN"
    absent = (cause for cause in causes if isinstance(cause, EntryNotFoundError))
    if any(not isinstance(cause, LocalEntryNotFoundError) for cause in absent):
        return f"it lacks a file ({first_line(causes[-1]).rstrip('.')}): check that it is of the right kind"
    told = next((cause for cause in causes if not isinstance(cause, LocalEntryNotFoundError)), error)
    return f"{first_line(told).rstrip('.')}; {unreachable}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
