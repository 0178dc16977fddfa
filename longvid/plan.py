"""What a render will do and need, before any weight is loaded: blocks, model calls, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from longvid.config import MethodConfig
from longvid.models.folder import ModelFolder
from longvid.prompts import PromptSchedule

if TYPE_CHECKING:
    from longvid.cache import FrameKVCache
    from longvid.pipelines.queue import LatentQueue
    from longvid.pipelines.request import Request

DEFAULT_FPS = 16.0
_STEADY_BLOCKS = 64  # a policy without a window of its own keeps them all, and is steady from the first
DEFAULT_SIZE = (480, 832)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class PlannedBlock(NamedTuple):
    """One block of the plan."""

    number: int
    """0-based."""
    latent_frames: tuple[int, int]
    """First, and one past the last."""
    video_frames: tuple[int, int]
    """Likewise."""
    prompt: int
    """Index of the prompt part in force."""


class Cost(NamedTuple):
    """What a block in the middle of a long video costs."""

    calls: float
    """Model calls, commits included."""
    frames: float
    """Latent frames that pass through the model."""
    latent_frames: int
    """Latent frames that come out."""


def cost_per_block(method: MethodConfig) -> Cost:
    """Calls and frames of a block in the steady state (guidance doubles the work, not the calls)."""
    schedule = method.schedule
    n, steps = schedule.frames_per_block, len(schedule.steps)
    commit = int(_commits(method))
    if schedule.kind == "rolling":  # one joint call over a block of each noise level, one commit
        return Cost(1 + commit, n * (steps + commit), n)
    if schedule.kind == "fifo":  # a pass of half-overlapping windows brings one frame out
        windows = schedule.num_partitions * (2 if schedule.lookahead else 1)
        return Cost(windows, windows * (schedule.window_frames or 21), 1)
    return Cost(steps + commit, n * (steps + commit), n)


def _commits(method: MethodConfig) -> bool:
    """Whether the policy keeps a finished block, once it has seen many: what it does not keep is not written."""
    from longvid.cache.policies import ParticipativePolicy, policy_from_config
    from longvid.cache.policies.plan import outlasts

    n = method.schedule.frames_per_block
    policy = policy_from_config(method.cache, n, total_frames=_STEADY_BLOCKS * n)
    if isinstance(policy, ParticipativePolicy):  # it prunes tokens of every block, and reads those that are left
        return True
    resident: tuple[int, ...] = ()
    memory: Mapping[str, int] = {}
    written = True
    for start in range(0, min(_STEADY_BLOCKS * n, policy.capacity + n), n):
        plan = policy.plan(resident, start, n, n, memory)
        block = tuple(range(start, start + n))
        resident, memory = tuple(f for f in resident if f not in plan.evict), plan.memory
        written = outlasts(policy, resident, block, n, memory)
        resident += block
    return written


def planned_blocks(request: Request, temporal: int) -> Iterator[PlannedBlock]:
    """The blocks of a request with a length, in order. temporal: video frames a latent frame.

    A prompt acts from the first block that starts at or after its own start; behind a hard cut frames count anew.
    """
    from longvid.pipelines.schedules.timeline import Timeline

    timeline, grid, first, part = Timeline(temporal), request.grid, 0, 0
    for index in range(request.blocks or 0):
        block = grid[index - first]
        while part < len(request.switches) and timeline.latent + block.start >= request.switches[part].frame:
            if request.switches[part].cut:
                timeline = timeline.cut(timeline.latent + block.start)
                grid, first = request.scene_grid, index
                block = grid[0]
            part += 1
        start, end = timeline.latent + block.start, timeline.latent + block.end
        shown = (timeline.video_frame(start), min(request.frames or 0, timeline.video_frame(end)))
        yield PlannedBlock(index, (start, end), shown, part)


class Memory(NamedTuple):
    """Estimated bytes."""

    weights: int
    cache: int
    """Everything that the frame cache holds; of "fifo" the queue, without what is remembered of a subject."""
    decoder: int | None
    """State of the streaming decoder; None when it is not known without building it."""
    frames: int
    """Decoded frames that wait for the writer."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + (self.decoder or 0) + self.frames


def estimate_memory(folder: ModelFolder, request: Request, dtype: str) -> Memory:
    """What a render of a resolved request holds, apart from the activations of a call. dtype: "float32" and so on."""
    block_frames = request.method.schedule.frames_per_block * folder.temporal
    remembered = _queue(folder, request) if request.method.schedule.kind == "fifo" else _cache(folder, request, dtype)
    return Memory(
        weights=sum(part.parameters for part in folder.components.values()) * _BYTES[dtype],
        cache=remembered.nbytes,
        decoder=_decoder_bytes(folder, request, dtype),
        frames=4 * request.batch * block_frames * request.height * request.width * 3,
    )


