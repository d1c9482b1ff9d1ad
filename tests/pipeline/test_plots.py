"""The page of `dvc plots show`, in a real browser that cannot reach a network."""

import re
import shutil
import subprocess

import pytest

from tests.helpers.project import HANGS, command

CHARTS = {
    "Loss",
    "Accuracy",
    "Precision",
    "Recall",
    "F1_score",
    "Learning_rate",
    "Confusion_matrix__normalized_by_the_true_class",
    "Reliability",
    "metrics_evaluate_per_class_csv",
    "metrics_evaluate_predictions_csv",
}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(("words", "revisions"), [(("show",), 1), (("diff", "HEAD", "workspace"), 2)])
def test_the_page_of_plots_draws_every_chart_without_a_network(project, tmp_path, words, revisions):
    command(project, "dvc", "plots", *words, "-o", str(tmp_path / "page"))
    page = tmp_path / "page/index.html"
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    browser += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
    browser += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(browser, capture_output=True, text=True, timeout=HANGS)
    body = shown.stdout[shown.stdout.rindex("</head>") :]
    drawn = dict(re.findall(r'<div id="([^"]+)" class="vega-embed[^"]*">.*?<canvas width="(\d+)"', body, re.S))
    assert drawn.keys() >= CHARTS
    assert all(int(width) > 200 for name, width in drawn.items() if name in CHARTS)
    images = re.findall(r'<img src="([^"]+)"', body)
    assert len(images) == 5 * revisions and all((page.parent / name).stat().st_size > 1000 for name in images)
    # Addresses in a page without a network would fail to load, which the console says.
    errors = [line for line in shown.stderr.splitlines() if re.search(r"CONSOLE.*(ERR_|Error|error)", line)]
    assert not errors, errors
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=", shown.stdout)
