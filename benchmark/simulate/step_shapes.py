"""How long a step takes over its tokens: the table of docs/scheduling.md, "Pace".

    python benchmark/simulate/step_shapes.py

Llama-3.1-8B with 64 decodes that read 320,000 tokens of KV cache, milliseconds, by the measured
kernels and 2 ms a step.
"""

from __future__ import annotations

from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.simulated_policy import believed_steps

DECODES, KV_TOKENS = 64, 320_000
TOKENS = (64, 256, 264, 512, 520, 1024, 1040, 2048)
PLACES = {
    "A100, one after the other": ("A100-80G", "sequential"),
    "A100, `nanoflow`": ("A100-80G", "nanoflow"),
    "A100, two lanes": ("A100-80G", "lanes"),
    "H100, one after the other": ("H100", "sequential"),
    "H100, two lanes": ("H100", "lanes"),
}


def main() -> None:
    """Print the rows."""
    for name, (device, engine) in PLACES.items():
        machine = Machine.build("Llama-3.1-8B", device, engine, rates="tables")
        steps = believed_steps(machine.steps, 1)
        times = (1e3 * steps(tokens - DECODES, DECODES, KV_TOKENS) for tokens in TOKENS)
        print(f"| {name} | {' | '.join(f'{time:.1f}' for time in times)} |")


if __name__ == "__main__":
    main()
