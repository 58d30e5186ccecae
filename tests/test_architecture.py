"""The import arrows of the design, read off the import graph."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# every layer may import those before it and itself, never one behind it
PROFILE_LAYERS = (
    ("case", "errors", "exit_codes", "families", "files", "hardware", "memory", "operators", "running_modules"),
    ("source",),
    ("kernel_case", "typed"),
    ("kernel_targets",),
    ("kernel_cuda_result",),
    ("kernel_routes",),
    ("pieces", "workload", "peers"),
    ("kernel_workload",),
    ("machine", "cost", "measure"),
    ("compare", "machine_store", "deviation_store"),
    ("result", "kernel_result", "formula_result", "time_result"),
    ("analysis", "growing", "comparison", "machine_measuring"),
    ("measuring",),
    ("study",),
    ("isolated", "auto_sizes"),
    ("kernel_measuring",),
    ("kernel_crossover", "kernel_models", "kernel_cuda"),
    ("kernel_cuda_process",),
    ("sweep", "kernel_sweep", "formula_sweep", "time_sweep", "selftest", "audit", "fitting", "fitting_worker"),
    ("report",),
    ("versions_worker",),
    ("versions",),
    ("arguments", "api", "api_time", "api_place", "api_study"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
VISION_LAYERS = (
    ("version", "terms", "pattern", "suggest", "imagenet", "files"),
    ("spec",),
    ("presets",),
    ("_C",),
    ("ops",),
    ("layers",),
    ("backbone_terms", "features"),
    ("timm_interface",),
    ("backbone",),
    ("factory",),
    ("timm_models",),
    ("train",),
)
# parts of one layer that must not know each other either
STRANGERS = (("cost", "measure"),)


def imports_of(path):
    """(module, whether it is imported when the file is) for every import in a file, TYPE_CHECKING blocks aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(package):
    """Every file of a package with the part (first module below the package) that it belongs to."""
    for path in sorted((ROOT / package).rglob("*.py")):
        inner = path.relative_to(ROOT / package)
        if inner.name != "__init__.py" or len(inner.parts) > 1:
            yield path, inner.parts[0].removesuffix(".py")


def used_parts(path, package):
    names = {module.split(".")[1] for module in imports_of(path) if module.startswith(f"{package}.")}
    return {name for name in names if (ROOT / package / name).is_dir() or (ROOT / package / f"{name}.py").exists()}


@pytest.mark.parametrize(("package", "layers"), [("sola_profile", PROFILE_LAYERS), ("sola_vision", VISION_LAYERS)])
def test_imports_only_point_backwards(package, layers):
    level = {name: number for number, names in enumerate(layers) for name in names}
    for path, part in parts(package):
        assert part in level or not path.stat().st_size, f"{path}: {part} has no place in the layers of this test"
        for used in used_parts(path, package) - {part}:
            assert level[used] <= level[part], f"{path} imports {package}.{used}"
            assert (used, part) not in STRANGERS, f"{path} imports {package}.{used}"
            assert (part, used) not in STRANGERS, f"{path} imports {package}.{used}"


def test_sola_vision_never_imports_sola_profile_nor_its_libraries():
    allowed = {"sola_vision", "torch", "numpy", "safetensors"}
    # reading images, augmenting them, progress and a command are the trainer's alone
    also = {"train": {"PIL", "timm", "rich", "click"}, "timm_models": {"timm"}}
    for path, part in parts("sola_vision"):
        known = allowed | sys.stdlib_module_names | also.get(part, set())
        for module in imports_of(path):
            assert module.split(".")[0] in known, f"{path} imports {module}"


def test_specs_patterns_and_presets_need_no_torch():
    for name in ("pattern", "spec", "presets", "suggest", "terms", "imagenet", "files", "version", "__init__"):
        tree = ast.parse((ROOT / "sola_vision" / f"{name}.py").read_text(encoding="utf-8"))
        eager = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in eager:
            text = ast.unparse(node)
            assert "torch" not in text, f"sola_vision/{name}.py: {text}"


def test_cases_and_commands_load_without_torch():
    """The help is fast because nothing heavy is imported before a command runs."""
    heavy = {"torch", "numpy", "scipy", "sympy", "altair", "vl_convert", "fvcore", "rich", "jinja2", "psutil"}
    light = [
        f"sola_profile/{name}.py"
        for name in (
            "case",
            "source",
            "exit_codes",
            "kernel_case",
            "kernel_targets",
            "kernel_cuda_result",
            "kernel_routes",
            "memory",
            "cli",
            "report/__init__",
        )
    ]
    light += [
        f"sola_profile/commands/{name}.py"
        for name in (
            "__init__",
            "output",
            "profile",
            "kernels",
            "kernels_cuda",
            "formula",
            "selftest",
            "audit",
            "fit",
            "trace",
            "compare",
            "gates",
            "place",
            "study",
        )
    ]
    light += [f"sola_profile/commands/{name}.py" for name in ("machine", "predict", "ceilings")]
    light += [f"sola_vision/train/{name}.py" for name in ("__init__", "__main__", "command", "config", "proxy")]
    for name in light:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {module.split(".")[0] for module in modules} & heavy, f"{name}: {ast.unparse(node)}"
