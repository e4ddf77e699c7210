"""The paired comparison of a method with its control over seeds, from finished runs.

tutelage train -m experiment=digits_noisy_student seed=0,1,2,3,4,5,6,7,8,9
python benchmarks/paired.py outputs/digits_noisy_student
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats


def main(folder: Path) -> None:
    """Print the mean and spread of every network, and the paired difference with its 95 % interval (Student's t)."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]
    finished = [record for record in records if record["status"] == "finished"]
    if len(finished) < 2:
        sys.exit(f"{folder}: {len(finished)} finished runs; a comparison needs at least 2 seeds")
    accuracy: dict[str, list[float]] = {}
    for record in finished:
        for entry in record["stages"]:
            if entry["kind"] == "fit":
                accuracy.setdefault(entry["name"], []).append(100 * entry["result"]["test/accuracy"])
    for name, values in accuracy.items():
        print(f"{name:<12} {np.mean(values):5.1f} +- {np.std(values, ddof=1):.1f}  ({len(values)} seeds)")
    last = [name for name in accuracy if name != "control"][-1]
    gain = np.subtract(accuracy[last], accuracy["control"])
    low, high = stats.t.interval(0.95, len(gain) - 1, np.mean(gain), stats.sem(gain))
    print(f"{last} - control: {np.mean(gain):.1f} points, 95 % interval {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
