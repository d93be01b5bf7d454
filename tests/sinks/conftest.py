"""One event of each kind, as a run states them."""

from __future__ import annotations

import pytest

from ratrain import events


@pytest.fixture
def window():
    def window(step=5, **changes):
        fields = {
            "tokens": 640,
            "spent": 0.25,
            "losses": (7.5, 7.25),
            "grad_norms": (1.0, 3.0),
            "skipped": 0,
            "lr": 3e-4,
            "seconds": 0.5,
            "tokens_per_second": 1280.0,
            "mfu": 0.42,
            "mfu_datasheet": None,
            "peak_memory": 1 << 20,
            "graphs": 4,
            "recompiles": 0,
            "eta": 75.0,
        }
        return events.Window(step, **{**fields, **changes})

    return window


@pytest.fixture
def started():
    def started(**changes):
        fields = {
            "id": "v1",
            "title": "Unified RA",
            "scale": "tiny",
            "folder": "runs/v1/s1",
            "recipe_hash": "0123456789abcdef",
            "run_hash": "fedcba",
            "seed_init": 1,
            "seed_data": 1,
            "device": "cpu",
            "precision": "fp32",
            "parameters": 1_234_567,
            "flops_per_token": 5e6,
            "kv_bytes_per_token": 512,
            "train_tokens": 1_780_000,
            "val_tokens": 83_400,
            "budget": {"steps": 20},
            "total_steps": 20,
            "tokens_per_step": 128,
            "peak_flops": {"datasheet": None, "measured": 1e11},
            "baselines": {"uniform": 7.625},
        }
        return events.RunStarted(**{**fields, **changes})

    return started


@pytest.fixture
def one_of_each(window, started):
    return [
        events.Resumed(3, "checkpoints/step-3", ("step-5: SHA-256 differs",)),
        started(),
        events.PhaseStarted("compile", "inductor, to train"),
        events.Compiled("train", 12.3, 4, 4, False),
        window(),
        events.Evaluated(5, 7.1234, 256, 0.5),
        events.Probed(5, {"unified_ra": {"w_rec": [[0.1, 0.3], [0.2, 0.2]], "share": [[], [0.5]]}}),
        events.Pretrained("gpt2", "0" * 64, 148, "exact", ("the file does not say its activation",)),
        events.Fitted(5, "kv_splice", 2048, "output", 0.02, 0.03, 0.05, 8, 1),
        events.Saved(5, "checkpoints/step-5", 1_140_000, 0.04),
        events.Machine(5, 99.0, 1 << 30),
        events.PruningBegan("state", ("blocks.0.mlp.up.weight",), 4096, 92_032),
        events.Pruned(5, 0.5, 2048, True),
        events.PruningEvaluated(
            step=5,
            target=0.5,
            sparsity=0.5,
            zeros={"blocks.0.mlp.up.weight": (2048, 4096), "wte.weight": (0, 65536)},
            pruned=["blocks.0.mlp.up.weight"],
            reached=True,
            not_zero=0,
            loss_dense_best=7.2,
            loss_target_best=None,
            loss=7.1234,
            loss_reloaded=7.1234,
            peak_memory=1 << 20,
            step_seconds={"with looks": None, "without": 0.01},
            bytes_dense=278_528,
            bytes_packed=270_848,
        ),
        events.OptimizerTold(5, {"spikes": 1}, {"spikes": 3}),
        events.Sampled(5, "To be\nor not"),
        events.Notice("all is well"),
        events.Notice("all is not well", "warning"),
        events.RunEnded("done", 5, 7.1234, {"train": 90.0}),
    ]
