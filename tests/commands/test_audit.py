"""What `make audit` makes of the answers of pip-audit, which asks a service that no test may reach."""

import json
import subprocess

import pytest

from image_classifier.commands import audit

SOUND = {"name": "sound", "version": "1.0", "vulns": []}
WEAK = {"name": "weak", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not on the index"}


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([SOUND], 0, ["audit: 0 known vulnerabilities in 1 packages"]),
        (
            [SOUND, WEAK],
            1,
            ["audit: weak 2.0: PYSEC-1, mended in 2.1", "audit: 1 known vulnerabilities in 2 packages"],
        ),
        (
            [SOUND, UNKNOWN],
            0,
            [
                "audit: not run for 1 of 2 packages: the service has no answer for them",
                "audit: 0 known vulnerabilities in 1 packages",
            ],
        ),
        (None, 0, ["audit: not run: the service cannot be reached"]),
    ],
)
def test_what_is_known_is_told_and_what_could_not_be_asked_too(monkeypatch, capsys, packages, code, told):
    answer = "" if packages is None else json.dumps({"dependencies": packages})
    done = subprocess.CompletedProcess([], 1, answer, "Traceback\nthe service cannot be reached\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)
    assert audit.main() == code
    assert capsys.readouterr().out.splitlines() == told
