"""The demo model in the loader's list: always there, last, and behind a user's own model of that name."""

from pathlib import Path

import pytest

from sdvideo_core.configuration import CONFIG_NAME
from sdvideo_core.demo.untrained import make_demo_model

USERS = ("zeroscope", "family/animov")


def find_in_comfy(roots, shipped):
    """By root: what the loader lists, where its `demo` is, and what it says of an unknown name."""
    import folder_paths
    from sdvideo.nodes.comfy_bridge.folders import model_directories, model_directory
    from sdvideo.sdvideo_core import demo

    from tests.comfy import called_nodes as calls

    def find(root, directory):
        folder_paths.folder_names_and_paths["text2video"] = ([root], set())
        demo.DIRECTORY = Path(directory)
        schema = calls.BY_ID["SDVideoModelScopeLoader"].GET_SCHEMA()
        found = {"listed": list(model_directories()), "offered": schema.inputs[0].options}
        for name in ("demo", "../demo"):
            try:
                found[name] = str(model_directory(name))
            except FileNotFoundError as error:
                found[name] = str(error)
        return found

    results = {name: find(root, shipped) for name, root in roots.items()}
    results["stripped"] = find(roots["some"], f"{shipped}/missing")
    results["bare"] = find(roots["none"], f"{shipped}/missing")
    find(roots["none"], shipped)
    model, _, vae = calls.load("demo")
    return {**results, "loaded": [type(model.model).__name__, vae.first_stage_model is not None]}


@pytest.fixture(scope="module")
def found(in_comfy, tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    roots = {name: base / name for name in ("none", "some", "own")}
    for root, models in zip(roots.values(), ((), USERS, ("demo", *USERS)), strict=True):
        root.mkdir()
        for model in models:
            (root / model).mkdir(parents=True)
            (root / model / CONFIG_NAME).write_text("{}")
    shipped = make_demo_model(base / "shipped")
    results = in_comfy(find_in_comfy, roots={name: str(root) for name, root in roots.items()}, shipped=str(shipped))
    return {"base": base, **results}


def test_it_is_all_there_is_where_nothing_is_installed(found):
    assert found["none"]["listed"] == found["none"]["offered"] == ["demo"]
    assert found["none"]["demo"] == str(found["base"] / "shipped")
    assert found["loaded"] == ["ModelScopeModel", True]


def test_it_comes_after_the_users_models(found):
    assert found["some"]["listed"] == ["family/animov", "zeroscope", "demo"]


def test_a_users_own_folder_of_that_name_wins(found):
    assert found["own"]["demo"] == str(found["base"] / "own" / "demo")
    assert found["own"]["listed"].count("demo") == 1


def test_without_it_the_list_lacks_it(found):
    assert found["stripped"]["listed"] == ["family/animov", "zeroscope"]
    assert "model 'demo' is not in" in found["stripped"]["demo"]


def test_the_list_is_empty_where_there_is_no_model_at_all(found):
    assert found["bare"]["listed"] == found["bare"]["offered"] == []
    assert "; found none. Put its folder, or its file, there." in found["bare"]["demo"]


def test_an_unknown_name_is_refused_with_what_there_is(found):
    message = found["some"]["../demo"]
    assert message.startswith("model '../demo' is not in ")
    assert message.endswith("found family/animov, zeroscope, demo. Put its folder, or its file, there.")
