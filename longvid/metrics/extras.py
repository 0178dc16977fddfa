"""Optional libraries of the metrics, imported when they are first needed and missed by name."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from longvid.errors import InputError

_PROVIDED_BY = {"cv2": "OpenCV", "scipy.stats": "SciPy", "matplotlib": "Matplotlib", "pyiqa.archs.musiq_arch": "pyiqa"}


class MissingExtraError(InputError, ImportError):
    """A metric needs a library that is not installed, mostly one of the ``eval`` extra."""


def require(module: str, purpose: str, *, install: str = "'longvid[eval]'") -> ModuleType:
    """Import ``module``, or raise MissingExtraError that names the library, what needs it and what to ``install``."""
    try:
        return import_module(module)
    except ImportError as error:
        library = _PROVIDED_BY.get(module, module)
        raise MissingExtraError(
            f"{purpose} needs {library} ({module}), which is not installed: pip install {install}"
        ) from error
