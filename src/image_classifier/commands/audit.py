"""`image-classifier audit`: are vulnerabilities known of the packages that requirements.txt locks?

Asks the vulnerability service of PyPI through pip-audit; says "not run" where it does not answer.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path("requirements.txt")


def main() -> int:
    """Print each vulnerable package with what is known and the version that mends it; return 1 if there is one."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(LOCK)]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: not run: {reason}")
        return 0
    answers = json.loads(done.stdout)["dependencies"]
    packages = [package for package in answers if "skip_reason" not in package]
    if skipped := len(answers) - len(packages):
        print(f"audit: not run for {skipped} of {len(answers)} packages: the service has no answer for them")
    found = [(package, known) for package in packages for known in package.get("vulns", [])]
    for package, known in found:
        mended = ", ".join(known["fix_versions"]) or "none yet"
        print(f"audit: {package['name']} {package['version']}: {known['id']}, mended in {mended}")
    if packages:
        print(f"audit: {len(found)} known vulnerabilities in {len(packages)} packages")
    return 1 if found else 0
