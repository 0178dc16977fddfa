"""longvid.load: a model by name, folder or hub id, with a method by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

import longvid
from longvid.config import DEFAULT_METHOD, DEFAULT_MODEL, DTYPES, MethodConfig
from longvid.errors import InputError, ModelError, UnknownNameError
from longvid.models.folder import model_defaults, model_folder
from longvid.models.students import BASE, Student, fuse_student, pick_student, student_defaults
from longvid.precision import check_device, warn_if_slow
from longvid.presets import resolve_method

from .base import LongVideoPipeline

HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "use_safetensors", "variant",
)  # fmt: skip


def load(
    model: str | Path = DEFAULT_MODEL,
    method: str | MethodConfig | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    student: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    **components: Any,
) -> LongVideoPipeline:
    """A ready pipeline.

    model: "embedded" (ships in the package), a local folder (diffusers' format, or Wan's original one), or a hub id.
    method: a name of `longvid methods`, or a MethodConfig that is used as it is. device: where it runs; the GPU when
    there is one. dtype: of the weights, a torch.dtype or its name: float32, bfloat16 or float16; bfloat16 on a GPU,
    float32 on a CPU when None; a RuntimeWarning when a CPU has no instructions for it. student: "base", or one of the
    model's students (`longvid models`), which is merged into the weights; None takes the method's own where the model
    has it (`use_method` later keeps the weights as they are). overrides: values over the method,
    {"cache": {"window": 18}} or {"cache.window": 18}. components: diffusers components to use in place of the folder's,
    and `from_pretrained`'s options for models of the hub: `HUB_OPTIONS`.

    Raises InputError for an argument that cannot be, UnknownNameError for an unknown one, method or student, and
    ModelError, one line, for a model that is missing, incomplete, damaged or of another architecture.
    """
    method = DEFAULT_METHOD if method is None else method
    config = resolve_method(method)
    if not isinstance(model, (str, Path)):
        raise InputError(f"model={model!r}: must be a name, a folder or a hub id (`longvid models` lists what is here)")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_device(device)
    dtype = _dtype(dtype, device)
    warn_if_slow("dtype", dtype, device)
    cls = getattr(longvid, config.pipeline)
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for name in components:
        if name not in (*known, *HUB_OPTIONS):
            raise UnknownNameError("argument", name, [*inspect.signature(load).parameters, *known, *HUB_OPTIONS])
    chosen = _student(model, config, student, components)
    defaults = student_defaults(model, chosen)
    # Refused now rather than after minutes of loading.
    resolve_method(method, model_defaults=defaults if isinstance(method, str) else None, overrides=overrides)
    pipe = _read(cls, model, dtype, components)
    if chosen is not None:
        folder = model_folder(model)
        assert folder is not None
        fuse_student(pipe.transformer, chosen, folder)
        pipe.register_to_config(**chosen.sampling)
        pipe.student = chosen.name
    pipe.to(device)
    return pipe.use_method(method, overrides)


def _dtype(given: Any, device: torch.device) -> torch.dtype:
    if given is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(given).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype={given!r}: must be one of {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _student(
    model: str | Path, method: MethodConfig, asked: str | None, components: Mapping[str, Any]
) -> Student | None:
    """Whose adapter goes into the weights. A transformer that the caller brings is used as it is."""
    if "transformer" not in components:
        return pick_student(model, method, asked)
    if asked not in (None, BASE):
        raise InputError(f"student={asked!r}: give a student or a transformer, not both")
    return None


def _read(cls: type[LongVideoPipeline], model: str | Path, dtype: torch.dtype, components: dict[str, Any]) -> Any:
    folder = model_folder(model)
    if folder is not None and not (folder / "model_index.json").is_file():
        return _read_original(cls, folder, dtype, components)
    if folder is not None:
        _check_index(model, model_defaults(folder))
        _check_weights(folder, components)
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        if folder is None:
            options = {name: components[name] for name in HUB_OPTIONS if name in components}
            _check_index(model, cls.load_config(str(model), **options))
        return cls.from_pretrained(str(folder or model), dtype=dtype, **components)
    except ModelError:
        raise
    except Exception as error:  # diffusers, transformers, safetensors and the hub raise a dozen kinds
        raise ModelError(f"model={str(model)!r}: cannot be loaded ({_line(error)})") from error
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()


def _check_index(model: str | Path, index: Mapping[str, Any]) -> None:
    """Refuse a model of two transformers, one for high and one for low noise: with the first alone its videos would
    never be finished."""
    second = index.get("transformer_2")
    if second and any(second):
        raise ModelError(
            f"model={str(model)!r}: its transformer_2 (a second expert, for low noise) is not supported; use a model "
            "of one transformer, such as Wan2.1 or Wan2.2-TI2V-5B"
        )


def _read_original(cls: type[LongVideoPipeline], folder: Path, dtype: torch.dtype, components: dict[str, Any]) -> Any:
    """A folder in Wan's original layout: transformer, VAE, text encoder and tokenizer side by side."""
    from longvid.models.checkpoints import load_transformer
    from longvid.models.checkpoints.conversion import original_components

    if options := [name for name in components if name in HUB_OPTIONS]:
        raise InputError(f"{', '.join(options)}: only for models in diffusers' format; {str(folder)!r} is in Wan's own")
    parts: dict[str, Any] = {**original_components(folder, dtype=dtype), **components}
    if "transformer" not in parts:
        parts["transformer"] = load_transformer(folder, dtype=dtype)
    if "vae" not in parts:
        raise ModelError(f"model={str(folder)!r}: holds no VAE (Wan2.1_VAE.pth or a diffusers folder); add one")
    return cls(**parts)


def _check_weights(folder: Path, components: Mapping[str, Any]) -> None:
    """Compare what is on disk with what the models need. diffusers would fill missing weights at random.

    Covers the components that diffusers and longvid make themselves; transformers checks its own.
    """
    import diffusers
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import ModelMixin
    from safetensors import SafetensorError, safe_open

    from longvid.models.checkpoints.report import compare_keys

    for name, entry in model_defaults(folder).items():
        listed = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        if listed and name not in components and not (folder / name).is_dir():
            raise ModelError(f"model={str(folder)!r}: its folder {name!r} is missing; copy the whole model again")
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or name in components
            or entry[0] not in ("diffusers", "longvid")
        ):
            continue
        cls = getattr(diffusers if entry[0] == "diffusers" else longvid, str(entry[1]), None)
        if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
            continue
        where, files = f"model={str(folder)!r}: {name}", sorted((folder / name).glob("*.safetensors"))
        if not files:
            continue  # other formats are the loader's business
        try:
            with init_empty_weights():
                model = cls.from_config(cls.load_config(folder / name))
            shapes: dict[str, tuple[int, ...]] = {}
            for file in files:
                with safe_open(file, framework="pt") as opened:
                    shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ModelError(f"{where} cannot be read ({_line(error)})") from None
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        report = compare_keys(shapes, wanted, ignore=getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ())
        if not report.ok:
            raise ModelError(f"{where}: {report}")


def _line(error: BaseException) -> str:
    """An exception's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
