"""Measure how the code is built: calls from a command to its arithmetic, names, comments, documentation, size.

    python scripts/measure_code.py [--json FILE] [--names]

Corridors are measured while real work runs (``sys.setprofile`` in every thread); all else is read with ``ast``. Nothing
here knows the tree beyond the package's name and the functions that people call, so that two trees can be compared.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "featurecache"

PRIVATE_WORDS = (
    *(
        "affording",
        "answering",
        "answers",
        "beginning",
        "beside",
        "cell",
        "certainties",
        "certainty",
        "dear",
        "division",
    ),
    *("divisions", "divided", "farewell", "figures", "goodness", "joining", "judge", "judged", "judging", "labelled"),
    *("labelling", "look", "looks", "making", "narrowing", "part", "parts", "place", "places", "question", "questions"),
    *("room", "said", "steadiness", "strength", "strengths", "told", "trainings", "undivided", "wanted", "ways"),
)
"""Words that the field says otherwise: place -> index, said of -> targets, goodness -> score, room -> memory budget."""
SEVERAL_IDEAS = ("Plan", "Progress", "Rows", "Step", "place", "probe", "provenance_of", "stages", "views")
CALLBACKS = ("_missing", "add", "inputs_of", "on_rows")
"""Functions that extraction hands down to be called back through, by the names of their parameters and attributes."""


_NO_CODE = {
    *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER),
}


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


# --- corridors -------------------------------------------------------------------------------------------------------


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(str(PACKAGE))


def _stack(frame: FrameType | None) -> list[tuple[str, str]]:
    """Return file and function of each frame of ours from the outermost to this one."""
    found = []
    while frame is not None:
        if _is_ours(frame) and not frame.f_code.co_name.startswith("<"):
            found.append((str(Path(frame.f_code.co_filename).relative_to(PACKAGE)), frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


def deepest(
    call: Callable[[], object], start: str, is_end: Callable[[FrameType, str, Any], bool]
) -> list[tuple[str, str]]:
    """Return the longest corridor of ours from function ``start`` to the first frame for which ``is_end`` holds.

    A thread continues the corridor of whoever submitted its work: the frames of both are counted.
    """
    handed: list[tuple[str, str]] = []
    corridors: list[list[tuple[str, str]]] = []
    main = threading.get_ident()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_call"):
            return
        code = frame.f_code
        if code.co_name == "submit" and "concurrent" in code.co_filename and threading.get_ident() == main:
            handed[:] = _stack(frame.f_back)
        if not is_end(frame, event, argument):
            return
        stack = _stack(frame)
        if threading.get_ident() != main:
            stack = [*handed, *stack]
        names = [name for _, name in stack]
        if start in names:
            corridors.append(stack[names.index(start) :])

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert corridors, f"nothing that {start} called was the end of the corridor"
    return max(corridors, key=len)


def _images(folder: Path, number: int) -> Path:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for index in range(number):
        colour = ("red", "green")[index % 2]
        path = folder / colour / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 90, (40, 40, 3), np.uint8)
        pixels[..., index % 2] += 120
        Image.fromarray(pixels).save(path)
    return folder


def corridors() -> dict[str, list[tuple[str, str]]]:
    """Walk the two corridors that people wait for: features to a shard, and a fit to its objective."""
    import featurecache
    from featurecache import FeatureStore

    def is_objective(frame: FrameType, event: str, _: Any) -> bool:
        # What the objective itself calls belongs to it.
        return event == "call" and _is_ours(frame) and any("objective" in file for file, _ in _stack(frame))

    def is_shard(frame: FrameType, event: str, argument: Any) -> bool:
        # The first bytes of a shard are those that h5py lays out.
        code = frame.f_code
        if event != "call" or code.co_name != "__init__" or not code.co_filename.endswith("h5py/_hl/files.py"):
            return False
        mode = frame.f_locals.get("mode")
        return mode in ("w", "x", "w-") and any("shard" in file for file, _ in _stack(frame))

    with tempfile.TemporaryDirectory() as folder:
        source, cache = _images(Path(folder) / "photos", 24), Path(folder) / "cache"
        network = "torchvision:squeezenet1_1"

        def extract() -> object:
            return featurecache.extract(source, cache, backbone=network, init="random")

        to_shard = deepest(extract, "extract", is_shard)
        store = FeatureStore.open(cache)
        task = _folder_task(store, source)
        sets = store.feature_sets()

        def train() -> object:
            return featurecache.train_heads(store, task, sets, ["logistic"])

        to_objective = deepest(train, "train_heads", is_objective)
    return {"train_heads -> objective": to_objective, "extract -> shard": to_shard}


def _folder_task(store: Any, source: Path) -> Any:
    """Make a task of the folders' names by the command line, which stays while functions move."""
    from featurecache.cli import main

    assert main(["task", "add", str(store.path), "colour", "--from-folders"]) == 0, source
    opener = getattr(store, "task", None) or store.tasks.open
    return opener("colour")


