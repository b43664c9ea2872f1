"""Output lengths: how they are estimated before and while requests run (paper section 5.1).

`first_wave` samples the requests that run first. `groups` says who may have similar lengths,
`fit` finds the mean of each group, `shape` how lengths spread around it, `prior` what earlier
requests taught; `estimator` puts these together, and `forecast` is what a policy asks.

The constants were set together, by looking at the errors that ``python
benchmark/lengths/evaluate.py`` prints for eleven workloads (docs/lengths.md). A constant called
unproven here has no measurement of its own.
"""
