"""Nothing from the store is ever unpickled, but checkpoints of this run whose hash the ledger knows."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "atlas_dist"
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
MAY_LOAD_CHECKPOINTS = {"train/checkpoint.py"}
"""torch.load is allowed here only, and there with weights_only=True."""


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_module_imports_a_pickle() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {name.split(".")[0] for name in names} & FORBIDDEN
            assert not used, f"{path} imports {used}"


def test_torch_load_is_used_in_one_place_and_never_trusts() -> None:
    for path in PACKAGE.rglob("*.py"):
        for call in calls(ast.parse(path.read_text())):
            where = ast.unparse(call.func)
            if where in ("torch.load", "np.load", "numpy.load"):
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                if where != "torch.load":
                    assert options.get("allow_pickle", "False") == "False", f"{path}: {ast.unparse(call)}"
                    continue
                name = path.relative_to(PACKAGE).as_posix()
                assert name in MAY_LOAD_CHECKPOINTS, f"{path}: {ast.unparse(call)}"
                assert options.get("weights_only") == "True", f"{path}: {ast.unparse(call)}"
