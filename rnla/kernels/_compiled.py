"""Compile a kernel for the CPU: without the GIL, and kept on disk for the next process."""

import functools
import os
import uuid

import numba


def compiled(**options):
    """Return a decorator that compiles a function with options of `numba.njit`.

    Numba numbers the files of a function. Two processes that compile it for different dtypes at the same time give
    theirs the same number, and one is from then on loaded for a dtype that it is not for. Here no two files have the
    same name: all that a race can cost is that one of them is compiled once more.
    """

    def decorate(function):
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
        files = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if hasattr(files, "_data_name"):  # not where compilation is switched off
            files._data_name = functools.partial(_unique, files._data_name)
        return dispatcher

    return decorate


def _unique(numbered, number):
    stem, extension = os.path.splitext(numbered(number))
    return f"{stem}-{uuid.uuid4().hex[:12]}{extension}"
