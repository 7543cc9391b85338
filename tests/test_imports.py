"""Imports point one way, and light things stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "metanet": ROOT / "metanet",
    "metanet_zoo": ROOT / "zoo/metanet_zoo",
    "metanet_tasks": ROOT / "tasks/metanet_tasks",
}
FORBIDDEN = {
    "metanet": {
        "metanet_zoo",
        "metanet_tasks",
        "lightning",
        "huggingface_hub",
        "transformers",
        "torchmetrics",
        "rich",
    },
    "metanet_zoo": {"metanet_tasks", "lightning", "torchmetrics"},
    "metanet_tasks": set[str](),
}
# In the core every module may import only from modules further left.
LAYERS = [
    "axis",
    "skeleton",
    "units",
    "leaf",
    "action",
    "closure",
    "notation",
    "spec",
    "blocks",
    "freedoms",
    "elements",
    "group",
    "features",
    "canonical",
    "graphs",
    "nn",
    "testing",
]


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports when it runs (type-checking blocks left out)."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & FORBIDDEN[package], f"{path} imports {sorted(roots & FORBIDDEN[package])}"


def test_core_modules_import_one_way() -> None:
    def layer(name: str) -> int | None:
        parts = name.split(".")
        return (
            LAYERS.index(parts[1])
            if parts[0] == "metanet" and len(parts) > 1 and parts[1] in LAYERS
            else None
        )

    for path in PACKAGES["metanet"].rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = layer(".".join(parts))
        for name in imported(path):
            other = layer(name)
            if own is not None and other is not None and LAYERS[own] != "testing":
                assert other <= own, f"{path} imports {name}, which stands above it"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_core_import_is_light() -> None:
    loaded = loaded_after("import metanet; metanet.WeightSpec; metanet.spec_of; metanet.canonicalize")
    assert "torch" in loaded
    assert not loaded & {
        "lightning",
        "huggingface_hub",
        "torch_geometric",
        "metanet_zoo",
        "rich",
        "matplotlib",
    }


def test_import_of_the_names_alone_loads_no_torch() -> None:
    assert "torch" not in loaded_after("import metanet, metanet_zoo, metanet_tasks.cli")


def test_sources_fit_their_files() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES.values()
        for path in package.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long, f"a file past about 400 lines wants a second noun: {long}"
