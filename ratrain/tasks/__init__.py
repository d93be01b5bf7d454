"""Downstream tasks, as lm-evaluation-harness defines them: the adapter, the tasks, and the scores of runs.

source.py -> harness.py -> adapter.py -> scoring.py
(tasks)      (a run)       (lm_eval's)   (a batch)
"""
