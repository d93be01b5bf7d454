"""Writes a study as jobs of a scheduler: a round of runs, then a command that looks and writes the next round.

A round holds the runs that the study needs next and that do not depend on each other: all of them, or those of a block
of seeds, or of a stage of tuning. Every job is an idempotent command, so that a lost one is only submitted again.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ratrain.ablation.arms import Task
from ratrain.ablation.plan import Plan
from ratrain.ablation.record import Study
from ratrain.ablation.running.units import runs_of
from ratrain.atomic import write_file
from ratrain.errors import Exit
from ratrain.storage.folder import RunFolder

Kind = Literal["slurm", "shell"]
_TRIES = 3  # submissions of a run that does not come to an end
_NOTICE = 120  # seconds before its time limit at which Slurm warns a job

_SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={jobs}/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{notice}
{options}
# {per_gpu} run(s) of the round. Exit code 75 (stopped, resumable) and a killed run go back to the queue.
{enter}
children=()
trap 'kill -TERM "${{children[@]}}" 2>/dev/null' TERM USR1
for run in $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {jobs}/round.txt); do
    {command} {several} --run "$run" &
    children+=($!)
done
again= worst=0
for child in "${{children[@]}}"; do
    wait "$child"; code=$?
    while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done  # a signal ends the wait, not the run
    if [ $code -eq 75 ] || [ $code -gt 128 ]; then again=1; elif [ $code -ne 0 ]; then worst=$code; fi
done
[ -n "$again" ] && exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
exit $worst
"""

_FINISH = """\
#!/bin/bash
#SBATCH --job-name={name}-look
#SBATCH --output={jobs}/look-%j.log
#SBATCH --requeue
{options}
# Looks at the round that ended: writes the next one and submits it, or the report.
{enter}
{command} --emit slurm --next-round {emit} || exit
[ ! -e {jobs}/submit.sh ] || exec bash {jobs}/submit.sh
"""

_SUBMIT = """\
#!/bin/bash
# Submits a round of {runs} runs and the look after it.
{enter}
round=$(sbatch --parsable --array=0-{last}{limit} {jobs}/run.sbatch) || exit 69
sbatch --parsable --dependency=afterany:"$round" {jobs}/look.sbatch >/dev/null || {{ scancel "$round"; exit 69; }}
echo "submitted a round of {runs} runs as job $round; squeue --me shows it, {jobs}/ has the logs"
"""

_SHELL = """\
#!/bin/bash
# Trains a round of {runs} runs, {lanes} at a time, then looks: goes on with the next round, or ends with the report.
{enter}
tr ' ' '\\n' < {jobs}/round.txt | xargs -n 1 -P {lanes} {command} {several} --run
{command} --emit shell --next-round {emit} || exit
[ ! -e {jobs}/submit.sh ] || exec bash {jobs}/submit.sh
"""


