"""Synthetic recall tasks: the answers are in the context, and only they are predicted.

A task is one file with a function `rows`; `TASKS` names them. Symbols: 0 is the blank, 1 the mark, the lower half of
the others are keys, the upper half values. A filler token is a random value with the probability `noise`, else blank.
"""

from __future__ import annotations

from ratrain.data.recall import copying, induction, mqar, needle

TASKS = {"mqar": mqar.rows, "induction": induction.rows, "copy": copying.rows, "needle": needle.rows}
