"""Reading YAML, finding the method presets, and merging what the user, the model and the method say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from longvid.config import MethodConfig, from_mapping, to_mapping
from longvid.errors import InputError, UnknownNameError

#: Sampling defaults that a model folder may carry in model_index.json and that replace the method's (see config.py).
MODEL_DEFAULTS = ("frames_per_block", "steps", "shift", "sampler", "guidance_scale")


def config_root() -> Path:
    """The folder of method presets: $LONGVID_CONFIGS, else inside the installed package, else the checkout's.

    Raises ``FileNotFoundError`` when there is none.
    """
    here = Path(__file__).resolve().parent
    for place in (os.environ.get("LONGVID_CONFIGS"), here / "configs", here.parent / "configs"):
        if place and Path(place).is_dir():
            return Path(place)
    raise FileNotFoundError("longvid's configs folder is missing: reinstall longvid, or set LONGVID_CONFIGS to a copy")


def method_names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(path.stem for path in config_root().glob("*.yaml")))


def load_method(name: str) -> MethodConfig:
    """The preset ``configs/NAME.yaml``. Raises ``UnknownNameError`` or ``InputError``."""
    if not isinstance(name, str) or name not in method_names():
        raise UnknownNameError("method", name, method_names())
    return _load_method(config_root() / f"{name}.yaml")


@cache
def _load_method(path: Path) -> MethodConfig:
    method: MethodConfig = from_mapping(MethodConfig, {"name": path.stem, **read_yaml(path)})
    return method


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file with a mapping at its top, interpolations resolved. Raises ``InputError``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        plain = OmegaConf.to_container(OmegaConf.load(Path(path)), resolve=True)
    except OSError as error:
        raise InputError(f"config={str(path)!r}: cannot be read ({error.strerror})") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"config={str(path)!r}: is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(plain, dict):
        raise InputError(f"config={str(path)!r}: must hold keys and values, such as 'seconds: 10'")
    return {str(key): value for key, value in plain.items()}


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``["cache.window=18", "seed=3"]`` as nested plain values. Raises ``InputError`` for a pair without ``=``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    pairs = list(pairs)
    for pair in pairs:
        key, equals, _ = pair.partition("=")
        if not equals or not key.strip() or any(not part.isidentifier() for part in key.strip().split(".")):
            raise InputError(f"set={pair!r}: must be key=value, such as cache.window=18")
    try:
        plain = OmegaConf.to_container(OmegaConf.from_dotlist([pair.strip() for pair in pairs]), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"set={pairs!r}: does not parse ({' '.join(str(error).split())})") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` laid over it, mapping by mapping; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with dotted keys spelled out: {"cache.window": 12} is {"cache": {"window": 12}}."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        first, *inner = key.split(".") if isinstance(key, str) else [key]
        for part in reversed(inner):
            value = {part: value}
        nested = merge(nested, {first: value})
    return nested


def resolve_method(
    method: str | MethodConfig,
    *,
    model_defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> MethodConfig:
    """The method that is run: preset, then the model folder's sampling defaults, then explicit overrides.

    Args:
        method: name of a preset, or a ready method.
        model_defaults: entries of model_index.json; those of ``MODEL_DEFAULTS`` that are not None count; of them only
            ``shift`` and ``guidance_scale`` reach a "fifo" schedule, whose blocks, levels and solver are its own;
            ``train_frames`` is its ``window_frames`` unless the preset names them, and what the mapping ``fifo`` holds
            comes last.
        overrides: values such as ``{"cache": {"window": 18}}``, or ``{"cache.window": 18}``.

    Raises:
        UnknownNameError, InputError: an unknown name or key, or a combination that cannot be.
    """
    preset = load_method(method) if isinstance(method, str) else method
    given = {key: value for key in MODEL_DEFAULTS if (value := (model_defaults or {}).get(key)) is not None}
    if preset.schedule.kind == "fifo":
        given = _fifo_defaults(preset, model_defaults or {})
    plain = merge(to_mapping(preset), {"schedule": given})
    resolved: MethodConfig = from_mapping(MethodConfig, merge(plain, expand(overrides or {})))
    return resolved


def _fifo_defaults(preset: MethodConfig, model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model folder says about a queue: how it was trained decides the window, and how many levels of noise a
    window may span."""
    given = {key: model[key] for key in ("shift", "guidance_scale") if model.get(key) is not None}
    if preset.schedule.window_frames is None and model.get("train_frames"):
        given["window_frames"] = model["train_frames"]
    return given | dict(model.get("fifo") or {})
