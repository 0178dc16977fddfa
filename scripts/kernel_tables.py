"""The tables of docs/methods/radial.md and docs/kernels.md, computed from the mask itself and the recorded figures.

    python scripts/kernel_tables.py            writes them between their markers
    python scripts/kernel_tables.py --check    fails when a document is out of date

Speed-ups are theoretical: multiply-adds of a whole model call, dense against radial, with the published dense layers
and steps. Kernels do not reach them; neither do they count what is not matrix multiplication.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages
from longvid.cache.policies import RadialPolicy
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks

RESULTS = pages.ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Clip:
    """A model at a length. linear: multiply-adds of everything but self-attention, a token and layer, in units of 2."""

    model: str
    video_frames: int
    latent_frames: int
    tokens: int
    text: int
    width: int
    linear: int
    spec: RadialSpec
    layers: int
    steps: int
    dense_layers: int
    dense_steps: int
    published: str

    def speed_up(self, density: float) -> tuple[float, float]:
        """(of self-attention where it is sparse, of the whole run with its dense layers and steps)."""
        total = self.latent_frames * self.tokens + self.text
        attention = 4 * self.width * total  # Q K^T and P V
        share = (1 - self.dense_layers / self.layers) * (1 - self.dense_steps / self.steps)
        return 1 / density, (self.linear + attention) / (self.linear + attention * (1 - share * (1 - density)))


def wan_linear(width: int, feed_forward: int, text: int = 512) -> int:
    """Self-attention projections 8 d^2, cross-attention 4 d^2 and its scores, feed-forward 4 d f."""
    return 12 * width**2 + 4 * width * text + 4 * width * feed_forward


WAN_14B = {"width": 5120, "linear": wan_linear(5120, 13824), "layers": 40, "text": 0}
WAN_1B = {"width": 1536, "linear": wan_linear(1536, 8960), "layers": 30, "text": 0}
HUNYUAN = {"width": 3072, "linear": 24 * 3072**2, "layers": 60, "text": 256}
MOCHI = {"width": 3072, "linear": 8 * 3072**2 + 6 * 3072 * 8192, "layers": 48, "text": 256}
LONG = {"spec": RadialSpec.wan(), "steps": 50, "dense_layers": 2, "dense_steps": 2}


def frame(height: int, width: int) -> int:
    """Tokens of a latent frame: 8 x 8 pixels a latent, 2 x 2 latents a token, in all models here."""
    return height // 16 * (width // 16)


def wan(decay: float, block: int = 128) -> RadialSpec:
    return RadialSpec.wan(decay=decay, block=block)


CLIPS = [
    Clip(
        "Wan2.1-1.3B, 480p",
        81,
        21,
        frame(480, 832),
        **WAN_1B,
        spec=wan(0.2),
        steps=50,
        dense_layers=1,
        dense_steps=12,
        published="-",
    ),
    Clip(
        "Wan2.1-14B, 768 x 1280",
        69,
        18,
        frame(768, 1280),
        **WAN_14B,
        spec=wan(0.2),
        steps=50,
        dense_layers=1,
        dense_steps=12,
        published="1.8 x measured",
    ),
    Clip(
        "Wan2.2-A14B, 768 x 1280",
        77,
        20,
        frame(768, 1280),
        **WAN_14B,
        spec=wan(0.8, 64),
        steps=40,
        dense_layers=1,
        dense_steps=11,
        published="-",
    ),
    Clip("Wan2.1-14B, 2 x length", 161, 41, frame(768, 1280), **WAN_14B, **LONG, published="73.6 %; 2.0 x measured"),
    Clip(
        "HunyuanVideo, 768 x 1280",
        117,
        30,
        frame(768, 1280),
        **HUNYUAN,
        spec=RadialSpec.hunyuan(decay=0.95),
        steps=50,
        dense_layers=0,
        dense_steps=12,
        published="1.9 x measured",
    ),
    Clip(
        "HunyuanVideo, 2 x length, 720p",
        253,
        65,
        frame(720, 1280),
        **HUNYUAN,
        **LONG,
        published="80.8 %; 2.35 x measured",
    ),
    Clip(
        "HunyuanVideo, 4 x length, 720p",
        509,
        129,
        frame(720, 1280),
        **HUNYUAN,
        **LONG,
        published="88.3 %; 3.71 x measured",
    ),
    Clip("Mochi 1, 2 x length, 480p", 331, 56, frame(480, 848), **MOCHI, **LONG, published="-"),
    Clip("Mochi 1, 4 x length, 480p", 667, 112, frame(480, 848), **MOCHI, **LONG, published="-"),
]


def square_table() -> str:
    lines = [
        "| model | video frames | latent frames x tokens | decay, block | sparsity | attention | whole run | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for clip in CLIPS:
        blocks = radial_blocks(
            clip.latent_frames, clip.tokens, clip.spec, total=clip.latent_frames * clip.tokens + clip.text
        )
        kept = blocks.nnz / blocks.q_blocks / blocks.kv_blocks  # as the paper counts: blocks, not tokens
        attention, whole = clip.speed_up(kept)
        lines.append(
            f"| {clip.model} | {clip.video_frames} | {clip.latent_frames} x {clip.tokens:,} | {clip.spec.decay:g}, "
            f"{clip.spec.block} | {100 * (1 - kept):.1f} % | {attention:.1f} x | {whole:.2f} x | {clip.published} |"
        )
    return "\n".join(lines)


def rollout_table() -> str:
    """Wan 1.3B at 480p, three-frame blocks, one sink, `window` frames of history behind the block."""
    lines = [
        "| history, frames | video | density, decay 1 | decay 0.2 | attention | model call | frames in the cache | "
        "KV cache, bf16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tokens, width, layers, chunk = frame(480, 832), WAN_1B["width"], WAN_1B["layers"], 3
    linear = wan_linear(width, 8960)
    for history in (18, 39, 81, 237, 957):
        now = list(range(history, history + chunk))
        density = {}
        for decay in (1.0, 0.2):
            spec = RadialSpec.wan(decay=decay, anchor="key")
            density[decay] = rollout_blocks(now, range(history + chunk), tokens, spec, dense_chunk=True).density
        attention = 4 * width * tokens * (history + chunk)
        call = (linear + attention) / (linear + attention * density[1.0])
        everything = history + chunk
        policy = RadialPolicy(frames_per_block=chunk, window=-1, sink=1, dense=16)
        kept = sum(policy.keeps(f, history) for f in range(history)) + chunk
        gigabytes = [2 * layers * n * tokens * width * 2 / 1e9 for n in (everything, kept)]
        seconds = (1 + 4 * (everything - 1)) / 16
        lines.append(
            f"| {history} | {seconds:.0f} s | {density[1.0]:.3f} | {density[0.2]:.3f} | {1 / density[1.0]:.1f} x | "
            f"{call:.1f} x | {everything} -> {kept} | {gigabytes[0]:.1f} -> {gigabytes[1]:.1f} GB |"
        )
    return "\n".join(lines)


def aot_table() -> str:
    table = json.loads((RESULTS / "kernels_aot.json").read_text())["kernels"]
    lines = ["| kernel | " + " | ".join(table) + " |", "|---" * (len(table) + 1) + "|"]
    names = [n for n in next(iter(table.values())) if "/bf16" in n and "ragged" not in n]
    shapes = dict.fromkeys(
        re.sub(r"/\d+x\d+$", "", n) + ("/64-row" if "/64x" in n and "forward" in n else "") for n in names
    )
    for shape in shapes:
        cells = []
        for rows in table.values():
            stem, small = shape.removesuffix("/64-row"), shape.endswith("/64-row")
            match = next(
                r for n, r in rows.items()
                if n.startswith(stem) and "ragged" not in n and ("forward" not in n or ("/64x" in n) == small)
            )  # fmt: skip
            cells.append(f"{match['registers']} / {match['shared_kilobytes']:g}")
        lines.append(f"| {shape.replace('/bf16', '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_table() -> str:
    figures = json.loads((RESULTS / "attention_cpu.json").read_text())["figures"]
    lines = [
        "| tokens | head dim | density | dense, ms | gather, ms | ratio | with backward |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = figures["random_blocks"]
    backward = {
        (r["queries"], r["head_dim"], r["density"]): r["times"]["gather"]["ratio"] for r in rows if r["backward"]
    }
    for row in rows:
        if row["backward"]:
            continue
        dense, gather = row["times"]["dense"], row["times"]["gather"]
        both = backward.get((row["queries"], row["head_dim"], row["density"]))
        lines.append(
            f"| {row['queries']:,} | {row['head_dim']} | {row['density']:.2f} | {dense['median_process_ms']:.0f} | "
            f"{gather['median_process_ms']:.0f} | {gather['ratio']:.2f} | {'' if both is None else f'{both:.2f}'} |"
        )
    return "\n".join(lines)


def mask_table() -> str:
    rows = json.loads((RESULTS / "attention_cpu.json").read_text())["figures"]["radial_mask"]
    lines = [
        "| tokens | frames x tokens | density | build, s | list, MB | peak memory added, MB | a dense mask, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['length']:,} | {row['frames']} x {row['tokens_per_frame']:,} | {row['density']:.3f} | "
            f"{row['build_process_seconds']:.2f} | {row['list_megabytes']:.1f} | {row['added_peak_megabytes']:.0f} | "
            f"{row['dense_mask_megabytes'] / 1e3:,.0f} |"
        )
    return "\n".join(lines)


TABLES: pages.Tables = {
    "square": ("docs/methods/radial.md", square_table),
    "rollout": ("docs/methods/radial.md", rollout_table),
    "mask": ("docs/kernels.md", mask_table),
    "cpu": ("docs/kernels.md", cpu_table),
    "aot": ("docs/kernels.md", aot_table),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    return pages.write(TABLES, "scripts/kernel_tables.py", check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
