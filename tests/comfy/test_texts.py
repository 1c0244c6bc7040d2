"""What people read about the nodes: translations in locales/ and help pages in web/docs say what the schemas have.

After a wanted change of words: python -m pytest tests/comfy/test_texts.py --update-schemas, which writes the English
file; then change the Chinese one and the help page to match.
"""

import json
import re
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2]
DOCS = PACK / "web" / "docs"
LANGUAGES = ("en", "zh")

# Labels that are the same word in both languages.
SAME_LABEL = {"cfg", "clip", "eta", "vae", "Latent", "LoRA"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# The browser compiles labels, names and descriptions as messages, in which these are syntax; tooltips it takes as
# they are.
SYNTAX = re.compile(r"[{}@|$]")


def words_of(info):
    """A node's texts under the keys that the browser looks them up by."""
    inputs = {
        name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
        for group in ("required", "optional")
        for name, (_, options) in info["input"].get(group, {}).items()
    }
    outputs = {}
    for index, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        # An output that is called like its type gets the browser's own word for that type.
        label = {} if name == kind else {"name": name}
        outputs[str(index)] = label | {"tooltip": info["output_tooltips"][index]}
    titles = {"display_name": info["display_name"], "description": info["description"]}
    return {**titles, "inputs": inputs, "outputs": outputs}


def texts_in(tree, path=()):
    """Every text with its path: ("SDVideoSaveGIF", "inputs", "fps", "tooltip")."""
    if isinstance(tree, str):
        return {path: tree}
    return {key: text for name, below in tree.items() for key, text in texts_in(below, (*path, name)).items()}


def locale_file(language):
    return PACK / "locales" / language / "nodeDefs.json"


def read_texts(language):
    return texts_in(json.loads(locale_file(language).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def schemas(server):
    return {
        name: info for name, info in server.object_info().items() if info["python_module"] == "custom_nodes.sdvideo"
    }


def test_the_english_texts_are_those_of_the_schemas(schemas, request):
    words = {name: words_of(info) for name, info in sorted(schemas.items())}
    if request.config.getoption("--update-schemas", default=False):
        locale_file("en").write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_texts("en") == texts_in(words), f"the schemas' words changed; {__doc__}"


def test_everything_is_said_in_chinese_and_nothing_that_is_not_there():
    assert read_texts("zh").keys() == read_texts("en").keys()


def test_the_chinese_texts_are_chinese():
    for path, text in read_texts("zh").items():
        assert CHINESE.search(text) or (path[-1] == "name" and text in SAME_LABEL), f"{'.'.join(path)}: {text!r}"


def test_both_languages_give_the_same_numbers():
    chinese = read_texts("zh")
    for path, text in read_texts("en").items():
        numbers = [sorted(re.findall(r"\d+(?:\.\d+)?", each)) for each in (text, chinese[path])]
        assert numbers[0] == numbers[1], f"{'.'.join(path)}: {chinese[path]!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_that_the_browser_compiles_hold_no_syntax(language):
    for path, text in read_texts(language).items():
        assert path[-1] == "tooltip" or not SYNTAX.search(text), f"{'.'.join(path)}: {text!r}"


def test_comfyui_serves_the_translations(server):
    served = json.loads(server.get("/i18n"))
    assert {language: texts_in(served[language]["nodeDefs"]) for language in LANGUAGES} == {
        language: read_texts(language) for language in LANGUAGES
    }


def pages():
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}


def table(page, title):
    """The rows of the table under a heading, the first cell without its backticks."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    lines = section[1].splitlines() if section else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [[name.strip("`"), *cells] for name, *cells in rows]


def shown(default):
    """A default value as the pages write it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_node_has_a_page_and_no_page_lacks_its_node(schemas):
    assert set(pages()) == set(schemas)


def test_comfyui_serves_the_pages(server):
    for node, page in pages().items():
        assert server.get(f"/extensions/sdvideo/docs/{node}.md").decode() == page


def test_pages_begin_with_the_name_that_the_node_bears(schemas):
    for node, page in pages().items():
        assert page.splitlines()[0] == f"# {schemas[node]['display_name']}"


def test_pages_explain_every_input_with_its_default(schemas):
    for node, page in pages().items():
        given = schemas[node]["input"]
        inputs = given.get("required", {}) | given.get("optional", {})
        defaults = {name: shown(options.get("default", "")) for name, (_, options) in inputs.items()}
        assert {name: default.strip("`") for name, default, _ in table(page, "Inputs")} == defaults, node


def test_pages_explain_every_output_in_order(schemas):
    for node, page in pages().items():
        assert [name for name, _ in table(page, "Outputs")] == schemas[node]["output_name"], node


def test_pages_call_other_nodes_by_the_names_people_see(server):
    names = {info["display_name"] or node for node, info in server.object_info().items()}
    for node, page in pages().items():
        unknown = set(re.findall(r"(?<![*\w])\*([^*\n]+)\*(?!\*)", page)) - names
        assert not unknown, f"{node}.md names nodes that there are not: {unknown}"


def test_each_page_has_a_picture_of_its_node_and_all_are_small():
    used = {}
    for node, page in pages().items():
        [(words, path)] = re.findall(r"!\[(.*?)\]\((.*?)\)", page)
        assert (words, path) == (f"The node {page.splitlines()[0].removeprefix('# ')}", f"images/{node}.png")
        used[path] = (DOCS / path).stat().st_size
    assert set(used) == {f"images/{path.name}" for path in (DOCS / "images").iterdir()}
    assert max(used.values()) < 80_000 and sum(used.values()) < 400_000