def _cache(folder: ModelFolder, request: Request, dtype: str) -> FrameKVCache:
    """The very cache that a rollout of the request makes, without its memory: so that both are sized by one code."""
    import torch

    from longvid.cache import FrameKVCache
    from longvid.models.rope import RotaryTables

    config = folder.transformer
    head_dim = int(config["attention_head_dim"])
    return FrameKVCache(
        request.policy(),
        layers=int(config["num_layers"]),
        batch=request.batch * (2 if request.guided else 1),
        heads=int(config["num_attention_heads"]),
        head_dim=head_dim,
        rotary=RotaryTables(head_dim, request.height // folder.spatial, request.width // folder.spatial),
        dtype=getattr(torch, dtype),
        device="meta",
        window=request.schedule().blocks_per_call * request.grid.frames_per_block,
    )


def _queue(folder: ModelFolder, request: Request) -> LatentQueue:
    """The queue of a "fifo" request, without its memory."""
    from longvid.pipelines.fifo_settings import fifo_settings
    from longvid.pipelines.queue import LatentQueue
    from longvid.pipelines.solvers import FlowSolver

    settings = fifo_settings(request.method)
    solver = FlowSolver(schedule=settings.schedule, solver=settings.solver, eta=settings.eta)
    return LatentQueue(settings.schedule, solver, (request.batch, *_latent(folder, request)), device="meta")


def _latent(folder: ModelFolder, request: Request) -> tuple[int, int, int]:
    """Channels, height and width of a latent frame."""
    factor = folder.vae_factor
    return int(folder.transformer["in_channels"]), request.height // factor, request.width // factor


def _decoder_bytes(folder: ModelFolder, request: Request, dtype: str) -> int | None:
    if folder.vae.get("_class_name") != "AutoencoderKLWan":
        return None
    import torch

    from longvid.models.vae_stream import decoder_state_bytes

    _, height, width = _latent(folder, request)
    return decoder_state_bytes(
        folder.vae, batch=request.batch, latent_height=height, latent_width=width, dtype=getattr(torch, dtype)
    )


def human_bytes(size: float) -> str:
    """``1234567`` -> ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plan_lines(request: Any, folder: ModelFolder | None, prompt: PromptSchedule, dtype: str) -> list[str]:
    """The plan in words. request: a resolved ``longvid.pipelines.request.Request`` with a length."""
    method: MethodConfig = request.method
    seconds = request.frames / request.fps
    temporal = folder.temporal if folder else 4
    levels = ", ".join(f"{1000 * sigma:.1f}" for sigma in request.sigmas)
    lines = [
        f"video: {seconds:g} s, {request.frames} frames of {request.width}x{request.height} at {request.fps:g} fps, "
        f"{request.latent_frames} latent frames",
        f"timesteps: {levels if method.schedule.kind != 'fifo' else 'one a slot of the queue'}",
    ]
    blocks = list(planned_blocks(request, temporal))
    cost = cost_per_block(method)
    lines.append(
        f"blocks: {len(blocks)}, each {cost.calls:g} model calls over {cost.frames:g} latent frames once it runs"
    )
    shown: list[PlannedBlock | None] = list(blocks)
    switches = {block.number for before, block in pairwise(blocks) if block.prompt != before.prompt}
    if len(blocks) > 6:
        wanted = {0, 1, 2, len(blocks) - 2, len(blocks) - 1} | set(sorted(switches)[:20])
        shown = []
        for block in blocks:
            if block.number in wanted:
                shown.append(block)
            elif shown and shown[-1] is not None:
                shown.append(None)
    for entry in shown:
        if entry is None:
            lines.append("  ...")
            continue
        (low, high), (start, end) = entry.latent_frames, entry.video_frames
        text = prompt.parts[entry.prompt].text
        lines.append(
            f"  block {entry.number}: latent frames {low}-{high - 1}, video frames {start}-{end - 1} "
            f"({start / request.fps:.2f}-{end / request.fps:.2f} s), prompt {entry.prompt + 1}: {text[:50]}"
        )
    if folder is None:
        lines.append("memory: not known, the model is not on this machine")
        return lines
    memory, keeps_all = estimate_memory(folder, request, dtype), False
    if method.schedule.kind == "fifo":
        from longvid.pipelines.fifo_settings import fifo_schedule

        what, capacity = "queue", fifo_schedule(method.schedule).slots
    else:
        what, capacity = "frame cache", request.policy().capacity
        keeps_all = method.cache.policy == "full" or method.cache.window == -1
    decoder = "unknown (small)" if memory.decoder is None else human_bytes(memory.decoder)
    lines.append(
        f"memory: {human_bytes(memory.total)} and the activations of a call, "
        f"{'at this length' if keeps_all else 'whatever the length'}: weights "
        f"{human_bytes(memory.weights)} in {dtype}, {what} {human_bytes(memory.cache)} ({capacity} latent frames), "
        f"decoder state {decoder}, frames on their way {human_bytes(memory.frames)}"
    )
    return lines
