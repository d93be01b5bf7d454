"""Fetches the packages missing on a bare GPU machine into .gpu/site: six pure or prebuilt ones, for Python on Linux.

    python3 -m bench.gpu.carry [--python 3.12]

The versions are those of constraints.txt. Python is 3.12 by default. Copy the folder along with the checkout; git
ignores it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / ".gpu" / "site"
PACKAGES = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "tomli", "psutil")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="of the GPU machine (3.12)")
    args = parser.parse_args()
    pinned = dict(re.findall(r"^([\w.-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.M))
    wanted = [f"{name}=={pinned[name]}" for name in PACKAGES]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", args.python, "--platform", "manylinux2014_x86_64", "--platform"]
        command += ["manylinux_2_17_x86_64", "--platform", "manylinux_2_28_x86_64", "--dest", folder, *wanted]
        if subprocess.run(command, check=False).returncode:
            print("pip could not fetch them: is there a network?", file=sys.stderr)
            return 69
        shutil.rmtree(SITE, ignore_errors=True)
        for wheel in sorted(Path(folder).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(SITE)
            print(f"{wheel.name} -> {SITE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
