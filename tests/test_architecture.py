"""Architecture: who imports whom, how long files and functions are, what names and words they do without."""

import ast
import graphlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

from tests.arrows import CORE_ARROWS

ROOT = Path(__file__).parents[1]

PACK_ARROWS = {"__init__.py": {"nodes"}, "nodes": {"nodes", "sdvideo_core"}}

BRIDGE = "nodes/comfy_bridge"
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers"}
COMFYUI |= {"nodes", "server", "aiohttp"}
NETWORK = {"ftplib", "http", "smtplib", "socket", "socketserver", "ssl", "urllib", "xmlrpc"}
STANDARD_LIBRARY = sys.stdlib_module_names - NETWORK
IMPORT_NAMES = {"open_clip_torch": "open_clip", "Pillow": "PIL"}  # where not the distribution's own
OPTIONAL = {"xformers", "bitsandbytes"}

PACK = ("__init__.py", "sdvideo_core", "nodes")
ALL = (*PACK, "web", "tests", "benchmarks")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES, MAX_MEDIAN_LINES, MAX_90TH_PERCENTILE_LINES = 60, 10, 30
MAX_DOCSTRING_COLUMNS = 120
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}
UNWANTED_CALLS = {"print", "__import__", "import_module"}
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|home|Users)/\w")
NOT_OURS = re.compile(r"\.git|\.venv|\.\w+_cache|__pycache__|build|dist|node_modules|output|.*\.egg-info")


@dataclass(frozen=True)
class Source:
    path: PurePosixPath  # from the pack's root
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))


Check = Callable[[Source], Iterator[str]]


def read(path: Path) -> Source:
    name = PurePosixPath(path.relative_to(ROOT).as_posix())
    return Source(name, path.read_text(encoding="utf-8", errors="replace"))


def sources(*places: str, suffixes: Sequence[str] = (".py",)) -> list[Source]:
    """The files at these places, which are files or folders of the pack."""
    paths = [path for place in places for path in (ROOT / place, *sorted((ROOT / place).rglob("*")))]
    return [read(path) for path in paths if path.is_file() and path.suffix in suffixes]


def text_files(folder: Path = ROOT) -> Iterator[Source]:
    for path in sorted(folder.iterdir()):
        if NOT_OURS.fullmatch(path.name) or path.is_symlink():
            continue
        if path.is_dir():
            yield from text_files(path)
        elif b"\0" not in path.read_bytes()[:8192]:
            yield read(path)


def dependencies(pyproject: str) -> list[str]:
    # A list of strings is the same in TOML as in Python, whose tomllib is newer than 3.10.
    [block] = re.findall(r"^dependencies = (\[.*?^\])", pyproject, re.MULTILINE | re.DOTALL)
    return ast.literal_eval(block)


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


PYPROJECT = read(ROOT / "pyproject.toml").text
DISTRIBUTIONS = {distribution(requirement) for requirement in dependencies(PYPROJECT)}
LIBRARIES = STANDARD_LIBRARY | OPTIONAL | {IMPORT_NAMES.get(name, name) for name in DISTRIBUTIONS}


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported; names within the pack start with a dot."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, full_name(source.path, node, alias.name)) for alias in node.names)


def full_name(path: PurePosixPath, node: ast.ImportFrom, name: str) -> str:
    name = f"{node.module}.{name}" if node.module else name
    if not node.level:
        return name
    package = path.parent.parts
    if node.level > len(package) + 1:
        return f"..{name}"  # beyond the pack
    return ".".join(["", *package[: len(package) + 1 - node.level], name])


def layer(parts: Sequence[str]) -> str:
    return parts[1].removesuffix(".py")


def may_import(path: PurePosixPath, name: str) -> bool:
    area, *_ = path.parts
    if not name.startswith("."):
        comfyui = COMFYUI if path.is_relative_to(BRIDGE) else {"comfy_api"} if area == "nodes" else set()
        return name.split(".")[0] in LIBRARIES | comfyui
    target = name[1:].split(".")
    if area != "sdvideo_core":
        return target[0] in PACK_ARROWS[area]
    return target[0] == area and layer(target) in CORE_ARROWS[layer(path.parts)] | {layer(path.parts)}


