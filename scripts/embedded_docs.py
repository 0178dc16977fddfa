"""Write the figures of benchmarks/results/embedded-*.json and student-*.json into docs/embedded_model.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = (
    ("background", "background right", True),
    ("colour", "subject's colour right", True),
    ("shape", "subject's shape right", True),
    ("one_subject", "frames with exactly one subject", True),
    ("motion", "motion, pixels a frame", False),
)

PROBE_NAMES = {"colour": "colour", "shape": "shape", "background": "background", "count": "number of subjects"}


def _cell(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.2f}"


def figures_table(results: list[dict]) -> str:
    """One column a (method, segment); the first five seconds and the last."""
    head = ["", *[f"{r['label']}, {when}" for r in results for when in ("first 5 s", f"last 5 of {r['seconds']} s")]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key, label, share in ROWS:
        cells = [_cell(r[when][key], share) for r in results for when in ("first", "last")]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    best = results[0]
    own = {name: _cell(value, True) for name, value in best["probe_held_out"].items() if name in PROBE_NAMES}
    lines += [
        "",
        f"{best['videos']} videos each. The world's own motion, by the same estimator: {best['world_motion']:.2f} "
        f"pixels a frame, ratio {best['motion_ratio']:.2f}. The probe on held-out rendered frames: "
        + ", ".join(f"{PROBE_NAMES[name]} {value}" for name, value in own.items())
        + ".",
    ]
    return "\n".join(lines)


def drift_table(results: list[dict]) -> str:
    columns = [1, 2, 5, 8, 11]
    head = ["method", "videos", *[f"{5 * c} to {5 * c + 5} s" for c in columns], "mean", "motion at the end"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        drift = r["identity_drift"]
        cells = [f"{drift[c]:.1f}" if c < len(drift) else "" for c in columns]
        mean = sum(drift[1:]) / max(1, len(drift) - 1)
        lines.append(
            f"| {r['label']} | {r['videos']} | "
            + " | ".join([*cells, f"{mean:.2f}", f"{r['last']['motion']:.2f}"])
            + " |"
        )
    lines.append(f"\nAnother seed (identity lost): {results[0]['identity_drift_other_seed']:.1f}.")
    return "\n".join(lines)


def _between(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    results = []
    from longvid.config import DEFAULT_METHOD
    from longvid.models.students import BASE
    from longvid.presets import load_method

    default = load_method(DEFAULT_METHOD)
    for path in sorted(args.results.glob("*-*.json")):
        if not path.stem.startswith(("embedded-", "student-")):
            continue
        figures = json.loads(path.read_text())["figures"]
        student = figures.get("student", BASE)
        results.append(figures | {"student": student, "label": f"{figures['method']} ({student})"})
    # What the default command renders first, then the same method on the base.
    # The records of other methods have other prompts: scripts/student_figures.py compares methods on the same ones.
    shown = [r for r in results if r["method"] == default.name and r["student"] in (BASE, default.student)]
    shown.sort(key=lambda r: (r["student"] != (default.student or BASE), r["label"]))
    page = ROOT / "docs" / "embedded_model.md"
    text = _between(page.read_text(), "figures", figures_table(shown))
    page.write_text(_between(text, "drift", drift_table(shown)))


if __name__ == "__main__":
    main()
