"""Guards of the design: what is written down stays true."""

import ast
import importlib
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, command
from ruamel.yaml import YAML

from image_classifier import config
from image_classifier.errors import UserError

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = list(PIPELINE["stages"])
PACKAGE = ROOT / "src/image_classifier"
SECTIONS = {"data", "model", "training", "augmentation", "evaluation", "export", "mlflow"}


@cache
def imports(path: Path) -> frozenset[Path]:
    """The project's own modules that a file names in an import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "image_classifier":
            parts = node.module.split(".")[1:]
            names = [*parts] or [alias.name for alias in node.names]
            found |= {PACKAGE / f"{name}.py" for name in names} | {PACKAGE / "__init__.py"}
    return frozenset(path for path in found if path.exists())


def closure(path: Path) -> set[Path]:
    seen, todo = set(), {path}
    while todo:
        seen |= todo
        todo = set().union(*(imports(p) for p in todo)) - seen
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_import_closure(stage):
    deps = {dep for dep in PIPELINE["stages"][stage]["deps"] if dep.endswith(".py")}
    expected = closure(ROOT / f"stages/{stage}.py") | {ROOT / "stages/__init__.py"}
    assert deps == {str(path.relative_to(ROOT)) for path in expected}


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
        if not loading and name in type(self).model_fields and name not in SECTIONS:
            section = type(self).__name__.lower()
            read.add({"config": name, "augmentation": f"training.{section}.{name}"}.get(section, f"{section}.{name}"))
        return object.__getattribute__(self, name)

    monkeypatch.setattr(config, "load", unwatched_load)
    monkeypatch.setattr(config.Section, "__getattribute__", spy, raising=False)
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
    declared = PIPELINE["stages"][stage]["params"]
    undeclared = {key for key in read if not any(f"{key}.".startswith(f"{name}.") for name in declared)}
    unread = {name for name in declared if not any(f"{key}.".startswith(f"{name}.") for key in read)}
    assert (undeclared, unread) == (set(), set())


def test_only_one_module_reads_params_and_only_their_owners_import_the_heavy_libraries():
    owners = {"transformers": {"models", "engine", "export"}, "mlflow": {"tracking", "tracker"}, "dvclive": {"tracker"}}
    owners |= {
        "datasets": {"sources", "splits", "preparation"},
        "dvc": {"compare"},
        "matplotlib": {"pictures"},
        "ruamel": {"config", "sources"},
        "onnxruntime": {"export", "quantization"},
    }
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert path.stem in owners.get(top, {path.stem}), f"{path.name} imports {name}"
                assert top != "stages", f"{path.name} imports stages"


def test_the_project_stays_small():
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
    assert sum(len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")) <= 4700
    assert len(re.findall(r"^\.PHONY", (ROOT / "Makefile").read_text(), re.M)) <= 15


def test_the_supported_pythons_are_the_same_everywhere():
    versions = [f"3.{minor}" for minor in range(11, 15)]
    makefile, workflow = ((ROOT / name).read_text() for name in ("Makefile", ".github/workflows/ci.yaml"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert f"PYTHONS := python3 {' '.join(f'python{version}' for version in reversed(versions))}\n" in makefile
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in makefile
    assert YAML(typ="safe").load(workflow)["jobs"]["ci"]["strategy"]["matrix"]["python"] == versions
    assert "Python 3.11 to 3.14" in (ROOT / "README.md").read_text()


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = readme_commands()
    for expected in ("make repro", "make test", "dvc exp run -S", "dvc metrics diff", "dvc plots show"):
        assert any(line.startswith(expected) for line in commands), expected
    for line in commands:
        words = line.split()
        if words[0] == "make":
            assert words[1] in targets, line
        for key in re.findall(r"-S ([a-z_.]+)=", line):
            section, name = key.split(".")
            assert name in config.Config.model_fields[section].annotation.model_fields, line


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / target).exists(), f"{name} links to {target}"


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
        {"train": {"datasets", "onnxruntime"}, "evaluate": {"datasets", "onnxruntime"}, "export": {"datasets"}},
    ],
)
def test_a_stage_imports_only_what_it_uses(stages):
    """One after the other in one process: what a stage must not import none before it may either."""
    code = "import sys\n"
    for stage, unused in stages.items():
        code += f"import stages.{stage}; print(*sorted({unused!r} & set(sys.modules)))\n"
    assert command(ROOT, sys.executable, "-c", code, PYTHONPATH="src").stdout.split() == []
