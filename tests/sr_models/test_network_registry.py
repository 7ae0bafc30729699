"""The registry: what it finds in files, what it refuses, and that asking costs no import."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sr_models
from sr_models.registry import get_architecture, get_block, get_upsampler, modules

PACKAGE = Path(sr_models.__file__).parent


@pytest.fixture
def elsewhere(tmp_path):
    """Runs the registry's own source over two folders made here: a function of their files."""
    shutil.copy(PACKAGE / "registry.py", tmp_path)
    for folder in ("layers", "students"):
        (tmp_path / folder).mkdir()

    def search(kind, **files):
        for name, text in files.items():
            folder, stem = name.split("_", 1)
            (tmp_path / folder / f"{stem}.py").write_text(text)
        spec = importlib.util.spec_from_file_location("elsewhere", tmp_path / "registry.py")
        registry = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(registry)
        return registry.modules(kind)

    return search


def _python(code, folder=None):
    """What a new interpreter prints, with `folder` before everything else it can import."""
    before = f"import sys; sys.path.insert(0, {str(folder)!r})\n" if folder else "import sys\n"
    ran = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_names_are_found_without_importing_torch():
    found = _python(
        "from sr_models.registry import modules; "
        "print(modules('architecture')['paragonsr_s'], modules('block')['gatedffn'], "
        "modules('upsampler')['pixelshuffle'], 'torch' in sys.modules)"
    )
    assert found == (
        "sr_models.students.paragonsr sr_models.layers.paragonsr_blocks "
        "sr_models.layers.upsamplers False"
    )


def test_only_the_file_that_is_asked_for_is_imported():
    found = _python(
        "from sr_models.registry import get_upsampler; get_upsampler('pixelshuffle'); "
        "print(sorted(m for m in sys.modules if m.startswith(('sr_models.students.', "
        "'sr_models.layers.'))))"
    )
    assert found == "['sr_models.layers.upsamplers']"


@pytest.mark.parametrize(
    ("get", "kind"),
    [(get_architecture, "architecture"), (get_block, "block"), (get_upsampler, "upsampler")],
)
def test_an_unknown_name_lists_all_there_are(get, kind):
    with pytest.raises(ValueError, match=f"{kind} 'nothing' is not known: choose one of") as raised:
        get("nothing")
    listed = str(raised.value).split("choose one of ")[1].split(", ")
    assert listed == sorted(listed) == list(modules(kind))


def test_a_slip_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"did you mean paragonsr_tiny\?"):
        get_architecture("ParagonSR-tiny")


def test_case_does_not_matter():
    assert get_architecture("ParagonSR_S") is get_architecture("paragonsr_s")


