"""Guards of the design: what is written down stays true."""

import ast
import importlib
import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from image_classifier.commands import summary
from image_classifier.core import config, provenance, tables
from image_classifier.core.config import Section
from image_classifier.core.errors import UserError
from image_classifier.training import trainer
from tests.helpers.project import DEFAULTS, ROOT, command

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = list(PIPELINE["stages"])
PACKAGE = ROOT / "src/image_classifier"
SECTIONS = {"data", "model", "training", "augmentation", "evaluation", "export", "mlflow"}
# What sets the path before anything is imported, and decides nothing else.
EXEMPT = {ROOT / "stages/__init__.py", PACKAGE / "__init__.py"}


@cache
def imports(path: Path) -> frozenset[Path]:
    """The project's own files that a file names in an import, those of the packages above included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] != "image_classifier":
                continue
            place = PACKAGE.joinpath(*name.split(".")[1:])
            found |= {place.with_suffix(".py"), *(above / "__init__.py" for above in (place, *place.parents))}
    return frozenset(path for path in found if path.is_file() and path.stat().st_size)  # an empty one holds no code


def closure(path: Path) -> set[Path]:
    seen, todo = set(), {path}
    while todo:
        seen |= todo
        todo = set().union(*(imports(p) for p in todo)) - seen
    return seen


def code_deps(stage: str) -> list[Path]:
    """What dvc.yaml lists of a stage's code."""
    return [ROOT / dep for dep in PIPELINE["stages"][stage]["deps"] if dep.startswith(("src/", "stages/"))]


def declared_params(stage: str) -> list[str]:
    """What dvc.yaml lists of a stage's params."""
    listed = PIPELINE["stages"][stage]["params"]
    return [key for item in listed for key in (item["params.yaml"] if isinstance(item, dict) else [item])]


def problems(files: set[Path], listed: list[Path]) -> list[str]:
    """Files that no listed folder holds, and listed folders that hold none of the files."""
    outside = [f"{path} is imported and not listed" for path in files if not any(map(path.is_relative_to, listed))]
    unused = [
        f"{dep} is listed and not imported from" for dep in listed if not any(f.is_relative_to(dep) for f in files)
    ]
    return outside + unused


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_folders_of_the_import_closure(stage):
    listed = code_deps(stage)
    assert problems(closure(ROOT / f"stages/{stage}.py") - EXEMPT, listed) == []
    assert len(listed) <= 6


def test_the_guard_of_the_code_deps_sees_what_is_missing_and_what_is_too_much():
    files, listed = closure(ROOT / "stages/train.py") - EXEMPT, code_deps("train")
    for dep in listed:
        assert problems(files, [other for other in listed if other != dep]) != []
    assert problems(files, [*listed, PACKAGE / "reporting"]) != []
    assert problems(files, [PACKAGE / "tracking/server" if dep.name == "training" else dep for dep in listed]) != []


# A change in each of these files, and the stages that are then out of date by themselves.
CHANGES = {
    "tracking/model_run.py": {"evaluate", "export", "report"},  # uploads to MLflow
    "tracking/server/connection.py": {"train", "evaluate", "export", "report"},
    "reporting/report.md": {"report"},
    "training/augment.py": {"train"},
    "evaluation/intervals.py": {"evaluate"},  # the bootstrap
    "export/to_onnx.py": {"export"},
    "export/card.md": {"export"},
    "commands/predict.py": set(),
    "commands/sync.py": set(),
    "preparation/columns.py": {"prepare"},  # the wording of an error
    "model/scores.py": {"train", "evaluate", "export"},
    "core/errors.py": set(STAGES),
}


@pytest.mark.parametrize(("path", "stages"), CHANGES.items(), ids=CHANGES)
def test_a_change_makes_those_stages_out_of_date_that_use_it(project, path, stages):
    with open(project / "src/image_classifier" / path, "a") as file:
        file.write("\n")
    status = json.loads(command(project, "dvc", "status", "--json").stdout or "{}")
    changed = {
        stage
        for stage, found in status.items()
        if any("src/" in dep for one in found for dep in one.get("changed deps", ()))
    }
    assert changed == stages


