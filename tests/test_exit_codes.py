"""Exit codes that belong to no command: those of mistakes, and where all of them are explained."""

import subprocess
import sys
from pathlib import Path

from sola_profile.exit_codes import MEANINGS, ExitCode

ROOT = Path(__file__).resolve().parents[1]


def test_an_internal_error_shows_its_traceback_and_exits_with_1():
    code = """
import sys
from sola_profile import cli
from sola_profile.commands import profile
def fail(options): raise ZeroDivisionError("a mistake in the program")
profile.read_request = fail
sys.argv = ["sola-profile", "--model", "sola_t"]
cli.main()
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert child.returncode == ExitCode.INTERNAL
    assert "Traceback" in child.stderr
    assert "a mistake in the program" in child.stderr


def test_every_code_is_in_the_help_and_in_the_docs(sola_profile):
    assert set(MEANINGS) == set(ExitCode)
    shown = " ".join(sola_profile("--help")[1].split())
    page = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    for code, meaning in MEANINGS.items():
        assert f"{code} {meaning}" in shown
        assert f"| {code} | {meaning} |" in page
