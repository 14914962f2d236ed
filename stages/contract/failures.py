"""Failures of disks and object stores, as one sentence: what failed, where, and what to do.

They are told by their text, which survives whatever wraps them: a Ray task's error holds its worker's
traceback, and libraries in C++ and Rust have error classes of their own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from stages.contract.place import OF_A_STORE

GO_ON = "start again after that: what is finished is kept"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EROFS: "make it writable, or choose another place",
    errno.EIO: "look after the disk",
}
_OF_A_DISK = re.compile(r"(?:\[[Ee]rrno |\(os error )(?P<number>\d+)[\])](?P<rest>[^\n]*)")
_FILE = re.compile(r": '(?P<file>[^']+)'")
_STORE = re.compile(rf"(?:{'|'.join(OF_A_STORE)})[^\n]*")
_REFUSAL = re.compile(r"ACCESS_DENIED|PERMISSION_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET")


def explain(error: BaseException, place: object) -> str | None:
    """The sentence on a disk or object store that failed; None if `error` is of another kind.

    Args:
        error: as it was raised, or wrapped in others.
        place: what was being written, where the error itself names no file.
    """
    for text in _texts(error):
        if store := _STORE.search(text):
            return _of_a_store(store[0].rstrip(" ."), place)
        for found in reversed(list(_OF_A_DISK.finditer(text))):
            if remedy := _REMEDIES.get(int(found["number"])):
                file = _FILE.search(found["rest"])
                what = os.strerror(int(found["number"])).lower()
                return f"{file['file'] if file else place}: {what}; {remedy}, and {GO_ON}"
    return None


def _of_a_store(said: str, place: object) -> str:
    if _REFUSAL.search(said):
        remedy = (
            "look at the bucket's name and at the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
        )
    else:
        remedy = "look whether the object store answers"
    return f"{place}: {said}; {remedy}, and {GO_ON}"


def _texts(error: BaseException | None) -> Iterator[str]:
    """What an error says, and the errors it came from."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