def test_a_change_in_a_command_keeps_an_unfinished_training(project):
    facts = {"seed": 0}
    before = provenance.fingerprint("train", facts, ["torch"], project)
    for path, same in (("commands/doctor.py", True), ("reporting/report.py", True), ("training/augment.py", False)):
        with open(project / "src/image_classifier" / path, "a") as file:
            file.write("\n")
        assert (provenance.fingerprint("train", facts, ["torch"], project) == before) is same, path


@pytest.fixture
def keys_read(monkeypatch) -> set[str]:
    """The keys of params.yaml that are read from now on."""
    read: set[str] = set()
    load, loading = config.load, []

    def unwatched_load():  # the schema's own checks are no use of a value
        loading.append(True)
        try:
            return load()
        finally:
            loading.pop()

    def spy(self, name: str):
        if not loading and name == "as_yaml":  # all of it
            read.update(declared_params("report"))
        if not loading and name in type(self).model_fields and name not in SECTIONS:
            section = type(self).__name__.lower()
            read.add({"config": name, "augmentation": f"training.{section}.{name}"}.get(section, f"{section}.{name}"))
        return object.__getattribute__(self, name)

    monkeypatch.setattr(config, "load", unwatched_load)
    monkeypatch.setattr(Section, "__getattribute__", spy, raising=False)
    return read


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_those_that_the_code_reads(stage, project, change, keys_read):
    main = importlib.import_module(f"stages.{stage}").main
    main()
    if stage == "prepare":  # the key of another kind of source
        change({"data": {"source": "uoft-cs/cifar10", "revision": "0" * 40}})
        with pytest.raises(UserError):
            main()
    read = {key for key in keys_read if not key.startswith("mlflow.")}  # which no stage depends on
    read -= {"training.device", "training.num_processes"}  # where it runs, which decides no more than the machine does
    declared = declared_params(stage)
    undeclared = {key for key in read if not any(f"{key}.".startswith(f"{name}.") for name in declared)}
    unread = {name for name in declared if not any(f"{key}.".startswith(f"{name}.") for key in read)}
    assert (undeclared, unread) == (set(), set())