def test_a_new_file_is_found_without_touching_another(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "sr_models", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    (tmp_path / "sr_models" / "students" / "fresh.py").write_text(
        "from sr_models.registry import register_architecture\n"
        "@register_architecture('Fresh')\n"
        "def fresh(scale=4, **options):\n"
        "    return scale, options\n"
    )
    found = _python(
        "from sr_models.registry import get_architecture, modules; "
        "print(get_architecture('fresh')(scale=2, a=1), modules('architecture')['fresh'], "
        "'paragonsr_s' in modules('architecture'), 'torch' in sys.modules)",
        tmp_path,
    )
    assert found == "(2, {'a': 1}) sr_models.students.fresh True False"


FRESH = """
from torch import nn
from sr_models.registry import register_architecture

PRESETS = ["not", "ours"]

@register_architecture("fresh")
class Fresh(nn.Module):
    def __init__(self, scale: int = 4, width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1),
                                  nn.Conv2d(width, 3 * scale**2, 3, padding=1),
                                  nn.PixelShuffle(scale))

    def forward(self, x):
        return self.body(x)

@register_architecture("fresh_named")
def fresh_named(scale=4, width=4):
    return Fresh(scale, width)

@register_architecture("fresh_open")
def fresh_open(scale=4, **options):
    return Fresh(scale, **options)

@register_architecture("fresh_loose")
def fresh_loose(scale: int = 4, **options) -> nn.Module:
    return Fresh(scale, **options)

@register_architecture("fresh_told")
def fresh_told(scale: int = 4, **options) -> Fresh:
    return Fresh(scale, **options)
"""

USE_FRESH = """
import torch, spandrel, sr_models
from sr_models.experts.loading import size_requirements
from sr_models.networks import build_network, constructor_arguments, feature_module_of
from sr_models.registry import get_architecture

for name in ("fresh", "fresh_named", "fresh_open", "fresh_loose", "fresh_told"):
    network = build_network(name, 2, {"width": 6})
    network(torch.rand(2, 3, 5, 7)).mean().backward()
    assert network(torch.rand(2, 3, 5, 7)).shape == (2, 3, 10, 14)
    assert network.body[0].weight.shape[0] == 6 and network.body[0].weight.grad is not None
    assert size_requirements(network) == (1, 1) and feature_module_of(network) is None
    print(name, *constructor_arguments(name))
    try:
        build_network(name, 2, {"widht": 6})
    except (ValueError, TypeError) as error:
        assert "widht" in str(error)
    else:
        raise AssertionError(name)
sr_models.register()
state = dict(get_architecture("paragonsr_nano")(scale=2).state_dict())
print(*spandrel.MAIN_REGISTRY.load(state).tags)
"""


def test_a_bare_class_is_a_network_and_leaves_the_files_of_others_alone(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "sr_models", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    (tmp_path / "sr_models" / "students" / "fresh.py").write_text(FRESH)
    assert _python(USE_FRESH, tmp_path).splitlines() == [
        "fresh scale width",
        "fresh_named scale width",
        "fresh_open scale",
        "fresh_loose scale",
        "fresh_told scale width",
        "paragonsr_nano",
    ]


def test_names_stand_with_their_files(elsewhere):
    network = (
        "import registry\n"
        "@registry.register_architecture('B')\n"
        "class Network: pass\n"
        "@other\n"
        "@register_architecture('a')\n"
        "def preset(): pass\n"
        "@register_block('part')\n"
        "class Part: pass\n"
        "def register_architecture_not(): pass\n"
    )
    found = elsewhere("architecture", students_one=network)
    assert list(found.items()) == [
        ("a", "sr_models.students.one"),
        ("b", "sr_models.students.one"),
    ]


def test_one_name_may_stand_for_one_thing_of_each_kind(elsewhere):
    text = "@register_block('same')\nclass A: pass\n@register_upsampler('same')\nclass B: pass\n"
    assert elsewhere("block", layers_one=text) == {"same": "sr_models.layers.one"}


@pytest.mark.parametrize("name", ["same", "SAME"])
def test_two_files_with_one_name_are_refused(elsewhere, name):
    with pytest.raises(ValueError, match=r"'same' is registered by .*layers\.one and .*\.two:"):
        elsewhere(
            "block",
            layers_one="@register_block('same')\nclass A: pass\n",
            students_two=f"@register_block('{name}')\nclass B: pass\n",
        )


def test_one_file_with_a_name_twice_is_refused(elsewhere):
    text = "@register_block('same')\nclass A: pass\n" * 2
    with pytest.raises(ValueError, match="'same' is registered by"):
        elsewhere("block", layers_one=text)


@pytest.mark.parametrize("argument", ["NAME", "f'{NAME}_s'", "'a' + NAME", "name='a'", ""])
def test_a_name_that_cannot_be_read_is_refused(elsewhere, argument):
    text = f"NAME = 'a'\n\n@register_architecture({argument})\ndef make(): pass\n"
    with pytest.raises(ValueError, match=r"late\.py:3: register_architecture takes its name as a"):
        elsewhere("architecture", students_late=text)