def functions(source: Source) -> Iterator[tuple[int, str, int]]:
    """Line, name and number of lines of every function."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1


# Checks yield what is wrong, led by the line where there is one.


def check_imports(source: Source) -> Iterator[str]:
    if source.path.parts[0] == "sdvideo_core" and layer(source.path.parts) not in CORE_ARROWS:
        yield "has no row in CORE_ARROWS"
        return
    for line, name in imports(source):
        if not may_import(source.path, name):
            yield f"{line}: may not import {name}"


def check_file_length(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"has {lines} lines, more than {MAX_FILE_LINES}"


def check_function_length(source: Source) -> Iterator[str]:
    for line, name, lines in functions(source):
        if lines > MAX_FUNCTION_LINES:
            yield f"{line}: {name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


def check_docstring(source: Source) -> Iterator[str]:
    first, *_ = (ast.get_docstring(source.tree) or "").splitlines() or [""]
    if not first:
        yield "has no docstring that starts by saying what it is"
    elif len(first) > MAX_DOCSTRING_COLUMNS:
        yield f"1: its docstring's first line is longer than {MAX_DOCSTRING_COLUMNS}"


def check_name(source: Source) -> Iterator[str]:
    if empty := EMPTY_NAMES & {part.split(".")[0].lower() for part in source.path.parts}:
        yield f"is named {', '.join(empty)}, which says nothing of what is in it"


def check_statements(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert; raise an error that says what to do"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: bare except"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in UNWANTED_CALLS:
            yield f"{node.lineno}: {ast.unparse(node.func)}()"


def check_machine_paths(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := MACHINE_PATH.search(line):
            yield f"{number}: a path of somebody's machine: {found.group()}"


def check_function_spread(files: list[Source]) -> Iterator[str]:
    lengths = [lines for source in files for _, _, lines in functions(source)]
    half, tenth = statistics.median(lengths), statistics.quantiles(lengths, n=10)[8]
    if half > MAX_MEDIAN_LINES:
        yield f"half of the functions have {half} or more lines; at most {MAX_MEDIAN_LINES}"
    if tenth > MAX_90TH_PERCENTILE_LINES:
        yield f"a tenth of the functions has {tenth} or more lines; at most {MAX_90TH_PERCENTILE_LINES}"


def check_fields_read(config: Source, readers: list[Source]) -> Iterator[str]:
    nodes = [node for source in readers for node in ast.walk(source.tree)]
    called = {node.func for node in nodes if isinstance(node, ast.Call)}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and node not in called]
    read_names = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    for owner in ast.walk(config.tree):
        for field in owner.body if isinstance(owner, ast.ClassDef) else []:
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) not in read_names:
                yield f"{field.lineno}: nothing reads {owner.name}.{ast.unparse(field.target)}"


def check_requirements(requirements: str, pyproject: str) -> Iterator[str]:
    listed = {line for line in requirements.splitlines() if line and not line.startswith("#")}
    needed = {line for line in dependencies(pyproject) if distribution(line) != "torch"}
    yield from (f"requirements.txt lacks {line}" for line in sorted(needed - listed))
    yield from (f"requirements.txt has {line}, which is no dependency" for line in sorted(listed - needed))


RULES: list[tuple[Check, Callable[[], list[Source]]]] = [
    (check_imports, lambda: sources(*PACK)),
    (check_file_length, lambda: sources(*ALL, suffixes=(".py", ".js"))),
    (check_function_length, lambda: sources(*ALL)),
    (check_docstring, lambda: sources(*ALL)),
    (check_name, lambda: sources(*ALL, suffixes=(".py", ".js"))),
    (check_statements, lambda: sources(*PACK)),
    (check_machine_paths, lambda: list(text_files())),
]


def expect_none(problems: Iterable[str]) -> None:
    if found := list(problems):
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize(("check", "files"), RULES, ids=[check.__name__ for check, _ in RULES])
def test_rule(check: Check, files: Callable[[], list[Source]]):
    found = files()
    assert found
    expect_none(f"{source.path}:{problem}" for source in found for problem in check(source))


def test_functions_are_mostly_short():
    expect_none(check_function_spread(sources(*PACK)))


def test_every_config_field_is_read():
    expect_none(check_fields_read(read(ROOT / "sdvideo_core/config.py"), sources(*PACK)))


def test_requirements_are_the_dependencies_less_torch():
    expect_none(check_requirements(read(ROOT / "requirements.txt").text, PYPROJECT))


def test_arrows_go_one_way():
    graphlib.TopologicalSorter(CORE_ARROWS).prepare()


def source(path: str, text: str) -> Source:
    return Source(PurePosixPath(path), text)


def long_function(lines: int) -> str:
    return "def f():\n" + "    pass\n" * (lines - 1)


BAD = [
    (check_imports, "sdvideo_core/unknown.py", ""),
    (check_imports, "sdvideo_core/config.py", "from .unet import UNetSD"),
    (check_imports, "sdvideo_core/unet.py", "from . import pipeline"),
    (check_imports, "sdvideo_core/training/trainer.py", "from ..pipeline import SDVideo"),
    (check_imports, "sdvideo_core/training/trainer.py", "from ... import nodes"),
    (check_imports, "sdvideo_core/ddim.py", "from ..nodes import comfy_bridge"),
    (check_imports, "sdvideo_core/ddim.py", "from sdvideo_core.schedule import NoiseSchedule"),
    (check_imports, "sdvideo_core/ddim.py", "import comfy.utils"),
    (check_imports, "sdvideo_core/ddim.py", "def f():\n    from folder_paths import base_path"),
    (check_imports, "sdvideo_core/vae.py", "import torch, einops"),
    (check_imports, "sdvideo_core/checkpoint.py", "import urllib.request"),
    (check_imports, "sdvideo_core/checkpoint.py", "from huggingface_hub import hf_hub_download"),
    (check_imports, "nodes/loaders.py", "from comfy.sd import VAE"),
    (check_imports, "nodes/loaders.py", "from nodes import KSampler"),
    (check_imports, BRIDGE, "import einops"),
    (check_imports, "__init__.py", "from .sdvideo_core import SDVideo"),
    (check_file_length, "web/player.js", "\n" * 351),
    (check_function_length, "nodes/loaders.py", long_function(61)),
    (check_docstring, "sdvideo_core/unet.py", "import torch"),
    (check_docstring, "sdvideo_core/unet.py", f'"""{"x" * 121}"""'),
    (check_name, "sdvideo_core/training/utils.py", ""),
    (check_name, "web/common/player.js", ""),
    (check_statements, "nodes/loaders.py", "print(1)"),
    (check_statements, "nodes/loaders.py", "assert x"),
    (check_statements, "nodes/loaders.py", "try:\n    f()\nexcept:\n    pass"),
    (check_statements, "nodes/loaders.py", "importlib.import_module('comfy')"),
    (check_machine_paths, "README.md", "first\nfrom /root" + "/model.pth"),
]


@pytest.mark.parametrize(("check", "path", "text"), BAD)
def test_rule_finds(check: Check, path: str, text: str):
    assert len(list(check(source(path, text)))) == 1


GOOD = [
    ("sdvideo_core/unet.py", "import math, torch.nn\nfrom PIL import Image\nfrom .blocks import ResBlock"),
    ("sdvideo_core/training/trainer.py", "from .state import save\nfrom ..schedule import NoiseSchedule"),
    ("nodes/loaders.py", "from comfy_api.latest import io\nfrom . import loaders\nfrom ..sdvideo_core import SDVideo"),
    (BRIDGE, "import comfy.sd, folder_paths, nodes"),
    ("__init__.py", "def f():\n    from .nodes import SDVideoExtension"),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_allowed_imports_pass(path: str, text: str):
    assert list(check_imports(source(path, text))) == []


def test_long_functions_are_found():
    assert len(list(check_function_spread([source("a.py", long_function(11) * 20)]))) == 1
    assert len(list(check_function_spread([source("a.py", long_function(2) * 8 + long_function(31) * 3)]))) == 1


def test_an_unread_field_is_found():
    config = source("config.py", "class A:\n    dim: int = 4\n    width: int = 8")
    assert list(check_fields_read(config, [source("a.py", "x.dim() + config.width")])) == ["2: nothing reads A.dim"]


def test_other_requirements_are_found():
    pyproject = 'dependencies = [\n    "torch>=2",\n    "numpy>=1",\n    "av",\n]\n'
    lacks, has = check_requirements("# ours\nnumpy>=2\nav\n", pyproject)
    assert "lacks numpy>=1" in lacks
    assert "has numpy>=2" in has