ROOMS = (
    "core",
    "images",
    "preparation",
    "model",
    "tracking",
    "training",
    "evaluation",
    "export",
    "reporting",
    "commands",
)
# Which rooms each room may import from; imports run one way.
MAY_IMPORT = {
    "core": set(),
    "images": {"core"},
    "preparation": {"core", "images"},
    "model": {"core", "images"},
    "tracking": {"core"},
    "training": {"core", "images", "model", "tracking"},
    "evaluation": {"core", "images", "model", "tracking"},
    "export": {"core", "images", "model", "tracking"},
    "reporting": {"core", "tracking"},
    "commands": set(ROOMS),
}
OWNERS = {
    "datasets": {"preparation"},
    "transformers": {"model", "training", "export", "commands"},
    "timm": {"training", "commands"},
    "mlflow": {"tracking", "training", "export"},
    "dvclive": {"training"},
    "matplotlib": {"evaluation", "reporting"},
    "onnxruntime": {"export"},
    "dvc": {"commands"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way_and_each_heavy_library_has_its_rooms(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top, *below = name.split(".")
                assert room in OWNERS.get(top, {room}), f"{path} imports {name}"
                assert top != "stages", f"{path} imports stages"
                if top == "image_classifier":
                    assert below[0] in MAY_IMPORT[room] | {room}, f"{path} imports {name}"


def test_files_and_functions_stay_small():
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"
    assert sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")) <= 7510


def test_the_supported_pythons_are_the_same_everywhere():
    versions = [f"3.{minor}" for minor in range(11, 15)]
    makefile, workflow = ((ROOT / name).read_text() for name in ("Makefile", ".github/workflows/ci.yaml"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert f"PYTHONS := python3 {' '.join(f'python{version}' for version in reversed(versions))}\n" in makefile
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in makefile
    assert YAML(typ="safe").load(workflow)["jobs"]["ci"]["strategy"]["matrix"]["python"] == versions
    assert "Python 3.11 to 3.14" in (ROOT / "README.md").read_text()


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def commands_of(page: str) -> list[str]:
    """The command lines that a page shows: in blocks, indented or inside a sentence."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return re.findall(
        r"(?:^\$ |^    (?=make |dvc |image-classifier )|`(?=(?:make|dvc|image-classifier) ))([^`#\n]+)", text, re.M
    )


def test_the_readme_is_short_and_has_the_commands_that_people_type():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
    for expected in ("make repro", "make test", "dvc exp run -S", "dvc metrics diff"):
        assert any(line.startswith(expected) for line in commands_of("README.md")), expected
    assert any(line.startswith("dvc plots show") for page in PAGES for line in commands_of(page))


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = set(re.findall(r'add_parser\(\s*"([a-z]+)"', (PACKAGE / "__main__.py").read_text()))
    for line in commands_of(page):
        words = line.split()
        if words[0] == "make" and "=" not in words[1]:
            assert words[1] in targets, line
        if words[0] == "image-classifier":
            assert words[1] in commands, line
        for recipe in re.findall(r"NAME=([a-z0-9-]+)", line):
            assert (ROOT / f"recipes/{recipe}.yaml").is_file(), line
        for key in re.findall(r"-S ([a-z_.]+)=", line):
            schema = config.Config
            for name in key.split("."):
                assert name in schema.model_fields, line
                schema = schema.model_fields[name].annotation


def anchors(page: Path) -> set[str]:
    """How a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()):
        if not target.startswith(("http://", "https://")):
            found = (ROOT / page).parent / target if target else ROOT / page
            assert found.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page} links to {target}#{anchor}"


@pytest.mark.committed
def test_the_params_of_the_tests_are_those_that_are_committed():
    assert DEFAULTS.read_text() == (ROOT / "params.yaml").read_text()


@pytest.mark.committed
def test_the_readmes_output_is_that_of_the_committed_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    (tmp_path / "SHA256SUMS").touch()
    monkeypatch.setattr(summary, "EXPORT", tmp_path)  # models are not in git
    readme = (ROOT / "README.md").read_text()
    summary.main()
    for line in capsys.readouterr().out.splitlines()[1:3]:
        assert line in readme
    epochs = tables.read_series(ROOT / "metrics/train")
    for epoch in (0, len(epochs) - 1):
        values = epochs.loc[epoch].to_dict()
        values |= {name: int(values[name]) for name in ("image_size", "val_image_size")}
        assert f"train: epoch {epoch + 1}/{len(epochs)} {trainer.in_words(values)}" in readme


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_lock_files_carry_hashes_and_no_address(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    packages = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)


@pytest.mark.parametrize(
    "stages",
    [
        {"prepare": {"transformers", "mlflow", "dvclive", "onnxruntime"}},
        {"report": {"torch", "transformers", "datasets", "dvclive", "onnxruntime"}},
        {"train": {"datasets", "onnxruntime", "timm"}, "evaluate": {"datasets", "onnxruntime"}, "export": {"datasets"}},
    ],
)
def test_a_stage_imports_only_what_it_uses(stages):
    """One after the other in one process: what a stage must not import none before it may either."""
    code = "import sys\n"
    for stage, unused in stages.items():
        code += f"import stages.{stage}; print(*sorted({unused!r} & set(sys.modules)))\n"
    assert command(ROOT, sys.executable, "-c", code, PYTHONPATH="src").stdout.split() == []