# --- reading ---------------------------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def without_docstring(node: Any) -> list[ast.stmt]:
    body = list(node.body)
    return body[1:] if ast.get_docstring(node) is not None else body


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of docstrings, those of attributes among them: every expression that is only a text."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def code_and_comments(path: Path) -> tuple[int, int]:
    """Return lines of code, and lines that have a comment which says something to people."""
    text = path.read_text()
    skipped = docstring_lines(ast.parse(text))
    code: set[int] = set()
    comments: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            lines = set(range(token.start[0], token.end[0] + 1))
            if token.type == tokenize.COMMENT:
                if not re.match(r"#\s*(type:|noqa|fmt:|mypy:|!)", token.string):
                    comments |= lines
            elif token.type not in _NO_CODE:
                code |= lines
    return len(code - skipped), len(comments)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def is_documented(node: ast.FunctionDef | ast.AsyncFunctionDef, described: str) -> bool:
    return all(re.search(rf"\b{re.escape(name)}\b", described) for name in parameters(node))


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Yield public functions and methods of public classes, and the text where their parameters are described."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    if each.name == "__init__":
                        yield each, f"{ast.get_docstring(node) or ''}\n{ast.get_docstring(each) or ''}"
                    elif not each.name.startswith("_"):
                        yield each, ast.get_docstring(each) or ""


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def files_of_heads() -> dict[str, int]:
    """Count for each head the files that spell its name or its class: what to touch for a new one.

    Its own file and a line of the registry are two.
    """
    from featurecache import list_heads, make_head

    classes = {name: type(make_head(name)).__name__ for name in list_heads() if name not in ("majority",)}
    found: dict[str, int] = {}
    for name, cls in classes.items():
        spelled = re.compile(rf"""["'\s(,|]({name}|{cls})["'\s),:|]""")
        own = [path for path in sources() if spelled.search(_code_only(path)) and "cli" not in path.parts]
        found[name] = len(own)
    return found


def _code_only(path: Path) -> str:
    """Return a file without its comments, docstrings and imports."""
    text = path.read_text()
    tree = ast.parse(text)
    skipped = docstring_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return "\n".join(
        re.sub(r"\s#.*", "", line) for number, line in enumerate(text.splitlines(), 1) if number not in skipped
    )


def reading() -> dict[str, Any]:
    """Measure what can be read without running it."""
    lines = comments = all_lines = num_functions = few_statements = few_lines = documented = many_parameters = 0
    loose = dynamic = 0
    private: dict[str, set[str]] = {word: set() for word in PRIVATE_WORDS}
    ideas: dict[str, int] = dict.fromkeys(SEVERAL_IDEAS, 0)
    upward: dict[str, set[str]] = {name: set() for name in CALLBACKS}
    for path in sources():
        text = path.read_text()
        tree = ast.parse(text)
        where = str(path.relative_to(PACKAGE))
        here, said = code_and_comments(path)
        lines, comments = lines + here, comments + said
        all_lines += len(text.splitlines())
        loose += len(re.findall(r"dict\[str, Any\]", _code_only(path)))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "setattr")
            ):
                dynamic += not isinstance(node.args[1], ast.Constant)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in ideas:
                ideas[node.name] += 1
            if "extraction" in path.parts and isinstance(node, ast.AnnAssign | ast.arg):
                name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
                annotation = node.annotation and ast.unparse(node.annotation)
                if name in upward and annotation and ("Callable" in annotation or annotation in ("GiveRows", "Plan")):
                    upward[name].add(where)
        for name in identifiers(tree):
            for word in set(words_of(name)) & private.keys():
                private[word].add(name)
        for word in set(words_of(path.stem)) & private.keys():
            private[word].add(path.name)
        for node in functions(tree):
            num_functions += 1
            body = without_docstring(node)
            few_statements += len(body) <= 3 and all(not hasattr(each, "body") for each in body)
            few_lines += bool(body) and (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 3
        for node, described in public_functions(tree):
            if len(parameters(node)) >= 3:
                many_parameters += 1
                documented += is_documented(node, described)
    used = {word: sorted(names) for word, names in private.items() if names}
    return {
        "code lines": lines,
        "lines with comments and docstrings": all_lines,
        "comments per 100 lines of code": round(100 * comments / lines, 2),
        "functions of 3 statements or fewer, %": round(100 * few_statements / num_functions, 1),
        "functions of 3 lines or fewer, %": round(100 * few_lines / num_functions, 1),
        "functions with 3 parameters or more": many_parameters,
        "of them documented, %": round(100 * documented / many_parameters, 1),
        "dict[str, Any] per 1,000 lines": round(1000 * loose / all_lines, 2),
        "getattr and setattr of computed names per 1,000 lines": round(1000 * dynamic / all_lines, 2),
        "private words in names": {word: len(names) for word, names in used.items()},
        "names with private words": sum(map(len, used.values())),
        "definitions of words with several ideas": ideas,
        "callbacks upward": {name: sorted(where) for name, where in upward.items() if where},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--names", action="store_true", help="list every frame")
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    figures: dict[str, Any] = reading()
    for name, stack in corridors().items():
        figures[name] = {
            "frames": len(stack),
            "files": len({file for file, _ in stack}),
            "of them inside store": sum(file.startswith("store/") for file, _ in stack),
        }
        if arguments.names:
            figures[name]["stack"] = [f"{file}:{function}" for file, function in stack]
    figures["files that spell a head"] = files_of_heads()
    for name, value in figures.items():
        print(f"{name:45} {json.dumps(value) if isinstance(value, dict) else value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
