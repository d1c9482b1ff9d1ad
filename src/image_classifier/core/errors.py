"""Errors that a user can fix, told in one line."""

TRACEBACK = "IMAGE_CLASSIFIER_TRACEBACK"  # in the environment: 1 shows the traceback behind a one-line error
# In the words of CUDA, cuDNN, PyTorch, C++ and ONNX Runtime.
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "bad_alloc", "Failed to allocate memory")


class UserError(Exception):
    """Says what is wrong, where (file, key, value) and what to do; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that holds text, or the name of its type where there is none."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # KeyError and IndexError often hold nothing but the key.
    if text and isinstance(error, LookupError):
        return f"{type(error).__name__}: {text}"
    return text or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, in whatever words."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def printable(text: object) -> str:
    """A name of a file or a class in one line, whatever is in it: a line break, or bytes that are not UTF-8."""
    whole = str(text).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in whole)
