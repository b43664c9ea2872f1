"""Every hand-set constant of the step policy and of memory admission.

``python benchmark/simulate/tuning.py`` measures them by the fast step model: each field at the
value that its docstring names and all others at their defaults, against all defaults in the same
run. The figures are the change of the run's time in per cent, mean and range over seeds 0 to 2 of
25,000 requests of trace1 on an engine that overlaps (``--requests 25000``). Plus: slower without
the constant. So few requests hardly fill the memory, and what concerns it shows nothing: those
fields are "unproven", as is all else without a figure.

Three constants are the paper's and stay where they are used: 1 % of the requests are sampled
(`pool.planning_rules.SAMPLE`), node splits keep 99 % of the sharing
(`plan.scan_order.KEEP_SHARING`), and the partition of the memory itself
(`policy.split.memory_partition`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the policy; the defaults are the policy as it is."""

    # --- which requests are looked at (select.py) ---------------------------------------------

    look_ahead: int = 64
    """Requests at each side among which one that need not wait for a prefix is looked for.
    Unproven."""
    backfill: int = 8
    """Requests at one side that a step may pass over because they do not fit, for shorter ones
    behind them. Requests of known length do not count. Unproven."""
    worth_waiting: int = 16
    """Prompt tokens whose computation a request waits for: it starts some steps later, when
    another one has computed the prefix that both begin with. At 1e+09: +0.2 % (+0.0 to +0.4 in
    3 runs), worth it in every run."""

    # --- the memory kept for the compute-bound side (split.py) --------------------------------

    split_steps: int = 16
    """Steps for which a partition of the memory is kept. Unproven."""
    side_window: int = 512
    """Most requests at each side whose density stands for the side. Unproven."""
    side_part: int = 8
    """A side is one in so many of the requests that wait, where that is fewer than `side_window`.
    Unproven."""
    least_share: float = 0.15
    """Least share of the memory kept for the compute-bound side, and for long outputs that
    outgrow their predictions and would stop its flow for thousands of steps. Unproven."""
    most_share: float = 0.5
    """Largest share of the memory kept for the compute-bound side. Unproven."""
    scarce_share: float = 0.1
    """Share of the memory kept for the compute-bound side in addition where compute is the scarcer
    resource: memory that is not full then costs no time. Unproven."""
    scarce_from: float = 0.9
    """Compute scarcity (`pace.compute_scarcity`) from which `scarce_share` is added.
    Unproven."""
    scarce_width: float = 0.2
    """Range of compute scarcity, above `scarce_from`, over which `scarce_share` is added in full.
    Unproven."""
    outlived: float = 2.0
    """Times its expected length after which a request counts for the memory-bound side.
    Unproven."""

    # --- admission (admission.py) -------------------------------------------------------------

    reserve_all: bool = False
    """Admit by the sum of all that the requests will ever hold instead of by the predicted
    peak. At True: +8.4 % on trace1 and +8.0 % on trace4 with 100,000 requests, +12.5 % and
    +15.4 % with 400,000 (one seed; ``studies.py ablations``)."""

    # --- the safety margin (margin.py) --------------------------------------------------------

    deviations: float = 1.0
    """Standard deviations of the memory in use that are kept free beside many requests.
    Unproven."""
    more_deviations: float = 2.0
    """Standard deviations kept free besides where few are in flight: each one is felt there.
    Unproven."""
    many: int = 32
    """Requests in flight that are many: a retraction costs little of the work in flight.
    Unproven."""
    alike: float = 0.35
    """Part of the errors that requests of an unknown kind have in common. Unproven."""
    bias: float = 0.1
    """Error of the mean of lengths that are not known, as a part: it does not cancel among
    many. Unproven."""
    more_bias: float = 0.4
    """What is added to `bias` where compute is the scarcer resource. Memory that stays empty costs
    little there; one that outputs fill beyond expectation stops the prompts. Unproven."""
    bias_from: float = 0.6
    """Compute scarcity from which `more_bias` is added, and `many_caps` turns to `some_caps`.
    Unproven."""
    bias_width: float = 0.3
    """Range of compute scarcity, above `bias_from`, over which `more_bias` is added in full and
    `many_caps` becomes `some_caps`. Unproven."""
    flow_from: float = 0.4
    """Part of prompts among a step's tokens from which `more_bias` is added: where few are
    computed, decodes are what keeps compute busy, and they need the memory. Unproven."""
    flow_width: float = 0.3
    """Range of the part of prompts, above `flow_from`, over which `more_bias` is added in full.
    Unproven."""
    many_caps: float = 16.0
    """How many requests at their caps the memory must hold for a request of an unknown kind to
    count with its cap. Unproven."""
    some_caps: float = 5.0
    """`many_caps` where compute is the scarcer resource: memory that stays empty costs less there.
    Unproven."""

    # --- the pace (pace.py) -------------------------------------------------------------------

    prompt_cost_kept: float = 0.97
    """Part of what was seen of the cost of prompt tokens (`cost.prompt_cost`) that is kept from
    step to step: some dozens of steps count. At 0: +0.9 % (+0.7 to +1.0 in 3 runs), worth it in
    every run."""
    least_beside_online: int = 32
    """Prompt tokens that a step may compute beside online decodes however short these are.
    Unproven: it concerns online requests, of which the model has none."""

    # --- algorithm 3 as printed (paper.py) ----------------------------------------------------

    paper_window: int = 64
    """Requests at each side that stand for it in the paper's partition and budgets. Unproven:
    it concerns `paper` alone."""


DEFAULTS = Tuning()
"""The constants of the policy as it is."""