@dataclass
class Collected:
    """Stands for a pool: it runs nothing and keeps the first round of runs that are not done."""

    tasks: list[Task] = field(default_factory=list)
    asked: bool = False

    def run(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.asked = list(tasks), True


@dataclass(frozen=True)
class Emission:
    """How the jobs of a study are written."""

    kind: Kind
    command: Sequence[str]  # words after `ratrain` that name the study and its options
    asked: Sequence[str] = ()  # arms
    next_round: bool = False  # whether a job asks, so that attempts count
    gpus_per_run: int = 0  # processes of a run, each on a GPU of its own; 0: what the device option says
    on_gpu: bool = True  # else each process of a run has a core of its own
    per_gpu: int = 1  # runs side by side in one job
    lanes: int = 0  # jobs at a time; 0: as many as the scheduler lets
    options: Sequence[str] = ()  # of sbatch, for every job


def write_round(emission: Emission, plan: Plan, study: Study, tasks: Sequence[Task]) -> tuple[Path | None, int]:
    """Writes the jobs of a round below the study's folder; returns the script that starts it or None, and an exit code.

    Runs that three rounds in a row did not bring to an end are left out, and named on stderr; if none is left, nothing
    is written, and the code is that of the first of them.
    """
    jobs = study.folder / "jobs"
    jobs.mkdir(exist_ok=True)
    (jobs / "submit.sh").unlink(missing_ok=True)
    tried = _attempts(jobs) if emission.next_round else {}
    left = [task for task in tasks if tried.get(task.folder, 0) < _TRIES]
    for task in tasks:
        if task not in left:
            print(f"{task.folder}: given up after {_TRIES} rounds, exit code {_code(study, task)}", file=sys.stderr)
    if not left:
        return None, _code(study, tasks[0]) if tasks else Exit.DONE
    number = {task.folder: place for place, task in enumerate(runs_of(plan, study), start=1)}
    lines = [" ".join(str(number[task.folder]) for task in group) for group in _groups(left, emission.per_gpu)]
    write_file(jobs / "round.txt", ["".join(f"{line}\n" for line in lines).encode()])
    names = [f"{number[task.folder]} {task.arm} s{task.init} {task.folder}\n" for task in left]
    write_file(jobs / "runs.txt", ["".join(names).encode()])
    for name, text in _scripts(emission, study, jobs, runs=len(left), jobs_count=len(lines)).items():
        write_file(jobs / name, [text.encode()])
    counts = tried | {task.folder: tried.get(task.folder, 0) + 1 for task in left}
    write_file(jobs / "attempts.json", [json.dumps(counts, indent=1).encode()])
    return jobs / "submit.sh", Exit.DONE


def _groups(tasks: Sequence[Task], size: int) -> list[Sequence[Task]]:
    return [tasks[at : at + size] for at in range(0, len(tasks), size)]


def _attempts(jobs: Path) -> dict[str, int]:
    try:
        return json.loads((jobs / "attempts.json").read_text())
    except (OSError, ValueError):
        return {}


def _code(study: Study, task: Task) -> int:
    """Returns the exit code that a run left in its state; GAVE_UP if it left none."""
    return int(RunFolder(study.out / task.folder).read_state().get("exit", Exit.GAVE_UP))


def _scripts(emission: Emission, study: Study, jobs: Path, *, runs: int, jobs_count: int) -> dict[str, str]:
    """Returns the scripts of a round by file name."""
    here, record = Path.cwd(), study.folder / "events.jsonl"
    unseen = shlex.quote(f": {here / record} is not seen here; --out must be on a shared disk")
    python = [sys.executable, "-m", "ratrain"]
    several = [f"--gpus-per-run={emission.gpus_per_run}"] if emission.gpus_per_run else []
    only = [f"--only={','.join(emission.asked)}"] if emission.asked else []
    emit = [*several, *map(shlex.quote, only)]
    emit += [f"--per-gpu {emission.per_gpu}"] if emission.per_gpu > 1 else []
    emit += [f"--jobs {emission.lanes}"] if emission.lanes else []
    emit += [shlex.quote(f"--sbatch={option}") for option in emission.options]
    run, look = _resources(emission)
    facts = {
        "name": study.folder.name, "jobs": shlex.quote(str(jobs)), "notice": _NOTICE, "runs": runs,
        "per_gpu": emission.per_gpu, "lanes": emission.lanes or 1, "last": jobs_count - 1,
        "limit": f"%{emission.lanes}" if emission.lanes else "", "emit": " ".join(emit),
        "several": " ".join(several),
        "enter": f'cd {shlex.quote(str(here))} && [ -e {shlex.quote(str(record))} ] '
        f"|| {{ echo \"$(hostname)\"{unseen} >&2; exit 73; }}",
    }  # fmt: skip

    def filled(template: str, words: Sequence[str], options: Sequence[str]) -> str:
        lines = "\n".join(f"#SBATCH {_quoted(option)}" for option in options)
        return template.format(**facts, command=shlex.join([*words, *emission.command]), options=lines)

    if emission.kind == "shell":
        return {"submit.sh": filled(_SHELL, python, ())}
    return {
        "run.sbatch": filled(_SLURM, python, [*run, *emission.options]),
        "look.sbatch": filled(_FINISH, python, [*look, *emission.options]),
        "submit.sh": filled(_SUBMIT, python, ()),
    }


def _resources(emission: Emission) -> tuple[list[str], list[str]]:
    """Returns the options of sbatch for the devices of a job of runs, and of the look."""
    if emission.on_gpu:
        return ([f"--gpus={emission.gpus_per_run}"], ["--gpus=1"]) if emission.gpus_per_run else ([], [])
    cores = max(1, emission.gpus_per_run) * emission.per_gpu
    return [f"--cpus-per-task={cores}"], ["--cpus-per-task=1"]


def _quoted(option: str) -> str:
    """Quotes the value of an option of sbatch, as a line of a script."""
    name, is_set, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if is_set else option
