"""Optional libraries of the metrics, imported when they are first needed and missed by name."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from longvid.errors import InputError

_PROVIDED_BY = {"cv2": "OpenCV", "scipy.stats": "SciPy", "matplotlib": "Matplotlib"}


class MissingExtraError(InputError, ImportError):
    """A metric needs a library of the ``eval`` extra that is not installed."""


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module``, or raise MissingExtraError that names the library, what needs it and the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        library = _PROVIDED_BY.get(module, module)
        raise MissingExtraError(
            f"{purpose} needs {library} ({module}), which is not installed: pip install 'longvid[eval]'"
        ) from error
