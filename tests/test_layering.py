"""The rules of docs/architecture.md, read from the imports."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

from skin_jax.data.classes import HAM10000

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skin_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path: path.relative_to(ROOT).as_posix() for path in MODULES}
ENTRY_POINTS = {
    "skin_jax/__main__.py",
    "skin_jax/main.py",
    "skin_jax/prepare.py",
    "skin_jax/generate.py",
    "skin_jax/predict.py",
    "skin_jax/export.py",
    "skin_jax/reader_study.py",
    "skin_jax/serve.py",
    "skin_jax/study/__main__.py",
    "skin_jax/eval/__main__.py",
    "skin_jax/eval/baselines.py",
    "skin_jax/eval/calibrate.py",
    "skin_jax/training/__main__.py",
}


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, inside a function) of every import; `from a import b` counts as a and a.b."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module, inside))
            found.extend((f"{node.module}.{alias.name}", inside) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text()), False)
    return found


def importers(name: str) -> dict[str, bool]:
    """Modules that import `name` or something below it -> whether only inside functions."""
    users: dict[str, bool] = {}
    for path in MODULES:
        inside = [
            where for found, where in imports(path) if found == name or found.startswith(f"{name}.")
        ]
        if inside:
            users[NAMES[path]] = all(inside)
    return users


def test_the_reader_of_imports_finds_them():
    assert importers("orbax")
    assert importers("numpy")["skin_jax/data/pipeline.py"] is False


def test_tensorflow_is_imported_in_two_places_and_only_inside_functions():
    places = ("skin_jax/data/pipeline.py", "skin_jax/exports/tflite.py")
    assert importers("tensorflow") == dict.fromkeys(places, True)


@pytest.mark.parametrize(
    "room",
    [
        "models/",
        "tasks/losses.py",
        "tasks/augment.py",
        "tasks/diffaugment.py",
        "eval/metrics.py",
        "eval/comparison.py",
        "eval/quality.py",
        "eval/readers.py",
    ],
    ids=lambda r: r.strip("/"),
)
def test_pure_rooms_know_no_configuration_no_files_and_no_tensorflow(room):
    forbidden = ("ml_collections", "absl", "skin_jax.config", "pathlib", "os", "tensorflow")
    rooms = {p for p in MODULES if NAMES[p].startswith(f"skin_jax/{room}")}
    rooms -= {PACKAGE / "models" / "pretrained.py"}  # reads weight files, and says so
    assert rooms
    for path in rooms:
        found = {name.split(".")[0] for name, _ in imports(path)} | {n for n, _ in imports(path)}
        assert not found.intersection(forbidden), NAMES[path]
        assert "open(" not in path.read_text(), NAMES[path]


def test_a_config_dict_stops_where_the_architecture_says():
    allowed = {
        "skin_jax/api.py",
        "skin_jax/base/command.py",
        "skin_jax/base/settings.py",
        "skin_jax/config.py",
        "skin_jax/main.py",
        "skin_jax/eval/evaluators.py",
        "skin_jax/eval/runs.py",
        "skin_jax/study/__main__.py",
        "skin_jax/study/plan.py",
        "skin_jax/training/loop.py",
        "skin_jax/training/run.py",
    }
    users = {name for name in importers("ml_collections") if not name.startswith("skin_jax/tasks/")}
    assert users <= allowed


@pytest.mark.parametrize(
    ("room", "others"),
    [
        (
            "base",
            [
                "config",
                "data",
                "models",
                "tasks",
                "training",
                "eval",
                "report",
                "exports",
                "study",
                "api",
            ],
        ),
        ("data", ["models", "tasks", "training", "eval", "report", "exports", "study", "api"]),
        ("models", ["data", "tasks", "training", "eval", "report", "exports", "study", "api"]),
        ("tasks", ["data", "training", "eval", "report", "exports", "study", "api"]),
        ("training", ["eval", "report", "exports", "study", "api"]),
        ("eval", ["report", "exports", "study", "api"]),
        ("report", ["training", "exports", "study", "api"]),
        ("exports", ["study", "api"]),
        ("study", ["exports", "api"]),
    ],
)
def test_arrows_between_rooms_point_down(room, others):
    for other in others:
        users = [
            name
            for name in importers(f"skin_jax.{other}")
            if name.startswith(f"skin_jax/{room}/") and name not in ENTRY_POINTS
        ]
        assert users == [], f"{room} imports {other}"


def test_only_tasks_know_their_kind():
    """What differs between tasks is asked of them."""
    for path in MODULES:
        if NAMES[path].startswith("skin_jax/tasks/"):
            continue
        text = path.read_text()
        assert not re.search(r"isinstance\([^)\n]*task", text), NAMES[path]
        found = {name for name, _ in imports(path)}
        kinds = {f"skin_jax.tasks.{kind}" for kind in ("sgan", "dcgan", "projected", "classifier")}
        assert not found & kinds, NAMES[path]


def test_names_and_numbers_of_classes_stand_with_the_data_alone():
    """And in paper A's tables; other sevens are kernels, places, widths, sizes of type."""
    paper = "skin_jax/report/run.py"
    sevens = {"eval/quality.py": 1, "models/densenet.py": 1, "models/resnet.py": 1}
    sevens |= {"tasks/augment.py": 2, "tasks/diffaugment.py": 1, "prepare.py": 1}
    sevens |= {"report/figures.py": 1}
    for path in MODULES:
        if NAMES[path].startswith("skin_jax/data/"):
            continue
        found = [
            n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
        ]
        names = {v.lower() for v in found if isinstance(v, str)} & {*HAM10000.names, "melanoma"}
        assert names == (set(HAM10000.names) if NAMES[path] == paper else set()), NAMES[path]
        count = sum(type(value) is int and value == 7 for value in found)
        assert count == sevens.get(NAMES[path].removeprefix("skin_jax/"), 0), NAMES[path]


def test_nothing_imports_an_entry_point():
    for entry_point in ENTRY_POINTS:
        module = entry_point.removesuffix(".py").replace("/", ".")
        assert importers(module) == {}


def test_only_the_page_imports_gradio_and_only_its_command_imports_the_page():
    assert set(importers("gradio")) == {"skin_jax/page.py"}
    assert importers("skin_jax.page") == {"skin_jax/serve.py": True}


@pytest.mark.parametrize("package", ["wandb", "trackio", "mlflow"])
def test_packages_of_trackers_are_imported_in_one_place_and_only_inside_functions(package):
    assert importers(package) == {"skin_jax/training/trackers.py": True}


def test_only_checkpoint_imports_orbax():
    assert set(importers("orbax")) == {"skin_jax/training/checkpoints.py"}


def test_no_module_is_imported_by_a_string():
    for path in MODULES:
        found = {name for name, _ in imports(path)}
        assert "importlib.import_module" not in found, NAMES[path]
        assert "import_module(" not in path.read_text(), NAMES[path]
        assert "__import__(" not in path.read_text(), NAMES[path]


def test_every_folder_of_modules_goes_into_the_wheel():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES}
    assert {*setup["packages"]} == folders | {"skin_jax.configs"}
    assert (ROOT / setup["package-dir"]["skin_jax.configs"] / "demo.py").is_file()


def test_every_module_of_the_package_has_a_docstring():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), NAMES[path]


def test_the_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    missing = [NAMES[p] for p in MODULES if p.stem != "__init__" and p.name not in text]
    assert missing == []
