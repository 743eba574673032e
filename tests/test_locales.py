"""The nodes' texts in six languages: complete, current, translated, and served."""

import json
import re
import urllib.request

import pytest
from author_locales import LANGUAGES, english, flat, read
from browser import SETTINGS, comfyui_page

TRANSLATIONS = LANGUAGES[1:]
SYMBOLS = {"alpha", "cfg", "crf", "psnr", "sigma", "ssim", "top_k", "vae", "x", "y"}
ALIKE = {  # names that are spelled as in English
    "zh": {"Latent"},
    "ja": set(),
    "ko": set(),
    "fr": {"audio", "ellipses", "images", "kilobits", "latent", "original", "segment", "source"},
    "de": {"Block", "Frame", "Frames", "Latent", "Original", "Radius", "Seed", "Segment", "SimpleGVR Sampler", "Upsampler", "Video"},
}
OWN_LETTERS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]", "ko": r"[\uac00-\ud7af]", "fr": "[a-z]", "de": "[a-z]"}
ENGLISH_WORDS = r"\b(the|of|and|with|is|are|from|that)\b"


@pytest.fixture(scope="module")
def get(server):
    """Returns what the server answers at a path, JSON."""

    def get(path: str) -> dict:
        with urllib.request.urlopen(server.address + path) as response:
            return json.load(response)

    return get


def kind(key: str) -> str:
    return key.rsplit(".", 1)[1]


def test_english_is_what_the_nodes_say(get):
    assert read("en") == english(get("/object_info")), "run python3 scripts/run.py tools/author_locales.py, and translate what it names"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_gives_every_language(get, language):
    served = get("/i18n")[language]["nodeDefs"]
    assert {name: served[name] for name in read(language)} == read(language)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_text_is_translated(language):
    source, texts = flat(read("en")), flat(read(language))
    assert texts.keys() == source.keys()
    for key, text in texts.items():
        if text.casefold() == source[key].casefold():
            assert kind(key) in ("name", "display_name") and text in SYMBOLS | ALIKE[language], key
        if kind(key) in ("tooltip", "description"):
            assert re.search(OWN_LETTERS[language], text) and not re.search(ENGLISH_WORDS, text), key


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_text_has_one_translation(language):
    source, texts, found = flat(read("en")), flat(read(language)), {}
    for key, text in texts.items():
        assert found.setdefault((source[key], kind(key) == "name"), text) == text, key


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_numbers_are_the_same_in_every_language(language):
    """So is what a combo offers, which the front end does not translate: a translation of an older text shows itself here."""
    texts = flat(read(language))
    for key, text in flat(read("en")).items():
        translated = re.sub(r"(?<=\d),(?=\d)", ".", texts[key])
        exact = re.findall(r"\d+(?:\.\d+)?", text) + re.findall(r"(?:^|\. )([a-z ]+):", text)
        missing = [word for word in exact if not re.search(rf"(?<!\d){word}(?!\d)", translated)]
        assert not missing, (key, missing)


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_have_no_character_that_the_front_ends_translation_takes_for_syntax(language):
    for key, text in flat(read(language)).items():
        assert text.strip() == text != "", key
        if kind(key) != "tooltip":
            assert not re.search(r"[@{}|%]", text), key


@pytest.fixture
def chinese_page(server, monkeypatch):
    monkeypatch.setitem(SETTINGS, "Comfy.Locale", "zh")
    with comfyui_page(server.address) as page:
        yield page
        page.request.post(f"{server.address}/settings/Comfy.Locale", data='"en"')


def test_the_front_end_shows_a_node_in_chinese(chinese_page):
    """Tooltips of the inputs that a choice brings too: web/js/tooltips.js gives them theirs, the front end looks up the others."""
    title, widgets = chinese_page.evaluate("""() => {
        const node = LiteGraph.createNode('SimpleGVRSampler')
        app.graph.add(node)
        for (const [name, value] of [['size', 'scale'], ['settings', 'custom'], ['tiling', 'custom']])
            node.widgets.find(widget => widget.name === name).value = value
        return [node.title, Object.fromEntries(node.widgets.map(widget => [widget.name, [widget.label, widget.tooltip]]))]
    }""")
    texts = read("zh")["SimpleGVRSampler"]
    assert title == texts["display_name"]
    for name in ("size", "seed", "settings", "color_match"):
        assert widgets[name][0] == texts["inputs"][name]["name"]
    for name in ("size.scale", "settings.steps", "settings.denoise", "tiling.segment"):
        assert dict(zip(("name", "tooltip"), widgets[name], strict=True)) == texts["inputs"][name.replace(".", "_")]
