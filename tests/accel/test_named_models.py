"""QEMU's CPU models by name: each compared with what QEMU itself says of it, and the table a guest then sees."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from typing import Any

import pytest
from test_cpu_models import AMD, INTEL, everything

from kvmkit.accel import cpuid, models
from kvmkit.accel.features import FEATURES, canonical, masks
from kvmkit.errors import BadInput

NEVER = {"monitor", *models.NESTING, *models.COMMON.split()}
"""What the machine or the user decides, not the model."""


def shown(table: cpuid.Table) -> set[str]:
    return {name for name in FEATURES if cpuid.has(table, name)}


@pytest.mark.parametrize("vendor", [AMD, INTEL])
@pytest.mark.parametrize("name", [*models.NAMED, *models.LEVELS])
def test_the_table_of_a_model_has_exactly_its_features(name: str, vendor: tuple[int, int, int]) -> None:
    table = cpuid.select(name, everything(vendor))
    model = cpuid.MODELS[name]
    assert isinstance(model, cpuid.Baseline)
    assert shown(table) == set(model.features.split())
    for word, mask in masks(model.features).items():
        assert word[:2] in table, "every word a model needs is in its table"
        if word[0] >> 28 == 8:
            assert table[(0x80000000, None)][0] >= word[0], "and below the highest leaf that it says there is"
        assert table[word[:2]][word[2]] & mask == mask


@pytest.mark.parametrize("name", models.NAMED)
def test_family_model_and_stepping(name: str) -> None:
    version = cpuid.select(name, everything())[(1, None)][0]
    base_family = version >> 8 & 15
    family = base_family + (version >> 20 & 0xFF if base_family == 15 else 0)
    found = family, (version >> 16 & 15) << 4 | version >> 4 & 15, version & 15
    wanted = next(models.NAMED[one].signature for one in ancestors(name) if models.NAMED[one].signature)
    assert found == wanted


def ancestors(name: str) -> list[str]:
    found = [name]
    while models.NAMED[found[-1]].base:
        found.append(models.NAMED[found[-1]].base)
    return found


@pytest.fixture(scope="module")
def qemu() -> dict[str, dict[str, Any]]:
    """Every model's properties, as this machine's QEMU expands them."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("QEMU is not installed: apt-get install qemu-system-x86")
    command = [program, "-accel", "tcg", "-M", "none", "-display", "none", "-nodefaults", "-qmp", "stdio", "-S"]
    asked = ['{"execute": "qmp_capabilities"}']
    names = [*models.NAMED, *models.ALIASES]
    for name in names:
        told = {"type": "full", "model": {"name": name}}
        asked.append(json.dumps({"execute": "query-cpu-model-expansion", "arguments": told, "id": name}))
    asked.append('{"execute": "quit"}')
    done = subprocess.run(command, input="\n".join(asked), capture_output=True, text=True, timeout=60, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["id"]: one["return"]["model"]["props"] for one in answers if "id" in one and "return" in one}


@pytest.mark.parametrize("name", [*models.NAMED, *models.ALIASES])
def test_qemu_says_the_same(name: str, qemu: dict[str, dict[str, Any]]) -> None:
    if name not in qemu:
        pytest.skip("this QEMU does not know the model")
    properties = qemu[name]
    known = {canonical(key): key for key in properties}
    theirs = {feature for feature, key in known.items() if feature and properties[key] is True} - NEVER
    ours = set(models.features(models.ALIASES.get(name, name)))
    assert ours - {"vme"} == theirs - {"vme"}, "QEMU's software CPU takes vme out of every model"
    family, model, stepping = (properties[key] for key in ("family", "model", "stepping"))
    table = cpuid.select(name, everything())
    version = max(family - 15, 0) << 20 | (model >> 4) << 16 | min(family, 15) << 8 | (model & 15) << 4 | stepping
    assert table[(1, None)][0] == version


def test_levels_contain_each_other() -> None:
    levels = [set(features.split()) for _, features in models.LEVELS.values()]
    assert all(lower < higher for lower, higher in itertools.pairwise(levels))


@pytest.mark.parametrize("alias", ["Haswell-noTSX-IBRS", "EPYC-IBPB", "Nehalem-v1", "Cascadelake-Server-noTSX"])
def test_an_alias_is_the_model_it_stands_for(alias: str) -> None:
    assert cpuid.select(alias, everything()) == cpuid.select(models.ALIASES[alias], everything())


def test_extended_state_is_what_the_model_needs() -> None:
    supported = everything(INTEL)
    supported[(0xD, 0)] = (0x602E7, 0x2B00, 0x2B00, 0)
    sizes = {
        2: (256, 576),
        5: (64, 1088),
        6: (512, 1152),
        7: (1024, 1664),
        9: (8, 2688),
        17: (64, 2752),
        18: (8192, 2816),
    }
    supported |= {(0xD, index): (*pair, 0, 0) for index, pair in sizes.items()}
    for name, components, size in (
        ("Westmere", 0, 0),
        ("SandyBridge", 7, 832),
        ("Skylake-Server", 0x2E7, 2696),
        ("SapphireRapids", 0x602E7, 11008),
    ):
        table = cpuid.select(name, supported)
        assert table[(0xD, 0)][0] == components
        assert table[(0xD, 0)][2] == size
        assert {key[1] for key in table if key[0] == 0xD and key[1] and key[1] > 1} == {
            index for index in sizes if components >> index & 1
        }


@pytest.mark.parametrize(("vendor", "extension"), [(AMD, "svm"), (INTEL, "vmx")])
def test_nested_stands_for_the_processors_own_extension(vendor: tuple[int, int, int], extension: str) -> None:
    supported = everything(vendor)
    other = {"svm": "vmx", "vmx": "svm"}[extension]
    word, bit = FEATURES[other]
    registers = list(supported[word[:2]])
    registers[word[2]] &= ~(1 << bit)
    supported[word[:2]] = (registers[0], registers[1], registers[2], registers[3])
    supported[(0x8000000A, None)] = (1, 16, 0, 1)
    for model in ("host", "EPYC", "Haswell", "x86-64-v3"):
        with_it = cpuid.select(f"{model},+nested", supported)
        assert cpuid.has(with_it, extension)
        assert ((0x8000000A, None) in with_it) == (extension == "svm")
        assert with_it[(0x80000000, None)][0] >= (0x8000000A if extension == "svm" else 0)
        without = cpuid.select(f"{model},-nested", supported)
        assert not cpuid.has(without, extension)
        assert (0x8000000A, None) not in without
    assert not cpuid.has(cpuid.select("EPYC", supported), extension), "a named model nests only when asked"
    assert cpuid.has(cpuid.select("host", supported), extension)


def test_nested_where_there_is_no_extension_is_refused_with_what_mends_it() -> None:
    supported = everything()
    for name in models.NESTING:
        word, bit = FEATURES[name]
        registers = list(supported[word[:2]])
        registers[word[2]] &= ~(1 << bit)
        supported[word[:2]] = (registers[0], registers[1], registers[2], registers[3])
    with pytest.raises(BadInput, match="kvmkit host nested enable"):
        cpuid.select("host,+nested", supported)
    assert cpuid.select("host,-nested", supported)


def test_a_model_that_is_nearly_one_gets_a_suggestion() -> None:
    with pytest.raises(BadInput, match="Haswell"):
        cpuid.parse("Haswel")
