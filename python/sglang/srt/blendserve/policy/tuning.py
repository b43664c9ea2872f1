"""Every hand-set constant of the step policy and of memory admission.

``python benchmark/simulate/tuning.py`` measures them by the fast step model: each field at the
value that its docstring names and all others at their defaults, against all defaults. The two
figures are the change of the run's time on trace1 and on trace4, 100,000 requests, seed 0, on two
lanes of an A100 (``--seeds 0``), before what is given back counted as work and with `look_ahead`
at 64. Plus: slower with the other value, so the default is worth it.

Read them with care. When the few longest outputs start moves a single run by up to 5 per cent, and
nearly any change moves that. So one seed proves what is worth more, `reserve_all`; a figure of 0.0
says that the field decides nothing on these traces. "Unproven": these runs do not reach the field.

Those of the pace and of what a slot is worth, which are no constants of a workload, stand in
`marginal_pace` and `full_step`.

Two constants are the paper's and stay where they are used: 1 % of the requests are sampled
(`pool.planning_rules.SAMPLE`), and the partition of the memory itself
(`policy.split.memory_partition`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the policy; the defaults are the policy as it is."""

    # --- which requests are looked at (select.py) ---------------------------------------------

    look_ahead: int = 256
    """Requests at each side among which one that need not wait for a prefix is looked for. At 16:
    +0.2 % and -2.3 %."""
    backfill: int = 8
    """Requests at one side that a step may pass over because they do not fit, for shorter ones
    behind them. At 0: +1.2 % and +0.8 %."""
    backfill_known: int = 64
    """Requests of known length at one side that a step may pass over: shorter ones behind them are
    certain to end in time. Unproven: these runs have none."""
    worth_waiting: int = 16
    """Prompt tokens whose computation a request waits for: it starts some steps later, when another
    one has computed the prefix that both begin with. At 1e+09: +0.4 % and -2.4 %."""

    # --- the memory kept for the compute-bound side (split.py) --------------------------------

    split_steps: int = 16
    """Steps for which a partition of the memory is kept. At 1: -0.1 % and -5.4 %."""
    side_window: int = 512
    """Most requests at each side whose density stands for the side. At 64: +0.0 % and +0.5 %."""
    side_part: int = 8
    """A side is one in so many of the requests that wait, where that is fewer than `side_window`.
    At 2: +0.0 % and +0.0 %."""
    least_share: float = 0.15
    """Least share of the memory kept for the compute-bound side, and for long outputs that outgrow
    their predictions and would stop its flow for thousands of steps. At 0: +2.8 % and +0.8 %."""
    apart: float = 2.0
    """Times that the compute-bound side must be as dense as the memory-bound one for the whole
    share to be kept; nothing is where they are alike, as among long answers to short questions. At
    1: +0.0 % and -0.0 %."""
    most_share: float = 0.5
    """Largest share of the memory kept for the compute-bound side. At 1: +0.0 % and +0.0 %."""
    scarce_share: float = 0.1
    """Share of the memory kept for the compute-bound side in addition where compute is the scarcer
    resource: memory that is not full then costs no time. At 0: +0.8 % and +0.4 %."""
    scarce_from: float = 0.9
    """Compute scarcity (`pace.compute_scarcity`) from which `scarce_share` is added. At 0.6: +0.3 %
    and +0.3 %."""
    scarce_width: float = 0.2
    """Range of compute scarcity, above `scarce_from`, over which `scarce_share` is added in full.
    At 0.6: +0.6 % and +1.1 %."""
    outlived: float = 2.0
    """Times its expected length after which a request counts for the memory-bound side. At 1e+09:
    +0.4 % and +0.0 %."""

    # --- admission (admission.py) -------------------------------------------------------------

    reserve_all: bool = False
    """Admit by the sum of all that the requests will ever hold instead of by the predicted peak. At
    True: +20.2 % and +16.1 %."""

    # --- the safety margin (margin.py) --------------------------------------------------------

    earned: float = 1.0
    """Times that the slots of a request must have earned what it costs to compute them again by
    when memory is predicted to run short, for it to start nevertheless. At 1e+09: +6.4 % and -2.2
    %."""
    least_risk: float = 0.01
    """Least probability with which memory may run short, where a slot earns nothing. At 0.16: +1.1
    % and +0.7 %."""
    more_deviations: float = 2.0
    """Standard deviations kept free besides where few are in flight: each one is felt there. At 0:
    +0.0 % and +0.1 %."""
    many: int = 32
    """Requests in flight that are many: a retraction costs little of the work in flight. At 128:
    +0.8 % and +0.4 %."""
    alike: float = 0.35
    """Part of the errors that requests of an unknown kind have in common. At 0: +1.0 % and +0.0
    %."""
    bias: float = 0.1
    """Error of the mean of lengths that are not known, as a part: it does not cancel among many. At
    0: +0.6 % and -4.7 %."""
    many_caps: float = 16.0
    """How many requests at their caps the memory must hold for a request of an unknown kind to
    count with its cap. At 1e+09: +0.1 % and -5.6 %."""

    # --- the pace (pace.py) -------------------------------------------------------------------

    prompt_cost_kept: float = 0.97
    """Part of what was seen of the cost of prompt tokens (`cost.prompt_cost`) that is kept from
    step to step: some dozens of steps count. At 0: -0.2 % and -4.4 %."""

    # --- algorithm 3 as printed (paper.py) ----------------------------------------------------

    paper_window: int = 64
    """Requests at each side that stand for it in the paper's partition and budgets. Unproven:
    it concerns `paper` alone."""


DEFAULTS = Tuning()
"""The constants of the policy as it is."""
