"""The judgement: pure functions from where a saga stands and what happened to what must be done.

No I/O, no clock, no randomness, and no Saga class: a plan is data. Time comes in as integer milliseconds since the
epoch, read by the caller from the database's clock. `react` decides, `apply` folds; nothing else changes a state.
"""
