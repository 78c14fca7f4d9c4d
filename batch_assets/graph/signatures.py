"""Signatures of the functions that each pipeline defines anew."""

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_known: dict[CodeType, inspect.Signature] = {}


def with_known_signature(function: _Function) -> _Function:
    """Give a function the signature of the first one that the same lines defined.

    Dagster inspects the function of every asset, check and op about twenty times.
    """
    code = function.__code__
    if code not in _known:
        _known[code] = inspect.signature(function)
    function.__signature__ = _known[code]  # type: ignore[attr-defined]
    return function
